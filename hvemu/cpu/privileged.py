"""The emulator of privileged instructions, on what the guest believes of its CPU (SDM vol. 2; vol. 3A, 5.9).

Called by every mode that takes such an instruction from the CPU: the mode knows how control came here, this knows what
the instruction means. Decoding is capstone's. Sensitive instructions that do not fault never come here, which is the
point of mode ``trap``.
"""

from collections.abc import Callable
from typing import Final, Protocol

from hvemu.cpu.debug_registers import DebugRegisterFault, DebugRegisters
from hvemu.cpu.decoder import Detailed, Operand
from hvemu.cpu.delivery import (
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    NOT_PRESENT,
    DeliveryFault,
    Event,
    Unsupported,
    fault_event,
)
from hvemu.cpu.linear import LinearFault, read_linear, write_linear
from hvemu.cpu.msr import SYSENTER_CS, ModelSpecificRegisters, MsrError
from hvemu.cpu.segment_loads import (
    NotEmulated,
    SegmentFault,
    data_segment,
    far_call,
    far_jump,
    far_return,
    interrupt_return,
    load_descriptor,
    stack_segment,
)
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    ATTRIBUTE_GRANULARITY,
    ATTRIBUTE_LONG,
    CS,
    DS,
    EAX,
    ECX,
    EDX,
    ESP,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_RF,
    FS,
    GPR_NAMES,
    LONG_GPR_NAMES,
    SEGMENT_NAMES,
    SS,
    CpuPort,
    Segment,
    TableRegister,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.outcomes import Halt, Inject, Outcome, Retire
from hvemu.vocabulary.paging import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR4_DE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    LINEAR_MASK,
    PHYSICAL_BITS,
)

CR4_LEGAL: Final = 0x7FF & ~0x2
"""PVI is reserved without VME; bits above OSXMMEXCPT belong to features that no model shows."""
_FLAT_32: Final = ATTRIBUTE_BIG | ATTRIBUTE_GRANULARITY
GENERAL_REGISTERS = {name: (index, 4, 0) for index, name in enumerate(GPR_NAMES)}
GENERAL_REGISTERS |= {name[1:]: (index, 2, 0) for index, name in enumerate(GPR_NAMES)}
GENERAL_REGISTERS |= {name: (index, 1, 0) for index, name in enumerate(("al", "cl", "dl", "bl"))}
GENERAL_REGISTERS |= {name: (index, 1, 8) for index, name in enumerate(("ah", "ch", "dh", "bh"))}
GENERAL_REGISTERS |= {name: (index, 8, 0) for index, name in enumerate(LONG_GPR_NAMES)}
GENERAL_REGISTERS |= {
    f"r{index}{end}": (index, size, 0) for index in range(8, 16) for end, size in (("d", 4), ("w", 2), ("b", 1))
}
GENERAL_REGISTERS |= {name: (index, 1, 0) for index, name in ((4, "spl"), (5, "bpl"), (6, "sil"), (7, "dil"))}
"""Name -> number in the encoding, size in bytes, and how far its lowest bit is from the register's."""
HYPERCALLS: Final = frozenset({"vmcall", "vmmcall"})
"""What calls a hypervisor, on Intel's CPUs and on AMD's; with either, #UD brings it here."""
SEGMENT_NUMBERS = {name: index for index, name in enumerate(SEGMENT_NAMES)}
_FAR_POINTERS = {"lds": 3, "les": 0, "lfs": 4, "lgs": 5, "lss": 2}


def register_value(cpu: CpuPort, name: str) -> int:
    """A general or segment register by its name."""
    if name in SEGMENT_NUMBERS:
        return cpu.segment(SEGMENT_NUMBERS[name]).selector
    index, size, shift = GENERAL_REGISTERS[name]
    return cpu.long_gpr(index) >> shift & ((1 << 8 * size) - 1)


