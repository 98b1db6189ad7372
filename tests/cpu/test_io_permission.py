"""The I/O permission bitmap of the TSS."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.io_permission import io_permitted
from hvemu.cpu.state import Segment, TableRegister

from .scene import NOWHERE, TASK, TSS, Scene

BITMAP = 0x68


def scene_with_bitmap(bits: int = 0, *, base: int = BITMAP, limit: int = BITMAP + 0x2000) -> Scene:
    """Ring 3; ``bits`` is the whole map as a number, a one forbids."""
    scene = Scene(3)
    scene.memory.write(TSS + 0x66, struct.pack("<H", base))
    scene.memory.write(TSS + BITMAP, bits.to_bytes(0x2001, "little"))
    scene.cpu.tr = Segment(TASK, TSS, limit, 0x8B00)
    return scene


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("port", [0, 1, 7, 8, 0x3F6, 0x3FD, 0xFFFC])
def test_every_port_of_an_access_must_be_allowed(port: int, size: int) -> None:
    """One forbidden byte forbids it all; its neighbours do not matter."""
    every = (1 << 0x1_0008) - 1
    mask = (1 << size) - 1 << port
    scene = scene_with_bitmap(every & ~mask)
    assert io_permitted(scene.cpu, scene.memory, port, size)
    for forbidden in range(port, port + size):
        scene = scene_with_bitmap(1 << forbidden)
        assert not io_permitted(scene.cpu, scene.memory, port, size)
        assert port == 0 or io_permitted(scene.cpu, scene.memory, port - 1, 1)


@pytest.mark.parametrize(
    ("port", "limit", "expected"),
    [
        (0, BITMAP + 1, True),
        (0, BITMAP, False),
        (7, BITMAP + 1, True),
        (8, BITMAP + 1, False),
        (0xFFFF, BITMAP + 0x2000, True),
        (0xFFFF, BITMAP + 0x1FFF, False),
    ],
)
def test_both_bytes_of_the_map_must_lie_in_the_tss(port: int, limit: int, expected: bool) -> None:
    """The CPU always reads two, which is why maps end with a byte of ones."""
    scene = scene_with_bitmap(limit=limit)
    assert expected == io_permitted(scene.cpu, scene.memory, port, 1)


@pytest.mark.parametrize("base", [0x2069, 0x9000, 0xDFFF, 0xFFFF])
def test_a_map_behind_the_tss_allows_nothing(base: int) -> None:
    """The usual way to have none."""
    scene = scene_with_bitmap(base=base)
    assert not io_permitted(scene.cpu, scene.memory, 0, 1)


@pytest.mark.parametrize(("kind", "limit"), [(0x8300, 0x2FFF), (0x8100, 0x2FFF), (0x8B00, 0x66), (0, 0)])
def test_a_tss_without_a_map_allows_nothing(kind: int, limit: int) -> None:
    """Of 16 bits, too short, or none at all."""
    scene = scene_with_bitmap()
    scene.cpu.tr = Segment(TASK, TSS, limit, kind)
    assert not io_permitted(scene.cpu, scene.memory, 0, 1)


def test_the_map_is_read_through_the_page_tables_as_supervisor() -> None:
    """User pages are not needed; a missing page allows nothing."""
    scene = scene_with_bitmap()
    scene.map_pages()
    scene.memory.write(0x6000 + 4 * (TSS >> 12), struct.pack("<I", TSS | 1))
    assert io_permitted(scene.cpu, scene.memory, 0x80, 4)
    scene.unmap(TSS)
    assert not io_permitted(scene.cpu, scene.memory, 0x80, 4)
    scene.cpu.tr = Segment(TASK, NOWHERE, 0x67, 0x8B00)
    assert not io_permitted(scene.cpu, scene.memory, 0x80, 4)


@given(
    st.integers(0, 0xFFFF),
    st.sampled_from((1, 2, 4)),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
)
def test_no_tss_makes_it_raise(port: int, size: int, base: int, limit: int, map_base: int, kind: int) -> None:
    """Any base, any limit, any map."""
    scene = Scene(3)
    scene.cpu.gdtr = TableRegister(0, 0)
    scene.cpu.tr = Segment(TASK, base, limit, kind)
    scene.memory.write(base + 0x66 & 0x3F_FFFF, struct.pack("<H", map_base))
    assert io_permitted(scene.cpu, scene.memory, port, size) in (True, False)
