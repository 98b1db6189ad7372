"""The full feature phase: data in both directions, numbering, residuals, task management."""

import pytest

from hvemu.devices.scsi.disk import LONGEST_TRANSFER
from hvemu.iscsi.connection import MOST_COMMANDS
from hvemu.iscsi.pdu import NO_TAG, Opcode, PduReader, ProtocolError, crc32c, lun_number, pack, serial_difference
from tests.devices.scsi.desk import disk, key_and_code, read10, write10
from tests.iscsi.initiator import TARGET, Initiator, header, portal

READ, WRITE, READY = 0xC0, 0xA0, bytes(6)
PATTERN = bytes(range(256)) * 2


def medium(initiator):
    """What is behind LUN 0."""
    return initiator.connection.target.units[0].loaded


def session(**text):
    """Logged in, ready."""
    return Initiator(portal(), text).ready()


def test_crc32c_is_that_of_the_rfc():
    """RFC 7143 appendix A.4: 32 bytes of zeros, of ones, and counting up."""
    assert [bytes.fromhex("aa36918a"), bytes.fromhex("43aba862"), bytes.fromhex("4e79dd46")] == [
        crc32c(data) for data in (bytes(32), b"\xff" * 32, bytes(range(32)))
    ]


def test_serial_numbers_wrap():
    """RFC 1982."""
    assert [1, -1, 0, 2] == [
        serial_difference(*pair) for pair in ((0, 0xFFFFFFFF), (0xFFFFFFFF, 0), (5, 5), (1, -1 & 0xFFFFFFFF))
    ]


def test_luns():
    """Single level; anything else is no unit."""
    fields = ("0005000000000000", "4105000000000000", "0105000000000000", "0000000000000001", "C101000000000000")
    assert [5, 0x105, -1, -1, -1] == [lun_number(bytes.fromhex(field)) for field in fields]


def test_reading_comes_in_segments_with_the_status_in_the_last():
    """F at the end of each burst; DataSN and offsets count."""
    initiator = session(MaxRecvDataSegmentLength="512", MaxBurstLength="1024")
    medium(initiator).data[:2048] = PATTERN * 4
    answers = initiator.command(read10(0, 4), expected=2048, flags=READ)
    assert [(0, 0x00), (1, 0x80), (2, 0x00), (3, 0x81)] == [(pdu.word(36), pdu.flags) for pdu in answers]
    assert ([0, 512, 1024, 1536], PATTERN * 4) == (
        [pdu.word(40) for pdu in answers],
        b"".join(pdu.data for pdu in answers),
    )
    (after,) = initiator.command(READY)
    assert answers[-1].word(24) + 1 == after.word(24)


@pytest.mark.parametrize(
    ("expected", "flags", "residual"),
    [(512, 0x81, 0), (600, 0x83, 88), (100, 0x85, 412)],
)
def test_residuals_of_reading(expected, flags, residual):
    """What the command has, against what was expected."""
    initiator = session()
    (answer,) = initiator.command(read10(0, 1), expected=expected, flags=READ)
    assert (flags, residual, min(512, expected)) == (answer.flags, answer.word(44), len(answer.data))


def test_sense_data_comes_with_the_response():
    """With its length in front, after no data at all."""
    (answer,) = session().command(read10(1 << 20, 1), expected=512, flags=READ)
    assert (Opcode.SCSI_RESPONSE, 2, 18, 0x82, 512) == (
        answer.opcode,
        answer.header[3],
        int.from_bytes(answer.data[:2], "big"),
        answer.flags,
        answer.word(44),
    )
    assert (5, 0x2100) == key_and_code(answer.data[2:])


def test_writing_with_immediate_data():
    """All of it in the command."""
    initiator = session()
    (answer,) = initiator.command(write10(3, 1), expected=512, flags=WRITE, data=PATTERN)
    assert (0x80, 0, PATTERN) == (answer.flags, answer.header[3], bytes(medium(initiator).data[1536:2048]))


def test_writing_with_ready_to_transfer():
    """Bursts of the agreed length, each asked for; Data-Out in several PDUs."""
    initiator = session(ImmediateData="No", InitialR2T="Yes", MaxBurstLength="1024")
    (first,) = initiator.command(write10(0, 3), expected=1536, flags=WRITE)
    assert (Opcode.READY_TO_TRANSFER, 0, 0, 1024) == (first.opcode, first.word(36), first.word(40), first.word(44))
    assert [] == initiator.data_out(first, PATTERN, final=False)
    (second,) = initiator.data_out(first, PATTERN, number=1, offset=512)
    assert (1, 1024, 512) == (second.word(36), second.word(40), second.word(44))
    (answer,) = initiator.data_out(second, PATTERN, offset=1024)
    assert (Opcode.SCSI_RESPONSE, 0, PATTERN * 3) == (
        answer.opcode,
        answer.header[3],
        bytes(medium(initiator).data[:1536]),
    )


