"""``info mem`` against the walker, page by page."""

import itertools
import random

import pytest

from hvemu.cli.page_ranges import mapped_ranges
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.memory.walk import walk
from hvemu.vocabulary.paging import CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, PagingRegisters

DIRECTORY, TABLES, SIZE = 0x1000, 0x10000, 1 << 20


def rights(memory: GuestPhysicalMemory, paging: PagingRegisters, page: int) -> str:
    """What the walker says of one page."""
    if not isinstance(walk(memory, paging, page, mark=False), int):
        return ""
    user = isinstance(walk(memory, paging, page, user=True, mark=False), int)
    write = isinstance(walk(memory, paging, page, write=True, user=user, mark=False), int)
    return f"{'u' if user else '-'}r{'w' if write else '-'}"


@pytest.mark.parametrize("cr4", [0, CR4_PSE, CR4_PAE], ids=["two levels", "PSE", "PAE"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ranges_are_what_the_walker_says(cr4: int, seed: int) -> None:
    """Tables with a few entries of every kind, large pages too."""
    dice = random.Random(seed)
    memory = GuestPhysicalMemory(MachineMemory(SIZE))
    width, span = (8, 1 << 21) if cr4 & CR4_PAE else (4, 1 << 22)
    directory = DIRECTORY
    if cr4 & CR4_PAE:
        directory = DIRECTORY + 0x1000
        memory.write(DIRECTORY + 8, (directory | 1).to_bytes(8, "little"))  # the second gigabyte
    indices = sorted({*dice.sample(range(4096 // width), 6), 5, 6})
    for number, index in enumerate(indices):
        flags = dice.choice((0, 1, 3, 5, 7)) | (0x80 if number % 3 == 0 else 0)
        table = TABLES + 0x1000 * number
        target = span * dice.randrange(8) if flags & 0x80 and cr4 else table
        memory.write(directory + width * index, (target | flags).to_bytes(width, "little"))
        for entry in dice.sample(range(4096 // width), 40):
            memory.write(table + width * entry, (0x5000 | dice.choice((1, 3, 5, 7))).to_bytes(width, "little"))
    paging = PagingRegisters(CR0_PG | CR0_WP, DIRECTORY, cr4, 0)
    base = 1 << 30 if cr4 & CR4_PAE else 0
    expected = {}
    for index in indices:
        for page in range(base + span * index, base + span * (index + 1), 0x1000):
            if found := rights(memory, paging, page):
                expected[page] = found
    ranges = list(mapped_ranges(memory, paging))
    assert expected
    assert expected == {page: found for first, last, found in ranges for page in range(first, last, 0x1000)}
    for (_, last, found), (first, _, other) in itertools.pairwise(ranges):
        assert last < first
        assert (last + 1, found) != (first, other), "neighbours that are mapped alike are one range"
