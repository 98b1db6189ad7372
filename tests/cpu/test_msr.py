"""Model-specific registers: what exists, what may be written, and the time-stamp counter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.msr import (
    APIC_BASE,
    CSTAR,
    EFER,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    LSTAR,
    MISC_ENABLE,
    MTRR_DEFAULT,
    MTRRCAP,
    PAT,
    SFMASK,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
    TSC,
    TSC_AUX,
    ModelSpecificRegisters,
    MsrError,
)
from hvemu.vocabulary.machine_map import LAPIC_BASE
from hvemu.vocabulary.paging import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, EFER_SVME

LONG = EFER_SCE | EFER_LME
quads = st.integers(0, (1 << 64) - 1)
SOME = [*range(0x10, 0x300), *range(0xC000_0080, 0xC000_0110), *range(0xC001_0000, 0xC001_0120)]


class Desk:
    """Registers, with a clock that is set by hand and remembers what it was told."""

    def __init__(self, *, no_execute: bool = True, long_mode: bool = False) -> None:
        self.now = 1000
        self.apic: list[bool] = []
        self.told: list[tuple[int, int]] = []
        self.msrs = ModelSpecificRegisters(
            lambda: self.now, no_execute=no_execute, long_mode=long_mode, apic_enable=self.apic.append
        )
        self.msrs.changed = lambda index, value: self.told.append((index, value))

    def takes(self, index: int, value: int) -> bool:
        """Whether a write is accepted; it is then read back, and otherwise nothing has changed."""
        before = self.msrs.read(index)
        try:
            self.msrs.write(index, value)
        except MsrError:
            assert before == self.msrs.read(index)
            return False
        assert value == self.msrs.read(index)
        return True


def test_what_does_not_exist_faults() -> None:
    """Reading as well as writing."""
    desk = Desk()
    for index in (0, 0x11, 0x12345678, 0xC000_0081, 0xC000_0100, 0xFFFF_FFFF):
        with pytest.raises(MsrError):
            desk.msrs.read(index)
        with pytest.raises(MsrError):
            desk.msrs.write(index, 0)


@pytest.mark.parametrize("index", [0x17, MTRRCAP, 0x179, 0x198, 0xCD])
def test_what_is_read_only_faults_when_written(index: int) -> None:
    """Even with the value that it has."""
    desk = Desk()
    with pytest.raises(MsrError):
        desk.msrs.write(index, desk.msrs.read(index))


def test_values_after_power_on() -> None:
    """APIC enabled on the boot processor, no machine check banks, eight variable MTRRs, all memory write-back."""
    msrs = Desk().msrs
    assert (LAPIC_BASE | 0x900, 0, 0) == (msrs.read(APIC_BASE), msrs.read(EFER), msrs.read(0x179))
    assert (0x508, 0xC06, 0x0007_0406_0007_0406) == (msrs.read(MTRRCAP), msrs.read(MTRR_DEFAULT), msrs.read(PAT))
    assert msrs.reset_values() == msrs.values


def test_the_time_stamp_counter_goes_on_from_what_was_written() -> None:
    """Both ways, and beyond 64 bits it wraps."""
    desk = Desk()
    assert 1000 == desk.msrs.read(TSC)
    for value in (0, 5, 1 << 40, (1 << 64) - 1, 1 << 63):
        desk.msrs.write(TSC, value)
        assert value == desk.msrs.tsc()
        desk.now += 7
        assert (value + 7) & (1 << 64) - 1 == desk.msrs.read(TSC)


@given(st.lists(st.tuples(quads, st.integers(0, 1 << 62)), min_size=1, max_size=8))
def test_the_offset_of_the_counter_is_a_signed_64_bit_number(writes: list[tuple[int, int]]) -> None:
    """The engine keeps it in one; and what is saved and restored is all there is."""
    desk = Desk()
    for value, now in writes:
        desk.now = now
        desk.msrs.write(TSC, value)
        assert -(1 << 63) <= desk.msrs.tsc_offset < 1 << 63
        assert value == (now + desk.msrs.tsc_offset) & (1 << 64) - 1
        other = Desk()
        other.msrs.values.update(desk.msrs.values)
        other.now = now
        assert value == other.msrs.read(TSC)


def test_power_on_sets_the_counter_back() -> None:
    """Its offset is one of the values."""
    desk = Desk()
    desk.msrs.write(TSC, 0)
    desk.msrs.values.update(desk.msrs.reset_values())
    assert 1000 == desk.msrs.read(TSC)


@pytest.mark.parametrize(
    ("no_execute", "long_mode", "allowed"),
    [(False, False, 0), (True, False, EFER_NXE), (True, True, EFER_NXE | LONG), (False, True, LONG)],
)
def test_efer_takes_only_what_the_cpu_has(no_execute: bool, long_mode: bool, allowed: int) -> None:
    """Everything else is reserved; no nested virtualization."""
    desk = Desk(no_execute=no_execute, long_mode=long_mode)
    assert desk.takes(EFER, allowed)
    for bit in (EFER_SCE, EFER_NXE, EFER_LME, EFER_SVME, 1 << 1, 1 << 63):
        assert bool(bit & allowed) == desk.takes(EFER, bit)


def test_long_mode_is_not_turned_on_or_off_under_paging() -> None:
    """LME is frozen while CR0.PG is 1; the other bits are not."""
    desk = Desk(long_mode=True)
    desk.msrs.paging_enabled = lambda: True
    assert not desk.takes(EFER, EFER_LME)
    assert desk.takes(EFER, EFER_NXE)
    desk.msrs.values[EFER] = EFER_LME
    assert not desk.takes(EFER, EFER_NXE)
    assert desk.takes(EFER, EFER_LME | EFER_SCE)


def test_what_is_written_to_lma_does_not_count() -> None:
    """The CPU sets and clears it, with CR0.PG."""
    desk = Desk(long_mode=True)
    desk.msrs.write(EFER, EFER_LME | EFER_LMA)
    assert EFER_LME == desk.msrs.read(EFER)
    desk.msrs.live[EFER] = lambda: EFER_LME | EFER_LMA
    desk.msrs.write(EFER, EFER_LME | EFER_SCE)
    assert EFER_LME | EFER_LMA | EFER_SCE == desk.msrs.values[EFER]


@pytest.mark.parametrize("index", [LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP], ids=hex)
def test_addresses_are_canonical(index: int) -> None:
    """48 bits, with a sign; without long mode there is no such register, or it has 32 bits."""
    desk = Desk(long_mode=True)
    for value in (0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, (1 << 64) - 1):
        assert desk.takes(index, value)
    for value in (1 << 47, 0x7FFF_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63):
        assert not desk.takes(index, value)
    with pytest.raises(MsrError):
        Desk().msrs.write(index, (1 << 64) - 1)


def test_the_mask_of_syscall_has_32_bits() -> None:
    """The upper half of RFLAGS does not exist."""
    desk = Desk(long_mode=True)
    assert desk.takes(SFMASK, 0xFFFF_FFFF)
    assert not desk.takes(SFMASK, 1 << 32)
    assert desk.takes(STAR, (1 << 64) - 1)


def test_live_registers_are_read_where_they_are() -> None:
    """What the CPU changes without WRMSR; what it does not have stays away."""
    desk = Desk(long_mode=True)
    desk.msrs.live = {GS_BASE: lambda: 0x5000, 0x1234: lambda: 1}
    assert 0x5000 == desk.msrs.read(GS_BASE) == desk.msrs.present_values()[GS_BASE]
    assert 0x1234 not in desk.msrs.present_values()


def test_the_apic_base_stays_where_it_is() -> None:
    """The APIC can be switched off and on; it cannot be moved, and nobody else becomes the boot processor."""
    desk = Desk()
    assert desk.takes(APIC_BASE, LAPIC_BASE | 0x100)
    assert desk.takes(APIC_BASE, LAPIC_BASE | 0x900)
    assert [False, True] == desk.apic
    for value in (
        LAPIC_BASE | 0x800,
        0xFED0_0900,
        LAPIC_BASE | 0xD00,
        1 << 32 | LAPIC_BASE | 0x900,
        LAPIC_BASE | 0x901,
    ):
        assert not desk.takes(APIC_BASE, value)
    assert [False, True] == desk.apic


@pytest.mark.parametrize("index", [SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, TSC_AUX])
def test_registers_of_32_bits(index: int) -> None:
    """Without long mode the upper half is reserved."""
    desk = Desk()
    assert desk.takes(index, 0xFFFF_FFFF)
    assert not desk.takes(index, 1 << 32)


@pytest.mark.parametrize("index", [PAT, 0x250, 0x258, 0x259, 0x268, 0x26F])
@pytest.mark.parametrize("byte", range(8))
def test_memory_types_are_checked_byte_by_byte(index: int, byte: int) -> None:
    """0, 1, 4, 5 and 6 exist; 7 only in the PAT."""
    desk = Desk()
    for kind in (*range(10), 0x80, 0xFF):
        expected = kind in (0, 1, 4, 5, 6) or (index == PAT and kind == 7)
        assert expected == desk.takes(index, kind << 8 * byte)


def test_the_default_memory_type() -> None:
    """A type and two enable bits; the rest is reserved."""
    desk = Desk()
    assert [True, True, False, False, False] == [
        desk.takes(MTRR_DEFAULT, value) for value in (0, 0xC06, 0xC02, 0x100, 1 << 40)
    ]


def test_writes_are_told() -> None:
    """Once each, after they have taken effect; refused ones are not."""
    desk = Desk()
    desk.takes(SYSENTER_EIP, 0x1234)
    desk.takes(SYSENTER_EIP, 1 << 40)
    desk.takes(MISC_ENABLE, 0)
    assert [(SYSENTER_EIP, 0x1234), (MISC_ENABLE, 0)] == desk.told


@given(st.lists(st.tuples(st.one_of(st.sampled_from(SOME), st.integers(0, 0xFFFF_FFFF)), quads), max_size=20))
def test_no_guest_can_make_an_access_do_anything_but_fault(accesses: list[tuple[int, int]]) -> None:
    """Every register keeps a 64-bit value, and none appears."""
    desk = Desk()
    known = set(desk.msrs.values)
    for index, value in accesses:
        try:
            desk.msrs.write(index, value)
            assert value == desk.msrs.read(index)
        except MsrError:
            pass
    assert known == set(desk.msrs.values)
    assert all(0 <= value < 1 << 64 for value in desk.msrs.values.values())
