"""The local APIC: priorities, end of interrupt, pins, messages to itself, errors, timer."""

import pytest

from hvemu.devices.lapic import LocalApic

from .fakes import FakeCalls, FakeClock, FakeIrqLine

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
MASKED = 0x10000


class Desk:
    """A local APIC, software-enabled unless said otherwise."""

    def __init__(self, *, enabled: bool = True, bus_hz: int = 100_000_000) -> None:
        self.clock = FakeClock()
        self.intr = FakeIrqLine()
        self.eoi = FakeCalls()
        self.nmi = FakeCalls()
        self.apic = LocalApic(
            clock=self.clock,
            intr=self.intr,
            acknowledge_external=lambda: 0x77,
            eoi_broadcast=self.eoi,
            nmi=self.nmi,
            bus_hz=bus_hz,
        )
        if enabled:
            self.put(SVR, 0x1FF)

    def put(self, register: int, value: int) -> None:
        self.apic.write(register, 4, value)

    def get(self, register: int) -> int:
        return self.apic.read(register, 4)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_registers_after_reset() -> None:
    """Version 14h with six local vectors, all masked; flat model; not enabled."""
    desk = Desk(enabled=False)
    values = [desk.get(register) for register in (ID, VERSION, TPR, LDR, DFR, SVR, LVT_TIMER, LVT_ERROR)]
    assert [0, 0x50014, 0, 0, 0xFFFFFFFF, 0xFF, MASKED, MASKED] == values


def test_a_fixed_interrupt_is_requested_then_in_service(desk: Desk) -> None:
    """IRR, then ISR, then neither."""
    desk.apic.deliver(0x31, False, 0)
    requested = desk.get(IRR + 0x10), desk.intr.level
    vector = desk.apic.acknowledge()
    in_service = desk.get(ISR + 0x10), desk.get(IRR + 0x10), desk.intr.level, desk.get(PPR)
    desk.put(EOI, 0)
    assert (((1 << 17), True), 0x31, (1 << 17, 0, False, 0x30)) == (requested, vector, in_service)
    assert (0, 0) == (desk.get(ISR + 0x10), desk.get(PPR))


def test_a_higher_class_interrupts_and_the_same_class_waits(desk: Desk) -> None:
    """The upper four bits of the vector are what counts."""
    desk.apic.deliver(0x41, False, 0)
    desk.apic.acknowledge()
    desk.apic.deliver(0x4F, False, 0)
    same = desk.apic.pending()
    desk.apic.deliver(0x51, False, 0)
    assert (False, True, 0x51) == (same, desk.apic.pending(), desk.apic.acknowledge())
    desk.put(EOI, 0)
    desk.put(EOI, 0)
    assert 0x4F == desk.apic.acknowledge()


def test_the_task_priority_holds_its_class_and_below(desk: Desk) -> None:
    """By register and by CR8's accessor alike."""
    desk.put(TPR, 0x50)
    desk.apic.deliver(0x5F, False, 0)
    held = desk.intr.level
    desk.apic.task_priority = 0x40
    assert (False, True, 0x40) == (held, desk.intr.level, desk.get(TPR))


def test_a_level_interrupt_tells_the_io_apics_of_its_end(desk: Desk) -> None:
    """TMR is set for it, and EOI is broadcast; for an edge it is not."""
    desk.apic.deliver(0x40, True, 0)
    desk.apic.acknowledge()
    trigger = desk.get(TMR + 0x20)
    desk.put(EOI, 0)
    desk.apic.deliver(0x40, False, 0)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    assert (1, 0, [(0x40,)]) == (trigger, desk.get(TMR + 0x20), desk.eoi.calls)


def test_nothing_pending_is_the_spurious_vector(desk: Desk) -> None:
    """Nothing goes into service."""
    assert (0xFF, [0] * 8) == (desk.apic.acknowledge(), [desk.get(ISR + 16 * word) for word in range(8)])


