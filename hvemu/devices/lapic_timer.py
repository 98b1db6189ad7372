"""The local APIC's timer as arithmetic: a counter that divides the bus clock by 1 to 128.

Used by lapic.py. Counts follow from the bus tick at which they began, so that a periodic timer does not drift;
nothing happens between expiries. A masked timer counts without scheduling anything. Periods shorter than
a microsecond are counted exactly but call back at most once per microsecond, which a single pending vector hides.

Not emulated: TSC-deadline mode.
Spec: Intel SDM volume 3, 10.5.4 "APIC timer".
"""

from collections.abc import Callable
from typing import Final

from hvemu.devices.contract import Clock
from hvemu.devices.deadline import Deadline
from hvemu.devices.saved import Due, Instant, Number

SECOND: Final = 1_000_000_000
SHORTEST: Final = 1_000  # nanoseconds between two callbacks
DIVIDERS: Final = (2, 4, 8, 16, 32, 64, 128, 1)  # by bits 3, 1 and 0 of the divide configuration


class LapicTimer:
    """Initial count, current count and divide configuration. ``expire`` is called when an interrupt is due."""

    layout = {
        "initial": Number(0xFFFF_FFFF),
        "configuration": Number(0b1011),
        "periodic": Number(1),
        "masked": Number(1),
        "count": Number(0xFFFF_FFFF),
        "since": Instant(),
        "expiry": Due(),
    }

    def __init__(self, clock: Clock, bus_hz: int, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._bus_hz = bus_hz
        self._expire = expire
        self.expiry = Deadline(clock, self._expired)
        self.reset()

    def reset(self) -> None:
        """Stopped, dividing by 2, masked."""
        self.initial = 0
        self.configuration = 0
        self.periodic = 0
        self.masked = 1
        self.count = 0  # the count at bus tick ``since``
        self.since: int | None = None  # None: stopped, or expired
        self.expiry.arm(None)

    def start(self, initial: int) -> None:
        """A write to the initial count register; 0 stops."""
        self.initial = self.count = initial
        self.since = self._tick() if initial else None
        self._arm()

    def divide(self, configuration: int) -> None:
        """A write to the divide configuration register; the count runs on at the new speed."""
        self._settle()
        if self.since is not None:
            self.count = self.current()
            self.since = self._tick()
        self.configuration = configuration & 0b1011
        self._arm()

    def set_mode(self, periodic: int, masked: int) -> None:
        """A write to the timer's local vector table entry."""
        if (periodic, masked) != (self.periodic, self.masked):
            self._settle()
            self.periodic, self.masked = periodic, masked
            self._arm()

    def current(self) -> int:
        """The current count register."""
        if self.since is None:
            return 0
        elapsed = (self._tick() - self.since) // self._divider()
        if elapsed < self.count:
            return self.count - elapsed
        return self.initial - (elapsed - self.count) % self.initial if self.periodic and self.initial else 0

    def _divider(self) -> int:
        return DIVIDERS[self.configuration >> 1 & 4 | self.configuration & 3]

    def _tick(self) -> int:
        return self._clock.now() * self._bus_hz // SECOND

    def _settle(self) -> None:
        """Move past the expiries that nobody was to hear of, and past one whose callback is still due."""
        if self.since is None:
            return
        divider = self._divider()
        elapsed = (self._tick() - self.since) // divider
        if elapsed < self.count:
            return
        if not self.periodic or not self.initial:
            self.since = None
            return
        periods = (elapsed - self.count) // self.initial
        self.since += (self.count + periods * self.initial) * divider
        self.count = self.initial

    def _arm(self) -> None:
        if self.since is None or self.masked:
            self.expiry.arm(None)
            return
        divider = self._divider()
        end = self.since + self.count * divider
        due = -(-end * SECOND // self._bus_hz)
        earliest = self._clock.now() + SHORTEST
        if self.periodic and self.initial and due < earliest:
            late = -(-(earliest * self._bus_hz // SECOND - end) // (self.initial * divider))
            due = -(-(end + max(late, 0) * self.initial * divider) * SECOND // self._bus_hz)
        self.expiry.arm(due)

    def _expired(self) -> None:
        self._settle()
        self._arm()
        self._expire()
