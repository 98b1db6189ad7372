"""Direct paging: what the hypervisor checks before the MMU may use a guest's own tables. No engine is needed."""

import struct
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hvemu.memory.direct import DirectPaging, FrameType, Owner, checked_descriptor
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary import xen
from hvemu.vocabulary.xen import Errno, HypercallError

FRAMES = 24
OWN = range(6, FRAMES)
SHARED, FREE = 4, 5
P, RW, US, PSE, NX = 1, 2, 4, 0x80, 1 << 63
EINVAL = "EINVAL"
RING_0_CODE, LONG_CODE = 0x00CF9B00_0000FFFF, 0x00AF9B00_0000FFFF


class Stage:
    """A guest of eighteen frames, six of the machine's are not its own."""

    def __init__(self) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(FRAMES << 12))
        self.flushes, self.pointed = 0, []
        self.paging = DirectPaging(self.memory, self._flush, self.pointed.append)
        self.paging.own(OWN, Owner.GUEST)
        self.paging.own(range(SHARED, SHARED + 1), Owner.SHARED)
        self.paging.own(range(FREE, FREE + 1), Owner.FREE)
        self.paging.top_entries = struct.pack("<Q", 3 << 12 | P)

    def _flush(self) -> None:
        self.flushes += 1

    def put(self, frame, index, entry):
        """As the guest does while the frame is data."""
        self.memory.write((frame << 12) + 8 * index, struct.pack("<Q", entry))

    def get(self, frame, index):
        """An entry."""
        return self.memory.read_u64((frame << 12) + 8 * index)

    def update(self, frame, index, entry, command=0):
        """By mmu_update."""
        self.paging.update((frame << 12) + 8 * index | command, entry)

    def tables(self):
        """A level-3 table 6, with 7 and 8 below it, and data in 9; returns the stage."""
        self.put(8, 0, 9 << 12 | P | RW)
        self.put(7, 0, 8 << 12 | P | RW | US)
        self.put(6, 0, 7 << 12 | P)
        self.paging.load(6)
        return self


def refused(call, *arguments):
    """The name of the error that a call ends with."""
    with pytest.raises(HypercallError) as caught:
        call(*arguments)
    return caught.value.errno.name


def test_loading_a_table_validates_the_whole_tree():
    """Each frame gets the type of its level, each mapping a reference."""
    paging = Stage().tables().paging
    types = [FrameType.L3, FrameType.L2, FrameType.L1, FrameType.WRITABLE]
    assert types == [paging.type_of(frame) for frame in (6, 7, 8, 9)]
    assert [1, 1, 1, 1] == [paging.references(frame) for frame in (6, 7, 8, 9)]


@pytest.mark.parametrize("own", [6, 7, 8])
def test_no_table_is_ever_mapped_writable(own):
    """Neither by an update nor by the tree that is loaded; read-only it may be."""
    stage = Stage().tables()
    assert EINVAL == refused(stage.update, 8, 1, own << 12 | P | RW)
    assert 0 == stage.get(8, 1)
    stage.update(8, 1, own << 12 | P)
    other = Stage()
    other.put(8, 1, own << 12 | P | RW)
    other.put(7, 0, 8 << 12 | P | RW)
    other.put(6, 0, 7 << 12 | P)
    assert EINVAL == refused(other.paging.load, 6)
    assert [FrameType.NONE] * 4 == [other.paging.type_of(frame) for frame in (6, 7, 8, 9)]


@pytest.mark.parametrize("frame", [0, 3, FREE, FRAMES, FRAMES + 1, 0x7FFF_FFFF, (1 << 40) - 1])
@pytest.mark.parametrize("rights", [P, P | RW, P | US, P | RW | US])
def test_no_foreign_or_absent_frame_is_ever_mapped(frame, rights):
    """Those of the hypervisor, those given back, those that do not exist."""
    stage = Stage().tables()
    for level in (8, 7, 6):
        assert EINVAL == refused(stage.update, level, 1, frame << 12 | rights)
        assert 0 == stage.get(level, 1)
    assert EINVAL == refused(stage.paging.load, frame)
    assert EINVAL == refused(stage.update, frame, 0, 9 << 12 | P)
    assert 6 == stage.paging.base


