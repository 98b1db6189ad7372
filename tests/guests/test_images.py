"""The committed guest images are what their sources say, and a PC made by somebody else agrees with the catalogue."""

import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from capstone import CS_ARCH_X86, CS_MODE_32, Cs, CsInsn
from elftools.elf.elffile import ELFFile

from hvemu.labs import build_guests
from hvemu.labs.build_guests import COMMAND, GUESTS, HEADER, Guest

ALL = list(build_guests.discover())
CATALOGUE: list[dict[str, Any]] = tomllib.loads((GUESTS / "catalog.toml").read_text())["guest"]
QEMU = shutil.which("qemu-system-i386")
QEMU_64 = shutil.which("qemu-system-x86_64")
KEY_NAMES = {"\n": "ret", " ": "spc"}


def test_the_abi_header_matches_the_machine_map() -> None:
    """Guests and devices read their addresses off the same page."""
    assert build_guests.machine_map_header() == (GUESTS / HEADER).read_text(), f"run {COMMAND}"


@pytest.mark.parametrize("guest", ALL, ids=lambda guest: guest.name)
def test_an_image_was_built_from_the_present_sources(guest: Guest) -> None:
    """A change of a source without a rebuild is found without a compiler."""
    lock = build_guests.read_lock()
    assert guest.name in lock, f"{guest.name} was never built: run {COMMAND}"
    assert lock[guest.name]["sources"] == build_guests.sources_digest(guest), f"{guest.image} is stale: run {COMMAND}"
    assert lock[guest.name]["image"] == build_guests.image_digest(guest), f"{guest.image} was changed by hand"


def test_nothing_is_locked_that_does_not_exist() -> None:
    """A guest that was removed leaves no row behind."""
    assert [guest.name for guest in ALL] == [name for name in build_guests.read_lock() if name != "compiler"]


@pytest.mark.slow
@pytest.mark.skipif(not build_guests.has_compiler(), reason="needs the [build] extra")
@pytest.mark.parametrize("guest", ALL, ids=lambda guest: guest.name)
def test_a_rebuild_gives_the_same_bytes(guest: Guest, tmp_path: Path) -> None:
    """Same sources, same compiler, same image, wherever it is built."""
    locked = build_guests.read_lock()["compiler"]["version"]
    if locked != build_guests.compiler_version():
        pytest.skip(f"the images were built by {locked}, here is {build_guests.compiler_version()}")
    assert (GUESTS / guest.image).read_bytes() == build_guests.build(guest, tmp_path).read_bytes()


def test_every_image_has_a_catalogue_row() -> None:
    """Nobody has to know a file name to find a guest, and no row names a file that is not built."""
    assert sorted(guest.image.as_posix() for guest in ALL) == sorted(row["image"] for row in CATALOGUE)
    assert len({row["name"] for row in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("guest", [guest for guest in ALL if "/" not in guest.name], ids=lambda guest: guest.name)
def test_every_lesson_has_a_readme_of_one_screen(guest: Guest) -> None:
    """A lesson says what it teaches and what to watch."""
    readme = (GUESTS / guest.image).parent / "README.md"
    assert 8 <= len(readme.read_text().splitlines()) <= 25


BELIEVERS = [row for row in CATALOGUE if "trap" in row["modes"] and row["name"] != "sensitive"]
"""Guests that believe what the CPU tells them; ``sensitive`` only writes it down."""


@pytest.mark.parametrize("row", BELIEVERS, ids=lambda row: row["name"])
def test_a_guest_for_trap_mode_asks_no_instruction_that_lies(row: dict[str, Any]) -> None:
    """No sensitive instruction that ring 1 executes silently; POPF only in faults, which sets NT, not IF."""
    lying = {"pushf", "pushfd", "sgdt", "sidt", "sldt", "smsw", "str", "lar", "lsl", "verr", "verw"}
    lying |= set() if row["name"] == "faults" else {"popf", "popfd"}
    reads_segment = re.compile(r"(push|mov\s+[^,]+,)\s*[cdefgs]s$")
    found = [
        f"{instruction.address:x} {text}"
        for instruction in disassemble(GUESTS / row["image"])
        if (text := f"{instruction.mnemonic} {instruction.op_str}")
        and (instruction.mnemonic in lying or reads_segment.match(text))
    ]
    assert found == []


def disassemble(image: Path) -> Iterator[CsInsn]:
    """All instructions of an ELF image's .text, data between them skipped."""
    decoder = Cs(CS_ARCH_X86, CS_MODE_32)
    decoder.skipdata = True
    with image.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        yield from decoder.disasm(text.data(), text["sh_addr"])


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-i386")
@pytest.mark.parametrize(
    ("row", "cpu"),
    [
        pytest.param(row, cpu, id=f"{row['name']}-{cpu}")
        for row in CATALOGUE
        if row["format"] != "xen"
        for cpu in ("qemu32", "qemu64")
        if (row["name"], cpu) != ("long_mode", "qemu32")
    ],
)
def test_qemu_agrees_with_the_catalogue(row: dict[str, Any], cpu: str, tmp_path: Path) -> None:
    """The same file under somebody else's emulator: same lines, same verdict."""
    if row["name"] == "long_mode" and QEMU_64 is None:
        pytest.skip("needs qemu-system-x86_64")
    status, console = run_in_qemu(row, cpu, tmp_path)
    assert row.get("qemu_status", row["expected_status"]) == status, console
    remaining = iter(console.splitlines())
    assert [line for line in row["console"] if line not in remaining] == [], console


def run_in_qemu(row: dict[str, Any], cpu: str, tmp_path: Path) -> tuple[int, str]:
    """Runs one guest, typing its input through the monitor; status 124 if it never ended."""
    image, serial = str(GUESTS / row["image"]), tmp_path / "serial"
    boot = ["-kernel", image, "-append", row["command_line"]]
    if row["format"] == "disk":
        boot = ["-drive", f"file={image},format=raw,if=ide,snapshot=on"]
    if row.get("disk"):
        scratch = tmp_path / "scratch.img"
        with scratch.open("wb") as file:
            file.truncate(row["disk"] << 20)
        boot += ["-drive", f"file={scratch},format=raw,if=ide"]
    command = [
        str(QEMU_64 if row["name"] == "long_mode" else QEMU), "-accel", "tcg", "-cpu", cpu, "-m", str(row["memory"]), "-display", "none", "-no-reboot",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-serial", f"file:{serial}", "-monitor", "stdio", *boot,
    ]  # fmt: skip
    deadline = time.monotonic() + (10 if row.get("qemu_status", row["expected_status"]) == 124 else 240)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        typed = not row["input"]
        while process.poll() is None and time.monotonic() < deadline:
            console = serial.read_text() if serial.exists() else ""
            if not typed and row.get("input_after", "") in console:
                # Without a line to wait for, the key may come too early for the BIOS: try again until it is taken.
                typed = "input_after" in row
                for letter in row["input"]:
                    process.stdin.write(f"sendkey {KEY_NAMES.get(letter, letter)} 20\n")
                    process.stdin.flush()
                    time.sleep(0.1)
            time.sleep(0.05)
        ended = process.poll()
        if ended is None:
            process.kill()
    return 124 if ended is None else ended, serial.read_text()
