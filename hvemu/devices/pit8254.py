"""The 8254 interval timer, and system control port B (61h), through which a PC gates and hears channel 2.

Everything is computed from the clock when asked. Only channel 0 schedules events, one per rising edge of its
output: the line falls and rises there, and the low half of a square wave is not driven. Edges are computed in
ticks from the start, so that they do not drift against the clock.

Not emulated: the speaker's sound, channel 1's refresh (only its toggle in port 61h), parity and channel checks.
Spec: Intel 82C54 data sheet (231244-006); port 61h: Intel 82371AB (PIIX4), section 4.2.5 "NMISC".
"""

from typing import Any, Final

from hvemu.devices.contract import Clock, Device, DeviceState, IrqLine
from hvemu.devices.deadline import Deadline
from hvemu.devices.pit_channel import PitChannel
from hvemu.devices.saved import (
    Flag,
    Instant,
    Number,
    SavedDevice,
    adopt_fields,
    fields_for,
    parse_fields,
    plain_fields,
)
from hvemu.vocabulary.machine_map import PIT_HZ

SECOND: Final = 1_000_000_000
REFRESH_PERIOD: Final = 15_085  # nanoseconds between two toggles of bit 4 of port 61h
READ_BACK: Final = 3


def ticks_at(now: int) -> int:
    """Whole periods of the timer's clock since power-on."""
    return now * PIT_HZ // SECOND


class Pit8254(Device):
    """Counters at offsets 0 to 2, the control word at 3."""

    name = "pit8254"

    def __init__(self, *, clock: Clock, irq0: IrqLine) -> None:
        self._clock = clock
        self._irq0 = irq0
        self._channels = (PitChannel(True), PitChannel(True), PitChannel(False))
        self._edge = Deadline(clock, self._rise)
        self.reset()

    def reset(self) -> None:
        """No channel counts; the gates are those of a PC after power-on."""
        for channel, gate in zip(self._channels, (True, True, False), strict=True):
            channel.reset(gate)
        self._edge.arm(None)
        self._drive(False)

    def read(self, offset: int, size: int) -> int:
        """A byte of a counter or of its latches; the control word cannot be read."""
        if offset > 2:
            return 0xFF
        return self._channels[offset].read(ticks_at(self._clock.now()))

    def write(self, offset: int, size: int, value: int) -> None:
        """A byte of a count, or a control word."""
        value &= 0xFF
        if offset == 3:
            self._write_control(value)
        elif offset < 3:
            channel = self._channels[offset]
            lowers = channel.write(value, ticks_at(self._clock.now())) or channel.mode == 0
            if offset == 0 and lowers:
                self._follow()

    def _write_control(self, value: int) -> None:
        select, access = value >> 6, value >> 4 & 3
        now = ticks_at(self._clock.now())
        if select == READ_BACK:
            for number, channel in enumerate(self._channels):
                if value & 2 << number:
                    if not value & 0b0010_0000:
                        channel.latch_count(now)
                    if not value & 0b0001_0000:
                        channel.latch_status(now)
        elif access == 0:
            self._channels[select].latch_count(now)
        else:
            self._channels[select].control(value >> 1 & 7, access, bool(value & 1))
            if select == 0:
                self._follow()

    def channel_output(self, number: int, now: int | None = None) -> bool:
        """The level of a channel's OUT pin now; a caller that knows the time in nanoseconds may say it."""
        return self._channels[number].output(ticks_at(self._clock.now() if now is None else now))

    def set_gate(self, number: int, gate: bool) -> None:
        """Set a channel's GATE pin; on a PC only that of channel 2 is wired."""
        self._channels[number].set_gate(gate, ticks_at(self._clock.now()))
        if number == 0:
            self._follow()

    def gate(self, number: int) -> bool:
        """The level of a channel's GATE pin."""
        return self._channels[number].gate

    def _follow(self) -> None:
        """Drive the line as OUT is now and schedule its next rising edge."""
        channel, now = self._channels[0], ticks_at(self._clock.now())
        self._drive(channel.output(now))
        self._schedule(now)

    def _drive(self, level: bool) -> None:
        """The level is kept: in the low half of a square wave it is not OUT's."""
        self._level = level
        self._irq0.set_level(level)

    def _schedule(self, now: int) -> None:
        edge = self._channels[0].rising_edge(now)
        self._edge.arm(None if edge is None else -(-edge * SECOND // PIT_HZ))

    def _rise(self) -> None:
        self._drive(False)
        self._drive(True)
        self._schedule(ticks_at(self._clock.now()))

    def state(self) -> DeviceState:
        """Three channels, the line, and when the next edge is due."""
        channels = [plain_fields(channel, PitChannel.layout) for channel in self._channels]
        fields = {"channels": channels, "level": self._level, "edge": self._edge.at}
        return DeviceState(self.name, self.version, fields)

    def from_state(self, state: DeviceState) -> None:
        """Adopt the channels and schedule the edge that was due."""
        raw: dict[str, Any] = dict(fields_for(self, state))
        channels = raw.pop("channels", None)
        if not isinstance(channels, list) or len(channels) != 3:
            raise ValueError(f"the state of {self.name} must have three channels")
        rest = parse_fields({"level": Flag(), "edge": Instant()}, raw, self.name)
        parsed = [parse_fields(PitChannel.layout, fields, self.name) for fields in channels]
        for channel, fields in zip(self._channels, parsed, strict=True):
            adopt_fields(channel, fields)
        self._drive(rest["level"])
        self._edge.arm(rest["edge"])


class SystemControlPortB(SavedDevice):
    """Port 61h: channel 2's gate and output, the speaker gate, the refresh toggle."""

    name = "system-control-b"
    layout = {"writable": Number(0b1111)}

    def __init__(self, *, clock: Clock, timer: Pit8254) -> None:
        self._clock = clock
        self._timer = timer
        self.writable = 0

    def reset(self) -> None:
        """Gate closed, speaker off."""
        self.writable = 0
        self._timer.set_gate(2, False)

    def read(self, offset: int, size: int) -> int:
        """Bit 0 gate, 1 speaker, 4 refresh toggle, 5 OUT2."""
        value, now = self.writable, self._clock.now()
        if now // REFRESH_PERIOD & 1:
            value |= 0b01_0000
        if self._timer.channel_output(2, now):
            value |= 0b10_0000
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Only the low four bits can be written."""
        self.writable = value & 0b1111
        self._timer.set_gate(2, bool(value & 1))
