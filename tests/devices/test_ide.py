"""An IDE channel through its registers: selection, resets, interrupts, and the commands of a disk."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.ata_device import SERVICE_TIME
from hvemu.devices.ata_disk import AtaDisk
from hvemu.devices.contract import DeviceState
from hvemu.devices.ide import IdeChannel
from hvemu.devices.pci_chipset import IdeFunction

from .fakes import FakeClock, FakeIrqLine
from .ide_desk import (
    BSY,
    COMMAND,
    COUNT,
    DATA,
    DEVICE,
    DRQ,
    ERROR,
    HIGH,
    HOB,
    LBA,
    LOW,
    MID,
    NIEN,
    SECTOR,
    SRST,
    STATUS,
    Desk,
    pattern,
)
from .scsi.desk import FakeMedium

READY, FAILED = 0x50, 0x51
ABRT, IDNF, UNC = 0x04, 0x10, 0x40
STEADY = settings(derandomize=True, database=None, deadline=None)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def one_disk(size: int = 1 << 20) -> Desk:
    medium = FakeMedium(size)
    desk = Desk([AtaDisk(medium, serial="HV0001"), None])
    desk.medium = medium
    return desk


def identify(desk: Desk) -> tuple[int, ...]:
    desk.out(COMMAND, 0xEC)
    return struct.unpack("<256H", desk.take_blocks(SECTOR))


def text(words: tuple[int, ...]) -> str:
    return struct.pack(f">{len(words)}H", *words).decode().rstrip()


# The cable


def test_a_disk_and_a_drive_show_their_signatures_after_power_on(desk: Desk) -> None:
    """Sector count and LBA registers say which kind each is; the diagnostic has passed."""
    assert [1, 1, 1, 0, 0] == [desk.inp(register) for register in range(1, 6)]
    assert READY == desk.inp(STATUS)
    desk.select(1)
    assert [1, 1, 1, 0x14, 0xEB] == [desk.inp(register) for register in range(1, 6)]
    assert 0 == desk.inp(STATUS)


def test_an_absent_slave_reads_zero_and_hears_no_command() -> None:
    """What a driver writes there cannot be read back, and its status is 0."""
    desk = one_disk()
    desk.select(1)
    desk.out(COUNT, 0x55)
    desk.out(LOW, 0xAA)
    assert [0] * 8 == [desk.inp(register) for register in range(8)]
    desk.out(COMMAND, 0xEC)
    desk.clock.advance(SERVICE_TIME)
    assert (0, 0, []) == (desk.inp(STATUS), desk.alternate, desk.irq.edges)
    desk.select(0)
    assert READY == desk.inp(STATUS)


def test_a_cable_without_drives_floats() -> None:
    """Every register is FFh, in every width."""
    desk = Desk([None, None])
    desk.out(COMMAND, 0xEC)
    assert [0xFF] * 8 == [desk.inp(register) for register in range(8)]
    assert (0xFFFF, 0xFFFFFFFF, 0xFF) == (
        desk.channel.command.read(0, 2),
        desk.channel.command.read(0, 4),
        desk.alternate,
    )


def test_a_present_drive_keeps_what_a_probe_writes(desk: Desk) -> None:
    """The pattern test of every driver; both drives take what is written."""
    for device in (0, 1):
        desk.select(device)
        for first, second in ((0x55, 0xAA), (0xAA, 0x55)):
            desk.out(COUNT, first)
            desk.out(LOW, second)
            assert (first, second, 0xA0 | device << 4) == (desk.inp(COUNT), desk.inp(LOW), desk.inp(DEVICE))


def test_a_wide_access_to_the_other_registers_is_several_narrow_ones(desk: Desk) -> None:
    """A 16-bit OUT at the sector count reaches LBA low as well."""
    desk.channel.command.write(COUNT, 2, 0x1234)
    assert (0x34, 0x12, 0x1234) == (desk.inp(COUNT), desk.inp(LOW), desk.channel.command.read(COUNT, 2))


def test_the_high_order_bytes_are_read_with_hob_until_a_register_is_written(desk: Desk) -> None:
    """Device control bit 7."""
    desk.out(MID, 0x12)
    desk.out(MID, 0x34)
    desk.control(HOB)
    assert 0x12 == desk.inp(MID)
    desk.out(COUNT, 0)
    assert 0x34 == desk.inp(MID)


def test_a_software_reset_ends_what_goes_on_and_brings_the_signatures_back(desk: Desk) -> None:
    """Busy while SRST is set and for a while after; device 0 is selected; nothing interrupts."""
    desk.lba28(0x20, 3, 2)
    desk.clock.advance(SERVICE_TIME)
    desk.select(1)
    desk.control(SRST)
    assert (BSY, BSY) == (desk.alternate, desk.inp(STATUS))
    desk.out(COMMAND, 0x08)  # not even DEVICE RESET is heard
    assert BSY == desk.inp(STATUS)
    desk.control(0)
    assert BSY == desk.inp(STATUS)
    edges = len(desk.irq.edges)
    assert READY == desk.wait()
    assert [1, 1, 1, 0, 0, 0] == [desk.inp(register) for register in range(1, 7)]
    desk.select(1)
    assert (0, 0x14, 0xEB) == (desk.inp(STATUS), desk.inp(MID), desk.inp(HIGH))
    assert (edges, False) == (len(desk.irq.edges), desk.irq.level)


def test_the_diagnostic_reaches_both_drives_and_device_0_answers(desk: Desk) -> None:
    """One interrupt, whichever was selected; the other drive has none waiting."""
    desk.select(1)
    desk.out(COMMAND, 0x90)
    assert BSY == desk.alternate
    desk.clock.advance(SERVICE_TIME)
    assert (True, 1, 1) == (desk.irq.level, desk.inp(ERROR), len(desk.irq.edges))
    assert READY == desk.inp(STATUS)
    desk.select(1)
    assert (False, 0x14) == (desk.irq.level, desk.inp(MID))


# Interrupts


def test_the_status_register_acknowledges_and_the_alternate_status_does_not(desk: Desk) -> None:
    """A command interrupts when the busy time is over, not before."""
    desk.out(COMMAND, 0xE7)
    desk.clock.advance(SERVICE_TIME - 1)
    assert (BSY, False) == (desk.alternate, desk.irq.level)
    desk.clock.advance(1)
    assert (READY, True, True) == (desk.alternate, desk.irq.level, desk.irq.level)
    assert READY == desk.inp(STATUS)
    assert not desk.irq.level


def test_nien_hides_an_interrupt_that_still_waits(desk: Desk) -> None:
    """Clearing it shows the interrupt, unless the status was read meanwhile."""
    desk.control(NIEN)
    desk.out(COMMAND, 0xE7)
    desk.clock.advance(SERVICE_TIME)
    assert not desk.irq.level
    desk.control(0)
    assert desk.irq.level
    desk.control(NIEN)
    desk.inp(STATUS)
    desk.control(0)
    assert not desk.irq.level


def test_only_the_selected_drive_interrupts(desk: Desk) -> None:
    """The other one's interrupt waits until it is selected again."""
    desk.out(COMMAND, 0xE7)
    desk.select(1)
    desk.clock.advance(SERVICE_TIME)
    assert not desk.irq.level
    desk.select(0)
    assert desk.irq.level


