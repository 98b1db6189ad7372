"""Whatever a file holds, loading it works or ends in one sentence for the user; never in anything else."""

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import VirtualCpu
from hvemu.loader.contract import MAXIMUM_IMAGE, read_file
from hvemu.loader.select import LOADERS, detect
from hvemu.machine.builder import build, read_images
from hvemu.machine.configuration import MachineConfiguration
from hvemu.vocabulary.errors import UserError

from .images import GUESTS, boot, boot_sector, bzimage, elf, elf64, kernel_elf, multiboot_header

HELLO = (GUESTS / "01_hello" / "hello.elf").read_bytes()
REAL_MODE = (GUESTS / "14_realmode_boot" / "boot.img").read_bytes()
ALL_LOADERS = ("auto", *LOADERS)
LONGEST_SECONDS = 2.0
MOST_BYTES = 32 << 20

every_loader = st.sampled_from(ALL_LOADERS)
words = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.sampled_from((0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_F000, 0x10_0000, 0x3F_FFFF, 0x40_0000)),
)
halves = st.one_of(st.integers(0, 0xFFFF), st.sampled_from((0, 1, 31, 32, 33, 52, 256, 257, 0xFFFF)))


def loads_or_tells(image: bytes, loader: str, **more: Any) -> str:
    """Load an image; the sentence that the user reads, or nothing when it is ready to run."""
    began = time.process_time()
    sentence = ""
    try:
        assert isinstance(boot(image, loader, **more), VirtualCpu)
    except UserError as error:
        sentence = str(error) if error.hint else f"{error} lacks what to do"
    assert time.process_time() - began < LONGEST_SECONDS
    assert sentence == "" or sentence.endswith(".")
    assert sentence.isprintable()
    return sentence


@settings(deadline=None)
@given(st.binary(max_size=16384), every_loader)
@example(b"", "flat")
@example(b"", "disk")
@example(b"\x7fELF", "auto")
@example(b"\x7fELF" + bytes(64), "multiboot")
def test_random_bytes(image: bytes, loader: str) -> None:
    """Noise of any length, for every loader."""
    loads_or_tells(image, loader)


@settings(deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 8191), every_loader)
def test_noise_with_a_multiboot_header_in_it(noise: bytes, at: int, loader: str) -> None:
    """The header is found, and what it promises is not there."""
    loads_or_tells(noise.ljust(at & ~3, b"\0") + multiboot_header() + noise, loader)


def changed(image: bytes, edits: list[tuple[int, int]], length: int) -> bytes:
    """``image`` with bytes replaced, then cut off."""
    data = bytearray(image)
    for at, value in edits:
        data[at % len(data)] = value
    return bytes(data[:length])


edits_near_the_front = st.lists(st.tuples(st.integers(0, 0x1100), st.integers(0, 255)), max_size=12)
edits_in_the_headers = st.lists(st.tuples(st.integers(0, 180), st.integers(0, 255)), max_size=4)


@settings(deadline=None)
@given(edits_near_the_front, edits_in_the_headers, st.integers(0, len(HELLO)), st.booleans(), every_loader)
def test_a_kernel_with_random_bytes_changed_and_cut_off_anywhere(
    edits: list[tuple[int, int]], headers: list[tuple[int, int]], length: int, whole: bool, loader: str
) -> None:
    """Byte edits and truncation of a guest that is known to boot."""
    loads_or_tells(changed(HELLO, edits + headers, len(HELLO) if whole else length), loader)


@settings(deadline=None)
@given(
    st.lists(st.tuples(words, words, words, words, words), max_size=8),
    st.fixed_dictionaries(
        {"entry": words, "table": words},
        optional={
            "rows": halves,
            "row_size": halves,
            "machine": st.sampled_from((0, 2, 3, 8, 40, 62, 183, 243, 0xFFFF)),
            "kind": st.integers(0, 5),
            "bits": st.integers(0, 3),
            "order": st.integers(0, 3),
        },
    ),
    st.booleans(),
)
def test_elf_headers_with_absurd_fields(
    segments: list[tuple[int, int, int, int, int]], fields: dict[str, Any], sane_table: bool
) -> None:
    """Any number in any field."""
    if sane_table:
        fields["table"] = 52
    loads_or_tells(elf(*segments, **fields), "auto")


