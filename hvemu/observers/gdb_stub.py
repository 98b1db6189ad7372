"""gdb's remote stub: ``run -s`` opens the port, ``target remote localhost:1234`` in gdb holds the guest.

One client at a time. A guest runs freely until a client comes, and again when it detaches.
"""

import select
import socket
from collections.abc import Callable
from typing import Final

from hvemu.machine.machine import Machine
from hvemu.observers.gdb_link import GdbLink
from hvemu.observers.gdb_session import TRAPPED, GdbSession
from hvemu.vocabulary.errors import UserError

_INTERRUPTED: Final = b"S02"
_PATIENCE: Final = 0.05
"""Host seconds to wait for a packet before the run loop looks at its console again."""


class GdbStub:
    """Listens for gdb. The run loop calls ``advance`` in place of ``Machine.run``; ``Machine.poll`` calls ``poll``."""

    def __init__(
        self,
        machine: Machine,
        host: str,
        port: int,
        *,
        holding: bool = False,
        monitor: Callable[[str], str] | None = None,
    ) -> None:
        """Open the port, 0 for any free one; raises UserError. ``holding``: wait for gdb before the guest runs.

        ``monitor`` answers a line of gdb's command of that name.
        """
        self._machine, self._monitor = machine, monitor
        try:
            self._listener = socket.create_server((host, port), backlog=1)
        except (OSError, OverflowError, UnicodeError) as error:
            why = str(getattr(error, "strerror", None) or error).partition(" (")[0]
            raise UserError(
                f"Cannot listen for gdb on {host}:{port}: {why}", "Give -gdb tcp::PORT a free port."
            ) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.announcement = f"gdb: target remote {'localhost' if host == '127.0.0.1' else host}:{self.port}"
        self.holding = holding
        """The guest is stopped at a boundary and gdb, there or still to come, says how it goes on."""
        self._held_before = holding
        self._session: GdbSession | None = None

    def poll(self) -> None:
        """Look at the port while the guest runs: a client that comes, or says anything, makes it stop."""
        if self.holding:
            return
        if self._session is None:
            if self._accept():
                self._machine.pause()
            return
        link = self._session.link
        link.fill()
        if not link.open:
            self._drop()
        elif link.pending:
            self._machine.pause()

    def advance(self) -> None:
        """Let the guest run until it stops, or talk with gdb for a moment while it is held."""
        machine, session = self._machine, self._session
        if self.holding:
            if machine.poll is not None:
                machine.poll()
            if machine.stop is None:
                self._converse()
            return
        stop = machine.step() if session is not None and session.action == "step" else machine.run()
        session = self._session  # it may have come or gone meanwhile
        if stop is not None or session is None:
            return
        if machine.at_breakpoint:
            reply = session.breakpoint_reply()
        elif session.link.pending or not session.action:
            reply = _INTERRUPTED
        elif session.action == "step":
            reply = TRAPPED
        else:
            return
        if session.action:  # a client that has just come asks by itself
            session.link.send(reply)
        session.action = ""
        self.holding = True

    def close(self) -> None:
        """Tell a waiting gdb how the guest ended, and close the port."""
        if self._session is not None:
            if self._session.action and self._machine.stop is not None:
                self._session.link.send(b"W%02x" % (int(self._machine.stop.status) & 0xFF))
            self._session.link.close()
        self._listener.close()

    def _accept(self) -> bool:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return False
        self._session = GdbSession(self._machine, GdbLink(client), monitor=self._monitor)
        self._held_before = self.holding
        return True

    def _converse(self) -> None:
        session = self._session
        if session is None:
            select.select([self._listener], [], [], _PATIENCE)
            self._accept()
            return
        link = session.link
        link.wait(_PATIENCE)
        for packet in link.packets():
            reply = session.answer(packet)
            if reply is not None:
                link.send(reply)
            if session.action or self._machine.stop is not None:
                break
        self.holding = not session.action
        if session.action == "detach" or not link.open:
            self._drop()

    def _drop(self) -> None:
        """The client has gone. If it did not say so, a guest that was held before it came is held for the next."""
        if self._session is not None:
            self._session.link.close()
        self._session = None
        self.holding = self.holding and self._held_before
        self._machine.breakpoints = frozenset()
