"""Mode ``svm`` without nested paging: the MMU walks shadow tables, as in the hardware VMMs of 2006 (Adams and Agesen).

The guest runs at its own ring 0, but its page tables are the hypervisor's affair: page faults and everything that has
to do with CR3 exit. Shadow tables have the PAE format with NX, whatever the guest's have.
"""

import re
from typing import Final

from hvemu.cpu.decoder import Instruction
from hvemu.cpu.delivery import PAGE_FAULT, Escalated, Event, TripleFault, Unsupported, deliver
from hvemu.cpu.linear import LinearFault
from hvemu.cpu.privileged import ControlledCpu
from hvemu.cpu.segment_loads import SegmentFault, load_descriptor
from hvemu.cpu.state import FLAG_NT, VirtualCpu
from hvemu.engine import layout
from hvemu.engine.svm import EXIT_BASE, SvmHost
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.shadow import ShadowPaging, ShadowPolicy
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.live_cpu import LegacyCpu, LiveCpu
from hvemu.modes.shadowed import Shadowed, paging_notes
from hvemu.modes.stretches import Services
from hvemu.modes.svm import SvmMode
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind, ExitKind
from hvemu.vocabulary.outcomes import Stop
from hvemu.vocabulary.paging import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    EFER_LME,
    EFER_NXE,
    PagingRegisters,
)
from hvemu.vocabulary.svm import EFER_SVME, EXIT_CODES, EXIT_EXCEPTION

_FAR_TRANSFERS: Final = frozenset({"ljmp", "lcall"})
_RETURNS: Final = frozenset({"iretd", "iret"})
_TASKS: Final = frozenset({1, 5, 9})
"""Types of system descriptors that mean a task: available TSS of 16 and 32 bits, task gate."""
_TASK_SWITCH: Final = "a hardware task switch would load CR3, which shadow paging does not follow; use --mmu nested"
_OF_PAGING: Final = "cr0_read cr3_read cr4_read cr3_write invlpg pf".split()


class _Physical:
    """What shadow paging needs of the CPU."""

    def __init__(self, vcpu: Vcpu, host: SvmHost) -> None:
        self._host = host
        self.flush_tlb = vcpu.flush_tlb

    def forget_frame(self, address: int) -> None:
        """Drop translated code of a machine frame."""
        self._host.forget_code(address, PAGE_SIZE)


class ShadowedCpu(LegacyCpu):
    """The guest's registers under shadow paging: the CPU's own, but for those that paging depends on."""

    def __init__(self, vcpu: Vcpu, paging: ShadowPaging) -> None:
        self._vcpu, self._paging = vcpu, paging
        self._registers = PagingRegisters(0, 0, 0, 0)
        self.gpr, self.set_gpr = vcpu.gpr, vcpu.set_gpr
        self.eip, self.set_eip, self.linear_eip = vcpu.eip, vcpu.set_eip, vcpu.linear_eip
        self.eflags, self.set_eflags, self.interrupts_enabled = vcpu.eflags, vcpu.set_eflags, vcpu.interrupts_enabled
        self.interrupt_shadow, self.set_interrupt_shadow = vcpu.interrupt_shadow, vcpu.set_interrupt_shadow
        self.cpl, self.segment, self.set_segment = vcpu.cpl, vcpu.segment, vcpu.set_segment
        self.set_code_and_stack, self.system_tables = vcpu.set_code_and_stack, vcpu.system_tables
        self.gdt, self.idt, self.ldt_segment, self.task_segment = (
            vcpu.gdt,
            vcpu.idt,
            vcpu.ldt_segment,
            vcpu.task_segment,
        )
        self.set_gdt, self.set_idt, self.set_ldt, self.set_task = (
            vcpu.set_gdt,
            vcpu.set_idt,
            vcpu.set_ldt,
            vcpu.set_task,
        )
        self.cr2, self.set_cr2 = vcpu.cr2, vcpu.set_cr2

    def paging(self) -> PagingRegisters:
        """What the page walker needs, of the guest's own tables."""
        return self._registers

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        registers = self._registers
        return {0: registers.cr0, 2: self.cr2(), 3: registers.cr3, 4: registers.cr4}[number]

    def set_control(self, number: int, value: int) -> None:
        """MOV to CR0, CR2, CR3 or CR4."""
        if number == 2:
            self.set_cr2(value)
            return
        before = self._registers
        if number == 0:
            self.load(before._replace(cr0=value), flush=bool((before.cr0 ^ value) & (CR0_PG | CR0_WP)))
        elif number == 3:
            self.load(before._replace(cr3=value))
        else:
            self.load(before._replace(cr4=value), flush=bool((before.cr4 ^ value) & (CR4_PAE | CR4_PGE | CR4_PSE)))

    def load(self, registers: PagingRegisters, *, flush: bool = True) -> None:
        """The guest's control registers are these: let the CPU's be what they have to be."""
        self._registers = registers
        vcpu = self._vcpu
        if flush:
            self._paging.load(registers)
        ring = vcpu.words[layout.WORD_HFLAGS] & 3
        cr4 = registers.cr4 & ~(CR4_PSE | CR4_PGE) | CR4_PAE
        vcpu.load_control(
            registers.cr0 | CR0_PG | CR0_WP, self._paging.pae_root, cr4, registers.efer | EFER_SVME | EFER_NXE
        )
        vcpu.words[layout.WORD_HFLAGS] = vcpu.words[layout.WORD_HFLAGS] & ~3 | ring

    def invalidate(self, linear: int) -> None:
        """INVLPG."""
        self._paging.invalidate(linear)


