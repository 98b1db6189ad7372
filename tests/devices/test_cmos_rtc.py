"""The MC146818: time in its formats, setting it, three interrupts, the CMOS bytes."""

import pytest

from hvemu.devices.calendar_time import next_match, to_fields, to_seconds
from hvemu.devices.cmos_rtc import CmosRtc

from .fakes import FakeClock, FakeIrqLine

SECOND = 1_000_000_000
START = 1_709_210_096  # Thursday 29 February 2024, 12:34:56 UTC


class Desk:
    """A clock chip."""

    def __init__(self, start_time: int = START) -> None:
        self.clock = FakeClock()
        self.irq8 = FakeIrqLine(self.clock)
        self.rtc = CmosRtc(clock=self.clock, irq8=self.irq8, start_time=start_time)

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def date(self) -> str:
        return "".join(f"{self.get(index):02x}" for index in (0x32, 9, 8, 7))

    def time(self) -> str:
        return ":".join(f"{self.get(index):02x}" for index in (4, 2, 0))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_time_at_power_on_is_the_start_time(desk: Desk) -> None:
    """BCD, 24 hours; the weekday counts from Sunday."""
    assert ("20240229", "12:34:56", 5) == (desk.date(), desk.time(), desk.get(6))


def test_time_goes_on_with_the_clock(desk: Desk) -> None:
    """The leap day ends after 11 hours, 25 minutes and 4 seconds."""
    desk.clock.advance_to((11 * 3600 + 25 * 60 + 4) * SECOND)
    assert ("20240301", "00:00:00", 6) == (desk.date(), desk.time(), desk.get(6))


@pytest.mark.parametrize(
    ("hour", "register_b", "shown"),
    [(0, 0x00, 0x12), (12, 0x00, 0x92), (13, 0x00, 0x81), (23, 0x04, 0x8B), (23, 0x06, 23), (23, 0x02, 0x23)],
)
def test_hours_in_all_formats(hour: int, register_b: int, shown: int) -> None:
    """12-hour mode has no hour 0, and bit 7 for the afternoon."""
    desk = Desk(hour * 3600)
    desk.put(0x0B, register_b)
    assert shown == desk.get(4)
    desk.put(4, shown)
    desk.put(0x0B, 0x06)
    assert hour == desk.get(4)


def test_setting_the_clock_as_linux_does(desk: Desk) -> None:
    """SET, divider reset, all fields, then both back: the first update comes after half a second."""
    desk.clock.advance_to(300_000_000)
    desk.put(0x0B, 0x82)
    desk.put(0x0A, 0x76)
    for index, value in ((9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59), (0x32, 0x19)):
        desk.put(index, value)
    desk.clock.advance(5 * SECOND)
    assert ("19991231", "23:59:59") == (desk.date(), desk.time())
    desk.put(0x0B, 0x02)
    desk.put(0x0A, 0x26)
    desk.clock.advance(499_000_000)
    before = desk.date()
    desk.clock.advance(1_000_000)
    assert ("19991231", "20000101", "00:00:00") == (before, desk.date(), desk.time())


def test_fields_may_pass_through_impossible_dates(desk: Desk) -> None:
    """From 29 February to 30 January by month last: the day is not bent on the way."""
    desk.put(0x0B, 0x82)
    desk.put(7, 0x30)
    desk.put(8, 0x01)
    desk.put(0x0B, 0x02)
    assert "20240130" == desk.date()


def test_update_in_progress_shows_before_each_second(desk: Desk) -> None:
    """UIP is set for the last 2228 microseconds; never while SET."""
    flags = []
    for time in (0, 997_771_000, 997_773_000, 999_999_999, SECOND):
        desk.clock.advance_to(time)
        flags.append(desk.get(0x0A) >> 7)
    desk.clock.advance_to(2 * SECOND - 1)
    desk.put(0x0B, 0x82)
    assert ([0, 0, 1, 1, 0], 0x26) == (flags, desk.get(0x0A))


