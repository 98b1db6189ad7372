"""Multiboot kernels: where they land, how they start, and what they are told."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from hvemu.cpu.state import CS, DS, EAX, EBX, ES, FS, GS, SS, VirtualCpu, segment_from_descriptor
from hvemu.loader import firmware
from hvemu.loader.contract import memory_map
from hvemu.loader.elf import load_segments
from hvemu.loader.multiboot import find_header
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE, HIGH_MEMORY

from .images import GUESTS, boot, elf, elf64, kernel_elf, multiboot_header, ram


class Information(NamedTuple):
    """The multiboot information structure (section 3.3), as a kernel would read it."""

    flags: int
    lower: int
    upper: int
    command_line: str
    modules: list[tuple[int, int, str]]
    memory_map: list[tuple[int, int, int]]
    loader: str


def text_at(memory: GuestPhysicalMemory, address: int) -> str:
    """A string that ends with a zero."""
    return memory.read(address, 0x10000).split(b"\0", 1)[0].decode()


def information(memory: GuestPhysicalMemory, cpu: VirtualCpu) -> Information:
    """Read everything that EBX leads to."""
    at = cpu.gpr(EBX)
    flags, lower, upper, _, line, count, modules = struct.unpack("<7I", memory.read(at, 28))
    length, rows = struct.unpack("<II", memory.read(at + 44, 8))
    name = memory.read_u32(at + 64)
    found, map_rows, end = [], [], rows + length
    for index in range(count):
        start, stop, text, _ = struct.unpack("<IIII", memory.read(modules + 16 * index, 16))
        found.append((start, stop, text_at(memory, text)))
    while rows < end:
        size, base, extent, kind = struct.unpack("<IQQI", memory.read(rows, 24))
        map_rows.append((base, extent, kind))
        rows += size + 4
    return Information(flags, lower, upper, text_at(memory, line), found, map_rows, text_at(memory, name))


def test_the_machine_state_of_section_3_2() -> None:
    """Magic in EAX, flat segments, protected mode without paging, interrupts off; the GDT agrees with the segments."""
    memory = ram()
    cpu = boot(kernel_elf(), memory=memory)
    assert (0x2BADB002, 0x10_0000, 2) == (cpu.gpr(EAX), cpu.eip(), cpu.eflags())
    assert (1, 0, 0) == (cpu.cr0 & 0x8000_0001, cpu.cr4, cpu.cpl())
    for index in (ES, CS, SS, DS, FS, GS):
        segment = cpu.segment(index)
        assert (0, 0xFFFF_FFFF) == (segment.base, segment.limit)
        descriptor = memory.read_u64(cpu.gdtr.base + (segment.selector & ~7))
        assert segment == segment_from_descriptor(segment.selector, descriptor)
        assert (segment.selector & ~7) + 7 <= cpu.gdtr.limit


def test_information_without_extras() -> None:
    """Flags say what there is: memory, command line, modules, map, name."""
    memory = ram()
    told = information(memory, boot(kernel_elf(), memory=memory))
    assert 0b10_0100_1101 == told.flags
    assert (639, 3 * 1024) == (told.lower, told.upper)
    assert ("image", [], "hvemu") == (told.command_line, told.modules, told.loader)
    assert [tuple(row) for row in memory_map(4 << 20)] == told.memory_map


@pytest.mark.parametrize("size", [1 << 20, 2 << 20, 64 << 20])
def test_the_memory_map_covers_all_ram_once(size: int) -> None:
    """Rows rise without overlap; what is usable is RAM that no firmware has."""
    rows = memory_map(size)
    assert all(row.base + row.length <= following.base for row, following in pairwise(rows))
    usable = [(row.base, row.base + row.length) for row in rows if row.kind == 1]
    expected = [(0, EBDA_BASE)] + ([(HIGH_MEMORY, size)] if size > HIGH_MEMORY else [])
    assert expected == usable


def test_command_line_and_modules() -> None:
    """The image's name comes first; modules lie on pages behind the kernel, each with its own text."""
    memory = ram()
    modules = (("first.bin with words", b"A" * 5000), ("second", b"BB"))
    told = information(memory, boot(kernel_elf(), memory=memory, append="-v x=1", modules=modules, initrd=b"CCC"))
    assert "image -v x=1" == told.command_line
    assert ["first.bin with words", "second", "initrd"] == [text for _, _, text in told.modules]
    assert [b"A" * 5000, b"BB", b"CCC"] == [memory.read(start, stop - start) for start, stop, _ in told.modules]
    assert [0x10_2000, 0x10_4000, 0x10_5000] == [start for start, _, _ in told.modules]


