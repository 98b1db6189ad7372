"""The event stream. With nobody listening ``active`` is False and publishers do not even build the event.

An observer that raises is detached and reported in ``failures``; the guest does not notice.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import IO

from hvemu.trace.events import Assisted, Event, Exited
from hvemu.vocabulary.exits import detail_name

Observer = Callable[[Event], None]


class Tracer:
    """Distributes events to observers in the order they subscribed."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self.active = False
        self.failures: list[str] = []

    def subscribe(self, observer: Observer) -> None:
        """Send every event to ``observer`` from now on."""
        self._observers.append(observer)
        self.active = True

    def unsubscribe(self, observer: Observer) -> None:
        """Send nothing more to ``observer``."""
        self._observers.remove(observer)
        self.active = bool(self._observers)

    def publish(self, event: Event) -> None:
        """Tell every observer; publishers test ``active`` first."""
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception as error:
                self.failures.append(f"observer {observer!r} was detached: {type(error).__name__}: {error}")
                self.unsubscribe(observer)


def event_as_dict(event: Event) -> dict[str, object]:
    """An event as plain values, its type under ``event``; a detail also by the name that the ledger gives it."""
    values = {"event": type(event).__name__, **dataclasses.asdict(event)}
    if isinstance(event, (Exited, Assisted)):
        values["name"] = detail_name(event.kind, event.detail)
    return values


class JsonLines:
    """An observer that writes one JSON object a line. The same run gives the same bytes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"{self._stream.name!r} of the trace"

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._stream.write(json.dumps(event_as_dict(event), separators=(",", ":")) + "\n")
