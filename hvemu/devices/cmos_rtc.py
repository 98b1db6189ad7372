"""The MC146818 real-time clock with its battery-backed CMOS memory, at an index and a data port.

Time is ``start_time`` plus virtual time; a guest that sets the clock moves it. Flags are worked out when asked;
an event is scheduled only for an interrupt that is enabled. Time and memory survive ``reset``, as the battery
makes them. Bit 7 of the index port is kept as ``nmi_disabled`` for the board.

Not emulated: daylight saving, the square wave output, oscillators other than 32,768 Hz.
Spec: Motorola MC146818A (1984), "Registers" and "Update cycle"; century at 32h: the PC/AT convention.
"""

from typing import Final

from hvemu.devices.calendar_time import next_match, plus_seconds, to_fields, to_seconds
from hvemu.devices.contract import Clock, IrqLine
from hvemu.devices.deadline import Deadline
from hvemu.devices.saved import Due, Flag, Number, Numbers, Octets, SavedDevice

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = range(6, 14)
CENTURY: Final = 0x32

UPDATE_IN_PROGRESS: Final = 0b1000_0000
DIVIDER_RESET: Final = 0b0110_0000
SET: Final = 0b1000_0000
PERIODIC: Final = 0b0100_0000  # PIE in register B, PF in register C
ALARM: Final = 0b0010_0000  # AIE, AF
UPDATE_ENDED: Final = 0b0001_0000  # UIE, UF
SQUARE_WAVE: Final = 0b0000_1000
BINARY: Final = 0b0000_0100
HOURS_24: Final = 0b0000_0010
IRQ_FLAG: Final = 0b1000_0000
PM: Final = 0b1000_0000
VALID_RAM_AND_TIME: Final = 0b1000_0000
ANY: Final = 0b1100_0000  # an alarm byte with both bits set matches everything

SECOND: Final = 1_000_000_000
UPDATE_TIME: Final = 2_228_000  # UIP is set 244 us before the update, which takes 1984 us
CRYSTAL_HZ: Final = 32_768
FIELDS: Final = {SECONDS: 0, MINUTES: 1, HOURS: 2, DAY_OF_WEEK: 3, DAY_OF_MONTH: 4, MONTH: 5, YEAR: 6, CENTURY: 7}
FAR: Final = 1 << 62


