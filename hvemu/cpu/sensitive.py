"""The emulator of sensitive instructions that do not fault, and of near transfers, for whoever must not let them run.

SDM vol. 2; the list is that of Robin and Irvine (2000). Mode ``bt`` calls it where a sequence in the translation cache
would not do.
"""

from collections.abc import Callable
from typing import Final

from hvemu.cpu.debug_registers import DebugRegisters
from hvemu.cpu.decoder import Detailed, signed_word
from hvemu.cpu.linear import write_linear
from hvemu.cpu.msr import ModelSpecificRegisters
from hvemu.cpu.privileged import (
    SEGMENT_NUMBERS,
    ControlledCpu,
    PrivilegedInstructions,
    Result,
    effective_address,
    register_value,
    set_register,
)
from hvemu.cpu.segment_loads import SegmentFault, load_descriptor
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    ECX,
    ESP,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_RF,
    FLAG_VM,
    SS,
    Segment,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory

_ZF: Final = 0x40
_LOADED: Final = 0x0025_7FD5
"""What POPF takes from the stack in ring 0, IF and IOPL included (SDM vol. 2B, table 4-16)."""
_CONDITIONS: Final[dict[str, Callable[[int], bool]]] = {
    "jo": lambda f: bool(f & 0x800), "jb": lambda f: bool(f & 1), "je": lambda f: bool(f & 0x40),
    "jbe": lambda f: bool(f & 0x41), "js": lambda f: bool(f & 0x80), "jp": lambda f: bool(f & 4),
    "jl": lambda f: bool(f & 0x80) != bool(f & 0x800),
    "jle": lambda f: bool(f & 0x40) or bool(f & 0x80) != bool(f & 0x800),
}  # fmt: skip
_NEGATED: Final = {
    "jno": "jo", "jae": "jb", "jne": "je", "ja": "jbe", "jns": "js", "jnp": "jp", "jge": "jl", "jg": "jle",
}  # fmt: skip


