"""Mode ``native``: the guest kernel at ring 0 of the physical CPU, with no hypervisor in between.

What is left for hvemu is the board (ports and MMIO go to the dispatcher) and what the engine leaves out of the CPU:
delivery through the IDT, SYSENTER, CPUID, the clock, MSRs, debug registers, I/O permission. Those are hardware assists.
64-bit code too. Not emulated: data breakpoints in debug registers, task switches by #DF.
"""

import re
from collections.abc import Callable

from hvemu.cpu.decoder import Instruction, decode_operands
from hvemu.cpu.delivery import INVALID_OPCODE, Escalated, Event, TripleFault, Unsupported
from hvemu.cpu.privileged import GENERAL_REGISTERS, PrivilegedInstructions, legal_control, register_value
from hvemu.cpu.state import ECX, FLAG_TF, VirtualCpu
from hvemu.engine import layout
from hvemu.modes.delivery_plans import DeliveryPlans
from hvemu.modes.own_registers import OwnRegisters
from hvemu.modes.stretches import Services
from hvemu.modes.written_frames import WrittenFrames
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind
from hvemu.vocabulary.outcomes import Stop
from hvemu.vocabulary.paging import CR0_PG, EFER_LME, EFER_NXE

_INTERCEPTED = frozenset({"rdmsr", "wrmsr", "ltr", "rdrand", "rdseed"})


class NativeMode(OwnRegisters):
    """The baseline that every other mode must equal."""

    name = "native"
    _suspicious = re.compile(rb"\x0f[\x00\x01\x21\x22\x23\x30\x32\xc7]")

    def __init__(self, services: Services) -> None:
        vcpu, memory = services.vcpu, services.memory
        super().__init__(services, vcpu)
        self._plans = DeliveryPlans(vcpu, memory)
        self._privileged = PrivilegedInstructions(vcpu, memory, services.msrs, self._debug)
        self._privileged.hypercall = services.hypercall or self._privileged.hypercall
        self._privileged.read_priority = self._task_priority.read_priority
        self._privileged.write_priority = self._task_priority.write_priority
        self._privileged.debug_changed = lambda: self._hook_addresses(self._debug.execution_breakpoints())
        self._written = WrittenFrames(memory.view)
        self.watches_protection = False
        """Whether ``run`` returns after an instruction that changes CR0.PE."""
        self.refuse_long_mode: Callable[[int, int], None] = lambda index, value: None
        """Told of WRMSR; raises NotEmulated where the guest is to run in another mode soon, which has no long mode."""
        self.connect()
        end_of_ram = memory.size
        vcpu.map_ram(0, end_of_ram, memory.host_address)
        vcpu.map_mmio(end_of_ram, (1 << 32) - end_of_ram, self._on_mmio_read, self._on_mmio_write)
        vcpu.map_mmio(1 << 32, (1 << 40) - (1 << 32), self._on_mmio_read, self._on_mmio_write)
        vcpu.allow_mmio()

    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state."""
        vcpu = self.vcpu
        vcpu.set_tables(cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr)
        self._words[layout.WORD_CR0] = cpu.cr0
        vcpu.set_eflags(cpu.flags)
        for index, segment in enumerate(cpu.segments):
            vcpu.set_segment(index, segment)
        vcpu.set_cr2(cpu.cr2)
        vcpu.load_control(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
        self._load_msrs(cpu.msrs)
        if cpu.efer & EFER_NXE:
            vcpu.check_all_stores()
        self._load_rest(cpu)

    def dirty_pages(self) -> set[int]:
        """Frames that differ from the copy kept at the last call; there is no technique to ask."""
        return self._written.since_last_time()

    def _msr_changed(self, index: int, value: int) -> None:
        self.refuse_long_mode(index, value)
        super()._msr_changed(index, value)

    def _set_efer(self, value: int) -> None:
        if value & EFER_NXE:
            self.vcpu.check_all_stores()
        paging = self.vcpu.paging()
        self.vcpu.load_control(paging.cr0, paging.cr3, paging.cr4, value)

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
            return operands.startswith(("dr", "cr0", "cr4", "cr8")) or ", dr" in operands or ", cr8" in operands
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
            number, value = int(operands[2]), register_value(self.vcpu, operands[5:])
            return not legal_control(self.vcpu, number, value) or (number == 0 and self._changes_long_mode(value))
        if mnemonic == "ltr" and operands in GENERAL_REGISTERS:
            return not register_value(self.vcpu, operands) & 0xFFFC  # the engine can load any other, but not a null TR
        return True

    def _changes_long_mode(self, value: int) -> bool:
        paging = self.vcpu.paging()
        return bool(paging.efer & EFER_LME and (paging.cr0 ^ value) & CR0_PG)

    def _emulate(self, instruction: Instruction) -> None:
        """Do the intercepted instruction at EIP in place of the CPU."""
        detailed = decode_operands(instruction.code, self._bits())
        assert detailed is not None
        if instruction.mnemonic != "iretd":
            self._note(*self._assist_of(instruction))
        result = self._privileged.execute(detailed)
        if isinstance(result, Event):
            self._exception(result)
        elif isinstance(result, Unsupported):
            self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence(result.reason))
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
        if "cr" in operands:
            return AssistKind.CONTROL_REGISTER, int(operands[operands.index("cr") + 2])
        return AssistKind.DEBUG_REGISTER, int(operands[operands.index("dr") + 2])
