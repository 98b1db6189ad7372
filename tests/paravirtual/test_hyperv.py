"""Hyper-V's registers and its hypercall page, without a CPU."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.msr import ModelSpecificRegisters, MsrError
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.paravirtual.hyperv import HyperV
from tests.devices.fakes import FakeClock

SIZE = 1 << 16
GUEST_OS_ID, HYPERCALL, VP_INDEX, TIME_REF_COUNT = 0x40000000, 0x40000001, 0x40000002, 0x40000020
STUB = bytes.fromhex("0f01c1c3")


class Desk:
    """The registers of a CPU under Hyper-V, and memory full of 55h."""

    def __init__(self) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(SIZE))
        self.memory.write(0, b"\x55" * SIZE)
        self.clock = FakeClock(1000)
        self.msrs = ModelSpecificRegisters(self.clock.now, no_execute=True, synthetic=HyperV(self.memory, self.clock))

    def refused(self, index: int, value: int) -> bool:
        """Whether a write is #GP."""
        try:
            self.msrs.write(index, value)
        except MsrError:
            return True
        return False


def test_the_hypercall_page_is_written_once_the_guest_has_named_itself() -> None:
    """Four bytes; the rest of the page is the guest's."""
    desk = Desk()
    desk.msrs.write(HYPERCALL, 0x3001)
    assert (0, b"\x55" * 4) == (desk.msrs.read(HYPERCALL), desk.memory.read(0x3000, 4))
    desk.msrs.write(GUEST_OS_ID, 0x8100 << 48)
    desk.msrs.write(HYPERCALL, 0x3001)
    assert (0x3001, STUB + b"\x55") == (desk.msrs.read(HYPERCALL), desk.memory.read(0x3000, 5))


def test_a_guest_that_takes_its_name_back_loses_the_page() -> None:
    """Disabled, as it was before."""
    desk = Desk()
    desk.msrs.write(GUEST_OS_ID, 1)
    desk.msrs.write(HYPERCALL, 0x3001)
    desk.msrs.write(GUEST_OS_ID, 0)
    assert 0x3000 == desk.msrs.read(HYPERCALL)


def test_a_locked_page_stays() -> None:
    """Until the values after a reset."""
    desk = Desk()
    desk.msrs.write(GUEST_OS_ID, 1)
    desk.msrs.write(HYPERCALL, 0x3003)
    desk.msrs.write(HYPERCALL, 0x4001)
    assert 0x3003 == desk.msrs.read(HYPERCALL)
    assert 0 == desk.msrs.reset_values()[HYPERCALL]


@pytest.mark.parametrize("page", [SIZE, 1 << 40, (1 << 64) - 0x1000])
def test_a_page_outside_of_memory_faults(page: int) -> None:
    """Only if it is to be enabled."""
    desk = Desk()
    desk.msrs.write(GUEST_OS_ID, 1)
    assert desk.refused(HYPERCALL, page | 1)
    assert 0 == desk.msrs.read(HYPERCALL)
    assert not desk.refused(HYPERCALL, page)


def test_time_is_counted_in_100_ns_and_there_is_one_processor() -> None:
    """Both cannot be written."""
    desk = Desk()
    assert (10, 0) == (desk.msrs.read(TIME_REF_COUNT), desk.msrs.read(VP_INDEX))
    desk.clock.advance(99)
    assert 10 == desk.msrs.read(TIME_REF_COUNT)
    desk.clock.advance(1)
    assert 11 == desk.msrs.read(TIME_REF_COUNT)
    assert desk.refused(TIME_REF_COUNT, 0)
    assert desk.refused(VP_INDEX, 0)


@pytest.mark.parametrize("index", [0x40000003, 0x40000010, 0x40000021, 0x40000070, 0x40000073, 0x40000080, 0x4B564D01])
def test_what_is_not_offered_faults(index: int) -> None:
    """Reset, run time, reference page, APIC registers, synthetic interrupts; KVM's."""
    desk = Desk()
    assert desk.refused(index, 0)
    with pytest.raises(MsrError):
        desk.msrs.read(index)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(HyperV.numbers)), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_no_values_do_anything_but_fault_or_write_the_page(accesses: list[tuple[int, int]]) -> None:
    """Every register keeps a number, and memory is as it was but for the page's first bytes."""
    desk = Desk()
    for index, value in accesses:
        before = desk.memory.read(0, SIZE)
        if desk.refused(index, value):
            assert before == desk.memory.read(0, SIZE)
        assert 0 <= desk.msrs.read(index) < 1 << 64
        changed = [at for at in range(SIZE) if before[at] != desk.memory.view[at]] if value & 1 else []
        assert all(value >> 12 << 12 <= at < (value >> 12 << 12) + 4 for at in changed)
