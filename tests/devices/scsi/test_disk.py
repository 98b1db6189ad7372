"""A direct-access disk: what every command gives, and the exact sense data of what it cannot do."""

import errno
import struct

import pytest

from hvemu.devices.scsi.disk import LONGEST_TRANSFER, ScsiDisk
from hvemu.devices.scsi.primary import PRIMARY_OPERATIONS
from tests.devices.scsi.desk import (
    ANN,
    JOE,
    SUE,
    FakeMedium,
    disk,
    good,
    key_and_code,
    long,
    read10,
    send,
    write10,
    wrong,
)

BLOCKS = 2048
A, B = b"A" * 512, b"B" * 512
OUT_OF_RANGE, BAD_FIELD = (5, 0x2100), (5, 0x2400)


def test_inquiry_names_the_disk_and_its_standards():
    """SPC-4, SAM-5 and SBC-3; cut to the allocation length."""
    data = good(disk(), "12 00 00 00 FF 00")
    assert (0x00, 0x00, 0x06, 0x12, 69) == tuple(data[:5])
    assert (b"HVEMU   VIRTUAL DISK    1.0 ", 74) == (data[8:36], len(data))
    assert struct.pack(">3H", 0x00A0, 0x0460, 0x04C0) == data[58:64]
    assert data[:5] == good(disk(), "12 00 00 00 05 00")


def test_vital_product_data():
    """The list of pages names those that there are; others are refused."""
    unit = disk()
    pages = good(unit, "12 01 00 00 FF 00")
    assert bytes((0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2)) == pages
    for code in pages[4:]:
        page = good(unit, bytes((0x12, 1, code, 0, 255, 0)))
        assert (0, code, len(page) - 4) == (page[0], page[1], int.from_bytes(page[2:4], "big"))
    assert b"0123456789ABCDEF" == good(unit, "12 01 80 00 FF 00")[4:]
    identification = good(unit, "12 01 83 00 FF 00")[4:]
    assert (1, 3, 8, 3) == (identification[0], identification[1], identification[3], identification[4] >> 4)
    assert BAD_FIELD == wrong(unit, "12 01 B3 00 FF 00")
    assert BAD_FIELD == wrong(unit, "12 00 80 00 FF 00")


def test_two_disks_have_different_names_and_the_same_disk_always_the_same():
    """An initiator finds its disk again."""
    names = [good(ScsiDisk(FakeMedium(), serial=serial), "12 01 83 00 FF 00") for serial in ("1", "2", "1")]
    assert (names[0], True) == (names[2], names[0] != names[1])


def test_limits_of_page_b0_are_enforced():
    """One block more than MAXIMUM TRANSFER LENGTH is INVALID FIELD IN CDB at the length."""
    unit = disk(FakeMedium(32 << 20))
    page = good(unit, "12 01 B0 00 FF 00")
    longest = int.from_bytes(page[8:12], "big")
    assert LONGEST_TRANSFER == longest * 512
    assert longest * 512 == len(good(unit, read10(0, longest)))
    answer = send(unit, read10(0, longest + 1))
    assert (BAD_FIELD, b"\xc0\0\x07") == (key_and_code(answer.sense), answer.sense[15:18])
    assert BAD_FIELD == wrong(unit, long(0x93, 0, int.from_bytes(page[36:44], "big") + 1), A)


def test_capacity():
    """Of 10 and of 16 bytes; thin, and zeros where nothing is."""
    unit = disk(physical_block_size=4096)
    assert struct.pack(">II", BLOCKS - 1, 512) == good(unit, "25" + " 00" * 9)
    data = good(unit, long(0x9E, 0, 32, 0x10))
    assert (struct.pack(">QIBBB", BLOCKS - 1, 512, 0, 3, 0xC0), 32) == (data[:15], len(data))


@pytest.mark.parametrize("size", [512, 4096])
def test_what_is_written_is_read(size):
    """By every READ and WRITE; only there."""
    unit = disk(block_size=size)
    pairs = [
        ("0A 00 00 03 02 00", "08 00 00 03 02 00"),
        (write10(3, 2), read10(3, 2)),
        ("AA 00 00 00 00 03 00 00 00 02 00 00", "A8 00 00 00 00 03 00 00 00 02 00 00"),
        (long(0x8A, 3, 2), long(0x88, 3, 2)),
    ]
    for number, (writing, reading) in enumerate(pairs):
        data = bytes((number + 1,)) * 2 * size
        good(unit, writing, data)
        assert data == good(unit, reading)
    assert bytes(size) == good(unit, read10(2, 1)) == good(unit, read10(5, 1))