def test_software_disabled_it_accepts_no_fixed_interrupt() -> None:
    """But NMI still gets through."""
    desk = Desk(enabled=False)
    desk.apic.deliver(0x40, False, 0)
    desk.apic.deliver(0x02, False, 4)
    assert (False, [()]) == (desk.apic.pending(), desk.nmi.calls)


def test_disabling_masks_the_local_vectors_for_good(desk: Desk) -> None:
    """Enabling does not unmask them; writing while disabled cannot."""
    desk.put(LVT_TIMER, 0x40)
    desk.put(SVR, 0xFF)
    desk.put(LVT_ERROR, 0x50)
    desk.put(SVR, 0x1FF)
    assert (0x10040, 0x10050) == (desk.get(LVT_TIMER), desk.get(LVT_ERROR))


def test_virtual_wire_passes_the_8259_through() -> None:
    """LINT0 is ExtINT: INTR follows the pin and the vector comes from outside, whatever the priority."""
    desk = Desk(enabled=False)
    desk.apic.set_virtual_wire()
    desk.put(TPR, 0xFF)
    desk.apic.set_lint0(True)
    raised = desk.intr.level
    vector = desk.apic.acknowledge()
    desk.apic.set_lint0(False)
    assert (True, 0x77, False, 0) == (raised, vector, desk.intr.level, desk.get(ISR + 0x30))


def test_virtual_wire_makes_lint1_the_nmi() -> None:
    """One NMI per rising edge."""
    desk = Desk(enabled=False)
    desk.apic.set_virtual_wire()
    for level in (True, True, False, True):
        desk.apic.set_lint1(level)
    assert [(), ()] == desk.nmi.calls


def test_masking_lint0_cuts_the_8259_off(desk: Desk) -> None:
    """As Linux does when the I/O APIC takes over."""
    desk.put(LVT_LINT0, 0x700)
    desk.apic.set_lint0(True)
    through = desk.intr.level
    desk.put(LVT_LINT0, 0x10700)
    assert (True, False) == (through, desk.intr.level)


def test_globally_disabled_lint0_is_intr_itself(desk: Desk) -> None:
    """No register matters; enabling again finds reset values."""
    desk.apic.set_enabled_globally(False)
    desk.apic.set_lint0(True)
    assert (True, 0x77) == (desk.intr.level, desk.apic.acknowledge())
    desk.apic.set_enabled_globally(True)
    assert (False, 0xFF) == (desk.intr.level, desk.get(SVR))


def test_a_fixed_lint0_is_an_ordinary_vector(desk: Desk) -> None:
    """Edge-triggered: one interrupt per rising edge."""
    desk.put(LVT_LINT0, 0x0045)
    desk.apic.set_lint0(True)
    assert 0x45 == desk.apic.acknowledge()
    desk.put(EOI, 0)
    assert not desk.apic.pending()


def test_a_level_lint0_interrupts_until_it_falls(desk: Desk) -> None:
    """After EOI it is requested again while the pin is up."""
    desk.put(LVT_LINT0, 0x8045)
    desk.apic.set_lint0(True)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    again = desk.apic.pending()
    desk.apic.acknowledge()
    desk.apic.set_lint0(False)
    desk.put(EOI, 0)
    assert (True, False) == (again, desk.apic.pending())


