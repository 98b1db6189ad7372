"""The login phase: names, negotiation, CHAP, refusals."""

import hashlib

import pytest

from hvemu.iscsi.chap import Credentials
from hvemu.iscsi.pdu import Opcode, pack
from hvemu.iscsi.portal import MOST_SESSIONS
from hvemu.iscsi.text import Parameters, negotiate, pack_keys, parse_keys
from tests.iscsi.initiator import ISID, NAME, TARGET, Initiator, header, login, portal

INTRODUCTION = {"InitiatorName": NAME, "TargetName": TARGET, "SessionType": "Normal"}
SECRET = b"twelve bytes or more"


def status(answers):
    """Class and detail of the only response."""
    (answer,) = answers
    assert Opcode.LOGIN_RESPONSE == answer.opcode
    return int.from_bytes(answer.header[36:38], "big")


def test_a_login_in_one_request():
    """Numbers follow from the request; a handle is given; the target tells its portal group and segment length."""
    initiator = Initiator(portal())
    (answer,) = initiator.raw(login(INTRODUCTION))
    assert (0x87, 0, ISID) == (answer.flags, int.from_bytes(answer.header[36:38], "big"), answer.header[8:14])
    assert (100, 10, 10 + 31) == (answer.word(24), answer.word(28), answer.word(32))
    assert answer.header[14:16] != b"\0\0"
    assert {"TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144"} == parse_keys(answer.data)
    assert initiator.connection.login.done


def test_negotiation():
    """What RFC 7143 13 says of each key; what we do not know is NotUnderstood."""
    parameters = Parameters()
    answers = negotiate(
        parameters,
        {
            "HeaderDigest": "CRC32C,None",
            "DataDigest": "None,CRC32C",
            "MaxConnections": "4",
            "InitialR2T": "No",
            "ImmediateData": "No",
            "MaxRecvDataSegmentLength": "65536",
            "MaxBurstLength": "16776192",
            "FirstBurstLength": "1024",
            "DefaultTime2Wait": "2",
            "DefaultTime2Retain": "20",
            "MaxOutstandingR2T": "8",
            "DataPDUInOrder": "No",
            "DataSequenceInOrder": "Yes",
            "ErrorRecoveryLevel": "2",
            "OFMarker": "Yes",
            "X-org.example.secret": "1",
            "iSCSIProtocolLevel": "2",
            "InitiatorAlias": "me",
        },
    )
    assert answers == {
        "HeaderDigest": "CRC32C",
        "DataDigest": "None",
        "MaxConnections": "1",
        "InitialR2T": "No",
        "ImmediateData": "No",
        "MaxBurstLength": "1048576",
        "FirstBurstLength": "1024",
        "DefaultTime2Wait": "2",
        "DefaultTime2Retain": "0",
        "MaxOutstandingR2T": "1",
        "DataPDUInOrder": "Yes",
        "DataSequenceInOrder": "Yes",
        "ErrorRecoveryLevel": "0",
        "OFMarker": "No",
        "X-org.example.secret": "NotUnderstood",
        "iSCSIProtocolLevel": "1",
    }
    expected = Parameters(True, False, False, False, 65536, 1 << 20, 1024)
    assert expected == parameters


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MaxBurstLength", "0"),
        ("MaxBurstLength", "abc"),
        ("HeaderDigest", "MD5"),
        ("InitialR2T", "Maybe"),
        ("MaxRecvDataSegmentLength", "1"),
        ("MaxConnections", "-1"),
        ("ErrorRecoveryLevel", "3"),
        ("MaxBurstLength", "²"),
    ],
)
def test_values_that_are_none_are_rejected(key, value):
    """And change nothing."""
    parameters = Parameters()
    assert {key: "Reject"} == negotiate(parameters, {key: value})
    assert Parameters() == parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, 0x0207),
        ({"InitiatorName": NAME}, 0x0207),
        ({**INTRODUCTION, "TargetName": "iqn.2026-11.org.hvemu:other"}, 0x0203),
        ({**INTRODUCTION, "SessionType": "Odd"}, 0x0209),
        ({**INTRODUCTION, "InitiatorName": "x" * 300}, 0x0200),
        ({**INTRODUCTION, "InitiatorName": "a,i,0x1"}, 0x0200),
    ],
)
def test_refusals_have_their_status(text, expected):
    """And end the connection."""
    initiator = Initiator(portal())
    assert expected == status(initiator.raw(login(text)))
    assert initiator.connection.closed
    assert [] == initiator.raw(login(INTRODUCTION))


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (pack(header(0x43, 0x87, 1, b8=ISID, b3=b"\1"), pack_keys(INTRODUCTION)), 0x0205),
        (pack(header(0x43, 0x87, 1, b8=ISID, b14=b"\0\7"), pack_keys(INTRODUCTION)), 0x020A),
        (pack(header(0x43, 0x84, 1, b8=ISID), pack_keys(INTRODUCTION)), 0x0200),
        (pack(header(0x43, 0x8F, 1, b8=ISID), pack_keys(INTRODUCTION)), 0x020B),
        (pack(header(0x43, 0x87, 1, b8=ISID), b"no equals sign\0"), 0x0200),
        (pack(header(0x43, 0x87, 1, b8=ISID), b"A=1\0A=2\0"), 0x0200),
        (pack(header(0x41, 0x80, 1)), 0x020B),
    ],
)
def test_malformed_requests_are_refused(request_bytes, expected):
    """Versions, handles, stages, text, other PDUs."""
    assert expected == status(Initiator(portal()).raw(request_bytes))


