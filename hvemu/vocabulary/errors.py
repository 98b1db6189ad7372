"""What can go wrong, and whose fault it is.

    HvemuError
    ├── UserError      the user asked for something impossible: one sentence, ends with what to do; status 2
    ├── GuestFault     the guest ended itself; a sentence naming EIP, instruction and cause; status 64 or 66
    └── HostBug        we are wrong: keeps the trace; status 70

Guest behaviour is never raised as an exception inside the engine: it becomes an Exit and an Outcome.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Process status. A guest's write of ``c`` to port 0xF4 gives ``(c << 1) | 1``, always odd; ours are even."""

    POWER_OFF = 0
    USAGE = 2
    GUEST_ENDED = 64
    TRIPLE_FAULT = 66
    HALTED = 68
    HOST_BUG = 70
    REFUSED = 72
    DIFFERENT = 74
    LIMIT = 124
    INTERRUPTED = 130


class HvemuError(Exception):
    """Root of all errors that hvemu raises on purpose."""

    status: ExitStatus = ExitStatus.HOST_BUG


class UserError(HvemuError):
    """A user's mistake. ``hint`` says what exists or what to type next."""

    status = ExitStatus.USAGE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message.rstrip('.')}. {hint}".strip() if hint else message)
        self.hint = hint


class RefusedError(UserError):
    """A request that policy refuses although it is well-formed."""

    status = ExitStatus.REFUSED


class GuestFault(HvemuError):
    """The guest ended; the message names EIP, the instruction and the cause."""

    status = ExitStatus.GUEST_ENDED


class HostBug(HvemuError):
    """A contract inside hvemu was broken."""

    status = ExitStatus.HOST_BUG
