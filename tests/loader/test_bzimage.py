"""Linux images by the 32-bit boot protocol: zero page, memory map, command line, initrd."""

import struct

import pytest

from hvemu.cpu.state import CS, DS, EBP, EBX, EDI, ES, ESI, SS
from hvemu.loader import firmware
from hvemu.loader.contract import memory_map
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE, HIGH_MEMORY

from .images import boot, bzimage, ram

ZERO_PAGE = 0x9_0000


def word(memory: GuestPhysicalMemory, offset: int, layout: str = "<I") -> int:
    """A field of the zero page."""
    return int(struct.unpack(layout, memory.read(ZERO_PAGE + offset, struct.calcsize(layout)))[0])


def test_the_state_that_the_protocol_demands() -> None:
    """Flat segments 0x10 and 0x18, interrupts off, ESI at the zero page, EBP EDI EBX zero, paging off."""
    cpu = boot(bzimage())
    assert 0x10_0000 == cpu.eip()
    assert (ZERO_PAGE, 0, 0, 0) == (cpu.gpr(ESI), cpu.gpr(EBP), cpu.gpr(EDI), cpu.gpr(EBX))
    assert [0x10, 0x18, 0x18, 0x18] == [cpu.segment(index).selector for index in (CS, DS, ES, SS)]
    assert (1, 0) == (cpu.cr0 & 0x8000_0001, cpu.eflags() & 0x200)


@pytest.mark.parametrize("setup_sectors", [0, 1, 4, 30, 255])
def test_the_kernel_follows_its_setup_sectors(setup_sectors: int) -> None:
    """Zero means four."""
    memory = ram()
    image = bzimage(setup_sectors=setup_sectors or 4, payload=b"KERNEL" * 400)
    if setup_sectors == 0:
        image = image[:0x1F1] + b"\0" + image[0x1F2:]
    boot(image, memory=memory)
    assert b"KERNEL" * 400 + b"\0" == memory.read(0x10_0000, 2401)


def test_a_kernel_may_say_where_it_goes() -> None:
    """code32_start is both the load address and the entry."""
    memory = ram()
    assert 0x20_0000 == boot(bzimage(start=0x20_0000, payload=b"K" * 16), memory=memory).eip()
    assert b"K" * 16 == memory.read(0x20_0000, 16)


def test_the_zero_page_repeats_the_header_and_says_who_loaded() -> None:
    """The header up to its own end and nothing else of the setup code; loader type FF, heap usable."""
    memory = ram()
    image = bytearray(bzimage())
    image[0x1F0] = image[0x268] = 0x77
    boot(bytes(image), memory=memory)
    header = bytearray(image[0x1F1:0x268])
    header[0x210 - 0x1F1] = 0xFF
    header[0x211 - 0x1F1] = 0x81
    header[0x224 - 0x1F1 : 0x226 - 0x1F1] = b"\x00\xfe"
    header[0x228 - 0x1F1 : 0x22C - 0x1F1] = (0x9_2000).to_bytes(4, "little")
    assert bytes(header) + b"\0" == memory.read(ZERO_PAGE + 0x1F1, len(header) + 1)
    assert 0 == word(memory, 0x1F0, "<B")


@pytest.mark.parametrize("size", [2 << 20, 4 << 20, 64 << 20, 256 << 20])
def test_the_memory_is_described_three_ways(size: int) -> None:
    """E820 rows, and the two older counts of KiB above 1 MiB."""
    memory = ram(size)
    boot(bzimage(), memory=memory)
    count = word(memory, 0x1E8, "<B")
    rows = [struct.unpack("<QQI", memory.read(ZERO_PAGE + 0x2D0 + 20 * row, 20)) for row in range(count)]
    assert [tuple(row) for row in memory_map(size)] == rows
    extended = (size - HIGH_MEMORY) >> 10
    assert (extended, min(extended, 0xFFFF)) == (word(memory, 0x1E0), word(memory, 0x02, "<H"))


def test_the_screen_is_80_by_25_colour_text() -> None:
    """screen_info: mode 3, columns, lines, VGA, character height."""
    memory = ram()
    boot(bzimage(), memory=memory)
    assert [3, 80, 25, 1, 16] == [word(memory, offset, "<B") for offset in (0x06, 0x07, 0x0E, 0x0F, 0x10)]