def test_the_shared_page_is_mapped_writable_but_is_no_table():
    """It is the hypervisor's, for both to write."""
    stage = Stage().tables()
    stage.update(8, 1, SHARED << 12 | P | RW)
    assert EINVAL == refused(stage.update, 7, 1, SHARED << 12 | P)
    assert EINVAL == refused(stage.update, SHARED, 0, 9 << 12 | P)
    assert EINVAL == refused(stage.paging.release, SHARED)


def test_a_page_that_can_be_written_becomes_no_table():
    """Not as long as one mapping of it is left."""
    stage = Stage().tables()
    stage.update(8, 1, 10 << 12 | P | RW)
    stage.update(8, 2, 10 << 12 | P | RW)
    for kind in (FrameType.L1, FrameType.L2, FrameType.L3):
        assert EINVAL == refused(stage.paging.pin, 10, kind)
    stage.update(8, 1, 0)
    assert EINVAL == refused(stage.paging.pin, 10, FrameType.L1)
    stage.update(8, 2, 10 << 12 | P)
    stage.paging.pin(10, FrameType.L1)


def test_a_mapping_that_the_tlb_may_still_hold_is_flushed_before_the_page_becomes_a_table():
    """The guest need not have flushed it; and one that never was writable costs no flush."""
    stage = Stage().tables()
    stage.update(8, 1, 10 << 12 | P | RW)
    stage.update(8, 1, 0)
    before = stage.flushes
    stage.paging.pin(11, FrameType.L1)
    assert before == stage.flushes
    stage.paging.pin(10, FrameType.L1)
    assert before + 1 == stage.flushes


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
def test_a_frame_is_a_table_of_one_level_only(first, second):
    """Type confusion between levels."""
    kinds = {1: FrameType.L1, 2: FrameType.L2, 3: FrameType.L3}
    stage = Stage().tables()
    stage.paging.pin(10, kinds[first])
    assert EINVAL == refused(stage.paging.pin, 10, kinds[second])
    stage.paging.unpin(10)
    stage.paging.pin(10, kinds[second])


def test_a_table_that_refers_to_itself_is_refused():
    """At each level, in any place."""
    for kind, entry in ((FrameType.L1, P | RW), (FrameType.L2, P | RW), (FrameType.L3, P)):
        stage = Stage()
        stage.put(10, 3, 10 << 12 | entry)
        assert EINVAL == refused(stage.paging.pin, 10, kind)
        assert FrameType.NONE is stage.paging.type_of(10)
        assert 0 == stage.paging.references(10)


def test_two_tables_that_refer_to_each_other_as_other_levels_are_refused():
    """A loop of type confusion."""
    stage = Stage()
    stage.put(10, 0, 11 << 12 | P)
    stage.put(11, 0, 10 << 12 | P | RW)
    assert EINVAL == refused(stage.paging.pin, 10, FrameType.L2)
    assert [FrameType.NONE] * 2 == [stage.paging.type_of(frame) for frame in (10, 11)]


@pytest.mark.parametrize("bits", [1 << 52, 1 << 62, 1 << 40, PSE])
def test_reserved_bits_and_large_pages_are_refused(bits):
    """Bit 7 of a leaf is its memory type and may stand."""
    stage = Stage().tables()
    assert EINVAL == refused(stage.update, 7, 1, 10 << 12 | P | bits)
    if bits != PSE:
        assert EINVAL == refused(stage.update, 8, 1, 10 << 12 | P | bits)
    else:
        stage.update(8, 1, 10 << 12 | P | bits)


@pytest.mark.parametrize("bits", [1 << 3, 1 << 4, PSE, 1 << 8, NX])
def test_a_top_entry_is_checked_too(bits):
    """Rights are allowed there although they mean nothing; other bits are not."""
    stage = Stage().tables()
    assert EINVAL == refused(stage.update, 6, 1, 10 << 12 | P | bits)
    stage.update(6, 1, 10 << 12 | P | RW | US | 0x60)


