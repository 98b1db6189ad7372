"""CD-ROMs that a BIOS boots: the catalog, what it may name, and a program in real mode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.state import CS, EDX
from hvemu.devices.images.memory import MemoryMedium
from hvemu.loader.el_torito import BootImage, find_boot_image
from hvemu.loader.select import detect
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE

from .images import boot, cdrom, ram


@pytest.mark.parametrize(
    ("segment", "address", "selector", "eip"),
    [(0, 0x7C00, 0, 0x7C00), (0x1000, 0x1_0000, 0x1000, 0), (0x1234, 0x1_2340, 0x1000, 0x2340)],
)
def test_the_state_in_which_a_bios_starts_a_cdrom(segment: int, address: int, selector: int, eip: int) -> None:
    """Real mode, drive E0h in DL, and as many sectors of 512 bytes as the catalog asks for."""
    memory = ram()
    cpu = boot(cdrom(b"\xfa\xf4", count=5, segment=segment), memory=memory)
    assert (eip, 0xE0, selector, selector << 4) == (
        cpu.eip(),
        cpu.gpr(EDX) & 0xFF,
        cpu.segment(CS).selector,
        cpu.segment(CS).base,
    )
    assert b"\xfa\xf4" == memory.read(address, 2)
    assert (20).to_bytes(4, "little") == memory.read(address + 4 * 512, 4)
    assert bytes(4) == memory.read(address + 5 * 512, 4)


def test_an_image_that_is_a_cdrom_is_booted_as_one() -> None:
    """Also one that would start from a stick."""
    hybrid = bytearray(cdrom())
    hybrid[510:512] = b"\x55\xaa"
    assert ["disk", "disk"] == [detect(bytes(image), "image") for image in (cdrom(), hybrid)]
    assert 0xE0 == boot(bytes(hybrid)).gpr(EDX)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (cdrom(record=b"\x02CD001\x01"), "it has no boot record"),
        (cdrom(catalog_at=0xFFFF_FFFF), "its boot catalog is damaged"),
        (cdrom(validation=b"\x01".ljust(30, b"\0") + b"\x55\xaa"), "its boot catalog is damaged"),
        (cdrom(indicator=0), "on a PC with a BIOS"),
        (cdrom(media=2), "wants to be booted with 1.44M floppy emulation"),
        (cdrom(media=4), "wants to be booted with hard disk emulation"),
        (cdrom(segment=0xFFFF), "its program fits not into memory"),
        (cdrom(segment=0x20), "its program fits not into memory"),
        (cdrom(count=0xFFFF), "its program fits not into memory"),
        (cdrom(at=0xFFFF_FFFF), "its program lies behind its end"),
        (cdrom(at=23, count=5), "its program lies behind its end"),
    ],
)
def test_the_sentence_says_why_a_cdrom_cannot_be_booted(image: bytes, words: str) -> None:
    """And how to make one that can."""
    with pytest.raises(UserError, match=words):
        boot(image)


@given(
    st.lists(st.tuples(st.integers(0, 0x60), st.integers(0, 255)), max_size=6),
    st.binary(min_size=12, max_size=32) | st.none(),
    st.integers(0, 0xFFFF_FFFF) | st.just(18),
    st.integers(17, 24),
)
def test_no_catalog_makes_more_of_itself_than_it_is(
    changes: list[tuple[int, int]], initial: bytes | None, catalog_at: int, sectors: int
) -> None:
    """A sentence, or a program that lies on the medium and fits into memory."""
    image = bytearray(cdrom(initial=initial, catalog_at=catalog_at))
    for offset, value in changes:
        image[18 * 2048 + offset] = value
    medium = MemoryMedium(bytes(image[: sectors * 2048]))
    try:
        found = find_boot_image(medium, "image")
    except UserError:
        return
    assert isinstance(found, BootImage)
    assert found.sector * 2048 + found.length <= medium.size
    assert 0x500 <= found.segment << 4 <= EBDA_BASE - found.length