def test_the_command_line_ends_with_a_zero() -> None:
    """And the header points at it."""
    memory = ram()
    boot(bzimage(), memory=memory, append="console=ttyS0 root=/dev/ram")
    assert b"console=ttyS0 root=/dev/ram\0" == memory.read(word(memory, 0x228), 28)


@pytest.mark.parametrize(
    ("version", "stated", "length", "fits"),
    [
        (0x0202, 0, 255, True),
        (0x0202, 0, 256, False),
        (0x0205, 2048, 256, False),
        (0x0206, 2047, 2047, True),
        (0x0206, 2047, 2048, False),
    ],
)
def test_the_longest_command_line(version: int, stated: int, length: int, fits: bool) -> None:
    """255 bytes up to protocol 2.05; since then the header says."""
    image = bzimage(version=version, command_line_size=stated)
    if fits:
        boot(image, append="x" * length)
    else:
        with pytest.raises(UserError, match=f"has {length} bytes, image takes"):
            boot(image, append="x" * length)


def test_the_initrd_lies_as_high_as_memory_and_kernel_allow() -> None:
    """On a page boundary, below initrd_addr_max."""
    memory = ram()
    boot(bzimage(), memory=memory, initrd=b"I" * 5000)
    assert (0x3F_E000, 5000) == (word(memory, 0x218), word(memory, 0x21C))
    assert b"I" * 5000 == memory.read(0x3F_E000, 5000)
    boot(bzimage(highest_initrd=0x2F_FFFF), memory=memory, initrd=b"I" * 5000)
    assert 0x2F_E000 == word(memory, 0x218)


def test_without_an_initrd_the_header_says_so() -> None:
    """Address and size are zero, whatever the image's own header held."""
    memory = ram()
    image = bytearray(bzimage())
    image[0x218:0x220] = b"\xff" * 8
    boot(bytes(image), memory=memory)
    assert (0, 0) == (word(memory, 0x218), word(memory, 0x21C))


@pytest.mark.parametrize("needed", [0x1000, 0x20_0000])
def test_an_initrd_on_the_kernel_is_refused(needed: int) -> None:
    """The kernel needs init_size bytes to unpack itself, not just its own length."""
    initrd = bytes(0x2F_0000 - needed)
    boot(bzimage(initial_size=needed), initrd=initrd)
    with pytest.raises(UserError, match="initrd does not fit"):
        boot(bzimage(initial_size=needed), initrd=initrd + bytes(0x1_0001))


def test_a_kernel_may_fill_memory_to_its_end() -> None:
    """With what it needs to unpack itself, not a byte more."""
    boot(bzimage(initial_size=0x30_0000))
    with pytest.raises(UserError, match="Start with more --memory"):
        boot(bzimage(initial_size=0x30_0001))


@pytest.mark.parametrize(("version", "missing", "whole"), [(0x0204, 15, True), (0x0204, 16, False), (0x0203, 64, True)])
def test_the_length_of_the_kernel_is_checked(version: int, missing: int, whole: bool) -> None:
    """It is counted in paragraphs of 16 bytes, the last of which may be cut; protocol 2.04 made the field wide."""
    image = bzimage(version=version, payload=bytes(0x1000))[:-missing]
    if whole:
        boot(image)
    else:
        with pytest.raises(UserError, match="is truncated: 4080 of 4096 bytes"):
            boot(image)


def test_init_size_counts_since_protocol_2_10() -> None:
    """Before, that field was something else."""
    boot(bzimage(version=0x0209, initial_size=0x7000_0000))
    with pytest.raises(UserError, match="needs 1793 MiB"):
        boot(bzimage(version=0x020A, initial_size=0x7000_0000))


def test_the_firmware_survives_loading() -> None:
    """Interrupt vectors, BIOS data, EBDA and ROM area are as before."""
    memory, alone = ram(), ram()
    for each in (memory, alone):
        firmware.install(each)
    boot(bzimage(command_line_size=4000), memory=memory, append="x" * 4000)
    assert alone.read(0, 0x800) == memory.read(0, 0x800)
    assert alone.read(EBDA_BASE, HIGH_MEMORY - EBDA_BASE) == memory.read(EBDA_BASE, HIGH_MEMORY - EBDA_BASE)