def test_a_new_command_takes_the_old_interrupt_back(desk: Desk) -> None:
    """Without a status read in between."""
    desk.out(COMMAND, 0xE7)
    desk.clock.advance(SERVICE_TIME)
    desk.out(COMMAND, 0xE7)
    assert not desk.irq.level


def test_a_busy_drive_ignores_registers_and_commands(desk: Desk) -> None:
    """Also while it waits for its data to be taken."""
    desk.lba28(0x20, 5, 1)
    desk.out(LOW, 9)
    desk.out(COMMAND, 0xE7)
    assert DRQ | READY == desk.wait()
    desk.out(LOW, 9)
    desk.out(COMMAND, 0xE7)
    assert DRQ | READY == desk.inp(STATUS)
    desk.take(SECTOR)
    assert (READY, 5) == (desk.inp(STATUS), desk.inp(LOW))


# IDENTIFY


def test_identify_tells_what_the_disk_can(desk: Desk) -> None:
    """Geometry, capacities, PIO modes 3 and 4, no DMA, ATA-6, and a checksum over all."""
    words = identify(desk)
    assert ("HV0001", "HVEMU HARDDISK") == (text(words[10:20]), text(words[27:47]))
    assert (2, 16, 63) == (words[1], words[3], words[6])
    assert (2, 16, 63, 2016) == (*words[54:57], words[57] | words[58] << 16)
    assert (2048, 2048) == (words[60] | words[61] << 16, int.from_bytes(struct.pack("<4H", *words[100:104]), "little"))
    assert (0x0E00, 3, 0, 0, 0) == (words[49], words[64], words[62], words[63], words[88])
    assert (0x8010, 0x0110, 0x40) == (words[47], words[59], words[80] & 0x40)
    assert 0x7408 == words[83]
    assert 0x4068 == words[82] == words[85]
    assert 0xA5 == words[255] & 0xFF
    assert 0 == sum(struct.pack("<256H", *words)) & 0xFF
    assert READY == desk.inp(STATUS)