def test_an_extint_message_is_acknowledged_outside(desk: Desk) -> None:
    """From an I/O APIC pin in ExtINT mode; once."""
    desk.apic.deliver(0, False, 7)
    assert (True, 0x77, False) == (desk.apic.pending(), desk.apic.acknowledge(), desk.apic.pending())


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (0, 0x00040045),  # shorthand self
        (0, 0x00080045),  # all including self
        (0x00000000, 0x00000045),  # physical, own number
        (0xFF000000, 0x00000045),  # physical broadcast
        (0x02000000, 0x00000845),  # logical, flat
    ],
)
def test_messages_to_itself_arrive(desk: Desk, high: int, low: int) -> None:
    """The ways to address this processor."""
    desk.put(LDR, 0x02000000)
    desk.put(ICR_HIGH, high)
    desk.put(ICR_LOW, low)
    assert (True, 0x45) == (desk.apic.pending(), desk.apic.acknowledge())


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (0x05000000, 0x00000045),  # another number
        (0, 0x000C0045),  # all but self
        (0x04000000, 0x00000845),  # another logical bit
        (0, 0x000C4500),  # INIT
        (0, 0x00044608),  # start-up to itself
    ],
)
def test_messages_to_others_go_nowhere(desk: Desk, high: int, low: int) -> None:
    """There is one processor; the delivery status says sent."""
    desk.put(LDR, 0x02000000)
    desk.put(ICR_HIGH, high)
    desk.put(ICR_LOW, low)
    assert (False, low) == (desk.apic.pending(), desk.get(ICR_LOW))


def test_the_cluster_model_compares_both_halves(desk: Desk) -> None:
    """Cluster 2, member 1."""
    desk.put(DFR, 0x0FFFFFFF)
    desk.put(LDR, 0x21000000)
    desk.put(ICR_HIGH, 0x31000000)
    desk.put(ICR_LOW, 0x0845)
    other_cluster = desk.apic.pending()
    desk.put(ICR_HIGH, 0x23000000)
    desk.put(ICR_LOW, 0x0845)
    assert (False, True) == (other_cluster, desk.apic.pending())


def test_illegal_vectors_are_errors(desk: Desk) -> None:
    """ESR shows them after a write, and the error vector interrupts."""
    desk.put(LVT_ERROR, 0xFE)
    desk.put(ICR_LOW, 0x00040005)
    desk.apic.deliver(3, False, 0)
    before = desk.get(ESR)
    desk.put(ESR, 0)
    assert (0, 0x60, 0xFE) == (before, desk.get(ESR), desk.apic.acknowledge())
    desk.put(ESR, 0)
    assert 0 == desk.get(ESR)


def test_the_one_shot_timer_counts_down_and_interrupts_once(desk: Desk) -> None:
    """100 MHz divided by 16: 1000 counts are 160 microseconds."""
    desk.put(DIVIDE, 0b0011)
    desk.put(LVT_TIMER, 0x40)
    desk.put(INITIAL, 1000)
    desk.clock.advance_to(80_000)
    half = desk.get(CURRENT)
    desk.clock.advance_to(159_999)
    early = desk.apic.pending()
    desk.clock.advance_to(160_000)
    assert (500, False, True, 0, []) == (half, early, desk.apic.pending(), desk.get(CURRENT), desk.clock.pending())


def test_the_periodic_timer_does_not_drift() -> None:
    """With a bus clock that does not divide a second evenly, a thousand periods end where they should."""
    desk = Desk(bus_hz=66_666_667)
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x20040)
    desk.put(INITIAL, 66_667)
    for _ in range(1000):
        desk.clock.advance_to(desk.clock.pending()[0])
    assert -(-1000 * 66_667 * 1_000_000_000 // 66_666_667) == desk.clock.now()


def test_the_current_count_of_a_periodic_timer_wraps(desk: Desk) -> None:
    """After one and a quarter periods three quarters are left."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x20040)
    desk.put(INITIAL, 100_000)
    desk.clock.advance_to(1_250_000)
    assert 75_000 == desk.get(CURRENT)


def test_a_masked_timer_counts_without_events(desk: Desk) -> None:
    """Unmasking a periodic timer later interrupts at the next period's end."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x30040)
    desk.put(INITIAL, 100_000)
    none = desk.clock.pending()
    desk.clock.advance_to(2_500_000)
    desk.put(LVT_TIMER, 0x20040)
    assert ([], [3_000_000]) == (none, desk.clock.pending())


@pytest.mark.parametrize(
    ("configuration", "divider"),
    [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)],
)
def test_dividers(desk: Desk, configuration: int, divider: int) -> None:
    """Bits 0, 1 and 3; bit 2 is not there."""
    desk.put(DIVIDE, configuration | 0b0100)
    desk.put(LVT_TIMER, 0x40)
    desk.put(INITIAL, 1000)
    assert (configuration, [10_000 * divider]) == (desk.get(DIVIDE), desk.clock.pending())