def test_the_hypervisors_part_of_the_last_table_is_not_the_guests():
    """Its entries are put there, and taken away when the frame is something else."""
    stage = Stage().tables()
    stage.update(6, 3, 10 << 12 | P)
    assert FrameType.L2_TOP is stage.paging.type_of(10)
    assert 3 << 12 | P == stage.get(10, 428)
    for index in (428, 429, 511):
        assert EINVAL == refused(stage.update, 10, index, 0)
        assert EINVAL == refused(stage.update, 10, index, 11 << 12 | P)
    stage.update(10, 427, 11 << 12 | P)
    assert EINVAL == refused(stage.update, 6, 2, 10 << 12 | P)
    stage.update(6, 3, 0)
    assert 0 == stage.get(10, 428)
    stage.paging.pin(10, FrameType.L2)


def test_what_is_refused_changes_nothing():
    """Half of a table that cannot be validated is given back."""
    stage = Stage().tables()
    for index in range(5):
        stage.put(10, index, 9 << 12 | P | RW)
    stage.put(10, 5, 8 << 12 | P | RW)
    uses = stage.paging.uses(9)
    assert EINVAL == refused(stage.paging.pin, 10, FrameType.L1)
    assert uses == stage.paging.uses(9)
    assert FrameType.NONE is stage.paging.type_of(10)


def test_a_pinned_table_is_unpinned_once():
    """And what is not pinned cannot be."""
    stage = Stage().tables()
    assert EINVAL == refused(stage.paging.unpin, 6)
    stage.paging.pin(10, FrameType.L1)
    assert EINVAL == refused(stage.paging.pin, 10, FrameType.L1)
    stage.paging.unpin(10)
    assert EINVAL == refused(stage.paging.unpin, 10)


def test_loading_another_table_lets_go_of_the_first():
    """Everything below it becomes data again."""
    stage = Stage().tables()
    stage.paging.load(10)
    assert [FrameType.NONE] * 4 == [stage.paging.type_of(frame) for frame in (6, 7, 8, 9)]
    assert [0] * 4 == [stage.paging.references(frame) for frame in (6, 7, 8, 9)]
    assert [6, 10] == stage.pointed


def test_a_change_of_the_top_table_in_use_is_told():
    """The hypervisor's copy has to follow."""
    stage = Stage().tables()
    stage.paging.pin(10, FrameType.L3)
    stage.update(10, 0, 7 << 12 | P)
    assert [6] == stage.pointed
    stage.update(6, 1, 7 << 12 | P)
    assert [6, 6] == stage.pointed


def test_accessed_and_dirty_bits_can_be_preserved():
    """MMU_PT_UPDATE_PRESERVE_AD, for entries that the CPU marks meanwhile."""
    stage = Stage().tables()
    stage.put(8, 0, 9 << 12 | P | RW | 0x60)
    stage.update(8, 0, 9 << 12 | P, 2)
    assert 9 << 12 | P | 0x60 == stage.get(8, 0)
    stage.update(8, 0, 9 << 12 | P | RW)
    assert 9 << 12 | P | RW == stage.get(8, 0)


@pytest.mark.parametrize("pointer", [3, 4, 6, 7])
def test_an_update_without_meaning_is_refused(pointer):
    """Commands that do not exist, addresses that are not those of entries."""
    stage = Stage().tables()
    assert EINVAL == refused(stage.paging.update, 8 << 12 | pointer, 0)


def test_frames_are_given_back_only_when_nothing_refers_to_them():
    """Mapped, pinned or granted, they stay; then they are nobody's, and empty."""
    stage = Stage().tables()
    stage.put(12, 7, 0xDEAD)
    for frame in (6, 7, 8, 9):
        assert "EBUSY" == refused(stage.paging.release, frame)
    stage.update(8, 1, 12 << 12 | P)
    assert "EBUSY" == refused(stage.paging.release, 12)
    stage.update(8, 1, 0)
    stage.paging.release(12)
    assert EINVAL == refused(stage.paging.release, 12)
    assert EINVAL == refused(stage.update, 8, 1, 12 << 12 | P)
    assert 0 == stage.get(12, 7)
    stage.paging.grant(12, 99)
    stage.update(8, 1, 12 << 12 | P | RW)
    assert 99 == stage.paging.machine_to_physical[12]


