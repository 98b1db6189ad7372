"""The BIOS services, called as a stub in the BIOS segment calls them, with fake ports around."""

import mmap
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import (
    CS,
    DS,
    EAX,
    EBP,
    EBX,
    ECX,
    EDI,
    EDX,
    ES,
    ESI,
    ESP,
    FLAG_CF,
    FLAG_ZF,
    SS,
    Segment,
    VirtualCpu,
)
from hvemu.loader import firmware
from hvemu.loader.bios import HEADS, SECTORS, Bios
from hvemu.loader.contract import memory_map
from hvemu.vocabulary import machine_map as at
from hvemu.vocabulary.paging import CR0_PE

from .images import boot_sector, ram

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

    def __init__(self, disk: bytes | None = None, size: int = 4 << 20) -> None:
        self.memory = ram(size)
        firmware.install(self.memory)
        self.memory.write(at.VGA_TEXT_BUFFER, b" \x07" * 2000)
        self.cpu = VirtualCpu()
        self.ports = FakePorts()
        self.disk = None if disk is None else bytearray(disk)
        self.bios = Bios(self.memory, self.cpu, self.ports.read, self.ports.write, self.disk)

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


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---------------------------------------------------------------------- being called


def test_only_the_stubs_are_served(desk: Desk) -> None:
    """Somebody else's OUT to the port, protected mode and addresses between stubs do nothing."""
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * 0x12, 4))
    for segment, eip, cr0 in ((0, offset, 0), (selector, offset + 1, 0), (selector, offset, CR0_PE), (selector, 0, 0)):
        desk.cpu.set_segment(CS, Segment(segment, segment << 4, 0xFFFF, 0x9B00))
        desk.cpu.set_eip(eip)
        desk.cpu.cr0 = cr0
        desk.bios.call()
        assert 0 == desk.ax
    desk.cpu.cr0 = 0
    assert 639 == desk.interrupt(0x12).ax


def test_a_service_that_does_not_exist_sets_carry(desk: Desk) -> None:
    """Without touching anything else of the caller's flags."""
    assert 0x203 == desk.interrupt(0x18, flags=0x202).flags
    assert 0x8D7 == desk.interrupt(0x15, ax=0x5300, flags=0x8D6).flags


