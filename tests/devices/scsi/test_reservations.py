"""Who may use a unit: RESERVE and RELEASE, persistent reservations and the table of conflicts."""

import json
import struct

import pytest

from hvemu.devices.scsi.disk import ScsiDisk
from hvemu.devices.scsi.reservation_commands import transport_id
from tests.devices.scsi.desk import ANN, JOE, SUE, FakeMedium, disk, good, persistent_out, read10, send, write10, wrong

CONFLICT = 0x18
RESERVE, RELEASE = "16 00 00 00 00 00", "17 00 00 00 00 00"
A = b"A" * 512
WRITE_EXCLUSIVE, EXCLUSIVE, WRITE_REGISTRANTS, EXCLUSIVE_REGISTRANTS, WRITE_ALL, EXCLUSIVE_ALL = 1, 3, 5, 6, 7, 8


def out(unit: ScsiDisk, nexus: str, action: int, key: int = 0, new_key: int = 0, kind: int = 0, flags: int = 0) -> int:
    """PERSISTENT RESERVE OUT; its status."""
    cdb, parameters = persistent_out(action, key, new_key, kind, flags)
    return send(unit, cdb, parameters, nexus).status


def persistent_in(unit: ScsiDisk, action: int, length: int = 255) -> bytes:
    """PERSISTENT RESERVE IN."""
    return good(unit, bytes((0x5E, action, 0, 0, 0, 0, 0, 0, length, 0)), nexus=ANN)


def keys(unit: ScsiDisk) -> list[int]:
    """READ KEYS."""
    data = persistent_in(unit, 0)
    assert len(data) - 8 == int.from_bytes(data[4:8], "big")
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]


def reservation(unit: ScsiDisk) -> tuple[int, int] | None:
    """Key and type by READ RESERVATION."""
    data = persistent_in(unit, 1)
    return None if len(data) == 8 else (int.from_bytes(data[8:16], "big"), data[21])


def registered(*nexuses: str) -> ScsiDisk:
    """A disk on which these have registered the keys 1, 2 and so on."""
    unit = disk()
    for number, nexus in enumerate(nexuses, 1):
        assert 0 == out(unit, nexus, 0, 0, number)
    return unit


def test_reserve_keeps_others_away_but_from_what_is_always_allowed():
    """Until RELEASE by the holder, a reset, or the loss of its nexus."""
    unit = disk()
    for end in ("release", "reset", "lost"):
        good(unit, RESERVE)
        for cdb in (read10(0, 1), write10(0, 1), "00" * 6, RESERVE, "1A 08 3F 00 FF 00", "5E" + " 00" * 9):
            assert CONFLICT == send(unit, cdb, A, SUE).status
        for cdb in ("12 00 00 00 24 00", "03 00 00 00 12 00", "A0" + " 00" * 8 + " FF 00 00", "25" + " 00" * 9):
            good(unit, cdb, nexus=SUE)
        good(unit, RELEASE, nexus=SUE)
        good(unit, write10(0, 1), A)
        assert CONFLICT == send(unit, write10(0, 1), A, SUE).status
        if end == "release":
            good(unit, "57" + " 00" * 9)
        elif end == "reset":
            unit.reset("bus")
            assert [(6, 0x2902)] * 2 == [wrong(unit, "00" * 6, nexus=nexus) for nexus in (JOE, SUE)]
        else:
            unit.nexus_lost(JOE)
            assert (6, 0x2900) == wrong(unit, "00" * 6)
        good(unit, write10(0, 1), A, SUE)


def test_the_two_kinds_of_reservation_exclude_each_other():
    """RESERVE while keys are registered, PERSISTENT RESERVE while RESERVE holds."""
    unit = registered(JOE)
    assert [CONFLICT] * 2 == [send(unit, cdb).status for cdb in (RESERVE, RELEASE)]
    unit = disk()
    good(unit, RESERVE)
    assert [CONFLICT] * 2 == [out(unit, nexus, 0, 0, 1) for nexus in (JOE, SUE)]