def test_a_masked_periodic_timer_wraps_many_times(desk: Desk) -> None:
    """At the very end of a period the count is the initial one again; so it is after a divider change."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x30040)
    desk.put(INITIAL, 1000)
    desk.clock.advance_to(75_000)
    mid = desk.get(CURRENT)
    desk.clock.advance_to(80_000)
    end = desk.get(CURRENT)
    desk.put(DIVIDE, 0b0000)
    desk.clock.advance_to(105_000)
    assert (500, 1000, 750) == (mid, end, desk.get(CURRENT))


def test_a_one_shot_timer_that_ran_out_masked_stays_silent(desk: Desk) -> None:
    """Unmasking it or making it periodic does not bring it back; a new count does."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x10040)
    desk.put(INITIAL, 1000)
    desk.clock.advance_to(20_000)
    desk.put(LVT_TIMER, 0x00040)
    silent = desk.get(CURRENT), desk.clock.pending()
    desk.put(LVT_TIMER, 0x20040)
    still = desk.get(CURRENT), desk.clock.pending()
    desk.put(INITIAL, 1000)
    assert ((0, []), (0, []), [30_000]) == (silent, still, desk.clock.pending())


def test_tiny_periods_end_on_whole_periods(desk: Desk) -> None:
    """Of 70 nanoseconds the first that is a microsecond or more away."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x20040)
    desk.clock.advance_to(500)
    desk.put(INITIAL, 7)
    first = desk.clock.pending()
    desk.clock.advance_to(first[0])
    assert ([1550], [2600]) == (first, desk.clock.pending())


def test_reset_stops_the_timer(desk: Desk) -> None:
    """And lowers INTR."""
    desk.put(LVT_TIMER, 0x40)
    desk.put(INITIAL, 1000)
    desk.apic.deliver(0x40, False, 0)
    desk.apic.reset()
    assert ([], False, 0) == (desk.clock.pending(), desk.intr.level, desk.get(IRR + 0x20))


def test_a_tiny_period_does_not_flood_the_clock(desk: Desk) -> None:
    """Ten nanoseconds: at most one event per microsecond."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x20040)
    desk.put(INITIAL, 1)
    desk.clock.advance_to(100_000, at_most=200)
    assert desk.apic.pending()