def test_flags_are_found_where_the_stack_wraps(desk: Desk) -> None:
    """SP + 4 is taken modulo 64 KiB."""
    desk.memory.write(0x1_0000, b"\0" * 4)
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * 0x18, 4))
    desk.cpu.set_segment(SS, Segment(0x1000, 0x1_0000, 0xFFFF, 0x9300))
    desk.cpu.set_segment(CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
    desk.cpu.set_gpr(ESP, 0xFFFC)
    desk.cpu.set_eip(offset)
    desk.bios.call()
    assert 1 == desk.memory.read_u32(0x1_0000)


def test_equipment_and_base_memory(desk: Desk) -> None:
    """INT 11h and 12h read the BIOS data area."""
    assert 0x0426 == desk.interrupt(0x11).ax
    assert 639 == desk.interrupt(0x12).ax


@pytest.mark.parametrize("vector", range(0x08, 0x10))
def test_an_interrupt_of_the_first_controller_is_acknowledged(desk: Desk, vector: int) -> None:
    """Whether somebody cares about it or not."""
    desk.interrupt(vector)
    assert [(at.PIC_MASTER, 0x20)] == [
        write for write in desk.ports.written if write[0] in (at.PIC_MASTER, at.PIC_SLAVE)
    ]


@pytest.mark.parametrize("vector", range(0x70, 0x78))
def test_an_interrupt_of_the_second_controller_is_acknowledged_at_both(desk: Desk, vector: int) -> None:
    """Slave first."""
    desk.interrupt(vector)
    assert [(at.PIC_SLAVE, 0x20), (at.PIC_MASTER, 0x20)] == desk.ports.written


# ---------------------------------------------------------------------- INT 10h


def test_teletype_writes_and_moves(desk: Desk) -> None:
    """Character, carriage return, line feed, backspace; the bell is silent."""
    desk.type("Hello\r\nworld\b\bk\a!")
    assert ["Hello", "work!"] == [desk.row(row).rstrip() for row in (0, 1)]
    assert 0x0105 == desk.bda(0x50)


def test_the_cursor_of_the_screen_follows(desk: Desk) -> None:
    """CRTC registers 0Eh and 0Fh hold its cell."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0305)
    expected = [(at.VGA_CRTC, 0x0E), (at.VGA_CRTC + 1, 0), (at.VGA_CRTC, 0x0F), (at.VGA_CRTC + 1, 245)]
    assert expected == desk.ports.written


def test_teletype_wraps_and_scrolls(desk: Desk) -> None:
    """At the right edge to the next row, at the bottom everything moves up."""
    desk.number_the_rows()
    desk.interrupt(0x10, ax=0x0200, dx=0x184E)
    desk.type("xyz")
    assert ("B" * 80, "Y" * 78 + "xy", "z" + " " * 79) == (desk.row(0), desk.row(23), desk.row(24))
    assert 0x1801 == desk.bda(0x50)


def test_backspace_stops_at_the_left_edge(desk: Desk) -> None:
    """It does not climb."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0200)
    desk.type("\b\bx")
    assert "x" == desk.row(2).rstrip()


def test_a_cursor_outside_the_screen_writes_in_its_last_row_and_column(desk: Desk) -> None:
    """Nothing is written behind the screen."""
    desk.interrupt(0x10, ax=0x0200, dx=0x1E64)
    desk.type("x")
    assert (" " * 79 + "x", " " * 80) == (desk.row(23), desk.row(24))
    assert 0x1800 == desk.bda(0x50)
    desk.interrupt(0x10, ax=0x0200, dx=0xFFFF)
    desk.interrupt(0x10, ax=0x0A79, cx=1)
    assert " " * 79 + "y" == desk.row(24)


def test_cursor_position_and_shape_are_read_back(desk: Desk) -> None:
    """Functions 1, 2 and 3."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0A14)
    desk.interrupt(0x10, ax=0x0100, cx=0x2000)
    desk.interrupt(0x10, ax=0x0300, cx=0, dx=0)
    assert (0x0A14, 0x2000) == (desk.dx, desk.cx)
    assert [(at.VGA_CRTC, 0x0A), (at.VGA_CRTC + 1, 0x20)] == desk.ports.written[4:6]


def test_setting_the_mode_clears_the_screen(desk: Desk) -> None:
    """And homes the cursor; function 0Fh says 80 columns, mode 3, page 0."""
    desk.type("text")
    desk.interrupt(0x10, ax=0x0003)
    assert ("", 0, b"\x07" * 80) == (desk.row(0).rstrip(), desk.bda(0x50), desk.attributes(0))
    desk.interrupt(0x10, ax=0x0F00, bx=0xFFFF)
    assert (0x5003, 0x00FF) == (desk.ax, desk.bx)


@pytest.mark.parametrize(
    ("function", "lines", "expected"),
    [
        (6, 1, "ABDEF.GHI"),
        (6, 2, "ABEF..GHI"),
        (6, 4, "AB....GHI"),
        (6, 0, "AB....GHI"),
        (6, 200, "AB....GHI"),
        (7, 1, "AB.CDEGHI"),
        (7, 3, "AB...CGHI"),
        (7, 0, "AB....GHI"),
    ],
)
def test_scrolling_a_window(desk: Desk, function: int, lines: int, expected: str) -> None:
    """Rows 2 to 5, columns 10 to 69; the rest stays; what appears has the attribute of BH."""
    desk.number_the_rows()
    desk.interrupt(0x10, ax=function << 8 | lines, bx=0x4E00, cx=0x020A, dx=0x0545)
    assert expected == "".join(desk.row(row)[10] for row in range(9)).replace(" ", ".")
    for row in range(9):
        assert {chr(0x41 + row)} == set(desk.row(row)[:10] + desk.row(row)[70:])
        assert {desk.row(row)[10]} == set(desk.row(row)[10:70])
        inner = {0x4E} if desk.row(row)[10] == " " else {0x17}
        assert inner == set(desk.attributes(row)[10:70])


@pytest.mark.parametrize(("cx", "dx"), [(0x0500, 0x0409), (0x0009, 0x0500), (0x1900, 0xFFFF), (0x0050, 0xFFFF)])
def test_an_empty_window_is_not_scrolled(desk: Desk, cx: int, dx: int) -> None:
    """Upside down, or outside the screen."""
    desk.number_the_rows()
    before = desk.memory.read(at.VGA_TEXT_BUFFER, 0x8000)
    desk.interrupt(0x10, ax=0x0600, bx=0x0700, cx=cx, dx=dx)
    assert before == desk.memory.read(at.VGA_TEXT_BUFFER, 0x8000)


def test_reading_and_writing_cells(desk: Desk) -> None:
    """08h reads, 09h writes character and attribute, 0Ah the character alone; the cursor stays."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0102)
    desk.interrupt(0x10, ax=0x0923, bx=0x001F, cx=3)
    assert ("  ### ", b"\x07\x07\x1f\x1f\x1f\x07") == (desk.row(1)[:6], desk.attributes(1)[:6])
    desk.interrupt(0x10, ax=0x0A40, bx=0x0055, cx=2)
    assert ("  @@# ", b"\x07\x07\x1f\x1f\x1f\x07") == (desk.row(1)[:6], desk.attributes(1)[:6])
    assert (0x1F40, 0x0102) == (desk.interrupt(0x10, ax=0x0800).ax, desk.bda(0x50))


def test_a_run_of_cells_ends_with_the_screen(desk: Desk) -> None:
    """Nothing behind the last cell is written."""
    desk.memory.write(at.VGA_TEXT_BUFFER + 4000, b"\xaa" * 8)
    desk.interrupt(0x10, ax=0x0200, dx=0x184F)
    desk.interrupt(0x10, ax=0x0958, bx=0x0007, cx=0xFFFF)
    assert (79 * " " + "X", b"\xaa" * 8) == (desk.row(24), desk.memory.read(at.VGA_TEXT_BUFFER + 4000, 8))


@pytest.mark.parametrize(
    ("mode", "text", "attributes", "cursor"),
    [
        (0, b"Hi!", b"\x1e\x1e\x1e", 0x0000),
        (1, b"Hi!", b"\x1e\x1e\x1e", 0x0405),
        (2, b"H\x21i\x22!\x23", b"\x21\x22\x23", 0x0000),
        (3, b"H\x21i\x22!\x23", b"\x21\x22\x23", 0x0405),
    ],
)
def test_writing_a_string(desk: Desk, mode: int, text: bytes, attributes: bytes, cursor: int) -> None:
    """Bit 0 moves the cursor, bit 1 means that attributes are in the string."""
    desk.memory.write(BUFFER, text)
    desk.interrupt(0x10, ax=0x1300 | mode, bx=0x001E, cx=3, dx=0x0402, bp=BUFFER)
    assert ("  Hi! ", attributes, cursor) == (desk.row(4)[:6], desk.attributes(4)[2:5], desk.bda(0x50))


# ---------------------------------------------------------------------- INT 13h


DISK = boot_sector(sectors=3 * HEADS * SECTORS)


@pytest.fixture
def disk_desk() -> Desk:
    return Desk(DISK)


def chs(block: int) -> tuple[int, int]:
    """CX and DX for a block number."""
    cylinder, rest = divmod(block, HEADS * SECTORS)
    head, sector = divmod(rest, SECTORS)
    return (cylinder & 0xFF) << 8 | (cylinder >> 2 & 0xC0) | sector + 1, head << 8 | 0x80


def packet(block: int, count: int, *, segment: int = 0, offset: int = BUFFER, length: int = 16) -> bytes:
    """A disk address packet (EDD 3.0)."""
    return struct.pack("<BBHHHQ", length, 0, count, offset, segment, block)


@pytest.mark.parametrize(
    "block", [0, 1, SECTORS - 1, SECTORS, HEADS * SECTORS - 1, HEADS * SECTORS, 3 * HEADS * SECTORS - 1]
)
def test_reading_by_cylinder_head_and_sector(disk_desk: Desk, block: int) -> None:
    """Every edge of the geometry; AL keeps the count."""
    cx, dx = chs(block)
    disk_desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=cx, dx=dx)
    assert (False, 0x0001) == (disk_desk.carry, disk_desk.ax)
    assert DISK[512 * block : 512 * block + 512] == disk_desk.memory.read(BUFFER, 512)


