"""The 8259A pair: initialisation, priorities, ends of interrupt, cascade, triggers."""

import pytest

from hvemu.devices.pic8259 import Pic8259Pair

from .fakes import FakeIrqLine, FakeWatcher


class Desk:
    """A pair initialised as PCs do: vectors 20h and 28h, everything unmasked."""

    def __init__(self) -> None:
        self.intr = FakeIrqLine()
        self.watcher = FakeWatcher()
        self.pair = Pic8259Pair(intr=self.intr, watcher=self.watcher)
        self.initialize()

    def initialize(self, command_word_4: int = 0x01, slave_command_word_4: int = 0x01) -> None:
        for chip, base, cascade, last in (
            (self.pair.master, 0x20, 0x04, command_word_4),
            (self.pair.slave, 0x28, 0x02, slave_command_word_4),
        ):
            chip.write(0, 1, 0x11)
            chip.write(1, 1, base)
            chip.write(1, 1, cascade)
            chip.write(1, 1, last)
            chip.write(1, 1, 0x00)

    def pulse(self, line: int) -> None:
        self.pair.set_irq(line, False)
        self.pair.set_irq(line, True)

    def eoi(self, *, slave: bool = False) -> None:
        if slave:
            self.pair.slave.write(0, 1, 0x20)
        self.pair.master.write(0, 1, 0x20)

    def isr(self) -> int:
        self.pair.master.write(0, 1, 0x0B)
        return self.pair.master.read(0, 1)

    def irr(self) -> int:
        self.pair.master.write(0, 1, 0x0A)
        return self.pair.master.read(0, 1)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_raises_intr_and_is_acknowledged_with_its_vector(desk: Desk) -> None:
    """INTR falls with the acknowledgement; the line is then in service."""
    desk.pulse(0)
    raised = desk.intr.level
    assert (True, 0x20, False, 0x01) == (raised, desk.pair.acknowledge(), desk.intr.level, desk.isr())


def test_before_initialisation_nothing_gets_through() -> None:
    """Both chips start masked."""
    intr = FakeIrqLine()
    pair = Pic8259Pair(intr=intr)
    pair.set_irq(0, True)
    assert (False, 0xFF, 0xFF) == (intr.level, pair.master.read(1, 1), pair.slave.read(1, 1))


def test_the_mask_reads_back_and_holds_requests(desk: Desk) -> None:
    """OCW1: a masked request waits and comes when unmasked."""
    desk.pair.master.write(1, 1, 0x10)
    desk.pulse(4)
    held = desk.intr.level
    assert (0x10, 0x10, False) == (desk.pair.master.read(1, 1), desk.irr(), held)
    desk.pair.master.write(1, 1, 0x00)
    assert (True, 0x24) == (desk.intr.level, desk.pair.acknowledge())


def test_lower_lines_wait_for_the_end_of_higher_ones(desk: Desk) -> None:
    """Fully nested: 4 in service blocks 5, not 1."""
    desk.pulse(4)
    desk.pair.acknowledge()
    desk.pulse(5)
    blocked = desk.intr.level
    desk.pulse(1)
    assert (False, 0x21) == (blocked, desk.pair.acknowledge())
    desk.eoi()
    desk.eoi()
    assert 0x25 == desk.pair.acknowledge()


def test_a_slave_interrupt_takes_both_chips(desk: Desk) -> None:
    """Line 12 is vector 2C; both chips have it in service."""
    desk.pulse(12)
    vector = desk.pair.acknowledge()
    desk.pair.slave.write(0, 1, 0x0B)
    assert (0x2C, 0x04, 0x10) == (vector, desk.isr(), desk.pair.slave.read(0, 1))


def test_two_slave_interrupts_come_one_after_the_other(desk: Desk) -> None:
    """The slave's output makes a new edge for the second."""
    desk.pulse(8)
    desk.pulse(12)
    first = desk.pair.acknowledge()
    desk.eoi(slave=True)
    assert (0x28, True, 0x2C) == (first, desk.intr.level, desk.pair.acknowledge())


def test_two_slave_interrupts_with_automatic_eoi_in_the_slave(desk: Desk) -> None:
    """Even when the slave's request never goes away, its output falls between."""
    desk.initialize(slave_command_word_4=0x03)
    desk.pulse(8)
    desk.pulse(12)
    first = desk.pair.acknowledge()
    desk.eoi()
    assert (0x28, 0x2C) == (first, desk.pair.acknowledge())