def test_changing_the_divider_keeps_the_count(desk: Desk) -> None:
    """It goes on at the new speed."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x40)
    desk.put(INITIAL, 1000)
    desk.clock.advance_to(5_000)
    desk.put(DIVIDE, 0b0000)
    assert (500, [15_000]) == (desk.get(CURRENT), desk.clock.pending())


def test_a_zero_initial_count_stops_the_timer(desk: Desk) -> None:
    """Nothing is scheduled any more."""
    desk.put(LVT_TIMER, 0x40)
    desk.put(INITIAL, 1000)
    desk.put(INITIAL, 0)
    assert ([], 0) == (desk.clock.pending(), desk.get(CURRENT))


def test_bytes_of_a_register_can_be_read(desk: Desk) -> None:
    """Between registers there are zeros."""
    read = desk.apic.read(VERSION, 1), desk.apic.read(VERSION + 2, 1), desk.apic.read(VERSION + 4, 4)
    assert (0x14, 0x05, 0) == read


def test_requests_and_timer_survive_the_state(desk: Desk) -> None:
    """The restored APIC drives INTR and its timer ends at the same time."""
    desk.put(DIVIDE, 0b1011)
    desk.put(LVT_TIMER, 0x20040)
    desk.put(INITIAL, 100_000)
    desk.clock.advance_to(300_000)
    desk.apic.deliver(0x31, False, 0)
    other = Desk(enabled=False)
    other.clock.advance_to(300_000)
    other.apic.from_state(desk.apic.state())
    assert (True, [1_000_000], 0x31) == (other.intr.level, other.clock.pending(), other.apic.acknowledge())


def test_a_pin_that_stays_up_is_one_edge(desk: Desk) -> None:
    """Telling the same level again asks for nothing."""
    desk.put(LVT_LINT0, 0x0045)
    desk.apic.set_lint0(True)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    desk.apic.set_lint0(True)
    assert not desk.apic.pending()


def test_the_end_of_another_level_does_not_ask_lint0_again(desk: Desk) -> None:
    """Only the vector of LINT0 is its end, and only of a level."""
    desk.put(LVT_LINT0, 0x0045)
    desk.apic.set_lint0(True)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    desk.apic.deliver(0x45, True, 0)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    edge = desk.apic.pending()
    desk.put(LVT_LINT0, 0x8045)
    desk.apic.acknowledge()
    desk.apic.deliver(0x55, True, 0)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    assert (False, 0, False) == (edge, desk.get(IRR + 0x20), desk.apic.pending())


def test_local_edges_do_not_set_the_trigger_mode(desk: Desk) -> None:
    """Timer and LINT1 are edges; their end is not broadcast."""
    desk.put(LVT_LINT1, 0x8046)
    desk.apic.set_lint1(True)
    desk.apic.acknowledge()
    desk.put(EOI, 0)
    assert ([], 0) == (desk.eoi.calls, desk.get(TMR + 0x20))


def test_the_destination_format_keeps_its_upper_bits(desk: Desk) -> None:
    """The others read as ones."""
    desk.put(DFR, 0x00000000)
    assert 0x0FFFFFFF == desk.get(DFR)


def test_unimplemented_registers_read_zero_and_read_only_ones_stay(desk: Desk) -> None:
    """Arbitration priority, remote read, the end of interrupt, and the version."""
    for register in (VERSION, PPR, ISR, TMR, IRR, CURRENT, 0x90, 0xC0, 0x2F0):
        desk.put(register, 0xFFFFFFFF)
    assert [0x50014, 0, 0, 0, 0, 0, 0, 0, 0] == [
        desk.get(register) for register in (VERSION, PPR, ISR, TMR, IRR, CURRENT, 0x90, 0xC0, EOI)
    ]


def test_words_of_the_vector_registers(desk: Desk) -> None:
    """Vector FE is the last word's; 20h the second's, of each register."""
    desk.apic.deliver(0xFE, True, 0)
    desk.apic.acknowledge()
    desk.apic.deliver(0x20, True, 1)
    read = [desk.get(base + 16 * word) for base in (ISR, TMR, IRR) for word in (0, 1, 7)]
    assert [0, 0, 1 << 30, 0, 1, 1 << 30, 0, 1, 0] == read


def test_the_processor_priority_is_the_higher_of_two(desk: Desk) -> None:
    """Of equal classes it is the task priority with its lower bits."""
    desk.apic.deliver(0x57, False, 0)
    desk.apic.acknowledge()
    seen = []
    for task in (0x4F, 0x53, 0x61):
        desk.put(TPR, task)
        seen.append(desk.get(PPR))
    assert [0x50, 0x53, 0x61] == seen


def test_an_illegal_error_vector_does_not_raise_itself(desk: Desk) -> None:
    """The error is noted and that is all."""
    desk.put(LVT_ERROR, 0x05)
    desk.apic.deliver(3, False, 0)
    desk.put(ESR, 0)
    assert (0x40, False) == (desk.get(ESR), desk.apic.pending())