def test_reading_many_sectors_into_a_segment(disk_desk: Desk) -> None:
    """ES counts."""
    disk_desk.cpu.set_segment(ES, Segment(0x2000, 0x2_0000, 0xFFFF, 0x9300))
    cx, dx = chs(60)
    disk_desk.interrupt(0x13, ax=0x02FF, bx=0x0010, cx=cx, dx=dx)
    assert (False, 0x00FF) == (disk_desk.carry, disk_desk.ax)
    assert DISK[512 * 60 : 512 * 315] == disk_desk.memory.read(0x2_0010, 512 * 255)


def test_writing_and_verifying(disk_desk: Desk) -> None:
    """What is written can be read; verifying moves nothing."""
    cx, dx = chs(70)
    disk_desk.memory.write(BUFFER, b"new content".ljust(512, b"."))
    disk_desk.interrupt(0x13, ax=0x0301, bx=BUFFER, cx=cx, dx=dx)
    assert disk_desk.disk is not None
    assert b"new content".ljust(512, b".") == disk_desk.disk[512 * 70 : 512 * 71]
    disk_desk.memory.write(BUFFER, bytes(512))
    assert not disk_desk.interrupt(0x13, ax=0x0401, bx=BUFFER, cx=cx, dx=dx).carry
    assert bytes(512) == disk_desk.memory.read(BUFFER, 512)
    assert len(DISK) == len(disk_desk.disk)