class KernelInstructions(PrivilegedInstructions):
    """Privileged instructions, and all others that kernel code must not execute as they are."""

    def __init__(
        self,
        cpu: ControlledCpu,
        memory: GuestPhysicalMemory,
        msrs: ModelSpecificRegisters,
        debug: DebugRegisters,
        idt: Callable[[], tuple[int, int]],
        gdt: Callable[[], tuple[int, int]],
        ldt: Callable[[], Segment],
    ) -> None:
        super().__init__(cpu, memory, msrs, debug)
        self._idt, self._gdt, self._ldt = idt, gdt, ldt
        self._more: dict[str, Callable[[Detailed], Result | bool]] = {
            "pushfd": self._push_flags, "pushf": self._push_flags, "popfd": self._pop_flags, "popf": self._pop_flags,
            "push": self._push_segment, "sgdt": self._sgdt, "sidt": self._sidt, "sldt": self._sldt, "str": self._str,
            "smsw": self._smsw, "lar": self._lar, "lsl": self._lsl, "verr": self._verr, "verw": self._verw,
            "ret": self._near_return, "loop": self._loop, "loope": self._loop, "loopne": self._loop,
            "jecxz": self._loop, "jcxz": self._loop, "jmp": self._jump, "call": self._near_call,
            "mov": self._move, **dict.fromkeys((*_CONDITIONS, *_NEGATED), self._conditional),
        }  # fmt: skip
        self._table.update(self._more)

    # ------------------------------------------------------------------ operands

    def _put(self, instruction: Detailed, value: int, size: int) -> None:
        """Store to the first operand; a register of 4 bytes takes ``value`` extended by zeros."""
        target = instruction.operands[0]
        if target.kind == "reg":
            set_register(self._cpu, target.register, value & ((1 << 8 * target.size) - 1))
            return
        self._store(effective_address(self._cpu, instruction, target), value, size)

    def _store(self, linear: int, value: int, size: int) -> None:
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        write_linear(self._memory, self._cpu.paging(), linear, data, user=self._cpu.cpl() == 3)

    def _stack_address(self, offset: int) -> int:
        stack = self._cpu.segment(SS)
        pointer = self._cpu.gpr(ESP) + offset
        return stack.base + (pointer & 0xFFFF_FFFF if stack.attributes & ATTRIBUTE_BIG else pointer & 0xFFFF)

    def _move_stack(self, amount: int) -> None:
        pointer = self._cpu.gpr(ESP)
        if self._cpu.segment(SS).attributes & ATTRIBUTE_BIG:
            self._cpu.set_gpr(ESP, pointer + amount)
        else:
            self._cpu.set_gpr(ESP, pointer & 0xFFFF_0000 | (pointer + amount) & 0xFFFF)

    def _push_value(self, value: int, size: int) -> None:
        self._store(self._stack_address(-size), value, size)
        self._move_stack(-size)

    # ------------------------------------------------------------------ flags and segment registers

    def _push_flags(self, instruction: Detailed) -> None:
        self._push_value(self._cpu.eflags() & ~(FLAG_RF | FLAG_VM), instruction.operand_size)

    def _pop_flags(self, instruction: Detailed) -> None:
        cpu, size = self._cpu, instruction.operand_size
        value = self._load(self._stack_address(0), size)
        before = cpu.eflags()
        mask = _LOADED & ((1 << 8 * size) - 1)
        if cpu.cpl():
            mask &= ~FLAG_IOPL
            if cpu.cpl() > (before & FLAG_IOPL) >> 12:
                mask &= ~FLAG_IF
        self._move_stack(size)
        cpu.set_eflags((before & ~mask | value & mask) & ~FLAG_RF)

    def _push_segment(self, instruction: Detailed) -> Result:
        source = instruction.operands[0]
        self._push_value(self._value(instruction, source), instruction.operand_size)
        return None

    def _move(self, instruction: Detailed) -> Result:
        target, source = instruction.operands
        if source.register in SEGMENT_NUMBERS and target.register not in SEGMENT_NUMBERS:
            self._put(instruction, self._cpu.segment(SEGMENT_NUMBERS[source.register]).selector, 2)
            return None
        return self._mov(instruction)

    # ------------------------------------------------------------------ system registers

    def _table_register(self, instruction: Detailed, table: tuple[int, int]) -> None:
        base, limit = table
        address = effective_address(self._cpu, instruction, instruction.operands[0])
        if instruction.operand_size == 2:
            base &= 0xFF_FFFF
        self._store(address, limit, 2)
        self._store(address + 2, base, 4)

    def _sgdt(self, instruction: Detailed) -> None:
        self._table_register(instruction, self._gdt())

    def _sidt(self, instruction: Detailed) -> None:
        self._table_register(instruction, self._idt())

    def _sldt(self, instruction: Detailed) -> None:
        self._put(instruction, self._ldt().selector, 2)

    def _str(self, instruction: Detailed) -> None:
        self._put(instruction, self._cpu.system_tables().task_selector, 2)

    def _smsw(self, instruction: Detailed) -> None:
        value, target = self._cpu.control(0) & 0xFFFF, instruction.operands[0]
        if target.kind == "reg" and target.size == 4:  # the upper half is undefined; the engine leaves it alone
            value |= register_value(self._cpu, target.register) & 0xFFFF_0000
        self._put(instruction, value, 2)

    # ------------------------------------------------------------------ questions about descriptors

    def _query(self, instruction: Detailed, valid: Callable[[Segment, int], bool]) -> Segment | None:
        """The segment that the last operand selects, if there is one that ``valid`` accepts; ZF says so."""
        cpu = self._cpu
        selector = self._value(instruction, instruction.operands[-1], 2)
        found = None
        if selector & 0xFFFC:
            try:
                descriptor = load_descriptor(cpu, self._memory, selector)[1]
            except SegmentFault:
                pass
            else:
                segment = segment_from_descriptor(selector, descriptor)
                if valid(segment, max(cpu.cpl(), selector & 3)):
                    found = segment
        flags = cpu.eflags() & ~_ZF
        cpu.set_eflags(flags | (_ZF if found is not None else 0))
        return found

    def _lar(self, instruction: Detailed) -> None:
        found = self._query(instruction, has_rights)
        if found is not None:
            self._put(instruction, found.attributes & 0xF0FF00, instruction.operand_size)

    def _lsl(self, instruction: Detailed) -> None:
        found = self._query(instruction, has_limit)
        if found is not None:
            self._put(instruction, found.limit, instruction.operand_size)

    def _verr(self, instruction: Detailed) -> None:
        self._query(instruction, is_readable)

    def _verw(self, instruction: Detailed) -> None:
        self._query(instruction, is_writable)

    # ------------------------------------------------------------------ near transfers

    def _go_to(self, instruction: Detailed, target: int) -> bool:
        self._cpu.set_eip(target & (0xFFFF_FFFF if instruction.operand_size == 4 else 0xFFFF))
        return True

    def _target(self, instruction: Detailed) -> int:
        operand = instruction.operands[0]
        if operand.kind == "imm":
            return self._cpu.eip() + operand.value
        return self._value(instruction, operand, instruction.operand_size)

    def _jump(self, instruction: Detailed) -> Result | bool:
        if self._far_target(instruction) is not None:
            return self._far_jump(instruction)
        return self._go_to(instruction, self._target(instruction))

    def _near_call(self, instruction: Detailed) -> Result | bool:
        if self._far_target(instruction) is not None:
            return self._far_call(instruction)
        target = self._target(instruction)
        self._push_value(self._cpu.eip() + len(instruction.code), instruction.operand_size)
        return self._go_to(instruction, target)

    def _near_return(self, instruction: Detailed) -> bool:
        release = signed_word(instruction.operands[0].value) if instruction.operands else 0
        target = self._load(self._stack_address(0), instruction.operand_size)
        self._move_stack(instruction.operand_size + release)
        return self._go_to(instruction, target)

    def _conditional(self, instruction: Detailed) -> bool | None:
        name, flags = instruction.mnemonic, self._cpu.eflags()
        taken = not _CONDITIONS[_NEGATED[name]](flags) if name in _NEGATED else _CONDITIONS[name](flags)
        return self._go_to(instruction, self._target(instruction)) if taken else None

    def _loop(self, instruction: Detailed) -> bool | None:
        cpu, name = self._cpu, instruction.mnemonic
        mask = 0xFFFF if instruction.address_size == 2 else 0xFFFF_FFFF
        count = cpu.gpr(ECX)
        if name in ("jecxz", "jcxz"):
            taken = not count & mask
        else:
            left = (count - 1) & mask
            cpu.set_gpr(ECX, count & ~mask & 0xFFFF_FFFF | left)
            zero = bool(cpu.eflags() & _ZF)
            taken = left != 0 and (name == "loop" or zero == (name == "loope"))
        return self._go_to(instruction, self._target(instruction)) if taken else None