@pytest.mark.parametrize(
    ("kind", "registrant", "stranger"),
    [
        (WRITE_EXCLUSIVE, "r", "r"),
        (EXCLUSIVE, "", ""),
        (WRITE_REGISTRANTS, "rw", "r"),
        (EXCLUSIVE_REGISTRANTS, "rw", ""),
        (WRITE_ALL, "rw", "r"),
        (EXCLUSIVE_ALL, "rw", ""),
    ],
)
def test_the_table_of_conflicts(kind, registrant, stranger):
    """What a registrant that holds nothing, and somebody who has not registered, may do."""
    unit = registered(JOE, SUE)
    assert 0 == out(unit, JOE, 1, 1, 0, kind)
    assert (0 if kind in (WRITE_ALL, EXCLUSIVE_ALL) else 1, kind) == reservation(unit)
    for nexus, allowed in ((JOE, "rw"), (SUE, registrant), (ANN, stranger)):
        reads = [read10(0, 1), "2F" + " 00" * 9, "34" + " 00" * 9]
        writes = [write10(0, 1), "35" + " 00" * 9, "1A 08 3F 00 FF 00", "1E 00 00 00 01 00", "1B 00 00 00 00 00"]
        always = ["00" * 6, "12 00 00 00 24 00", "25" + " 00" * 9, "1E 00 00 00 00 00", "1B 00 00 00 01 00"]
        for cdbs, fine in ((always, True), (reads, "r" in allowed), (writes, "w" in allowed)):
            statuses = [send(unit, cdb, A, nexus).status for cdb in cdbs]
            assert [0 if fine else CONFLICT] * len(cdbs) == statuses
        if "w" in allowed:
            good(unit, "1B 00 00 00 01 00", nexus=nexus)
    good(unit, "00" * 6)


def test_every_row_of_the_table_says_how_it_conflicts():
    """With exclusive access of somebody else: what is not refused is on the short list of the standard."""
    unit = registered(JOE)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE)
    allowed = set()
    for row in ScsiDisk.operations.rows:
        cdb = bytearray(len(row.usage))
        cdb[0], cdb[1] = row.opcode, row.service_action or 0
        if send(unit, bytes(cdb), b"", SUE).status != CONFLICT:
            allowed.add(row.name.partition(",")[0])
    assert allowed == {
        "TEST_UNIT_READY",
        "REQUEST_SENSE",
        "INQUIRY",
        "REPORT_LUNS",
        "PERSISTENT RESERVE IN",
        "PERSISTENT RESERVE OUT",
        "PREVENT_ALLOW_MEDIUM_REMOVAL",
        "READ_CAPACITY_10",
        "READ CAPACITY (16)",
    }


def test_registering():
    """By the key that one has; 0 unregisters; ignoring it needs none. The generation counts."""
    unit = disk()
    assert [CONFLICT, 0, CONFLICT, 0] == [out(unit, JOE, 0, *pair) for pair in ((9, 1), (0, 1), (0, 2), (1, 2))]
    assert ([2], 2) == (keys(unit), int.from_bytes(persistent_in(unit, 0)[:4], "big"))
    assert [0, 0] == [out(unit, SUE, 6, 0x77, 3), out(unit, JOE, 6, 0x77, 4)]
    assert [4, 3] == keys(unit)
    assert 0 == out(unit, JOE, 0, 4, 0)
    assert ([3], 5) == (keys(unit), int.from_bytes(persistent_in(unit, 0)[:4], "big"))
    assert [CONFLICT] * 5 == [out(unit, JOE, action, 4, 3, 1) for action in (1, 2, 3, 4, 5)]


def test_registrations_are_bounded():
    """INSUFFICIENT REGISTRATION RESOURCES."""
    unit = disk()
    cdb, parameters = persistent_out(0, 0, 5)
    for number in range(64):
        nexus = f"host-{number}"
        send(unit, "00" * 6, nexus=nexus)
        good(unit, cdb, parameters, nexus)
    assert (5, 0x5504) == wrong(unit, cdb, parameters, JOE)


