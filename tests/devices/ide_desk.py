"""A channel on a desk: a disk and a CD-ROM drive on one cable, and a driver that uses the registers as drivers do."""

import json

from hvemu.devices.ata_device import SERVICE_TIME, AtaDevice
from hvemu.devices.ata_disk import AtaDisk
from hvemu.devices.atapi import AtapiCdrom
from hvemu.devices.contract import DeviceState
from hvemu.devices.ide import IdeChannel
from hvemu.devices.scsi.cdrom import ScsiCdrom

from .fakes import FakeClock, FakeIrqLine, FakeWatcher
from .scsi.desk import FakeMedium

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS
BSY, DRQ, ERR = 0x80, 0x08, 0x01
NIEN, SRST, HOB = 0x02, 0x04, 0x80
LBA = 0x40
SECTOR = 512


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes of which no two sectors are alike."""
    return b"".join((seed + index).to_bytes(4, "little") for index in range(length // 4))


class Desk:
    """``drives`` may be given; by default device 0 is a disk of 2048 sectors and device 1 a drive with 128 blocks."""

    def __init__(self, drives: list[AtaDevice | None] | None = None, *, now: int = 0, size: int = 1 << 20) -> None:
        self.clock = FakeClock(now)
        self.irq = FakeIrqLine(self.clock)
        self.watcher = FakeWatcher()
        self.medium = FakeMedium(size)
        self.disc = FakeMedium(128 * 2048, read_only=True)
        self.disc.data[:] = pattern(self.disc.size, 1 << 24)
        self.cdrom = ScsiCdrom(self.disc, serial="CD0")
        if drives is None:
            drives = [AtaDisk(self.medium, serial="HV0001"), AtapiCdrom(self.cdrom)]
        self.channel = IdeChannel(drives, clock=self.clock, irq=self.irq, watcher=self.watcher)
        self.flags = 0xA0  # of the device register: DEV and obsolete bits

    def out(self, register: int, value: int) -> None:
        self.channel.command.write(register, 1, value)

    def inp(self, register: int) -> int:
        return self.channel.command.read(register, 1)

    @property
    def alternate(self) -> int:
        return self.channel.control.read(0, 1)

    def control(self, value: int) -> None:
        self.channel.control.write(0, 1, value)

    def select(self, device: int) -> None:
        self.flags = 0xA0 | device << 4
        self.out(DEVICE, self.flags)

    def wait(self) -> int:
        """The busy time; gives the status."""
        self.clock.advance(SERVICE_TIME)
        return self.inp(STATUS)

    def command(self, opcode: int, *, features: int = 0, count: int = 0) -> int:
        """A command without data; gives the status after it."""
        self.out(FEATURES, features)
        self.out(COUNT, count)
        self.out(COMMAND, opcode)
        return self.wait()

    def lba28(self, opcode: int, address: int, count: int) -> None:
        self.out(COUNT, count & 0xFF)
        for register in (LOW, MID, HIGH):
            self.out(register, address >> 8 * (register - LOW) & 0xFF)
        self.out(DEVICE, self.flags | LBA | address >> 24 & 0x0F)
        self.out(COMMAND, opcode)

    def lba48(self, opcode: int, address: int, count: int) -> None:
        self.out(DEVICE, self.flags | LBA)
        self.out(COUNT, count >> 8 & 0xFF)
        self.out(COUNT, count & 0xFF)
        for register, shift in ((LOW, 24), (MID, 32), (HIGH, 40), (LOW, 0), (MID, 8), (HIGH, 16)):
            self.out(register, address >> shift & 0xFF)
        self.out(COMMAND, opcode)

    def chs(self, opcode: int, cylinder: int, head: int, sector: int, count: int) -> None:
        self.out(COUNT, count & 0xFF)
        self.out(LOW, sector)
        self.out(MID, cylinder & 0xFF)
        self.out(HIGH, cylinder >> 8)
        self.out(DEVICE, self.flags | head)
        self.out(COMMAND, opcode)

    def take(self, length: int, width: int = 2) -> bytes:
        """Bytes from the data register."""
        read = self.channel.command.read
        return b"".join(read(DATA, width).to_bytes(width, "little") for _ in range(0, length, width))

    def give(self, data: bytes, width: int = 2) -> None:
        """Bytes to the data register."""
        for start in range(0, len(data), width):
            self.channel.command.write(DATA, width, int.from_bytes(data[start : start + width], "little"))

    def take_blocks(self, length: int, block: int = SECTOR, width: int = 2) -> bytes:
        """A PIO read that was started: one DRQ block each time the status says so."""
        data = b""
        while len(data) < length:
            status = self.wait()
            assert status & (BSY | DRQ | ERR) == DRQ, f"status {status:#x}"
            data += self.take(min(block, length - len(data)), width)
        return data

    def give_blocks(self, data: bytes, block: int = SECTOR, width: int = 2) -> int:
        """A PIO write that was started; gives the status at its end."""
        for start in range(0, len(data), block):
            status = self.inp(STATUS)
            assert status & (BSY | DRQ | ERR) == DRQ, f"status {status:#x}"
            self.give(data[start : start + block], width)
            self.wait()
        return self.inp(STATUS)

    def packet(self, cdb: str, *, limit: int = 0xFFFE, data: bytes = b"") -> tuple[int, bytes]:
        """A PACKET command to the selected drive; gives error register and data-in."""
        self.out(FEATURES, 0)
        self.out(MID, limit & 0xFF)
        self.out(HIGH, limit >> 8)
        self.out(COMMAND, 0xA0)
        assert (self.inp(STATUS) & DRQ, self.inp(COUNT)) == (DRQ, 1)
        self.give(bytes.fromhex(cdb).ljust(12, b"\0"))
        found, length = b"", 0
        while self.wait() & DRQ:
            assert length % 2 == 0, "only the last block may be odd"
            length = self.inp(MID) | self.inp(HIGH) << 8
            assert 0 < length <= limit
            if self.inp(COUNT) == 2:
                found += self.take(length)[:length]
            else:
                self.give(data[:length])
                data = data[length:]
        assert self.inp(COUNT) == 3
        return self.inp(ERROR), found

    def copy(self) -> "Desk":
        """Another desk with the same media, whose channel comes from the state of this one through JSON."""
        other = Desk(now=self.clock.now(), size=self.medium.size)
        other.medium.data[:] = self.medium.data
        state = self.channel.command.state()
        fields = json.loads(json.dumps(state.fields))
        other.channel.command.from_state(DeviceState(state.device, state.version, fields))
        other.flags = self.flags
        return other
