"""A guest under VMRUN that loads absurd registers and uses any page as a table never takes the process along.

The engine has states in which it ends the process, without a word that Python could catch. So the guests run in a child
process, many of them one after the other on the same machine, and the parent looks at how the child ended.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from hvemu.cpu.state import FLAT_CODE, FLAT_DATA, TableRegister, VirtualCpu
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.vocabulary.paging import CR0_ET, CR0_PE
from tests.techniques import SVM, settings

ROOT = Path(__file__).resolve().parents[2]
RAM = 2 << 20
CODE, GDT, IDT, TABLES = 0x10_0000, 0x1000, 0x2000, 0x4000
LENGTH = 40_000
"""Guest code bytes after which a guest that goes on is left alone."""
PLAIN = (
    "0f01d8 0f01da 0f01db 0f01d9 0f01dc 0f01dd 0f01de 0f01df 0f01c1 0fa2 0f31 0f33 0faa 0f01c8 0f01c9 f4 0f09 0f08"
    " 0f06 fa fb cf 48cf 0f34 0f35 0f05 0f07 480f07 0f01f8 0f0b cc ce f1 9c 9d cb 0f01f9 d9c0 0f58c1 f390 0fae07 0fc7f0"
).split()
"""Instructions of hypervisors and kernels that need no operand, or take it as it is."""
SELECTORS = (0, 8, 0x10, 0x18, 0x1B, 0x20, 0x23, 0x28, 0x2B, 0x33, 0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0xFFF8)
MSRS = (0xC000_0080, 0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0082, 0xC000_0100, 0xC000_0102, 0xC001_0117, 0x1B, 0x277)


class Author:
    """Writes a guest: code, tables and rubbish."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def word(self):
        """An address or a value that may mean something, or nothing."""
        draw = self.random
        return draw.choice(
            (
                draw.getrandbits(32),
                draw.randrange(0, RAM, 0x1000),
                draw.randrange(RAM),
                TABLES + draw.randrange(0x4000),
                CODE + draw.randrange(0x800),
                0xFEE0_0000 + draw.randrange(0x400),
                1 << draw.randrange(32),
                0xFFFF_FFFF,
                0,
            )
        )

    def imm(self, register, value=None):
        """MOV to a general register."""
        return bytes([0xB8 + register]) + (self.word() if value is None else value).to_bytes(4, "little")

    def piece(self):
        """A few instructions."""
        draw = self.random
        kind = draw.randrange(12)
        if kind == 0:
            number = draw.choice((0, 0, 3, 3, 4, 4, 2, 8))
            sensible = {
                0: draw.choice((0x11, 0x8000_0011, 0x8001_0031, 0x1, 0x10, 0x8000_0001)),
                3: draw.randrange(0, RAM, 0x1000),
                4: draw.choice((0, 0x10, 0x20, 0x30, 0xB0, 0x6F0)),
            }
            value = sensible.get(number) if draw.random() < 0.8 else None
            return self.imm(0, value) + bytes([0x0F, 0x22, 0xC0 | number << 3])
        if kind == 1:
            value = draw.choice((0, 0x100, 0x900, 0x901, 0xD01, 0x1901, None))
            return (
                self.imm(1, draw.choice(MSRS)) + self.imm(0, value) + self.imm(2, draw.choice((0, None))) + b"\x0f\x30"
            )
        if kind == 2:  # lgdt or lidt
            return bytes([0x0F, 0x01, draw.choice((0x15, 0x1D))]) + self.word().to_bytes(4, "little")
        if kind == 3:  # lldt, ltr, or a load of a segment register
            what = draw.choice(("0f00d0", "0f00d8", "8ed8", "8ed0", "8ec0", "8ee0", "8ee8", "8ec8"))
            return self.imm(0, draw.choice(SELECTORS)) + bytes.fromhex(what)
        if kind == 4:
            return bytes([0xCD, draw.randrange(256)])
        if kind == 5:  # store or load
            return (
                self.imm(7)
                + self.imm(0)
                + bytes.fromhex(draw.choice(("8907", "8b07", "ff37", "8f07", "0107", "a5", "aa")))
            )
        if kind == 6:  # far jump or call
            return (
                bytes([draw.choice((0xEA, 0x9A))])
                + self.word().to_bytes(4, "little")
                + draw.choice(SELECTORS).to_bytes(2, "little")
            )
        if kind == 7:
            return self.imm(4)  # a stack
        if kind == 8:  # iret to anything
            frame = (draw.choice(SELECTORS), self.word(), self.word(), draw.choice(SELECTORS), self.word())
            return b"".join(b"\x68" + value.to_bytes(4, "little") for value in frame) + b"\xcf"
        if kind == 9:
            return bytes([0x0F, draw.choice((0x20, 0x21, 0x23)), 0xC0 | draw.randrange(64)])
        if kind == 10:
            return self.imm(1, draw.choice(MSRS)) + b"\x0f\x32"
        return bytes.fromhex(draw.choice(PLAIN))

    def table(self, view, address):
        """A page of entries that could be a page table's, of 4 or of 8 bytes."""
        draw = self.random
        size = draw.choice((4, 8))
        for at in range(address, address + 0x1000, size):
            bits = draw.choice((0, 3, 7, 7, 0x67, 0x83, 0xE7, draw.getrandbits(12)))
            entry = draw.choice(
                (draw.randrange(0, RAM, 0x1000), TABLES + draw.randrange(0, 0x4000, 0x1000), at & ~0xFFF)
            )
            if draw.random() < 0.05:
                entry = draw.getrandbits(8 * size - 12) << 12
            view[at : at + size] = (entry | bits).to_bytes(size, "little")

    def write(self, view):
        """All of memory."""
        draw = self.random
        view[CODE : CODE + 0x1000] = b"".join(self.piece() for _ in range(400))[:0x1000].ljust(0x1000, b"\xf4")
        for page in range(TABLES, TABLES + 0x4000, 0x1000):
            self.table(view, page)
        flat = [0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AF9B000000FFFF]
        for number in range(64):
            kind = draw.choice((0x89, 0x8B, 0x82, 0x8C, 0xEC, 0x9E, 0xFB, 0x81, 0x83, 0x85, draw.getrandbits(8)))
            base = draw.choice((TABLES, CODE, GDT, self.word()))
            random_descriptor = 0x67 | (base & 0xFFFFFF) << 16 | kind << 40 | (base >> 24) << 56
            descriptor = flat[number] if number < len(flat) else random_descriptor
            view[GDT + 8 * number : GDT + 8 * number + 8] = descriptor.to_bytes(8, "little")
        for number in range(256):
            kind = draw.choice((0x8E, 0x8E, 0x8F, 0xEE, 0x85, 0x86, 0xE5, draw.getrandbits(8)))
            target, selector = CODE + draw.randrange(0x1000), draw.choice((8, 8, 0x28, draw.choice(SELECTORS)))
            gate = target & 0xFFFF | selector << 16 | kind << 40 | (target >> 16) << 48
            view[IDT + 8 * number : IDT + 8 * number + 8] = gate.to_bytes(8, "little")