def test_a_length_of_zero_is_256_blocks_in_six_bytes_and_nothing_elsewhere():
    """SBC-3 5.7 and 5.8."""
    unit = disk()
    assert (256 * 512, b"") == (len(good(unit, "08 00 00 00 00 00")), good(unit, read10(0, 0)))


@pytest.mark.parametrize(
    "cdb",
    [
        "08 00 08 00 01 00",
        read10(BLOCKS - 1, 2),
        read10(BLOCKS, 0),
        "A8 00 00 00 08 00 00 00 00 01 00 00",
        long(0x88, (1 << 64) - 1, 1),
        long(0x8F, BLOCKS - 1, 2),
        long(0x90, BLOCKS, 1),
        long(0x91, BLOCKS, 1),
        long(0x93, BLOCKS, 1),
        long(0x9E, BLOCKS, 24, 0x12),
        "2B 00 00 00 08 00 00 00 00 00",
    ],
)
def test_beyond_the_end_nothing_is_read_or_written(cdb):
    """LOGICAL BLOCK ADDRESS OUT OF RANGE with the first address that is not there."""
    answer = send(disk(), cdb, A)
    assert OUT_OF_RANGE == key_and_code(answer.sense)
    if answer.sense[0] & 0x80:
        assert BLOCKS <= int.from_bytes(answer.sense[3:7], "big")


@pytest.mark.parametrize("cdb", [read10(0, 1, 0x20), write10(0, 1, 0xE0), long(0x8F, 0, 1, 0x20), "25 01" + " 00" * 8])
def test_bits_that_are_not_known_are_refused(cdb):
    """Protection information for one; the pointer names the bit."""
    answer = send(disk(), cdb, A)
    assert (BAD_FIELD, 0xC8, 1) == (key_and_code(answer.sense), answer.sense[15] & 0xF8, answer.sense[17])


def test_naca_is_refused():
    """No auto contingent allegiance here."""
    assert BAD_FIELD == wrong(disk(), "00 00 00 00 00 04")


def test_unknown_and_short_commands():
    """Nothing raises."""
    assert [(5, 0x2000), (5, 0x2000), BAD_FIELD] == [wrong(disk(), cdb) for cdb in (b"", b"\xff" * 16, b"\x28\0")]


def test_a_write_takes_the_whole_blocks_that_were_sent():
    """And says what it wanted, for residuals; a part of a block is refused."""
    unit = disk()
    answer = send(unit, write10(0, 2), A)
    assert (0, 1024, A + bytes(512)) == (answer.status, answer.data_out_length, good(unit, read10(0, 2)))
    assert (5, 0x0E03) == wrong(unit, write10(0, 1), b"x" * 200)
    good(unit, write10(4, 1), B * 2)
    assert B + bytes(512) == good(unit, read10(4, 2))


def test_a_write_is_flushed_when_the_cache_is_off_or_with_fua():
    """Else it is acknowledged before (WCE is set by default)."""
    medium = FakeMedium()
    unit = disk(medium)
    good(unit, write10(0, 1), A)
    assert medium.unflushed
    good(unit, write10(0, 1, 0x08), A)
    assert not medium.unflushed
    good(unit, "15 10 00 00 18 00", bytes(4) + b"\x08\x12" + bytes(18))
    for cdb, data in ((write10(0, 1), A), (long(0x93, 0, 9), A), ("42" + " 00" * 7 + " 18 00", unmap((0, 8)))):
        flushes = medium.flushes
        good(unit, cdb, data)
        assert (flushes + 1, False) == (medium.flushes, medium.unflushed)
    medium.unflushed = True
    good(unit, "35" + " 00" * 9)
    assert not medium.unflushed


def test_verify():
    """Against the medium, against data, and against one block for all."""
    unit = disk()
    good(unit, write10(0, 2), A + A)
    for ten, check in ((True, 0), (False, 0), (True, 2), (False, 2), (True, 6), (False, 6)):
        cdb = b"\x2f" + read10(0, 2, check)[1:] if ten else long(0x8F, 0, 2, check)
        data = {0: b"", 2: A + A, 6: A}[check]
        assert (0, len(data)) == (send(unit, cdb, data).status, send(unit, cdb, data).data_out_length)
        if data:
            assert (0xE, 0x1D00) == wrong(unit, cdb, data[:-1] + b"x")
    assert BAD_FIELD == wrong(unit, long(0x8F, 0, 1, 4), A)
    assert (5, 0x0E03) == wrong(unit, long(0x8F, 0, 2, 2), A)


