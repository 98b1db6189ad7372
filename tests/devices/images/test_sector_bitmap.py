"""The bits of a bitmap, against a list of truth values."""

from hypothesis import given
from hypothesis import strategies as st

from hvemu.devices.images.sector_bitmap import mark, run

SECTORS = 256
RANGES = st.lists(st.integers(0, SECTORS), min_size=2, max_size=2, unique=True).map(sorted)


def made(ranges):
    """A bitmap and the list that it is to equal."""
    bitmap, model = bytearray(SECTORS // 8), [False] * SECTORS
    for start, stop in ranges:
        assert mark(bitmap, start, stop) == (not all(model[start:stop]))
        model[start:stop] = [True] * (stop - start)
    return bitmap, model


@given(ranges=st.lists(RANGES, max_size=5))
def test_marked_sectors_are_bits_from_the_highest_down(ranges):
    """The first sector is the highest bit of the first byte."""
    bitmap, model = made(ranges)
    assert model == [bool(bitmap[at // 8] & 0x80 >> at % 8) for at in range(SECTORS)]


@given(ranges=st.lists(RANGES, max_size=5), part=RANGES)
def test_runs_are_as_long_as_they_can_be(ranges, part):
    """And end where they are told to."""
    bitmap, model = made(ranges)
    at, stop = part
    while at < stop:
        bit, until = run(bitmap, at, stop)
        assert [bit] * (until - at) == model[at:until]
        assert until == stop or model[until] != bit
        at = until
