"""A machine with a gdb stub on a socket; one thread plays gdb and the run loop in turn."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

from hvemu.machine.builder import build
from hvemu.observers.gdb_session import GdbSession
from hvemu.observers.gdb_stub import GdbStub
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration
from hvemu.vocabulary.paging import EFER_LMA

TURNS = 2000
"""How often the run loop may turn before what was waited for has come."""
START, MAIN, PRINT, REPORT = 0x100075, 0x100010, 0x100160, 0x1003B0
EIP = 8


def packet(body: bytes) -> bytes:
    """A body with its frame and checksum."""
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class Desk:
    """A machine with a stub, and at most one client that behaves as gdb does."""

    def __init__(self, machine: Any, *, holding: bool = True) -> None:
        self.machine = machine
        self.stub = GdbStub(machine, "127.0.0.1", 0, holding=holding)
        machine.poll = self.stub.poll
        self.client = socket.socket()
        self.received = bytearray()

    def connect(self, *features: str) -> "Desk":
        """A client without acknowledgements that has said what it can do."""
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.connect(("127.0.0.1", self.stub.port))
        self.client.setblocking(False)
        self.ask("QStartNoAckMode")
        self.client.sendall(b"+")
        self.ask(f"qSupported:{';'.join(features)}")
        return self

    def at_third_poll(self, action: Callable[[], object]) -> None:
        """Do something from outside while the guest runs."""
        polls = 0

        def poll() -> None:
            nonlocal polls
            if not self.stub.holding:
                polls += 1
                if polls == 3:
                    action()
            self.stub.poll()

        self.machine.poll = poll

    def turn_until(self, done: Callable[[], object], what: str = "it") -> None:
        """Let the run loop turn; the client reads meanwhile."""
        for _ in range(TURNS):
            with contextlib.suppress(OSError):
                self.received += self.client.recv(65536)
            if done():
                return
            if self.machine.stop is None:
                self.stub.advance()
        raise AssertionError(f"{what} did not come; what came is {bytes(self.received)!r}")

    def hear(self) -> str:
        """The next packet from the stub."""
        found: list[re.Match[bytes]] = []

        def whole() -> bool:
            match = re.search(rb"\$([^#]*)#([0-9a-f]{2})", self.received, re.DOTALL)
            found[:] = [match] if match else []
            return bool(found)

        self.turn_until(whole, "a packet")
        body, checksum = found[0].groups()
        assert sum(body) & 0xFF == int(checksum, 16)
        del self.received[: found[0].end()]
        return body.decode("latin-1")

    def say(self, text: str | bytes) -> None:
        """Send a packet; no answer is waited for."""
        self.client.sendall(packet(text.encode("latin-1") if isinstance(text, str) else text))

    def ask(self, text: str | bytes) -> str:
        """Send a packet and hear the answer."""
        self.say(text)
        return self.hear()

    def hung_up(self) -> bool:
        """Whether the stub has closed the connection."""
        try:
            data = self.client.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.received += data
        return not data

    def register(self, number: int) -> int:
        """A register, as gdb reads it."""
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    @property
    def session(self) -> GdbSession:
        """The stub's side of the conversation."""
        assert self.stub._session is not None
        return self.stub._session

    def close(self) -> None:
        """Hang up on both sides."""
        self.stub.close()
        self.client.close()


@contextlib.contextmanager
def guest(name: str = "hello", *, holding: bool = True) -> Iterator[Desk]:
    """A guest of the catalogue before its first instruction."""
    desk = Desk(build(guest_configuration(catalog()[name])), holding=holding)
    try:
        yield desk
    finally:
        desk.close()


def in_long_mode(desk: Desk) -> Desk:
    """The lesson on long mode, run until it is there."""
    while not desk.machine.registers().efer & EFER_LMA:
        desk.machine.run(desk.machine.mode.position() + 1000)
    return desk
