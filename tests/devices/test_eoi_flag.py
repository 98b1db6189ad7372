"""Ending an interrupt in memory: the local APIC is the same, at every moment, as if its register had been written."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.contract import DeviceState
from hvemu.devices.eoi_flag import EoiFlag, NoMemory
from hvemu.devices.lapic import LocalApic
from hvemu.vocabulary.addresses import GuestPhysical

from .fakes import FakeCalls, FakeClock, FakeIrqLine, FakeMemory

PPR, EOI, SVR, TPR, ISR, IRR, ICR_LOW = 0xA0, 0xB0, 0xF0, 0x80, 0x100, 0x200, 0x300
WHERE = 0x1234
LEVEL, EDGE = True, False


class Desk:
    """A local APIC with a guest that clears the flag where it can; ``enabled``: it has named one."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.memory = FakeMemory()
        self.flag = EoiFlag(self.memory)
        self.intr = FakeIrqLine()
        self.eoi = FakeCalls()
        self.apic = LocalApic(
            clock=FakeClock(),
            intr=self.intr,
            acknowledge_external=lambda: 0x77,
            eoi_broadcast=self.eoi,
            nmi=FakeCalls(),
            eoi_flag=self.flag,
        )
        self.apic.write(SVR, 4, 0x1FF)
        if enabled:
            self.apic.set_eoi_flag(WHERE | 1)
        self.writes = 0

    def byte(self) -> int:
        return self.memory.bytes.get(WHERE, 0)

    def interrupt(self, vector: int, level: bool = EDGE) -> None:
        self.apic.deliver(vector, level, 0)

    def end(self) -> None:
        """What a guest does at the end of its handler."""
        if self.byte() & 1:
            self.memory.bytes[WHERE] = self.byte() & ~1
        else:
            self.writes += 1
            self.apic.write(EOI, 4, 0)

    def view(self) -> list[object]:
        """All that anybody can see."""
        registers = [self.apic.read(at + 16 * word, 4) for at in (ISR, IRR) for word in range(8)]
        return [*registers, self.apic.read(PPR, 4), self.intr.level, self.apic.pending(), self.eoi.calls]


def test_a_single_interrupt_is_ended_without_a_write() -> None:
    """The flag is set on delivery; the guest clears it, and nothing is in service."""
    desk = Desk()
    desk.interrupt(0x31)
    assert (0, 0x31, 1) == (desk.byte(), desk.apic.acknowledge(), desk.byte())
    assert 1 << 17 == desk.apic.read(ISR + 0x10, 4)
    desk.end()
    assert (0, 0) == (desk.apic.read(ISR + 0x10, 4), desk.writes)


def test_other_bits_of_the_byte_are_the_guests() -> None:
    """Only bit 0 is changed."""
    desk = Desk()
    desk.memory.bytes[WHERE] = 0xA4
    desk.interrupt(0x31)
    desk.apic.acknowledge()
    assert 0xA5 == desk.byte()
    desk.interrupt(0x41)
    assert 0xA4 == desk.byte()


def test_a_waiting_interrupt_needs_the_write() -> None:
    """It is delivered only after the end is told; the flag is taken back when it arrives."""
    desk = Desk()
    desk.interrupt(0x31)
    desk.apic.acknowledge()
    desk.interrupt(0x32)
    assert (0, False) == (desk.byte(), desk.intr.level)
    desk.end()
    assert (1, True, 0x32) == (desk.writes, desk.intr.level, desk.apic.acknowledge())
    assert 1 == desk.byte()


def test_an_interrupt_that_comes_after_the_flag_was_cleared_is_delivered() -> None:
    """The end is noticed first."""
    desk = Desk()
    desk.interrupt(0x41)
    desk.apic.acknowledge()
    desk.end()
    desk.interrupt(0x31)
    assert (True, 0x31) == (desk.intr.level, desk.apic.acknowledge())


def test_level_triggered_and_nested_interrupts_are_ended_by_the_register() -> None:
    """The I/O APIC must hear of the one; the other uncovers what it interrupted."""
    desk = Desk()
    desk.interrupt(0x51, LEVEL)
    desk.apic.acknowledge()
    assert 0 == desk.byte()
    desk.interrupt(0x61)
    desk.apic.acknowledge()
    assert 0 == desk.byte()
    desk.end()
    desk.end()
    assert (2, [(0x51,)]) == (desk.writes, desk.eoi.calls)


