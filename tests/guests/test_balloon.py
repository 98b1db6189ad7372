"""The ported kernel's balloon: it gives memory away when the host wants it, takes it back, and goes on meanwhile."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.contract import NoBackend
from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.memory.direct import Owner
from hvemu.memory.walk import PTE_PRESENT, PTE_WRITABLE
from hvemu.testing.catalog import catalog
from hvemu.testing.running import Recording, guest_configuration, run_guest
from hvemu.vocabulary.addresses import PAGE_SHIFT
from hvemu.vocabulary.xen import HypercallError

MIB, PAGES_PER_MIB = 1 << 20, 256
SIZE = catalog()["processes_pv"].memory
AWAKE = 1_000_000
"""A position at which the first process runs, or sleeps."""
CHECKING = 20_000_000
"""A position in the midst of the self-checks."""
LONG = 60_000_000
"""Bytes in which any target is reached: 24 ticks."""
SLEEP = "work=sleep:1000"
ADDRESS = (1 << 52) - (1 << PAGE_SHIFT)


@cache
def native_console():
    """What the self-checks print on a PC, which has no balloon."""
    return run_guest(guest_configuration(catalog()["processes"])).console


class Ballooned:
    """The guest, stopped at ``position``."""

    def __init__(self, work="", position=AWAKE, **changes):
        configuration = guest_configuration(catalog()["processes_pv"], append=work, **changes)
        self.recording, self.warnings = Recording(), []
        backends = Backends(self.recording, NoBackend(), self.recording)
        self.machine = build(configuration, backends=backends)
        self.domain, self.paging = self.machine.mode.domain, self.machine.mode.paging
        self.domain.warn = self.warnings.append
        self.pages, self.shared = len(self.domain.frames), self.domain.shared_info >> PAGE_SHIFT
        self.machine.run(position)

    def on(self, distance=LONG):
        """Run on until the guest has come to rest; the host's books and the guest's must agree then."""
        self.machine.run(self.machine.mode.position() + distance)
        assert self.has() == self.check() + 1  # and the frame whose place shared_info has taken

    def target(self, mib):
        """The host's wish."""
        self.machine.balloon.set_balloon(int(mib * MIB))

    def has(self):
        """Pages that the host counts."""
        return self.paging.owner.count(Owner.GUEST)

    def told(self):
        """Pages that the guest says it has, or None."""
        text = self.domain.store.read("memory/current")
        return None if text is None else int(text) // 4

    def frames(self):
        """The kernel's own mapping: frames by page, None where there is none."""
        entries = [self.paging.entry(self.paging.leaf_address(page << PAGE_SHIFT)) for page in range(self.pages)]
        return [(entry & ADDRESS) >> PAGE_SHIFT if entry & PTE_PRESENT else None for entry in entries]

    def check(self):
        """Each page that the kernel maps is on a frame of its own, by both sides' books; returns how many are."""
        frames = self.frames()
        mapped = {frame: page for page, frame in enumerate(frames) if frame not in (None, self.shared)}
        assert len(mapped) == sum(frame not in (None, self.shared) for frame in frames)
        assert all(self.paging.is_guests(frame) for frame in mapped)
        assert all(self.paging.machine_to_physical[frame] == page for frame, page in mapped.items())
        assert [] == self.warnings
        return len(mapped)


def test_who_is_asked_for_nothing_gives_nothing():
    """Without a target there is no hypercall about memory, and nothing to tell."""
    guest = Ballooned(position=0)
    assert 33 == guest.machine.run().status
    assert None is guest.told()
    assert SIZE * PAGES_PER_MIB == guest.has()
    assert "memory_op" not in guest.machine.statistics()["exits_by_detail"]["hypercall"]


@pytest.mark.parametrize("memory", [8, 16, 64])
def test_a_sleeping_guest_has_what_it_is_asked_to_have(memory):
    """Less and more, to the page; it says so, and ends as it should."""
    guest = Ballooned(SLEEP, memory=memory * MIB)
    for part in (1, 0.5, 1, 0.75, 0.375, 0.375, 0.875, 1):
        guest.target(memory * part)
        guest.on()
        assert int(memory * part * PAGES_PER_MIB) == guest.has() == guest.told()
    assert 33 == guest.machine.run().status


