"""What all connections share: the targets by name, who may log in, which sessions there are.

Spec: RFC 7143 4.4.1 (sessions), 6.3.5 (session reinstatement).
"""

import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from hvemu.devices.scsi.bus import Target
from hvemu.iscsi.chap import Credentials

MOST_SESSIONS: Final = 16
PORTAL_GROUP: Final = 1


class Session(Protocol):
    """A connection that has logged in."""

    nexus: str
    target: Target | None

    def abort_tasks(self, lun: int | None) -> None:
        """Forget the tasks that wait for data; of all units for None."""
        ...

    def hang_up(self, reason: str) -> None:
        """Close the connection."""
        ...


class Portal:
    """``random`` gives that many unpredictable bytes."""

    def __init__(
        self,
        targets: dict[str, Target],
        *,
        address: str = "127.0.0.1:3260",
        credentials: Credentials | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.targets = targets
        self.address = address
        self.credentials = credentials
        self.random = random
        self._sessions: dict[int, Session] = {}
        self._last_handle = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another session."""
        return len(self._sessions) >= MOST_SESSIONS

    def reinstate(self, session: Session) -> None:
        """Close an older session of the same nexus, whose place the new one takes."""
        for handle, other in list(self._sessions.items()):
            if other.nexus == session.nexus and other.target is session.target:
                self.end(handle)
                other.hang_up("the initiator has logged in again")

    def begin(self, session: Session) -> int:
        """Register a session and give its handle."""
        while True:
            self._last_handle = self._last_handle % 0xFFFF + 1
            if self._last_handle not in self._sessions:
                break
        self._sessions[self._last_handle] = session
        return self._last_handle

    def end(self, handle: int) -> None:
        """The session is over: its I_T nexus is lost. Nothing for one that has ended."""
        session = self._sessions.pop(handle, None)
        if session is not None and session.target is not None:
            session.target.nexus_lost(session.nexus)

    def known(self, handle: int) -> bool:
        """Whether there is such a session."""
        return handle in self._sessions

    def sessions_of(self, target: Target) -> Iterator[Session]:
        """Everybody who is logged in to a target."""
        return iter([session for session in self._sessions.values() if session.target is target])