def test_a_guest_may_write_the_register_all_the_same() -> None:
    """The flag is taken back, and one interrupt is ended, not two."""
    desk = Desk()
    desk.interrupt(0x31)
    desk.apic.acknowledge()
    desk.apic.write(EOI, 4, 0)
    assert (0, 0) == (desk.byte(), desk.apic.read(ISR + 0x10, 4))


def test_a_flag_that_is_renamed_or_given_up_is_taken_back() -> None:
    """Also when the registers are lost because the APIC is disabled."""
    acts: list[Callable[[LocalApic], None]] = [
        lambda apic: apic.set_eoi_flag(0),
        lambda apic: apic.set_eoi_flag(WHERE + 0x100 | 1),
        lambda apic: apic.set_enabled_globally(False),
    ]
    for act in acts:
        desk = Desk()
        desk.interrupt(0x31)
        desk.apic.acknowledge()
        act(desk.apic)
        assert (0, False) == (desk.byte(), desk.flag.offered)


def test_reset_disables_it_and_leaves_memory_alone() -> None:
    """What memory holds after a reset is not the chip's affair."""
    desk = Desk()
    desk.interrupt(0x31)
    desk.apic.acknowledge()
    desk.apic.reset()
    assert (1, 0, False) == (desk.byte(), desk.flag.control, desk.flag.offered)


def test_without_memory_nothing_happens() -> None:
    """An APIC that was given none."""
    memory = NoMemory()
    memory.write(GuestPhysical(0), b"x")
    assert b"\xff\xff" == memory.read(GuestPhysical(0), 2)


def test_the_state_has_the_flag_and_comes_back() -> None:
    """Offered, and not ended twice."""
    desk, other = Desk(), Desk(enabled=False)
    desk.interrupt(0x31)
    desk.apic.acknowledge()
    other.memory.bytes = dict(desk.memory.bytes)
    other.apic.from_state(desk.apic.state())
    desk.end()
    other.end()
    assert desk.view() == other.view()
    assert desk.apic.state() == other.apic.state()
    state = desk.apic.state()
    for wrong in ({}, {"control": -1, "offered": False}, {"control": 0, "offered": 1}):
        with pytest.raises(ValueError, match="EOI flag"):
            other.apic.from_state(DeviceState(state.device, state.version, {**state.fields, "eoi_flag": wrong}))


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("interrupt"), st.integers(0x10, 0x5F), st.booleans()),
        st.tuples(st.sampled_from(["acknowledge", "end", "end", "register"]), st.just(0), st.just(False)),
        st.tuples(st.just("priority"), st.sampled_from([0, 0x20, 0x30, 0x41, 0x50]), st.just(False)),
        st.tuples(st.just("enable"), st.just(0), st.booleans()),
        st.tuples(st.just("lint0"), st.just(0), st.booleans()),
        st.tuples(st.just("name"), st.sampled_from([0, WHERE, WHERE | 1]), st.just(False)),
    ),
    max_size=60,
)


def act(desk: Desk, what: str, number: int, yes: bool) -> int:
    """One thing that the guest or the world does; the vector, if one is taken."""
    if what == "interrupt":
        desk.interrupt(number, yes)
    elif what == "acknowledge" and desk.apic.pending():
        return desk.apic.acknowledge()
    elif what == "end":
        desk.end()
    elif what == "register":
        desk.apic.write(EOI, 4, 0)
    elif what == "priority":
        desk.apic.write(TPR, 4, number)
    elif what == "enable":
        desk.apic.write(SVR, 4, 0x1FF if yes else 0xFF)
    elif what == "lint0":
        desk.apic.set_lint0(yes)
    return -1


@settings(max_examples=300, deadline=None)
@given(ACTS, st.booleans())
def test_a_guest_that_uses_the_flag_sees_what_one_that_writes_the_register_sees(
    acts: list[tuple[str, int, bool]], looking: bool
) -> None:
    """Whatever happens, in whatever order; whether it looks at the registers between or only at the end."""
    flagged, plain = Desk(), Desk(enabled=False)
    for what, number, yes in acts:
        if what == "name":
            flagged.apic.set_eoi_flag(number)
            continue
        assert act(plain, what, number, yes) == act(flagged, what, number, yes)
        assert (plain.intr.level, plain.eoi.calls) == (flagged.intr.level, flagged.eoi.calls)
        if looking:
            assert plain.view() == flagged.view()
    assert plain.view() == flagged.view()
    assert plain.writes >= flagged.writes
