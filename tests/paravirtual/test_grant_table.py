"""Grants: what a back end may use of a guest's memory, and what it may not, whatever the table says."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.direct import FrameType
from hvemu.paravirtual.grant_table import GrantError, GrantTable
from hvemu.vocabulary import xen
from hvemu.vocabulary.xen import HypercallError
from tests.memory.test_direct_paging import FRAMES, FREE, SHARED, Stage

TABLE = SHARED << 12
DATA = 12
FLAGS_IN_USE = xen.GTF_READING | xen.GTF_WRITING


class Granting(Stage):
    """A guest with one page of grants."""

    def __init__(self):
        super().__init__()
        self.tables()
        self.grants = GrantTable(self.memory, self.paging, [TABLE])

    def grant(self, reference, frame, flags=xen.GTF_PERMIT_ACCESS, domain=xen.DOMID_BACKEND):
        """The guest fills an entry."""
        self.memory.write(TABLE + 8 * reference, struct.pack("<HHI", flags, domain, frame))

    def flags(self, reference):
        """Of an entry."""
        return struct.unpack("<H", self.memory.read(TABLE + 8 * reference, 2))[0]


def status(call, *arguments, **changes):
    """The status that a mapping is refused with."""
    with pytest.raises(GrantError) as caught:
        call(*arguments, **changes)
    return caught.value.status


def test_a_granted_frame_is_used_and_let_go():
    """The flags show it; while it is written it is a writable page and nothing else."""
    stage = Granting()
    stage.grant(3, DATA)
    mapping = stage.grants.map(3, write=True)
    assert DATA << 12 == mapping.address
    assert xen.GTF_PERMIT_ACCESS | FLAGS_IN_USE == stage.flags(3)
    assert FrameType.WRITABLE is stage.paging.type_of(DATA)
    with pytest.raises(HypercallError):
        stage.paging.pin(DATA, FrameType.L1)
    with pytest.raises(HypercallError):
        stage.paging.release(DATA)
    stage.grants.unmap(mapping)
    assert xen.GTF_PERMIT_ACCESS == stage.flags(3)
    stage.paging.pin(DATA, FrameType.L1)


@pytest.mark.parametrize("frame", [6, 7, 8])
def test_a_page_table_is_granted_for_reading_at_most(frame):
    """A disk that reads into a page table would be a way around all checks."""
    stage = Granting()
    stage.grant(1, frame)
    assert xen.GNTST_BAD_PAGE == status(stage.grants.map, 1, write=True)
    stage.grants.unmap(stage.grants.map(1, write=False))


@pytest.mark.parametrize("frame", [0, 3, FREE, SHARED, FRAMES, 0xFFFF_FFFF])
def test_only_the_guests_own_frames_are_granted(frame):
    """The hypervisor's, those given back and those that do not exist are refused."""
    stage = Granting()
    stage.grant(1, frame)
    for write in (False, True):
        assert xen.GNTST_BAD_PAGE == status(stage.grants.map, 1, write=write)


@pytest.mark.parametrize("reference", [-1, 512, 513, 0xFFFF_FFFF])
def test_a_reference_outside_the_table_is_refused(reference):
    """There are 512 on a page."""
    stage = Granting()
    assert 512 == stage.grants.references
    assert xen.GNTST_BAD_GNTREF == status(stage.grants.map, reference, write=False)


@pytest.mark.parametrize("flags", [0, 2, 3, xen.GTF_PERMIT_ACCESS | xen.GTF_READONLY])
def test_what_is_not_granted_or_not_for_writing_is_refused(flags):
    """Unused entries, transfers; and read-only ones to a writer."""
    stage = Granting()
    stage.grant(1, DATA, flags)
    assert xen.GNTST_GENERAL_ERROR == status(stage.grants.map, 1, write=True)
    stage.grant(1, DATA, xen.GTF_PERMIT_ACCESS, domain=7)
    assert xen.GNTST_GENERAL_ERROR == status(stage.grants.map, 1, write=False)


def test_overlapping_grants_are_counted_each():
    """Two entries for one frame, one entry mapped twice: it is free when the last is let go."""
    stage = Granting()
    stage.grant(1, DATA)
    stage.grant(2, DATA)
    mappings = [stage.grants.map(1, write=True), stage.grants.map(2, write=True), stage.grants.map(1, write=False)]
    for mapping in mappings:
        with pytest.raises(HypercallError):
            stage.paging.release(DATA)
        stage.grants.unmap(mapping)
    assert [xen.GTF_PERMIT_ACCESS] * 2 == [stage.flags(1), stage.flags(2)]
    stage.paging.release(DATA)


def test_an_entry_that_changes_while_it_is_used_changes_nothing():
    """It was read once; another frame in it is another grant."""
    stage = Granting()
    stage.grant(1, DATA)
    mapping = stage.grants.map(1, write=True)
    stage.grant(1, 6, 0)
    stage.grants.unmap(mapping)
    assert [0, 0] == [stage.paging.uses(DATA), stage.paging.references(DATA)]
    assert FrameType.L3 is stage.paging.type_of(6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-1, 600), st.integers(0, 0xFFFF), st.integers(0, 3), st.integers(0, FRAMES + 1), st.booleans()
        ),
        max_size=20,
    )
)
def test_no_table_makes_a_back_end_write_where_it_must_not(rows):
    """Whatever is in the entries; afterwards everything can be let go."""
    stage = Granting()
    before = list(stage.paging._uses), list(stage.paging._references)
    mappings = []
    for reference, flags, domain, frame, write in rows:
        if 0 <= reference < 512:
            stage.grant(reference, frame, flags, domain)
        try:
            mappings.append(stage.grants.map(reference, write=write))
        except GrantError:
            continue
        granted = mappings[-1].address >> 12
        assert stage.paging.is_guests(granted)
        if write:
            assert FrameType.WRITABLE is stage.paging.type_of(granted)
    for mapping in mappings:
        stage.grants.unmap(mapping)
    assert before == (list(stage.paging._uses), list(stage.paging._references))