def test_what_is_not_offered_is_refused():
    """APTPL, SPEC_I_PT, ALL_TG_PT; other lengths, scopes and types."""
    unit = registered(JOE)
    for flags in (1, 4, 8):
        assert (5, 0x2600) == wrong(unit, *persistent_out(0, 1, 2, 0, flags))
    cdb, parameters = persistent_out(0, 1, 2)
    assert (5, 0x1A00) == wrong(unit, cdb[:8] + b"\x20\0", parameters + bytes(8))
    assert (5, 0x1A00) == wrong(unit, cdb, parameters[:-1])
    for kind in (0, 2, 4, 9, 0x11):
        assert (5, 0x2400) == wrong(unit, *persistent_out(1, 1, 0, kind))
    assert (5, 0x2400) == wrong(unit, *persistent_out(7, 1, 2))
    assert bytes((0, 8, 0, 0x80, 0xEA, 0x01, 0, 0)) == persistent_in(unit, 2)
    assert [1] == keys(unit)


def test_reserving_twice_and_releasing():
    """The same again is fine, another type is a conflict; registrants are told of the end where the type is theirs."""
    unit = registered(JOE, SUE)
    assert [0, 0, CONFLICT, CONFLICT] == [
        out(unit, nexus, 1, key, 0, kind) for nexus, key, kind in ((JOE, 1, 5), (JOE, 1, 5), (JOE, 1, 1), (SUE, 2, 5))
    ]
    assert (5, 0x2604) == wrong(unit, *persistent_out(2, 1, 0, 1))
    assert 0 == out(unit, SUE, 2, 2, 0, 5)
    assert (1, 5) == reservation(unit)
    assert 0 == out(unit, JOE, 2, 1, 0, 5)
    assert (None, (6, 0x2A04)) == (reservation(unit), wrong(unit, "00" * 6, nexus=SUE))
    good(unit, "00" * 6)


def test_a_holder_that_unregisters_releases():
    """All registrants hold to the last."""
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, WRITE_REGISTRANTS)
    out(unit, JOE, 0, 1, 0)
    assert (None, (6, 0x2A04)) == (reservation(unit), wrong(unit, "00" * 6, nexus=SUE))
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, WRITE_ALL)
    out(unit, JOE, 0, 1, 0)
    assert (0, WRITE_ALL) == reservation(unit)
    out(unit, SUE, 0, 2, 0)
    assert reservation(unit) is None


def test_clear():
    """No reservation and no keys; the others are told."""
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE)
    assert 0 == out(unit, SUE, 3, 2)
    assert ([], None, (6, 0x2A03)) == (keys(unit), reservation(unit), wrong(unit, "00" * 6))


@pytest.mark.parametrize("action", [4, 5])
def test_preempting_a_holder_takes_its_reservation(action):
    """Its registration goes, with a unit attention; ours is the type."""
    unit = registered(JOE, SUE, ANN)
    out(unit, JOE, 1, 1, 0, WRITE_REGISTRANTS)
    assert 0 == out(unit, SUE, action, 2, 1, EXCLUSIVE)
    assert ((6, 0x2A05), (6, 0x2A04)) == (wrong(unit, "00" * 6), wrong(unit, "00" * 6, nexus=ANN))
    assert ((2, EXCLUSIVE), [2, 3]) == (reservation(unit), keys(unit))


def test_preempting_a_registration():
    """Without its reservation nothing changes but the keys; nobody is a conflict; 0 is no key."""
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, WRITE_EXCLUSIVE)
    assert CONFLICT == out(unit, JOE, 4, 1, 99, 1)
    assert (5, 0x2600) == wrong(unit, *persistent_out(4, 1, 0, 1))
    assert 0 == out(unit, JOE, 4, 1, 2, EXCLUSIVE)
    assert ((1, WRITE_EXCLUSIVE), [1]) == (reservation(unit), keys(unit))
    assert (6, 0x2A05) == wrong(unit, "00" * 6, nexus=SUE)


