"""Mode ``bt``: binary translation, VMware's answer to an architecture that could not be virtualized.

The guest kernel never runs where it lies. It is translated on demand into a cache, which the CPU executes in ring 1;
user code still runs directly. Everything else is mode ``trap``: shadow paging, event delivery, the emulator. The two
meet in two verbs: the mode *surfaces* from an address of the cache to the guest's own state, so that all that
trap-and-emulate knows can be done to it, and *dives* back into the translation of wherever the guest is then.

The cache lies in a hole of the guest's address space. Its pages can be executed but neither read nor written, by a
protection key; a guest that uses these addresses makes the hole move.
"""

from collections.abc import Callable
from typing import Final

from hvemu.cpu.decoder import Detailed, decode_operands
from hvemu.cpu.delivery import DEBUG, GENERAL_PROTECTION, PAGE_FAULT, Event
from hvemu.cpu.linear import write_linear
from hvemu.cpu.privileged import PrivilegedInstructions, effective_address, register_value
from hvemu.cpu.sensitive import KernelInstructions
from hvemu.cpu.state import CS, ECX, ESP, FLAG_RF, FLAG_TF, SS, Segment, VirtualCpu
from hvemu.engine import layout
from hvemu.memory.shadow import ShadowPolicy
from hvemu.memory.walk import PageFault, walk
from hvemu.modes.adaptation import Adaptation
from hvemu.modes.code_pages import CodePages
from hvemu.modes.deprivileged import LOOKUP_BASE, LOOKUP_SELECTOR
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.stretches import Services
from hvemu.modes.translation_cache import (
    LOOKUP_HIT,
    LOOKUP_MISS,
    LOOKUP_TABLE_SIZE,
    CacheFullError,
    TranslationCache,
    Unit,
)
from hvemu.modes.translator import LEA_SIZE, Callout, Context, Exit, Indirect, Point, Treatment, translate
from hvemu.modes.trap import TrapMode
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.errors import ExitStatus, HostBug
from hvemu.vocabulary.exits import DISPATCHES, AssistKind, ExitKind, TranslationEvent
from hvemu.vocabulary.outcomes import Stop
from hvemu.vocabulary.paging import CR0_PE, CR0_PG, ERROR_FETCH, ERROR_USER, ERROR_WRITE

CACHE_SIZE: Final = 4 << 20
_TABLE_SPAN: Final = 2 << 20
_HOLES: Final = tuple(range(0xFB00_0000, 0xC000_0000, -0x0140_0000))
"""Where the hole may be; any will do, as long as the guest does not want it."""
_KEY: Final = 1
_KEY_DENIES: Final = 0b11 << 2 * _KEY
_TABLE_ENTRY: Final = 0x25 | _KEY << 59
"""Present, for all rings, accessed; neither writable nor, because of its key, readable."""
_DIRECT, _INDIRECT = range(len(DISPATCHES))
_WORD_CS: Final = (layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE) // 4
_WORD_SS: Final = (layout.BYTE_SEGMENTS + 2 * layout.SEGMENT_STRIDE) // 4
_BIG: Final = 1 << 22
_R8, _R9, _R12 = 8, 9, 12


class _FetchFault(Exception):
    """The guest cannot fetch its next instruction."""

    def __init__(self, fault: PageFault) -> None:
        super().__init__(fault)
        self.fault = fault


class _NoMemory(Exception):
    """The guest's next instruction is where there is no memory."""


