"""Fakes of the five ports of a device: a clock that moves when told, lines and backends that remember."""

import heapq
from collections.abc import Callable
from itertools import count

from hvemu.devices.contract import DeviceEvent
from hvemu.vocabulary.addresses import GuestPhysical, Nanoseconds


class FakeTimer:
    """A scheduled call; ``cancelled`` is all that cancelling does."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Virtual time under the test's control. Callbacks see exactly the time that they asked for."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._order = count()
        self._queue: list[tuple[int, int, FakeTimer]] = []

    def now(self) -> Nanoseconds:
        return Nanoseconds(self._now)

    def schedule(self, at: Nanoseconds, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._queue, (at, next(self._order), timer))
        return timer

    def advance_to(self, time: int, at_most: int = 100_000) -> None:
        """Move on, calling back what is due on the way, in order; a device that never stops is an error."""
        for _ in range(at_most):
            if not self._queue or self._queue[0][0] > time:
                self._now = max(self._now, time)
                return
            at, _, timer = heapq.heappop(self._queue)
            if not timer.cancelled:
                self._now = max(self._now, at)
                timer.callback()
        raise AssertionError(f"more than {at_most} events before {time} ns")

    def advance(self, nanoseconds: int) -> None:
        self.advance_to(self._now + nanoseconds)

    def pending(self) -> list[int]:
        """When the calls that were not taken back are due."""
        return sorted(at for at, _, timer in self._queue if not timer.cancelled)


class FakeIrqLine:
    """A pin that counts its rising edges and remembers when they came."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.level = False
        self.edges: list[int] = []
        self._clock = clock

    def set_level(self, asserted: bool) -> None:
        if asserted and not self.level:
            self.edges.append(self._clock.now() if self._clock is not None else 0)
        self.level = asserted


class FakeBackend:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


class FakeMemory:
    """Guest memory with a few bytes in it; everything else reads zero."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def read(self, address: GuestPhysical, length: int) -> bytes:
        return bytes(self.bytes.get(address + index, 0) for index in range(length))

    def write(self, address: GuestPhysical, data: bytes) -> None:
        self.bytes.update({address + index: byte for index, byte in enumerate(data)})


class FakeCalls:
    """A callback that remembers its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, *arguments: object) -> None:
        self.calls.append(arguments)


class FakeWatcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[DeviceEvent] = []

    def __call__(self, event: DeviceEvent) -> None:
        self.events.append(event)