def test_a_module_that_does_not_fit_is_named() -> None:
    """Beyond RAM there is nothing to put it into."""
    with pytest.raises(UserError, match="Module big does not fit"):
        boot(kernel_elf(), modules=(("big", bytes(3 << 20)),))


def test_a_module_may_fill_memory_to_its_end() -> None:
    """The last byte is RAM, too."""
    boot(kernel_elf(), modules=(("large", bytes((4 << 20) - 0x10_2000)),))
    with pytest.raises(UserError, match="Module large does not fit"):
        boot(kernel_elf(), modules=(("large", bytes((4 << 20) - 0x10_2000 + 1)),))


def test_64_modules_are_enough() -> None:
    """Their rows have a page of their own; more are refused."""
    memory = ram()
    modules = tuple((f"module{index}", bytes((index,))) for index in range(64))
    told = information(memory, boot(kernel_elf(), memory=memory, modules=modules))
    assert list(modules) == [(text, memory.read(start, stop - start)) for start, stop, text in told.modules]
    with pytest.raises(UserError, match="65 modules"):
        boot(kernel_elf(), modules=(*modules, ("one too many", b"")))


def test_long_texts_are_refused_before_they_reach_the_firmware() -> None:
    """Command lines and names live below the extended BIOS data area."""
    with pytest.raises(UserError, match="too long for low memory"):
        boot(kernel_elf(), modules=tuple(("x" * 20_000, b"") for _ in range(40)))


def test_an_elf_is_placed_at_its_physical_addresses() -> None:
    """File bytes, then zeros, each segment where it says; the rest of memory is left alone."""
    memory = ram()
    memory.write(0x10_0000, b"\xaa" * 0x30_0000)
    boot(
        elf((0x1000, 0xC010_0000, 0x10_0000, 16, 32), (0x1010, 0xC020_0000, 0x20_0000, 8, 8), entry=0xC010_0004),
        memory=memory,
    )
    assert bytes(range(16)) + bytes(16) + b"\xaa" == memory.read(0x10_0000, 33)
    assert b"\xaa" + bytes(range(16, 24)) + b"\xaa" == memory.read(0x1F_FFFF, 10)


def test_only_what_is_to_be_loaded_is_loaded() -> None:
    """Notes, stack hints and empty segments say nothing about memory."""
    memory = ram()
    image = bytearray(elf((0x1000, 0x10_0000, 0x10_0000, 16, 16), *[(0x1000, 0x20_0000, 0x20_0000, 16, 16)] * 3))
    for row, kind in ((1, 4), (2, 0x6474E551)):
        struct.pack_into("<I", image, 52 + 32 * row, kind)
    struct.pack_into("<II", image, 52 + 32 * 3 + 16, 0, 0)
    boot(bytes(image), memory=memory)
    assert (bytes(range(16)), bytes(16)) == (memory.read(0x10_0000, 16), memory.read(0x20_0000, 16))


def test_an_elf64_starts_in_32_bit_code() -> None:
    """Linked at the top of the address space, it is placed and entered at its physical addresses, as an ELF32 is."""
    memory = ram()
    high = 0xFFFF_FFFF_8000_0000
    cpu = boot(elf64((0x1000, high + 0x10_0000, 0x10_0000, 16, 32), entry=high + 0x10_0004), memory=memory)
    assert (0x10_0004, 32) == (cpu.eip(), cpu.bits())
    assert bytes(range(16)) + bytes(16) == memory.read(0x10_0000, 32)


def test_an_elf64_that_32_bit_code_cannot_enter_is_refused() -> None:
    """Its entry lies in no segment and above 4 GiB."""
    with pytest.raises(UserError, match="starts at 0x100000000"):
        boot(elf64((0x1000, 0x10_0000, 0x10_0000, 16, 16), entry=1 << 32))
    with pytest.raises(UserError, match="wants memory up to 0x100000010"):
        boot(elf64((0x1000, 0x10_0000, 1 << 32, 16, 16)))


@pytest.mark.parametrize(
    ("virtual", "physical", "entry", "expected"),
    [
        (0x10_0000, 0x10_0000, 0x10_0010, 0x10_0010),
        (0xC010_0000, 0x10_0000, 0xC010_0010, 0x10_0010),
        (0xC010_0000, 0x10_0000, 0x10_0010, 0x10_0010),
        (0xC010_0000, 0x10_0000, 0x20_0000, 0x20_0000),
    ],
    ids=["linked at its place", "linked high", "linked high, entry physical", "entry in no segment"],
)
def test_where_a_kernel_is_entered(virtual: int, physical: int, entry: int, expected: int) -> None:
    """At the physical address of its entry, however that is stated."""
    assert expected == boot(elf((0x1000, virtual, physical, 64, 64), entry=entry)).eip()


