"""The I/O APIC: its registers, edges, levels, ends of interrupt."""

import pytest

from hvemu.devices.ioapic import IoApic, PinLine

from .fakes import FakeCalls

LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000


class Desk:
    """An I/O APIC and what it sent."""

    def __init__(self) -> None:
        self.sent = FakeCalls()
        self.apic = IoApic(deliver=self.sent, identifier=1)

    def put(self, register: int, value: int) -> None:
        self.apic.write(0x00, 4, register)
        self.apic.write(0x10, 4, value)

    def get(self, register: int) -> int:
        self.apic.write(0x00, 4, register)
        return self.apic.read(0x10, 4)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_identity_version_and_masks_after_reset(desk: Desk) -> None:
    """Version 11h with 24 entries, all masked."""
    assert (0x01000000, 0x00170011, MASKED, 0) == (desk.get(0), desk.get(1), desk.get(0x10), desk.get(0x3F))


def test_the_identity_can_be_changed(desk: Desk) -> None:
    """Linux does so when firmware's number clashes."""
    desk.put(0, 0x05000000)
    assert 0x05000000 == desk.get(0)


def test_an_entry_keeps_its_writable_bits(desk: Desk) -> None:
    """Delivery status and remote IRR are the chip's."""
    desk.put(0x14, 0xFFFFFFFF)
    desk.put(0x15, 0xFFFFFFFF)
    assert (0x1AFFF, 0xFF000000) == (desk.get(0x14), desk.get(0x15))


def test_an_edge_is_sent_once(desk: Desk) -> None:
    """A line that stays up sends nothing more."""
    desk.put(0x14, 0x32)
    for level in (True, True, False, True):
        desk.apic.set_irq(2, level)
    assert [(0x32, False, 0), (0x32, False, 0)] == desk.sent.calls


def test_an_edge_while_masked_is_lost(desk: Desk) -> None:
    """Unmasking does not bring it back."""
    desk.apic.set_irq(2, True)
    desk.put(0x14, 0x32)
    assert [] == desk.sent.calls


def test_a_level_is_sent_again_after_its_end_while_asserted(desk: Desk) -> None:
    """Remote IRR holds it back until the end of interrupt."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    waiting = desk.get(0x22)
    desk.apic.end_of_interrupt(0x59)
    desk.apic.set_irq(9, False)
    desk.apic.end_of_interrupt(0x59)
    assert (LEVEL | REMOTE_IRR | 0x59, LEVEL | 0x59) == (waiting, desk.get(0x22))
    assert [(0x59, True, 0)] * 2 == desk.sent.calls


def test_an_end_of_another_vector_changes_nothing(desk: Desk) -> None:
    """Only entries with that vector listen."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.apic.end_of_interrupt(0x58)
    assert 1 == len(desk.sent.calls)


def test_unmasking_an_asserted_level_sends_it(desk: Desk) -> None:
    """Levels are never lost."""
    desk.put(0x22, MASKED | LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.put(0x22, LEVEL | 0x59)
    assert [(0x59, True, 0)] == desk.sent.calls


def test_rewriting_an_entry_keeps_remote_irr(desk: Desk) -> None:
    """Masking and unmasking within a handler must not send twice."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.put(0x22, MASKED | LEVEL | 0x59)
    desk.put(0x22, LEVEL | 0x59)
    assert 1 == len(desk.sent.calls)


def test_switching_to_edge_and_back_ends_a_level(desk: Desk) -> None:
    """What Linux does for chips without an EOI register."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.put(0x22, MASKED | 0x59)
    desk.put(0x22, LEVEL | 0x59)
    assert 2 == len(desk.sent.calls)


def test_extint_and_nmi_entries_are_edges(desk: Desk) -> None:
    """Even with the trigger bit set; the delivery mode is passed on."""
    desk.put(0x10, 0x700)
    desk.put(0x12, LEVEL | 0x400)
    desk.apic.set_irq(0, True)
    desk.apic.set_irq(1, True)
    assert [(0, False, 7), (0, False, 4)] == desk.sent.calls


def test_a_pin_is_an_irq_line(desk: Desk) -> None:
    """What a device gets from the builder."""
    desk.put(0x18, 0x34)
    PinLine(desk.apic, 4).set_level(True)
    assert [(0x34, False, 0)] == desk.sent.calls


def test_the_window_reads_by_bytes(desk: Desk) -> None:
    """The index selects; any aligned part can be read."""
    desk.apic.write(0x00, 1, 1)
    assert (0x11, 0x17, 1) == (desk.apic.read(0x10, 1), desk.apic.read(0x12, 1), desk.apic.read(0, 1))


def test_remote_irr_survives_the_state(desk: Desk) -> None:
    """A restored chip waits for the same end of interrupt."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    other = Desk()
    other.apic.from_state(desk.apic.state())
    other.apic.end_of_interrupt(0x59)
    assert [(0x59, True, 0)] == other.sent.calls


def test_reset_masks_all_but_keeps_the_inputs(desk: Desk) -> None:
    """The pins belong to the devices that drive them."""
    desk.put(0x22, LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.apic.reset()
    desk.put(0x22, LEVEL | 0x60)
    assert (MASKED, (0x60, True, 0)) == (desk.get(0x10), desk.sent.calls[-1])


def test_lowest_priority_is_a_level_and_its_mode_is_passed_on(desk: Desk) -> None:
    """Delivery mode 1."""
    desk.put(0x22, LEVEL | 0x159)
    desk.apic.set_irq(9, True)
    assert ([(0x59, True, 1)], LEVEL | REMOTE_IRR | 0x159) == (desk.sent.calls, desk.get(0x22))


def test_an_end_does_not_send_a_level_that_was_never_sent(desk: Desk) -> None:
    """A masked entry with the same vector."""
    desk.put(0x22, MASKED | LEVEL | 0x59)
    desk.apic.set_irq(9, True)
    desk.apic.end_of_interrupt(0x59)
    assert [] == desk.sent.calls


def test_registers_that_do_not_exist(desk: Desk) -> None:
    """Beyond entry 23, and between 2 and 10h."""
    for register in (0x03, 0x40, 0x41, 0xFF):
        desk.put(register, 0)
    assert [0, 0, 0] == [desk.get(register) for register in (0x03, 0x40, 0xFF)]
    assert MASKED == desk.get(0x3E)


def test_narrow_writes_to_the_window_are_dropped(desk: Desk) -> None:
    """The data sheet wants 32 bits; so does the end-of-interrupt register that version 11h lacks."""
    desk.apic.write(0x00, 4, 0x14)
    desk.apic.write(0x10, 1, 0x32)
    desk.apic.write(0x40, 4, 0x32)
    assert MASKED == desk.get(0x14)
