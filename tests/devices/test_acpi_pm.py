"""The fixed ACPI hardware: timer, power button, soft-off."""

import pytest

from hvemu.devices.acpi_pm import AcpiPm

from .fakes import FakeCalls, FakeClock, FakeIrqLine, FakeWatcher

STATUS, ENABLE, CONTROL, TIMER = 0, 2, 4, 8
POWER_BUTTON = 0x0100
SECOND = 1_000_000_000


class Desk:
    """The registers and their ports."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.irq9 = FakeIrqLine(self.clock)
        self.power_off = FakeCalls()
        self.watcher = FakeWatcher()
        self.pm = AcpiPm(clock=self.clock, irq9=self.irq9, power_off=self.power_off, watcher=self.watcher)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_timer_counts_3579545_a_second(desk: Desk) -> None:
    """And is read in one access or in parts."""
    desk.clock.advance_to(SECOND)
    parts = desk.pm.read(TIMER, 2), desk.pm.read(TIMER + 2, 2), desk.pm.read(TIMER + 1, 1)
    assert (3_579_545, (40_601, 54, 158)) == (desk.pm.read(TIMER, 4), parts)


def test_acpi_mode_is_on_for_good(desk: Desk) -> None:
    """SCI_EN reads one whatever is written."""
    desk.pm.write(CONTROL, 2, 0)
    assert 0x0001 == desk.pm.read(CONTROL, 2)


def test_soft_off_powers_off(desk: Desk) -> None:
    """SLP_TYP 5 with SLP_EN; SLP_EN reads back zero."""
    desk.pm.write(CONTROL, 2, 5 << 10)
    not_yet = list(desk.power_off.calls)
    desk.pm.write(CONTROL, 2, 5 << 10 | 1 << 13)
    assert ([], [()], 5 << 10 | 1) == (not_yet, desk.power_off.calls, desk.pm.read(CONTROL, 2))


def test_other_sleep_states_are_only_told(desk: Desk) -> None:
    """The machine goes on."""
    desk.pm.write(CONTROL, 2, 1 << 10 | 1 << 13)
    assert ([], 1) == (desk.power_off.calls, desk.watcher.events[0].detail)


def test_the_power_button_interrupts_when_enabled(desk: Desk) -> None:
    """A level until the guest clears the status with a one."""
    desk.pm.press_power_button()
    quiet = desk.irq9.level
    desk.pm.write(ENABLE, 2, POWER_BUTTON)
    raised = desk.irq9.level, desk.pm.read(STATUS, 2)
    desk.pm.write(STATUS, 2, POWER_BUTTON)
    assert (False, (True, POWER_BUTTON), False, 0) == (quiet, raised, desk.irq9.level, desk.pm.read(STATUS, 2))


def test_status_and_enable_in_one_access(desk: Desk) -> None:
    """32 bits at offset 0 are both registers."""
    desk.pm.press_power_button()
    desk.pm.write(STATUS, 4, POWER_BUTTON << 16)
    assert POWER_BUTTON << 16 | POWER_BUTTON == desk.pm.read(STATUS, 4)


def test_only_defined_enable_bits_are_kept(desk: Desk) -> None:
    """Timer, global, two buttons, clock."""
    desk.pm.write(ENABLE, 2, 0xFFFF)
    assert 0x0721 == desk.pm.read(ENABLE, 2)


def test_the_timer_tells_each_half(desk: Desk) -> None:
    """TMR_STS after 2^31 ticks, about ten minutes, with an interrupt when enabled."""
    half = -(-(1 << 31) * SECOND // 3_579_545)
    desk.pm.write(ENABLE, 2, 1)
    desk.clock.advance_to(half - 1)
    before = desk.irq9.level, desk.pm.read(STATUS, 2)
    desk.clock.advance_to(half)
    assert ((False, 0), True, 1) == (before, desk.irq9.level, desk.pm.read(STATUS, 2))
    desk.pm.write(STATUS, 2, 1)
    desk.clock.advance_to(3 * half)
    assert [half, -(-(1 << 32) * SECOND // 3_579_545)] == desk.irq9.edges


def test_the_timer_status_is_noticed_without_an_interrupt(desk: Desk) -> None:
    """Nothing is scheduled for it."""
    desk.clock.advance_to(700 * SECOND)
    assert ([], 1) == (desk.clock.pending(), desk.pm.read(STATUS, 1))


def test_a_pressed_button_and_a_pending_carry_survive_the_state(desk: Desk) -> None:
    """The restored registers drive the line and wait for the same tick."""
    desk.pm.write(ENABLE, 2, POWER_BUTTON | 1)
    desk.pm.press_power_button()
    other = Desk()
    other.pm.from_state(desk.pm.state())
    assert (True, desk.clock.pending()) == (other.irq9.level, other.clock.pending())


def test_the_carry_is_awaited_again_after_it_was_noticed(desk: Desk) -> None:
    """Clearing TMR_STS schedules the next half; while it is set nothing is due."""
    half = -(-(1 << 31) * SECOND // 3_579_545)
    desk.pm.write(ENABLE, 2, 1)
    desk.clock.advance_to(half)
    while_set = desk.clock.pending()
    desk.pm.write(STATUS, 2, 1)
    due = desk.clock.pending()
    desk.pm.write(ENABLE, 2, 0)
    assert ([], [-(-(1 << 32) * SECOND // 3_579_545)], []) == (while_set, due, desk.clock.pending())


def test_reset_clears_status_enable_and_sleep_type(desk: Desk) -> None:
    """ACPI mode stays on."""
    desk.pm.write(ENABLE, 2, POWER_BUTTON)
    desk.pm.write(CONTROL, 2, 5 << 10)
    desk.pm.press_power_button()
    desk.pm.reset()
    assert (0, 1, False) == (desk.pm.read(STATUS, 4), desk.pm.read(CONTROL, 2), desk.irq9.level)
