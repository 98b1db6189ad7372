"""XenStore: the wire protocol, watches, and what a guest can do to it: nothing."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.paravirtual.store import HOME, Store

PAGE = 0x1000
DIRECTORY, READ, WATCH, UNWATCH, START, END, PATH, WRITE, MKDIR, RM, EVENT, ERROR = (
    1, 2, 4, 5, 6, 7, 10, 11, 12, 13, 15, 16
)  # fmt: skip


class Guest:
    """A client on a page, and the store at the other end."""

    def __init__(self):
        self.memory = GuestPhysicalMemory(MachineMemory(3 << 12))
        self.store = Store(self.memory, PAGE)
        self.warnings, self.notified, self.received = [], 0, b""
        self.store.warn = self.warnings.append
        self.store.notify = self._notify

    def _notify(self):
        self.notified += 1

    def index(self, number, value=None):
        """req_cons, req_prod, rsp_cons, rsp_prod."""
        at = PAGE + 2048 + 4 * number
        if value is not None:
            self.memory.write(at, struct.pack("<I", value & 0xFFFF_FFFF))
        return self.memory.read_u32(at)

    def put(self, data):
        """Bytes of requests; notifies whenever the ring is full, and at the end."""
        for byte in data:
            if self.index(1) - self.index(0) == 1024:
                self.store.notified()
            producer = self.index(1)
            self.memory.write(PAGE + producer % 1024, bytes([byte]))
            self.index(1, producer + 1)
        self.store.notified()

    def take(self):
        """All messages that are there: type, number, payload."""
        while self.index(2) != self.index(3):
            consumer = self.index(2)
            self.received += self.memory.read(PAGE + 1024 + consumer % 1024, 1)
            self.index(2, consumer + 1)
            if self.index(2) == self.index(3):
                self.store.notified()
        found = []
        while len(self.received) >= 16:
            kind, number, _, length = struct.unpack_from("<4I", self.received)
            found.append((kind, number, self.received[16 : 16 + length]))
            self.received = self.received[16 + length :]
        return found

    def ask(self, kind, payload, number=7):
        """One request; returns all messages that come."""
        self.put(struct.pack("<4I", kind, number, 0, len(payload)) + payload)
        return self.take()


def test_a_value_is_written_and_read():
    """Relative names are the domain's own."""
    guest = Guest()
    assert [(WRITE, 7, b"OK\0")] == guest.ask(WRITE, b"data/x\0hello")
    assert [(READ, 8, b"hello")] == guest.ask(READ, b"data/x\0", 8)
    assert [(READ, 8, b"hello")] == guest.ask(READ, f"{HOME}/data/x\0".encode(), 8)
    assert b"hello" == guest.store.read("data/x")
    assert [(DIRECTORY, 7, b"x\0")] == guest.ask(DIRECTORY, b"data\0")
    assert [(RM, 7, b"OK\0")] == guest.ask(RM, b"data\0")
    assert [(ERROR, 7, b"ENOENT\0")] == guest.ask(READ, b"data/x\0")


