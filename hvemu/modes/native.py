"""Mode ``native``: the guest kernel at ring 0 of the physical CPU, with no hypervisor in between.

What is left for hvemu is the board (ports and MMIO go to the dispatcher) and what the engine leaves out of the CPU:
delivery through the IDT, SYSENTER, CPUID, the clock, MSRs, debug registers, I/O permission. Those are hardware assists.
Not emulated: data breakpoints in debug registers, long mode, task switches by #DF.
"""

import re

from hvemu.cpu.decoder import Instruction, decode_operands
from hvemu.cpu.delivery import INVALID_OPCODE, Escalated, Event, TripleFault, Unsupported
from hvemu.cpu.msr import EFER, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, TSC
from hvemu.cpu.privileged import CR4_LEGAL, PrivilegedInstructions
from hvemu.cpu.state import ECX, FLAG_TF, VirtualCpu, accessed
from hvemu.engine import layout
from hvemu.modes.delivery_plans import DeliveryPlans
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.stretches import Services
from hvemu.modes.written_frames import WrittenFrames
from hvemu.vocabulary.exits import AssistKind
from hvemu.vocabulary.paging import CR0_CD, CR0_NW, CR0_PE, CR0_PG, EFER_NXE

_INTERCEPTED = frozenset({"rdmsr", "wrmsr", "ltr", "rdrand", "rdseed"})
_REGISTERS = {name: index for index, name in enumerate(("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"))}


