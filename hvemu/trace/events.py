"""The events of the one stream. Every event carries the position at which it happened."""

from dataclasses import dataclass

from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.exits import AssistKind, ExitKind


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a position."""

    position: Position


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """Control came to the hypervisor. ``detail`` is the port, address or vector; ``value`` what was read or written."""

    kind: ExitKind
    eip: int
    detail: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class Batched(Event):
    """One call within a multicall. ``result`` is what its entry is told, negative for an error."""

    call: str
    result: int


@dataclass(frozen=True, slots=True)
class Assisted(Event):
    """hvemu acted in place of the CPU."""

    kind: AssistKind
    eip: int
    detail: int
    error_code: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceSpoke(Event):
    """A device told its watcher something."""

    device: str
    what: str
    detail: int | str


@dataclass(frozen=True, slots=True)
class InputArrived(Event):
    """Bytes or keys came from outside; recording these is all that replay needs."""

    source: str
    data: str


@dataclass(frozen=True, slots=True)
class TechniqueChanged(Event):
    """From here on another mode and paging technique run the guest, which does not notice."""

    mode: str
    mmu: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something that somebody should know went wrong, without an exit."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The guest stopped for good."""

    status: int
    reason: str
