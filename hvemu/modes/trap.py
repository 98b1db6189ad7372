"""Mode ``trap``: trap-and-emulate on shadow page tables, the classical hypervisor of Popek and Goldberg (1974).

The guest kernel runs at ring 1 of the same physical CPU. Its privileged instructions raise a real #GP and are emulated
on the guest's virtual registers; the MMU walks the hypervisor's tables. User code runs directly at ring 3. The
engine is in compatibility mode, because only there can the hypervisor keep its tables where the guest cannot
reach them. Real mode, virtual-8086 mode and 64-bit code do not exist here.
"""

import re
from typing import Final

from hvemu.cpu.decoder import Detailed, Instruction
from hvemu.cpu.delivery import (
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    NOT_PRESENT,
    PAGE_FAULT,
    STACK_FAULT,
    Escalated,
    Event,
    TripleFault,
    Unsupported,
    deliver,
)
from hvemu.cpu.msr import EFER, TSC
from hvemu.cpu.privileged import PrivilegedInstructions
from hvemu.cpu.segment_loads import NotEmulated
from hvemu.cpu.state import FLAG_TF, FLAG_VM, VirtualCpu, accessed
from hvemu.engine import layout
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.shadow import MMIO_WINDOW, ShadowPaging, ShadowPolicy, Traced
from hvemu.memory.walk import walk
from hvemu.modes.audit import Audit
from hvemu.modes.deprivileged import DeprivilegedCpu, HypervisorPages
from hvemu.modes.reflection import NO_VIRTUAL_8086, Reflection
from hvemu.modes.stretches import Services
from hvemu.trace.events import Exited, Warned
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE, Position
from hvemu.vocabulary.errors import ExitStatus, HostBug, UserError
from hvemu.vocabulary.exits import MNEMONICS, AssistKind, ExitKind, PagingEvent
from hvemu.vocabulary.outcomes import Halt, Stop

_NUMBERS: Final = {mnemonic: number for number, mnemonic in enumerate(MNEMONICS)}
_PATIENCE: Final = 10_000
_FLOATING_POINT: Final = 16
_EMULATED: Final = frozenset({GENERAL_PROTECTION, NOT_PRESENT, STACK_FAULT})


