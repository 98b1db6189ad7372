"""Mode ``trap``: trap-and-emulate on shadow page tables, the classical hypervisor of Popek and Goldberg (1974).

The guest kernel runs at ring 1 of the same physical CPU. Its privileged instructions raise a real #GP and are emulated
on the guest's virtual registers; the MMU walks the hypervisor's tables. User code runs directly at ring 3. The
engine is in compatibility mode, because only there can the hypervisor keep its tables where the guest cannot
reach them. Real mode, virtual-8086 mode and 64-bit code do not exist here.
"""

import re
from typing import Final

from hvemu.cpu.decoder import Instruction
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
from hvemu.cpu.state import FLAG_VM, VirtualCpu
from hvemu.engine import layout
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.shadow import MMIO_WINDOW, ShadowPaging, ShadowPolicy
from hvemu.memory.walk import walk
from hvemu.modes.audit import Audit
from hvemu.modes.deprivileged import DeprivilegedCpu, HypervisorPages
from hvemu.modes.reflection import NO_VIRTUAL_8086, Reflection, refuse_long_mode
from hvemu.modes.shadowed import Shadowed, paging_notes
from hvemu.modes.stretches import Services
from hvemu.trace.events import Warned
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.exits import MNEMONICS, ExitKind

_NUMBERS: Final = {mnemonic: number for number, mnemonic in enumerate(MNEMONICS)}
_PATIENCE: Final = 10_000
_FLOATING_POINT: Final = 16
_EMULATED: Final = frozenset({GENERAL_PROTECTION, NOT_PRESENT, STACK_FAULT})


class TrapMode(Reflection, Shadowed):
    """The guest kernel deprivileged to ring 1."""

    name = "trap"
    _suspicious = re.compile(rb"\x0f\xc7")
    _outer_ring = 3
    _reserved_frames = 0
    """How many of the hypervisor's frames, the last ones, are not for page tables."""

    def __init__(self, services: Services, policy: ShadowPolicy | None = None, *, audit: bool = False) -> None:
        vcpu, memory = services.vcpu, services.memory
        frames = services.own_frames()
        pool = self._pool = FramePool(memory.machine, frames.start, len(frames) - self._reserved_frames)
        pages = HypervisorPages(vcpu, pool)
        self._hypervisor_pages = pages
        self.paging = ShadowPaging(memory, pool, pages, paging_notes(services), policy, pages.pdpt)
        self._guest = DeprivilegedCpu(vcpu, memory, self.paging, pages)
        super().__init__(services, self._guest)
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

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask."""
        super().connect()
        self._services.msrs.changed = self._msr_changed

    # ------------------------------------------------------------------ the ExecutionMode contract

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state, one ring down; raises UserError for real mode."""
        guest = self._guest
        self.paging.reset()
        try:
            guest.reset(cpu.paging(), cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr, cpu.cr2)
        except NotEmulated as problem:
            text = str(problem)
            raise UserError(text[0].upper() + text[1 : text.index(";")], "Use --mode native, bt or svm.") from None
        guest.set_eflags(cpu.flags)
        guest.set_code_and_stack(cpu.segments[1], cpu.segments[2])
        for index, segment in enumerate(cpu.segments):
            guest.set_segment(index, segment)
        self._msrs.values.update(cpu.msrs)
        self._load_rest(cpu)

    def remark(self) -> str:
        """Which sensitive instructions lied to the guest, or how to find out."""
        if self.audit is None:
            return "With --audit, mode trap names the sensitive instructions that gave it wrong answers, if any did."
        return self.audit.summary()

    def _msr_changed(self, index: int, value: int) -> None:
        refuse_long_mode(self.name, index, value)
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