def test_text_over_several_requests():
    """With the C bit; up to a limit."""
    initiator = Initiator(portal())
    text = pack_keys(INTRODUCTION)
    (answer,) = initiator.raw(pack(header(0x43, 0x44, 1, b8=ISID), text[:20]))
    assert (0x04, b"") == (answer.flags, answer.data)
    assert 0 == status(initiator.raw(pack(header(0x43, 0x87, 1, b8=ISID), text[20:])))
    endless = Initiator(portal())
    found = [endless.raw(pack(header(0x43, 0x44, 1, b8=ISID), bytes(8000))) for _ in range(12)]
    assert 0x0200 == status(next(answers for answers in found if answers[0].header[36]))


def test_stages_may_be_taken_one_by_one():
    """Security with nothing to prove, then operational, then full feature phase."""
    initiator = Initiator(portal())
    (answer,) = initiator.raw(login({**INTRODUCTION, "AuthMethod": "CHAP,None"}, current=0, following=1))
    assert (0x81, "None") == (answer.flags, parse_keys(answer.data)["AuthMethod"])
    (answer,) = initiator.raw(login({"MaxBurstLength": "4096"}, transit=False))
    assert 0x04 == answer.flags
    assert 0 == status(initiator.raw(login({})))
    assert (4096, True) == (initiator.connection.parameters.max_burst, initiator.connection.login.done)


def chap(initiator, algorithm, *, name="joe", secret=SECRET, extra=None):
    """A CHAP exchange; the responses to its last request."""
    initiator.raw(login({**INTRODUCTION, "AuthMethod": "CHAP"}, current=0, transit=False))
    (challenge,) = initiator.raw(login({"CHAP_A": algorithm}, current=0, transit=False))
    keys = parse_keys(challenge.data)
    kind = {"5": "md5", "7": "sha256"}[keys["CHAP_A"]]
    octets = bytes((int(keys["CHAP_I"]),)) + secret + bytes.fromhex(keys["CHAP_C"][2:])
    proof = {"CHAP_N": name, "CHAP_R": "0x" + hashlib.new(kind, octets).hexdigest()}
    return initiator.raw(login({**proof, **(extra or {})}, current=0, following=3))


@pytest.mark.parametrize("algorithm", ["5", "7", "9,7,5", "6,5"])
def test_chap(algorithm):
    """The first algorithm that both know."""
    initiator = Initiator(portal(credentials=Credentials("joe", SECRET)))
    assert 0 == status(chap(initiator, algorithm))
    assert initiator.connection.login.done


@pytest.mark.parametrize(("name", "secret"), [("joe", b"another secret"), ("sue", SECRET), ("", b"")])
def test_chap_with_a_wrong_name_or_secret(name, secret):
    """Authentication failure."""
    initiator = Initiator(portal(credentials=Credentials("joe", SECRET)))
    assert 0x0201 == status(chap(initiator, "5", name=name, secret=secret))
    assert not initiator.connection.login.done


