"""An ATAPI CD-ROM drive through the registers of its channel: packets, byte counts, sense data, resets."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.ata_device import SERVICE_TIME
from hvemu.devices.atapi import AtapiCdrom
from hvemu.devices.contract import DeviceState

from .ide_desk import (
    BSY,
    COMMAND,
    COUNT,
    DRQ,
    ERROR,
    FEATURES,
    HIGH,
    LOW,
    MID,
    SECTOR,
    STATUS,
    Desk,
    pattern,
)
from .scsi.desk import FakeMedium, cdrom, good

READY, FAILED = 0x50, 0x51
ABRT = 0x04
ILLEGAL, ATTENTION, NOT_READY, MEDIUM_ERROR = 0x50 | ABRT, 0x60, 0x20, 0x30
TEST_UNIT_READY, REQUEST_SENSE, READ_CAPACITY = "00", "03 00 00 00 12", "25"


@pytest.fixture
def desk() -> Desk:
    """The drive is selected and has told of power on."""
    desk = Desk()
    desk.select(1)
    assert (ATTENTION, b"") == desk.packet(TEST_UNIT_READY)
    assert (0, b"") == desk.packet(TEST_UNIT_READY)
    return desk


def read10(address: int, count: int) -> str:
    return f"28 00 {address:08x} 00 {count:04x} 00"


def blocks(address: int, count: int) -> bytes:
    return pattern(128 * 2048, 1 << 24)[address * 2048 : (address + count) * 2048]


def sense(desk: Desk) -> tuple[int, int]:
    error, data = desk.packet(REQUEST_SENSE)
    assert (0, 18) == (error, len(data))
    return data[2], int.from_bytes(data[12:14], "big")


def test_identify_packet_device_tells_of_a_cdrom_with_packets_of_12_bytes(desk: Desk) -> None:
    """PIO modes 3 and 4, no DMA, DEVICE RESET and PACKET among the command sets, a checksum."""
    desk.out(COMMAND, 0xA1)
    words = struct.unpack("<256H", desk.take_blocks(SECTOR))
    assert (0x85C0, 0x0E00, 3, 0, 0) == (words[0], words[49], words[64], words[63], words[88])
    assert 0x4218 == words[82]
    assert "HVEMU CD-ROM" == struct.pack(">20H", *words[27:47]).decode().rstrip()
    assert 0 == sum(struct.pack("<256H", *words)) & 0xFF
    assert READY == desk.inp(STATUS)


@pytest.mark.parametrize("opcode", [0xEC, 0x20, 0x21])
def test_commands_for_disks_are_aborted_with_the_signature(desk: Desk, opcode: int) -> None:
    """By which a driver knows what it has found."""
    desk.out(MID, 0)
    assert (FAILED, ABRT) == (desk.command(opcode), desk.inp(ERROR))
    assert [1, 1, 0x14, 0xEB] == [desk.inp(register) for register in (COUNT, LOW, MID, HIGH)]


def test_other_commands_are_aborted_and_packet_with_dma_too(desk: Desk) -> None:
    """Power commands and PIO modes are known."""
    for opcode in (0x00, 0x24, 0x30, 0xC6, 0xE7, 0xC8, 0xB0):
        assert (FAILED, ABRT) == (desk.command(opcode), desk.inp(ERROR)), hex(opcode)
    assert (FAILED, ABRT) == (desk.command(0xA0, features=1), desk.inp(ERROR))
    assert READY == desk.command(0xEF, features=3, count=0x0C)
    assert FAILED == desk.command(0xEF, features=3, count=0x22)
    assert READY == desk.command(0xE0)
    assert READY == desk.command(0xE5)
    assert 0 == desk.inp(COUNT)


def test_inquiry_comes_in_one_block_and_ends_with_an_interrupt_of_its_own(desk: Desk) -> None:
    """The packet is wanted without interrupt; the data and the end have one each."""
    edges = len(desk.irq.edges)
    error, data = desk.packet("12 00 00 00 24")
    assert (0, 36, 5, b"HVEMU   ") == (error, len(data), data[0], data[8:16])
    assert edges + 2 == len(desk.irq.edges)


def test_an_odd_length_is_told_as_it_is(desk: Desk) -> None:
    """The host reads one byte too many, and the command ends all the same."""
    assert (0, 5) == tuple(part if isinstance(part, int) else len(part) for part in desk.packet("12 00 00 00 05"))


@pytest.mark.parametrize("limit", [2048, 0xFFFE, 0xFFFF, 1000, 1001, 63 * 1024, 2, 3])
def test_a_read_comes_in_pieces_of_at_most_the_byte_count_limit(desk: Desk, limit: int) -> None:
    """Two blocks of the disc, whatever the pieces are."""
    assert (0, blocks(126, 2)) == desk.packet(read10(126, 2), limit=limit)


@pytest.mark.parametrize("cdb", [read10(3, 100), "A8 00 00000003 00000064 00 00"])
def test_a_long_read_takes_a_few_blocks_at_a_time(desk: Desk, cdb: str) -> None:
    """READ (10) and READ (12); the buffer never has more than 32 KiB."""
    lengths: list[int] = []
    read = desk.disc.read
    desk.disc.read = lambda offset, length: lengths.append(length) or read(offset, length)  # type: ignore[method-assign,func-returns-value]
    assert (0, blocks(3, 100)) == desk.packet(cdb)
    assert [16 * 2048] * 6 + [4 * 2048] == lengths


def test_a_long_read_that_fails_gives_what_came_before(desk: Desk) -> None:
    """A medium error in the third piece, and the end of the disc in the last one."""
    desk.out(MID, 0xFE)
    assert (ILLEGAL, blocks(100, 16)) == desk.packet(read10(100, 40))
    assert (5, 0x2100) == sense(desk)
    assert (ILLEGAL, b"") == desk.packet(read10(128, 1))
    desk.disc.error = errno.EIO
    assert (MEDIUM_ERROR, b"") == desk.packet(read10(0, 20))
    assert (3, 0x1100) == sense(desk)


def test_a_limit_of_0_aborts_what_has_data(desk: Desk) -> None:
    """And nothing else."""
    assert (0, b"") == desk.packet(TEST_UNIT_READY, limit=0)
    assert (ABRT, b"") == desk.packet(READ_CAPACITY, limit=0)
    assert (0, struct.pack(">II", 127, 2048)) == desk.packet(READ_CAPACITY, limit=8)


def test_sense_data_wait_for_request_sense_and_are_given_once(desk: Desk) -> None:
    """The next command forgets them otherwise."""
    assert (ILLEGAL, b"") == desk.packet("FF")
    assert (5, 0x2000) == sense(desk)
    assert (0, 0) == sense(desk)
    assert (ILLEGAL, b"") == desk.packet("FF")
    assert (0, b"") == desk.packet(TEST_UNIT_READY)
    assert (0, 0) == sense(desk)
    assert (ILLEGAL, b"") == desk.packet("FF")
    assert (0, bytes.fromhex("7000 05")) == desk.packet("03 00 00 00 03")


def test_mode_select_takes_its_parameters_in_pieces(desk: Desk) -> None:
    """The control page's descriptor-format bit, which REQUEST SENSE then follows."""
    page = bytes(8) + bytes.fromhex("0A 0A 06 10 00000000FFFF0000")
    assert (0, b"") == desk.packet("55 10 00 00 00 00 00 00 14 00", limit=6, data=page)
    assert (ILLEGAL, b"") == desk.packet("FF")
    error, data = desk.packet(REQUEST_SENSE)
    assert (0, 0x72, 5) == (error, data[0], data[1])


