"""Mode ``pv``: the guest that cooperates, as under Xen.

The kernel was ported: it knows that it runs in ring 1 and asks by INT 82h for what ring 0 would do. Its own page tables
hold machine frames and are what the MMU walks; the hypervisor only checks them. Nothing is emulated and nothing is
hidden, so there is neither a shadow table nor a translation. Exceptions come to the hypervisor, which pushes a frame
on the guest's kernel stack; interrupts are events. Barham et al., "Xen and the Art of Virtualization" (2003).
"""

import re
import struct
from typing import Final

from hvemu.cpu.decoder import Instruction
from hvemu.cpu.delivery import (
    DEVICE_NOT_AVAILABLE,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    PAGE_FAULT,
    Escalated,
    Event,
    TripleFault,
    Unsupported,
    pushed_flags,
)
from hvemu.cpu.linear import LinearFault, read_linear, write_linear
from hvemu.cpu.msr import EFER
from hvemu.cpu.state import (
    ATTRIBUTE_CODE,
    ATTRIBUTE_CONFORMING,
    ATTRIBUTE_DPL_SHIFT,
    ATTRIBUTE_LONG,
    ATTRIBUTE_PRESENT,
    ATTRIBUTE_S,
    ATTRIBUTE_WRITABLE,
    CS,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    ESI,
    ESP,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    SS,
    Segment,
    VirtualCpu,
    segment_from_descriptor,
)
from hvemu.engine import layout
from hvemu.loader.contract import BootRequest
from hvemu.loader.xen_guest import DomainBuilder
from hvemu.memory.direct import DirectPaging, FrameType
from hvemu.memory.frame_pool import FramePool
from hvemu.modes.paravirtual_cpu import ParavirtualPages, ParavirtualView
from hvemu.modes.reflection import LONG_MODE, NO_VIRTUAL_8086, Reflection
from hvemu.modes.stretches import Services
from hvemu.modes.written_frames import WrittenFrames
from hvemu.paravirtual.domain import Domain, DomainServices
from hvemu.trace.events import Batched
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SHIFT
from hvemu.vocabulary.errors import ExitStatus, HostBug
from hvemu.vocabulary.exits import AssistKind, Call, ExitKind, ParavirtualEvent
from hvemu.vocabulary.machine_map import DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT
from hvemu.vocabulary.outcomes import Halt, Retire, Stop
from hvemu.vocabulary.paging import CR0_TS, EFER_LME
from hvemu.vocabulary.xen import Hypercall, HypercallError

_LEGAL_PORTS: Final = frozenset({DEBUG_CONSOLE_PORT, *range(DEBUG_EXIT_PORT, DEBUG_EXIT_PORT + 4)})
_LISTS: Final = frozenset({Hypercall.MMU_UPDATE, Hypercall.MULTICALL, Hypercall.MMUEXT_OP})
"""Hypercalls whose second argument says how many requests there are."""


class _Refused(Exception):
    """The guest cannot be entered where it said; a sentence says why."""