def test_preempting_all_registrants():
    """Key 0 takes the reservation, another key only its registrations."""
    unit = registered(JOE, SUE, ANN)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE_ALL)
    assert 0 == out(unit, SUE, 4, 2, 1, WRITE_EXCLUSIVE)
    assert ((0, EXCLUSIVE_ALL), [2, 3]) == (reservation(unit), keys(unit))
    assert 0 == out(unit, SUE, 4, 2, 0, WRITE_EXCLUSIVE)
    assert (6, 0x2A05) == wrong(unit, "00" * 6, nexus=ANN)
    assert ((2, WRITE_EXCLUSIVE), [2]) == (reservation(unit), keys(unit))


def test_keys_survive_everything_but_power():
    """The loss of a nexus and a reset leave them; power on does not (PTPL is not offered)."""
    unit = registered(JOE)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE)
    unit.nexus_lost(JOE)
    unit.reset("logical unit")
    assert (6, 0x2903) == wrong(unit, "00" * 6, nexus=ANN)
    assert ((1, EXCLUSIVE), [1]) == (reservation(unit), keys(unit))
    unit.reset("power on")
    assert (6, 0x2900) == wrong(unit, "00" * 6, nexus=ANN)
    assert (None, []) == (reservation(unit), keys(unit))


def test_full_status_names_the_initiators():
    """By iSCSI name with ISID, or by number on a parallel bus."""
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE)
    data = persistent_in(unit, 3)
    length = int.from_bytes(data[28:32], "big")
    assert (1, 1, EXCLUSIVE) == (int.from_bytes(data[8:16], "big"), data[20], data[21])
    assert (0x45, JOE.encode() + b"\0") == (data[32], data[36 : 37 + len(JOE)])
    other = data[32 + length :]
    assert (2, 0, 0, 24) == (int.from_bytes(other[:8], "big"), other[12], other[13], len(other[24:]))
    assert struct.pack(">BBHI", 1, 0, 7, 1) == transport_id(SUE)[:8]
    assert len(data) - 8 == int.from_bytes(data[4:8], "big")
    assert data[:10] == persistent_in(unit, 3, 10)


def test_the_state_keeps_all_of_it():
    """Through JSON; a damaged state is refused and changes nothing."""
    unit = registered(JOE, SUE)
    out(unit, JOE, 1, 1, 0, EXCLUSIVE)
    good(unit, "15 10 00 00 18 00", bytes(4) + b"\x08\x12" + bytes(18))
    assert [(6, 0x2A01)] * 2 == [wrong(unit, "00" * 6, nexus=nexus) for nexus in (SUE, ANN)]
    state = unit.state()
    plain = json.loads(json.dumps(state.fields))
    other = ScsiDisk(FakeMedium(), serial="2")
    other.from_state(state.__class__(state.device, state.version, plain))
    assert plain == json.loads(json.dumps(other.state().fields))
    assert ((1, EXCLUSIVE), CONFLICT) == (reservation(other), send(other, read10(0, 1), nexus=SUE).status)
    damages = [
        ("reservations", {}),
        ("reservations", {**plain["reservations"], "holder": "nobody"}),
        ("reservations", {**plain["reservations"], "kind": 4}),
        ("reservations", {**plain["reservations"], "keys": {"x": 0}}),
        ("modes", {**plain["modes"], "8": "ff" * 18}),
        ("modes", {}),
        ("attentions", {"x": [1]}),
        ("attentions", {"x": 1}),
        ("tray_open", True),
        ("stopped", 1),
        ("preventing", [1]),
    ]
    for field, value in damages:
        with pytest.raises(ValueError, match=r".+"):
            other.from_state(state.__class__(state.device, state.version, {**plain, field: value}))
        assert plain == json.loads(json.dumps(other.state().fields))
    with pytest.raises(ValueError, match="cannot become"):
        other.from_state(state.__class__("scsi-cdrom", 1, plain))
    with pytest.raises(ValueError, match="must have exactly"):
        other.from_state(state.__class__(state.device, state.version, {}))