def play(technique, first, count):
    """In the child: so many guests, the number of each before it runs."""
    configuration = MachineConfiguration(
        image=__file__, loader="flat", memory=RAM, serial="none", load_address=CODE, **settings(technique)
    )
    machine = build(configuration)
    for seed in range(first, first + count):
        print(seed, flush=True)
        machine.stop = None
        machine.reset()
        Author(seed).write(machine.memory.view)
        cpu = VirtualCpu(instruction_pointer=CODE, cr0=CR0_ET | CR0_PE, segments=[FLAT_DATA] * 6)
        cpu.segments[1] = FLAT_CODE
        cpu.gprs[4] = 0x8_0000
        cpu.gdtr, cpu.idtr = TableRegister(GDT, 64 * 8 - 1), TableRegister(IDT, 0x7FF)
        cpu.msrs = machine.registers().msrs
        machine.mode.enter(cpu)
        end = machine.mode.position() + LENGTH
        while machine.stop is None and machine.mode.position() < end:
            machine.board.nmi.pending = False
            machine.run(end)
    print("survived", flush=True)


def assert_survived(technique, first, count):
    """Run them in a process of their own."""
    command = [sys.executable, "-c", f"from {__name__} import play; play({technique!r}, {first}, {count})"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    lines = child.stdout.split()
    assert (0, "survived") == (child.returncode, lines[-1]), (technique, lines[-1:], child.stderr[-2000:])


@pytest.mark.parametrize("technique", SVM)
def test_absurd_registers_and_tables_end_the_guest_at_most(technique):
    """Control registers, EFER, TR, IDT, and pages of rubbish for tables."""
    assert_survived(technique, 0, 150)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("technique", SVM)
def test_many_more_absurdities_end_the_guest_at_most(technique):
    """The same, longer."""
    assert_survived(technique, 1_000, 1_200)