class BinaryTranslation(TrapMode):
    """The guest kernel translated."""

    name = "bt"

    def __init__(self, services: Services, policy: ShadowPolicy | None = None, *, cache_size: int = CACHE_SIZE) -> None:
        self._reserved_frames = cache_size + 2 * LOOKUP_TABLE_SIZE >> PAGE_SHIFT
        super().__init__(services, policy)
        memory = services.memory
        base = (services.own_frames().stop << PAGE_SHIFT) - cache_size
        self.cache = TranslationCache(memory.machine.view[base : base + cache_size], self._forget_cached)
        self._cache_machine = base
        tables = base - 2 * LOOKUP_TABLE_SIZE
        self._hypervisor_pages.map_lookup(tables)
        self.cache.use_lookup(memory.machine.view[tables:base], LOOKUP_BASE, LOOKUP_SELECTOR)
        self._code_segment: Segment | None = None
        self._tables = self._make_tables(base, cache_size)
        self._translations = {event.value: services.ledger.counter(event) for event in TranslationEvent}
        self._hole, self._choice = _HOLES[0], 0
        self._inside = False  # whether EIP is an address of the cache
        self._site = -1  # offset in the cache that the mode last surfaced from, while the same exit is handled
        self._called = 0  # where an indirect transfer goes that was undone last
        self._resume: tuple[Unit, int, int, Context] | None = None
        self._pages = CodePages(memory, self.paging, self._guest, self._remove)
        self._adaptation = Adaptation()
        self._stops: set[int] = set()
        self._values: dict[str, int] = {}
        self._seen = -1
        self.hands_over = self.wants_to_hand_over = False
        """Whether there is another technique for real mode, and whether the guest is about to go there."""
        self.translated: Callable[[Unit], None] | None = None
        """Told of every unit when it has been translated, if somebody wants to know."""
        guest = self._guest
        guest.protects_keys = True
        guest.crossed, guest.remapped = self._crossed, self._pages.check
        self._place_clock()

    def _instructions(self, services: Services) -> PrivilegedInstructions:
        guest = self._guest
        return KernelInstructions(
            guest, services.memory, services.msrs, self._debug, guest.idt, guest.gdt, guest.ldt_segment
        )

    def _make_tables(self, base: int, size: int) -> list[int]:
        view, tables = self.memory.machine.view, []
        for part in range(0, size, _TABLE_SPAN):
            table = self._pool.take()
            for index, offset in enumerate(range(part, min(part + _TABLE_SPAN, size), PAGE_SIZE)):
                view[table + 8 * index : table + 8 * index + 8] = (base + offset | _TABLE_ENTRY).to_bytes(8, "little")
            tables.append(table)
        return tables

    def _place_clock(self) -> None:
        cache = self.cache
        cache.place(self._hole)
        self._clock.watch_cache(self._hole, cache.size, cache.weights, cache.enabled)
        if self._counter:
            self._counter.watch_cache(self._hole, cache.size, cache.starts)

    def _tell(self, event: TranslationEvent) -> None:
        self._translations[event._value_][0] += 1

    # ------------------------------------------------------------------ the ExecutionMode contract

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state, one ring down; raises UserError for real mode."""
        self._inside = False
        self._adaptation.reset()
        self._flush()
        self._pages.reset()
        super().enter(cpu)
        self.vcpu.words[layout.WORD_PKRU] = _KEY_DENIES
        self.paging.place_hole(self._hole, self._tables)
        self._crossed(user=self.vcpu.cpl() == 3)

    def remark(self) -> str:
        """Nothing: the guest cannot know where it runs."""
        return ""

    def statistics(self) -> dict[str, int]:
        """Sizes, for people: units, bytes of the cache, pages of guest code."""
        return {"units": len(self.cache.units), "cache": self.cache.used(), "code_pages": len(self._pages)}

    def _crossed(self, user: bool) -> None:
        """The hole exists only while the kernel runs; so do protection keys, which user code could change."""
        self.paging.show_hole(not user)
        self._guest.show_keys()

    # ------------------------------------------------------------------ surfacing and diving

    def _offset(self) -> int:
        offset = self.vcpu.linear_eip() - self._hole
        if not 0 <= offset < self.cache.size:
            raise HostBug(f"translated code has left the cache, for {self.vcpu.linear_eip():#010x}")
        return offset

    def _translates(self) -> bool:
        """Whether the guest is in kernel code that is translated: 32 bits, and a stack of 32 bits."""
        words = self._words
        return words[layout.WORD_HFLAGS] & 3 == 1 and bool(words[_WORD_CS + 5] & words[_WORD_SS + 5] & _BIG)

    _clock_knows_if = _translates

    def _context(self) -> Context:
        guest, words = self._guest, self._words
        selector = words[_WORD_CS] & 0xFFFC
        shadow = self.vcpu.interrupt_shadow()
        base, flat = words[_WORD_CS + 2], not words[_WORD_SS + 2]
        return Context(guest.interrupts_enabled(), shadow, guest.io_privilege(), selector, base, flat)

    def _surface(self) -> bool:
        """Give the registers the guest's own state; returns whether that was at an instruction boundary."""
        if not self._inside:
            return True
        if self._words[_WORD_CS] == LOOKUP_SELECTOR | 1:
            self._leave_lookup()
        offset = self._offset()
        unit, point = self.cache.point(offset)
        self._inside, self._site = False, offset
        guest, vcpu, context = self._guest, self.vcpu, unit.translation.context
        interrupts = context.interrupts if point.interrupts is None else point.interrupts
        shadow = context.shadow if point.shadow is None else point.shadow
        guest.set_interrupts(interrupts)
        vcpu.set_interrupt_shadow(shadow)
        vcpu.set_eip(point.eip)
        if not point.charged:
            self._resume = unit, offset, point.eip, context._replace(interrupts=interrupts, shadow=shadow)
            return True
        item = next(item for item in unit.translation.items if item.eip == point.eip)
        self._resume = unit, unit.start + item.offset, point.eip, context
        return self._undo(point)

    def _leave_lookup(self) -> None:
        """Out of the 64-bit code of the lookup, back to the transfer that called it."""
        vcpu, quads = self.vcpu, self._quads
        within = self.cache.in_lookup(self._offset())
        if within >= 0:
            if within in (LOOKUP_MISS, LOOKUP_HIT):
                vcpu.set_gpr(ECX, quads[_R12])
            vcpu.set_eip(quads[_R9] - LEA_SIZE)
        assert self._code_segment is not None
        vcpu.set_segment(CS, self._code_segment)
        vcpu.set_eip(vcpu.eip() - self._code_segment.base)

    def _undo(self, point: Point) -> bool:
        """An instruction has begun in the cache: make it not so, or else finish it; returns whether that."""
        vcpu, undo = self.vcpu, point.undo
        if undo == "popf":
            result = self._privileged.execute(self._detailed_or_fail())
            if result is not None:
                raise HostBug("an instruction that had begun in the cache could not be finished")
            self._refused = None
            return True
        if self._running:
            self._clock.refund(point.charged)
        else:
            self._retired -= point.charged
        if undo == "register":
            mine, other = (vcpu.gpr(ECX) + point.value) & 0xFFFF_FFFF, vcpu.gpr(point.register)
            vcpu.set_gpr(ECX, mine if point.register == ECX else other)
            if point.register != ECX:
                vcpu.set_gpr(point.register, mine)
        elif undo == "moved":
            self._called = self._quads[_R8] & 0xFFFF_FFFF
            vcpu.set_gpr(ESP, vcpu.gpr(ESP) + point.value)
        elif undo:
            self._undo_stack(undo, point.value)
        return False

    def _undo_stack(self, undo: str, value: int) -> None:
        """ECX is on the stack: where the return address was, or pushed."""
        vcpu, paging, pointer = self.vcpu, self._guest.paging(), self.vcpu.gpr(ESP)
        linear = (self._guest.segment(SS).base + pointer) & 0xFFFF_FFFF
        target = self._called = (vcpu.gpr(ECX) + value) & 0xFFFF_FFFF
        vcpu.set_gpr(ECX, int.from_bytes(self._code(linear, 4), "little"))
        if undo == "pushed":
            vcpu.set_gpr(ESP, pointer + 4)
            return
        data = target.to_bytes(4, "little")
        for index in range(4):  # behind the back of all who watch: this is what was there before
            physical = walk(self.memory, paging, (linear + index) & 0xFFFF_FFFF, mark=False)
            if isinstance(physical, int) and physical < self.memory.size:
                self.memory.view[physical] = data[index]

    def _dive(self) -> None:
        """Go on in the translation of where the guest is, if that is translated code."""
        while self._translates() and not self._inside and self._end is None and not self._stopped:
            guest, vcpu = self._guest, self.vcpu
            if guest.changes != self._seen:
                self._refresh_constants()
            eip, context, resume = vcpu.eip(), self._context(), self._resume
            if resume is not None and resume[0].valid and resume[2] == eip and resume[3] == context:
                unit, offset = resume[0], resume[1]
            else:
                found = self._find(eip, context)
                if found is None:
                    continue
                unit, offset = found, found.start
            if self._words[layout.WORD_EFLAGS] & FLAG_TF and not self._is_identical(unit, eip):
                self._site = -1
                if self._running and self._is_due():
                    self._stop_now()
                    return
                self._emulate_detailed(self._detailed_or_fail())
                if self._stopped or self._halting:
                    return
                continue
            vcpu.set_interrupt_shadow(unit.translation.repeats)
            if self._code_segment is None or self._code_segment[:2] != (self._words[_WORD_CS], context.base):
                self._code_segment = vcpu.segment(CS)
            vcpu.set_eip(self._hole + offset - context.base)
            self._inside, self._site = True, -1
            if self._running and self._pin.level:
                self._clock.open_window()
            return
        self._site = -1
        if self.hands_over and self._words[layout.WORD_HFLAGS] & 3 == 1 and not self._translates():
            # Code or a stack of 16 bits is for the other technique
            self.wants_to_hand_over = self._attention = True
            if self._running:
                self._stop_now()
            else:
                self._stopped = True

    def _find(self, eip: int, context: Context) -> Unit | None:
        """The unit for this address, translated now if need be; None when the guest has been told of a fault."""
        unit = self.cache.find(eip, context)
        if unit is not None:
            return unit
        try:
            return self._translate(eip, context)
        except _FetchFault as problem:
            self._site = -1
            if self._running and self._is_due():
                self._stop_now()  # what is due comes before the next instruction is fetched
                return None
            DirectExecution._exception(self, Event(PAGE_FAULT, problem.fault.error_code, address=problem.fault.address))
        except _NoMemory:
            self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence("there is no memory at this address"))
            if self._running:
                self._stop_now()
        return None

    def _is_due(self) -> bool:
        """Whether the run ends at this boundary, or an interrupt comes."""
        return self._attention or self.position() >= self._until or (self._pin.level and self.can_interrupt())

    def _dive_again(self) -> None:
        """At the end of an exit that was handled inside the engine's callback."""
        if self._abandoned is None and not self._stopped and self._end is None and not self._halting:
            self._dive()

    def _is_identical(self, unit: Unit, eip: int) -> bool:
        item = next((item for item in unit.translation.items if item.eip == eip), None)
        return item is not None and item.treatment is Treatment.IDENTICAL and item.text[:5] != "pushf"

    # ------------------------------------------------------------------ translating

    def _translate(self, eip: int, context: Context) -> Unit:
        stops, tracers = frozenset(self._stops), frozenset(self._adaptation.tracers)
        translation = translate(self._fetch, eip, context, self._constant, stops=stops, tracers=tracers)
        try:
            unit = self.cache.add(translation)
        except CacheFullError:
            self._flush()
            unit = self.cache.add(translation)
        self._tell(TranslationEvent.UNIT)
        self._pages.note(unit)
        if self.translated is not None:
            self.translated(unit)
        return unit

    def _fetch(self, linear: int, length: int) -> bytes:
        """Code bytes as the CPU fetches them, from the next page only if the instruction goes on there."""
        room = PAGE_SIZE - linear % PAGE_SIZE
        first = self._fetch_within(linear, min(room, length))
        if length <= room or decode_operands(first, 32) is not None:
            return first
        return first + self._fetch_within((linear + room) & 0xFFFF_FFFF, length - room)

    def _fetch_within(self, linear: int, length: int) -> bytes:
        physical = walk(self.memory, self._guest.paging(), linear, fetch=True)
        if not isinstance(physical, int):
            raise _FetchFault(physical)
        if physical >= self.memory.size:
            raise _NoMemory
        return self.memory.read(physical, length)

    def _constant(self, name: str) -> int:
        guest = self._guest
        if name.startswith("cr"):
            value = guest.control(int(name[2]))
            return value & 0xFFFF if name.endswith(":16") else value
        if name.startswith("ldtr"):
            return guest.ldt_segment().selector
        if name.startswith("tr"):
            return guest.task_segment().selector
        table = guest.gdt() if name.startswith("gdtr") else guest.idt()
        return table.limit if name.endswith("limit") else table.base

    def _refresh_constants(self) -> None:
        """Virtual registers have changed: patch the translations that hold their values."""
        self._seen = self._guest.changes
        for name in self.cache.constants():
            value = self._constant(name)
            if self._values.get(name) != value:
                self._values[name] = value
                self.cache.update(name, value)

    # ------------------------------------------------------------------ forgetting

    def _remove(self, unit: Unit) -> None:
        if unit.valid:
            self._tell(TranslationEvent.REMOVAL)
            self.cache.remove(unit)

    def _flush(self) -> None:
        """Forget all translations."""
        self._tell(TranslationEvent.FLUSH)
        self.cache.flush()
        self._resume = None
        self._seen = -1
        self._values.clear()
        self._pages.forget()
        self.vcpu.forget_code()

    def _move_hole(self) -> None:
        """The guest wants the addresses of the hole: be elsewhere."""
        self._tell(TranslationEvent.HOLE)
        for _ in _HOLES:
            self._choice = (self._choice + 1) % len(_HOLES)
            hole = _HOLES[self._choice]
            if not any(self.paging.is_mapped(hole + at) for at in range(0, self.cache.size, _TABLE_SPAN)):
                break
        self._hole = hole
        self._flush()
        self._place_clock()
        self.paging.place_hole(hole, self._tables)

    def _forget_cached(self, offset: int, length: int) -> None:
        """The CPU must not run what it has decoded at an offset of the cache."""
        if self.vcpu.cpl() == 3:  # which does not see the hole
            self._hypervisor_pages.forget_range(self._cache_machine + offset, length)
        else:
            self.vcpu.forget_code_at(self._hole + offset, length)

    # ------------------------------------------------------------------ running

    def _go(self, budget: int, *, window: bool = False, exit_at: int | None = None) -> bool:
        self._stopped = False
        self._dive()
        if self._end is not None or self._stopped or self._halting:
            halted, self._halting, self._refused = self._halting, False, None
            return halted
        halted = super()._go(budget, window=window, exit_at=exit_at)
        if not self._surface():
            self._refused = None
            if self._counter:
                self._counter.take_back()
        self._site = -1
        return halted

    def _part_done(self) -> int:
        return self._stopped_at if self._is_of_cache(self._stopped_at) else super()._part_done()

    def _is_of_cache(self, linear: int) -> bool:
        return 0 <= linear - self._hole < self.cache.size

    def _in_cache(self, linear: int) -> bool:
        return self._is_of_cache(linear) and self.vcpu.cpl() == 1

    def _boundary(self, address: int, size: int, left: int) -> int:
        if not self._in_cache(address):
            return super()._boundary(address, size, left)
        points, start, weight = self.cache.points, address - self._hole, self._clock.weight
        for at in range(1, size):
            found = points.get(start + at)
            if found is not None and not found[1].charged and weight(address, address + at) >= left:
                return at
        return size

    def _look_at_first_block(self) -> None:
        if not self._inside:
            super()._look_at_first_block()

    def _on_translation(self, linear: int, size: int) -> None:
        if not self._inside:
            super()._on_translation(linear, size)

    def _code(self, linear: int, length: int) -> bytes:
        if self._inside and self._is_of_cache(linear):
            return self.cache.read(linear - self._hole, length)
        return super()._code(linear, length)

    def _forget_code_at(self, linear: int, size: int) -> None:
        if self._in_cache(linear):
            self._forget_cached(linear - self._hole, size)
        else:
            super()._forget_code_at(linear, size)

    def _eip(self) -> int:
        return self._point()[1].eip if self._inside else self.vcpu.eip()

    def _point(self) -> tuple[Unit, Point]:
        """Where the CPU is, inside the cache."""
        offset = self._offset()
        if self.cache.in_lookup(offset) >= 0:
            offset = self._quads[_R9] - LEA_SIZE - self._hole
        return self.cache.point(offset)

    def can_interrupt(self) -> bool:
        """IF is set and no STI or MOV SS shadow is over the next instruction; known by where the CPU is."""
        if not self._inside:
            return super().can_interrupt()
        unit, point = self._point()
        context = unit.translation.context
        enabled = context.interrupts if point.interrupts is None else point.interrupts
        return enabled and not (context.shadow if point.shadow is None else point.shadow)

    # ------------------------------------------------------------------ exits

    def _on_interrupt(self, vector: int) -> None:
        if self._inside and self._abandoned is None and self.vcpu.is_software_interrupt():
            self._settle_software_interrupt(vector)
            self._surface()
        super()._on_interrupt(vector)
        self._dive_again()

    def _on_invalid(self) -> bool:
        goes_on = super()._on_invalid()
        self._dive_again()
        return goes_on and self._end is None

    def _on_sysenter(self) -> None:
        """The engine adds the instruction's two bytes afterwards."""
        if self._abandoned is None:
            self._surface()
        super()._on_sysenter()
        if self._abandoned is None:
            self.vcpu.set_eip(self.vcpu.eip() + 2)
            self._dive_again()
            self.vcpu.set_eip(self.vcpu.eip() - 2)

    def _system_call(self, length: int) -> None:
        """The engine adds the instruction's length afterwards."""
        self._surface()
        super()._system_call(length)
        self.vcpu.set_eip(self.vcpu.eip() + length)
        self._dive_again()
        self.vcpu.set_eip(self.vcpu.eip() - length)

    def _settle_block(self, *, complete: bool = False) -> None:
        super()._settle_block(complete=complete)
        self._surface()

    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        self._surface()
        return super()._deliver(kind, event)

    def _exception(self, event: Event) -> None:
        if self._site >= 0 and event.vector == GENERAL_PROTECTION:
            found = self.cache.callouts.get(self._site)
            if found is not None:
                self._called_out(*found)
                return
        super()._exception(event)

    def _page_fault(self, event: Event) -> None:
        assert event.address is not None
        assert event.error_code is not None
        linear, code = event.address & 0xFFFF_FFFF, event.error_code
        write = bool(code & ERROR_WRITE)
        if self._is_of_cache(linear):
            user, fetch = bool(code & ERROR_USER and self.vcpu.cpl() == 3), bool(code & ERROR_FETCH)
            physical = walk(self.memory, self._guest.paging(), linear, write=write, user=user, fetch=fetch)
            if isinstance(physical, int):
                self._exit(ExitKind.HIDDEN_FAULT, code)
                self._move_hole()
                self._again()
            else:
                DirectExecution._exception(self, Event(PAGE_FAULT, physical.error_code, address=physical.address))
            return
        site = self._site
        if write and site >= 0:
            found = self._indirect_at(site)
            if found is not None:
                # Its exchange with the stack is a store of ours: the page stays as clean as RET leaves it
                self.vcpu.forget_exception()
                self._indirect(*found)
                return
            self._suspect(linear, site)
        super()._page_fault(event)

    def _indirect_at(self, site: int) -> tuple[Unit, Indirect] | None:
        """The unit and the lookup of a RET, if that is where one begins."""
        unit, point = self.cache.point(site)
        if unit.translation.items[-1].eip != point.eip or point.charged:
            return None
        for callout in unit.translation.callouts.values():
            if callout.indirect is not None and callout.indirect.undo == "stack":
                return unit, callout.indirect
        return None

    def _suspect(self, linear: int, site: int) -> None:
        """A store has hit a page that may not be written: is it a page table again?"""
        physical = walk(self.memory, self._guest.paging(), linear, write=True, mark=False)
        if not isinstance(physical, int) or not self.paging.is_table(physical >> PAGE_SHIFT):
            return
        own = self.vcpu.linear_eip()
        if not self._adaptation.suspect(own):
            return
        instruction = self._detailed()
        if instruction is None or instruction.mnemonic != "mov" or not self._is_identical(*self._unit_at(site)):
            self._adaptation.believe(own)
            return
        self._adaptation.tracers.add(own)
        self._tell(TranslationEvent.ADAPTATION)
        self.cache.trace(site, len(instruction.code))

    def _unit_at(self, offset: int) -> tuple[Unit, int]:
        unit, point = self.cache.point(offset)
        return unit, point.eip

    def _step_over(self, frame: int | None, instruction: Detailed | None) -> None:
        site = self._site
        if site >= 0 and not self._is_identical(*self._unit_at(site)):
            self.vcpu.forget_exception()
            self._emulate_detailed(self._detailed_or_fail(), counted=False)
            return
        super()._step_over(frame, instruction)

    def _kind_of_emulation(self) -> ExitKind:
        return ExitKind.PRIVILEGED if self.vcpu.cpl() == 3 else ExitKind.CALLOUT

    def _emulate_detailed(self, instruction: Detailed, *, counted: bool = True) -> None:
        if self.hands_over and instruction.operands and instruction.operands[0].register == "cr0":
            value = register_value(self._guest, instruction.operands[1].register)
            if not value & (CR0_PE | CR0_PG):
                self.vcpu.forget_exception()
                self.wants_to_hand_over = self._attention = True
                self._stop_now()
                return
        super()._emulate_detailed(instruction, counted=counted)

    def note_change_of_hands(self) -> None:
        """The guest has been handed over, in one direction or the other."""
        self._tell(TranslationEvent.DIRECT)

    # ------------------------------------------------------------------ callouts

    def _called_out(self, unit: Unit, callout: Callout | Exit) -> None:
        self.vcpu.forget_exception()
        if isinstance(callout, Exit):
            self._exits["dispatch"][_DIRECT] += 1
            self._charge(callout.length)
            self._leave_unit(unit, callout)
        elif callout.kind == "indirect":
            assert callout.indirect is not None
            self._indirect(unit, callout.indirect)
        elif callout.kind == "breakpoint":
            self._at_stop(unit)
        elif callout.kind == "tracer":
            self._trace_store(unit)
        elif not (callout.charged and self.vcpu.eip() != unit.translation.items[-1].eip):  # POPF has been finished
            self._emulate_detailed(self._detailed_or_fail())

    def _leave_unit(self, unit: Unit, way: Exit) -> None:
        """An exit that was not chained: chain it."""
        vcpu, guest = self.vcpu, self._guest
        vcpu.set_eip(way.target)
        guest.set_interrupts(way.transition.interrupts)
        vcpu.set_interrupt_shadow(way.transition.shadow)
        self._site, self._resume = -1, None
        context = unit.translation.context._replace(interrupts=way.transition.interrupts, shadow=way.transition.shadow)
        self._connect(unit, way, context)
        if self._is_due():
            self._stop_now()

    def _connect(self, unit: Unit, way: Exit | Indirect, context: Context) -> None:
        eip = self.vcpu.eip()
        target = self.cache.find(eip, context)
        if target is None:
            try:
                target = self._translate(eip, context)
            except (_FetchFault, _NoMemory):
                return  # to be found again by whoever dives
        if isinstance(way, Exit):
            self._tell(TranslationEvent.CHAIN)
            self.cache.chain(unit, way, target)
        else:
            self.cache.remember(target)
            if self.cache.hint(unit, way, target):
                self._tell(TranslationEvent.HINT)

    def _indirect(self, unit: Unit, site: Indirect) -> None:
        """A return or an indirect transfer whose target no hint knew."""
        instruction = self._detailed_or_fail()
        if site.undo == "pushed":
            self._finish_call(len(instruction.code))
            result = None
        else:
            result = self._privileged.execute(instruction)
        if isinstance(result, Event):
            self._site = -1
            DirectExecution._exception(self, result)
            return
        self._exits["dispatch"][_INDIRECT] += 1
        self._charge(len(instruction.code))
        self._site, self._resume = -1, None
        context = unit.translation.context
        if self.cache.prefer(context):
            self._flush()
        self._connect(unit, site, context._replace(shadow=False))
        if self._is_due():
            self._stop_now()

    def _finish_call(self, length: int) -> None:
        """CALL through memory: the target has been read already, and where the return address goes been written to."""
        vcpu, guest = self.vcpu, self._guest
        pointer = (vcpu.gpr(ESP) - 4) & 0xFFFF_FFFF
        after = ((vcpu.eip() + length) & 0xFFFF_FFFF).to_bytes(4, "little")
        write_linear(self.memory, guest.paging(), guest.segment(SS).base + pointer, after)
        vcpu.set_gpr(ESP, pointer)
        vcpu.set_eip(self._called)

    def _at_stop(self, unit: Unit) -> None:
        """Where a breakpoint may be."""
        linear = self.vcpu.linear_eip()
        if linear in self._breakpoints and (self.position(), linear) != self._resumed_at:
            self._count(ExitKind.CALLOUT, "breakpoint", self.vcpu.eip(), 0)
            self.at_breakpoint = True
            self._stop_now()
        elif (
            self._debug.watches(linear)
            and not self._guest.eflags() & FLAG_RF
            and self._debug.hit(linear, self._guest.eflags())
        ):
            self._site = -1
            DirectExecution._exception(self, Event(DEBUG))
        else:
            assert self._resume is not None
            _, offset, eip, context = self._resume
            self._resume = unit, offset + 1, eip, context

    def _trace_store(self, unit: Unit) -> None:
        """A store that kept hitting watched pages: do it here, which is cheaper than another fault."""
        instruction = self._detailed_or_fail()
        linear = effective_address(self._guest, instruction, instruction.operands[0])
        physical = walk(self.memory, self._guest.paging(), linear, write=True)
        if not isinstance(physical, int):
            self._site = -1
            DirectExecution._exception(self, Event(PAGE_FAULT, physical.error_code, address=physical.address))
        elif not self.paging.is_table(physical >> PAGE_SHIFT) or not self._privileged.store(instruction):
            # It stores to other pages as well: the CPU shall do that, and it is not suspected for ever
            self._adaptation.acquit(self.vcpu.linear_eip())
            self._remove(unit)
        else:
            self._count(ExitKind.CALLOUT, "mov", self.vcpu.eip(), len(instruction.code))
            self._retired_by_us(len(instruction.code), stepping=False)

    def _detailed_or_fail(self) -> Detailed:
        instruction = self._detailed()
        if instruction is None:
            raise HostBug(f"what was translated at {self.vcpu.linear_eip():#010x} is no instruction any more")
        return instruction

    # ------------------------------------------------------------------ breakpoints

    def _hook_addresses(self, addresses: frozenset[int]) -> None:
        super()._hook_addresses(addresses)
        wanted = set(self._breakpoints) | set(self._debug.execution_breakpoints())
        if wanted != self._stops:
            self._stops = wanted
            self._flush()