@pytest.mark.parametrize(
    ("sectors", "cylinders", "heads", "track"),
    [(0, 0, 1, 1), (1, 1, 1, 1), (62, 1, 1, 62), (1007, 15, 1, 63), (1008, 1, 16, 63), (1 << 29, 16383, 16, 63)],
)
def test_the_geometry_never_promises_more_than_there_is(sectors: int, cylinders: int, heads: int, track: int) -> None:
    """Small disks have one head; large ones stop at 16383 cylinders, and at 2^28 - 1 for LBA28."""
    medium = FakeMedium(0)
    medium.size = sectors * SECTOR
    words = identify(Desk([AtaDisk(medium, serial=""), None]))
    assert (cylinders, heads, track) == (words[1], words[3], words[6])
    assert words[1] * words[3] * words[6] <= sectors
    assert min(sectors, (1 << 28) - 1) == words[60] | words[61] << 16
    assert sectors == words[100] | words[101] << 16


# Reading and writing


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_sector_goes_through_the_data_register_in_every_width(desk: Desk, width: int) -> None:
    """16 and 32 bits as drivers do it; 8 bits move one byte."""
    desk.medium.data[7 * SECTOR : 8 * SECTOR] = pattern(SECTOR)
    desk.lba28(0x20, 7, 1)
    assert pattern(SECTOR) == desk.take_blocks(SECTOR, width=width)
    desk.lba28(0x30, 8, 1)
    assert READY == desk.give_blocks(pattern(SECTOR, 99), width=width)
    assert pattern(SECTOR, 99) == desk.medium.data[8 * SECTOR : 9 * SECTOR]


def test_a_read_of_three_sectors_interrupts_three_times_and_a_write_too(desk: Desk) -> None:
    """A read at each block, a write after each block; neither at the other end."""
    desk.medium.data[: 3 * SECTOR] = pattern(3 * SECTOR)
    desk.lba28(0x20, 0, 3)
    assert pattern(3 * SECTOR) == desk.take_blocks(3 * SECTOR)
    desk.clock.advance(SERVICE_TIME)
    assert (3, READY) == (len(desk.irq.edges), desk.inp(STATUS))
    desk.lba28(0x30, 10, 3)
    assert (3, DRQ | READY) == (len(desk.irq.edges), desk.alternate)
    assert READY == desk.give_blocks(pattern(3 * SECTOR, 5))
    assert 6 == len(desk.irq.edges)
    assert pattern(3 * SECTOR, 5) == desk.medium.data[10 * SECTOR : 13 * SECTOR]


def test_multiple_mode_has_one_interrupt_a_block(desk: Desk) -> None:
    """Ten sectors in blocks of four are three blocks, the last one short."""
    assert READY == desk.command(0xC6, count=4)
    assert 0x0104 == identify(desk)[59]
    edges = len(desk.irq.edges)
    desk.lba28(0xC5, 20, 10)
    assert READY == desk.give_blocks(pattern(10 * SECTOR), block=4 * SECTOR)
    desk.lba48(0x29, 20, 10)
    assert pattern(10 * SECTOR) == desk.take_blocks(10 * SECTOR, block=4 * SECTOR)
    assert edges + 6 == len(desk.irq.edges)