def _dpl_allows(segment: Segment, level: int) -> bool:
    attributes = segment.attributes
    conforming = attributes & 0x1C00 == 0x1C00
    return conforming or attributes >> 13 & 3 >= level


def has_rights(segment: Segment, level: int) -> bool:
    """Whether LAR answers (SDM vol. 2A, table 3-52); ``level`` is the larger of CPL and RPL."""
    kind = segment.attributes >> 8 & 0x1F
    return (kind >= 0x10 or kind in (1, 2, 3, 4, 5, 9, 11, 12)) and _dpl_allows(segment, level)


def has_limit(segment: Segment, level: int) -> bool:
    """Whether LSL answers (SDM vol. 2A, table 3-55)."""
    kind = segment.attributes >> 8 & 0x1F
    return (kind >= 0x10 or kind in (1, 2, 3, 9, 11)) and _dpl_allows(segment, level)


def is_readable(segment: Segment, level: int) -> bool:
    """Whether VERR says yes."""
    kind = segment.attributes >> 8 & 0x1F
    return kind >= 0x10 and (kind < 0x18 or bool(kind & 2)) and _dpl_allows(segment, level)


def is_writable(segment: Segment, level: int) -> bool:
    """Whether VERW says yes."""
    kind = segment.attributes >> 8 & 0x1F
    return 0x10 <= kind < 0x18 and bool(kind & 2) and _dpl_allows(segment, level)
