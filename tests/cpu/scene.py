"""A CPU with descriptor tables, a TSS and stacks, laid out in a few pages of memory; everything can be made wrong."""

import struct
from copy import deepcopy
from typing import Any

from hvemu.cpu.state import (
    ATTRIBUTE_MASK,
    CS,
    DS,
    ES,
    ESP,
    FS,
    GS,
    SS,
    Segment,
    TableRegister,
    VirtualCpu,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.paging import CR0_ET, CR0_PE, CR0_PG

IDT, GDT, LDT, TSS = 0x1000, 0x2000, 0x3000, 0x4000
PAGE_DIRECTORY, PAGE_TABLE = 0x5000, 0x6000
STACKS = (0x9000, 0xA000, 0xB000, 0xC000)
"""Where ESP points in each ring."""
HANDLERS = 0x2_0000
HOME, HOME_FLAGS = 0x1_8765, 0x0246
NOWHERE = 0x30_0000
"""Linear addresses from here on are not mapped when paging is on."""

CODE, DATA, PRESENT = 0x1A, 0x12, 0x80
BIG, SMALL = 0xC, 0x0

# Selectors of the scene's GDT
CODE0, DATA0, CODE1, DATA1, CODE2, DATA2, CODE3, DATA3 = 0x08, 0x10, 0x19, 0x21, 0x2A, 0x32, 0x3B, 0x43
CONFORMING, CODE16, DATA16, TASK, ABSENT_CODE, ABSENT_DATA, READ_ONLY, LOCAL = (
    0x48, 0x50, 0x58, 0x60, 0x68, 0x72, 0x7A, 0x80,
)  # fmt: skip
BEYOND = 0x200


def descriptor(
    kind: int, ring: int = 0, *, base: int = 0, limit: int = 0xFFFFF, flags: int = BIG, present: bool = True
) -> int:
    """An 8-byte segment descriptor; ``kind`` is S and type."""
    access = kind | ring << 5 | (0x80 if present else 0)
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20 | base & 0xFF00_0000
    return high << 32 | low


def gate(selector: int, offset: int, kind: int = 14, ring: int = 0, *, present: bool = True) -> int:
    """An 8-byte gate descriptor."""
    high = offset & 0xFFFF_0000 | (0x8000 if present else 0) | ring << 13 | kind << 8
    return high << 32 | selector << 16 | offset & 0xFFFF


class Scene:
    """``cpu`` runs in ``ring``; vector n leads to ``handler(n)`` in ring 0 through a 32-bit interrupt gate."""

    def __init__(self, ring: int = 0, *, paging: bool = False) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(4 << 20))
        self.cpu = VirtualCpu(instruction_pointer=HOME, flags=HOME_FLAGS, cr0=CR0_PE | CR0_ET)
        self.cpu.gdtr = TableRegister(GDT, 0x8F)
        self.cpu.idtr = TableRegister(IDT, 0x7FF)
        self.cpu.ldtr = Segment(LOCAL, LDT, 0x7, 0x8200)
        self.cpu.tr = Segment(TASK, TSS, 0x67, 0x8B00)
        for selector, value in (
            (CODE0, descriptor(CODE)),
            (DATA0, descriptor(DATA)),
            (CODE1, descriptor(CODE, 1)),
            (DATA1, descriptor(DATA, 1)),
            (CODE2, descriptor(CODE, 2)),
            (DATA2, descriptor(DATA, 2)),
            (CODE3, descriptor(CODE, 3)),
            (DATA3, descriptor(DATA, 3)),
            (CONFORMING, descriptor(CODE | 4)),
            (CODE16, descriptor(CODE, flags=SMALL)),
            (DATA16, descriptor(DATA, flags=SMALL)),
            (TASK, descriptor(0x0B, base=TSS, limit=0x67, flags=0)),
            (ABSENT_CODE, descriptor(CODE, present=False)),
            (ABSENT_DATA, descriptor(DATA, 2, present=False)),
            (READ_ONLY, descriptor(0x10, 2)),
            (LOCAL, descriptor(0x02, base=LDT, limit=7, flags=0)),
        ):
            self.describe(selector, value)
        self.describe(4, descriptor(CODE))
        for vector in range(256):
            self.set_gate(vector, gate(CODE0, self.handler(vector)))
        for inner, selector in enumerate((DATA0, DATA1, DATA2)):
            self.set_stack(inner, selector, STACKS[inner])
        self.enter(ring)
        if paging:
            self.map_pages()

    @staticmethod
    def handler(vector: int) -> int:
        """Where the handler of a vector begins."""
        return HANDLERS + 16 * vector

    def describe(self, selector: int, value: int) -> None:
        """Store a descriptor in the GDT or, with TI set, in the LDT."""
        table = LDT if selector & 4 else GDT
        self.memory.write(table + (selector & 0xFFF8), value.to_bytes(8, "little"))

    def set_gate(self, vector: int, value: int) -> None:
        """Store a gate in the IDT."""
        self.memory.write(IDT + 8 * vector, value.to_bytes(8, "little"))

    def set_stack(self, ring: int, selector: int, pointer: int) -> None:
        """Store the stack of an inner ring in the 32-bit TSS."""
        self.memory.write(TSS + 4 + 8 * ring, struct.pack("<II", pointer, selector))

    def enter(self, ring: int) -> None:
        """Make the CPU run in a ring, on its own stack."""
        code, data = ((CODE0, DATA0), (CODE1, DATA1), (CODE2, DATA2), (CODE3, DATA3))[ring]
        for index, selector in ((CS, code), (SS, data), (DS, data), (ES, data), (FS, data), (GS, data)):
            self.load(index, selector)
        self.cpu.set_gpr(ESP, STACKS[ring])

    def load(self, index: int, selector: int) -> None:
        """Load a segment register from the GDT."""
        value = self.memory.read_u64(GDT + (selector & 0xFFF8))
        self.cpu.set_segment(index, segment_from_descriptor(selector, value))

    def map_pages(self) -> None:
        """Two-level tables: the first MiB at its place for everybody, nothing behind it."""
        self.memory.write(PAGE_DIRECTORY, struct.pack("<I", PAGE_TABLE | 7))
        self.memory.write(PAGE_TABLE, struct.pack("<256I", *(page << 12 | 7 for page in range(256))))
        self.cpu.cr0 |= CR0_PG
        self.cpu.cr3 = PAGE_DIRECTORY

    def unmap(self, linear: int) -> None:
        """Take a page away."""
        self.memory.write(PAGE_TABLE + (linear >> 12) * 4, bytes(4))

    def snapshot(self) -> tuple[Any, bytes]:
        """CPU and memory, to compare with later; accessed and dirty bits are nobody's business."""
        return deepcopy(self.cpu), self.without_marks()

    def without_marks(self) -> bytes:
        """Memory with the accessed and dirty bits of the page tables taken out."""
        image = bytearray(self.memory.view)
        if self.cpu.cr0 & CR0_PG:
            for table in (PAGE_DIRECTORY, PAGE_TABLE):
                for at in range(table, table + 0x1000, 4):
                    image[at] &= ~0x60 & 0xFF
        return bytes(image)

    def frame(self, count: int, size: int = 4) -> list[int]:
        """What lies on the stack, from the top."""
        stack = self.cpu.segment(SS)
        pointer = self.cpu.gpr(ESP)
        if not stack.attributes & 0x40_0000:
            pointer &= 0xFFFF
        data = self.memory.read(stack.base + pointer, count * size)
        return [int.from_bytes(data[at : at + size], "little") for at in range(0, count * size, size)]

    def selector(self, index: int) -> int:
        """The visible part of a segment register."""
        return self.cpu.segment(index).selector


def attributes(value: int) -> int:
    """The attributes that loading a descriptor gives."""
    return value >> 32 & ATTRIBUTE_MASK