def test_bad_parameters_are_refused_after_they_were_sent(desk: Desk) -> None:
    """INVALID FIELD IN PARAMETER LIST."""
    assert (ILLEGAL, b"") == desk.packet("55 10 00 00 00 00 00 00 14 00", data=bytes(8) + b"\x3f" * 12)
    assert 5 == sense(desk)[0]


def test_the_guest_opens_and_closes_the_tray(desk: Desk) -> None:
    """START STOP UNIT; reading without a medium is NOT READY; a prevented removal is refused."""
    assert (0, b"") == desk.packet("1E 00 00 00 01")
    assert (ILLEGAL, b"") == desk.packet("1B 00 00 00 02")
    assert (0, b"") == desk.packet("1E 00 00 00 00")
    assert (0, b"") == desk.packet("1B 00 00 00 02")
    assert (NOT_READY, b"") == desk.packet(read10(0, 1))
    assert (2, 0x3A02) == sense(desk)
    assert (NOT_READY, b"") == desk.packet(read10(0, 100))
    assert (0, b"") == desk.packet("1B 00 00 00 03")
    assert (0, blocks(0, 1)) == desk.packet(read10(0, 1))


def test_a_changed_disc_is_a_unit_attention_even_within_a_read(desk: Desk) -> None:
    """What comes from two discs is never one answer."""
    desk.out(FEATURES, 0)
    desk.out(MID, 0)
    desk.out(HIGH, 0x80)
    desk.out(COMMAND, 0xA0)
    desk.give(bytes.fromhex(read10(0, 32)).ljust(12, b"\0"))
    assert desk.wait() & DRQ
    desk.cdrom.insert(FakeMedium(64 * 2048, read_only=True))
    assert blocks(0, 16) == desk.take(16 * 2048)
    assert (FAILED, ATTENTION, 3) == (desk.wait(), desk.inp(ERROR), desk.inp(COUNT))
    assert (6, 0x2800) == sense(desk)
    assert (0, bytes(2048)) == desk.packet(read10(0, 1))