def test_an_edge_that_falls_before_the_acknowledgement_is_spurious(desk: Desk) -> None:
    """Vector 7 of the master, and nothing in service."""
    desk.pulse(3)
    desk.pair.set_irq(3, False)
    assert (False, 0x27, 0x00) == (desk.intr.level, desk.pair.acknowledge(), desk.isr())
    assert "spurious interrupt" == desk.watcher.events[0].what


def test_a_spurious_slave_interrupt_leaves_the_cascade_in_service(desk: Desk) -> None:
    """Vector 15: the guest owes the master an EOI, and only the master."""
    desk.pulse(10)
    master = desk.pair.master
    master.write(1, 1, 0x00)
    desk.pair.slave.levels = 0  # the request vanishes between the two INTA cycles
    assert (0x2F, 0x04) == (desk.pair.acknowledge(), desk.isr())


def test_an_edge_line_that_stays_high_interrupts_once(desk: Desk) -> None:
    """It must fall and rise again."""
    desk.pulse(4)
    desk.pair.acknowledge()
    desk.eoi()
    once = desk.intr.level
    desk.pulse(4)
    assert (False, True) == (once, desk.intr.level)


def test_a_level_line_interrupts_until_it_falls(desk: Desk) -> None:
    """ELCR bit 1 of 4D1h makes line 9 a level."""
    desk.pair.elcr.write(1, 1, 0x02)
    desk.pair.set_irq(9, True)
    first = desk.pair.acknowledge()
    desk.eoi(slave=True)
    again = desk.pair.acknowledge()
    desk.pair.set_irq(9, False)
    desk.eoi(slave=True)
    assert (0x29, 0x29, False) == (first, again, desk.intr.level)


def test_elcr_keeps_isa_lines_as_edges(desk: Desk) -> None:
    """Lines 0, 1, 2, 8 and 13 cannot be levels."""
    desk.pair.elcr.write(0, 1, 0xFF)
    desk.pair.elcr.write(1, 1, 0xFF)
    assert (0xF8, 0xDE) == (desk.pair.elcr.read(0, 1), desk.pair.elcr.read(1, 1))


def test_specific_eoi_ends_the_named_line(desk: Desk) -> None:
    """OCW2 63h ends line 3 although line 1 is in service too."""
    desk.pulse(3)
    desk.pair.acknowledge()
    desk.pulse(1)
    desk.pair.acknowledge()
    desk.pair.master.write(0, 1, 0x63)
    assert 0x02 == desk.isr()


def test_automatic_eoi_leaves_nothing_in_service(desk: Desk) -> None:
    """ICW4 bit 1."""
    desk.initialize(0x03)
    desk.pulse(5)
    assert (0x25, 0x00) == (desk.pair.acknowledge(), desk.isr())


def test_rotation_makes_the_served_line_the_lowest(desk: Desk) -> None:
    """After a rotating EOI of 0, line 1 comes before 0."""
    desk.pulse(0)
    desk.pair.acknowledge()
    desk.pair.master.write(0, 1, 0xA0)
    desk.pulse(0)
    desk.pulse(1)
    assert 0x21 == desk.pair.acknowledge()


def test_set_priority_chooses_the_lowest_line(desk: Desk) -> None:
    """OCW2 C3h: 3 is lowest, so 4 is highest."""
    desk.pair.master.write(0, 1, 0xC3)
    desk.pulse(0)
    desk.pulse(4)
    assert 0x24 == desk.pair.acknowledge()


def test_rotation_in_automatic_eoi_mode(desk: Desk) -> None:
    """OCW2 80h: each acknowledged line becomes the lowest."""
    desk.initialize(0x03)
    desk.pair.master.write(0, 1, 0x80)
    desk.pulse(0)
    desk.pair.acknowledge()
    desk.pulse(0)
    desk.pulse(6)
    assert 0x26 == desk.pair.acknowledge()


def test_special_mask_mode_lets_lower_lines_through(desk: Desk) -> None:
    """With line 1 in service and masked, line 6 interrupts; a plain EOI then ends 6."""
    desk.pulse(1)
    desk.pair.acknowledge()
    desk.pair.master.write(1, 1, 0x02)
    desk.pair.master.write(0, 1, 0x68)
    desk.pulse(6)
    assert 0x26 == desk.pair.acknowledge()
    desk.eoi()
    assert 0x02 == desk.isr()


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(desk: Desk) -> None:
    """Line 8 interrupts line 12's handler; line 3 still waits."""
    desk.initialize(0x11)
    desk.pulse(12)
    desk.pair.acknowledge()
    desk.pulse(3)
    waits = desk.intr.level
    desk.pulse(8)
    assert (False, 0x28) == (waits, desk.pair.acknowledge())