@settings(deadline=None)
@given(words, words, words, words, words, st.integers(0, 0xFFFF_FFFF), st.integers(0, 200))
def test_multiboot_addresses_with_absurd_values(
    header: int, load: int, load_end: int, bss_end: int, entry: int, flags: int, cut: int
) -> None:
    """The kludge of section 3.1.3, which states where to load without an ELF header."""
    image = multiboot_header((flags & 0xFFFF_0000) | 0x1_0000, header, load, load_end, bss_end, entry) + bytes(256)
    loads_or_tells(image[: len(image) - cut], "multiboot")
    loads_or_tells(multiboot_header(flags, header, load, load_end, bss_end, entry), "auto")


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "version": halves,
            "setup_sectors": st.integers(0, 255),
            "load_flags": st.integers(0, 255),
            "start": words,
            "command_line_size": words,
            "highest_initrd": words,
            "initial_size": words,
            "paragraphs": words,
            "extended_flags": halves,
            "jump": st.integers(0, 255),
        },
    ),
    st.lists(st.tuples(st.integers(0x1F0, 0x2A0), st.integers(0, 255)), max_size=6),
    st.integers(0, 1 << 16),
    st.booleans(),
    st.binary(max_size=64),
    st.text(max_size=64),
)
def test_bzimage_headers_with_absurd_fields(
    fields: dict[str, Any], edits: list[tuple[int, int]], length: int, whole: bool, initrd: bytes, append: str
) -> None:
    """Any number in any field of the setup header, cut off anywhere, with and without an initrd."""
    image = bzimage(**fields)
    image = changed(image, edits, len(image) if whole else length)
    loads_or_tells(image, "auto", initrd=initrd, append=append)
    loads_or_tells(image, "bzimage", initrd=initrd, append=append)


@settings(deadline=None)
@given(edits_near_the_front, st.integers(0, len(REAL_MODE)), every_loader)
def test_a_disk_with_random_bytes_changed_and_cut_off_anywhere(
    edits: list[tuple[int, int]], length: int, loader: str
) -> None:
    """A boot sector is loaded or refused."""
    loads_or_tells(changed(REAL_MODE, edits, length), loader)


@settings(deadline=None)
@given(st.text(max_size=5000), st.lists(st.tuples(st.text(max_size=80), st.binary(max_size=64)), max_size=70))
def test_command_lines_and_modules_of_any_kind(append: str, modules: list[tuple[str, bytes]]) -> None:
    """Text with surrogates, zeros and nonsense; too many modules."""
    loads_or_tells(kernel_elf(), "multiboot", append=append, modules=tuple(modules))
    loads_or_tells(bzimage(command_line_size=1 << 20), "bzimage", append=append)


def test_a_command_line_for_bzimage_stays_below_the_firmware() -> None:
    """Even when the kernel's header takes any length."""
    kernel = bzimage(command_line_size=0xFFFF_FFFF)
    assert "Shorten --append." in loads_or_tells(kernel, "bzimage", append="x" * 0xE000)


@pytest.mark.parametrize("load_address", [0, 0x7FF, 0x81F, 0x820, 0x9F000, 0x3F_FFFF, 0x40_0000, 0xFFFF_FFFF])
def test_flat_images_at_any_address(load_address: int) -> None:
    """Loaded exactly, or refused; never over the descriptor table that they start with."""
    expected = {
        0: "descriptor table",
        0x7FF: "descriptor table",
        0x81F: "descriptor table",
        0x3F_FFFF: "does not fit",
        0x40_0000: "does not fit",
        0xFFFF_FFFF: "does not fit",
    }
    sentence = loads_or_tells(b"\xf4" * 4096, "flat", load_address=load_address)
    assert expected.get(load_address, "") in sentence
    assert (load_address in expected) == bool(sentence)


# ---------------------------------------------------------------------- time and memory


def test_sections_are_not_looked_at() -> None:
    """A dynamic segment beside 20,000 sections, 200 times: following them takes most of a minute."""
    load = struct.pack("<IIIIIIII", 1, 0x3000, 0x10_0000, 0x10_0000, 16, 16, 7, 0)
    dynamic = struct.pack("<IIIIIIII", 2, 0x800, 0x10_0000, 0x10_0000, 16, 16, 7, 0)
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, 0x10_0000, 52, 0x4000, 0, 52, 32, 200, 40, 20_000, 0
    )
    front = (header + load + dynamic * 199).ljust(0x1FF0, b"\0") + multiboot_header()
    section = struct.pack("<IIIIIIIIII", 0, 3, 0, 0, 0x3000, 0x10, 0, 0, 1, 0)
    assert "" == loads_or_tells(front.ljust(0x4000, b"\0") + section * 20_000, "auto")


