"""Whatever a client sends: nothing is raised, the session of another client goes on, memory is bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.scsi.disk import LONGEST_TRANSFER
from hvemu.iscsi.connection import MOST_COMMANDS
from hvemu.iscsi.pdu import Opcode, ProtocolError, pack
from hvemu.iscsi.text import LONGEST_RECEIVED_SEGMENT, pack_keys, parse_keys
from tests.devices.scsi.desk import read10, write10
from tests.iscsi.initiator import ISID, NAME, TARGET, Initiator, header, portal

QUIET = settings(derandomize=True, database=None, deadline=None, max_examples=250)
WORDS = st.sampled_from((0, 1, 2, 9, 10, 11, 12, 512, 1024, 0xFFFFFFFF)) | st.integers(0, 0xFFFFFFFF)
KEYS = st.dictionaries(
    st.sampled_from(
        "InitiatorName TargetName SessionType AuthMethod HeaderDigest MaxBurstLength FirstBurstLength SendTargets "
        "InitialR2T ImmediateData MaxRecvDataSegmentLength CHAP_A".split()
    )
    | st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1, max_size=5),
    st.sampled_from((NAME, TARGET, "Normal", "None", "Yes", "No", "512", "0", "All", "CHAP", "5"))
    | st.text(max_size=9).map(lambda text: text.replace("\0", "")),
    max_size=5,
)


@st.composite
def pdus(draw):
    """A PDU that is right in its frame and otherwise anything."""
    opcode = draw(st.sampled_from((0, 1, 1, 1, 2, 3, 4, 5, 5, 6, 0x10)) | st.integers(0, 63)) | draw(
        st.sampled_from((0, 0x40))
    )
    flags = draw(st.sampled_from((0x80, 0xA0, 0xC0, 0x20, 0x81, 0x87, 0x04, 0x44)) | st.integers(0, 255))
    cdb = draw(st.sampled_from((read10(0, 1), write10(0, 2), bytes(6))) | st.binary(min_size=16, max_size=16))
    fields = {"w20": draw(WORDS), "w24": draw(WORDS)}
    if opcode & 0x3F == 1:
        fields["b32"] = cdb.ljust(16, b"\0")
    else:
        fields |= {"w36": draw(st.integers(0, 2)), "w40": draw(st.sampled_from((0, 512, 1024))), "w32": draw(WORDS)}
    if opcode & 0x3F == 3:
        fields |= {"b8": ISID + bytes(2), "w20": 0}
    data = draw(st.binary(max_size=40) | st.sampled_from((bytes(512), bytes(1024))) | KEYS.map(pack_keys))
    return pack(header(opcode, flags, draw(st.integers(1, 4)), **fields), data)


def check(initiator: Initiator) -> None:
    """What it holds is bounded."""
    connection = initiator.connection
    assert len(connection.tasks) <= 2 * MOST_COMMANDS
    assert sum(len(task.data) for task in connection.tasks.values()) <= LONGEST_TRANSFER + 64 * (64 << 10)
    assert len(connection._reader._buffer) <= LONGEST_RECEIVED_SEGMENT + 48 + 4 * 255 + 8


@QUIET
@given(st.lists(pdus(), max_size=12), st.booleans())
def test_any_requests(requests, logged_in):
    """Before the login and after it; somebody else does not notice."""
    there = portal()
    neighbour = Initiator(there, {}, name="iqn.1992-01.com.example:sue").ready()
    initiator = Initiator(there, {"InitialR2T": "No"} if logged_in else None)
    for request in requests:
        initiator.raw(request)
        check(initiator)
    if not neighbour.connection.closed:  # a cold reset of the target ends it, as it should
        (answer,) = neighbour.command(b"\x12\0\0\0\x24\0", expected=36, flags=0xC0)
        assert (Opcode.DATA_IN, 0) == (answer.opcode, answer.header[3])


@QUIET
@given(
    st.lists(pdus(), min_size=1, max_size=6), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8)
)
def test_mutated_bytes(requests, changes):
    """In any frame."""
    data = bytearray(b"".join(requests))
    for position, value in changes:
        data[position % len(data)] = value
    initiator = Initiator(portal(), {})
    initiator.raw(bytes(data))
    check(initiator)


@QUIET
@given(st.binary(max_size=300), st.booleans())
def test_noise(data, logged_in):
    """No frame at all."""
    initiator = Initiator(portal(), {} if logged_in else None)
    initiator.raw(data)
    check(initiator)


@QUIET
@given(st.lists(pdus(), min_size=1, max_size=4), st.data())
def test_pieces_make_no_difference(requests, data):
    """Whole or byte by byte, the answers are the same."""
    stream = b"".join(requests)
    whole, pieces = Initiator(portal(), {}), Initiator(portal(), {})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    answers = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        answers += pieces.raw(stream[start:end])
    assert whole.raw(stream) == answers


@QUIET
@given(st.binary(max_size=200))
def test_text_is_keys_or_an_error(data):
    """And comes back the same."""
    try:
        keys = parse_keys(data)
    except ProtocolError:
        return
    assert keys == parse_keys(pack_keys(keys))
