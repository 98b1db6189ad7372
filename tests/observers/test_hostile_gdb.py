"""Clients that mean no good, or are broken: nothing they send breaks the stub or the machine."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import VirtualCpu
from hvemu.machine.machine import Machine
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.observers import gdb_stub
from hvemu.observers.gdb_link import PACKET_SIZE
from hvemu.vocabulary.outcomes import Stop

from .gdb_desk import TURNS, Desk, guest, in_long_mode, packet

HEXADECIMAL = st.binary(max_size=6).map(lambda data: data.hex().encode())
NUMBER = st.one_of(st.integers(0, 1 << 36), st.integers(0, 1 << 66)).map(lambda number: b"%x" % number)
LETTER = st.sampled_from(
    b"m M X p P g G Z0 Z1 z0 Z9 H T ? D s c C S05; vCont vCont? vCont; q qSupported: QStartNoAckMode "
    b"qRcmd, qXfer:features:read:target.xml:".split()
)
PIECE = st.one_of(
    NUMBER, HEXADECIMAL, st.sampled_from([b",", b":", b";", b"=", b"}", b" ", b"-"]), st.binary(max_size=3)
)
BODY = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda letter, pieces: letter + b"".join(pieces), LETTER, st.lists(PIECE, max_size=6)),
    st.builds(
        lambda at, data: b"M%x,%x:%s" % (at, len(data), data.hex().encode()), st.integers(), st.binary(max_size=9)
    ),
    st.builds(
        lambda number, data: b"P%x=%s" % (number, data.hex().encode()), st.integers(0, 50), st.binary(max_size=11)
    ),
)


@pytest.fixture(scope="module", params=["hello", "long_mode"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """One machine for all that is thrown at it, of 32 bits or in long mode."""
    with guest(request.param) as desk:
        yield (in_long_mode(desk) if request.param == "long_mode" else desk).connect()


@settings(max_examples=300, deadline=None)
@given(body=BODY.filter(lambda body: body[:1] != b"k"))
def test_no_packet_breaks_the_stub(hostile: Desk, body: bytes) -> None:
    """Every one is answered, shortly, or lets the guest go on; the machine stays whole."""
    session = hostile.session
    session.action = ""
    answer = session.answer(body)
    assert (answer is None) == (session.action in ("continue", "step"))
    assert answer is None or (len(answer) <= PACKET_SIZE and not set(answer) & set(b"#$"))
    assert re.fullmatch(rb"(..)+", session.answer(b"g") or b"")


class Puppet:
    """A machine without a guest: it stops at once whenever it is let go."""

    def __init__(self) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(1 << 16))
        self.cpu = VirtualCpu(fpu=bytes(512))
        self.mode = SimpleNamespace(enter=self._enter)
        self.is_64_bit_kernel = False
        self.breakpoints: frozenset[int] = frozenset()
        self.at_breakpoint = False
        self.stop: Stop | None = None
        self.poll: Callable[[], None] = lambda: None
        self.paused = 0

    read_memory = Machine.read_memory

    def _enter(self, cpu: VirtualCpu) -> None:
        self.cpu = cpu

    def registers(self) -> VirtualCpu:
        """The state that was entered last."""
        return self.cpu

    def run(self) -> None:
        """A boundary, nothing more."""
        self.poll()

    step = run

    def pause(self) -> None:
        """Counted."""
        self.paused += 1


FRAME = st.one_of(
    BODY.map(packet), st.binary(max_size=20), st.sampled_from([b"+", b"-", b"\x03", b"$", b"#", b"$#00", b"+-" * 50])
)


@settings(max_examples=150, deadline=None)
@given(frames=st.lists(FRAME, max_size=12))
@patch.object(gdb_stub, "_PATIENCE", 0.0)
def test_no_stream_of_bytes_breaks_the_stub(frames: list[bytes]) -> None:
    """Whatever comes in whatever pieces: the next client is served as ever, unless the guest was ended."""
    machine = Puppet()
    desk = Desk(machine)
    try:
        desk.client.connect(("127.0.0.1", desk.stub.port))
        for frame in frames:
            with contextlib.suppress(ConnectionError):
                desk.client.sendall(frame)
            if machine.stop is None:
                desk.stub.advance()
        desk.client.close()
        for _ in range(TURNS):
            if desk.stub._session is None or machine.stop is not None:
                break
            desk.stub.advance()
        assert desk.stub._session is None or machine.stop is not None
        if machine.stop is None:
            desk.client = socket.socket()
            assert desk.connect().ask("qC") == "QC1"
    finally:
        desk.close()