@pytest.mark.parametrize(
    ("ax", "cx", "dx", "status"),
    [
        (0x0201, 0x0000, 0x0080, 0x01),
        (0x0200, 0x0001, 0x0080, 0x01),
        (0x0201, 0x0001, 0x1080, 0x01),
        (0x0201, 0x0301, 0x0080, 0x04),
        (0x0202, 0x023F, 0x0F80, 0x04),
        (0x0301, 0xFFFF, 0x0F80, 0x04),
        (0x0201, 0x0001, 0x0081, 0x01),
        (0x0201, 0x0001, 0x0000, 0x01),
        (0x0501, 0x0001, 0x0080, 0x01),
    ],
    ids=[
        "sector 0", "no sectors", "head 16", "behind the end", "across the end", "write far behind",
        "second disk", "floppy", "format",
    ],
)  # fmt: skip
def test_what_a_disk_refuses(disk_desk: Desk, ax: int, cx: int, dx: int, status: int) -> None:
    """Carry and a status; no sector is moved, neither here nor there."""
    disk_desk.memory.write(BUFFER, b"untouched")
    disk_desk.interrupt(0x13, ax=ax, bx=BUFFER, cx=cx, dx=dx, flags=FAIL)
    assert (True, status) == (disk_desk.carry, disk_desk.ah)
    assert (b"untouched", DISK) == (disk_desk.memory.read(BUFFER, 9), disk_desk.disk)
    if ax >> 8 in (2, 3) and dx & 0xFF == 0x80:
        assert 0 == disk_desk.al


def test_geometry(disk_desk: Desk) -> None:
    """Last cylinder, last head, sectors a track, one drive."""
    disk_desk.interrupt(0x13, ax=0x0800, bx=0xFFFF, cx=0, dx=0x0080)
    assert (False, 0) == (disk_desk.carry, disk_desk.ah)
    assert (0x0200 | SECTORS, (HEADS - 1) << 8 | 1) == (disk_desk.cx, disk_desk.dx)


@pytest.mark.parametrize(("sectors", "last"), [(1, 0), (1007, 0), (2016, 1), (300 * 1008, 299), (1100 * 1008, 1023)])
def test_cylinders_of_disks_of_all_sizes(sectors: int, last: int) -> None:
    """At least one, at most 1024, ten bits in CH and CL."""
    desk = Desk()
    untouched = mmap.mmap(-1, 512 * sectors)  # costs nothing until somebody reads it
    desk.bios = Bios(desk.memory, desk.cpu, desk.ports.read, desk.ports.write, untouched)  # type: ignore[arg-type]
    desk.interrupt(0x13, ax=0x0800, dx=0x0080)
    assert last == (desk.ch | (desk.cl & 0xC0) << 2)


def test_disk_type(disk_desk: Desk) -> None:
    """A hard disk with that many sectors; nothing at other numbers."""
    disk_desk.interrupt(0x13, ax=0x1500, dx=0x0080)
    assert (False, 3, 3 * HEADS * SECTORS) == (disk_desk.carry, disk_desk.ah, disk_desk.cx << 16 | disk_desk.dx)
    assert 0 == disk_desk.interrupt(0x13, ax=0x1500, dx=0x0081).ah