class NativeMode(DirectExecution):
    """The baseline that every other mode must equal."""

    name = "native"
    _suspicious = re.compile(rb"\x0f[\x00\x01\x21\x22\x23\x30\x32\xc7]")

    def __init__(self, services: Services) -> None:
        vcpu, memory = services.vcpu, services.memory
        super().__init__(services, vcpu)
        self._plans = DeliveryPlans(vcpu, memory)
        self._privileged = PrivilegedInstructions(vcpu, memory, services.msrs, self._debug)
        self._privileged.hypercall = services.hypercall or self._privileged.hypercall
        self._privileged.debug_changed = lambda: self._hook_addresses(self._debug.execution_breakpoints())
        self._written = WrittenFrames(memory.view)
        self.watches_protection = False
        """Whether ``run`` returns after an instruction that changes CR0.PE."""
        self.connect()
        end_of_ram = memory.size
        vcpu.map_ram(0, end_of_ram, memory.host_address)
        vcpu.map_mmio(end_of_ram, (1 << 32) - end_of_ram, self._on_mmio_read, self._on_mmio_write)
        vcpu.map_mmio(1 << 32, (1 << 40) - (1 << 32), self._on_mmio_read, self._on_mmio_write)
        vcpu.allow_mmio()

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask."""
        super().connect()
        self._services.msrs.changed = self._msr_changed

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state."""
        vcpu = self.vcpu
        for index, value in enumerate(cpu.gprs):
            vcpu.set_gpr(index, value)
        vcpu.set_tables(cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr)
        self._words[layout.WORD_CR0] = cpu.cr0
        vcpu.set_eflags(cpu.flags)
        for index, segment in enumerate(cpu.segments):
            vcpu.set_segment(index, segment)
        vcpu.set_eip(cpu.instruction_pointer)
        vcpu.set_cr2(cpu.cr2)
        vcpu.load_control(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
        vcpu.write_fpu(cpu.fpu)
        self._load_debug(cpu.debug)
        self._nmi_blocked = cpu.nmi_blocked
        self.halted = cpu.halted
        for index, value in cpu.msrs.items():
            self._msrs.values[index] = value
            self._msr_changed(index, value)
        if cpu.efer & EFER_NXE:
            vcpu.check_all_stores()
        vcpu.clear_exception()
        vcpu.set_interrupt_shadow(cpu.interrupt_shadow)
        vcpu.forget_code()

    def leave(self) -> VirtualCpu:
        """Read the guest's state out of the engine."""
        vcpu = self.vcpu
        paging = vcpu.paging()
        return VirtualCpu(
            gprs=[vcpu.gpr(index) for index in range(8)],
            instruction_pointer=vcpu.eip(),
            flags=vcpu.eflags(),
            segments=[accessed(vcpu.segment(index)) for index in range(6)],
            gdtr=vcpu.gdt(),
            idtr=vcpu.idt(),
            ldtr=vcpu.ldt_segment(),
            tr=vcpu.task_segment(),
            cr0=paging.cr0,
            cr2=vcpu.cr2(),
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

    def dirty_pages(self) -> set[int]:
        """Frames that differ from the copy kept at the last call; there is no technique to ask."""
        return self._written.since_last_time()

    def _msr_changed(self, index: int, value: int) -> None:
        if index == EFER:
            if value & EFER_NXE:
                self.vcpu.check_all_stores()
            paging = self.vcpu.paging()
            self.vcpu.load_control(paging.cr0, paging.cr3, paging.cr4, value)
        elif index == TSC:
            self._clock.move_tsc(self._msrs.tsc_offset)
        elif index in (SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP):
            self.vcpu.write_msr(index, value)

    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        return self._plans.deliver(event)

    def _exception(self, event: Event) -> None:
        hypercall = self._hypercall() if event.vector == INVALID_OPCODE else None
        if hypercall is None:
            super()._exception(event)
            return
        stepping = bool(self.vcpu.eflags() & FLAG_TF)
        result = self._privileged.execute(hypercall)
        if isinstance(result, Event):
            super()._exception(result)
        else:
            self.vcpu.forget_exception()
            self._retired_by_us(len(hypercall.code), stepping=stepping)

    # ------------------------------------------------------------------ interception

    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        if mnemonic == "mov":
            return operands.startswith(("dr", "cr0", "cr4")) or ", dr" in operands
        return mnemonic in _INTERCEPTED or (self.watches_protection and mnemonic == "lmsw")

    def _wants(self, instruction: Instruction) -> bool:
        mnemonic, operands = instruction.mnemonic, instruction.operands
        if mnemonic in ("rdrand", "rdseed"):
            return True
        if self.vcpu.cpl():
            return False  # the engine raises #GP by itself
        if self.watches_protection and (mnemonic == "lmsw" or operands.startswith("cr0")):
            return True
        if mnemonic == "mov" and operands.startswith(("cr0", "cr4")):
            return not self._legal_control(operands)
        return mnemonic != "ltr" or not self._ltr_selector(instruction.code) & 0xFFFC

    def _legal_control(self, operands: str) -> bool:
        value = self.vcpu.gpr(_REGISTERS[operands[5:]])
        if operands.startswith("cr4"):
            return not value & ~CR4_LEGAL
        if value & CR0_PG and not value & CR0_PE:
            return False
        return not (value & CR0_NW and not value & CR0_CD)

    def _ltr_selector(self, code: bytes) -> int:
        """The operand of LTR when it is a register; a memory operand is left to the engine as non-null."""
        modrm = code[-1]
        return self.vcpu.gpr(modrm & 7) & 0xFFFF if modrm >> 6 == 3 else 4

    def _emulate(self, instruction: Instruction) -> None:
        """Do the intercepted instruction at EIP in place of the CPU."""
        detailed = decode_operands(instruction.code, self._bits())
        assert detailed is not None
        if instruction.mnemonic != "iretd":
            self._note(*self._assist_of(instruction))
        result = self._privileged.execute(detailed)
        if isinstance(result, Event):
            self._exception(result)
        else:
            self._retired += len(instruction.code)
            self._attention = self._attention or self.watches_protection

    def _assist_of(self, instruction: Instruction) -> tuple[AssistKind, int]:
        """What to count: the kind, and the number of the register."""
        mnemonic, operands = instruction.mnemonic, instruction.operands
        if mnemonic in ("rdmsr", "wrmsr"):
            return AssistKind(mnemonic), self.vcpu.gpr(ECX)
        if mnemonic in ("rdrand", "rdseed"):
            return AssistKind.RANDOM, 0
        if mnemonic == "ltr":
            return AssistKind.TASK_REGISTER, 0
        if mnemonic == "lmsw":
            return AssistKind.CONTROL_REGISTER, 0
        if operands.startswith("cr"):
            return AssistKind.CONTROL_REGISTER, int(operands[2])
        return AssistKind.DEBUG_REGISTER, int(operands[operands.index("dr") + 2])
