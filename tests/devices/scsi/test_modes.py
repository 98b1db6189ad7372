"""Mode pages: what there is, what can be changed, and what is refused."""

import pytest

from tests.devices.scsi.desk import JOE, SUE, FakeMedium, disk, good, write10, wrong

A = b"A" * 512


def page(unit, code, control=0):
    """A page of MODE SENSE (6) without header and block descriptor."""
    return good(unit, bytes((0x1A, 8, control << 6 | code, 0, 255, 0)))[4:]


def select(unit, data, nexus=JOE):
    """MODE SELECT (6) of pages behind a header."""
    return good(unit, bytes((0x15, 0x10, 0, 0, len(data) + 4, 0)), bytes(4) + data, nexus)


def select_wrong(unit, data):
    """The same, refused."""
    return wrong(unit, bytes((0x15, 0x10, 0, 0, len(data), 0)), data)


def test_all_pages_in_both_forms():
    """With a short, a long or no block descriptor."""
    unit = disk()
    six, ten = good(unit, "1A 00 3F 00 FF 00"), good(unit, "5A 00 3F 00 00 00 00 00 FF 00")
    assert (len(six) - 1, 8, len(ten) - 2, 8) == (six[0], six[3], int.from_bytes(ten[:2], "big"), ten[7])
    assert six[4:] == ten[8:]
    assert bytes.fromhex("00000800 00000200") == six[4:12]
    codes, rest = [], six[12:]
    while rest:
        codes.append(rest[0])
        rest = rest[2 + rest[1] :]
    assert [0x01, 0x08, 0x0A, 0x1C] == codes
    longer = good(unit, "5A 10 3F 00 00 00 00 00 FF 00")
    assert (1, 16, (2048).to_bytes(8, "big")) == (longer[4], longer[7], longer[8:16])
    assert six[:7] == good(unit, "1A 00 3F 00 07 00")


def test_current_changeable_and_default_values():
    """Saved ones there are none."""
    unit = disk()
    select(unit, b"\x08\x12" + bytes(18))
    assert (0, 4, 4) == (page(unit, 8)[2], page(unit, 8, 1)[2], page(unit, 8, 2)[2])
    assert [(5, 0x3900), (5, 0x2400), (5, 0x2400)] == [
        wrong(unit, cdb) for cdb in ("1A 08 C8 00 FF 00", "1A 08 07 00 FF 00", "1A 08 08 01 FF 00")
    ]


def test_software_write_protection():
    """SWP of the control page."""
    unit = disk()
    control = bytearray(page(unit, 0x0A))
    control[4] |= 8
    select(unit, bytes(control))
    assert ((7, 0x2702), 0x80) == (wrong(unit, write10(0, 1), A), good(unit, "1A 08 0A 00 FF 00")[2] & 0x80)
    control[4] &= ~8
    select(unit, bytes(control))
    good(unit, write10(0, 1), A)


def test_a_change_is_told_to_the_others():
    """MODE PARAMETERS CHANGED; selecting what is there is no change."""
    unit = disk()
    select(unit, page(unit, 8))
    good(unit, "00" * 6, nexus=SUE)
    select(unit, b"\x08\x12" + bytes(18))
    assert (6, 0x2A01) == wrong(unit, "00" * 6, nexus=SUE)
    good(unit, "00" * 6)
    unit.reset("bus")
    wrong(unit, "00" * 6)
    assert 4 == page(unit, 8)[2]


def test_turning_the_cache_off_flushes_it():
    """What was acknowledged from it is safe then."""
    medium = FakeMedium()
    unit = disk(medium)
    good(unit, write10(0, 1), A)
    assert medium.unflushed
    select(unit, b"\x08\x12" + bytes(18))
    assert not medium.unflushed


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(3), 0x1A00),
        (bytes(4) + b"\x08", 0x1A00),
        (bytes(4) + b"\x08\x12" + bytes(5), 0x1A00),
        (bytes(4) + b"\x08\x11" + bytes(17), 0x2600),
        (bytes(4) + b"\x08\x12\xff" + bytes(17), 0x2600),
        (bytes(4) + b"\x07\x0a" + bytes(10), 0x2600),
        (b"\0\0\0\x08", 0x1A00),
        (b"\0\0\0\x07" + bytes(7), 0x2600),
        (b"\0\0\0\x08" + bytes(6) + b"\x04\0", 0x2600),
        (b"\0\0\0\x08" + b"\0\0\0\1\0\0\2\0", 0x2600),
        (bytes(4) + b"\x0a\x0a\x06\x10\0\0\0\0\xff\xff\0\0" + b"\x07\x0a" + bytes(10), 0x2600),
    ],
)
def test_a_bad_parameter_list_changes_nothing(data, code):
    """Not even the pages before the bad one."""
    unit = disk()
    before = good(unit, "1A 00 3F 00 FF 00")
    assert (5, code) == select_wrong(unit, data)
    assert before == good(unit, "1A 00 3F 00 FF 00")


def test_lists_that_are_fine():
    """Empty; with the block descriptor as it was sent; of ten bytes and long."""
    unit = disk()
    good(unit, "15 10 00 00 00 00")
    good(unit, bytes((0x15, 0x10, 0, 0, 12, 0)), good(unit, "1A 00 3F 00 0C 00")[:3] + b"\x08" + bytes(8))
    data = bytearray(good(unit, "5A 10 08 00 00 00 00 00 FF 00"))
    data[:2] = bytes(2)
    good(unit, bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data), 0)), bytes(data))


def test_pages_cannot_be_saved():
    """SP is a bit that is not known."""
    assert (5, 0x2400) == wrong(disk(), "15 11 00 00 00 00")