def test_write_and_verify():
    """In all three lengths; flushed."""
    medium = FakeMedium()
    unit = disk(medium)
    for cdb in (b"\x2e" + write10(1, 1)[1:], "AE 00 00 00 00 01 00 00 00 01 00 00", long(0x8E, 1, 1, 2)):
        medium.data[:] = bytes(medium.size)
        good(unit, cdb, A)
        assert (A, False) == (bytes(medium.data[512:1024]), medium.unflushed)


def test_compare_and_write():
    """Writes if it finds what was said; else MISCOMPARE with the offset of the first wrong byte."""
    unit = disk()
    good(unit, write10(7, 1), A)
    cdb = b"\x89\0" + (7).to_bytes(8, "big") + bytes((0, 0, 0, 1, 0, 0))
    good(unit, cdb, A + B)
    assert B == good(unit, read10(7, 1))
    answer = send(unit, cdb, B[:100] + b"x" + B[101:] + A)
    assert ((0xE, 0x1D00), 0xF0, 100) == (
        key_and_code(answer.sense),
        answer.sense[0],
        int.from_bytes(answer.sense[3:7], "big"),
    )
    assert (B, 1024) == (good(unit, read10(7, 1)), answer.data_out_length)
    assert BAD_FIELD == wrong(unit, cdb, A * 3)


def test_orwrite():
    """The medium's bits or those sent."""
    unit = disk()
    good(unit, write10(0, 1), b"\x0f" * 512)
    good(unit, long(0x8B, 0, 1), b"\x30" * 512)
    assert b"\x3f" * 512 == good(unit, read10(0, 1))


def unmap(*ranges: tuple[int, int]) -> bytes:
    """The parameter list of UNMAP."""
    body = b"".join(struct.pack(">QII", address, count, 0) for address, count in ranges)
    return struct.pack(">HHI", len(body) + 6, len(body), 0) + body


def test_unmap_and_its_status():
    """What is unmapped reads as zeros, and GET LBA STATUS tells it."""
    unit = disk()
    good(unit, write10(0, 64), A * 64)
    data = unmap((8, 8), (32, 0))
    good(unit, bytes((0x42, 0, 0, 0, 0, 0, 0, 0, len(data), 0)), data)
    assert A + bytes(8 * 512) + A == good(unit, read10(7, 10))
    status = good(unit, long(0x9E, 4, 8 + 48, 0x12))
    found = [struct.unpack(">QIB", status[at : at + 13]) for at in range(8, len(status), 16)]
    assert [(4, 4, 0), (8, 8, 1), (16, 48, 0)] == found
    assert len(status) - 4 == int.from_bytes(status[:4], "big")


def test_unmap_checks_everything_first():
    """A bad descriptor at the end leaves the first ones undone; too many or too long is refused."""
    unit = disk()
    good(unit, write10(0, 1), A)
    for data, expected in (
        (unmap((0, 1), (BLOCKS, 1)), OUT_OF_RANGE),
        (unmap(*[(0, 1)] * 257), (5, 0x2600)),
        (unmap((0, 1))[:6], (5, 0x1A00)),
    ):
        cdb = b"\x42" + bytes(6) + len(data).to_bytes(2, "big") + b"\0"
        assert expected == wrong(unit, cdb, data)
    assert (5, 0x1A00) == wrong(unit, "42 00 00 00 00 00 00 00 18 00", bytes(8))
    assert A == good(unit, read10(0, 1))


def test_write_same():
    """Writes a block many times; with UNMAP zeros are given back to the host; 0 is up to the end."""
    medium = FakeMedium()
    unit = disk(medium)
    good(unit, b"\x41" + write10(0, 5000 % BLOCKS)[1:], A)
    assert A * 904 + bytes(512) == medium.data[: 905 * 512]
    good(unit, long(0x93, 1, 2, 0x08), bytes(512))
    assert (b"\1\0\0\1", A + bytes(1024) + A) == (medium.allocated[:4], medium.data[:2048])
    good(unit, long(0x93, 4, 2, 0x08), B)
    assert (b"\1\1", B + B) == (medium.allocated[4:6], medium.data[2048:3072])
    good(unit, long(0x93, 4, 1, 0x09))
    assert not medium.allocated[4]
    good(unit, long(0x93, BLOCKS - 3, 0), B)
    assert B * 3 == medium.data[-1536:]
    assert (
        [BAD_FIELD] * 3
        == [
            wrong(unit, long(0x93, 0, 1, 0x18), A),  # ANCHOR: nothing can be anchored
            wrong(unit, long(0x93, 0, 1), A[:-1]),
            wrong(unit, b"\x41" + write10(0, 1, 0x08)[1:], A),  # LBPWS10 is 0
        ]
    )