class ParavirtualMode(Reflection):
    """The ported kernel in ring 1, on its own page tables."""

    name = "pv"
    _suspicious = re.compile(rb"\x0f\xc7")

    def __init__(self, services: Services, domain: DomainServices, frames: range) -> None:
        vcpu, memory = services.vcpu, services.memory
        pool = FramePool(memory.machine, 1, frames.start - 1)
        self._pages = ParavirtualPages(vcpu, pool)
        self.paging = DirectPaging(memory, vcpu.flush_tlb, self._point)
        view = self._view = ParavirtualView(vcpu, self.paging)
        super().__init__(services, view)
        self.domain = Domain(memory, pool, frames, self, view.paging, self.paging, domain)
        events, calls = self.domain.events, self.domain.hypercalls
        view.masked = events.masked
        events.pending = self._event_pending
        calls.batched = self._note_call
        self._events = {event: services.ledger.counter(event) for event in ParavirtualEvent}
        calls.updated = self._note_updates
        self._call = services.dispatcher.entry(ExitKind.HYPERCALL)
        self._written = WrittenFrames(memory.view[frames.start << PAGE_SHIFT : frames.stop << PAGE_SHIFT])
        self._first_frame = frames.start
        self._clear()
        self.connect()
        vcpu.map_ram(0, memory.size, memory.host_address)

    def _clear(self) -> None:
        self._traps: dict[int, tuple[int, int, int]] = {}
        self._kernel_stack = (xen.FLAT_RING1_DS, 0)
        self._callback: tuple[int, int] | None = None
        self._gdt_frames: list[int] = []
        self._io_ring = 0

    # ------------------------------------------------------------------ the ExecutionMode contract

    def power_on(self) -> None:
        """Before a domain builder lays out the guest."""
        self._clear()
        self._pages.map_gdt([])
        self.domain.power_on()
        self.domain.warn = lambda text: self.warn(text)

    def build(self, request: BootRequest) -> VirtualCpu:
        """Lay out a guest in its empty memory; returns the CPU at its first instruction. Raises UserError."""
        self.power_on()
        domain, frames = self.domain, self.domain.frames
        builder = DomainBuilder(self.memory, frames, request)
        cpu, layout_of = builder.build(domain.shared_info, domain.store_port, domain.console_port)
        page = layout_of.hypercall_page
        if page is not None:
            page = builder.machine_address(page)
        console, store = frames[layout_of.console] << PAGE_SHIFT, frames[layout_of.store] << PAGE_SHIFT
        domain.attach(console, store, page)
        try:
            self.paging.pin(cpu.cr3 >> PAGE_SHIFT, FrameType.L3)
        except HypercallError as refused:
            raise HostBug(f"the domain builder made tables that are refused: {refused}") from None
        return cpu

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state, whose CR3 is the machine address of a level-3 table."""
        vcpu, view = self.vcpu, self._view
        self._pages.load_tables()
        frame = cpu.cr3 >> PAGE_SHIFT
        if frame != self.paging.base:
            self.paging.load(frame)
        self._pages.load_control(cpu.cr0 & CR0_TS)
        self.domain.events.mask(not cpu.flags & FLAG_IF)
        view.set_eflags(cpu.flags)
        for index, segment in enumerate(cpu.segments):
            view.set_segment(index, segment)
        vcpu.set_code_and_stack(cpu.segments[CS], cpu.segments[SS])
        vcpu.set_cr2(cpu.cr2)
        self._msrs.values.update(cpu.msrs)
        vcpu.check_all_stores()
        self._load_rest(cpu)

    def leave(self) -> VirtualCpu:
        """The guest's registers. What hypercalls have set is the domain's."""
        cpu = super().leave()
        cpu.cr0 |= self._words[layout.WORD_CR0] & CR0_TS
        return cpu

    def dirty_pages(self) -> set[int]:
        """Machine frames that differ from what they held at the last call; all at the first."""
        return {self._first_frame + frame for frame in self._written.since_last_time()}

    def can_interrupt(self) -> bool:
        """Whether the guest lets events through."""
        return not self._view.masked()

    def deliver_nmi(self) -> Stop | None:
        """Only a guest with a handler for it hears of an NMI."""
        return super().deliver_nmi() if 2 in self._traps else None

    def deliver_interrupt(self, vector: int) -> Stop | None:
        """Call the guest up for its events."""
        self.halted = False
        self._call_up()
        return self._take_end()

    def _halt(self) -> Halt | Stop:
        self.halted = True  # by a hypercall, which has been counted
        return self._take_end() or Halt()

    # ------------------------------------------------------------------ hypercalls

    def _on_interrupt(self, vector: int) -> None:
        if (
            vector == xen.HYPERCALL_VECTOR
            and self._abandoned is None
            and self._words[layout.WORD_HFLAGS] & 3 == 1
            and self.vcpu.is_software_interrupt()
        ):
            self._disturbed = True
            if self._slack:
                self._take_back_slack()
            self._make_call()
            self._return_to_guest()
        else:
            super()._on_interrupt(vector)

    def _make_call(self) -> None:
        gpr = self.vcpu.gpr
        number = gpr(EAX)
        arguments = gpr(EBX), gpr(ECX), gpr(EDX), gpr(ESI), gpr(EDI)
        outcome = self._call(Call(number, arguments[1] if number in _LISTS else 1, arguments))
        assert type(outcome) is Retire
        if number == Hypercall.IRET:
            self._look_at_entry()
        else:
            self.vcpu.set_gpr(EAX, outcome.value)

    def _return_to_guest(self) -> None:
        """At the end of whatever brought control to the hypervisor: are there events to be called up for?"""
        if self._end is not None or self._halting:
            self._stop_now()
        elif self.domain.events.upcall_due():
            self._call_up()
        self.vcpu.clear_exception()

    def _event_pending(self) -> None:
        """Something has happened on a channel; inside a hypercall, its end looks at that."""
        if self.domain.events.upcall_due():
            self._pin.set_level(True)  # type: ignore[attr-defined]

    def _call_up(self) -> None:
        self._pin.set_level(False)  # type: ignore[attr-defined]
        self._events[ParavirtualEvent.UPCALL][0] += 1
        if self._callback is None:
            self._crash("an event came before set_callbacks had said where to")
            return
        selector, address = self._callback
        try:
            self._bounce(selector, address, masks=True)
        except (_Refused, LinearFault) as problem:
            self._crash(f"an event could not be delivered: {_why(problem)}")

    def _note_call(self, number: int, result: int) -> None:
        self._events[ParavirtualEvent.MULTICALL_ENTRY][number] += 1
        if self._tracer.active:
            self._tracer.publish(Batched(self.position(), xen.hypercall_name(number), result))

    def _note_updates(self, count: int) -> None:
        self._events[ParavirtualEvent.TABLE_UPDATE][0] += count

    # ------------------------------------------------------------------ the ParavirtualCpu that hypercalls see

    def _point(self, frame: int) -> None:
        self._pages.point([self.paging.entry((frame << PAGE_SHIFT) + 8 * index) for index in range(4)])

    def set_trap(self, vector: int, flags: int, selector: int, address: int) -> None:
        """A row of the trap table."""
        self._traps[vector] = flags, _outside_ring_0(selector), address

    def clear_traps(self) -> None:
        """No trap table."""
        self._traps.clear()

    def set_kernel_stack(self, selector: int, pointer: int) -> None:
        """Where events from user code begin to push."""
        self._kernel_stack = _outside_ring_0(selector), pointer

    def set_callback(self, selector: int, address: int) -> None:
        """Where to call the kernel up for events."""
        self._callback = _outside_ring_0(selector), address

    def load_gdt(self, frames: list[int]) -> None:
        """The guest's descriptors; raises HypercallError and keeps the ones it has."""
        taken: list[int] = []
        try:
            for frame in frames:
                self.paging.get_type(frame, FrameType.DESCRIPTORS)
                self.paging.get(frame)
                taken.append(frame)
        except HypercallError:
            self._release_gdt(taken)
            raise
        before, self._gdt_frames = self._gdt_frames, taken
        self._pages.map_gdt(taken)
        self._release_gdt(before)

    def _release_gdt(self, frames: list[int]) -> None:
        for frame in frames:
            self.paging.put_type(frame)
            self.paging.put(frame)

    def set_task_switched(self, on: bool) -> None:
        """CR0.TS."""
        words = self._words
        words[layout.WORD_CR0] = words[layout.WORD_CR0] & ~CR0_TS | (CR0_TS if on else 0)
        self.vcpu.refresh_mode()

    def set_io_privilege(self, level: int) -> None:
        """The ring that may use ports."""
        self._io_ring = level

    def invalidate(self, linear: int) -> None:
        """INVLPG."""
        self.vcpu.invalidate(linear)

    def return_from_event(self) -> None:
        """EAX, EIP, CS, EFLAGS, and for user code ESP and SS, from the kernel's stack."""
        vcpu, stack = self.vcpu, self.vcpu.segment(SS)
        esp = vcpu.gpr(ESP)
        try:
            eax = int.from_bytes(self._read(stack.base + esp, 4), "little")
            flags = self._return_through((esp + 4) & 0xFFFF_FFFF)
        except (_Refused, LinearFault) as problem:
            self._crash(f"the iret hypercall cannot return: {_why(problem)}")
            return
        self.domain.events.mask(not flags & FLAG_IF)
        vcpu.set_gpr(EAX, eax)

    def _return_through(self, esp: int) -> int:
        """Go to where a frame says; returns the flags in it. Raises _Refused or LinearFault, and has done nothing."""
        vcpu, stack, ring = self.vcpu, self.vcpu.segment(SS), self.vcpu.cpl()
        eip, selector, flags = struct.unpack("<3I", self._read(stack.base + esp, 12))
        code = self._code_segment(selector & 0xFFFF, (1, 3) if ring == 1 else (3,))
        pointer = (esp + 12) & 0xFFFF_FFFF
        if selector & 3 != ring:
            pointer, other = struct.unpack("<2I", self._read(stack.base + esp + 12, 8))
            stack = self._stack_segment(other & 0xFFFF, 3)
        self._view.set_eflags(flags)
        vcpu.set_gpr(ESP, pointer)
        vcpu.set_eip(eip)
        vcpu.set_code_and_stack(code, stack)
        return int(flags)

    def _read(self, linear: int, length: int) -> bytes:
        return read_linear(self.memory, self._view.paging(), linear, length)

    def block(self) -> None:
        """Wait for an event."""
        self._halting = True

    def shut_down(self, reason: int) -> None:
        """The guest ends itself."""
        what = xen.SHUTDOWN_REASONS[reason]
        if what == "poweroff":
            self.domain.services.power_off()
        elif what == "reboot":
            self.domain.services.reboot()
            self._attention = True
            self._stopped = True
        else:
            self._crash(f"it shut itself down, and gave {what} as the reason")
        self._stop_now()

    def _crash(self, cause: str) -> None:
        self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence(cause))
        if self._running:
            self._stop_now()

    # ------------------------------------------------------------------ into the guest

    def _code_segment(self, selector: int, rings: tuple[int, ...]) -> Segment:
        segment = segment_from_descriptor(selector, 0 if selector & 4 else self._pages.descriptor(selector))
        attributes = segment.attributes
        wanted = ATTRIBUTE_S | ATTRIBUTE_CODE | ATTRIBUTE_PRESENT
        if attributes & (wanted | ATTRIBUTE_CONFORMING | ATTRIBUTE_LONG) != wanted:
            raise _Refused(f"selector {selector:#06x} is no code segment")
        ring = attributes >> ATTRIBUTE_DPL_SHIFT & 3
        if ring != selector & 3 or ring not in rings:
            raise _Refused(f"code selector {selector:#06x} is of the wrong ring")
        return segment

    def _stack_segment(self, selector: int, ring: int) -> Segment:
        segment = segment_from_descriptor(selector, 0 if selector & 4 else self._pages.descriptor(selector))
        attributes = segment.attributes
        wanted = ATTRIBUTE_S | ATTRIBUTE_WRITABLE | ATTRIBUTE_PRESENT
        if attributes & (wanted | ATTRIBUTE_CODE) != wanted:
            raise _Refused(f"selector {selector:#06x} is no stack segment")
        if not (attributes >> ATTRIBUTE_DPL_SHIFT & 3) == selector & 3 == ring:
            raise _Refused(f"stack selector {selector:#06x} is of the wrong ring")
        return segment

    def _bounce(
        self, selector: int, address: int, *, masks: bool, event: Event | None = None, error_code: int | None = None
    ) -> None:
        """Push a frame on the kernel's stack and go to its handler; raises _Refused or LinearFault."""
        vcpu, view, events = self.vcpu, self._view, self.domain.events
        code, current, esp = self._code_segment(selector, (1,)), vcpu.segment(SS), vcpu.gpr(ESP)
        flags = view.eflags()
        shown = flags if event is None else pushed_flags(event, flags)
        values = [vcpu.eip(), vcpu.segment(CS).selector | events.masked() << 16, shown]
        if error_code is not None:
            values.insert(0, error_code)
        stack, pointer = current, esp
        if vcpu.cpl() == 3:
            stack_selector, pointer = self._kernel_stack
            stack = self._stack_segment(stack_selector, 1)
            values += (esp, current.selector)
        frame = struct.pack(f"<{len(values)}I", *values)
        pointer = (pointer - len(frame)) & 0xFFFF_FFFF
        write_linear(self.memory, view.paging(), stack.base + pointer, frame)
        if masks:
            events.mask(True)
        view.set_eflags(flags & ~(FLAG_TF | FLAG_RF | FLAG_NT | FLAG_VM))
        vcpu.set_gpr(ESP, pointer)
        vcpu.set_eip(address)
        vcpu.set_code_and_stack(code, stack)
        vcpu.set_interrupt_shadow(False)

    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        """To the handler in the trap table."""
        if self.vcpu.eflags() & FLAG_VM:
            return Unsupported(NO_VIRTUAL_8086)
        if event.vector == GENERAL_PROTECTION and not event.software and self._turns_on_long_mode():
            return Unsupported(LONG_MODE.format("pv"))
        history = [event]
        flags, selector, address = self._traps.get(event.vector, (0, 0, 0))
        if event.software and self.vcpu.cpl() > flags & xen.TRAP_DPL:
            event = Event(GENERAL_PROTECTION, event.vector * 8 + 2, start=event.start)
            history.append(event)
            flags, selector, address = self._traps.get(event.vector, (0, 0, 0))
        if event.start is not None and len(history) > 1:
            self.vcpu.set_eip(event.start)
        if not address:
            return Unsupported(f"its trap table has no entry for vector {event.vector}")
        if event.address is not None:
            cr2 = struct.pack("<I", event.address & 0xFFFF_FFFF)
            self.memory.write(self.domain.shared_info + xen.VCPU_CR2, cr2)
        if event.vector == DEVICE_NOT_AVAILABLE:
            self.set_task_switched(False)
        try:
            self._bounce(
                selector,
                address,
                masks=bool(flags & xen.TRAP_MASKS_EVENTS),
                event=event,
                error_code=event.error_code,
            )
        except (_Refused, LinearFault) as problem:
            return Unsupported(f"vector {event.vector} could not be delivered: {_why(problem)}")
        return Escalated(tuple(history)) if len(history) > 1 else None

    def _turns_on_long_mode(self) -> bool:
        """Whether the kernel has tried to; all else that it must not do is its own fault."""
        vcpu = self.vcpu
        if vcpu.cpl() != 1 or vcpu.gpr(ECX) != EFER or not vcpu.gpr(EAX) & EFER_LME:
            return False
        instruction = self._instruction()
        return instruction is not None and instruction.mnemonic == "wrmsr"

    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        escalated = super()._deliver(kind, event)
        if self._end is None and self.domain.events.upcall_due():
            self._call_up()
        return escalated

    # ------------------------------------------------------------------ instructions that are looked at

    def _forbidden(self, port: int, size: int) -> bool:
        """Only the ports of a test bench, and only for the ring that physdev_op has named."""
        legal = self.vcpu.cpl() <= self._io_ring and all(port + at in _LEGAL_PORTS for at in range(size))
        if not legal:
            self._abandon(self.vcpu.eip(), Event(GENERAL_PROTECTION, 0))
        return not legal

    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        return mnemonic in ("rdrand", "rdseed")

    def _wants(self, instruction: Instruction) -> bool:
        return True

    def _emulate(self, instruction: Instruction) -> None:
        if instruction.mnemonic != "iretd":
            self._exception(Event(INVALID_OPCODE))
            return
        try:
            self._return_through(self.vcpu.gpr(ESP))
            self._retired += len(instruction.code)
        except _Refused:
            self._exception(Event(GENERAL_PROTECTION, 0))
        except LinearFault as fault:
            self._exception(Event(PAGE_FAULT, fault.fault.error_code, address=fault.fault.address))


def _outside_ring_0(selector: int) -> int:
    """Selectors of ring 0 are meant for ring 1."""
    return selector if selector & 3 else selector | 1


def _why(problem: _Refused | LinearFault) -> str:
    if isinstance(problem, LinearFault):
        return f"its kernel stack faults at {problem.fault.address:#010x}"
    return str(problem)
