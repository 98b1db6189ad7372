"""KVM's clock, its end of interrupt, and its hypercalls, without a CPU."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.msr import TSC, ModelSpecificRegisters, MsrError
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.paravirtual.kvm import Kvm
from hvemu.vocabulary.exits import VmCall
from hvemu.vocabulary.outcomes import Retire
from tests.devices.fakes import FakeClock

SIZE = 1 << 16
BOOT = 1_700_000_000
WALL_CLOCK, SYSTEM_TIME, PV_EOI = 0x4B564D00, 0x4B564D01, 0x4B564D04
NAMES = [(WALL_CLOCK, SYSTEM_TIME), (0x11, 0x12)]
quads = st.integers(0, (1 << 64) - 1)


class Desk:
    """The registers of a CPU under KVM, memory, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(SIZE))
        self.clock = FakeClock(1000)
        self.flags: list[int] = []
        self.kvm = Kvm(self.memory, self.clock, BOOT, self.flags.append)
        self.msrs = ModelSpecificRegisters(self.clock.now, no_execute=True, synthetic=self.kvm)

    def page(self, address: int) -> tuple[int, ...]:
        """Version, TSC, nanoseconds, multiplier, shift, flags."""
        version, zero, tsc, time, multiplier, shift, flags = struct.unpack("<IIQQIbB", self.memory.read(address, 30))
        assert 0 == zero
        return version, tsc, time, multiplier, shift, flags

    def time(self, address: int) -> int:
        """What a guest makes of the page (Linux, pvclock.h)."""
        _, then, time, multiplier, shift, _ = self.page(address)
        delta = self.msrs.tsc() - then
        delta = delta << shift if shift >= 0 else delta >> -shift
        return (delta * multiplier >> 32) + time


@pytest.mark.parametrize(("_wall", "system"), NAMES)
def test_the_system_time_is_what_the_formula_makes_of_the_counter(_wall: int, system: int) -> None:
    """At once, later, and after the guest has moved its counter."""
    desk = Desk()
    desk.msrs.write(system, 0x2000 | 1)
    assert (2, 1000, 1000, 1) == (*desk.page(0x2000)[:3], desk.page(0x2000)[5])
    desk.clock.advance(12_345)
    assert desk.clock.now() == desk.time(0x2000)
    desk.msrs.write(TSC, 7)
    assert (4, 7, 13_345) == desk.page(0x2000)[:3]
    desk.clock.advance(1 << 40)
    assert desk.clock.now() == desk.time(0x2000)


@pytest.mark.parametrize(("wall", "system"), NAMES)
def test_the_wall_clock_is_the_time_of_power_on(wall: int, system: int) -> None:
    """Whenever it is asked for; with the system time it makes the present."""
    desk = Desk()
    desk.clock.advance(5_000_000_000)
    desk.msrs.write(wall, 0x3000)
    assert (2, BOOT, 0) == struct.unpack("<III", desk.memory.read(0x3000, 12))
    desk.msrs.write(wall, 0x3000)
    assert 4 == desk.memory.read_u32(0x3000)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (1, 4), (2, 4), (0xFFFF_FFFE, 0), (0xFFFF_FFFF, 2)])
def test_the_version_is_the_next_even_one(before: int, after: int) -> None:
    """What was there may be odd rubbish."""
    desk = Desk()
    for address in (0x2000, 0x3000):
        desk.memory.write(address, struct.pack("<I", before))
    desk.msrs.write(SYSTEM_TIME, 0x2001)
    desk.msrs.write(WALL_CLOCK, 0x3000)
    assert [after, after] == [desk.memory.read_u32(address) for address in (0x2000, 0x3000)]


def test_a_disabled_clock_is_left_alone() -> None:
    """Bit 0 of the system time; address 0 of the wall clock."""
    desk = Desk()
    desk.msrs.write(SYSTEM_TIME, 0x2000)
    desk.msrs.write(WALL_CLOCK, 0)
    desk.msrs.write(TSC, 0)
    desk.msrs.write(SYSTEM_TIME, 0x2001)
    desk.msrs.write(SYSTEM_TIME, 0)
    desk.clock.advance(99)
    desk.msrs.write(TSC, 0)
    assert 1000 == desk.page(0x2000)[2]
    assert bytes(0x2000) == desk.memory.read(0, 0x2000)