@pytest.mark.parametrize("function", [0x00, 0x01, 0x0D, 0x11])
def test_reset_and_status_succeed(disk_desk: Desk, function: int) -> None:
    """There is nothing to go wrong."""
    disk_desk.interrupt(0x13, ax=function << 8, dx=0x0080)
    assert (False, 0) == (disk_desk.carry, disk_desk.ah)


def test_no_disk_answers_nothing() -> None:
    """A guest that was not booted from disk has none."""
    assert [True] * 4 == [
        Desk().interrupt(0x13, ax=ax, dx=0x80, flags=FAIL).carry for ax in (0x0000, 0x0201, 0x0800, 0x4100)
    ]


def test_extensions_are_present(disk_desk: Desk) -> None:
    """Packet access; only for the question with the right signature."""
    disk_desk.interrupt(0x13, ax=0x4100, bx=0x55AA, dx=0x0080)
    assert (False, 0x30, 0xAA55, 0b101) == (disk_desk.carry, disk_desk.ah, disk_desk.bx, disk_desk.cx)
    assert disk_desk.interrupt(0x13, ax=0x4100, bx=0x1234, dx=0x0080, flags=FAIL).carry


def test_extended_read_and_write(disk_desk: Desk) -> None:
    """By block number, through segment and offset of the packet."""
    disk_desk.cpu.set_segment(DS, Segment(0x50, 0x500, 0xFFFF, 0x9300))
    disk_desk.memory.write(0x600, packet(5, 2, segment=0x3000, offset=0x10))
    disk_desk.interrupt(0x13, ax=0x4200, si=0x100, dx=0x0080)
    assert (False, 0) == (disk_desk.carry, disk_desk.ah)
    assert DISK[5 * 512 : 7 * 512] == disk_desk.memory.read(0x3_0010, 1024)
    disk_desk.memory.write(0x600, packet(9, 1, segment=0x3000, offset=0x10))
    assert not disk_desk.interrupt(0x13, ax=0x4300, si=0x100, dx=0x0080).carry
    assert disk_desk.disk is not None
    assert DISK[5 * 512 : 6 * 512] == disk_desk.disk[9 * 512 : 10 * 512]
    assert not disk_desk.interrupt(0x13, ax=0x4400, si=0x100, dx=0x0080).carry


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (packet(0, 1, length=15), 0x01),
        (packet(0, 128), 0x01),
        (packet(3 * HEADS * SECTORS, 1), 0x04),
        (packet(3 * HEADS * SECTORS - 1, 2), 0x04),
        (packet((1 << 64) - 1, 1), 0x04),
        (packet(1 << 55, 127), 0x04),
    ],
    ids=["short packet", "too many", "behind the end", "across the end", "last block of all", "product overflows"],
)
def test_what_extended_reads_refuse(disk_desk: Desk, bad: bytes, status: int) -> None:
    """Nothing is moved."""
    disk_desk.memory.write(BUFFER, b"untouched")
    disk_desk.memory.write(0x600, bad)
    disk_desk.interrupt(0x13, ax=0x4200, si=0x600, dx=0x0080, flags=FAIL)
    assert (True, status, b"untouched") == (disk_desk.carry, disk_desk.ah, disk_desk.memory.read(BUFFER, 9))


def test_a_failed_packet_says_that_nothing_was_moved(disk_desk: Desk) -> None:
    """EDD: the count field holds the blocks transferred."""
    disk_desk.memory.write(0x600, packet(1 << 40, 3))
    disk_desk.interrupt(0x13, ax=0x4200, si=0x600, dx=0x0080)
    assert packet(1 << 40, 0) == disk_desk.memory.read(0x600, 16)


