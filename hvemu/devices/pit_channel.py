"""One counter of the 8254, as arithmetic: its value, output and edges follow from the tick when it was loaded.

Called by pit8254.py with the current tick; it knows neither nanoseconds nor interrupt lines, and does no work
while nobody looks. A count begins one tick after it is written or the gate rises.

Not emulated: counts that lie outside of BCD digits keep their decimal weight instead of hardware's borrow.
Spec: Intel 82C54 data sheet (231244-006), "Mode definitions", "Read operations".
"""

from typing import Final

from hvemu.devices.saved import Flag, Instant, Number, Numbers

ACCESS_LOW: Final = 1
ACCESS_HIGH: Final = 2
ACCESS_BOTH: Final = 3
NULL_COUNT: Final = 0b0100_0000


def to_bcd(value: int) -> int:
    """Four decimal digits."""
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 % 10 << 12


def from_bcd(value: int) -> int:
    """The weight of four digits."""
    return (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 + (value >> 12 & 15) * 1000


class PitChannel:
    """Counter, latches and gate. All times are ticks of the 1.19 MHz clock since power-on."""

    layout = {
        "mode": Number(5),
        "access": Number(3),
        "bcd": Flag(),
        "gate": Flag(),
        "loaded": Flag(),
        "count": Number(0x1_0000, minimum=1),
        "next_count": Number(0x1_0000, minimum=1),
        "next_count_since": Instant(),
        "since": Instant(),
        "stopped_at": Number(1 << 63, minimum=-1),
        "write_latch": Number(0xFF),
        "writing_high": Flag(),
        "reading_high": Flag(),
        "latched": Numbers(2, 0xFF),
        "latched_bytes": Number(2),
        "status_latch": Instant(),
    }

    def __init__(self, gate: bool) -> None:
        self.reset(gate)

    def reset(self, gate: bool) -> None:
        """Undefined by the datasheet until a control word: mode 0, not counting, output low."""
        self.gate = gate
        self.latched = [0, 0]
        self.latched_bytes = 0
        self.control(0, ACCESS_BOTH, False)

    def control(self, mode: int, access: int, bcd: bool) -> None:
        """A control word: stop, and wait for a count."""
        self.mode = mode & 3 if mode > 5 else mode  # modes 6 and 7 are 2 and 3
        self.access = access
        self.bcd = bcd
        self.loaded = False
        self.count = self.next_count = 0x1_0000
        self.next_count_since: int | None = None
        self.since: int | None = None
        self.stopped_at = 0
        self.write_latch = 0
        self.writing_high = self.reading_high = False
        self.latched_bytes = 0
        self.status_latch: int | None = None

    def settle(self, now: int) -> None:
        """In modes 2 and 3 a new count waits for the end of the current period."""
        if self.next_count_since is not None and now >= self.next_count_since:
            self.since, self.count, self.next_count_since = self.next_count_since, self.next_count, None

    def elapsed(self, now: int) -> int:
        """Ticks counted so far; -1 while the count is not yet in the counter."""
        return now - self.since if self.since is not None else self.stopped_at

    def value(self, now: int) -> int:
        """What the counting element holds, as the guest reads it."""
        self.settle(now)
        elapsed = max(self.elapsed(now), 0)
        if self.mode == 2:
            value = self.count - elapsed % self.count
        elif self.mode == 3:  # counts even numbers twice per period, down by two
            phase, half = elapsed % self.count, (self.count + 1) // 2
            value = (self.count & ~1) - 2 * (phase if phase < half else phase - half)
        else:
            value = self.count - elapsed
        return to_bcd(value % 10_000) if self.bcd else value & 0xFFFF

    def output(self, now: int) -> bool:
        """The level of the OUT pin."""
        self.settle(now)
        if not self.loaded:
            return self.mode != 0
        elapsed = self.elapsed(now)
        if self.mode == 0:
            return elapsed >= self.count
        if self.since is None and self.mode != 4:
            return True
        if self.mode == 1:
            return elapsed < 0 or elapsed >= self.count
        if self.mode == 2:
            return elapsed < 0 or elapsed % self.count != self.count - 1
        if self.mode == 3:
            return elapsed < 0 or elapsed % self.count < (self.count + 1) // 2
        return elapsed != self.count

    def rising_edge(self, after: int) -> int | None:
        """The first tick later than ``after`` at which OUT rises, or None."""
        self.settle(after)
        if self.since is None or not self.loaded:
            return None
        if self.mode in (2, 3):
            if self.next_count_since is not None:
                return self.next_count_since
            return self.since + max((after - self.since) // self.count + 1, 1) * self.count
        edge = self.since + self.count + (1 if self.mode in (4, 5) else 0)
        return edge if edge > after else None

    def set_gate(self, gate: bool, now: int) -> None:
        """Modes 0 and 4 pause; 2 and 3 stop and begin anew; 1 and 5 are triggered by the rising edge."""
        if gate == self.gate:
            return
        self.settle(now)
        self.gate = gate
        if not self.loaded:
            return
        if not gate:
            if self.mode not in (1, 5) and self.since is not None:
                self.stopped_at, self.since, self.next_count_since = now - self.since, None, None
        elif self.mode in (0, 4):
            self.since = now - self.stopped_at
        else:
            self._begin(now)

    def _begin(self, now: int) -> None:
        self.count, self.next_count_since = self.next_count, None
        self.since = now + 1

    def write(self, value: int, now: int) -> bool:
        """A byte of the count; True when the count is complete."""
        if self.access == ACCESS_BOTH and not self.writing_high:
            self.write_latch = value
            self.writing_high = True
            if self.mode == 0:  # the first byte stops the count and lowers the output
                self.stopped_at, self.since = self.elapsed(now), None
                self.loaded = False
            return False
        if self.access == ACCESS_BOTH:
            count = value << 8 | self.write_latch
        else:
            count = value << 8 if self.access == ACCESS_HIGH else value
        self.writing_high = False
        self._load((from_bcd(count) or 10_000) if self.bcd else (count or 0x1_0000), now)
        return True

    def _load(self, count: int, now: int) -> None:
        self.settle(now)
        first, self.loaded = not self.loaded, True
        self.next_count = count
        if self.mode in (1, 5):
            if first:
                self.count = count  # shown until the gate triggers
        elif self.mode in (2, 3) and not first and self.since is not None:
            self.next_count_since = self.since + max((now - self.since) // self.count + 1, 1) * self.count
        elif self.gate:
            self._begin(now)
        else:
            self.count, self.since, self.stopped_at = count, None, -1

    def latch_count(self, now: int) -> None:
        """Hold the value until it has been read; a second latch command is ignored."""
        if not self.latched_bytes:
            value = self.value(now)
            self.latched = [value & 0xFF, value >> 8]
            self.latched_bytes = 2 if self.access == ACCESS_BOTH else 1

    def latch_status(self, now: int) -> None:
        """Hold OUT, NULL COUNT and the control word."""
        if self.status_latch is None:
            waits = self.mode in (1, 5) if self.since is None else now < self.since
            null = waits or not self.loaded or self.next_count_since is not None
            status = self.output(now) << 7 | self.access << 4 | self.mode << 1 | self.bcd
            self.status_latch = status | NULL_COUNT if null else status

    def read(self, now: int) -> int:
        """Status if latched, then the latched count, else the value as it is now."""
        if self.status_latch is not None:
            status, self.status_latch = self.status_latch & 0xFF, None
            return status
        if self.access == ACCESS_BOTH:
            high = self.reading_high
            self.reading_high = not high
        else:
            high = self.access == ACCESS_HIGH
        if self.latched_bytes:
            self.latched_bytes -= 1
            return self.latched[high]
        value = self.value(now)
        return value >> 8 if high else value & 0xFF