class SvmShadowMode(Shadowed, SvmMode):
    """The guest under VMRUN, with shadow paging."""

    _suspicious = re.compile(rb"\x0f\xc7|[\x9a\xea\xcf]|\xff[\x18-\x1f\x28-\x2f\x58-\x5f\x68-\x6f\x98-\x9f\xa8-\xaf]")

    def __init__(
        self, services: Services, intercepts: frozenset[int] = frozenset(), policy: ShadowPolicy | None = None
    ) -> None:
        self._policy = policy
        super().__init__(services, intercepts)

    def _prepare(self, services: Services) -> LiveCpu:
        physical = _Physical(services.vcpu, self.host)
        self.paging = ShadowPaging(services.memory, self._pool, physical, paging_notes(services), self._policy)
        self._guest = ShadowedCpu(services.vcpu, self.paging)
        return self._guest

    def _controlled(self) -> ControlledCpu:
        return self._guest

    def _wanted(self) -> set[int]:
        return super()._wanted() | {EXIT_CODES[name] for name in _OF_PAGING}

    def _write_paging_fields(self) -> None:
        self.vmcb.write("NP_ENABLE", 0)

    def _load_paging(self, cpu: VirtualCpu) -> None:
        self.paging.reset()
        self._guest.load(cpu.paging())

    def _set_efer(self, value: int) -> None:
        if value & EFER_LME:
            cause = "it turns to long mode, for which there are no shadow page tables here; use --mmu nested"
            self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence(cause))
        registers = self._guest.paging()
        self._guest.load(registers._replace(efer=value))

    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        if self._is_injected(event):
            return None
        return deliver(self._guest, self.memory, event)

    def _help(self, vector: int | None, error: int) -> bool:
        if vector != EXIT_BASE + EXIT_EXCEPTION + PAGE_FAULT:
            return False
        if self.paging.fault(self.host.fault_address(), error, self.vcpu.linear_eip()) is not None:
            return False
        self._exit(ExitKind.HIDDEN_FAULT, error)
        return True

    def _exception(self, event: Event) -> None:
        if event.vector == PAGE_FAULT:
            self._page_fault(event)
        else:
            super()._exception(event)

    def _record(self, kind: AssistKind, event: Event) -> None:
        """A page fault that is the guest's own was an exit before the CPU delivers it."""
        if kind is AssistKind.EXCEPTION and event.vector == PAGE_FAULT:
            self._exit(ExitKind.TRUE_FAULT, event.error_code or 0)
        super()._record(kind, event)

    def _intercepted_exception(self, code: int, error: int) -> None:
        """A page fault is the hypervisor's to look at; the CPU leaves CR2 alone."""
        if code != EXIT_EXCEPTION + PAGE_FAULT:
            super()._intercepted_exception(code, error)
            return
        DirectExecution._on_interrupt(self, PAGE_FAULT)

    def _fault_address(self) -> int:
        return self.host.fault_address()

    # ------------------------------------------------------------------ task switches

    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        """A task switch would load CR3, and no intercept of the engine's is in its way: look at what may cause one."""
        if mnemonic in _FAR_TRANSFERS | _RETURNS or (mnemonic in ("jmp", "call") and operands.startswith("ptr [")):
            return True
        return super()._is_intercepted(mnemonic, operands)

    def _wants(self, instruction: Instruction) -> bool:
        mnemonic = instruction.mnemonic
        if mnemonic in _RETURNS:
            return bool(self._guest.eflags() & FLAG_NT)
        if mnemonic not in _FAR_TRANSFERS and mnemonic not in ("jmp", "call"):
            return super()._wants(instruction)
        detailed = self._detailed()
        assert detailed is not None
        try:
            selector = self._privileged.far_selector(detailed)
            kind = load_descriptor(self._guest, self.memory, selector)[1] >> 40 & 0x1F
        except (SegmentFault, LinearFault):
            return False  # the CPU finds the same
        return kind in _TASKS

    def _emulate(self, instruction: Instruction) -> None:
        if instruction.mnemonic in _FAR_TRANSFERS or instruction.mnemonic in ("jmp", "call"):
            self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence(_TASK_SWITCH))
        else:
            super()._emulate(instruction)