def test_chap_cannot_be_gone_around():
    """By offering nothing, by leaving the stage out, by going on without an answer, by unknown algorithms."""
    credentials = Credentials("joe", SECRET)
    assert 0x0201 == status(Initiator(portal(credentials=credentials)).raw(login(INTRODUCTION)))
    none = login({**INTRODUCTION, "AuthMethod": "None"}, current=0, following=3)
    assert 0x0201 == status(Initiator(portal(credentials=credentials)).raw(none))
    for text in (INTRODUCTION, {**INTRODUCTION, "AuthMethod": "CHAP"}):
        initiator = Initiator(portal(credentials=credentials))
        (answer,) = initiator.raw(login(text, current=0, following=3))
        assert (0, False) == (answer.flags & 0x80, initiator.connection.login.done)
        assert 0x020B == status(initiator.raw(login({}, current=1, following=3)))
    initiator = Initiator(portal(credentials=credentials))
    initiator.raw(login({**INTRODUCTION, "AuthMethod": "CHAP"}, current=0, transit=False))
    assert 0x0201 == status(initiator.raw(login({"CHAP_A": "9"}, current=0, transit=False)))


def test_mutual_chap():
    """We prove that we know our secret, but not to who sends our own challenge back."""
    credentials = Credentials("joe", SECRET, "disk", b"our own long secret")
    initiator = Initiator(portal(credentials=credentials))
    (answer,) = chap(initiator, "5", extra={"CHAP_I": "7", "CHAP_C": "0x0102030405"})
    keys = parse_keys(answer.data)
    expected = hashlib.md5(b"\7our own long secret" + bytes((1, 2, 3, 4, 5))).hexdigest()
    assert ("disk", "0x" + expected) == (keys["CHAP_N"], keys["CHAP_R"])
    ours = "0x" + bytes(range(1, 33)).hex()
    for extra in (
        {"CHAP_I": "7", "CHAP_C": ours},
        {"CHAP_I": "700", "CHAP_C": "0x01"},
        {"CHAP_I": "1" * 5000, "CHAP_C": "0x01"},  # more digits than Python makes a number of
        {"CHAP_C": "0x01"},
        {"CHAP_I": "1"},
    ):
        assert 0x0201 == status(chap(Initiator(portal(credentials=credentials)), "5", extra=extra))
    without = portal(credentials=Credentials("joe", SECRET))
    assert 0x0201 == status(chap(Initiator(without), "5", extra={"CHAP_I": "7", "CHAP_C": "0x01"}))


def test_logging_in_again_replaces_the_session():
    """Of the same initiator port; its nexus is lost and so is its RESERVE."""
    there = portal()
    first = Initiator(there, {}).ready()
    first.command("16 00 00 00 00 00")
    second = Initiator(there, {})
    assert (["the initiator has logged in again"], True) == (first.hung_up, bool(first.connection.closed))
    other = Initiator(there, {}, name="iqn.1992-01.com.example:sue").ready()
    assert 0 == other.command(bytes(6))[0].header[3]
    assert not second.connection.closed


def test_sessions_are_bounded():
    """Out of resources; a place that becomes free can be taken."""
    there = portal()
    sessions = [Initiator(there, {}, name=f"{NAME}{number}") for number in range(MOST_SESSIONS)]
    assert 0x0302 == status(Initiator(there).raw(login({**INTRODUCTION, "InitiatorName": f"{NAME}x"})))
    again = Initiator(there, {}, name=f"{NAME}3")  # in place of a session of its own
    assert (True, False) == (bool(sessions[3].connection.closed), bool(again.connection.closed))
    assert 0x0302 == status(Initiator(there).raw(login({**INTRODUCTION, "InitiatorName": f"{NAME}x"})))
    sessions[0].connection.end("enough")
    Initiator(there, {}, name=f"{NAME}y")


def test_discovery():
    """SendTargets lists the targets with their address; commands are not for such a session."""
    initiator = Initiator(portal(address="127.0.0.1:1234"))
    initiator.raw(login({"InitiatorName": NAME, "SessionType": "Discovery"}))
    (answer,) = initiator.ask(Opcode.TEXT_REQUEST, 0x80, b"SendTargets=All\0", w20=0xFFFFFFFF)
    expected = b"TargetName=" + TARGET.encode() + b"\0TargetAddress=127.0.0.1:1234,1\0"
    assert (Opcode.TEXT_RESPONSE, expected) == (answer.opcode, answer.data)
    assert Opcode.REJECT == initiator.command(bytes(6))[0].opcode
    (answer,) = initiator.ask(Opcode.LOGOUT_REQUEST, 0x80)
    assert (Opcode.LOGOUT_RESPONSE, True) == (answer.opcode, bool(initiator.connection.closed))
