"""What a host bus adapter and a logical unit say to each other: commands and their ends.

SAM-5: an initiator sends a command descriptor block to a logical unit, which answers with a status, data and, with
CHECK CONDITION, sense data in the same breath (autosense).
"""

from typing import NamedTuple, Protocol


class Command(NamedTuple):
    """``cdb`` as sent, padded or not; ``data_out`` is everything that the initiator wants to transfer to the unit."""

    cdb: bytes
    data_out: bytes = b""
    initiator: str = ""
    """The name of the I_T nexus; reservations and unit attentions belong to one."""


class Answer(NamedTuple):
    """How a command ended. An adapter cuts ``data_in`` to the buffer it was given and computes residuals."""

    status: int
    data_in: bytes = b""
    sense: bytes = b""
    data_out_length: int = 0
    """Bytes of data-out that the command descriptor block asks for, whatever was sent."""


class LogicalUnit(Protocol):
    """A disk, a CD-ROM, or the answer of a target for units that are not there."""

    def execute(self, command: Command) -> Answer:
        """Carry the command out at once. Raises nothing for anything an initiator sends."""
        ...

    def reset(self, what: str) -> None:
        """A reset of ``what``: "power on", "bus" or "logical unit"; establishes its unit attention for everybody."""
        ...

    def nexus_lost(self, initiator: str) -> None:
        """The initiator has gone (SAM-5 6.3.4): what lives as long as its nexus ends. Registered keys stay."""
        ...