def test_unsolicited_data():
    """After the command, up to the first burst; the rest is asked for."""
    initiator = session(InitialR2T="No", FirstBurstLength="1024")
    assert [] == initiator.command(write10(0, 4), expected=2048, flags=0x20, data=PATTERN)
    (request,) = initiator.data_out(None, PATTERN, offset=512)
    assert (1024, 1024) == (request.word(40), request.word(44))
    (answer,) = initiator.data_out(request, PATTERN * 2, offset=1024)
    assert (0, PATTERN * 4) == (answer.header[3], bytes(medium(initiator).data[:2048]))


def test_unsolicited_data_names_no_unit():
    """Its LUN field is reserved (RFC 7143 11.7.4)."""
    there = portal()
    there.targets[TARGET].units[3] = disk()
    initiator = Initiator(there, {"InitialR2T": "No"})
    initiator.command(READY, b8=bytes((0, 3)))
    assert [] == initiator.command(write10(0, 1), expected=512, flags=0x20, b8=bytes((0, 3)))
    (answer,) = initiator.data_out(None, PATTERN)
    assert (0, PATTERN) == (answer.header[3], bytes(there.targets[TARGET].units[3].loaded.data[:512]))


@pytest.mark.parametrize(
    ("number", "offset", "data", "final"),
    [
        (1, 0, PATTERN, True),
        (0, 512, PATTERN, True),
        (0, 0, PATTERN * 2, True),
        (0, 0, PATTERN[:256], True),
        (0, 0, PATTERN, False),
    ],
)
def test_data_that_does_not_follow_fails_the_command_only(number, offset, data, final):
    """ABORTED COMMAND; nothing is written, the session goes on."""
    initiator = session(ImmediateData="No")
    (request,) = initiator.command(write10(0, 1), expected=512, flags=WRITE)
    (answer,) = initiator.data_out(request, data, number=number, offset=offset, final=final)
    assert ((0xB, 0x0C0D), 2) == (key_and_code(answer.data[2:]), answer.header[3])
    assert [] == initiator.data_out(request, PATTERN)
    assert not any(medium(initiator).data)
    assert 0 == initiator.command(READY)[0].header[3]


@pytest.mark.parametrize(
    ("expected", "sent", "status", "flags", "residual"),
    [(0, 0, 0, 0x84, 512), (1024, 2, 0, 0x82, 512), (200, 200, 2, 0x84, 312)],
)
def test_residuals_of_writing(expected, sent, status, flags, residual):
    """Too little and too much; a part of a block is not written."""
    initiator = session()
    data = PATTERN * sent if sent < 10 else PATTERN[:sent]
    (answer,) = initiator.command(write10(0, 1), expected=expected, flags=WRITE, data=data)
    assert (status, flags, residual) == (answer.header[3], answer.flags, answer.word(44))
    assert not any(medium(initiator).data[512:])


def test_only_the_oldest_command_is_asked_for_its_data():
    """So a session holds the data of one."""
    initiator = session(ImmediateData="No")
    (first,) = initiator.command(write10(0, 1), expected=512, flags=WRITE)
    assert [] == initiator.command(write10(1, 1), expected=512, flags=WRITE)
    second, answer = initiator.data_out(first, PATTERN)
    assert (Opcode.SCSI_RESPONSE, Opcode.READY_TO_TRANSFER) == (answer.opcode, second.opcode)
    (answer,) = initiator.data_out(second, PATTERN)
    assert (second.task_tag, 0) == (answer.task_tag, answer.header[3])


def test_the_window_closes_while_commands_wait_and_never_goes_back():
    """MaxCmdSN; a command outside of it is dropped."""
    initiator = session(ImmediateData="No")
    for _ in range(MOST_COMMANDS):
        initiator.command(write10(0, 1), expected=512, flags=WRITE)
    assert MOST_COMMANDS == len(initiator.connection.tasks)
    assert [] == initiator.command(READY)
    initiator.command_number -= 1
    (answer,) = initiator.ask(Opcode.NOP_OUT | 0x40, w20=NO_TAG)
    assert answer.word(32) + 1 == answer.word(28)
    initiator.connection.abort_tasks(None)
    (answer,) = initiator.ask(Opcode.NOP_OUT | 0x40, w20=NO_TAG)
    assert answer.word(28) + MOST_COMMANDS - 1 == answer.word(32)