def test_the_update_interrupt_comes_every_second(desk: Desk) -> None:
    """UIE: the line stays up until register C is read, which clears it."""
    desk.put(0x0B, 0x12)
    desk.clock.advance_to(1_500_000_000)
    flags = desk.get(0x0C), desk.irq8.level, desk.get(0x0C)
    desk.clock.advance_to(2_500_000_000)
    assert ((0xD0, False, 0x00), [SECOND, 2 * SECOND]) == (flags, desk.irq8.edges)


def test_flags_are_set_without_an_interrupt(desk: Desk) -> None:
    """Guests may poll register C."""
    desk.clock.advance_to(SECOND)
    assert (0x50, False, []) == (desk.get(0x0C), desk.irq8.level, desk.clock.pending())


def test_the_periodic_interrupt_runs_at_its_rate(desk: Desk) -> None:
    """Rate 6 is 1024 Hz; each edge needs register C to be read."""
    desk.put(0x0B, 0x42)
    for _ in range(1024):
        desk.clock.advance_to(desk.clock.pending()[0])
        desk.get(0x0C)
    assert (1024, SECOND) == (len(desk.irq8.edges), desk.irq8.edges[-1])
    assert 976_563 == desk.irq8.edges[0]


@pytest.mark.parametrize(("rate", "period"), [(1, 3_906_250), (2, 7_812_500), (3, 122_071), (15, 500_000_000)])
def test_rates_of_the_periodic_interrupt(desk: Desk, rate: int, period: int) -> None:
    """Rates 1 and 2 are those of 8 and 9."""
    desk.put(0x0A, 0x20 | rate)
    desk.put(0x0B, 0x42)
    assert [period] == desk.clock.pending()


def test_rate_zero_is_no_periodic_interrupt(desk: Desk) -> None:
    """Nothing is scheduled."""
    desk.put(0x0A, 0x20)
    desk.put(0x0B, 0x42)
    assert [] == desk.clock.pending()


def test_the_alarm_comes_at_its_time(desk: Desk) -> None:
    """12:35:10, and again a day later."""
    for index, value in ((5, 0x12), (3, 0x35), (1, 0x10)):
        desk.put(index, value)
    desk.put(0x0B, 0x22)
    desk.clock.advance_to(20 * SECOND)
    flags = desk.get(0x0C)
    desk.clock.advance_to(90_000 * SECOND)
    assert (0xF0, [14 * SECOND, (86_400 + 14) * SECOND]) == (flags, desk.irq8.edges)


def test_an_alarm_byte_of_c0_matches_anything(desk: Desk) -> None:
    """Only seconds 00: every minute."""
    for index, value in ((5, 0xFF), (3, 0xC0), (1, 0x00)):
        desk.put(index, value)
    desk.put(0x0B, 0x22)
    desk.clock.advance_to(10 * SECOND)
    desk.get(0x0C)
    desk.clock.advance_to(70 * SECOND)
    assert [4 * SECOND, 64 * SECOND] == desk.irq8.edges


def test_an_impossible_alarm_never_comes(desk: Desk) -> None:
    """Hour 77 is scheduled nowhere."""
    desk.put(5, 0x77)
    desk.put(0x0B, 0x22)
    assert [] == desk.clock.pending()


def test_setting_set_clears_the_update_interrupt_enable(desk: Desk) -> None:
    """As the datasheet says of UIE."""
    desk.put(0x0B, 0x92)
    assert 0x82 == desk.get(0x0B)


def test_registers_c_and_d_cannot_be_written(desk: Desk) -> None:
    """D says that the battery is good."""
    desk.put(0x0C, 0xFF)
    desk.put(0x0D, 0x00)
    assert (0x00, 0x80) == (desk.get(0x0C), desk.get(0x0D))


def test_memory_bytes_for_builder_guest_and_board(desk: Desk) -> None:
    """The builder's sizes are read by the guest, the guest's shutdown code by the board."""
    desk.rtc.set_byte(0x15, 0x80)
    desk.put(0x0F, 0x0A)
    assert (0x80, 0x0A) == (desk.get(0x15), desk.rtc.byte(0x0F))


def test_bit_7_of_the_index_masks_nmi(desk: Desk) -> None:
    """It does not select another byte."""
    desk.put(0x8F, 0x55)
    assert (True, 0x55) == (desk.rtc.nmi_disabled, desk.rtc.byte(0x0F))