def test_a_watch_fires_once_at_once_and_then_with_every_change():
    """By the host or by the guest, of the name or of what is below; with the token; until it is taken back."""
    guest = Guest()
    fired = (EVENT, 0, b"memory/target\0token\0")
    assert [(WATCH, 7, b"OK\0"), fired] == guest.ask(WATCH, b"memory/target\0token\0")
    guest.store.write("memory/target", b"8192")
    assert [fired] == guest.take()
    guest.store.write("memory/other", b"1")
    assert [] == guest.take()
    assert [(WRITE, 7, b"OK\0"), (EVENT, 0, b"memory/target/a\0token\0")] == guest.ask(WRITE, b"memory/target/a\0v")
    assert [(ERROR, 7, b"EEXIST\0")] == guest.ask(WATCH, b"memory/target\0token\0")
    assert [(UNWATCH, 7, b"OK\0")] == guest.ask(UNWATCH, b"memory/target\0token\0")
    guest.store.write("memory/target", b"1")
    assert [] == guest.take()


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        (READ, b"no/such\0", b"ENOENT"),
        (READ, b"unended", b"EINVAL"),
        (READ, b"\0", b"EINVAL"),
        (READ, b"a//b\0", b"EINVAL"),
        (READ, b"a/\0", b"EINVAL"),
        (READ, b"\xff\0", b"EINVAL"),
        (READ, b"a" * 3000 + b"\0", b"EINVAL"),
        (DIRECTORY, b"none\0", b"ENOENT"),
        (UNWATCH, b"a\0b\0", b"ENOENT"),
        (WRITE, b"/local/domain/0/x\0v", b"EACCES"),
        (WRITE, b"/vm\0v", b"EACCES"),
        (WRITE, b"x\0" + b"v" * 2049, b"ENOSPC"),
        (99, b"x\0", b"ENOSYS"),
    ],
)
def test_what_cannot_be_done_is_an_error_by_its_name(kind, payload, error):
    """As in xs_wire.h; the store goes on."""
    guest = Guest()
    assert [(ERROR, 7, error + b"\0")] == guest.ask(kind, payload)
    assert [(PATH, 7, HOME.encode() + b"\0")] == guest.ask(PATH, b"1\0")


def test_a_guest_cannot_fill_the_host():
    """Names and watches are limited."""
    guest = Guest()
    answers = [guest.ask(WRITE, b"n/%d\0v" % number)[0] for number in range(1_005)]
    assert (ERROR, 7, b"EQUOTA\0") == answers[-1]
    answers = [guest.ask(WATCH, b"n/%d\0t\0" % number)[0] for number in range(130)]
    assert (ERROR, 7, b"EQUOTA\0") == answers[-1]


def test_a_transaction_is_a_form():
    """Numbers and an OK."""
    guest = Guest()
    assert [(START, 7, b"1\0")] == guest.ask(START, b"\0")
    assert [(END, 7, b"OK\0")] == guest.ask(END, b"T\0")


@pytest.mark.parametrize(
    ("number", "value", "words"), [(1, 5000, "the producer runs away"), (2, 3, "the consumer runs away")]
)
def test_rings_that_run_away_cut_the_store_off(number, value, words):
    """Once, with a sentence; nothing else happens."""
    guest = Guest()
    if number == 2:
        guest.index(2, 3)
        guest.put(struct.pack("<4I", PATH, 7, 0, 2) + b"1\0")
    else:
        guest.index(number, value)
        guest.store.notified()
    guest.store.notified()
    guest.store.write("x", b"1")
    assert 1 == len(guest.warnings)
    assert words in guest.warnings[0]


def test_a_message_that_is_too_long_or_answers_that_nobody_takes_cut_it_off():
    """4,096 bytes is the most of the protocol; answers wait up to a limit."""
    guest = Guest()
    guest.put(struct.pack("<4I", READ, 7, 0, 4097))
    assert ["the guest's store is cut off: a message of 4097 bytes"] == guest.warnings
    guest = Guest()
    for _ in range(300):
        guest.ask(WRITE, b"x\0" + b"v" * 2000)
        guest.store._watches.clear()
        guest.put(struct.pack("<4I", READ, 7, 0, 2) + b"x\0")
        if guest.warnings:
            break
    else:
        for _ in range(300):
            guest.put((struct.pack("<4I", READ, 7, 0, 2) + b"x\0") * 5)
    assert ["the guest's store is cut off: nobody takes the answers"] == guest.warnings


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 20), st.binary(max_size=40))), max_size=12))
def test_whatever_is_put_into_the_ring_the_store_survives(pieces):
    """Rubbish and requests of any kind."""
    guest = Guest()
    for piece in pieces:
        data = piece if isinstance(piece, bytes) else struct.pack("<4I", piece[0], 1, 0, len(piece[1])) + piece[1]
        guest.put(data)
        guest.take()
    assert len(guest.warnings) <= 1