def test_drive_parameters(disk_desk: Desk) -> None:
    """26 bytes into a buffer that says it is large enough; a smaller one is left alone."""
    disk_desk.memory.write(BUFFER, b"\x1e\0" + b"\xaa" * 40)
    assert not disk_desk.interrupt(0x13, ax=0x4800, si=BUFFER, dx=0x0080).carry
    expected = struct.pack("<HHIIIQH", 26, 2, 3, HEADS, SECTORS, len(DISK) // 512, 512)
    assert expected + b"\xaa" == disk_desk.memory.read(BUFFER, 27)
    disk_desk.memory.write(BUFFER, b"\x19\0" + b"\xaa" * 40)
    assert disk_desk.interrupt(0x13, ax=0x4800, si=BUFFER, dx=0x0080, flags=FAIL).carry
    assert b"\x19\0" + b"\xaa" * 40 == disk_desk.memory.read(BUFFER, 42)


def test_a_disk_that_ends_within_a_sector() -> None:
    """The odd bytes cannot be read, and nothing raises."""
    desk = Desk(boot_sector(sectors=2) + b"tail")
    for sector in (1, 2):
        assert not desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=sector, dx=0x80).carry
    assert desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=3, dx=0x80, flags=FAIL).carry


# ---------------------------------------------------------------------- INT 14h 15h 19h


def test_the_serial_port(desk: Desk) -> None:
    """Sending goes to COM1; receiving gives what is there or a timeout; other ports time out."""
    desk.ports.values.update({at.COM1_BASE: 0x58, at.COM1_BASE + 5: 0x61, at.COM1_BASE + 6: 0xB0})
    assert 0 == desk.interrupt(0x14, ax=0x0141, dx=0).ah & 0x80
    assert [(at.COM1_BASE, 0x41)] == desk.ports.written
    assert 0x61B0 == desk.interrupt(0x14, ax=0x0300, dx=0).ax
    assert 0x0058 == desk.interrupt(0x14, ax=0x0200, dx=0).ax
    desk.ports.values[at.COM1_BASE + 5] = 0x60
    assert 0x80 == desk.interrupt(0x14, ax=0x0200, dx=0).ah & 0x80
    assert 0x80 == desk.interrupt(0x14, ax=0x0141, dx=1).ah & 0x80


def e820(desk: Desk, length: int = 20) -> Iterator[tuple[int, int, int]]:
    """Walk the memory map as an operating system does."""
    index = 0
    for _ in range(100):
        desk.cpu.set_gpr(EDX, 0x534D4150)
        desk.cpu.set_gpr(EBX, index)
        desk.cpu.set_gpr(ECX, length)
        desk.memory.write(BUFFER, b"\xaa" * 32)
        desk.interrupt(0x15, ax=0xE820, di=BUFFER)
        assert not desk.carry
        assert (0x534D4150, 20) == (desk.cpu.gpr(EAX), desk.cpu.gpr(ECX))
        assert b"\xaa" * 12 == desk.memory.read(BUFFER + 20, 12)
        yield struct.unpack("<QQI", desk.memory.read(BUFFER, 20))
        index = desk.cpu.gpr(EBX)
        if not index:
            return


@pytest.mark.parametrize("size", [1 << 20, 4 << 20, 64 << 20])
@pytest.mark.parametrize("length", [20, 24, 0x1000])
def test_the_memory_map_by_e820(size: int, length: int) -> None:
    """Every row once, then EBX is zero; longer buffers get 20 bytes."""
    assert [tuple(row) for row in memory_map(size)] == list(e820(Desk(size=size), length))


@pytest.mark.parametrize(
    ("signature", "index", "length"),
    [(0, 0, 20), (0x534D4150, 4, 20), (0x534D4150, 0, 19), (0x534D4150, 0xFFFF_FFFF, 20)],
)
def test_e820_refuses(desk: Desk, signature: int, index: int, length: int) -> None:
    """Without the signature, behind the last row, and into a buffer that is too small."""
    desk.cpu.set_gpr(EDX, signature)
    desk.cpu.set_gpr(EBX, index)
    desk.cpu.set_gpr(ECX, length)
    desk.memory.write(BUFFER, b"untouched")
    desk.interrupt(0x15, ax=0xE820, di=BUFFER, flags=FAIL)
    assert (True, 0x86, b"untouched") == (desk.carry, desk.ah, desk.memory.read(BUFFER, 9))