def set_register(cpu: CpuPort, name: str, value: int) -> None:
    """Set a general register, or a part of one, by its name; modulo its width. 32 bits clear the upper half."""
    index, size, shift = GENERAL_REGISTERS[name]
    if size == 4:
        cpu.set_gpr(index, value)
        return
    mask = ((1 << 8 * size) - 1) << shift
    cpu.set_long_gpr(index, cpu.long_gpr(index) & ~mask | value << shift & mask)


def effective_address(cpu: CpuPort, instruction: Detailed, operand: Operand) -> int:
    """Linear address of a memory operand (SDM vol. 1, 3.7.5); in 64-bit code only FS and GS have a base."""
    offset = operand.value
    if operand.base in ("rip", "eip"):
        offset += cpu.eip() + len(instruction.code)
    elif operand.base:
        offset += register_value(cpu, operand.base)
    if operand.scaled:
        offset += register_value(cpu, operand.scaled) * operand.scale
    offset &= (1 << 8 * instruction.address_size) - 1
    if cpu.is_64_bit():
        segment = SEGMENT_NUMBERS.get(operand.segment, DS)
        return (cpu.segment(segment).base if segment >= FS else 0) + offset & LINEAR_MASK
    if operand.segment:
        segment = SEGMENT_NUMBERS[operand.segment]
    else:
        segment = SS if operand.base in ("esp", "ebp", "sp", "bp") else DS
    return (cpu.segment(segment).base + offset) & 0xFFFF_FFFF


