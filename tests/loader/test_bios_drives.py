"""INT 13h: hard disks and CD-ROMs as a boot loader reaches them."""

import struct

import pytest

from hvemu.cpu.state import (
    DS,
    ES,
    Segment,
)
from hvemu.devices.images.memory import MemoryMedium
from hvemu.loader.bios import HEADS, SECTORS, Bios

from .bios_desk import BUFFER, FAIL, Desk
from .images import boot_sector, cdrom

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
    untouched = MemoryMedium(b"")
    untouched.size = 512 * sectors
    desk.bios = Bios(desk.memory, desk.cpu, desk.ports.read, desk.ports.write, [untouched])
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


def test_a_cdrom_has_sectors_of_2048_bytes_and_no_geometry() -> None:
    """Drive E0h: packets and parameters; nothing by cylinder, and nothing is written."""
    image = cdrom(b"a program")
    desk = Desk(DISK, disc=image)
    desk.interrupt(0x13, ax=0x4100, bx=0x55AA, dx=0x00E0)
    assert (False, 0x30, 0xAA55, 0b101) == (desk.carry, desk.ah, desk.bx, desk.cx)
    desk.memory.write(0x600, packet(19, 2, segment=0x3000, offset=0x10))
    assert not desk.interrupt(0x13, ax=0x4200, si=0x600, dx=0x00E0).carry
    assert image[19 * 2048 : 21 * 2048] == desk.memory.read(0x3_0010, 4096)
    assert not desk.interrupt(0x13, ax=0x4400, si=0x600, dx=0x00E0).carry
    for ax, status in ((0x4300, 0x03), (0x0201, 0x01), (0x0800, 0x01), (0x1500, 0x01)):
        desk.interrupt(0x13, ax=ax, si=0x600, cx=1, dx=0x00E0, flags=FAIL)
        assert (True, status) == (desk.carry, desk.ah)
    desk.memory.write(0x600, packet(23, 2))
    assert desk.interrupt(0x13, ax=0x4200, si=0x600, dx=0x00E0, flags=FAIL).carry
    desk.memory.write(BUFFER, b"\x1a\0")
    assert not desk.interrupt(0x13, ax=0x4800, si=BUFFER, dx=0x00E0).carry
    assert struct.pack("<HHIIIQH", 26, 4, 0, 0, 0, 24, 2048) == desk.memory.read(BUFFER, 26)
    assert not desk.interrupt(0x13, ax=0x0000, dx=0x00E0).carry
    assert desk.interrupt(0x13, ax=0x0000, dx=0x00E1, flags=FAIL).carry


def test_a_boot_loader_asks_what_it_was_booted_from() -> None:
    """Function 4B01h gives the specification packet of El Torito; a CD-ROM without a boot catalog has none."""
    desk = Desk(disc=cdrom(segment=0x1000, count=6))
    assert not desk.interrupt(0x13, ax=0x4B01, si=BUFFER, dx=0x00E0).carry
    expected = struct.pack("<BBBBIHHHHBBB", 19, 0, 0xE0, 0, 19, 0, 0, 0x1000, 6, 0, 0, 0)
    assert expected == desk.memory.read(BUFFER, 19)
    assert desk.interrupt(0x13, ax=0x4B02, si=BUFFER, dx=0x00E0, flags=FAIL).carry
    assert Desk(disc=bytes(2048 * 20)).interrupt(0x13, ax=0x4B01, si=BUFFER, dx=0x00E0, flags=FAIL).carry


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
    """The odd bytes are in a sector that ends with zeros."""
    desk = Desk(boot_sector(sectors=2) + b"tail")
    for sector in (1, 2, 3):
        assert not desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=sector, dx=0x80).carry
    assert b"tail".ljust(512, b"\0") == desk.memory.read(BUFFER, 512)
    assert desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=4, dx=0x80, flags=FAIL).carry


def test_every_disk_has_a_number() -> None:
    """80h is the first, and each says how many there are."""
    desk = Desk(boot_sector(sectors=2))
    desk.disks.append(MemoryMedium(boot_sector(sectors=1)[:500] + b"second disk!"))
    assert not desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x81).carry
    assert b"second disk!" == desk.memory.read(BUFFER + 500, 12)
    desk.interrupt(0x13, ax=0x0800, dx=0x0080)
    assert 2 == desk.dx & 0xFF
    assert desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x82, flags=FAIL).carry


def test_a_disk_that_fails_or_is_write_protected_is_an_error_code() -> None:
    """Controller failure, and write-protected."""
    desk = Desk(boot_sector(sectors=2))
    medium = desk.disks[0]
    medium.read_only = True
    assert 0x03 == desk.interrupt(0x13, ax=0x0301, bx=BUFFER, cx=1, dx=0x80, flags=FAIL).ah
    medium.size = 4096  # and there is nothing
    assert not desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x80).carry

    def fail(offset: int, length: int) -> bytes:
        raise OSError

    medium.read = fail  # type: ignore[method-assign]
    assert 0x20 == desk.interrupt(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x80, flags=FAIL).ah
