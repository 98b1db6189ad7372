"""Rings: what a back end and a front end tell each other, and what a front end that cheats can do: nothing."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.paravirtual.console import Console
from hvemu.paravirtual.ring import BackRing, ByteRing, RingError
from tests.paravirtual.small_domain import Sink

PAGE, SLOT = 0x1000, 112
REQUESTS, REQUEST_EVENT, RESPONSES, RESPONSE_EVENT = PAGE, PAGE + 4, PAGE + 8, PAGE + 12
CONSOLE_INDICES = PAGE + 3072


class Front:
    """A front end that keeps to the protocol of ring.h."""

    def __init__(self, slot=SLOT):
        self.memory = GuestPhysicalMemory(MachineMemory(3 << 12))
        self.back = BackRing(self.memory, PAGE, slot)
        self.slot = slot
        self.set(REQUEST_EVENT, 1)
        self.set(RESPONSE_EVENT, 1)
        self.produced = self.consumed = 0

    def set(self, at, value):
        """An index."""
        self.memory.write(at, struct.pack("<I", value & 0xFFFF_FFFF))

    def get(self, at):
        """An index."""
        return self.memory.read_u32(at)

    def push(self, *requests):
        """Put requests; returns whether the back end wants to be notified."""
        before = self.produced
        for request in requests:
            at = PAGE + 64 + self.produced % self.back.size * self.slot
            self.memory.write(at, request.ljust(self.slot, b"\0"))
            self.produced += 1
        self.set(REQUESTS, self.produced)
        return (self.produced - self.get(REQUEST_EVENT)) & 0xFFFF_FFFF < (self.produced - before) & 0xFFFF_FFFF

    def responses(self):
        """Take what there is, and ask to be told of the next."""
        found = []
        while self.consumed != self.get(RESPONSES):
            at = PAGE + 64 + self.consumed % self.back.size * self.slot
            found.append(self.memory.read(at, self.slot).rstrip(b"\0"))
            self.consumed = (self.consumed + 1) & 0xFFFF_FFFF
        self.set(RESPONSE_EVENT, self.consumed + 1)
        return found


@pytest.mark.parametrize(("slot", "size"), [(112, 32), (12, 256), (8, 256), (4032, 1), (1344, 2), (2000, 2)])
def test_a_ring_has_as_many_slots_as_fit_rounded_to_a_power_of_two(slot, size):
    """RING_SIZE of ring.h: a block ring has 32, a receive ring 256."""
    assert size == Front(slot).back.size
    with pytest.raises(ValueError, match="no ring has slots of"):
        Front(4033)


def test_requests_come_in_order_and_responses_go_back():
    """Around the end of the ring, many times."""
    front = Front()
    for turn in range(100):
        batch = [b"%d-%d" % (turn, index) for index in range(turn % 32 + 1)]
        front.push(*batch)
        taken = [request.rstrip(b"\0") for request in front.back.requests()]
        assert batch == taken
        front.back.respond([b"done " + request for request in taken])
        assert [b"done " + request for request in batch] == front.responses()


def test_only_what_somebody_waits_for_is_notified():
    """The first request of a batch is, those that follow while the back end is busy are not; so are responses."""
    front = Front()
    assert front.push(b"a")
    assert not front.push(b"b")
    assert 2 == len(front.back.requests())
    assert front.push(b"c")
    front.back.requests()
    assert front.back.respond([b"1"])
    assert not front.back.respond([b"2", b"3"])
    assert 3 == len(front.responses())
    front.push(b"d")
    front.back.requests()
    assert front.back.respond([b"4"])


@pytest.mark.parametrize("producer", [33, 1000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_producer_that_runs_away_is_cut_off(producer):
    """At most a ring full is read; the sentence tells how far it went."""
    front = Front()
    front.set(REQUESTS, producer)
    with pytest.raises(RingError, match=f"runs away: {producer} requests in 32 slots"):
        front.back.requests()


def test_no_more_requests_than_slots_are_open():
    """A front end that reuses slots of requests without a response is cut off, too."""
    front = Front()
    front.push(*[b"x"] * 32)
    assert 32 == len(front.back.requests())
    front.set(REQUESTS, 33)
    with pytest.raises(RingError):
        front.back.requests()
    front.back.respond([b"y"])
    assert 1 == len(front.back.requests())


def test_a_response_needs_a_request_and_fits_into_a_slot():
    """Mistakes of a back end are loud."""
    front = Front()
    with pytest.raises(ValueError, match="without a request"):
        front.back.respond([b"x"])
    front.push(b"a")
    front.back.requests()
    with pytest.raises(ValueError, match="bytes in slots of"):
        front.back.respond([b"x" * 113])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 4, 8, 12]), st.integers(0, 0xFFFF_FFFF)), max_size=12))
def test_whatever_is_written_over_the_indices_the_back_end_survives(writes):
    """Nothing but RingError, never more than a ring full, never a byte outside the page."""
    front = Front()
    front.memory.write(0, b"\xaa" * 4096)
    front.memory.write(2 << 12, b"\xbb" * 4096)
    for offset, value in writes:
        front.set(PAGE + offset, value)
        try:
            taken = front.back.requests()
            assert len(taken) <= 32
            front.back.respond([b"r"] * len(taken))
        except RingError:
            pass
    assert b"\xaa" * 4096 == front.memory.read(0, 4096)
    assert b"\xbb" * 4096 == front.memory.read(2 << 12, 4096)


# ---------------------------------------------------------------------- bytes and the console


class Terminal:
    """A console and the guest that has its page."""

    def __init__(self):
        self.memory = GuestPhysicalMemory(MachineMemory(3 << 12))
        self.sink, self.warnings, self.notified = Sink(), [], 0
        self.console = Console(self.memory, PAGE, self.sink)
        self.console.warn = self.warnings.append
        self.console.notify = self._notify

    def _notify(self):
        self.notified += 1

    def indices(self):
        """in_cons, in_prod, out_cons, out_prod."""
        return struct.unpack("<4I", self.memory.read(CONSOLE_INDICES, 16))

    def set(self, index, value):
        """One of them."""
        self.memory.write(CONSOLE_INDICES + 4 * index, struct.pack("<I", value))

    def say(self, text):
        """The guest writes, waiting for room where there is none."""
        for byte in text:
            _, _, consumer, producer = self.indices()
            assert producer - consumer <= 2048
            self.memory.write(PAGE + 1024 + producer % 2048, bytes([byte]))
            self.set(3, producer + 1)


def test_the_console_prints_what_is_put_into_its_ring():
    """Around the end, many times over."""
    terminal = Terminal()
    for number in range(100):
        terminal.say(b"line %3d of a rather long text for a ring\n" % number)
        terminal.console.notified()
    assert 100 == terminal.sink.data.count(b"\n")
    assert terminal.sink.data.endswith(b"line  99 of a rather long text for a ring\n")
    assert 100 == terminal.notified


def test_what_is_typed_waits_until_there_is_room():
    """Nothing is lost."""
    terminal = Terminal()
    terminal.console.receive(bytes(range(256)) * 8)
    assert (0, 1024) == terminal.indices()[:2]
    got = terminal.memory.read(PAGE, 1024)
    terminal.set(0, 1024)
    terminal.console.notified()
    got += terminal.memory.read(PAGE, 1024)
    assert bytes(range(256)) * 8 == got


@pytest.mark.parametrize(("index", "what"), [(0, "consumer"), (3, "producer")])
def test_a_console_whose_indices_run_away_is_cut_off_and_said_so_once(index, what):
    """The rest of the machine goes on."""
    terminal = Terminal()
    terminal.set(index, 5000 if index == 3 else 1)
    terminal.console.notified()
    terminal.console.receive(b"x")
    terminal.console.notified()
    terminal.console.receive(b"y")
    assert [f"the paravirtual console is cut off: the {what} runs away"] == [
        w.split(":")[0] + ":" + w.split(":")[1] for w in terminal.warnings
    ]
    assert b"" == terminal.sink.data


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 0xFFFF_FFFF)), max_size=10))
def test_whatever_is_written_over_the_consoles_indices_it_survives(writes):
    """At most a ring full is printed for each."""
    terminal = Terminal()
    for index, value in writes:
        terminal.set(index, value)
        terminal.console.notified()
        terminal.console.receive(b"abc")
    assert len(terminal.sink.data) <= 2048 * len(writes)
    assert len(terminal.warnings) <= 1


def test_indices_wrap_at_32_bits():
    """They run freely."""
    memory = GuestPhysicalMemory(MachineMemory(1 << 12))
    ring = ByteRing(memory, 0, 16, 16, 20)
    ring._own = 0xFFFF_FFFA
    memory.write(16, struct.pack("<II", 0xFFFF_FFFA, 0xFFFF_FFFA))
    assert 10 == ring.give(b"0123456789")
    assert (4,) == struct.unpack("<I", memory.read(20, 4))