class CmosRtc(SavedDevice):
    """Index at offset 0, data at offset 1."""

    name = "cmos-rtc"
    layout = {
        "index": Number(0x7F),
        "nmi_disabled": Flag(),
        "memory": Octets(128),
        "register_a": Number(0x7F),
        "register_b": Number(0xFF),
        "flags": Number(0x70),
        "fields": Numbers(8, 0xFF),
        "began": Number(FAR, minimum=-FAR),
        "checked": Number(FAR),
        "event": Due(),
    }

    def __init__(self, *, clock: Clock, irq8: IrqLine, start_time: int) -> None:
        self._clock = clock
        self._irq8 = irq8
        self.memory = bytearray(128)
        self.event = Deadline(clock, self._update)
        self.register_a = 0b010_0110  # 32,768 Hz crystal, periodic rate 1024 Hz
        self.register_b = HOURS_24
        self.began: int = clock.now()  # when the second in ``fields`` began
        self.fields = to_fields(start_time)
        self.reset()

    def reset(self) -> None:
        """The RESET pin: interrupts off, flags cleared; time, alarm and memory stay."""
        self.index = 0
        self.nmi_disabled = False
        self.register_b &= ~(PERIODIC | ALARM | UPDATE_ENDED | SQUARE_WAVE)
        self.flags = 0
        self.checked: int = self._clock.now()  # the flags are right for this time
        self.event.arm(None)
        self._irq8.set_level(False)

    def set_byte(self, index: int, value: int) -> None:
        """For the builder: put a byte, as a set-up program would have."""
        self._write_register(index & 0x7F, value & 0xFF)

    def byte(self, index: int) -> int:
        """For the board: a byte of the memory, such as the shutdown code at 0Fh."""
        return self.memory[index & 0x7F]

    def read(self, offset: int, size: int) -> int:
        """The index port cannot be read."""
        return self._read_register(self.index) if offset == 1 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a byte, or write the selected one."""
        if offset == 0:
            self.index = value & 0x7F
            self.nmi_disabled = bool(value & 0x80)
        elif offset == 1:
            self._write_register(self.index, value & 0xFF)

    def resume(self) -> None:
        """Drive the interrupt line."""
        self._irq8.set_level(bool(self.flags & self.register_b))

    def _read_register(self, index: int) -> int:
        position = FIELDS.get(index)
        if position is not None:
            self._advance()
            return self._encode(index, self.fields[position])
        if index == REGISTER_A:
            return self.register_a | (UPDATE_IN_PROGRESS if self._updating() else 0)
        if index == REGISTER_B:
            return self.register_b
        if index == REGISTER_C:
            return self._read_flags()
        return VALID_RAM_AND_TIME if index == REGISTER_D else self.memory[index]

    def _write_register(self, index: int, value: int) -> None:
        position = FIELDS.get(index)
        if position is None and index > REGISTER_D:
            self.memory[index] = value
            return
        self._collect_flags()
        self._advance()
        if position is not None:
            self.fields[position] = self._decode(index, value)
        elif index == REGISTER_A:
            self._write_register_a(value & 0x7F)
        elif index == REGISTER_B:
            self._write_register_b(value)
        elif index < REGISTER_A:
            self.memory[index] = value  # the three alarm bytes
        self._arm()

    def _write_register_a(self, value: int) -> None:
        """Leaving the divider's reset, the first update comes half a second later."""
        was_reset = self._divider_reset()
        self.register_a = value
        if was_reset and not self._divider_reset():
            self.began = self._clock.now() - SECOND // 2

    def _write_register_b(self, value: int) -> None:
        """Setting SET stops the updates and clears UIE; the divider runs on, so seconds begin where they did."""
        now = self._clock.now()
        if self.register_b & SET and not value & SET and not self._divider_reset():
            self.began += (now - self.began) // SECOND * SECOND
        if value & SET:
            value &= ~UPDATE_ENDED
        self.register_b = value

    def _divider_reset(self) -> bool:
        return self.register_a & DIVIDER_RESET == DIVIDER_RESET

    def _stopped(self) -> bool:
        return bool(self.register_b & SET) or self._divider_reset()

    def _updating(self) -> bool:
        return not self._stopped() and (self._clock.now() - self.began) % SECOND >= SECOND - UPDATE_TIME

    def _advance(self) -> None:
        """Bring ``fields`` to the present second."""
        passed = (self._clock.now() - self.began) // SECOND
        if passed > 0 and not self._stopped():
            self.fields = plus_seconds(self.fields, passed)
            self.began += passed * SECOND

    def _encode(self, index: int, value: int) -> int:
        """A field as the guest sees it: BCD or binary, 12 or 24 hours."""
        afternoon = 0
        if index == HOURS and not self.register_b & HOURS_24:
            afternoon = PM if value >= 12 else 0
            value = (value - 1) % 12 + 1
        if not self.register_b & BINARY:
            value = value // 10 << 4 | value % 10
        return (value | afternoon) & 0xFF

    def _decode(self, index: int, value: int) -> int:
        afternoon = 0
        twelve_hours = index in (HOURS, HOURS_ALARM) and not self.register_b & HOURS_24
        if twelve_hours:
            afternoon = 12 if value & PM else 0
            value &= ~PM
        if not self.register_b & BINARY:
            value = (value >> 4) * 10 + (value & 15)
        return value % 12 + afternoon if twelve_hours else value

    def _read_flags(self) -> int:
        """Register C: reading it clears it and lets the line fall."""
        self._collect_flags()
        flags = self.flags
        self.flags = 0
        if flags & self.register_b:
            flags |= IRQ_FLAG
        self._arm()
        return flags

    def _update(self) -> None:
        self._collect_flags()
        self._arm()

    def _collect_flags(self) -> None:
        """Set the flags of what happened since they were last right, whether or not it may interrupt."""
        before, now = self.checked, self._clock.now()
        self.checked = now
        if self._divider_reset():
            return
        if self._periodic_tick(before) is not None and self._periodic_tick(before) != self._periodic_tick(now):
            self.flags |= PERIODIC
        if not self._stopped() and self._second(before) != self._second(now):
            self.flags |= UPDATE_ENDED
            alarm = self._next_alarm(before)
            if alarm is not None and alarm <= self._second(now):
                self.flags |= ALARM

    def _second(self, time: int) -> int:
        """The calendar second of a virtual time, by the present base."""
        return to_seconds(self.fields) + (time - self.began) // SECOND

    def _next_alarm(self, after: int) -> int | None:
        hour, minute, second = (
            None if self.memory[index] & ANY == ANY else self._decode(index, self.memory[index])
            for index in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM)
        )
        return next_match(self._second(after), hour, minute, second)

    def _period(self) -> int:
        """The periodic interrupt's period in crystal ticks; 0 is none. Rates 1 and 2 repeat 8 and 9."""
        rate = self.register_a & 15
        return 0 if rate == 0 else 1 << (rate + 6 if rate < 3 else rate - 1)

    def _periodic_tick(self, time: int) -> int | None:
        period = self._period()
        return (time - self.began) * CRYSTAL_HZ // SECOND // period if period else None

    def _arm(self) -> None:
        """Drive the line; when it is low, schedule the next event that may raise it."""
        self.resume()
        enabled = self.register_b
        due: list[int] = []
        if not self.flags & enabled and not self._divider_reset():
            tick = self._periodic_tick(self.checked)
            if enabled & PERIODIC and tick is not None:
                due.append(self.began - (-(tick + 1) * self._period() * SECOND // CRYSTAL_HZ))
            if enabled & UPDATE_ENDED and not enabled & SET:
                due.append(self.began + ((self.checked - self.began) // SECOND + 1) * SECOND)
            if enabled & ALARM and not enabled & SET:
                alarm = self._next_alarm(self.checked)
                if alarm is not None:
                    due.append(self.began + (alarm - to_seconds(self.fields)) * SECOND)
        self.event.arm(min(due) if due else None)