def test_many_segments_over_each_other_are_refused_before_any_is_filled() -> None:
    """256 times nearly all memory is hours of zeros on a large machine."""
    image = elf(*[(0x1000, 0x10_0000, 0x10_0000, 0, 0x20_0000)] * 20)
    assert "has more to load than fits" in loads_or_tells(image, "auto")


@pytest.mark.parametrize(
    "image",
    [
        elf((0x1000, 0x10_0000, 0x10_0000, 0x1000, 0xFFFF_FFFF)),
        elf((0x1000, 0x10_0000, 0x10_0000, 0xFFFF_FFFF, 0xFFFF_FFFF)),
        multiboot_header(0x1_0000, 0x10_0000, 0x10_0000, 0, 0xFFFF_FFFF, 0x10_0000),
        bzimage(initial_size=0xFFFF_FFFF),
        bzimage(paragraphs=0xFFFF_FFFF),
    ],
    ids=["bss", "file size", "multiboot bss", "init size", "syssize"],
)
def test_a_few_bytes_cannot_ask_for_much_host_memory(image: bytes) -> None:
    """Sizes are compared before anything is allocated."""
    tracemalloc.start()
    try:
        assert loads_or_tells(image, "auto")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- what people give by mistake


ELF64 = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(40)


@pytest.mark.parametrize(
    ("image", "loader", "words"),
    [
        (b"", "auto", "is empty"),
        (b"", "flat", "is empty"),
        (ELF64, "auto", "is a 64-bit ELF image"),
        (elf64((0x1000, 0x10_0000, 0x10_0000, 16, 16), multiboot=b""), "auto", "is a 64-bit ELF image"),
        (elf64((0x1000, 0x10_0000, 0x10_0000, 16, 16), table=1 << 63), "auto", "absurd program header table"),
        (elf64((0x1000, 0x10_0000, 0x10_0000, 1 << 63, 1 << 63)), "auto", "has more to load than fits"),
        (elf64((1 << 63, 0x10_0000, 0x10_0000, 16, 16)), "auto", "is truncated"),
        (ELF64[:60] + multiboot_header(), "auto", "has nothing to load"),
        (ELF64.ljust(512, b"\0") + multiboot_header() + bytes(64), "auto", "has nothing to load"),
        (kernel_elf(machine=40), "auto", "is not an x86 executable but for ARM"),
        (kernel_elf(machine=183, bits=2), "auto", "for AArch64"),
        (kernel_elf(machine=2), "auto", "for machine 2"),
        (kernel_elf(kind=1), "auto", "but an object file"),
        (kernel_elf(kind=3), "auto", "but a shared object"),
        (kernel_elf(multiboot=b"", payload=bytes(4096)), "auto", "without a multiboot header"),
        (elf(), "auto", "has nothing to load"),
        (kernel_elf(rows=257), "auto", "claims 257 segments"),
        (kernel_elf(row_size=31), "auto", "absurd program header table"),
        (kernel_elf(table=0x8000_0000), "auto", "truncated"),
        (kernel_elf(payload=b"short"), "auto", "is truncated"),
        (elf((0x1000, 0x7C00, 0x9000, 16, 16)), "auto", "the loader's memory"),
        (elf((0x1000, 0x400, 0x400, 16, 16)), "auto", "firmware memory"),
        (elf((0x1000, 0xF_0000, 0xF_0000, 16, 16)), "auto", "firmware memory"),
        (elf((0x1000, 0x3F_FFF8, 0x3F_FFF8, 16, 16)), "auto", "wants memory up to 0x400008"),
        (multiboot_header(0x10) + bytes(64), "auto", "demands multiboot features 0x10"),
        (multiboot_header(0x1_0000), "auto", "ends inside its multiboot header"),
        (b"\xf4" * 64, "multiboot", "has no multiboot header"),
        (b"\xf4" * 64, "bzimage", "is not a Linux kernel"),
        (bzimage(version=0x0201), "auto", "uses boot protocol 2.01"),
        (bzimage(load_flags=0), "auto", "loaded low"),
        (bzimage(payload=b""), "auto", "nothing follows its setup code"),
        (bzimage(paragraphs=0x1000), "auto", "is truncated: 2048 of 65536 bytes"),
        (bzimage(initial_size=0x50_0000), "auto", "needs 6 MiB"),
        (b"MZ" + bytes(510), "auto", "a DOS, Windows or EFI program"),
        (b"\x1f\x8b\x08" + bytes(64), "auto", "is gzip-compressed. Unpack it first."),
        (b"\xfd7zXZ\0" + bytes(64), "auto", "is xz-compressed"),
        (b"QFI\xfb" + bytes(64), "auto", "is a qcow2 disk image"),
        (b"#!/bin/sh\nexit 0\n", "auto", "is not bootable. Known are multiboot ELF, Linux bzImage, disk and CD"),
        (bytes(1024), "auto", "is not bootable"),
        (bytes(1024), "disk", "has no boot sector"),
        (boot_sector()[:511], "disk", "has no boot sector"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_is_wrong(image: bytes, loader: str, words: str) -> None:
    """Each mistake has its own words."""
    assert words in loads_or_tells(image, loader)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (kernel_elf(), "multiboot"),
        (multiboot_header(0x1_0000, 0x10_0000, 0x10_0000, 0, 0, 0x10_0000), "multiboot"),
        (bzimage(), "bzimage"),
        (boot_sector(), "disk"),
        (HELLO, "multiboot"),
        (REAL_MODE, "disk"),
    ],
)
def test_the_right_loader_is_found(image: bytes, expected: str) -> None:
    """By looking at the image alone."""
    assert expected == detect(image, "image")


# ---------------------------------------------------------------------- files


def make_directory(folder: Path) -> Path:
    """A directory where an image should be."""
    return folder


def make_pipe(folder: Path) -> Path:
    """A pipe that nobody writes to: opening it would wait for ever."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_huge(folder: Path) -> Path:
    """A file that claims more than can be loaded, without taking room."""
    path = folder / "huge"
    with path.open("wb") as file:
        file.truncate(MAXIMUM_IMAGE + 1)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing", "No such file or directory"),
        (lambda folder: folder / "missing" / "deeper", "No such file or directory"),
        (lambda folder: folder / ("x" * 300), "File name too long"),
        (lambda folder: Path("zero\0byte"), "null"),
        (make_directory, "is not a regular file"),
        (make_pipe, "is not a regular file"),
        (make_huge, "Images up to 2 GiB"),
        (lambda folder: Path("/dev/zero"), "is not a regular file"),
        (lambda folder: Path("/dev/null"), "is not a regular file"),
    ],
)
def test_what_is_not_a_readable_file(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    """A sentence with the path, what it was wanted for, and the reason; at once."""
    path = make(tmp_path)
    for configuration in (
        MachineConfiguration(image=str(path)),
        MachineConfiguration(image=str(GUESTS / "01_hello/hello.elf"), initrd=str(path)),
        MachineConfiguration(image=str(GUESTS / "01_hello/hello.elf"), modules=(f"{path} with arguments",)),
    ):
        with pytest.raises(UserError, match=words):
            read_images(configuration)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_file_that_is_longer_than_it_says_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of /proc are regular and have size 0, and some go on for ever."""
    monkeypatch.setattr("hvemu.loader.contract.MAXIMUM_IMAGE", 10)
    with pytest.raises(UserError, match="never ends"):
        read_file("/proc/self/status", "image")


@pytest.mark.parametrize("loader", ALL_LOADERS)
def test_an_empty_file_for_every_loader(loader: str, tmp_path: Path) -> None:
    """The whole way, from the configuration to the machine."""
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(UserError, match="empty"):
        build(MachineConfiguration(image=str(path), loader=loader, memory=4 << 20))


@pytest.mark.parametrize(
    ("image", "loader", "works"),
    [
        (kernel_elf(), "auto", True),
        (kernel_elf(machine=40), "auto", False),
        (bzimage(), "bzimage", True),
        (bzimage()[:1000], "bzimage", False),
        (boot_sector(), "disk", True),
        (boot_sector(), "multiboot", False),
        (b"\xf4" * 100, "flat", True),
        (b"\xf4" * 100, "auto", False),
    ],
)
def test_the_builder_refuses_or_builds(image: bytes, loader: str, works: bool, tmp_path: Path) -> None:
    """The whole way, for good and bad images."""
    path = tmp_path / "image"
    path.write_bytes(image)
    configuration = MachineConfiguration(image=str(path), loader=loader, memory=4 << 20)
    if works:
        assert build(configuration).configuration.loader in LOADERS
    else:
        with pytest.raises(UserError, match=r"image .*\.$"):
            build(configuration)