def test_immediate_commands_that_wait_do_not_take_the_window_back():
    """What was promised stays promised (RFC 7143 4.2.2.1); too many of them are refused."""
    initiator = session(ImmediateData="No")

    def limit():
        return initiator.ask(Opcode.NOP_OUT | 0x40, w20=NO_TAG)[0].word(32)

    before = limit()
    answers = [
        initiator.ask(Opcode.SCSI_COMMAND | 0x40, WRITE, w20=512, b32=write10(0, 1))
        for _ in range(2 * MOST_COMMANDS + 1)
    ]
    assert (before, 2 * MOST_COMMANDS) == (limit(), len(initiator.connection.tasks))
    assert 0x28 == answers[-1][0].header[3]


def test_a_transfer_of_gigabytes_asks_for_no_more_than_a_command_can_use():
    """And is refused by the unit then."""
    initiator = session(ImmediateData="No")
    (request,) = initiator.command(write10(0, 0xFFFF), expected=0xFFFFFFFF, flags=WRITE)
    assert LONGEST_TRANSFER == initiator.connection.soliciting[0].needed
    assert 262144 == request.word(44)


def test_commands_are_carried_out_in_the_order_of_their_numbers():
    """One that comes early waits; one that is old, or far ahead, is dropped."""
    initiator = session()
    initiator.command_number += 1
    assert [] == initiator.command(write10(0, 1), expected=512, flags=WRITE, data=PATTERN)
    initiator.command_number -= 2
    assert [0, 0] == [pdu.header[3] for pdu in initiator.command(READY)]
    assert [] == initiator.command(READY)
    initiator.command_number += MOST_COMMANDS
    assert [] == initiator.command(READY)


def test_pings():
    """The data comes back; who wants no answer gets none."""
    initiator = session()
    (answer,) = initiator.ask(Opcode.NOP_OUT, 0x80, b"hello", w20=NO_TAG)
    assert (Opcode.NOP_IN, b"hello", NO_TAG) == (answer.opcode, answer.data, answer.word(20))
    assert [] == initiator.raw(
        pack(header(Opcode.NOP_OUT | 0x40, 0x80, NO_TAG, w24=initiator.command_number, w20=NO_TAG))
    )


def test_absent_units_and_unknown_requests():
    """LOGICAL UNIT NOT SUPPORTED; Reject with the header that was refused."""
    initiator = session()
    (answer,) = initiator.command(READY, b8=bytes((0, 7)))
    assert (5, 0x2500) == key_and_code(answer.data[2:])
    for opcode, reason in ((0x10, 3), (0x1C, 4), (Opcode.LOGIN_REQUEST | 0x40, 4)):
        (answer,) = initiator.ask(opcode | 0x40)
        assert (Opcode.REJECT, reason, opcode & 0x3F) == (answer.opcode, answer.header[2], answer.data[0] & 0x3F)
    (answer,) = initiator.command(READY, flags=0xE0, expected=512)
    assert (Opcode.REJECT, 5) == (answer.opcode, answer.header[2])


def test_task_management():
    """Every function with its response; waiting tasks of the unit go."""
    there = portal()
    initiator = Initiator(there, {"ImmediateData": "No"}).ready()
    other = Initiator(there, {"ImmediateData": "No"}, name="iqn.1992-01.com.example:sue").ready()

    def manage(function, **fields):
        (answer,) = initiator.ask(Opcode.TASK_MANAGEMENT_REQUEST | 0x40, 0x80 | function, **fields)
        assert Opcode.TASK_MANAGEMENT_RESPONSE == answer.opcode
        return answer.header[2]

    def waiting():
        return len(initiator.connection.tasks), len(other.connection.tasks)

    def begin():
        for one in (initiator, other):
            one.command(write10(0, 1), expected=512, flags=WRITE)
        assert (1, 1) == waiting()

    begin()
    assert (0, (0, 1)) == (manage(1, w20=initiator.tag), waiting())
    assert [1, 5, 5, 4, 2] == [manage(1, w20=999), manage(3), manage(9), manage(8), manage(2, b8=bytes((0, 9)))]
    initiator.command(write10(0, 1), expected=512, flags=WRITE)
    assert (0, (0, 1)) == (manage(2), waiting())
    initiator.command(write10(0, 1), expected=512, flags=WRITE)
    assert (0, (0, 0)) == (manage(4), waiting())
    for function in (5, 6):
        begin()
        assert (0, (0, 0)) == (manage(function), waiting())
        for one in (initiator, other):
            (answer,) = one.command(READY)
            assert (6, 0x2903) == key_and_code(answer.data[2:])
    assert 0 == manage(7)
    assert ("the target was reset", ["the target was reset"]) == (initiator.connection.closed, other.hung_up)