def test_multiple_mode_is_on_from_the_start_and_can_be_turned_off(desk: Desk) -> None:
    """A teaching kernel never sets it; 0 disables it; more than 16 and no powers of two are refused."""
    desk.lba28(0xC4, 0, 2)
    assert bytes(2 * SECTOR) == desk.take_blocks(2 * SECTOR, block=2 * SECTOR)
    for count in (3, 32, 255):
        assert (FAILED, ABRT) == (desk.command(0xC6, count=count), desk.inp(ERROR))
    assert READY == desk.command(0xC6, count=0)
    desk.lba28(0xC4, 0, 2)
    assert (FAILED, ABRT) == (desk.wait(), desk.inp(ERROR))


def test_a_count_of_0_is_256_sectors_or_65536(desk: Desk) -> None:
    """LBA28 and LBA48; the second is more than this disk has."""
    desk.medium.data[:] = pattern(desk.medium.size)
    desk.lba28(0x20, 100, 0)
    assert desk.medium.data[100 * SECTOR : 356 * SECTOR] == desk.take_blocks(256 * SECTOR, width=4)
    assert READY == desk.inp(STATUS)
    desk.lba48(0x24, 0, 0)
    assert (FAILED, IDNF) == (desk.wait(), desk.inp(ERROR))


def test_a_disk_is_never_asked_for_more_than_a_block() -> None:
    """65536 sectors are read one by one, or sixteen by sixteen."""
    desk = one_disk(0x10000 * SECTOR)
    lengths: list[int] = []
    read = desk.medium.read
    desk.medium.read = lambda offset, length: lengths.append(length) or read(offset, length)  # type: ignore[method-assign,func-returns-value]
    desk.lba48(0x29, 0, 0)
    for _ in range(10):
        desk.wait()
        desk.take(16 * SECTOR, 4)
    assert {16 * SECTOR} == set(lengths)
    assert len(desk.channel.command.state().fields["drives"][0]["buffer"]) <= 2 * 16 * SECTOR


def test_cylinders_heads_and_sectors_follow_the_geometry_that_was_set(desk: Desk) -> None:
    """Sector numbers begin with 1. INITIALIZE DEVICE PARAMETERS gives another geometry, IDENTIFY shows it."""
    desk.medium.data[:] = pattern(desk.medium.size)
    desk.chs(0x20, 1, 2, 3, 1)
    place = ((1 * 16 + 2) * 63 + 2) * SECTOR
    assert desk.medium.data[place : place + SECTOR] == desk.take_blocks(SECTOR)
    desk.out(DEVICE, 0xA0 | 3)
    assert READY == desk.command(0x91, count=8)
    assert (64, 4, 8) == identify(desk)[54:57]
    desk.chs(0x20, 10, 3, 8, 1)
    place = ((10 * 4 + 3) * 8 + 7) * SECTOR
    assert desk.medium.data[place : place + SECTOR] == desk.take_blocks(SECTOR)
    for cylinder, head, sector in ((0, 0, 0), (0, 4, 1), (0, 0, 9), (64, 0, 1)):
        desk.chs(0x20, cylinder, head, sector, 1)
        assert (FAILED, IDNF) == (desk.wait(), desk.inp(ERROR))
    assert (FAILED, ABRT) == (desk.command(0x91, count=0), desk.inp(ERROR))


def test_a_read_of_the_last_sector_works_and_of_the_next_does_not(desk: Desk) -> None:
    """ID NOT FOUND, with the first sector that does not exist in the registers."""
    desk.lba28(0x20, 2047, 1)
    assert bytes(SECTOR) == desk.take_blocks(SECTOR)
    for opcode in (0x20, 0x30, 0xC4, 0xC5, 0x40):
        desk.lba28(opcode, 2047, 2)
        assert (FAILED, IDNF) == (desk.wait(), desk.inp(ERROR))
        assert (2048 & 0xFF, 2048 >> 8) == (desk.inp(LOW), desk.inp(MID))
    for opcode in (0x24, 0x34, 0x29, 0x39, 0x42):
        desk.lba48(opcode, (1 << 48) - 1, 1)
        assert (FAILED, IDNF) == (desk.wait(), desk.inp(ERROR))
    assert not any(desk.medium.allocated)