@pytest.mark.parametrize("address", [SIZE, SIZE - 16, 0x2FF0, 1 << 40, (1 << 64) - 32])
def test_a_clock_that_is_not_in_memory_is_not_written(address: int) -> None:
    """Nor one that crosses a page; the register keeps its value."""
    desk = Desk()
    desk.msrs.write(SYSTEM_TIME, address | 1)
    assert address | 1 == desk.msrs.read(SYSTEM_TIME)
    assert bytes(SIZE) == desk.memory.read(0, SIZE)


def test_the_old_numbers_are_other_names() -> None:
    """What is written by one is read by the other."""
    desk = Desk()
    for (old, new), value in zip(((0x11, WALL_CLOCK), (0x12, SYSTEM_TIME)), (0x2000, 0x3001), strict=True):
        desk.msrs.write(old, value)
        assert (value, value) == (desk.msrs.read(old), desk.msrs.read(new))
        desk.msrs.write(new, 0)
        assert 0 == desk.msrs.read(old)


def test_the_flag_of_pv_eoi_must_be_in_memory_and_aligned() -> None:
    """#GP otherwise; what is disabled may be anywhere."""
    desk = Desk()
    for refused in (0x2003, 0x2002, SIZE | 1, 1 << 40 | 1):
        with pytest.raises(MsrError):
            desk.msrs.write(PV_EOI, refused)
    assert 0 == desk.msrs.read(PV_EOI)
    for accepted in (0x2001, SIZE - 4 | 1, SIZE, 0):
        desk.msrs.write(PV_EOI, accepted)
        assert accepted == desk.msrs.read(PV_EOI)
    assert [0x2001, SIZE - 4 | 1, SIZE, 0] == desk.flags


@pytest.mark.parametrize("index", [0x4B564D02, 0x4B564D03, 0x4B564D05, 0x4B564D06, 0x4B564D07, 0x4B564D08, 0x40000000])
def test_what_is_not_offered_faults(index: int) -> None:
    """Asynchronous page faults, steal time, poll control, migration; Hyper-V's."""
    desk = Desk()
    with pytest.raises(MsrError):
        desk.msrs.read(index)
    with pytest.raises(MsrError):
        desk.msrs.write(index, 0)


def test_reset_values_are_all_zero() -> None:
    """Nothing is enabled."""
    desk = Desk()
    desk.msrs.write(SYSTEM_TIME, 0x2001)
    values = desk.msrs.reset_values()
    assert [0, 0, 0] == [values[index] for index in (WALL_CLOCK, SYSTEM_TIME, PV_EOI)]


@pytest.mark.parametrize(
    ("number", "ring", "answer"),
    [
        (1, 0, 0),
        (5, 0, 0),
        (0, 0, -1000),
        (2, 0, -1000),
        (9, 0, -1000),
        (0xFFFF_FFFF, 0, -1000),
        (1, 3, -1),
        (7, 3, -1),
    ],
)
def test_hypercalls(number: int, ring: int, answer: int) -> None:
    """What is offered, ENOSYS, and EPERM for user code."""
    assert Retire(answer & 0xFFFF_FFFF) == Desk().kvm.answer(VmCall(number, ring, (0, 0, 0, 0)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(Kvm.numbers | {TSC})), quads, st.integers(0, 1 << 50)), max_size=20))
def test_no_values_do_anything_but_fault_or_write_what_is_named(accesses: list[tuple[int, int, int]]) -> None:
    """Memory changes only where a register says."""
    desk = Desk()
    for index, value, time in accesses:
        desk.clock.advance(time)
        before = desk.memory.read(0, SIZE)
        named = [value & ~1] if index != TSC else [desk.msrs.read(SYSTEM_TIME) & ~1]
        try:
            desk.msrs.write(index, value)
        except MsrError:
            assert before == desk.memory.read(0, SIZE)
            continue
        assert index == TSC or value == desk.msrs.read(index)
        changed = [
            at for at, (old, new) in enumerate(zip(before, desk.memory.read(0, SIZE), strict=True)) if old != new
        ]
        assert all(named[0] <= at < named[0] + 32 for at in changed)
