"""A CD-ROM drive with a medium, without, and with the tray open."""

import struct

import pytest

from tests.devices.scsi.desk import SUE, FakeMedium, cdrom, good, key_and_code, read10, send, wrong


def iso(size: int = 2048 * 600) -> FakeMedium:
    """Blocks that begin with their number."""
    medium = FakeMedium(size, read_only=True)
    for number in range(size // 2048):
        struct.pack_into(">I", medium.data, number * 2048, number)
    return medium


def test_it_says_that_it_is_a_cdrom():
    """Type 5, removable, blocks of 2048 bytes."""
    unit = cdrom(iso())
    assert (5, 0x80) == tuple(good(unit, "12 00 00 00 24 00")[:2])
    assert struct.pack(">II", 599, 2048) == good(unit, "25" + " 00" * 9)


def test_reading():
    """Of 10 and 12 bytes; nothing beyond the end, nothing can be written."""
    unit = cdrom(iso())
    assert struct.pack(">I", 7) == good(unit, read10(7, 2))[:4]
    assert good(unit, read10(7, 2)) == good(unit, "A8 00 00 00 00 07 00 00 00 02 00 00")
    answer = send(unit, read10(599, 2))
    assert ((5, 0x2100), 600) == (key_and_code(answer.sense), int.from_bytes(answer.sense[3:7], "big"))
    assert (5, 0x2400) == wrong(cdrom(iso(10 << 20)), read10(0, 4097))
    assert (5, 0x2000) == wrong(unit, "2A" + " 00" * 9)


def test_the_table_of_contents():
    """One data track, by block and by time, in the three formats."""
    unit = cdrom(iso())
    assert bytes.fromhex("0012 0101 0014 0100 00000000 0014 AA00 00000258") == good(
        unit, "43 00" + " 00" * 6 + " FF 00"
    )
    assert bytes.fromhex("0012 0101 0014 0100 00000200 0014 AA00 00000A00") == good(
        unit, "43 02" + " 00" * 6 + " FF 00"
    )
    assert bytes.fromhex("000A 0101 0014 AA00 00000258") == good(unit, "43 00 00 00 00 00 AA 00 FF 00")
    assert bytes.fromhex("000A 0101 0014 0100 00000000") == good(unit, "43 00 01 00 00 00 00 00 FF 00")
    full = good(unit, "43 02 02 00 00 00 00 00 FF 00")
    assert (46, [0xA0, 0xA1, 0xA2, 1]) == (full[1], [full[at + 3] for at in range(4, 48, 11)])
    assert full == good(unit, "43 02 00 00 00 00 00 00 FF 80")
    assert (5, 0x2400) == wrong(unit, "43 00 05 00 00 00 00 00 FF 00")
    assert (5, 0x2400) == wrong(unit, "43 00 00 00 00 00 02 00 FF 00")


@pytest.mark.parametrize(("size", "profile"), [(2048 * 600, 0x08), (2048 * 410_000, 0x10)])
def test_configuration(size, profile):
    """A large medium is a DVD; features are sorted and chosen as asked."""
    medium = FakeMedium(2048, read_only=True)
    medium.size = size
    unit = cdrom(medium)
    data = good(unit, "46 00 00 00 00 00 00 00 FF 00")
    assert (len(data) - 4, profile) == (int.from_bytes(data[:4], "big"), int.from_bytes(data[6:8], "big"))
    codes, rest = [], data[8:]
    while rest:
        codes.append(int.from_bytes(rest[:2], "big"))
        rest = rest[4 + rest[3] :]
    assert [0, 1, 2, 3, 0x10, 0x1E, 0x1F] == codes
    assert 0x10 == good(unit, "46 02 00 10 00 00 00 00 FF 00")[9]
    assert 8 == len(good(unit, "46 02 00 55 00 00 00 00 FF 00"))


def test_an_empty_drive():
    """It answers for itself, not for a medium."""
    unit = cdrom(None)
    for cdb in ("00" * 6, read10(0, 1), "25" + " 00" * 9, "43" + " 00" * 9):
        assert (2, 0x3A00) == wrong(unit, cdb)
    assert 0 == int.from_bytes(good(unit, "46 00 00 00 00 00 00 00 FF 00")[6:8], "big")
    assert 0x2A == good(unit, "1A 08 2A 00 FF 00")[4]
    unit.insert(iso())
    assert (6, 0x2800) == wrong(unit, "00" * 6)
    assert (6, 0x2800) == wrong(unit, "00" * 6, nexus=SUE)
    good(unit, read10(0, 1))


def test_the_tray():
    """Opened and closed by START STOP UNIT; who polls sees the events."""
    unit = cdrom(iso())
    poll = "4A 01 00 00 10 00 00 00 08 00"
    assert (0, 2) == tuple(good(unit, poll)[4:6])
    good(unit, "1B 00 00 00 02 00")
    assert ((2, 0x3A02), 0x10) == (wrong(unit, "00" * 6), good(unit, "BD" + " 00" * 8 + " 08 00 00")[1])
    assert [(3, 1), (0, 1)] == [tuple(good(unit, poll)[4:6]) for _ in range(2)]
    good(unit, "1B 00 00 00 03 00")
    assert (2, 2) == tuple(good(unit, poll)[4:6])
    good(unit, "1E 00 00 00 01 00")
    assert (5, 0x5302) == wrong(unit, "1B 00 00 00 02 00")
    assert 0x80 == good(unit, "4A 01 00 00 02 00 00 00 08 00")[2]
    assert (5, 0x2400) == wrong(unit, "4A 00 00 00 10 00 00 00 08 00")


def test_disc_and_track():
    """Complete, one session, one data track."""
    unit = cdrom(iso())
    assert (0, 32, 0x0E, 1, 1, 1, 1) == tuple(good(unit, "51 00 00 00 00 00 00 00 FF 00")[:7])
    track = good(unit, "52 01 00 00 00 01 00 00 FF 00")
    assert (1, 1, 4, 600) == (track[2], track[3], track[5], int.from_bytes(track[24:28], "big"))
    assert (5, 0x2400) == wrong(unit, "52 01 00 00 00 02 00 00 FF 00")


def test_the_state_keeps_the_tray():
    """An open one stays open."""
    unit, other = cdrom(iso()), cdrom(iso())
    good(unit, "1B 00 00 00 02 00")
    other.from_state(unit.state())
    assert (2, 0x3A02) == wrong(other, "00" * 6)