def test_verify_reads_and_seek_checks(desk: Desk) -> None:
    """READ VERIFY transfers nothing and takes its time."""
    desk.lba28(0x40, 0, 0)
    assert READY == desk.wait()
    desk.lba48(0x42, 0, 600)
    assert [BSY, BSY, READY] == [desk.wait() for _ in range(3)]
    desk.medium.error = errno.EIO
    desk.lba28(0x40, 0x123, 1)
    assert (FAILED, UNC, 0x23, 1) == (desk.wait(), desk.inp(ERROR), desk.inp(LOW), desk.inp(MID))
    desk.lba28(0x70, 2047, 1)
    assert READY == desk.wait()
    desk.lba28(0x7F, 2048, 1)
    assert (FAILED, IDNF) == (desk.wait(), desk.inp(ERROR))
    assert READY == desk.command(0x10)


# What goes wrong


def test_a_medium_that_fails_is_an_uncorrectable_error_or_an_aborted_write(desk: Desk) -> None:
    """In the middle of a transfer too; the watcher is told, and the next command works."""
    desk.lba28(0x20, 0, 3)
    desk.wait()
    desk.take(SECTOR)
    desk.medium.error = errno.EIO
    assert (FAILED, UNC, 1) == (desk.wait(), desk.inp(ERROR), desk.inp(LOW))
    assert 0 == desk.channel.command.read(DATA, 2)
    desk.lba28(0x30, 4, 2)
    desk.give(bytes(SECTOR))
    assert (FAILED, ABRT) == (desk.wait(), desk.inp(ERROR))
    assert (FAILED, ABRT) == (desk.command(0xE7), desk.inp(ERROR))
    assert ["read error", "write error", "write error"] == [event.what for event in desk.watcher.events]
    desk.medium.error = None
    assert READY == desk.command(0xEA)


def test_a_write_protected_medium_aborts_writes_and_flushes_nothing() -> None:
    """No data are taken."""
    medium = FakeMedium(read_only=True)
    desk = Desk([AtaDisk(medium, serial="HV"), None])
    for opcode in (0x30, 0xC5):
        desk.lba28(opcode, 0, 1)
        assert BSY == desk.alternate
        assert (FAILED, ABRT) == (desk.wait(), desk.inp(ERROR))
    assert READY == desk.command(0xE7)


def test_commands_that_do_not_exist_are_aborted(desk: Desk) -> None:
    """DMA, SMART, PACKET, DEVICE RESET and NOP among them, with an interrupt each."""
    for number, opcode in enumerate((0x00, 0x08, 0x25, 0x35, 0xC8, 0xCA, 0xA0, 0xA1, 0xB0, 0x06, 0xF5), 1):
        assert (FAILED, ABRT) == (desk.command(opcode), desk.inp(ERROR)), hex(opcode)
        assert number == len(desk.irq.edges)


def test_a_flush_is_one_when_the_command_ends(desk: Desk) -> None:
    """And a spin-down is one too."""
    for opcode in (0xE7, 0xEA, 0xE0, 0xE2, 0x94):
        desk.lba28(0x30, 0, 1)
        desk.give_blocks(pattern(SECTOR))
        assert desk.medium.unflushed
        assert READY == desk.command(opcode)
        assert not desk.medium.unflushed


def test_without_the_write_cache_every_write_is_flushed_before_it_ends(desk: Desk) -> None:
    """Disabling it flushes what was there; IDENTIFY shows it; a software reset does not bring it back."""
    desk.lba28(0x30, 0, 1)
    desk.give_blocks(pattern(SECTOR))
    assert READY == desk.command(0xEF, features=0x82)
    assert not desk.medium.unflushed
    desk.control(SRST)
    desk.control(0)
    desk.wait()
    assert 0 == identify(desk)[85] & 0x20
    desk.lba48(0x39, 0, 17)
    assert READY == desk.give_blocks(pattern(17 * SECTOR), block=16 * SECTOR)
    assert not desk.medium.unflushed
    assert READY == desk.command(0xEF, features=0x02)
    assert 0x20 == identify(desk)[85] & 0x20