class TrapMode(Reflection):
    """The guest kernel deprivileged to ring 1."""

    name = "trap"
    _suspicious = re.compile(rb"\x0f\xc7")
    _outer_ring = 3
    _reserved_frames = 0
    """Machine frames below the guest's that are not for page tables."""

    def __init__(self, services: Services, policy: ShadowPolicy | None = None, *, audit: bool = False) -> None:
        vcpu, memory, ledger = services.vcpu, services.memory, services.ledger
        frames = (memory.base >> PAGE_SHIFT) - self._reserved_frames
        pool = self._pool = FramePool(memory.machine, 1, frames - 1)  # nothing of ours is at 0
        pages = HypervisorPages(vcpu, pool)
        self._hypervisor_pages = pages
        self._events = {event.value: ledger.counter(event) for event in PagingEvent}
        self.paging = ShadowPaging(memory, pool, pages, self._note_paging, policy, pages.pdpt)
        self._guest = DeprivilegedCpu(vcpu, memory, self.paging, pages)
        super().__init__(services, self._guest)
        self._privileged = self._instructions(services)
        self._privileged.hypercall = services.hypercall or self._privileged.hypercall
        self._privileged.debug_changed = lambda: self._hook_addresses(self._debug.execution_breakpoints())
        self._last_hidden: tuple[int, int, int | None] = (0, 0, None)
        self._repeated = 0
        self._stepping_over = self._guest_steps = False
        self._repeat_ends_at = -1
        self._repeated_code = b""
        self._read_at = (-1, 0)  # position and EIP of the instruction that read MMIO last
        self._reads: list[tuple[int, int, int]] = []  # what it read: address, size, value
        self._replay: list[tuple[int, int, int]] = []
        self.audit = Audit(self._guest, vcpu, memory) if audit else None
        if audit:
            self._suspicious = re.compile(b"")
        self.connect()
        vcpu.map_ram(0, memory.machine.size, memory.machine.host_address)
        vcpu.map_mmio(
            MMIO_WINDOW,
            MMIO_WINDOW,
            lambda address, size: self._read_mmio(address - MMIO_WINDOW, size),
            lambda address, size, value: self._on_mmio_write(address - MMIO_WINDOW, size, value),
        )
        vcpu.allow_mmio()

    def _instructions(self, services: Services) -> PrivilegedInstructions:
        """The emulator of what is not to run as it is."""
        return PrivilegedInstructions(self._guest, services.memory, services.msrs, self._debug)

    def _note_paging(self, event: PagingEvent) -> None:
        self._events[event._value_][0] += 1

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask."""
        super().connect()
        self._services.msrs.changed = self._msr_changed

    # ------------------------------------------------------------------ the ExecutionMode contract

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state, one ring down; raises UserError for real mode."""
        vcpu, guest = self.vcpu, self._guest
        self.paging.reset()
        try:
            guest.reset(cpu.paging(), cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr, cpu.cr2)
        except NotEmulated as problem:
            text = str(problem)
            raise UserError(text[0].upper() + text[1 : text.index(";")], "Use --mode native or bt.") from None
        for index, value in enumerate(cpu.gprs):
            vcpu.set_gpr(index, value)
        guest.set_eflags(cpu.flags)
        guest.set_code_and_stack(cpu.segments[1], cpu.segments[2])
        for index, segment in enumerate(cpu.segments):
            guest.set_segment(index, segment)
        vcpu.set_eip(cpu.instruction_pointer)
        vcpu.write_fpu(cpu.fpu)
        self._load_debug(cpu.debug)
        self._nmi_blocked = cpu.nmi_blocked
        self.halted = cpu.halted
        self._msrs.values.update(cpu.msrs)
        vcpu.clear_exception()
        vcpu.set_interrupt_shadow(cpu.interrupt_shadow)
        vcpu.forget_code()

    def leave(self) -> VirtualCpu:
        """The guest's state, with ring 1 shown as ring 0."""
        vcpu, guest = self.vcpu, self._guest
        paging = guest.paging()
        return VirtualCpu(
            gprs=[vcpu.gpr(index) for index in range(8)],
            instruction_pointer=vcpu.eip(),
            flags=guest.eflags(),
            segments=[accessed(guest.segment(index)) for index in range(6)],
            gdtr=guest.gdt(),
            idtr=guest.idt(),
            ldtr=guest.ldt_segment(),
            tr=guest.task_segment(),
            cr0=paging.cr0,
            cr2=guest.cr2(),
            cr3=paging.cr3,
            cr4=paging.cr4,
            debug=list(self._debug.values),
            msrs=dict(self._msrs.values),
            efer=paging.efer,
            interrupt_shadow=vcpu.interrupt_shadow(),
            nmi_blocked=self._nmi_blocked,
            halted=self.halted,
            fpu=vcpu.read_fpu(),
        )

    def remark(self) -> str:
        """Which sensitive instructions lied to the guest, or how to find out."""
        if self.audit is None:
            return "With --audit, mode trap names the sensitive instructions that gave it wrong answers, if any did."
        return self.audit.summary()

    def dirty_pages(self) -> set[int]:
        """Frames written since the last call, by write protection; all at the first."""
        return self.paging.start_dirty_log()

    def _msr_changed(self, index: int, value: int) -> None:
        if index == EFER:
            self._guest.set_efer(value)
        elif index == TSC:
            self._clock.move_tsc(self._msrs.tsc_offset)

    # ------------------------------------------------------------------ exits

    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        if self.vcpu.eflags() & FLAG_VM:
            return Unsupported(NO_VIRTUAL_8086)
        try:
            return deliver(self._guest, self.memory, event)
        except NotEmulated as problem:
            return Unsupported(str(problem))

    def _exception(self, event: Event) -> None:
        vector = event.vector
        if vector == PAGE_FAULT:
            self._page_fault(event)
            return
        if vector in _EMULATED:
            instruction = self._detailed()
            if instruction is not None and self._privileged.knows(instruction):
                self._emulate_detailed(instruction)
                return
        elif vector == INVALID_OPCODE:
            hypercall = self._hypercall()
            if hypercall is not None:
                self._emulate_detailed(hypercall, counted=False)
                return
        elif vector == _FLOATING_POINT and not self._guest.control(0) & 0x20:
            # The guest wants no #MF but the external interrupt of 1981, which nobody raises: let it go on.
            self.vcpu.words[layout.WORD_CR0] &= ~0x20
            self.vcpu.forget_exception()
            return
        super()._exception(event)

    def _page_fault(self, event: Event) -> None:
        assert event.address is not None
        assert event.error_code is not None
        found = self.paging.fault(event.address, event.error_code, self.vcpu.linear_eip())
        if found is None:
            self._exit(ExitKind.HIDDEN_FAULT, event.error_code)
            self._watch_progress(event)
            self._again()
        elif isinstance(found, Traced):
            self._exit(ExitKind.TRACED_WRITE, found.frame)
            instruction = self._detailed()
            if instruction is not None and self._privileged.store(instruction):
                self.vcpu.forget_exception()
                self._retired_by_us(len(instruction.code), stepping=bool(self._guest.eflags() & FLAG_TF))
            else:
                self._step_over(found.frame, instruction)
        else:
            super()._exception(Event(PAGE_FAULT, found.error_code, address=found.address))

    def _read_mmio(self, address: int, size: int) -> int:
        """A device is read once by an instruction, even if its store then takes a hidden fault and it starts again."""
        here = (self.position(), self._eip())
        if here != self._read_at:
            self._read_at, self._reads, self._replay = here, [], []
        if self._replay:
            known, width, value = self._replay.pop(0)
            if (known, width) == (address, size):
                return value
            self._replay.clear()
        value = self._on_mmio_read(address, size)
        self._reads.append((address, size, value))
        return value

    def _step_over(self, frame: int, instruction: Detailed | None) -> None:
        """Let the CPU do a store to a watched frame by itself, and come back after that one instruction."""
        self.paging.close()
        self.paging.open(frame)
        self._again()
        if instruction is not None and instruction.repeated:
            self._repeated_code = instruction.code
            self._repeat_ends_at = self.vcpu.eip() + len(instruction.code)
        else:
            self._repeat_ends_at = -1
        if not self._stepping_over:
            flags = self._guest.eflags()
            self._stepping_over, self._guest_steps = True, bool(flags & FLAG_TF)
            self._guest.set_eflags(flags | FLAG_TF)

    def _end_step(self) -> None:
        """The store is done, or something else comes first; then it will fault again."""
        if self._stepping_over:
            self._stepping_over = False
            self.paging.close()
            if not self._guest_steps:
                self._guest.set_eflags(self._guest.eflags() & ~FLAG_TF)

    def _stepped(self) -> bool:
        if self._stepping_over:
            self._end_step()
            if not self._guest_steps:
                if self.vcpu.eip() == self._repeat_ends_at:
                    # Free of the trap flag, the engine would come back once more to find the counter at zero
                    self._charge(len(self._repeated_code))
                self.vcpu.forget_exception()
                if self._running and self._pin.level and self.can_interrupt():
                    self._stop_now()
                return True
        return super()._stepped()

    def run(self, until: Position) -> Halt | Stop | None:
        """Run to the first instruction boundary at or after ``until``; see the contract."""
        outcome = super().run(until)
        self._end_step()
        return outcome

    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        self._end_step()
        return super()._deliver(kind, event)

    def _watch_progress(self, event: Event) -> None:
        """The same hidden fault again and again would be a bug of ours; better loud than for ever."""
        here = (self.position(), self.vcpu.eip(), event.address)
        self._repeated = self._repeated + 1 if here == self._last_hidden else 0
        self._last_hidden = here
        if self._repeated > _PATIENCE:
            raise HostBug(f"shadow paging makes no progress at EIP {here[1]:#010x} for address {here[2]:#x}")

    def _again(self) -> None:
        """The instruction is executed again; what made it fault has been removed."""
        self.vcpu.forget_exception()
        if self._reads and self._read_at == (self.position(), self.vcpu.eip()):
            self._replay = list(self._reads)
        if self._counter:
            self._counter.take_back()

    def _emulate_detailed(self, instruction: Detailed, *, counted: bool = True) -> None:
        """Do an instruction in place of the CPU; ``counted``: it is an exit of its own, not part of another."""
        kind = self._kind_of_emulation()
        stepping = bool(self._guest.eflags() & FLAG_TF)
        eip = self.vcpu.eip()
        result = self._privileged.execute(instruction)
        if isinstance(result, Event):
            super()._exception(result)
            return
        if counted and not isinstance(result, Halt):  # which is a kind of its own
            self._count(kind, instruction.mnemonic, eip, len(instruction.code))
        if isinstance(result, Unsupported):
            self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence(result.reason))
            self._stop_now()
            return
        self.vcpu.forget_exception()
        if isinstance(result, Halt):
            self._halting = True
            self._charge(len(instruction.code))
            self._stop_now()
            return
        if self._running and self.vcpu.cpl() == 3:
            self._look_at_entry()
        # A load of SS holds off the single-step trap as it does interrupts
        held_off = instruction.mnemonic != "sti" and self.vcpu.interrupt_shadow()
        self._retired_by_us(len(instruction.code), stepping=stepping and not held_off)

    def _kind_of_emulation(self) -> ExitKind:
        return ExitKind.PRIVILEGED

    def _count(self, kind: ExitKind, mnemonic: str, eip: int, length: int) -> None:
        detail = _NUMBERS[mnemonic]
        self._exits[kind._value_][detail] += 1
        if self._tracer.active:
            self._tracer.publish(Exited(self.position(), kind, eip, detail, length, 0))

    # ------------------------------------------------------------------ interception

    def _forget_code_at(self, linear: int, size: int) -> None:
        """By machine frame: the address may not be mapped in the shadow tables at the moment."""
        while size > 0:
            length = min(size, PAGE_SIZE - linear % PAGE_SIZE)
            physical = walk(self.memory, self._guest.paging(), linear & 0xFFFF_FFFF, mark=False)
            if isinstance(physical, int) and physical < self.memory.size:
                self._hypervisor_pages.forget_range(self.memory.base + physical, length)
            linear, size = linear + length, size - length

    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        if self.audit is not None and self.audit.concerns(mnemonic, operands):
            return True
        return mnemonic in ("rdrand", "rdseed")

    def _wants(self, instruction: Instruction) -> bool:
        if instruction.mnemonic in ("rdrand", "rdseed"):
            return True
        assert self.audit is not None
        detailed = self._detailed()
        if detailed is not None:
            lie = self.audit.examine(instruction, detailed)
            if lie is not None:
                self.warn(f"audit: {lie}")
                if self._tracer.active:
                    self._tracer.publish(Warned(self.position(), lie))
        return False  # it executes as it would without anybody looking

    def _emulate(self, instruction: Instruction) -> None:
        if instruction.mnemonic == "iretd":
            detailed = self._detailed()
            assert detailed is not None
            eip, result = self.vcpu.eip(), self._privileged.execute(detailed)
            if isinstance(result, Event):
                super()._exception(result)
            else:
                self._count(ExitKind.PRIVILEGED, "iretd", eip, len(instruction.code))
                self._retired += len(instruction.code)
        else:
            super()._exception(Event(INVALID_OPCODE))