def test_device_reset_is_heard_while_busy_and_in_the_middle_of_data(desk: Desk) -> None:
    """The signature, no DRDY, no interrupt; modes stay."""
    for step in range(2):
        desk.out(MID, 0)
        desk.out(HIGH, 8)
        desk.out(COMMAND, 0xA0)
        desk.give(bytes.fromhex(read10(0, 2)).ljust(12, b"\0"))
        if step:
            assert desk.wait() & DRQ
            desk.take(10)
        else:
            assert BSY == desk.alternate
        edges = len(desk.irq.edges)
        desk.out(COMMAND, 0x08)
        assert (0, 1, 0x14, 0xEB) == (desk.inp(STATUS), desk.inp(ERROR), desk.inp(MID), desk.inp(HIGH))
        assert (0, edges) == (desk.wait(), len(desk.irq.edges))
        assert (0, blocks(5, 1)) == desk.packet(read10(5, 1))


def test_a_sleeping_drive_wakes_up_by_device_reset(desk: Desk) -> None:
    """Nothing else is heard."""
    desk.command(0xE6)
    desk.out(COMMAND, 0xA0)
    assert READY == desk.inp(STATUS)
    desk.out(COMMAND, 0x08)
    assert (0, b"") == desk.packet(TEST_UNIT_READY)


def test_an_empty_drive_says_so() -> None:
    """NOT READY after the unit attention."""
    desk = Desk()
    desk.cdrom.insert(None)
    desk.select(1)
    assert (ATTENTION, b"") == desk.packet(TEST_UNIT_READY)
    assert (NOT_READY, b"") == desk.packet(TEST_UNIT_READY)
    assert (2, 0x3A00) == sense(desk)


def test_a_read_goes_on_after_saving_and_restoring_at_every_step(desk: Desk) -> None:
    """Within the packet, within a block, between blocks and between pieces; with the drive's own state."""
    desk.packet("1E 00 00 00 01")
    desk.out(MID, 0)
    desk.out(HIGH, 0x20)
    desk.out(COMMAND, 0xA0)
    packet = bytes.fromhex(read10(7, 40)).ljust(12, b"\0")
    desk.give(packet[:6])
    desk = desk.copy()
    desk.give(packet[6:])
    found = b""
    while True:
        desk = desk.copy()
        desk.clock.advance(SERVICE_TIME)
        desk = desk.copy()
        assert desk.irq.level
        if not desk.inp(STATUS) & DRQ:
            break
        length = desk.inp(MID) | desk.inp(HIGH) << 8
        assert length <= 0x2000
        found += desk.take(500)
        desk = desk.copy()
        found += desk.take(length - 500)
    assert blocks(7, 40) == found
    assert desk.cdrom.prevented


def test_a_hostile_state_ends_in_an_error_and_not_in_an_exception(desk: Desk) -> None:
    """More blocks to read of a packet that reads none."""
    state = desk.channel.command.state()
    for step in range(8):
        drive = {**state.fields["drives"][1], "blocks_left": 9, "packet": "55" * 12, "step": step, "status": BSY}
        drive["due"] = desk.clock.now() + 1
        fields = {**state.fields, "drives": [state.fields["drives"][0], drive]}
        desk.channel.command.from_state(DeviceState(state.device, state.version, fields))
        desk.clock.advance(10)
        assert not desk.alternate & BSY or desk.clock.pending()
        desk.channel.command.reset()


def test_a_state_with_one_bad_drive_leaves_the_other_alone() -> None:
    """Nothing is adopted when not everything is."""
    desk = Desk()
    desk = Desk([AtapiCdrom(desk.cdrom), None])
    desk.packet(TEST_UNIT_READY)
    before = desk.channel.command.state()
    desk.packet("1B 00 00 00 02")
    opened = desk.channel.command.state()
    desk.channel.command.from_state(before)
    bad = {**opened.fields, "drives": [opened.fields["drives"][0], {}]}
    with pytest.raises(ValueError, match="where there is none"):
        desk.channel.command.from_state(DeviceState(opened.device, opened.version, bad))
    assert before == desk.channel.command.state()


CDBS = st.one_of(
    st.integers(0, 140).flatmap(lambda start: st.integers(0, 40).map(lambda count: read10(start, count))),
    st.one_of(st.integers(0, 40), st.integers(125, 140)).map(lambda count: f"A8 00 00000000 {count:08x} 00 00"),
    st.sampled_from(
        (
            "12 00 00 00 60",
            "25",
            "43 00 00 00 00 00 00 00 40",
            "46 00 00 00 00 00 00 01 00",
            "5A 00 3F 00 00 00 00 01 00",
        )
    ),
    st.sampled_from(("4A 01 00 00 10 00 00 00 08", "03 00 00 00 12", "51 00 00 00 00 00 00 00 22", "FF", "00")),
)


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(CDBS, st.sampled_from((254, 2048, 4095, 0x8000, 0xFFFE)))
def test_a_packet_gives_what_the_scsi_drive_gives(cdb: str, limit: int) -> None:
    """For every byte count limit; of a READ that fails, what was before the error."""
    desk = Desk()
    desk.select(1)
    desk.packet(TEST_UNIT_READY)
    desk.packet(TEST_UNIT_READY)
    twin = cdrom(desk.disc)
    error, data = desk.packet(cdb, limit=limit)
    if error:
        assert ILLEGAL == error
        assert len(data) % (16 * 2048) == 0
    else:
        assert good(twin, bytes.fromhex(cdb).ljust(12, b"\0")) == data