@pytest.mark.parametrize(
    ("features", "count", "accepted"),
    [
        (0x03, 0x00, True), (0x03, 0x01, True), (0x03, 0x08, True), (0x03, 0x0C, True),
        (0x03, 0x0D, False), (0x03, 0x20, False), (0x03, 0x42, False),
        (0x55, 0, True), (0xAA, 0, True), (0x05, 0x80, True), (0x05, 0, False), (0x05, 0xFF, False), (0x85, 0, True),
        (0x66, 0, False), (0x99, 0, False),
    ],
)  # fmt: skip
def test_set_features_takes_pio_modes_and_what_identify_shows(
    desk: Desk, features: int, count: int, accepted: bool
) -> None:
    """DMA modes are aborted."""
    assert (READY if accepted else FAILED) == desk.command(0xEF, features=features, count=count)
    words = identify(desk)
    assert (features != 0x55) == bool(words[85] & 0x40)
    assert (0x80, 8) == (words[91], words[86] & 8) if (features, count) == (5, 0x80) else words[91] == 0


def test_power_modes_are_told_and_sleep_ends_with_a_reset(desk: Desk) -> None:
    """A sleeping disk hears no command."""
    for opcode, mode in ((0xE1, 0x80), (0xE0, 0x00), (0x97, 0x80), (0x96, 0x00)):
        assert READY == desk.command(opcode)
        assert READY == desk.command(0xE5)
        assert mode == desk.inp(COUNT)
    desk.lba28(0x20, 0, 1)
    desk.take_blocks(SECTOR)
    assert READY == desk.command(0x98)
    assert 0xFF == desk.inp(COUNT)
    desk.command(0xE6)
    edges = len(desk.irq.edges)
    desk.command(0xEC)
    assert (edges, READY) == (len(desk.irq.edges), desk.inp(STATUS))
    desk.control(SRST)
    desk.control(0)
    desk.wait()
    assert 256 == len(identify(desk))


def test_the_native_max_address_is_the_last_sector(desk: Desk) -> None:
    """In 28 and in 48 bits."""
    desk.out(DEVICE, 0xA0)
    assert FAILED == desk.command(0xF8)
    desk.out(DEVICE, 0xA0 | LBA)
    assert READY == desk.command(0xF8)
    assert (0xFF, 7, 0, 0xE0) == tuple(desk.inp(register) for register in (LOW, MID, HIGH, DEVICE))
    assert READY == desk.command(0x27)
    desk.control(HOB)
    assert (0, 0, 0) == tuple(desk.inp(register) for register in (LOW, MID, HIGH))


# A teaching kernel


def test_a_kernel_that_polls_and_does_not_wait_before_it_writes() -> None:
    """Data right after the WRITE command, 32 bits at a time; the interrupt is not acknowledged by a status read."""
    desk = one_disk()
    desk.control(0)
    desk.out(DEVICE, 0xF0)
    assert 0 == desk.inp(STATUS)  # no disk 1
    desk.out(DEVICE, 0xE0)
    assert 0x40 == desk.inp(STATUS) & 0xC0
    for sector in range(4):
        desk.lba28(0x30, sector, 1)
        desk.give(pattern(SECTOR, sector), 4)
        desk.clock.advance(SERVICE_TIME)
        assert desk.irq.level
    assert 4 == len(desk.irq.edges)
    for sector in range(4):
        desk.lba28(0x20, sector, 1)
        desk.clock.advance(SERVICE_TIME)
        assert 0x40 == desk.inp(STATUS) & 0xE1
        assert pattern(SECTOR, sector) == desk.take(SECTOR, 4)


# State


