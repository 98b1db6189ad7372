"""Whatever an initiator sends: nothing is raised, nothing outside of the medium is touched, answers are bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hvemu.devices.scsi.cdrom import ScsiCdrom
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.devices.scsi.disk import LONGEST_TRANSFER, ScsiDisk
from tests.devices.scsi.desk import ANN, JOE, SUE, FakeMedium, cdrom, disk, good, long, read10, send, write10

QUIET = settings(derandomize=True, database=None, deadline=None, max_examples=300)
OPCODES = sorted({row.opcode for unit in (ScsiDisk, ScsiCdrom) for row in unit.operations.rows})
SMALL = st.sampled_from((0, 0, 0, 1, 2, 8, 0xFF)) | st.integers(0, 255)


@st.composite
def cdbs(draw):
    """Mostly operation codes that there are, mostly small fields."""
    opcode = draw(st.sampled_from(OPCODES) | st.integers(0, 255))
    return bytes((opcode, draw(st.integers(0, 31) | SMALL))) + bytes(draw(st.lists(SMALL, max_size=16)))


COMMANDS = st.lists(
    st.tuples(
        cdbs(), st.binary(max_size=64) | st.integers(0, 4).map(lambda n: bytes(512 * n)), st.sampled_from((JOE, SUE))
    ),
    max_size=12,
)


def check(answer: Answer) -> None:
    """It is an answer that an adapter can pass on."""
    assert answer.status in (0, 2, 0x18)
    assert len(answer.data_in) <= LONGEST_TRANSFER
    assert (answer.status == 2) == bool(answer.sense)
    assert 0 <= answer.data_out_length <= LONGEST_TRANSFER
    assert len(answer.sense) <= 252


@QUIET
@given(COMMANDS, st.booleans(), st.booleans())
def test_a_disk_survives_random_commands(commands, read_only, removable):
    """And its state can be saved and loaded after them."""
    unit = disk(FakeMedium(64 << 10, read_only=read_only), removable=removable)
    for cdb, data, nexus in commands:
        check(unit.execute(Command(cdb, data, nexus)))
    other = disk(FakeMedium(64 << 10), removable=removable)
    other.from_state(unit.state())
    assert unit.state() == other.state()


@QUIET
@given(COMMANDS, st.booleans())
def test_a_drive_survives_random_commands(commands, empty):
    """With and without a medium."""
    unit = cdrom(None if empty else FakeMedium(64 << 10, read_only=True))
    for cdb, data, nexus in commands:
        check(unit.execute(Command(cdb, data, nexus)))
    cdrom(None).from_state(unit.state())


@QUIET
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
    st.data(),
)
def test_a_damaged_state_is_a_value_error_or_fine(value, data):
    """Never anything else, and then nothing has changed."""
    unit = disk()
    state = unit.state()
    field = data.draw(st.sampled_from(sorted(state.fields)))
    try:
        unit.from_state(state.__class__(state.device, state.version, {**state.fields, field: value}))
    except ValueError:
        assert state == unit.state()
    check(send(unit, read10(0, 1)))


class DiskModel(RuleBasedStateMachine):
    """A disk against a bytearray."""

    BLOCKS = 64
    ADDRESS, COUNT, BYTE = st.integers(0, BLOCKS - 1), st.integers(0, 8), st.integers(0, 255)

    def __init__(self) -> None:
        super().__init__()
        self.medium = FakeMedium(self.BLOCKS * 512)
        self.unit = disk(self.medium)
        self.model = bytearray(self.BLOCKS * 512)

    def _fits(self, address: int, count: int) -> int:
        return min(count, self.BLOCKS - address)

    @rule(address=ADDRESS, count=COUNT, byte=BYTE, how=st.sampled_from(("10", "16", "verify", "or", "fua")))
    def write(self, address, count, byte, how):
        """Some WRITE."""
        count = self._fits(address, count)
        data = bytes((byte,)) * 512 * count
        at = slice(address * 512, (address + count) * 512)
        cdb = {
            "10": write10(address, count),
            "fua": write10(address, count, 8),
            "16": long(0x8A, address, count),
            "verify": long(0x8E, address, count, 2),
            "or": long(0x8B, address, count),
        }[how]
        good(self.unit, cdb, data)
        self.model[at] = bytes(old | byte for old in self.model[at]) if how == "or" else data
        if count and how in ("fua", "verify"):
            assert not self.medium.unflushed

    @rule(address=ADDRESS, count=st.integers(1, 8), byte=st.sampled_from((0, 0, 7)), unmap=st.booleans())
    def write_same(self, address, count, byte, unmap):
        """WRITE SAME (16)."""
        count = self._fits(address, count)
        good(self.unit, long(0x93, address, count, 8 if unmap else 0), bytes((byte,)) * 512)
        self.model[address * 512 : (address + count) * 512] = bytes((byte,)) * 512 * count

    @rule(address=ADDRESS, count=COUNT)
    def unmap(self, address, count):
        """UNMAP."""
        count = self._fits(address, count)
        body = address.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4)
        good(self.unit, "42 00 00 00 00 00 00 00 18 00", bytes.fromhex("0016001000000000") + body)
        self.model[address * 512 : (address + count) * 512] = bytes(count * 512)

    @rule(address=ADDRESS, byte=BYTE, right=st.booleans())
    def compare_and_write(self, address, byte, right):
        """It writes only when it was right."""
        at = slice(address * 512, (address + 1) * 512)
        found = bytes(self.model[at])
        expected = found if right else bytes((found[0] ^ 1,)) + found[1:]
        cdb = b"\x89\0" + address.to_bytes(8, "big") + bytes((0, 0, 0, 1, 0, 0))
        status = send(self.unit, cdb, expected + bytes((byte,)) * 512, ANN).status
        assert (0 if right else 2) == status
        if right:
            self.model[at] = bytes((byte,)) * 512

    @rule(address=ADDRESS, count=COUNT)
    def read(self, address, count):
        """And VERIFY against the same."""
        count = self._fits(address, count)
        expected = bytes(self.model[address * 512 : (address + count) * 512])
        assert expected == good(self.unit, read10(address, count))
        good(self.unit, long(0x8F, address, count, 2), expected)

    @rule(address=ADDRESS)
    def status(self, address):
        """What is said to be unmapped reads as zeros."""
        data = good(self.unit, long(0x9E, address, 24, 0x12))
        count = int.from_bytes(data[16:20], "big")
        assert address == int.from_bytes(data[8:16], "big")
        assert 1 <= count <= self.BLOCKS - address
        if data[20] == 1:
            assert not any(self.model[address * 512 : (address + count) * 512])


TestDiskModel = DiskModel.TestCase
TestDiskModel.settings = settings(QUIET, max_examples=60, stateful_step_count=40)