@pytest.mark.parametrize(
    ("size", "below", "above", "old"),
    [
        (1 << 20, 0, 0, 0),
        (4 << 20, 3072, 0, 3072),
        (16 << 20, 15360, 0, 15360),
        (17 << 20, 15360, 16, 16384),
        (64 << 20, 15360, 768, 0xFC00),
        (256 << 20, 15360, 3840, 0xFFFF),
    ],
)
def test_the_older_memory_sizes(size: int, below: int, above: int, old: int) -> None:
    """E801 counts KiB up to 16 MiB and 64 KiB above, twice; 88h counts KiB in 16 bits."""
    desk = Desk(size=size).interrupt(0x15, ax=0xE801)
    assert (False, below, above, below, above) == (desk.carry, desk.ax, desk.bx, desk.cx, desk.dx)
    desk.interrupt(0x15, ax=0x8800)
    assert (False, old) == (desk.carry, desk.ax)


def test_the_a20_gate(desk: Desk) -> None:
    """Always open, and closing it succeeds without an effect."""
    assert [False] * 3 == [desk.interrupt(0x15, ax=ax).carry for ax in (0x2400, 0x2401, 0x2403)]
    assert 3 == desk.bx
    assert 1 == desk.interrupt(0x15, ax=0x2402).ax


def test_bootstrap_again_resets_the_machine(desk: Desk) -> None:
    """INT 19h goes to the reset register."""
    desk.interrupt(0x19)
    assert [(at.RESET_CONTROL, 6)] == desk.ports.written


# ---------------------------------------------------------------------- INT 08h 1Ah


def test_ticks_are_counted_and_acknowledged(desk: Desk) -> None:
    """INT 8 counts; INT 1Ah reads."""
    for _ in range(3):
        desk.interrupt(8)
    assert [(at.PIC_MASTER, 0x20)] * 3 == desk.ports.written
    desk.interrupt(0x1A, ax=0x00FF)
    assert (0, 3, 0) == (desk.cx, desk.dx, desk.al)


def test_midnight(desk: Desk) -> None:
    """1,573,040 ticks make a day; the flag is given once."""
    desk.interrupt(0x1A, ax=0x0100, cx=0x0018, dx=0x00AF)
    assert 0x1800AF == desk.bda(0x6C, 4)
    desk.interrupt(8).interrupt(0x1A, ax=0)
    assert (0, 0, 1) == (desk.cx, desk.dx, desk.al)
    assert 0 == desk.interrupt(0x1A, ax=0).al


def test_ticks_beyond_16_bits(desk: Desk) -> None:
    """CX holds the high half."""
    desk.interrupt(0x1A, ax=0x0100, cx=0x0001, dx=0xFFFF)
    desk.interrupt(8).interrupt(0x1A, ax=0)
    assert (2, 0) == (desk.cx, desk.dx)


def test_the_clock_in_cmos(desk: Desk) -> None:
    """Time and date as the RTC holds them, in BCD."""
    desk.ports.cmos = {0x04: 0x13, 0x02: 0x37, 0x00: 0x59, 0x32: 0x20, 0x09: 0x24, 0x08: 0x12, 0x07: 0x31}
    desk.interrupt(0x1A, ax=0x0200)
    assert (False, 0x1337, 0x5900) == (desk.carry, desk.cx, desk.dx)
    desk.interrupt(0x1A, ax=0x0400)
    assert (False, 0x2024, 0x1231) == (desk.carry, desk.cx, desk.dx)
    assert desk.interrupt(0x1A, ax=0x0900, flags=FAIL).carry


# ---------------------------------------------------------------------- INT 09h 16h


def waits(desk: Desk, function: int = 0) -> bool:
    """Ask for a key; whether the stub has to halt and ask again."""
    desk.interrupt(0x16, ax=function << 8)
    return bool(desk.cpu.eflags() & FLAG_CF)


def keys(desk: Desk) -> list[int]:
    """Take all keys out of the buffer."""
    found: list[int] = []
    while not waits(desk):
        found.append(desk.ax)
    return found


def test_keys_go_through_the_buffer_in_order(desk: Desk) -> None:
    """Character in AL, scan code in AH; releasing a key does nothing."""
    desk.press(0x1E, 0x9E, 0x30, 0xB0, 0x1C, 0x9C, 0x01)
    assert [0x1E61, 0x3062, 0x1C0D, 0x011B] == keys(desk)
    assert 7 == len(desk.ports.written)