def test_addresses_in_the_header_need_no_elf() -> None:
    """Flag 16: the image is loaded from the header on, back to the load address; the bss is cleared."""
    memory = ram()
    memory.write(0x10_0000, b"\xaa" * 0x1000)
    header = multiboot_header(0x1_0000, 0x10_0008, 0x10_0000, 0x10_0030, 0x10_0040, 0x10_0028)
    image = b"skip" + b"12345678" + header + b"code" * 64
    cpu = boot(image, memory=memory)
    assert 0x10_0028 == cpu.eip()
    assert image[4 : 4 + 0x30] + bytes(16) + b"\xaa" == memory.read(0x10_0000, 0x41)


@pytest.mark.parametrize(
    "addresses",
    [
        (0x10_0000, 0x10_0001, 0, 0),
        (0x10_0001, 0x10_0000, 0, 0),
        (0x10_0000, 0x10_0000, 0x0F_FFFF, 0),
        (0x10_0000, 0x10_0000, 0x10_0101, 0),
        (0x10_0000, 0, 0, 0),
    ],
    ids=["loaded behind the header", "begins before the file", "ends before it begins", "ends behind the file", "far"],
)
def test_addresses_that_contradict_the_file(addresses: tuple[int, int, int, int]) -> None:
    """Each is refused."""
    image = multiboot_header(0x1_0000, *addresses, 0x10_0020).ljust(0x100, b"x")
    with pytest.raises(UserError, match="inconsistent multiboot addresses"):
        boot(image)


def test_a_file_may_be_nothing_but_its_header() -> None:
    """And modules follow its bss."""
    memory = ram()
    image = multiboot_header(0x1_0000, 0x10_0000, 0x10_0000, 0x10_0020, 0x10_1001, 0x10_0000)
    told = information(memory, boot(image, memory=memory, initrd=b"I"))
    assert [(0x10_2000, 0x10_2001, "initrd")] == told.modules


def test_addresses_of_zero_mean_the_whole_file_and_no_bss() -> None:
    """Load end 0 and bss end 0 (section 3.1.3)."""
    memory = ram()
    image = multiboot_header(0x1_0000, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020) + b"everything else"
    boot(image, memory=memory)
    assert image + b"\0" == memory.read(0x10_0000, len(image) + 1)


def test_the_header_is_found_in_the_first_8_kib_only() -> None:
    """At a multiple of four, whole, and with a right checksum (section 3.1)."""
    header = multiboot_header()
    assert 0 == find_header(header)
    assert 8180 == find_header(bytes(8180) + header + bytes(100))
    assert find_header(bytes(8184) + header + bytes(100)) is None
    assert find_header(bytes(2) + header) is None
    assert find_header(header[:11]) is None
    assert find_header(header[:8] + b"\1" + header[9:]) is None


def test_the_firmware_survives_loading() -> None:
    """What the firmware left below 1 MiB is still there, except in the memory that loaders use."""
    memory, alone = ram(), ram()
    for each in (memory, alone):
        firmware.install(each)
    boot(kernel_elf(), memory=memory, append="x" * 100)
    assert alone.read(0, 0x800) == memory.read(0, 0x800)
    assert alone.read(EBDA_BASE, HIGH_MEMORY - EBDA_BASE) == memory.read(EBDA_BASE, HIGH_MEMORY - EBDA_BASE)


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*/*.elf")), ids=lambda path: path.stem)
def test_every_guest_reads_as_elf(path: Path) -> None:
    """The reader agrees with the library on segments and entry."""
    from elftools.elf.elffile import ELFFile

    segments, entry = load_segments(path.read_bytes(), path.name, allow_64_bit=True)
    with path.open("rb") as file:
        elf_file = ELFFile(file)
        rows = [row.header for row in elf_file.iter_segments() if row.header["p_type"] == "PT_LOAD"]
        expected = [
            (row["p_offset"], row["p_vaddr"], row["p_paddr"], row["p_filesz"], row["p_memsz"])
            for row in rows
            if row["p_memsz"]
        ]
        assert elf_file.header["e_entry"] == entry
    assert expected == [segment[1:6] for segment in segments]
