"""One timer that a device arms, re-arms and takes back, and whose due time is part of the device's state."""

from collections.abc import Callable

from hvemu.devices.contract import Clock, Timer
from hvemu.vocabulary.addresses import Nanoseconds


class Deadline:
    """At most one pending call. ``at`` is its time, or None when nothing is pending."""

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self.at: int | None = None
        self._clock = clock
        self._callback = callback
        self._timer: Timer | None = None

    def arm(self, at: int | None) -> None:
        """Call back at ``at`` and not at any earlier appointment; None takes the appointment back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.at = at
        if at is not None:
            self._timer = self._clock.schedule(Nanoseconds(at), self._fire)

    def _fire(self) -> None:
        self.at = None
        self._timer = None
        self._callback()
