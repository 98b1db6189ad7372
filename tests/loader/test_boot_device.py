"""Disk images: the boot sector in real mode, and flat binaries beside it."""

import pytest

from hvemu.cpu.state import CS, DS, EDX, ES, ESP, SS, Segment
from hvemu.loader.boot_device import is_bootable
from hvemu.vocabulary.errors import UserError

from .images import boot, boot_sector, ram


def test_the_state_in_which_a_bios_starts_a_boot_sector() -> None:
    """0000:7C00 in real mode, drive 80h in DL, interrupts on, a stack below the code."""
    memory = ram()
    cpu = boot(boot_sector(b"\xfa\xf4"), memory=memory)
    assert (0x7C00, 0x80, 0x7C00) == (cpu.eip(), cpu.gpr(EDX) & 0xFF, cpu.gpr(ESP))
    assert (0, 0x200) == (cpu.cr0 & 1, cpu.eflags() & 0x200)
    assert [Segment(0, 0, 0xFFFF, 0x9300)] * 3 == [cpu.segment(index) for index in (DS, ES, SS)]
    assert Segment(0, 0, 0xFFFF, 0x9B00) == cpu.segment(CS)
    assert b"\xfa\xf4" == memory.read(0x7C00, 2)


def test_only_the_first_sector_is_loaded() -> None:
    """The rest comes through INT 13h."""
    memory = ram()
    boot(boot_sector(sectors=64), memory=memory)
    assert b"\x55\xaa\0\0\0\0" == memory.read(0x7DFE, 6)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (boot_sector(), True),
        (boot_sector(sectors=1), True),
        (boot_sector(sectors=1)[:511], False),
        (bytes(512), False),
        (bytes(510) + b"\xaa\x55", False),
        (bytes(512) + b"\x55\xaa", False),
    ],
)
def test_what_makes_a_disk_bootable(image: bytes, expected: bool) -> None:
    """55 AA at the end of sector 0."""
    assert expected == is_bootable(image)


def test_a_disk_without_signature_is_refused() -> None:
    """Even when the user names the loader."""
    with pytest.raises(UserError, match="ends sector 0 with 55 AA"):
        boot(bytes(1024), "disk")


def test_a_flat_image_starts_where_it_is_loaded() -> None:
    """Flat 32-bit protected mode, nothing before or behind it touched."""
    memory = ram()
    memory.write(0x1F_FFFF, b"\xaa" * 8)
    cpu = boot(b"\x90\x90\xf4", "flat", memory=memory, load_address=0x20_0000)
    assert (0x20_0000, 1, 0x10) == (cpu.eip(), cpu.cr0 & 0x8000_0001, cpu.segment(CS).selector)
    assert b"\xaa\x90\x90\xf4\xaa" == memory.read(0x1F_FFFF, 5)