def test_reset_keeps_time_and_memory_but_no_interrupt(desk: Desk) -> None:
    """The battery holds them."""
    desk.put(0x0B, 0x72)
    desk.put(0x40, 0x99)
    desk.clock.advance_to(3 * SECOND)
    desk.rtc.reset()
    assert ([], False, 0x02) == (desk.clock.pending(), desk.irq8.level, desk.get(0x0B))
    assert (0x99, "12:34:59") == (desk.get(0x40), desk.time())


def test_time_and_a_pending_interrupt_survive_the_state(desk: Desk) -> None:
    """The other chip is at the same second and interrupts at the same nanosecond."""
    desk.put(0x0B, 0x12)
    desk.clock.advance_to(700_000_000)
    other = Desk(0)
    other.clock.advance_to(700_000_000)
    other.rtc.from_state(desk.rtc.state())
    other.clock.advance_to(SECOND)
    assert ("12:34:57", [SECOND]) == (other.time(), other.irq8.edges)


def test_calendar_round_trip() -> None:
    """Every 12,345,678 seconds for two centuries."""
    times = range(0, 6_300_000_000, 12_345_678)
    assert list(times) == [to_seconds(to_fields(time)) for time in times]


def test_the_next_match_is_the_first() -> None:
    """Compared with trying every second of a day."""
    for hour, minute, second in ((None, None, None), (3, None, 7), (None, 59, None), (0, 0, 0), (23, None, None)):
        wanted = next(
            time
            for time in range(50_001, 50_001 + 2 * 86_400)
            if hour in (None, time // 3600 % 24) and minute in (None, time // 60 % 60) and second in (None, time % 60)
        )
        assert wanted == next_match(50_000, hour, minute, second)


def test_an_interrupt_that_is_enabled_late_comes_at_once(desk: Desk) -> None:
    """The flag was set while nobody wanted it."""
    desk.clock.advance_to(1_500_000_000)
    desk.put(0x0B, 0x12)
    assert [1_500_000_000] == desk.irq8.edges


def test_the_divider_in_reset_makes_no_ticks(desk: Desk) -> None:
    """No flags, no events, whatever is enabled."""
    desk.put(0x0A, 0x66)
    desk.put(0x0B, 0x72)
    desk.clock.advance_to(10 * SECOND)
    assert ([], 0x00, "12:34:56") == (desk.clock.pending(), desk.get(0x0C), desk.time())


def test_a_pause_by_set_keeps_the_phase_of_the_seconds(desk: Desk) -> None:
    """Stopped from 2.3 to 5.8: the next second begins at 6."""
    desk.clock.advance_to(2_300_000_000)
    desk.put(0x0B, 0x82)
    desk.clock.advance_to(5_800_000_000)
    desk.put(0x0B, 0x02)
    times = [desk.time()]
    for time in (5_999_999_999, 6_000_000_000):
        desk.clock.advance_to(time)
        times.append(desk.time())
    desk.put(0x0B, 0x12)
    assert ["12:34:58", "12:34:58", "12:34:59"] == times
    assert 0xD0 == desk.get(0x0C)
    assert [7 * SECOND] == desk.clock.pending()


def test_reset_cancels_the_event(desk: Desk) -> None:
    """An enabled interrupt is forgotten."""
    desk.put(0x0B, 0x42)
    desk.rtc.reset()
    assert [] == desk.clock.pending()


def test_the_update_flag_begins_exactly_2228_microseconds_before(desk: Desk) -> None:
    """To the nanosecond."""
    desk.clock.advance_to(SECOND - 2_228_001)
    before = desk.get(0x0A)
    desk.clock.advance_to(SECOND - 2_228_000)
    assert (0x26, 0xA6) == (before, desk.get(0x0A))


def test_what_the_guest_sets_without_stopping_the_clock_goes_on(desk: Desk) -> None:
    """Minutes set at half past a second: the seconds run on in their phase."""
    desk.clock.advance_to(500_000_000)
    desk.put(2, 0x10)
    desk.clock.advance_to(4 * SECOND)
    assert "12:11:00" == desk.time()