def test_the_table_of_pages_follows_the_guest():
    """MMU_MACHPHYS_UPDATE, for frames that are its own."""
    stage = Stage().tables()
    stage.paging.update(9 << 12 | 1, 1234)
    assert 1234 == stage.paging.machine_to_physical[9]
    for frame in (0, FREE, SHARED, FRAMES):
        assert EINVAL == refused(stage.paging.update, frame << 12 | 1, 1)


# ---------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("kind", [0x9B, 0x93, 0x9F])
def test_descriptors_of_code_and_data_are_kept_out_of_ring_0(kind, ring):
    """What asks for ring 0 gets ring 1."""
    value = 0x00CF_0000_0000_FFFF | (kind | ring << 5) << 40
    assert max(1, ring) == checked_descriptor(value) >> 45 & 3


@pytest.mark.parametrize("kind", [k for k in range(16) if k])
def test_gates_and_system_segments_are_refused_while_they_are_present(kind):
    """A call gate would lead into any ring; absent they are harmless."""
    assert EINVAL == refused(checked_descriptor, (0x80 | kind) << 40)
    assert kind << 40 == checked_descriptor(kind << 40)


@pytest.mark.parametrize("present", [0, 1 << 47])
@pytest.mark.parametrize("kind", [0x13, 0x1B, 0x1F])
def test_64_bit_segments_are_refused(kind, present):
    """From 64-bit code the hypervisor's pages could be reached; not even absent ones are kept."""
    assert EINVAL == refused(checked_descriptor, 1 << 53 | kind << 40 | present)


def test_a_page_of_descriptors_is_nothing_else():
    """Neither writable nor a table, and a table becomes no descriptors."""
    stage = Stage().tables()
    stage.put(10, 1, RING_0_CODE)
    stage.paging.get_type(10, FrameType.DESCRIPTORS)
    assert RING_0_CODE | 1 << 45 == stage.get(10, 1)
    assert EINVAL == refused(stage.update, 8, 1, 10 << 12 | P | RW)
    assert EINVAL == refused(stage.update, 10, 1, RING_0_CODE)
    assert EINVAL == refused(stage.paging.pin, 10, FrameType.L1)
    assert EINVAL == refused(stage.paging.get_type, 8, FrameType.DESCRIPTORS)
    assert EINVAL == refused(stage.paging.get_type, 9, FrameType.DESCRIPTORS)
    stage.put(11, 1, LONG_CODE)
    assert EINVAL == refused(stage.paging.get_type, 11, FrameType.DESCRIPTORS)


def test_a_descriptor_is_updated_only_where_descriptors_may_be():
    """Not in a table, not across, not in a foreign frame."""
    stage = Stage().tables()
    stage.paging.get_type(10, FrameType.DESCRIPTORS)
    stage.paging.update_descriptor(10 << 12 | 8, RING_0_CODE)
    assert RING_0_CODE | 1 << 45 == stage.get(10, 1)
    assert EINVAL == refused(stage.paging.update_descriptor, 10 << 12 | 8, LONG_CODE)
    for address in (8 << 12, 10 << 12 | 4, FREE << 12, SHARED << 12, 0, FRAMES << 12, 1 << 63):
        assert EINVAL == refused(stage.paging.update_descriptor, address, 0)


# ---------------------------------------------------------------------- anything in any order

ENTRIES = st.builds(
    lambda frame, bits: frame << 12 | bits,
    st.integers(0, FRAMES) | st.just(1 << 30),
    st.sampled_from([0, P, P | RW, P | US, P | RW | US, P | NX, P | PSE, RW, P | 1 << 53, P | RW | NX]),
)
INDICES = st.sampled_from([0, 1, 2, 3, 4, 200, 427, 428, 511])