def test_a_transfer_goes_on_after_saving_and_restoring_in_its_middle(desk: Desk) -> None:
    """A read within a block and a write between blocks, with the interrupt line as it was."""
    desk.medium.data[: 4 * SECTOR] = pattern(4 * SECTOR)
    desk.lba28(0x20, 0, 4)
    desk.wait()
    first = desk.take(100)
    other = desk.copy()
    assert pattern(4 * SECTOR) == first + other.take(SECTOR - 100) + other.take_blocks(3 * SECTOR)
    assert READY == other.inp(STATUS)
    other.lba48(0x34, 1 << 10, 2)
    other.give(pattern(SECTOR, 1))
    third = other.copy()
    assert BSY == third.alternate
    third.clock.advance(SERVICE_TIME)
    assert (True, True) == (third.irq.level, third.copy().irq.level)
    assert READY == third.give_blocks(pattern(SECTOR, 2))
    assert pattern(SECTOR, 1) + pattern(SECTOR, 2) == third.medium.data[1 << 19 : (1 << 19) + 2 * SECTOR]


def test_quiesce_completes_what_the_drives_have_in_hand(desk: Desk) -> None:
    """The block that was written is with the medium, nothing is scheduled."""
    desk.lba28(0x30, 0, 1)
    desk.give(pattern(SECTOR))
    desk.channel.command.quiesce()
    assert (pattern(SECTOR), []) == (desk.medium.data[:SECTOR], desk.clock.pending())


@pytest.mark.parametrize(
    ("drive", "field", "value"),
    [
        (0, "position", 5), (0, "in_end", 4), (0, "step", 8), (0, "heads", 0), (0, "track", 0), (0, "buffer", "zz"),
        (0, "block", 0), (0, "remaining", 65537), (0, "due", "soon"), (1, "packet", "00"), (1, "cdrom", {}),
        (1, "cdrom", {"version": 1, "fields": {}}), (0, "unknown", 1),
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused_and_changes_nothing(desk: Desk, drive: int, field: str, value: object) -> None:
    """ValueError; the channel is what it was."""
    desk.lba28(0x20, 0, 1)
    before = desk.channel.command.state()
    state = Desk().channel.command.state()
    state.fields["drives"][drive][field] = value
    with pytest.raises(ValueError):  # noqa: PT011
        desk.channel.command.from_state(state)
    assert before == desk.channel.command.state()
    for drives in (None, [], [None, None]):
        with pytest.raises(ValueError):  # noqa: PT011
            desk.channel.command.from_state(DeviceState("ide-channel", 1, {**before.fields, "drives": drives}))


def test_a_channel_has_two_connectors() -> None:
    """Not one and not three."""
    with pytest.raises(ValueError, match="two connectors, not 1"):
        IdeChannel([None], clock=FakeClock(), irq=FakeIrqLine())


def test_the_pci_function_is_a_piix3_with_both_channels_enabled() -> None:
    """Compatibility mode, no bus master registers; the timing registers are kept."""
    function = IdeFunction()
    assert (0x70108086, 0x01018000) == (function.read(0, 4), function.read(8, 4))
    assert 0x80008000 == function.read(0x40, 4)
    function.write(0x20, 4, 0xFFFFFFFF)
    function.write(0x40, 2, 0xA307)
    assert (0, 0xA307) == (function.read(0x20, 4), function.read(0x40, 2))


# Any order of anything

KINDS = ("chs", "lba28", "lba48", "multiple28", "multiple48")
TRANSFERS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from(KINDS),
        st.one_of(st.integers(0, 60), st.integers(1000, 2015)),
        st.integers(1, 33),
        st.sampled_from((2, 4)),
        st.sampled_from((1, 2, 4, 8, 16)),
        st.booleans(),
    ),
    max_size=12,
)