def test_format_and_defects():
    """Everything reads as zeros; there are no defects."""
    unit = disk()
    good(unit, write10(0, 1), A)
    good(unit, "04 00 00 00 00 00")
    assert bytes(512) == good(unit, read10(0, 1))
    assert (bytes((0, 0x1D, 0, 0)), 8) == (
        good(unit, "37 00 1D 00 00 00 00 00 FF 00"),
        len(good(unit, "B7 1D 00 00 00 00 00 00 00 FF 00 00")),
    )


def test_a_read_only_medium_is_write_protected():
    """Every command of the table that changes the medium, before its fields are looked at."""
    unit = disk(FakeMedium(read_only=True))
    rows = [row for row in ScsiDisk.operations.rows if row.modifies]
    assert 13 == len(rows)
    for row in rows:
        cdb = bytearray(len(row.usage))
        cdb[0], cdb[1] = row.opcode, row.service_action or 0
        assert (7, 0x2700) == wrong(unit, bytes(cdb), A), row.name
    assert 0x80 == good(unit, "1A 08 0A 00 FF 00")[2] & 0x80
    good(unit, "35" + " 00" * 9)


def test_errors_of_the_host_are_medium_errors():
    """With the address of the first block; no space left is DATA PROTECT."""
    medium = FakeMedium()
    unit = disk(medium)
    medium.error = errno.EIO
    answer = send(unit, read10(5, 1))
    assert ((3, 0x1100), 5) == (key_and_code(answer.sense), int.from_bytes(answer.sense[3:7], "big"))
    assert [(3, 0x0C00)] * 2 == [wrong(unit, write10(5, 1), A), wrong(unit, "35" + " 00" * 9)]
    medium.error = errno.ENOSPC
    assert (7, 0x2707) == wrong(unit, write10(5, 1), A)
    medium.error = None
    good(unit, write10(5, 1), A)


def test_start_and_stop():
    """A stopped disk is not ready until it is started or reset."""
    unit = disk()
    good(unit, "1B 00 00 00 00 00")
    assert [(2, 0x0402)] * 2 == [wrong(unit, "00" * 6), wrong(unit, read10(0, 1))]
    good(unit, "1B 00 00 00 01 00")
    good(unit, "00" * 6)
    good(unit, "1B 00 00 00 00 00")
    unit.reset("logical unit")
    assert (6, 0x2903) == wrong(unit, "00" * 6)
    good(unit, "00" * 6)
    assert BAD_FIELD == wrong(unit, "1B 00 00 00 21 00")


def test_a_removable_disk_can_be_ejected_unless_somebody_prevents_it():
    """Until who did has allowed it again, or gone."""
    unit = disk(removable=True)
    eject, load, prevent = "1B 00 00 00 02 00", "1B 00 00 00 03 00", "1E 00 00 00 01 00"
    good(unit, prevent, nexus=SUE)
    assert (5, 0x5302) == wrong(unit, eject)
    unit.nexus_lost(SUE)
    good(unit, eject)
    assert [(2, 0x3A02)] * 3 == [wrong(unit, cdb, A) for cdb in ("00" * 6, read10(0, 1), write10(0, 1))]
    good(unit, load)
    good(unit, "00" * 6)
    assert [(6, 0x2800), (6, 0x2900)] == [wrong(unit, "00" * 6, nexus=nexus) for nexus in (ANN, SUE)]


def test_unit_attentions_belong_to_a_nexus_and_are_told_once():
    """INQUIRY, REPORT LUNS and REQUEST SENSE come before; REQUEST SENSE takes one away."""
    unit = ScsiDisk(FakeMedium(), serial="1")
    good(unit, "12 00 00 00 24 00", nexus=JOE)
    good(unit, "A0" + " 00" * 8 + " FF 00 00", nexus=JOE)
    assert (6, 0x2900) == wrong(unit, read10(0, 1), nexus=JOE)
    good(unit, read10(0, 1), nexus=JOE)
    assert (6, 0x2900) == key_and_code(good(unit, "03 00 00 00 FF 00", nexus=SUE))
    assert (0, 0x0000) == key_and_code(good(unit, "03 00 00 00 FF 00", nexus=SUE))
    for what, code in (("bus", 0x2902), ("logical unit", 0x2903), ("power on", 0x2900)):
        unit.reset(what)
        assert [(6, code)] * 2 == [wrong(unit, "00" * 6, nexus=nexus) for nexus in (JOE, SUE)]


