"""A desk with a BIOS on it: services are called as a stub in the BIOS segment calls them, with fake ports around."""

import struct

from hvemu.cpu.state import (
    CS,
    EAX,
    EBP,
    EBX,
    ECX,
    EDI,
    EDX,
    ESI,
    ESP,
    FLAG_CF,
    FLAG_ZF,
    Segment,
    VirtualCpu,
)
from hvemu.devices.images.memory import MemoryMedium
from hvemu.loader import firmware
from hvemu.loader.bios import Bios
from hvemu.vocabulary import machine_map as at

from .images import ram

STACK, BUFFER = 0x7000, 0x8000
SUCCEED, FAIL = 0x203, 0x202
REGISTERS = {"ax": EAX, "bx": EBX, "cx": ECX, "dx": EDX, "si": ESI, "di": EDI, "bp": EBP}
BDA = at.BIOS_DATA_AREA


class FakePorts:
    """Ports that answer from a table, keys from a queue, and remember every write."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.keys: list[int] = []
        self.cmos: dict[int, int] = {}
        self.written: list[tuple[int, int]] = []

    def read(self, port: int, size: int) -> int:
        if port == at.I8042_DATA:
            return self.keys.pop(0) if self.keys else 0
        if port == at.CMOS_BASE + 1:
            index = next(value for number, value in reversed(self.written) if number == at.CMOS_BASE)
            return self.cmos.get(index, 0)
        return self.values.get(port, (1 << 8 * size) - 1)

    def write(self, port: int, size: int, value: int) -> None:
        assert 0 <= value < 1 << 8 * size
        self.written.append((port, value))


class Desk:
    """Memory with firmware in it, a CPU in real mode, a disk, and INT n."""

    def __init__(self, disk: bytes | None = None, size: int = 4 << 20, disc: bytes | None = None) -> None:
        self.memory = ram(size)
        firmware.install(self.memory)
        self.memory.write(at.VGA_TEXT_BUFFER, b" \x07" * 2000)
        self.cpu = VirtualCpu()
        self.ports = FakePorts()
        self.disks = [] if disk is None else [MemoryMedium(disk)]
        cdroms = [] if disc is None else [MemoryMedium(disc)]
        self.bios = Bios(self.memory, self.cpu, self.ports.read, self.ports.write, self.disks, cdroms)

    @property
    def disk(self) -> bytes:
        """The contents of the first disk."""
        return self.disks[0].read(0, self.disks[0].size)

    def interrupt(self, vector: int, *, flags: int = SUCCEED, **registers: int) -> "Desk":
        """Go through the interrupt vector to the stub, as the CPU does, and let the service work.

        The caller's carry is set, so that a service has to clear it; pass ``FAIL`` where it has to set it.
        """
        for name, value in registers.items():
            self.cpu.set_gpr(REGISTERS[name], value)
        offset, selector = struct.unpack("<HH", self.memory.read(4 * vector, 4))
        self.memory.write(STACK, struct.pack("<HHHH", 0x7C00, 0, flags, 0))
        self.cpu.set_gpr(ESP, STACK)
        self.cpu.set_segment(CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
        self.cpu.set_eip(offset)
        self.bios.call()
        return self

    @property
    def flags(self) -> int:
        """Flags as IRET will pop them."""
        return int.from_bytes(self.memory.read(STACK + 4, 2), "little")

    @property
    def carry(self) -> bool:
        """Whether the caller will see a failure."""
        assert 0x202 == self.flags & ~(FLAG_CF | FLAG_ZF)
        assert b"\0\0" == self.memory.read(STACK + 6, 2)
        return bool(self.flags & FLAG_CF)

    def __getattr__(self, name: str) -> int:
        """``ax`` or ``ah`` and the like."""
        if name in REGISTERS:
            return self.cpu.gpr(REGISTERS[name]) & 0xFFFF
        if len(name) == 2 and name[1] in "hl" and name[0] + "x" in REGISTERS:
            return self.cpu.gpr(REGISTERS[name[0] + "x"]) >> (8 if name[1] == "h" else 0) & 0xFF
        raise AttributeError(name)

    def bda(self, offset: int, size: int = 2) -> int:
        """A field of the BIOS data area."""
        return int.from_bytes(self.memory.read(BDA + offset, size), "little")

    def row(self, number: int) -> str:
        """The characters of a screen row."""
        return self.memory.read(at.VGA_TEXT_BUFFER + 160 * number, 160)[::2].decode("cp437")

    def attributes(self, number: int) -> bytes:
        """The colours of a screen row."""
        return self.memory.read(at.VGA_TEXT_BUFFER + 160 * number, 160)[1::2]

    def type(self, text: str) -> None:
        """Teletype a text."""
        for character in text:
            self.interrupt(0x10, ax=0x0E00 | ord(character))

    def press(self, *codes: int) -> None:
        """Scan codes arrive, one interrupt each."""
        for code in codes:
            self.ports.keys.append(code)
            self.interrupt(9)

    def number_the_rows(self) -> None:
        """Each row begins with its letter."""
        for row in range(25):
            self.memory.write(at.VGA_TEXT_BUFFER + 160 * row, bytes((0x41 + row, 0x17)) * 80)
