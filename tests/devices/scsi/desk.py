"""A medium in memory that checks what it is asked for, and short ways to send commands."""

import errno

from hvemu.devices.scsi.bus import Target
from hvemu.devices.scsi.cdrom import ScsiCdrom
from hvemu.devices.scsi.contract import Answer, Command, LogicalUnit
from hvemu.devices.scsi.disk import ScsiDisk

JOE, SUE, ANN = "iqn.1992-01.com.example:joe,i,0x000000000001", "host-7", "host-3"


class FakeMedium:
    """Counts flushes and fails on demand; what a device must never ask is an AssertionError."""

    def __init__(self, size: int = 1 << 20, *, read_only: bool = False) -> None:
        self.size = size
        self.read_only = read_only
        self.data = bytearray(size)
        self.allocated = bytearray(size // 512)
        self.flushes = 0
        self.unflushed = False
        self.error: int | None = None

    def _check(self, offset: int, length: int) -> None:
        assert offset % 512 == 0
        assert length % 512 == 0
        assert 0 <= offset < offset + length <= self.size
        assert length <= 1 << 30
        if self.error is not None:
            raise OSError(self.error, errno.errorcode[self.error])

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert not self.read_only
        self._check(offset, len(data))
        self.data[offset : offset + len(data)] = data
        self.allocated[offset // 512 : (offset + len(data)) // 512] = b"\1" * (len(data) // 512)
        self.unflushed = True

    def flush(self) -> None:
        assert not self.read_only
        if self.error is not None:
            raise OSError(self.error, errno.errorcode[self.error])
        self.flushes += 1
        self.unflushed = False

    def discard(self, offset: int, length: int) -> None:
        assert not self.read_only
        self._check(offset, length)
        self.data[offset : offset + length] = bytes(length)
        self.allocated[offset // 512 : (offset + length) // 512] = bytes(length // 512)
        self.unflushed = True

    def extent(self, offset: int) -> tuple[int, bool]:
        self._check(offset, 512)
        first = offset // 512
        end = self.allocated.find(1 - self.allocated[first], first)
        return ((len(self.allocated) if end < 0 else end) - first) * 512, bool(self.allocated[first])


def disk(medium: FakeMedium | None = None, **options: object) -> ScsiDisk:
    """A disk whose initiators have been told of power on."""
    unit = ScsiDisk(medium or FakeMedium(), serial="0123456789ABCDEF", **options)
    greet(unit)
    return unit


def cdrom(medium: FakeMedium | None) -> ScsiCdrom:
    """A drive, the same."""
    unit = ScsiCdrom(medium, serial="CD0")
    greet(unit)
    return unit


def greet(unit: LogicalUnit) -> None:
    """Take the unit attention of power on away from everybody."""
    for nexus in (JOE, SUE, ANN):
        unit.execute(Command(bytes(6), b"", nexus))


def send(unit: LogicalUnit, cdb: str | bytes, data: bytes = b"", nexus: str = JOE) -> Answer:
    """A command, its CDB in hexadecimal or as bytes."""
    return unit.execute(Command(bytes.fromhex(cdb) if isinstance(cdb, str) else cdb, data, nexus))


def good(unit: LogicalUnit, cdb: str | bytes, data: bytes = b"", nexus: str = JOE) -> bytes:
    """Data-in of a command that must end with GOOD."""
    answer = send(unit, cdb, data, nexus)
    assert (0, b"") == (answer.status, answer.sense), answer
    return answer.data_in


def wrong(unit: LogicalUnit, cdb: str | bytes, data: bytes = b"", nexus: str = JOE) -> tuple[int, int]:
    """Sense key and additional sense code of a command that must end with CHECK CONDITION."""
    answer = send(unit, cdb, data, nexus)
    assert (2, b"") == (answer.status, answer.data_in), answer
    return key_and_code(answer.sense)


def key_and_code(sense: bytes) -> tuple[int, int]:
    """Of either format."""
    if sense[0] & 0x7F == 0x70:
        return sense[2], int.from_bytes(sense[12:14], "big")
    assert 0x72 == sense[0]
    return sense[1], int.from_bytes(sense[2:4], "big")


def one_target(**units: object) -> Target:
    """A target with a disk as unit 0."""
    return Target({0: disk(**units)})


def read10(address: int, count: int, flags: int = 0) -> bytes:
    """READ (10)."""
    return bytes((0x28, flags)) + address.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def write10(address: int, count: int, flags: int = 0) -> bytes:
    """WRITE (10)."""
    return b"\x2a" + read10(address, count, flags)[1:]


def long(opcode: int, address: int, count: int, flags: int = 0) -> bytes:
    """A CDB of 16 bytes."""
    return bytes((opcode, flags)) + address.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def persistent_out(action: int, key: int = 0, new_key: int = 0, kind: int = 0, flags: int = 0) -> tuple[bytes, bytes]:
    """PERSISTENT RESERVE OUT and its parameter list."""
    parameters = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    return bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0)), parameters