def test_a_medium_that_grows_is_told_to_everybody():
    """CAPACITY DATA HAS CHANGED, once."""
    medium = FakeMedium()
    unit = disk(medium)
    unit.capacity_changed()
    good(unit, "00" * 6)
    medium.size //= 2
    unit.capacity_changed()
    assert [(6, 0x2A09)] * 2 == [wrong(unit, "00" * 6, nexus=nexus) for nexus in (JOE, SUE)]
    assert OUT_OF_RANGE == wrong(unit, read10(BLOCKS // 2, 1))


def test_the_memory_of_nexuses_is_bounded():
    """Who was silent longest is told of power on again."""
    unit = disk()
    for number in range(1000):
        send(unit, "00" * 6, nexus=f"host-{number + 10}")
    assert len(unit.state().fields["attentions"]) <= 256
    assert (6, 0x2900) == wrong(unit, "00" * 6, nexus=SUE)


def test_sense_data_comes_in_both_formats():
    """REQUEST SENSE by its DESC bit, autosense by D_SENSE of the control page."""
    unit = disk()
    assert (0x70, 18, 0x72, 8) == (
        (fixed := good(unit, "03 00 00 00 FF 00"))[0],
        len(fixed),
        (descriptor := good(unit, "03 01 00 00 FF 00"))[0],
        len(descriptor),
    )
    good(unit, "15 10 00 00 10 00", bytes(4) + bytes.fromhex("0A 0A 06 10 00 00 00 00 FF FF 00 00"))
    sense = send(unit, long(0x88, 1 << 40, 1)).sense
    assert (0x72, OUT_OF_RANGE, 12) == (sense[0], key_and_code(sense), sense[7])
    assert (bytes((0, 10, 0x80, 0)), 1 << 40) == (sense[8:12], int.from_bytes(sense[12:20], "big"))
    sense = send(unit, read10(0, 1, 0x20)).sense
    assert bytes((2, 6, 0, 0, 0xCD, 0, 1, 0)) == sense[8:]


def test_supported_operation_codes_are_the_table():
    """All of them, and one by one with their usage; service actions where they belong."""
    unit = disk()
    listed = good(unit, "A3 0C 00 00 00 00 00 00 FF FF 00 00")
    assert len(ScsiDisk.operations.rows) * 8 == len(listed) - 4 == int.from_bytes(listed[:4], "big")
    for row in ScsiDisk.operations.rows:
        option, action = (1, 0) if row.service_action is None else (2, row.service_action)
        cdb = bytes((0xA3, 0x0C, option, row.opcode, 0, action, 0, 0, 0, 255, 0, 0))
        data = good(unit, cdb)
        assert (0, 3, len(row.usage), row.opcode) == (data[0], data[1], data[3], data[4])
        assert data == good(unit, cdb[:2] + b"\3" + cdb[3:])
        wrong_option = bytes((0xA3, 0x0C, 3 - option, row.opcode, 0, action, 0, 0, 0, 255, 0, 0))
        assert BAD_FIELD == wrong(unit, wrong_option)
    assert 1 == good(unit, "A3 0C 01 FE 00 00 00 00 00 FF 00 00")[1]
    with_timeouts = good(unit, "A3 0C 81 12 00 00 00 00 00 FF 00 00")
    assert (0x83, 4 + 6 + 12) == (with_timeouts[1], len(with_timeouts))
    assert (b"\xd8\0\0\0", 16) == (
        good(unit, "A3 0D 00 00 00 00 00 00 00 04 00 00"),
        len(good(unit, "A3 0D 80 00 00 00 00 00 00 FF 00 00")),
    )


def test_every_operation_of_the_table_is_carried_out():
    """With zeros in its fields none is unknown, and the answer says so."""
    unit = disk()
    assert len(PRIMARY_OPERATIONS) < len(ScsiDisk.operations.rows)
    for row in ScsiDisk.operations.rows:
        cdb = bytearray(len(row.usage))
        cdb[0], cdb[1] = row.opcode, row.service_action or 0
        answer = send(unit, bytes(cdb), bytes(512))
        assert answer.status in (0, 2, 0x18), row.name
        assert answer.status != 2 or key_and_code(answer.sense) != (5, 0x2000), row.name


def test_a_disk_is_made_of_whole_blocks():
    """Nonsense is refused when it is built."""
    for size, block in ((0, 512), (1 << 20, 500), (512, 4096)):
        with pytest.raises(ValueError, match="block"):
            ScsiDisk(FakeMedium(size), serial="1", block_size=block)
