"""Virtual time: nanoseconds that follow from position, and the events scheduled on it.

Devices see the ``Clock`` protocol; the run loop asks for the next deadline. ``HostClock`` is the same with the
host's time underneath, for ``--clock host``.
"""

import heapq
import time
from collections.abc import Callable
from typing import Final

from hvemu.vocabulary.addresses import Nanoseconds, Position

NANOSECONDS_PER_BYTE: Final = 4
"""One guest code byte takes this long: a machine of some 70 million instructions a second."""
FAR_AWAY: Final = Position(1 << 60)


class ScheduledCall:
    """One event; cancelling leaves it in the heap, marked."""

    __slots__ = ("at", "callback", "sequence")

    def __init__(self, at: int, sequence: int, callback: Callable[[], None]) -> None:
        self.at = at
        self.sequence = sequence
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call back any more."""
        self.callback = None

    def __lt__(self, other: "ScheduledCall") -> bool:
        return (self.at, self.sequence) < (other.at, other.sequence)


class VirtualClock:
    """Time as a function of position. The machine connects ``position`` and ``shorten`` to its mode."""

    def __init__(self) -> None:
        self._heap: list[ScheduledCall] = []
        self._sequence = 0
        self._now: int | None = None  # the due time, inside a callback
        self.position: Callable[[], int] = lambda: 0
        self.shorten: Callable[[Position], None] = lambda position: None

    def now(self) -> Nanoseconds:
        """Virtual nanoseconds since power-on."""
        return Nanoseconds(self.position() * NANOSECONDS_PER_BYTE if self._now is None else self._now)

    def schedule(self, at: Nanoseconds, callback: Callable[[], None]) -> ScheduledCall:
        """Call back at the first instruction boundary at or after ``at``."""
        self._sequence += 1
        call = ScheduledCall(at, self._sequence, callback)
        heapq.heappush(self._heap, call)
        if self._heap[0] is call and self._now is None:
            self.shorten(self.position_of(at))
        return call

    def position_of(self, at: int) -> Position:
        """The first position whose time is ``at`` or later."""
        return Position(-(-at // NANOSECONDS_PER_BYTE))

    def deadline(self) -> Position:
        """Position of the next event."""
        heap = self._heap
        while heap and heap[0].callback is None:
            heapq.heappop(heap)
        return self.position_of(heap[0].at) if heap else FAR_AWAY

    def run_due(self) -> int:
        """Call every event that is due; returns how many there were."""
        heap, count = self._heap, 0
        while heap and heap[0].at <= self._elapsed():
            call = heapq.heappop(heap)
            callback, call.callback = call.callback, None
            if callback is None:
                continue
            count += 1
            self._now = call.at
            try:
                callback()
            finally:
                self._now = None
        return count

    def _elapsed(self) -> int:
        return self.position() * NANOSECONDS_PER_BYTE


class HostClock(VirtualClock):
    """The host's time; positions are host nanoseconds in the same unit."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.perf_counter_ns()

    def now(self) -> Nanoseconds:
        """Host nanoseconds since power-on."""
        return Nanoseconds(self._elapsed())

    def _elapsed(self) -> int:
        return time.perf_counter_ns() - self._start

    def host_position(self) -> int:
        """Host time in the unit of positions."""
        return self._elapsed() // NANOSECONDS_PER_BYTE