@pytest.mark.parametrize(("offset", "response", "answered"), [(0, 0, 1), (1, 1, 2)])
def test_a_command_that_waits_for_its_turn_is_aborted_by_its_tag(offset, response, answered):
    """And by its number; another tag with that number is not there."""
    initiator = session()
    number = initiator.command_number
    initiator.command_number = number + 1
    assert [] == initiator.command(READY)
    fields = {"w20": initiator.tag + offset, "w32": number + 1}
    initiator.command_number = number
    (answer,) = initiator.ask(Opcode.TASK_MANAGEMENT_REQUEST | 0x40, 0x81, **fields)
    assert response == answer.header[2]
    assert answered == len(initiator.command(READY))


def test_a_command_that_waited_behind_an_aborted_one_is_asked_for_its_data_at_once():
    """Although its initiator has sent nothing since; the abort came from somebody else."""
    there = portal()
    initiator = Initiator(there, {"ImmediateData": "No"}).ready()
    other = Initiator(there, {}, name="iqn.1992-01.com.example:sue").ready()
    initiator.command(write10(0, 1), expected=512, flags=WRITE)
    initiator.command(write10(0, 1), expected=512, flags=WRITE, b8=bytes((0, 1)))
    other.ask(Opcode.TASK_MANAGEMENT_REQUEST | 0x40, 0x84)
    ((request,), (tag,)) = initiator.unasked, initiator.connection.tasks
    assert (Opcode.READY_TO_TRANSFER, tag) == (request[0], int.from_bytes(request[16:20], "big"))


def test_logging_out():
    """Ends the session; recovery of a connection is not offered."""
    initiator = session()
    (answer,) = initiator.ask(Opcode.LOGOUT_REQUEST, 0x82)
    assert (2, "") == (answer.header[2], initiator.connection.closed)
    (answer,) = initiator.ask(Opcode.LOGOUT_REQUEST, 0x80)
    assert (0, "the initiator has logged out") == (answer.header[2], initiator.connection.closed)
    assert [] == initiator.command(READY)


def test_text():
    """The session's own target; other keys are rejected, a new segment length is taken."""
    initiator = session()
    (answer,) = initiator.ask(Opcode.TEXT_REQUEST, 0x80, b"SendTargets=\0", w20=NO_TAG)
    assert answer.data.startswith(b"TargetName=iqn.2026-11.org.hvemu:disk\0")
    (answer,) = initiator.ask(
        Opcode.TEXT_REQUEST, 0x80, b"MaxRecvDataSegmentLength=1024\0MaxBurstLength=512\0", w20=NO_TAG
    )
    assert (b"MaxBurstLength=Reject\0", 1024) == (answer.data, initiator.connection.parameters.peer_segment)


@pytest.mark.parametrize(
    "broken",
    [
        {"expected": 512, "flags": WRITE, "data": PATTERN * 2},
        {"expected": 1024, "flags": 0x20, "data": b""},
        {"expected": 0, "flags": 0x80, "data": PATTERN},
    ],
)
def test_breaking_what_was_agreed_on_ends_the_connection(broken):
    """With a reason; the waiting tasks are gone and the place is free."""
    initiator = session(InitialR2T="Yes")
    assert [] == initiator.command(write10(0, 1), **broken)
    assert initiator.connection.closed
    assert not any(medium(initiator).data)
    assert not initiator.connection.portal.full


def test_digests():
    """Agreed on, then checked in both directions."""
    initiator = Initiator(portal(), {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"})
    reader = PduReader(1 << 20)
    reader.header_digest = reader.data_digest = True
    initiator._reader = reader
    head = header(Opcode.NOP_OUT, 0x80, 5, w24=10, w20=NO_TAG)
    (answer,) = initiator.raw(pack(head, b"hello", header_digest=True, data_digest=True))
    assert b"hello" == answer.data
    head[24:28] = (11).to_bytes(4, "big")
    damaged = bytearray(pack(head, b"hello", header_digest=True, data_digest=True))
    damaged[54] ^= 1
    assert [] == initiator.raw(bytes(damaged))
    assert "the digest of a data segment is wrong" == initiator.connection.closed


def test_a_data_segment_that_is_too_long_is_not_waited_for():
    """The header is enough."""
    reader = PduReader(8192)
    reader.feed(bytes((0, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF)) + bytes(40))
    with pytest.raises(ProtocolError, match="longer than 8192"):
        reader.next()
