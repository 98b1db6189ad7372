"""A machine whose CPU stands in 64-bit code, with a gate and a handler for every vector that ends with its number."""

import struct
import tempfile
from pathlib import Path
from typing import Any

from hvemu.cpu.msr import STAR
from hvemu.cpu.state import CS, SS, Segment, TableRegister, segment_from_descriptor
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine
from hvemu.vocabulary.paging import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)

HIGH = 0xFFFF_FFFF_8000_0000
"""The first 2 MiB once more."""
LEVEL4, LEVEL3, LEVEL3_HIGH, LEVEL2, LEVEL1 = 0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000, 0x1_4000
GDT, IDT, TSS, HANDLERS = 0x1_5000, 0x1_6000, 0x1_7000, 0x1_8000
CODE_AT, STACK, DATA_AT = HIGH + 0x2_0000, HIGH + 0x3_0000, 0x4_0000
CODE, DATA, USER_32, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30
DESCRIPTORS = (
    0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF, TSS << 16 | 0x8900 << 32 | 0x67, 0,
)  # fmt: skip


def verdict(vector: int) -> int:
    """The status of a guest whose last event has this vector."""
    return vector << 1 | 1


class LongKernel:
    """``code`` begins at ``at`` in ring 0, or in ring 3, there as 32-bit code if it is ``compatible``."""

    def __init__(
        self, code: str, *, ring: int = 0, compatible: bool = False, at: int | None = None,
        data: dict[int, str] | None = None, registers: dict[int, int] | None = None, **changes: Any,
    ) -> None:  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "long.bin"
            path.write_bytes(b"\xf4")
            settings = {"loader": "flat", "memory": 4 << 20, "serial": "none", **changes}
            self.machine: Machine = build(MachineConfiguration(image=str(path), **settings))
        for port in (0x21, 0xA1):
            self.machine.ports.write(port, 1, 0xFF)
        self.memory = memory = self.machine.memory
        tables = (
            (LEVEL4, 0, LEVEL3), (LEVEL4, 511, LEVEL3_HIGH), (LEVEL3, 0, LEVEL2), (LEVEL3_HIGH, 510, LEVEL2),
            (LEVEL2, 0, LEVEL1), *((LEVEL1, page, page << 12) for page in range(512)),
        )  # fmt: skip
        for table, index, target in tables:
            memory.write(table + 8 * index, struct.pack("<Q", target | 0x67))
        for vector in range(256):
            handler = HANDLERS + 8 * vector
            memory.write(handler, bytes((0xB0, vector, 0xE6, 0xF4)))  # mov al, vector / out 0xf4, al
            self.set_gate(vector, HIGH + handler)
        memory.write(GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS))
        memory.write(TSS + 4, struct.pack("<Q", STACK + 0x1000))
        at = (CODE_AT & 0xFFFF_FFFF if compatible else CODE_AT) if at is None else at
        memory.write(CODE_AT - HIGH, bytes.fromhex(code.replace(" ", "")))
        for address, piece in (data or {}).items():
            memory.write(address, bytes.fromhex(piece.replace(" ", "")))
        cpu = self.machine.registers()
        cpu.cr0, cpu.cr3 = CR0_PE | CR0_ET | CR0_NE | CR0_PG | CR0_WP, LEVEL4
        cpu.cr4, cpu.efer = CR4_PAE | CR4_OSFXSR, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        cpu.msrs = {**cpu.msrs, 0xC000_0080: cpu.efer, STAR: CODE << 32 | USER_32 << 48}
        cpu.gdtr, cpu.idtr = TableRegister(HIGH + GDT, 8 * len(DESCRIPTORS) - 1), TableRegister(HIGH + IDT, 0xFFF)
        cpu.tr = Segment(TASK, HIGH + TSS, 0x67, 0x8900)
        stack = USER_DATA if ring else DATA
        code_selector = (USER_32 if compatible else USER_CODE) if ring else CODE
        cpu.segments = [segment_from_descriptor(stack, DESCRIPTORS[stack >> 3])] * 6
        cpu.segments[CS] = segment_from_descriptor(code_selector, DESCRIPTORS[code_selector >> 3])
        assert cpu.segments[SS].selector == stack
        cpu.gprs[4] = STACK if not compatible else STACK - HIGH
        cpu.instruction_pointer = at - HIGH if compatible and at >= HIGH else at
        if compatible:
            cpu.instruction_pointer = CODE_AT - HIGH
        for number, value in (registers or {}).items():
            cpu.gprs[number] = value
        self.machine.mode.enter(cpu)

    def set_gate(self, vector: int, target: int, *, stack: int = 0, ring: int = 3) -> None:
        """An interrupt gate."""
        low = target & 0xFFFF | CODE << 16 | stack << 32 | (0x8E | ring << 5) << 40 | (target >> 16 & 0xFFFF) << 48
        self.memory.write(IDT + 16 * vector, struct.pack("<QQ", low, target >> 32))

    def status(self, until: int = 100_000) -> int | None:
        """Run, and the status it ended with; None if it did not."""
        stop = self.machine.run(until)
        return None if stop is None else int(stop.status)
