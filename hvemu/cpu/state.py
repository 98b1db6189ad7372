"""VirtualCpu: everything the guest can know of its CPU, as one value. Debugger, snapshots and modes share it.

``CpuPort`` is the live view of the same registers that a mode gives to event delivery and to the emulator; a
VirtualCpu satisfies it too, which is how delivery is tested without an engine.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from hvemu.vocabulary.paging import CR0_ET, EFER_LMA, PagingRegisters

EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI = range(8)
GPR_NAMES: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
LONG_GPR_NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
R11: Final = 11
ES, CS, SS, DS, FS, GS = range(6)
SEGMENT_NAMES: Final = ("es", "cs", "ss", "ds", "fs", "gs")

FLAG_CF: Final = 1 << 0
FLAG_ZF: Final = 1 << 6
FLAG_TF: Final = 1 << 8
FLAG_IF: Final = 1 << 9
FLAG_DF: Final = 1 << 10
FLAG_IOPL: Final = 3 << 12
FLAG_NT: Final = 1 << 14
FLAG_RF: Final = 1 << 16
FLAG_VM: Final = 1 << 17
FLAG_AC: Final = 1 << 18

# Attributes are bits 8..23 of a descriptor's high doubleword, in place (SDM vol. 3A, figure 3-8)
ATTRIBUTE_TYPE: Final = 0xF << 8
ATTRIBUTE_ACCESSED: Final = 1 << 8
ATTRIBUTE_WRITABLE: Final = 1 << 9  # of data; readable for code
ATTRIBUTE_CONFORMING: Final = 1 << 10
ATTRIBUTE_CODE: Final = 1 << 11
ATTRIBUTE_S: Final = 1 << 12
ATTRIBUTE_DPL_SHIFT: Final = 13
ATTRIBUTE_PRESENT: Final = 1 << 15
ATTRIBUTE_LONG: Final = 1 << 21
ATTRIBUTE_BIG: Final = 1 << 22
ATTRIBUTE_GRANULARITY: Final = 1 << 23
ATTRIBUTE_MASK: Final = 0x00F0FF00


class Segment(NamedTuple):
    """A segment register with its hidden part. ``limit`` in bytes, ``attributes`` as in the descriptor."""

    selector: int
    base: int
    limit: int
    attributes: int


class TableRegister(NamedTuple):
    """GDTR or IDTR: linear base and limit in bytes."""

    base: int
    limit: int


class SystemTables(NamedTuple):
    """GDTR, IDTR and TR at once, which is what delivering an event needs."""

    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    task_base: int
    task_limit: int
    task_selector: int
    task_attributes: int


REAL_MODE_DATA: Final = Segment(0, 0, 0xFFFF, 0x9300)
REAL_MODE_CODE: Final = Segment(0, 0, 0xFFFF, 0x9B00)
FLAT_CODE: Final = Segment(0x10, 0, 0xFFFF_FFFF, 0x00CF9B00 & ATTRIBUTE_MASK)
FLAT_DATA: Final = Segment(0x18, 0, 0xFFFF_FFFF, 0x00CF9300 & ATTRIBUTE_MASK)


@lru_cache(maxsize=4096)
def segment_from_descriptor(selector: int, descriptor: int) -> Segment:
    """The hidden part that loading this 8-byte descriptor gives (SDM vol. 3A, 3.4.5)."""
    low, high = descriptor & 0xFFFF_FFFF, descriptor >> 32
    limit = (low & 0xFFFF) | (high & 0xF0000)
    if high & ATTRIBUTE_GRANULARITY:
        limit = (limit << 12) | 0xFFF
    base = (low >> 16) | ((high & 0xFF) << 16) | (high & 0xFF00_0000)
    return Segment(selector, base, limit, high & ATTRIBUTE_MASK)


def accessed(segment: Segment) -> Segment:
    """The segment with its accessed bit set, as in every loaded one; the engine caches what was there before."""
    if segment.attributes & (ATTRIBUTE_S | ATTRIBUTE_ACCESSED) != ATTRIBUTE_S:
        return segment
    return segment._replace(attributes=segment.attributes | ATTRIBUTE_ACCESSED)


class CpuPort(Protocol):
    """The live registers of a virtual CPU, as event delivery reads and writes them."""

    def gpr(self, index: int) -> int: ...
    def set_gpr(self, index: int, value: int) -> None: ...
    def long_gpr(self, index: int) -> int: ...
    def set_long_gpr(self, index: int, value: int) -> None: ...
    def is_64_bit(self) -> bool: ...
    def eip(self) -> int: ...
    def set_eip(self, value: int) -> None: ...
    def eflags(self) -> int: ...
    def set_eflags(self, value: int) -> None: ...
    def cpl(self) -> int: ...
    def segment(self, index: int) -> Segment: ...
    def set_segment(self, index: int, value: Segment) -> None: ...
    def set_code_and_stack(self, code: Segment, stack: Segment) -> None: ...
    def system_tables(self) -> SystemTables: ...
    def ldt_segment(self) -> Segment: ...
    def task_segment(self) -> Segment: ...
    def paging(self) -> PagingRegisters: ...
    def set_cr2(self, value: int) -> None: ...


@dataclass
class VirtualCpu:
    """The complete state. Floating-point and SSE registers are one FXSAVE image."""

    gprs: list[int] = field(default_factory=lambda: [0] * 16)
    instruction_pointer: int = 0xFFF0
    flags: int = 2
    segments: list[Segment] = field(default_factory=lambda: [REAL_MODE_DATA] * 6)
    gdtr: TableRegister = TableRegister(0, 0xFFFF)
    idtr: TableRegister = TableRegister(0, 0x3FF)
    ldtr: Segment = Segment(0, 0, 0xFFFF, 0x8200)
    tr: Segment = Segment(0, 0, 0xFFFF, 0x8900)
    cr0: int = CR0_ET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    debug: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    msrs: dict[int, int] = field(default_factory=dict)
    efer: int = 0
    interrupt_shadow: bool = False
    """STI or MOV SS inhibits interrupts until after the next instruction."""
    nmi_blocked: bool = False
    halted: bool = False
    fpu: bytes = b""
    """The engine-independent FXSAVE image, 512 bytes, with XMM8 to XMM15; empty means the reset state."""

    def __post_init__(self) -> None:
        self.segments = list(self.segments)
        if self.segments[CS] == REAL_MODE_DATA:
            self.segments[CS] = REAL_MODE_CODE

    def bits(self) -> int:
        """The size of the code that runs: 16, 32 or 64."""
        if self.is_64_bit():
            return 64
        return 32 if self.segments[CS].attributes & ATTRIBUTE_BIG else 16

    def linear_ip(self) -> int:
        """The linear address of the next instruction."""
        linear = self.segments[CS].base + self.instruction_pointer
        return linear & (0xFFFF_FFFF_FFFF_FFFF if self.is_64_bit() else 0xFFFF_FFFF)

    # The CpuPort view
    def gpr(self, index: int) -> int:
        """The lower half of a general register by its number in the encoding."""
        return self.gprs[index] & 0xFFFF_FFFF

    def set_gpr(self, index: int, value: int) -> None:
        """Set a general register, modulo 2**32: as 32-bit operations do, this clears the upper half."""
        self.gprs[index] = value & 0xFFFF_FFFF

    def long_gpr(self, index: int) -> int:
        """All 64 bits of a general register."""
        return self.gprs[index]

    def set_long_gpr(self, index: int, value: int) -> None:
        """Set a general register, modulo 2**64."""
        self.gprs[index] = value & 0xFFFF_FFFF_FFFF_FFFF

    def is_64_bit(self) -> bool:
        """Whether 64-bit code runs: long mode, and not its compatibility mode."""
        return bool(self.efer & EFER_LMA and self.segments[CS].attributes & ATTRIBUTE_LONG)

    def eip(self) -> int:
        """The instruction pointer."""
        return self.instruction_pointer

    def set_eip(self, value: int) -> None:
        """Set the instruction pointer, modulo 2**32 unless 64-bit code runs."""
        self.instruction_pointer = value & (0xFFFF_FFFF_FFFF_FFFF if self.is_64_bit() else 0xFFFF_FFFF)

    def eflags(self) -> int:
        """EFLAGS with the arithmetic bits up to date."""
        return self.flags

    def set_eflags(self, value: int) -> None:
        """Set EFLAGS; bit 1 is always one."""
        self.flags = value | 2

    def cpl(self) -> int:
        """Current privilege level: the DPL of SS, 0 in real mode, 3 in virtual-8086 mode."""
        if not self.cr0 & 1:
            return 0
        if self.flags & FLAG_VM and not self.efer & EFER_LMA:
            return 3
        return (self.segments[SS].attributes >> ATTRIBUTE_DPL_SHIFT) & 3

    def segment(self, index: int) -> Segment:
        """A segment register with its hidden part."""
        return self.segments[index]

    def set_segment(self, index: int, value: Segment) -> None:
        """Load a segment register, hidden part and all."""
        self.segments[index] = value

    def set_code_and_stack(self, code: Segment, stack: Segment) -> None:
        """Load CS and SS together, as event delivery does."""
        self.segments[CS], self.segments[SS] = code, stack

    def system_tables(self) -> SystemTables:
        """GDTR, IDTR and TR."""
        return SystemTables(*self.gdtr, *self.idtr, self.tr.base, self.tr.limit, self.tr.selector, self.tr.attributes)

    def ldt_segment(self) -> Segment:
        """LDTR."""
        return self.ldtr

    def task_segment(self) -> Segment:
        """TR."""
        return self.tr

    def paging(self) -> PagingRegisters:
        """What the page walker needs."""
        return PagingRegisters(self.cr0, self.cr3, self.cr4, self.efer)

    def set_cr2(self, value: int) -> None:
        """The faulting linear address."""
        self.cr2 = value & 0xFFFF_FFFF_FFFF_FFFF