def test_without_a_key_the_stub_waits(desk: Desk) -> None:
    """Carry at the stub itself, not in the caller's flags."""
    assert (True, True) == (waits(desk), waits(desk, 0x10))
    assert SUCCEED == desk.flags
    desk.press(0x1E)
    assert not waits(desk, 0x10)


def test_looking_does_not_take(desk: Desk) -> None:
    """01h and 11h answer in the caller's zero flag, and the stub goes on."""
    for function in (0x01, 0x11):
        desk = Desk()
        assert (False, FLAG_ZF) == (waits(desk, function), desk.flags & FLAG_ZF)
        desk.press(0x1E)
        for _ in range(2):
            assert (False, 0, 0x1E61) == (waits(desk, function), desk.flags & FLAG_ZF, desk.ax)
        assert [0x1E61] == keys(desk)


def test_shift_control_and_the_locks(desk: Desk) -> None:
    """Held keys change what comes and show in the shift flags; locks toggle."""
    desk.press(0x2A, 0x1E, 0x02, 0xAA, 0x36, 0x1E, 0xB6)
    assert [0x1E41, 0x0221, 0x1E41] == keys(desk)
    desk.press(0x1D, 0x2E, 0x1E, 0x2C, 0x02, 0x29, 0x9D)
    assert [0x2E03, 0x1E01, 0x2C1A, 0x0231, 0x2960] == keys(desk)
    desk.press(0x3A, 0xBA, 0x1E, 0x02, 0x2A, 0x1E, 0xAA, 0x3A, 0x1E)
    assert [0x1E41, 0x0231, 0x1E61, 0x1E61] == keys(desk)
    for code, flag in ((0x2A, 2), (0x36, 1), (0x1D, 4), (0x38, 8)):
        desk.press(code)
        assert flag == desk.interrupt(0x16, ax=0x0200).al
        desk.press(code | 0x80)
        assert 0 == desk.interrupt(0x16, ax=0x1200).al
    desk.press(0x45)
    assert 0x20 == desk.interrupt(0x16, ax=0x0200).al
    assert [] == keys(desk)


def test_keys_without_a_character(desk: Desk) -> None:
    """F1 and the arrows give zero and their scan code."""
    desk.press(0x3B, 0xE0, 0x48)
    assert [0x3B00, 0x4800] == keys(desk)


def test_the_buffer_holds_fifteen_keys_and_wraps(desk: Desk) -> None:
    """One place stays free; what does not fit is lost, what was there is not."""
    for round_number in range(5):
        desk.press(*range(0x02, 0x0C), *range(0x10, 0x1A))
        taken = keys(desk)
        assert [*range(0x02, 0x0C), *range(0x10, 0x15)] == [key >> 8 for key in taken], round_number


@pytest.mark.parametrize("vector", sorted({*range(8, 0x1B), 0x70, 0xFF}))
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_caller_can_make_a_service_raise(vector: int, data: st.DataObject) -> None:
    """Any registers, any segments, any BIOS data area; and the stub's own frame is all that is certain to be used."""
    desk = Desk(DISK[: 512 * 100], size=1 << 20)
    word = st.integers(0, 0xFFFF_FFFF)
    desk.memory.write(BDA, data.draw(st.binary(min_size=256, max_size=256)))
    desk.ports.keys = data.draw(st.lists(st.integers(0, 255), max_size=3))
    functions = st.one_of(word, st.integers(0, 0x4F).map(lambda value: value << 8), st.sampled_from((0xE820, 0xE801)))
    for name, register in REGISTERS.items():
        desk.cpu.set_gpr(register, data.draw(functions if name == "ax" else word))
    desk.cpu.set_gpr(EDX, data.draw(st.one_of(word, st.sampled_from((0x80, 0x534D4150)))))
    for index in (DS, ES, SS):
        selector = data.draw(st.integers(0, 0xFFFF))
        desk.cpu.set_segment(index, Segment(selector, selector << 4, 0xFFFF, 0x9300))
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * vector, 4))
    desk.cpu.set_segment(CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
    desk.cpu.set_eip(offset)
    desk.cpu.set_gpr(ESP, data.draw(word))
    desk.bios.call()
    assert desk.disk is not None
    assert 512 * 100 == len(desk.disk)
    assert all(0 <= value <= 0xFFFF_FFFF for value in desk.cpu.gprs)
