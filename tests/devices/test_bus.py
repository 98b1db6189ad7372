"""The bus: claims, splitting, gaps, unclaimed accesses."""

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.contract import Device, DeviceState

from .fakes import FakeCalls


class Probe(Device):
    """Remembers accesses; reads give the offset in every byte."""

    name = "probe"

    def __init__(self) -> None:
        self.accesses: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append((offset, size))
        return sum((offset + index & 0xFF) << 8 * index for index in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append((offset, size, value))

    def reset(self) -> None: ...

    def state(self) -> DeviceState:
        return DeviceState(self.name, 1, {})

    def from_state(self, state: DeviceState) -> None: ...


class WideProbe(Probe):
    """One that takes 32 bits."""

    name = "wide-probe"
    widest_access = 4


def test_a_device_sees_offsets_and_not_addresses() -> None:
    """From its base, plus the offset of the claim."""
    bus, probe = Bus("port"), Probe()
    bus.claim(0x3D4, 2, probe, offset=0x24)
    assert (0x25, [(0x25, 1)]) == (bus.read(0x3D5, 1), probe.accesses)


def test_a_wide_access_is_split_for_a_narrow_device() -> None:
    """Low byte first."""
    bus, probe = Bus("port"), Probe()
    bus.claim(0x40, 4, probe)
    bus.write(0x40, 4, 0x44332211)
    assert [(0, 1, 0x11), (1, 1, 0x22), (2, 1, 0x33), (3, 1, 0x44)] == probe.accesses
    assert 0x0302 == bus.read(0x42, 2)


def test_a_wide_device_gets_wide_accesses() -> None:
    """Within its window; 64 bits come as two halves."""
    bus, probe = Bus("memory"), WideProbe()
    bus.claim(0xFEE00000, 0x1000, probe)
    assert (0x07060504_03020100, [(0, 4), (4, 4)]) == (bus.read(0xFEE00000, 8), probe.accesses)


def test_an_access_across_the_end_of_a_window() -> None:
    """The device gets powers of two; the rest is unclaimed."""
    unclaimed = FakeCalls()
    bus, probe = Bus("port", on_unclaimed=unclaimed), WideProbe()
    bus.claim(0x100, 3, probe)
    assert 0xFF020100 == bus.read(0x100, 4)
    assert ([(0, 2), (2, 1)], [(0x103, 1, None)]) == (probe.accesses, unclaimed.calls)


def test_an_access_across_two_devices() -> None:
    """Each gets its part."""
    bus, first, second = Bus("port"), Probe(), Probe()
    bus.claim(0x60, 1, first)
    bus.claim(0x61, 1, second)
    bus.write(0x60, 2, 0xBBAA)
    assert ([(0, 1, 0xAA)], [(0, 1, 0xBB)]) == (first.accesses, second.accesses)


def test_unclaimed_accesses_read_ones_and_are_reported_whole() -> None:
    """Once per access, with the value of a write."""
    unclaimed = FakeCalls()
    bus = Bus("port", on_unclaimed=unclaimed)
    values = [bus.read(0x1234, size) for size in (1, 2, 4)]
    bus.write(0x1234, 2, 0xABCD)
    assert [0xFF, 0xFFFF, 0xFFFFFFFF] == values
    assert [(0x1234, 1, None), (0x1234, 2, None), (0x1234, 4, None), (0x1234, 2, 0xABCD)] == unclaimed.calls


def test_a_gap_between_devices_is_one_report() -> None:
    """Two bytes between two single ports."""
    unclaimed = FakeCalls()
    bus, probe = Bus("port", on_unclaimed=unclaimed), Probe()
    bus.claim(0x60, 1, probe)
    bus.claim(0x63, 1, probe)
    bus.write(0x60, 4, 0x44332211)
    assert ([(0, 1, 0x11), (0, 1, 0x44)], [(0x61, 2, 0x3322)]) == (probe.accesses, unclaimed.calls)


def test_an_access_beyond_the_last_port_is_unclaimed() -> None:
    """It does not wrap to port 0."""
    unclaimed = FakeCalls()
    bus, probe = Bus("port", on_unclaimed=unclaimed), Probe()
    bus.claim(0x0, 1, probe)
    bus.claim(0xFFFF, 1, probe)
    assert (0xFF00, [(0x10000, 1, None)]) == (bus.read(0xFFFF, 2), unclaimed.calls)


@pytest.mark.parametrize(("base", "length"), [(0x3F8, 8), (0x3F0, 9), (0x3FF, 1), (0x3F0, 0x100), (0x3FA, 2)])
def test_overlapping_claims_are_refused_by_name(base: int, length: int) -> None:
    """Both devices are in the message."""
    bus = Bus("port")
    bus.claim(0x3F8, 8, Probe())
    with pytest.raises(ValueError, match=r"wide-probe cannot have .*: probe has 0x3f8 to 0x3ff"):
        bus.claim(base, length, WideProbe())


@pytest.mark.parametrize(("base", "length"), [(0x60, 0), (0xFFFF, 2), (-1, 1), (0x60, -4)])
def test_windows_are_not_empty_and_fit(base: int, length: int) -> None:
    """Otherwise the claim is refused."""
    with pytest.raises(ValueError, match="probe cannot have"):
        Bus("port").claim(base, length, Probe())


def test_the_listing_is_in_order_of_address() -> None:
    """For people."""
    bus, probe = Bus("port"), Probe()
    for base in (0x70, 0x20, 0x3F8):
        bus.claim(base, 2, probe)
    assert [0x20, 0x70, 0x3F8] == [window.base for window in bus.listing()]
    assert (2, probe) == (bus.listing()[0].length, bus.listing()[0].device)


def test_a_write_that_fits_arrives_as_it_is() -> None:
    """One call, of the widest size too."""
    bus, probe = Bus("port"), WideProbe()
    bus.claim(0xCF8, 4, probe)
    bus.write(0xCF9, 1, 0x06)
    bus.write(0xCF8, 4, 0x80000000)
    assert [(1, 1, 0x06), (0, 4, 0x80000000)] == probe.accesses


def test_windows_may_touch() -> None:
    """On either side."""
    bus, probe = Bus("port"), Probe()
    for base in (0x61, 0x60, 0x62):
        bus.claim(base, 1, probe)
    assert [0x60, 0x61, 0x62] == [window.base for window in bus.listing()]


def test_a_misaligned_wide_access_that_is_partly_unclaimed() -> None:
    """High in memory: the device gets its two bytes, in one access."""
    unclaimed = FakeCalls()
    bus, probe = Bus("memory", on_unclaimed=unclaimed), WideProbe()
    bus.claim(0xFEC00000, 0x10, probe)
    bus.write(0xFEC0000E, 4, 0x44332211)
    assert ([(0xE, 2, 0x2211)], [(0xFEC00010, 2, 0x4433)]) == (probe.accesses, unclaimed.calls)
