"""The 8254: six modes, latches, read-back, BCD, edges without drift; port 61h."""

import pytest

from hvemu.devices.pit8254 import Pit8254, SystemControlPortB
from hvemu.vocabulary.machine_map import PIT_HZ

from .fakes import FakeClock, FakeIrqLine

CONTROL = 3
SECOND = 1_000_000_000


def at_tick(tick: int) -> int:
    """The first nanosecond of a tick."""
    return -(-tick * SECOND // PIT_HZ)


class Desk:
    """A timer with its port 61h."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.irq0 = FakeIrqLine(self.clock)
        self.pit = Pit8254(clock=self.clock, irq0=self.irq0)
        self.port_b = SystemControlPortB(clock=self.clock, timer=self.pit)

    def program(self, channel: int, mode: int, count: int, *, bcd: bool = False) -> None:
        self.pit.write(CONTROL, 1, channel << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(channel, 1, count & 0xFF)
        self.pit.write(channel, 1, count >> 8)

    def word(self, channel: int) -> int:
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def latched(self, channel: int) -> int:
        self.pit.write(CONTROL, 1, channel << 6)
        return self.word(channel)

    def status(self, channel: int) -> int:
        self.pit.write(CONTROL, 1, 0xE0 | 2 << channel)
        return self.pit.read(channel, 1)

    def go(self, tick: int) -> None:
        self.clock.advance_to(at_tick(tick))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_rate_generator_ticks_100_times_a_second_without_drift(desk: Desk) -> None:
    """Mode 2: each edge is where exact arithmetic puts it, for ten minutes."""
    desk.program(0, 2, 11932)
    desk.irq0.edges.clear()
    for _ in range(60_000):
        desk.clock.advance_to(desk.clock.pending()[0])
    assert [at_tick(1 + 11932 * period) for period in range(1, 60_001)] == desk.irq0.edges


def test_the_square_wave_makes_one_edge_per_period(desk: Desk) -> None:
    """Mode 3 with count 0, as a BIOS programs it: 65,536 ticks, 18.2 Hz."""
    desk.program(0, 3, 0)
    desk.irq0.edges.clear()
    desk.go(3 * 65536 + 2)
    assert [at_tick(1 + 65536 * period) for period in (1, 2, 3)] == desk.irq0.edges


def test_mode_0_rises_once_at_terminal_count_and_stays(desk: Desk) -> None:
    """OUT goes low with the control word and high N + 1 ticks after the count is written."""
    desk.program(0, 0, 1000)
    low = desk.irq0.level
    desk.go(1000)
    still_low = desk.irq0.level
    desk.go(200_000)
    assert (False, False, True, [at_tick(1001)]) == (low, still_low, desk.irq0.level, desk.irq0.edges)


def test_mode_0_counts_on_below_zero(desk: Desk) -> None:
    """After terminal count the counter wraps to FFFF."""
    desk.program(2, 0, 10)
    desk.pit.set_gate(2, True)
    desk.go(1 + 10 + 2)
    assert 0xFFFE == desk.latched(2)


def test_a_new_count_in_mode_0_starts_over_with_its_first_byte(desk: Desk) -> None:
    """The first byte stops the count and lowers OUT."""
    desk.program(0, 0, 10)
    desk.go(20)
    desk.pit.write(0, 1, 100)
    lowered = desk.irq0.level
    desk.pit.write(0, 1, 0)
    desk.go(20 + 101)
    assert (False, [at_tick(11), at_tick(121)]) == (lowered, desk.irq0.edges)


def test_mode_4_strobes_once(desk: Desk) -> None:
    """OUT is low for the one tick after the count has run out."""
    desk.program(0, 4, 100)
    desk.irq0.edges.clear()
    desk.go(100)
    before = desk.pit.channel_output(0)
    desk.go(101)
    strobe = desk.pit.channel_output(0)
    desk.go(1000)
    assert (True, False, True) == (before, strobe, desk.pit.channel_output(0))
    assert [at_tick(102)] == desk.irq0.edges


def test_mode_1_is_triggered_by_the_gate(desk: Desk) -> None:
    """OUT falls with the rising gate and rises N ticks later; another trigger begins anew."""
    desk.program(2, 1, 100)
    before = desk.pit.channel_output(2)
    desk.pit.set_gate(2, True)
    desk.go(50)
    fired = desk.pit.channel_output(2)
    desk.pit.set_gate(2, False)
    desk.pit.set_gate(2, True)
    desk.go(140)
    longer = desk.pit.channel_output(2)
    desk.go(151)
    assert (True, False, False, True) == (before, fired, longer, desk.pit.channel_output(2))


def test_mode_5_strobes_after_the_trigger(desk: Desk) -> None:
    """Like mode 4, begun by the gate."""
    desk.program(2, 5, 100)
    desk.go(500)
    desk.pit.set_gate(2, True)
    outputs = []
    for tick in (600, 601, 602):
        desk.go(tick)
        outputs.append(desk.pit.channel_output(2))
    assert [True, False, True] == outputs


def test_reading_without_latch_gives_the_present_count(desk: Desk) -> None:
    """Mode 2 counts down by one per tick and never shows zero."""
    desk.program(0, 2, 100)
    values = []
    for tick in (1, 2, 100, 101):
        desk.go(tick)
        values.append(desk.word(0))
    assert [100, 99, 1, 100] == values


def test_the_square_wave_counts_down_by_two(desk: Desk) -> None:
    """An odd count is loaded less one and is high for one tick longer than low."""
    desk.program(0, 3, 5)
    values, outputs = [], []
    for tick in range(1, 7):
        desk.go(tick)
        values.append(desk.word(0))
        outputs.append(desk.pit.channel_output(0))
    assert ([4, 2, 0, 4, 2, 4], [True, True, True, False, False, True]) == (values, outputs)


def test_a_latched_count_stays_until_read(desk: Desk) -> None:
    """A second latch command is ignored; after both bytes the count is live again."""
    desk.program(0, 2, 50_000)
    desk.go(1)
    desk.pit.write(CONTROL, 1, 0x00)
    desk.go(1001)
    desk.pit.write(CONTROL, 1, 0x00)
    assert (50_000, 49_000) == (desk.word(0), desk.word(0))


def test_low_and_high_byte_access(desk: Desk) -> None:
    """Access mode 1 sets and reads only the low byte, 2 only the high byte."""
    desk.pit.write(CONTROL, 1, 0x14)
    desk.pit.write(0, 1, 0x80)
    desk.go(1)
    low = desk.pit.read(0, 1), desk.pit.read(0, 1)
    desk.pit.write(CONTROL, 1, 0x24)
    desk.pit.write(0, 1, 0x12)
    desk.go(2)
    assert ((0x80, 0x80), 0x12) == (low, desk.pit.read(0, 1))


def test_read_back_latches_status_and_counts_of_several_channels(desk: Desk) -> None:
    """Status comes first, then the count."""
    desk.program(0, 2, 1000)
    desk.program(2, 3, 2000)
    desk.go(10)
    desk.pit.write(CONTROL, 1, 0xCA)
    read = desk.pit.read(0, 1), desk.word(0), desk.pit.read(2, 1)
    assert (0xB4, 991, 0xB6) == read


def test_status_says_that_the_count_is_not_loaded_yet(desk: Desk) -> None:
    """NULL COUNT from the control word until the tick after the count is complete."""
    desk.pit.write(CONTROL, 1, 0x34)
    unloaded = desk.status(0)
    desk.pit.write(0, 1, 0x00)
    desk.pit.write(0, 1, 0x10)
    written = desk.status(0)
    desk.go(1)
    assert (0xF4, 0xF4, 0xB4) == (unloaded, written, desk.status(0))


def test_bcd_counts_four_decimal_digits(desk: Desk) -> None:
    """0 means 10,000."""
    desk.program(0, 2, 0x1000, bcd=True)
    desk.go(2)
    after_one = desk.latched(0)
    desk.program(0, 2, 0, bcd=True)
    desk.irq0.edges.clear()
    desk.go(2 + 1 + 10_000)
    assert (0x0999, [at_tick(10_003)]) == (after_one, desk.irq0.edges)


def test_a_new_count_in_mode_2_waits_for_the_end_of_the_period(desk: Desk) -> None:
    """Without a control word the running period is finished first."""
    desk.program(0, 2, 1000)
    desk.irq0.edges.clear()
    desk.go(501)
    desk.pit.write(0, 1, 100)
    desk.pit.write(0, 1, 0)
    desk.go(1201)
    assert [at_tick(1001), at_tick(1101), at_tick(1201)] == desk.irq0.edges


def test_the_gate_pauses_mode_0_and_restarts_mode_2(desk: Desk) -> None:
    """Channel 2 through port 61h."""
    desk.port_b.write(0, 1, 0x01)
    desk.program(2, 0, 1000)
    desk.go(101)
    desk.port_b.write(0, 1, 0x00)
    desk.go(5000)
    paused = desk.latched(2)
    desk.port_b.write(0, 1, 0x01)
    desk.go(5010)
    resumed = desk.latched(2)
    desk.program(2, 2, 1000)
    desk.go(5311)
    desk.port_b.write(0, 1, 0x00)
    stopped_high = desk.pit.channel_output(2)
    desk.port_b.write(0, 1, 0x01)
    desk.go(5312)
    assert (900, 890, True, 1000) == (paused, resumed, stopped_high, desk.latched(2))


def test_linux_calibrates_against_channel_2(desk: Desk) -> None:
    """Mode 0, gate on: bit 5 of port 61h rises when 50 ms have passed."""
    desk.port_b.write(0, 1, desk.port_b.read(0, 1) & ~0x02 | 0x01)
    desk.program(2, 0, PIT_HZ // 20)
    desk.clock.advance_to(49_990_000)
    before = desk.port_b.read(0, 1) & 0x20
    desk.clock.advance_to(50_010_000)
    assert (0x00, 0x20) == (before, desk.port_b.read(0, 1) & 0x20)


def test_the_refresh_bit_toggles_every_15_microseconds(desk: Desk) -> None:
    """Bit 4 of port 61h."""
    bits = []
    for period in range(4):
        desk.clock.advance_to(period * 15_085)
        bits.append(desk.port_b.read(0, 1) & 0x10)
    assert [0x00, 0x10, 0x00, 0x10] == bits


def test_port_61h_keeps_its_low_bits(desk: Desk) -> None:
    """The speaker bit and the two check enables read back."""
    desk.port_b.write(0, 1, 0xFE)
    assert 0x0E == desk.port_b.read(0, 1) & 0x0F


def test_a_pending_edge_survives_the_state(desk: Desk) -> None:
    """The edge that was due comes at its time, and the next ones too."""
    desk.program(0, 2, 1000)
    desk.go(700)
    other = Desk()
    other.clock.advance_to(desk.clock.now())
    other.pit.from_state(desk.pit.state())
    other.irq0.edges.clear()
    other.go(2001)
    assert [at_tick(1001), at_tick(2001)] == other.irq0.edges


def test_a_latch_survives_the_state(desk: Desk) -> None:
    """Half-read latches and half-written counts are state."""
    desk.program(0, 2, 0x1234)
    desk.go(1)
    desk.pit.write(CONTROL, 1, 0x00)
    low = desk.pit.read(0, 1)
    other = Desk()
    other.pit.from_state(desk.pit.state())
    assert (0x34, 0x12) == (low, other.pit.read(0, 1))


def test_reset_stops_everything(desk: Desk) -> None:
    """No edge is scheduled and the line is low."""
    desk.program(0, 2, 1000)
    desk.pit.reset()
    assert ([], False) == (desk.clock.pending(), desk.irq0.level)


def test_the_line_stays_up_through_the_low_half_in_the_state_too(desk: Desk) -> None:
    """An interrupt that waits at the 8259 must not be dropped by a snapshot."""
    desk.program(0, 3, 1000)
    desk.go(1801)
    other = Desk()
    other.clock.advance_to(desk.clock.now())
    other.pit.from_state(desk.pit.state())
    assert (False, True, True) == (desk.pit.channel_output(0), desk.irq0.level, other.irq0.level)


def test_mode_0_output_rises_on_the_tick_of_terminal_count(desk: Desk) -> None:
    """Count 10 written in tick 0: low through tick 10, high at 11."""
    desk.pit.set_gate(2, True)
    desk.program(2, 0, 10)
    outputs = []
    for tick in (10, 11):
        desk.go(tick)
        outputs.append(desk.pit.channel_output(2))
    assert [False, True] == outputs


@pytest.mark.parametrize(("written", "mode"), [(6, 2), (7, 3)])
def test_modes_6_and_7_are_2_and_3(desk: Desk, written: int, mode: int) -> None:
    """The third mode bit does not count for them."""
    desk.program(0, written, 1000)
    assert mode == desk.status(0) >> 1 & 7


def test_bcd_digits(desk: Desk) -> None:
    """Each of the four has its weight, in and out."""
    desk.program(0, 2, 0x9876, bcd=True)
    desk.go(1)
    first = desk.latched(0)
    desk.go(1 + 1111)
    second = desk.latched(0)
    desk.irq0.edges.clear()
    desk.go(1 + 9876)
    assert (0x9876, 0x8765, [at_tick(9877)]) == (first, second, desk.irq0.edges)


def test_a_new_count_in_mode_4_begins_at_once(desk: Desk) -> None:
    """The old strobe never comes."""
    desk.program(0, 4, 100)
    desk.irq0.edges.clear()
    desk.go(50)
    desk.pit.write(0, 1, 200)
    desk.pit.write(0, 1, 0)
    desk.go(1000)
    assert [at_tick(50 + 202)] == desk.irq0.edges


def test_a_new_count_in_mode_1_waits_for_the_next_trigger(desk: Desk) -> None:
    """The running shot keeps its length."""
    desk.program(2, 1, 100)
    desk.pit.set_gate(2, True)
    desk.pit.write(2, 1, 10)
    desk.pit.write(2, 1, 0)
    desk.go(100)
    running = desk.pit.channel_output(2)
    desk.go(101)
    over = desk.pit.channel_output(2)
    desk.pit.set_gate(2, False)
    desk.pit.set_gate(2, True)
    desk.go(101 + 11)
    assert (False, True, True) == (running, over, desk.pit.channel_output(2))


def test_a_count_written_with_the_gate_low_waits_for_it(desk: Desk) -> None:
    """Mode 0 on channel 2: the value is there, and does not move."""
    desk.program(2, 0, 500)
    desk.go(100)
    waiting = desk.latched(2)
    desk.pit.set_gate(2, True)
    desk.go(111)
    assert (500, 490) == (waiting, desk.latched(2))


def test_read_back_latches_only_what_it_names(desk: Desk) -> None:
    """Counts without status, status without counts, and no other channel."""
    desk.program(0, 2, 1000)
    desk.program(1, 2, 1000)
    desk.go(1)
    desk.pit.write(CONTROL, 1, 0xD2)
    desk.pit.write(CONTROL, 1, 0xE4)
    desk.go(101)
    channel_0 = desk.word(0), desk.word(0)
    channel_1 = desk.pit.read(1, 1), desk.word(1)
    assert ((1000, 900), (0xB4, 900)) == (channel_0, channel_1)


def test_a_control_word_stops_the_old_mode(desk: Desk) -> None:
    """Mode 0 lowers the line at once; no edge comes until a count is there."""
    desk.program(0, 2, 1000)
    desk.pit.write(CONTROL, 1, 0x30)
    assert (False, []) == (desk.irq0.level, desk.clock.pending())


def test_other_channels_leave_the_line_alone(desk: Desk) -> None:
    """Channel 2's control words and gate are not channel 0's."""
    desk.program(0, 2, 1000)
    due = desk.clock.pending()
    desk.program(2, 0, 500)
    desk.pit.set_gate(2, True)
    assert (True, due) == (desk.irq0.level, desk.clock.pending())


def test_the_gate_of_channel_0_stops_its_edges(desk: Desk) -> None:
    """No PC wires it, but the chip has it."""
    desk.program(0, 2, 1000)
    desk.pit.set_gate(0, False)
    stopped = desk.clock.pending()
    desk.pit.set_gate(0, True)
    assert ([], [at_tick(1001)]) == (stopped, desk.clock.pending())


def test_resetting_closes_the_gate_of_channel_2_only(desk: Desk) -> None:
    """Of the timer, and of port 61h."""
    desk.port_b.write(0, 1, 0x03)
    desk.port_b.reset()
    by_port = desk.pit.gate(2), desk.port_b.read(0, 1) & 0x0F
    desk.port_b.write(0, 1, 0x01)
    desk.pit.reset()
    assert ((False, 0), [True, True, False]) == (by_port, [desk.pit.gate(number) for number in range(3)])


def test_the_control_word_cannot_be_read(desk: Desk) -> None:
    """Ones."""
    assert 0xFF == desk.pit.read(CONTROL, 1)