def test_a_poll_reads_and_acknowledges(desk: Desk) -> None:
    """OCW3 0Ch: the next read gives 80h and the line, and is the acknowledgement."""
    desk.pulse(5)
    desk.pair.master.write(0, 1, 0x0C)
    polled = desk.pair.master.read(0, 1)
    desk.pair.master.write(0, 1, 0x0C)
    assert (0x85, 0x20, 0x00) == (polled, desk.isr(), desk.pair.master.read(0, 1) & 0x80)


def test_icw1_clears_mask_service_and_edges(desk: Desk) -> None:
    """A line that is high at initialisation must make a new edge."""
    desk.pulse(4)
    desk.pair.acknowledge()
    desk.pulse(6)
    desk.initialize()
    assert (0x00, 0x00, False) == (desk.isr(), desk.irr(), desk.intr.level)


def test_a_single_chip_needs_no_icw3(desk: Desk) -> None:
    """ICW1 12h: ICW2 is the last; the next write is the mask."""
    master = desk.pair.master
    master.write(0, 1, 0x12)
    master.write(1, 1, 0x40)
    master.write(1, 1, 0xFE)
    desk.pulse(0)
    assert (0xFE, 0x40) == (master.read(1, 1), desk.pair.acknowledge())


def test_a_line_is_a_pin_of_the_pair(desk: Desk) -> None:
    """What a device gets from the builder."""
    desk.pair.line(14).set_level(True)
    assert 0x2E == desk.pair.acknowledge()


def test_requests_and_services_survive_the_state(desk: Desk) -> None:
    """A restored pair goes on with the same request and drives INTR."""
    desk.pulse(1)
    desk.pair.acknowledge()
    desk.pulse(0)
    desk.pulse(12)
    other = Desk()
    other.pair.slave.from_state(desk.pair.slave.state())
    other.pair.master.from_state(desk.pair.master.state())
    assert (True, 0x20) == (other.intr.level, other.pair.acknowledge())
    other.eoi()
    other.eoi()
    assert 0x2C == other.pair.acknowledge()


def test_a_line_in_service_does_not_interrupt_itself(desk: Desk) -> None:
    """A second edge of line 4 waits for the EOI; so does the slave outside of special fully nested mode."""
    desk.pulse(4)
    desk.pair.acknowledge()
    desk.pulse(4)
    itself = desk.intr.level
    desk.eoi()
    assert (False, 0x24) == (itself, desk.pair.acknowledge())
    desk.eoi()
    desk.pulse(12)
    desk.pair.acknowledge()
    desk.pulse(8)
    assert not desk.intr.level


def test_the_chosen_register_stays_chosen(desk: Desk) -> None:
    """An OCW3 without RR, and a poll, leave the choice of ISR or IRR alone."""
    desk.pulse(0)
    desk.pair.acknowledge()
    master = desk.pair.master
    master.write(0, 1, 0x0B)
    master.write(0, 1, 0x48)
    master.write(0, 1, 0x08)
    assert 0x01 == master.read(0, 1)


def test_the_special_mask_changes_only_when_enabled(desk: Desk) -> None:
    """ESMM must be set with SMM; 48h ends the mode, and ICW1 does."""
    master = desk.pair.master
    modes = []
    for word in (0x28, 0x68, 0x08, 0x48, 0x68):
        master.write(0, 1, word)
        modes.append(master.special_mask)
    desk.initialize()
    assert [False, True, True, False, True, False] == [*modes, master.special_mask]


def test_a_poll_of_line_0(desk: Desk) -> None:
    """80h: bit 7 says that there was one."""
    desk.pulse(0)
    desk.pair.master.write(0, 1, 0x0C)
    assert 0x80 == desk.pair.master.read(1, 1)


def test_making_a_high_line_a_level_requests_it(desk: Desk) -> None:
    """At once: the ELCR decides how the pin is looked at."""
    desk.pulse(5)
    desk.pair.acknowledge()
    desk.eoi()
    desk.pair.elcr.write(0, 1, 0x20)
    raised = desk.intr.level
    desk.pair.elcr.reset()
    assert (True, False) == (raised, desk.intr.level)


def test_reset_leaves_no_mode_behind(desk: Desk) -> None:
    """A reset pair, initialised again, behaves as the first time."""
    fresh = Desk()
    desk.initialize(0x13)
    desk.pair.master.write(0, 1, 0x80)
    desk.pair.master.write(0, 1, 0x6B)
    desk.pair.master.write(0, 1, 0xC3)
    for device in (desk.pair.master, desk.pair.slave, desk.pair.elcr):
        device.reset()
    desk.initialize()
    assert fresh.pair.master.state() == desk.pair.master.state()