class AnyOrder(RuleBasedStateMachine):
    """A guest that does what it likes. Counts are compared with what the tables say."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage().tables()
        self.extra = Counter()
        self.pinned = {}

    def attempt(self, call, *arguments):
        """Whether it was not refused; a refusal must leave everything as it was."""
        before = bytes(self.stage.memory.view), list(self.stage.paging._uses), list(self.stage.paging._references)
        try:
            call(*arguments)
        except HypercallError:
            after = bytes(self.stage.memory.view), list(self.stage.paging._uses), list(self.stage.paging._references)
            assert before == after
            return False
        return True

    @rule(frame=st.integers(0, FRAMES), index=INDICES, entry=ENTRIES)
    def store(self, frame, index, entry):
        """With its own hands, where no table is and it could have a writable mapping."""
        paging = self.stage.paging
        if paging.is_guests(frame) and paging.type_of(frame) in (FrameType.NONE, FrameType.WRITABLE):
            self.stage.put(frame, index, entry)

    @rule(frame=st.integers(0, FRAMES), index=INDICES, entry=ENTRIES, command=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def update(self, frame, index, entry, command):
        """One request."""
        self.attempt(self.stage.update, frame, index, entry, command)

    @rule(frame=st.integers(-1, FRAMES), kind=st.sampled_from([FrameType.L1, FrameType.L2, FrameType.L3]))
    def pin(self, frame, kind):
        """A table."""
        if self.attempt(self.stage.paging.pin, frame, kind):
            self.pinned[frame] = kind

    @rule(frame=st.integers(0, FRAMES))
    def unpin(self, frame):
        """Perhaps one."""
        if self.attempt(self.stage.paging.unpin, frame):
            del self.pinned[frame]

    @rule(frame=st.integers(0, FRAMES))
    def load(self, frame):
        """Another CR3."""
        self.attempt(self.stage.paging.load, frame)

    @rule(frame=st.integers(0, FRAMES))
    def descriptors(self, frame):
        """A page of the GDT; it stays one."""
        if self.attempt(self.stage.paging.get_type, frame, FrameType.DESCRIPTORS):
            self.extra[frame] += 1

    @rule(frame=st.integers(0, FRAMES), index=INDICES, value=st.sampled_from([0, RING_0_CODE, LONG_CODE, 0x8C << 40]))
    def descriptor(self, frame, index, value):
        """One descriptor."""
        self.attempt(self.stage.paging.update_descriptor, (frame << 12) + 8 * index, value)

    @rule(frame=st.integers(0, FRAMES))
    def release(self, frame):
        """A frame for the balloon."""
        self.attempt(self.stage.paging.release, frame)

    @invariant()
    def counts_are_what_the_tables_say(self):
        """Uses and references of every frame, and that no table is mapped writable."""
        paging, uses, references, writable = self.stage.paging, Counter(self.extra), Counter(), set()
        for frame, kind in [*self.pinned.items(), (paging.base, FrameType.L3)]:
            uses[frame] += 1
            references[frame] += 1
            assert paging.type_of(frame) is kind
        for frame in range(FRAMES):
            kind = paging.type_of(frame)
            if kind not in (FrameType.L1, FrameType.L2, FrameType.L2_TOP, FrameType.L3):
                continue
            limit = {FrameType.L3: 4, FrameType.L2_TOP: 428}.get(kind, 512)
            for index in range(limit):
                entry = self.stage.get(frame, index)
                if not entry & P:
                    continue
                target = (entry & 0xF_FFFF_FFFF_F000) >> 12
                assert paging.is_guests(target) or target == SHARED
                references[target] += 1
                if kind is FrameType.L1:
                    if entry & RW:
                        writable.add(target)
                        uses[target] += 1
                else:
                    uses[target] += 1
                    top = FrameType.L2_TOP if index == 3 else FrameType.L2
                    assert paging.type_of(target) is (top if kind is FrameType.L3 else FrameType.L1)
        for frame in range(FRAMES):
            assert uses[frame] == paging.uses(frame), frame
            assert references[frame] == paging.references(frame), frame
        for frame in writable:
            assert paging.type_of(frame) is FrameType.WRITABLE


AnyOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)
test_any_order_keeps_the_counts = AnyOrder.TestCase


class ManyOrders(AnyOrder):
    """The same, longer."""


ManyOrders.TestCase.settings = settings(max_examples=3_000, stateful_step_count=80, deadline=None, derandomize=True)
test_many_more_orders_keep_the_counts = pytest.mark.slow(ManyOrders.TestCase)


def test_errors_are_those_of_errno_h():
    """A guest sees the numbers."""
    assert (22, 38, 1, 3, 14, 12) == (
        Errno.EINVAL, Errno.ENOSYS, Errno.EPERM, Errno.ESRCH, Errno.EFAULT, Errno.ENOMEM
    )  # fmt: skip
    assert 0xF580_0000 == xen.HYPERVISOR_START