def test_a_target_that_was_there_before_the_guest_is_heard():
    """The watch fires once when it is set."""
    guest = Ballooned(SLEEP, position=0)
    guest.target(8)
    guest.on()
    assert 8 * PAGES_PER_MIB == guest.has() == guest.told()


def test_it_says_what_it_has_when_it_has_come_to_rest():
    """Not before, though it takes several ticks."""
    guest, told, had = Ballooned(SLEEP), set(), set()
    guest.target(2)
    while guest.has() > 512 or guest.told() is None:
        guest.machine.run(guest.machine.mode.position() + 50_000)
        told.add(guest.told())
        had.add(guest.has())
    assert {None, 512} == told
    assert len(had) > 4


def test_of_many_targets_one_after_the_other_each_counts():
    """More messages than either ring has room for."""
    guest = Ballooned(SLEEP)
    for number in range(50):
        guest.target(8 + number / 256)
        guest.on(1_000_000 if number else LONG)
        assert 2048 + number == guest.has() == guest.told()


def test_of_many_targets_at_once_the_last_one_counts():
    """More watch events than the ring has room for."""
    guest = Ballooned(SLEEP)
    for number in range(300):
        guest.target(4 + number % 7)
    guest.target(9)
    guest.on()
    assert 9 * PAGES_PER_MIB == guest.has() == guest.told()


@pytest.mark.parametrize(
    ("text", "pages"),
    [(b"8193", 2048), (b"9" * 2000, 4096), (b"8M", 3072), (b"-1", 3072), (b" 4096", 3072), (b"", 3072)],
    ids=lambda value: str(value)[:9],
)
def test_a_target_is_digits(text, pages):
    """More than all is all; the rest is not understood, and nothing changes."""
    guest = Ballooned(SLEEP)
    guest.target(12)
    guest.on()
    guest.domain.store.write("memory/target", text)
    guest.on()
    assert pages == guest.has() == guest.told()


def test_a_host_that_has_no_memory_left_is_asked_again():
    """What it can give is taken at once, the rest with a later tick; the guest says what it has."""
    guest = Ballooned(SLEEP)
    guest.target(8)
    guest.on()
    free = guest.domain.hypercalls._given_back
    others, free[:] = free[300:], free[:300]
    guest.target(14)
    guest.on()
    assert 8 * PAGES_PER_MIB + 300 == guest.has() == guest.told()
    free += others
    guest.on()
    assert 14 * PAGES_PER_MIB == guest.has() == guest.told()


def test_who_is_asked_for_too_much_keeps_a_reserve_and_can_work():
    """All self-checks pass in what is left; more could not be given, and less was not."""
    guest = Ballooned(position=0)
    guest.target(0)
    guest.on(CHECKING)
    assert 300 < guest.has() == guest.told() < 500
    assert None is guest.machine.stop
    assert 33 == guest.machine.run().status
    assert native_console() == guest.recording.text()
    assert guest.has() == guest.told() == guest.check() + 1


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from([500, 40_000, 900_000]), st.floats(0, SIZE + 1)), min_size=1, max_size=60))
def test_the_self_checks_do_not_notice_targets(targets):
    """Set at any position, to anything: the lines are those of a PC, for a page that is lent is not lost."""
    guest = Ballooned(position=0)
    for distance, mib in targets:
        guest.target(mib)
        guest.machine.run(guest.machine.mode.position() + distance)
    assert 33 == guest.machine.run().status
    guest.check()
    assert native_console() == guest.recording.text()


def test_a_page_that_was_given_away_is_nobodys():
    """The kernel does not map it, and is refused when it tries; taken back, it is on another frame."""
    guest = Ballooned(SLEEP)
    before = guest.frames()
    guest.target(4)
    guest.on()
    away = [page for page, frame in enumerate(guest.frames()) if frame is None]
    assert 12 * PAGES_PER_MIB == len(away)
    entry = guest.paging.leaf_address(away[0] << PAGE_SHIFT)
    for page in away[::100]:
        for bits in (PTE_PRESENT, PTE_PRESENT | PTE_WRITABLE):
            with pytest.raises(HypercallError):
                guest.paging.update(entry, before[page] << PAGE_SHIFT | bits)
    guest.check()
    guest.target(16)
    guest.on()
    after = guest.frames()
    assert sorted(before) == sorted(after)
    assert any(before[page] != after[page] for page in away)
