"""The walk of four levels, against the engine's own MMU: same address or fault, same error code, same marks."""

import struct
from random import Random
from typing import NamedTuple

import pytest

from hvemu.cpu.state import EAX, EBX
from hvemu.engine.probes import CODE, LongRig
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import NOT_CANONICAL, PageFault, walk
from hvemu.vocabulary.paging import CR0_WP, EFER_NXE

FIRST, COUNT = 0x40, 3
"""Frames that are tables at any level."""
PLAIN = 0x80
"""From this frame on there is nothing but HLT."""
SLOT = 3
"""The entry of the PML4 that leads to them, and the same of the upper half."""


class Try(NamedTuple):
    """An access from a ring."""

    linear: int
    kind: str
    ring: int


class Scene(NamedTuple):
    """The entry of the PML4, four entries for each level below it, and what is in force."""

    top: int
    entries: list[list[int]]
    write_protect: bool
    no_execute: bool


def choice(random: Random, *weighted: tuple[int, int]) -> int:
    """One of several values, with their weights."""
    values, weights = zip(*weighted, strict=True)
    return int(random.choices(values, weights)[0])


def entry(random: Random, level: int) -> int:
    """Mostly to the table of the next level, which for the last is a page."""
    frame = FIRST + level if level < 3 else random.randrange(PLAIN, 0x100)
    if random.random() < 0.1:
        frame = random.choice((FIRST, FIRST + 1, FIRST + 2, PLAIN))
    high = choice(random, (0, 30), (1 << 63, 6), (1 << 62, 1), (1 << 52, 1), (1 << 51, 1))
    low = choice(random, (7, 24), (0x67, 4), (0x27, 4), (3, 3), (5, 3), (1, 1), (6, 1), (0x87, 2), (0x1007, 1))
    if low & 0x80 and random.random() < 0.5:
        frame = 0x200 if random.random() < 0.5 else 0  # a large page that is aligned, beyond RAM or with it
    return frame << 12 | high | low


def scene_of(random: Random) -> Scene:
    """Entries as they come."""
    levels = [[entry(random, level) for _ in range(4)] for level in (1, 2, 3)]
    return Scene(entry(random, 0), levels, random.random() < 0.5, random.random() < 0.7)


def access(random: Random) -> Try:
    """Small indexes, so that the entries meet; now and then an address that is none."""
    linear = SLOT << 39
    for shift in (30, 21, 12):
        linear |= random.randrange(4) << shift
    linear |= random.choice((0, 8, 0x123, 0xFF0))
    linear |= choice(random, (0, 12), (0xFFFF << 48 | 1 << 47, 6), (1 << 47, 1), (1 << 63, 1))
    return Try(linear, random.choice(("read", "write", "fetch")), random.choice((0, 3)))


def prepared(scene: Scene) -> LongRig:
    """An engine with the scene's tables; page-directory pointers at any address behind them stay in RAM or fault."""
    rig = LongRig()
    view = rig.memory.view
    for index in range(COUNT * 512):
        struct.pack_into("<Q", view, (FIRST << 12) + 8 * index, scene.entries[index // 512][index % 4])
    view[PLAIN << 12 : 0x10_0000] = b"\xf4" * (0x10_0000 - (PLAIN << 12))
    root = rig.vcpu.paging().cr3
    for slot in (SLOT, SLOT | 0x100):
        struct.pack_into("<Q", view, root + 8 * slot, scene.top)
    paging = rig.vcpu.paging()
    cr0 = paging.cr0 if scene.write_protect else paging.cr0 & ~CR0_WP
    efer = paging.efer if scene.no_execute else paging.efer & ~EFER_NXE
    rig.vcpu.load_control(cr0, paging.cr3, paging.cr4, efer)
    return rig


@pytest.mark.parametrize("seed", range(150))
def test_the_engine_agrees_with_every_walk(seed: int) -> None:
    """Reads, writes and fetches at rings 0 and 3; where both come to a byte of RAM, it is the same one."""
    random = Random(seed)
    scene, several = scene_of(random), [access(random) for _ in range(8)]
    rig = prepared(scene)
    vcpu, view = rig.vcpu, rig.memory.view
    memory = GuestPhysicalMemory(rig.memory)
    rig.code("8a03 f4")  # mov al, [rbx] / hlt
    rig.code("8803 f4", CODE + 0x10)
    rig.code("ffe3", CODE + 0x20)
    for linear, kind, ring in several:
        before = bytes(view)
        found = walk(
            memory, vcpu.paging(), linear, write=kind == "write", user=ring == 3, fetch=kind == "fetch"
        )  # fmt: skip
        after = bytes(view)
        view[:] = before
        if isinstance(found, int) and not PLAIN << 12 <= found < len(view):
            continue  # a table, whose marks are what this compares, or nothing
        rig.ring(ring)
        vcpu.flush_tlb()
        vcpu.forget_code()
        vcpu.set_long_gpr(EBX, linear)
        vcpu.set_gpr(EAX, 0xF4 if kind == "write" else 0)
        rig.faults.clear()
        rig.go(CODE + {"read": 0, "write": 0x10, "fetch": 0x20}[kind])
        fault = rig.faults[0] if rig.faults else None
        if isinstance(found, PageFault) and found.error_code == NOT_CANONICAL:
            assert fault is not None
            assert (13, 0) == (fault[0], fault[2])
        elif isinstance(found, PageFault):
            assert fault is not None
            assert (14, found.error_code, found.address) == (fault[0], fault[2], vcpu.cr2())
        elif kind == "fetch":  # HLT at the byte that the walk found; ring 3 may not
            assert (None if ring == 0 else 13) == (fault and fault[0])
            assert linear + (ring == 0) == vcpu.eip()
        else:
            assert fault is None or fault[:2] == (13, CODE + 2 + 0x10 * (kind == "write"))  # HLT in ring 3
            assert (vcpu.gpr(EAX) & 0xFF) == 0xF4
        assert marks(after) == marks(bytes(view))


def marks(image: bytes) -> list[int]:
    """The accessed and dirty bits of the tables, and of the two entries that lead to them."""
    start, stop, root = FIRST << 12, FIRST + COUNT << 12, 0x10000
    entries = *image[start:stop:8], image[root + 8 * SLOT], image[root + 8 * (SLOT | 0x100)]
    return [entry & 0x60 for entry in entries]