def legal_control(cpu: "ControlledCpu", number: int, value: int) -> bool:
    """Whether CR0, CR3 or CR4 may have a value now (SDM vol. 2, MOV to control registers; vol. 3A, 9.8.5)."""
    paging = cpu.paging()
    if number == 3:
        return not (paging.efer & EFER_LMA and value >> PHYSICAL_BITS)
    if number == 4:
        return not value & ~CR4_LEGAL and not (paging.efer & EFER_LMA and not value & CR4_PAE)
    if value >> 32 or (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return False
    if not paging.efer & EFER_LME or not (value ^ paging.cr0) & CR0_PG:
        return True
    if not value & CR0_PG:
        return not cpu.is_64_bit()
    return bool(paging.cr4 & CR4_PAE) and not cpu.segment(CS).attributes & ATTRIBUTE_LONG


class ControlledCpu(CpuPort, Protocol):
    """The registers that only privileged instructions reach."""

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""

    def set_control(self, number: int, value: int) -> None:
        """MOV to CR0, CR2, CR3 or CR4, with what follows for paging; raises NotEmulated."""

    def set_gdt(self, table: TableRegister) -> None:
        """LGDT."""

    def set_idt(self, table: TableRegister) -> None:
        """LIDT."""

    def set_ldt(self, segment: Segment) -> None:
        """LLDT."""

    def set_task(self, segment: Segment) -> None:
        """LTR."""

    def invalidate(self, linear: int) -> None:
        """INVLPG."""

    def interrupt_shadow(self) -> bool:
        """Whether STI or MOV SS inhibits interrupts for one instruction."""

    def set_interrupt_shadow(self, value: bool) -> None:
        """Set or clear the inhibition."""


Result = Event | Halt | Unsupported | None
"""None: the instruction is done and EIP moved. Otherwise nothing has changed, but for HLT, which is done."""


class PrivilegedInstructions:
    """Executes one instruction at a time on a ControlledCpu."""

    def __init__(
        self, cpu: ControlledCpu, memory: GuestPhysicalMemory, msrs: ModelSpecificRegisters, debug: DebugRegisters
    ) -> None:
        self._cpu, self._memory, self._msrs, self._debug = cpu, memory, msrs, debug
        self.debug_changed: Callable[[], None] = lambda: None
        self.read_priority: Callable[[], int] = lambda: 0
        """CR8."""
        self.write_priority: Callable[[int], None] = lambda value: None
        self.hypercall: Callable[[CpuPort], Outcome] = lambda cpu: Inject(INVALID_OPCODE)
        """What VMCALL and VMMCALL do; a CPU without a hypervisor does not know them."""
        self._table: dict[str, Callable[[Detailed], Result | bool]] = {
            "cli": self._cli, "sti": self._sti, "hlt": self._hlt, "clts": self._clts, "lmsw": self._lmsw,
            "lgdt": self._lgdt, "lidt": self._lidt, "lldt": self._lldt, "ltr": self._ltr, "invlpg": self._invlpg,
            "wbinvd": self._nothing, "invd": self._nothing, "wbnoinvd": self._nothing, "rdmsr": self._rdmsr,
            "wrmsr": self._wrmsr,
            "iretd": self._iret, "iret": self._iret, "sysexit": self._sysexit, "mov": self._mov, "pop": self._pop,
            "ljmp": self._far_jump, "lcall": self._far_call, "jmp": self._far_jump, "call": self._far_call,
            "retf": self._retf, "lds": self._far_pointer, "les": self._far_pointer, "lfs": self._far_pointer,
            "lgs": self._far_pointer, "lss": self._far_pointer, "rdrand": self._invalid, "rdseed": self._invalid,
            "vmcall": self._vmcall, "vmmcall": self._vmcall,
        }  # fmt: skip

    def knows(self, instruction: Detailed) -> bool:
        """Whether it can be an instruction of this emulator; some forms of MOV, POP, JMP and CALL are."""
        return instruction.mnemonic in self._table

    def execute(self, instruction: Detailed) -> Result:
        """Do the instruction at EIP, one that ``knows`` knows."""
        cpu = self._cpu
        try:
            result = self._table[instruction.mnemonic](instruction)
        except DeliveryFault as problem:
            return problem.event
        except SegmentFault as fault:
            return Event(fault.vector, fault.error_code)
        except LinearFault as fault:
            return fault_event(fault)
        except MsrError:
            return Event(GENERAL_PROTECTION, 0)
        except DebugRegisterFault as fault:
            return Event(fault.vector, 0 if fault.vector == GENERAL_PROTECTION else None)
        except NotEmulated as problem:
            return Unsupported(str(problem))
        if result is None or isinstance(result, (bool, Halt)):
            if result is not True:  # True: a transfer, which has set EIP
                cpu.set_eip(cpu.eip() + len(instruction.code))
            if instruction.mnemonic not in ("iretd", "iret"):
                self._clear_resume_flag()
            # Of several in a row that hold off interrupts, the first counts
            cpu.set_interrupt_shadow(_shadows(instruction) and not cpu.interrupt_shadow())
            return result if isinstance(result, Halt) else None
        return result

    def _clear_resume_flag(self) -> None:
        """What every instruction that is done does to EFLAGS.RF (SDM vol. 3B, 18.3.1.1)."""
        flags = self._cpu.eflags()
        if flags & FLAG_RF:
            self._cpu.set_eflags(flags & ~FLAG_RF)

    # ------------------------------------------------------------------ operands

    def _load(self, linear: int, size: int) -> int:
        cpu = self._cpu
        return int.from_bytes(read_linear(self._memory, cpu.paging(), linear, size, user=cpu.cpl() == 3), "little")

    def _value(self, instruction: Detailed, operand: Operand, size: int | None = None) -> int:
        size = operand.size if size is None else size
        if operand.kind == "reg":
            return register_value(self._cpu, operand.register) & ((1 << 8 * size) - 1)
        if operand.kind == "imm":
            return operand.value & ((1 << 8 * size) - 1)
        return self._load(effective_address(self._cpu, instruction, operand), size)

    def store(self, instruction: Detailed) -> bool:
        """Do a plain store, MOV to memory, in place of the CPU; False for another instruction or a page crossed."""
        if instruction.mnemonic != "mov" or instruction.operands[0].kind != "mem" or instruction.repeated:
            return False
        target, source = instruction.operands
        if source.kind == "reg" and source.register not in GENERAL_REGISTERS:
            return False
        cpu = self._cpu
        value = self._value(instruction, source, target.size).to_bytes(target.size, "little")
        address = effective_address(self._cpu, instruction, target)
        if address % PAGE_SIZE + target.size > PAGE_SIZE:
            return False  # the other half may fault, or be a device's
        write_linear(self._memory, cpu.paging(), address, value, user=cpu.cpl() == 3)
        cpu.set_eip(cpu.eip() + len(instruction.code))
        cpu.set_interrupt_shadow(False)
        self._clear_resume_flag()
        return True

    # ------------------------------------------------------------------ flags, halting, caches

    def _require_ring_0(self) -> None:
        if self._cpu.cpl():
            raise SegmentFault(GENERAL_PROTECTION, 0)

    def _require_iopl(self) -> None:
        if self._cpu.cpl() > (self._cpu.eflags() & FLAG_IOPL) >> 12:
            raise SegmentFault(GENERAL_PROTECTION, 0)

    def _cli(self, _instruction: Detailed) -> None:
        self._require_iopl()
        self._cpu.set_eflags(self._cpu.eflags() & ~FLAG_IF)

    def _sti(self, _instruction: Detailed) -> None:
        self._require_iopl()
        self._cpu.set_eflags(self._cpu.eflags() | FLAG_IF)

    def _hlt(self, _instruction: Detailed) -> Halt:
        self._require_ring_0()
        return Halt()

    def _nothing(self, _instruction: Detailed) -> None:
        self._require_ring_0()

    def _invalid(self, _instruction: Detailed) -> Event:
        return Event(INVALID_OPCODE)

    def _vmcall(self, _instruction: Detailed) -> Result:
        outcome = self.hypercall(self._cpu)
        if isinstance(outcome, Inject):
            return Event(outcome.vector, outcome.error_code)
        assert isinstance(outcome, Retire)
        self._cpu.set_gpr(EAX, outcome.value)
        return None

    def _invlpg(self, instruction: Detailed) -> None:
        self._require_ring_0()
        self._cpu.invalidate(effective_address(self._cpu, instruction, instruction.operands[0]))

    # ------------------------------------------------------------------ control, debug and model-specific registers

    def _mov(self, instruction: Detailed) -> Result:
        target, source = instruction.operands
        if source.register[:2] in ("cr", "dr") or target.register[:2] in ("cr", "dr"):
            self._require_ring_0()
            if source.register.startswith("cr"):
                number = int(source.register[2:])
                if number not in (0, 2, 3, 4, 8):
                    return Event(INVALID_OPCODE)
                set_register(
                    self._cpu, target.register, self.read_priority() if number == 8 else self._cpu.control(number)
                )
            elif target.register.startswith("cr"):
                return self._to_control(int(target.register[2:]), register_value(self._cpu, source.register))
            elif source.register.startswith("dr"):
                number = int(source.register[2:])
                extensions = bool(self._cpu.control(4) & CR4_DE)
                set_register(self._cpu, target.register, self._debug.read(number, extensions))
            else:
                extensions = bool(self._cpu.control(4) & CR4_DE)
                number, value = int(target.register[2:]), register_value(self._cpu, source.register)
                if number >= 4 and value >> 32:
                    return Event(GENERAL_PROTECTION, 0)
                self._debug.write(number, value, extensions)
                self.debug_changed()
            return None
        if target.register in SEGMENT_NUMBERS and target.register != "cs":
            self._load_segment(SEGMENT_NUMBERS[target.register], self._value(instruction, source, 2))
            return None
        return Event(GENERAL_PROTECTION, 0)

    def _to_control(self, number: int, value: int) -> Result:
        if number == 8:
            if value >> 4:
                return Event(GENERAL_PROTECTION, 0)
            self.write_priority(value)
            return None
        if number not in (0, 2, 3, 4):
            return Event(INVALID_OPCODE)
        if number != 2 and not legal_control(self._cpu, number, value):
            return Event(GENERAL_PROTECTION, 0)
        if number == 0:
            value |= CR0_ET
        self._cpu.set_control(number, value)
        return None

    def _clts(self, _instruction: Detailed) -> None:
        self._require_ring_0()
        self._cpu.set_control(0, self._cpu.control(0) & ~CR0_TS)

    def _lmsw(self, instruction: Detailed) -> None:
        self._require_ring_0()
        value = self._value(instruction, instruction.operands[0], 2)
        before = self._cpu.control(0)
        self._cpu.set_control(0, before & ~0xE | value & 0xF)  # PE can be set but not cleared

    def _rdmsr(self, _instruction: Detailed) -> None:
        self._require_ring_0()
        value = self._msrs.read(self._cpu.gpr(ECX))
        self._cpu.set_gpr(EAX, value)
        self._cpu.set_gpr(EDX, value >> 32)

    def _wrmsr(self, _instruction: Detailed) -> None:
        self._require_ring_0()
        self._msrs.write(self._cpu.gpr(ECX), self._cpu.gpr(EDX) << 32 | self._cpu.gpr(EAX))

    # ------------------------------------------------------------------ descriptor tables

    def _table_operand(self, instruction: Detailed) -> TableRegister:
        self._require_ring_0()
        address = effective_address(self._cpu, instruction, instruction.operands[0])
        if self._cpu.is_64_bit():
            value = self._load(address, 10)
            return TableRegister(value >> 16, value & 0xFFFF)
        value = self._load(address, 6)
        base = value >> 16
        return TableRegister(base if instruction.operand_size == 4 else base & 0xFF_FFFF, value & 0xFFFF)

    def _lgdt(self, instruction: Detailed) -> None:
        self._cpu.set_gdt(self._table_operand(instruction))

    def _lidt(self, instruction: Detailed) -> None:
        self._cpu.set_idt(self._table_operand(instruction))

    def _lldt(self, instruction: Detailed) -> None:
        self._require_ring_0()
        selector = self._value(instruction, instruction.operands[0], 2)
        if not selector & 0xFFFC:
            self._cpu.set_ldt(Segment(selector, 0, 0, 0x8200))
            return
        self._cpu.set_ldt(self._system_segment(selector, (2,))[1])

    def _ltr(self, instruction: Detailed) -> None:
        self._require_ring_0()
        selector = self._value(instruction, instruction.operands[0], 2)
        if not selector & 0xFFFC:
            raise SegmentFault(GENERAL_PROTECTION, 0)
        address, segment = self._system_segment(selector, (1, 9))
        busy = read_linear(self._memory, self._cpu.paging(), address + 5, 1)[0] | 2
        write_linear(self._memory, self._cpu.paging(), address + 5, bytes([busy]))
        self._cpu.set_task(segment)

    def _system_segment(self, selector: int, kinds: tuple[int, ...]) -> tuple[int, Segment]:
        if selector & 4:
            raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
        address, descriptor = load_descriptor(self._cpu, self._memory, selector)
        if descriptor >> 44 & 1 or descriptor >> 40 & 0xF not in kinds:
            raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
        if not descriptor >> 47 & 1:
            raise SegmentFault(NOT_PRESENT, selector & 0xFFFC)
        segment = segment_from_descriptor(selector, descriptor)
        if self._cpu.paging().efer & EFER_LMA:  # 16 bytes (SDM vol. 3A, 7.2.3)
            _, upper = load_descriptor(self._cpu, self._memory, selector + 8)
            if upper >> 40 & 0x1F:
                raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
            segment = segment._replace(base=segment.base | (upper & 0xFFFF_FFFF) << 32)
        return address, segment

    # ------------------------------------------------------------------ segment registers and far transfers

    def _load_segment(self, index: int, selector: int) -> None:
        cpu = self._cpu
        if index == SS:
            cpu.set_segment(SS, stack_segment(cpu, self._memory, selector, cpu.cpl()))
        else:
            cpu.set_segment(index, data_segment(cpu, self._memory, selector))

    def _pop(self, instruction: Detailed) -> Result:
        name = instruction.operands[0].register
        if name not in SEGMENT_NUMBERS:
            return Event(GENERAL_PROTECTION, 0)
        cpu, stack = self._cpu, self._cpu.segment(SS)
        pointer = cpu.gpr(ESP)
        big = stack.attributes & ATTRIBUTE_BIG
        top = (stack.base + (pointer if big else pointer & 0xFFFF)) & 0xFFFF_FFFF
        selector = self._load(top, instruction.operand_size) & 0xFFFF
        self._load_segment(SEGMENT_NUMBERS[name], selector)
        moved = pointer + instruction.operand_size
        cpu.set_gpr(ESP, moved if big else pointer & 0xFFFF_0000 | moved & 0xFFFF)
        return None

    def _far_pointer(self, instruction: Detailed) -> None:
        target, source = instruction.operands
        address = effective_address(self._cpu, instruction, source)
        offset = self._load(address, instruction.operand_size)
        selector = self._load(address + instruction.operand_size, 2)
        self._load_segment(_FAR_POINTERS[instruction.mnemonic], selector)
        set_register(self._cpu, target.register, offset)

    def _far_target(self, instruction: Detailed) -> tuple[int, int] | None:
        """Selector and offset, or None for a near transfer, which cannot have faulted for a selector."""
        if len(instruction.operands) == 2:
            selector, offset = instruction.operands
            return selector.value & 0xFFFF, self._value(instruction, offset, instruction.operand_size)
        operand = instruction.operands[0]
        if operand.kind != "mem" or not _is_far(instruction.code):
            return None
        address = effective_address(self._cpu, instruction, operand)
        target = self._load(address, instruction.operand_size)
        return self._load(address + instruction.operand_size, 2), target

    def far_selector(self, instruction: Detailed) -> int:
        """Where a far jump or call leads, 0 for a near one; raises LinearFault."""
        target = self._far_target(instruction)
        return 0 if target is None else target[0]

    def _far_jump(self, instruction: Detailed) -> Result | bool:
        target = self._far_target(instruction)
        if target is None:
            return Event(GENERAL_PROTECTION, 0)
        far_jump(self._cpu, self._memory, *target)
        return True

    def _far_call(self, instruction: Detailed) -> Result | bool:
        target = self._far_target(instruction)
        if target is None:
            return Event(GENERAL_PROTECTION, 0)
        after = self._cpu.eip() + len(instruction.code)
        far_call(self._cpu, self._memory, *target, instruction.operand_size, after)
        return True

    def _retf(self, instruction: Detailed) -> bool:
        release = instruction.operands[0].value if instruction.operands else 0
        far_return(self._cpu, self._memory, instruction.operand_size, release)
        return True

    def _iret(self, instruction: Detailed) -> bool:
        interrupt_return(self._cpu, self._memory, instruction.operand_size)
        return True

    def _sysexit(self, _instruction: Detailed) -> bool:
        """SDM vol. 2B, SYSEXIT."""
        self._require_ring_0()
        selector = self._msrs.values[SYSENTER_CS]
        if not selector & 0xFFFC:
            raise SegmentFault(GENERAL_PROTECTION, 0)
        cpu = self._cpu
        code = Segment((selector + 16) & 0xFFFF | 3, 0, 0xFFFF_FFFF, _FLAT_32 | 0xFB00)
        stack = Segment((selector + 24) & 0xFFFF | 3, 0, 0xFFFF_FFFF, _FLAT_32 | 0xF300)
        cpu.set_code_and_stack(code, stack)
        cpu.set_gpr(ESP, cpu.gpr(ECX))
        cpu.set_eip(cpu.gpr(EDX))
        return True


def _shadows(instruction: Detailed) -> bool:
    """STI, MOV SS and POP SS inhibit interrupts for the next instruction; LSS, which needs no other, does not."""
    if instruction.mnemonic == "sti":
        return True
    return instruction.mnemonic in ("mov", "pop") and instruction.operands[0].register == SEGMENT_NAMES[SS]


def _is_far(code: bytes) -> bool:
    """Whether FF /3 or FF /5 follows the prefixes."""
    at = code.index(0xFF)
    return code[at + 1] >> 3 & 7 in (3, 5)
