"""The fixed ACPI hardware: PM1a event and control registers, the power button, the 3.58 MHz timer.

ACPI mode is always on (SCI_EN reads 1), so there is no SMI command port. Entering sleep state S5 calls
``power_off``; other states are reported to the watcher and not entered.

Not emulated: general-purpose events, PM1b, PM2 control, sleep states S1 to S4, the RTC's wake-up.
Spec: ACPI 6.4, 4.8.3 "Fixed hardware registers"; DSDT: \\_S5 must give SLP_TYP 5.
"""

from collections.abc import Callable
from typing import Final

from hvemu.devices.contract import Clock, DeviceEvent, IrqLine, Watcher, nobody_watches
from hvemu.devices.deadline import Deadline
from hvemu.devices.saved import Due, Number, SavedDevice
from hvemu.vocabulary.machine_map import ACPI_PM_TIMER_HZ

PM1_STATUS, PM1_ENABLE, PM1_CONTROL, PM_TIMER = 0, 2, 4, 8

TIMER_STATUS: Final = 1 << 0
GLOBAL_STATUS: Final = 1 << 5
POWER_BUTTON: Final = 1 << 8
SLEEP_BUTTON: Final = 1 << 9
REAL_TIME_CLOCK: Final = 1 << 10
ENABLE_BITS: Final = TIMER_STATUS | GLOBAL_STATUS | POWER_BUTTON | SLEEP_BUTTON | REAL_TIME_CLOCK
SCI_ENABLE: Final = 1 << 0
CONTROL_BITS: Final = 0b1_1100_0000_0010  # SLP_TYP and BM_RLD; SLP_EN and GBL_RLS read zero
SLEEP_TYPE_SHIFT: Final = 10
SLEEP_ENABLE_HIGH: Final = 1 << 5  # bit 13, in the register's upper byte
SOFT_OFF: Final = 5

SECOND: Final = 1_000_000_000
HALF_TIMER: Final = 1 << 31  # ticks between two changes of the timer's top bit


class AcpiPm(SavedDevice):
    """Twelve bytes: event status and enable, control, timer."""

    name = "acpi-pm"
    widest_access = 4
    layout = {
        "status": Number(0xFFFF),
        "enable": Number(0xFFFF),
        "control": Number(0xFFFF),
        "halves_seen": Number(1 << 62),
        "carry": Due(),
    }

    def __init__(
        self,
        *,
        clock: Clock,
        irq9: IrqLine,
        power_off: Callable[[], None],
        watcher: Watcher = nobody_watches,
    ) -> None:
        self._clock = clock
        self._irq9 = irq9
        self._power_off = power_off
        self._watcher = watcher
        self.carry = Deadline(clock, self._timer_carried)
        self.reset()

    def reset(self) -> None:
        """Nothing happened, nothing enabled, ACPI mode on."""
        self.status = 0
        self.enable = 0
        self.control = SCI_ENABLE
        self.halves_seen = self._ticks() // HALF_TIMER
        self.carry.arm(None)
        self._irq9.set_level(False)

    def press_power_button(self) -> None:
        """A person presses it; what follows is the guest's decision."""
        self.status |= POWER_BUTTON
        self.resume()

    def read(self, offset: int, size: int) -> int:
        """The timer first: guests read it all the time."""
        if offset == PM_TIMER and size == 4:
            return self._ticks() & 0xFFFF_FFFF
        self._notice_carry()
        registers = self.status | self.enable << 16 | self.control << 32 | (self._ticks() & 0xFFFF_FFFF) << 64
        return registers >> 8 * offset & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Byte by byte; ones clear status bits, the timer cannot be written."""
        self._notice_carry()
        for index in range(size):
            self._write_byte(offset + index, value >> 8 * index & 0xFF)
        self._arm()
        self.resume()

    def resume(self) -> None:
        """The system control interrupt is a level."""
        self._irq9.set_level(bool(self.status & self.enable))

    def _write_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        register, bits, lane = offset & ~1, value << shift, 0xFF << shift
        if register == PM1_STATUS:
            self.status &= ~bits
        elif register == PM1_ENABLE:
            self.enable = (self.enable & ~lane | bits) & ENABLE_BITS
        elif register == PM1_CONTROL:
            self.control = (self.control & ~lane | bits) & CONTROL_BITS | SCI_ENABLE
            if shift and value & SLEEP_ENABLE_HIGH:
                self._sleep(self.control >> SLEEP_TYPE_SHIFT & 7)

    def _sleep(self, sleep_type: int) -> None:
        self._watcher(DeviceEvent(self.name, "sleep", sleep_type))
        if sleep_type == SOFT_OFF:
            self._power_off()

    def _ticks(self) -> int:
        return self._clock.now() * ACPI_PM_TIMER_HZ // SECOND

    def _notice_carry(self) -> None:
        """TMR_STS is set whenever the timer's top bit changes."""
        halves = self._ticks() // HALF_TIMER
        if halves != self.halves_seen:
            self.halves_seen = halves
            self.status |= TIMER_STATUS

    def _timer_carried(self) -> None:
        self._notice_carry()
        self._arm()
        self.resume()

    def _arm(self) -> None:
        due = None
        if self.enable & TIMER_STATUS and not self.status & TIMER_STATUS:
            due = -(-(self.halves_seen + 1) * HALF_TIMER * SECOND // ACPI_PM_TIMER_HZ)
        if due != self.carry.at:
            self.carry.arm(due)