@settings(STEADY, max_examples=30)
@given(TRANSFERS)
def test_what_one_command_writes_every_other_reads(
    transfers: list[tuple[bool, str, int, int, int, int, bool]],
) -> None:
    """Against a bytearray; now and then the channel is saved and restored in the middle."""
    desk, model = Desk(), bytearray(1 << 20)
    for number, (write, kind, address, wanted, width, multiple, save) in enumerate(transfers):
        count, block = min(wanted, 2016 - address), SECTOR
        if kind.startswith("multiple"):
            desk.command(0xC6, count=multiple)
            block = multiple * SECTOR
        opcodes = {"chs": 0x20, "lba28": 0x21, "lba48": 0x24, "multiple28": 0xC4, "multiple48": 0x29}
        writes = {"chs": 0x30, "lba28": 0x31, "lba48": 0x34, "multiple28": 0xC5, "multiple48": 0x39}
        opcode = (writes if write else opcodes)[kind]
        if kind == "chs":
            track, sector = divmod(address, 63)
            desk.chs(opcode, *divmod(track, 16), sector + 1, count)
        else:
            (desk.lba48 if kind.endswith("48") else desk.lba28)(opcode, address, count)
        if save:
            desk = desk.copy()
        start, end = address * SECTOR, (address + count) * SECTOR
        if write:
            data = pattern(end - start, number << 16)
            assert READY == desk.give_blocks(data, block, width)
            model[start:end] = data
        else:
            assert model[start:end] == desk.take_blocks(end - start, block, width)
    assert model == desk.medium.data


OPCODES = st.one_of(
    st.sampled_from((0x20, 0x24, 0x30, 0x34, 0xC4, 0x29, 0xC5, 0x39, 0x42, 0xC6, 0xA0, 0xA0, 0xA1, 0xEC, 0xEF, 0x08)),
    st.integers(0, 255),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("command"), OPCODES, st.just(0)),
        st.tuples(st.just("write"), st.integers(0, 8), st.integers(0, 255)),
        st.tuples(st.just("give"), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF)),
        st.tuples(st.just("packet"), st.sampled_from((0x28, 0xA8, 0x12, 0x55, 0x43, 0x1B, 0x03)), st.integers(0, 63)),
        st.tuples(st.just("read"), st.integers(0, 8), st.sampled_from((1, 2, 4))),
        st.tuples(st.just("drain"), st.sampled_from((1, 2, 4)), st.integers(0, 5000)),
        st.tuples(st.just("control"), st.integers(0, 255), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from((1, SERVICE_TIME, 5 * SERVICE_TIME)), st.just(0)),
        st.tuples(st.just("error"), st.sampled_from((0, 0, errno.EIO, errno.ENOSPC)), st.just(0)),
    ),
    max_size=60,
)


def act(desk: Desk, step: tuple[str, int, int]) -> None:
    """One act of a guest that has read no book."""
    what, first, second = step
    command = desk.channel.command
    if what == "command":
        desk.out(COMMAND, first)
    elif what == "write":
        command.write(first % 8, 1, second)
    elif what == "give":
        for _ in range(second % 600):
            command.write(DATA, first, second & ((1 << 8 * first) - 1))
    elif what == "packet":
        desk.give(bytes((first, 0x10, 0, 0, 0, second, 0, 0, second, 0, 0, 0)))
    elif what == "read":
        assert 0 <= command.read(first % 8, second) < 1 << 8 * second
    elif what == "drain":
        for _ in range(second):
            assert 0 <= command.read(DATA, first) < 1 << 8 * first
    elif what == "control":
        desk.control(first)
    elif what == "wait":
        desk.clock.advance(first)
    else:
        desk.medium.error = desk.disc.error = first or None


@settings(STEADY, max_examples=120)
@given(STEPS, STEPS)
def test_any_guest_is_survived_and_a_restored_channel_goes_on_alike(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """The media check what they are asked; the state goes through JSON; both channels do the same afterwards."""
    desk = Desk(size=1 << 15)
    for step in before:
        act(desk, step)
    other = desk.copy()
    assert desk.channel.command.state() == other.channel.command.state()
    assert (desk.irq.level, desk.clock.pending()) == (other.irq.level, other.clock.pending())
    other.medium.error, other.disc.error = desk.medium.error, desk.disc.error
    for step in after:
        act(desk, step)
        act(other, step)
    assert desk.channel.command.state() == other.channel.command.state()
    assert desk.medium.data == other.medium.data
    desk.channel.command.reset()
    assert ([], False) == (desk.clock.pending(), desk.irq.level)
