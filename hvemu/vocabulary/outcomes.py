"""What a handler wants done about an exit. Only the mode moves EIP; handlers neither loop nor print."""

from typing import NamedTuple

from hvemu.vocabulary.errors import ExitStatus


class Retire(NamedTuple):
    """The instruction is done; ``value`` is what it read."""

    value: int = 0


class Retry(NamedTuple):
    """Execute the instruction again; its cause has been removed."""


class Inject(NamedTuple):
    """Deliver an exception to the guest instead."""

    vector: int
    error_code: int | None = None


class Halt(NamedTuple):
    """The guest waits for an interrupt."""


class Stop(NamedTuple):
    """The guest is to be stopped, with the process status and a sentence that says why."""

    status: int
    reason: str


Outcome = Retire | Retry | Inject | Halt | Stop

RETIRED = Retire()
POWERED_OFF = Stop(ExitStatus.POWER_OFF, "the guest powered off")
