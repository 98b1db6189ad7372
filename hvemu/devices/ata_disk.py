"""An ATA disk on a BlockBackend: the general feature set, 48-bit addresses, CHS, multiple mode, write cache, power.

Long transfers never need more memory than one DRQ block. A command that writes ends when its data are with the
backend; with the write cache disabled, when they are flushed.

Not emulated: DMA, SMART, security, host protected areas (READ NATIVE MAX ADDRESS is there), read and write long.
Spec: ATA/ATAPI-6 (T13 1410D) chapter 8; CHS and its commands ATA/ATAPI-5 (T13 1321D) 6.2, 8.16.
"""

from collections.abc import Callable, Mapping
from typing import Final

from hvemu.devices.ata_device import (
    ABRT,
    ACTIVE,
    COMMAND_STEP,
    COUNT,
    DEVICE,
    FEATURES,
    IDNF,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    PIO_TRANSFER_MODES,
    POWER_COMMANDS,
    SPIN_DOWN_COMMANDS,
    UNC,
    AtaDevice,
    CommandError,
)
from hvemu.devices.ata_identify import (
    LARGEST_MULTIPLE,
    LBA28_SECTORS,
    DiskSettings,
    Geometry,
    default_geometry,
    disk_words,
)
from hvemu.devices.contract import BlockBackend
from hvemu.devices.saved import Flag, Number

SECTOR: Final = 512
LBA_BIT: Final = 0x40
READ_STEP, WRITE_STEP, VERIFY_STEP = 3, 4, 5
VERIFY_SECTORS: Final = 256
"""How much READ VERIFY reads at once."""

READ_MULTIPLE, READ_MULTIPLE_EXT, WRITE_MULTIPLE, WRITE_MULTIPLE_EXT = 0xC4, 0x29, 0xC5, 0x39
READS: Final = frozenset((0x20, 0x21, 0x24, READ_MULTIPLE, READ_MULTIPLE_EXT))
WRITES: Final = frozenset((0x30, 0x31, 0x34, WRITE_MULTIPLE, WRITE_MULTIPLE_EXT))
VERIFIES: Final = frozenset((0x40, 0x41, 0x42))
READ_NATIVE_MAX_ADDRESS_EXT: Final = 0x27
EXTENDED: Final = frozenset((0x24, READ_NATIVE_MAX_ADDRESS_EXT, READ_MULTIPLE_EXT, 0x34, WRITE_MULTIPLE_EXT, 0x42))
"""Those with addresses of 48 bits."""
MULTIPLES: Final = frozenset((READ_MULTIPLE, READ_MULTIPLE_EXT, WRITE_MULTIPLE, WRITE_MULTIPLE_EXT))


class AtaDisk(AtaDevice):
    """``serial`` has up to 20 and ``model`` up to 40 ASCII characters."""

    name = "ata-disk"
    layout = {
        "address": Number(1 << 48),
        "remaining": Number(1 << 16),
        "block": Number(VERIFY_SECTORS, minimum=1),
        "multiple": Number(LARGEST_MULTIPLE),
        "heads": Number(16, minimum=1),
        "track": Number(255, minimum=1),
        "write_cache": Flag(),
        "look_ahead": Flag(),
        "power_level": Number(0xFE),
    }

    def __init__(self, backend: BlockBackend, *, serial: str, model: str = "HVEMU HARDDISK") -> None:
        super().__init__()
        self._backend, self._serial, self._model = backend, serial, model
        self.set_defaults()

    def set_defaults(self) -> None:
        """The write cache is on; blocks of 16 sectors for drivers that never say SET MULTIPLE MODE."""
        self.address = self.remaining = self.power_level = 0
        self.block = 1
        self.multiple = LARGEST_MULTIPLE
        _, self.heads, self.track = default_geometry(self.sectors)
        self.write_cache = self.look_ahead = True

    @property
    def sectors(self) -> int:
        """Of 512 bytes; as many as 48 bits can count."""
        return min(self._backend.size // SECTOR, 1 << 48)

    @property
    def geometry(self) -> Geometry:
        """What INITIALIZE DEVICE PARAMETERS has set."""
        default = default_geometry(self.sectors)
        if (self.heads, self.track) == (default.heads, default.track):
            return default
        return Geometry(min(0xFFFF, self.sectors // (self.heads * self.track)), self.heads, self.track)

    # Commands

    def begin(self) -> None:
        """A write wants its first block at once; whatever is wrong with it is told after the busy time."""
        if self.opcode in WRITES:
            try:
                self._write(interrupt=False)
            except CommandError:
                self.busy(COMMAND_STEP)
        else:
            self.busy(COMMAND_STEP)

    def serve(self, step: int) -> None:
        """The busy time is over."""
        if step == READ_STEP:
            self._offer_sectors()
        elif step == WRITE_STEP:
            self._take_sectors()
        elif step == VERIFY_STEP:
            self._verify_sectors()
        else:
            handler = _HANDLERS.get(self.opcode)
            if handler is None:
                raise CommandError(ABRT)
            handler(self)

    def _read(self) -> None:
        self._start_transfer()
        self._offer_sectors()

    def _write(self, *, interrupt: bool = True) -> None:
        if self._backend.read_only:
            raise CommandError(ABRT)
        self._start_transfer()
        self.want(min(self.block, self.remaining) * SECTOR, interrupt=interrupt)

    def _verify(self) -> None:
        self._start_transfer()
        self.block = VERIFY_SECTORS
        self._verify_sectors()

    def _seek(self) -> None:
        self._check_range(self._registers_address(), 1)
        self.complete()

    def _start_transfer(self) -> None:
        """Address, length and size of the DRQ blocks, or the error that the command ends with."""
        multiple, count = self.opcode in MULTIPLES, self.current[COUNT] or 256
        if multiple and not self.multiple:
            raise CommandError(ABRT)
        if self.opcode in EXTENDED:
            count = (self.previous[COUNT] << 8 | self.current[COUNT]) or 1 << 16
        address = self._registers_address()
        self._check_range(address, count)
        self.address, self.remaining = address, count
        self.block = self.multiple if multiple else 1
        self.power = ACTIVE

    # Addresses

    def _registers_address(self) -> int:
        """The sector that the registers name; IDNF where their cylinder, head and sector do not exist."""
        now = self.current
        low = now[LBA_HIGH] << 16 | now[LBA_MID] << 8 | now[LBA_LOW]
        if self.opcode in EXTENDED:
            before = self.previous
            return (before[LBA_HIGH] << 16 | before[LBA_MID] << 8 | before[LBA_LOW]) << 24 | low
        head = now[DEVICE] & 0x0F
        if now[DEVICE] & LBA_BIT:
            return head << 24 | low
        cylinder, sector = low >> 8, low & 0xFF
        if not 1 <= sector <= self.track or head >= self.heads:
            raise CommandError(IDNF)
        return (cylinder * self.heads + head) * self.track + sector - 1

    def _put_address(self, address: int) -> None:
        """The registers name the sector where a command failed, in the form in which it was asked for."""
        now, before = self.current, self.previous
        if self.opcode in EXTENDED:
            before[LBA_LOW], before[LBA_MID], before[LBA_HIGH] = (address >> shift & 0xFF for shift in (24, 32, 40))
        else:
            head = address >> 24
            if not now[DEVICE] & LBA_BIT:
                track, sector = divmod(address, self.track)
                cylinder, head = divmod(track, self.heads)
                address = cylinder << 8 | sector + 1
            now[DEVICE] = now[DEVICE] & 0xF0 | head & 0x0F
        now[LBA_LOW], now[LBA_MID], now[LBA_HIGH] = (address >> shift & 0xFF for shift in (0, 8, 16))

    def _check_range(self, address: int, count: int) -> None:
        if address + count > self.sectors:
            self._put_address(max(address, self.sectors))
            raise CommandError(IDNF)

    # Sectors

    def _read_backend(self, count: int) -> bytes:
        """The next sectors; the medium may have become smaller since the command was checked."""
        self._check_range(self.address, count)
        try:
            data = self._backend.read(self.address * SECTOR, count * SECTOR)
        except OSError as error:
            self.tell("read error", str(error))
            self._put_address(self.address)
            raise CommandError(UNC) from error
        self.address += count
        self.remaining = max(0, self.remaining - count)
        return data

    def _offer_sectors(self) -> None:
        self.offer(self._read_backend(max(1, min(self.block, self.remaining))))

    def _verify_sectors(self) -> None:
        self._read_backend(max(1, min(self.block, self.remaining)))
        if self.remaining:
            self.busy(VERIFY_STEP)
        else:
            self.complete()

    def _take_sectors(self) -> None:
        count = len(self.buffer) // SECTOR
        if count:
            self._check_range(self.address, count)
            try:
                self._backend.write(self.address * SECTOR, bytes(self.buffer[: count * SECTOR]))
            except OSError as error:
                self.tell("write error", str(error))
                self._put_address(self.address)
                raise CommandError(ABRT) from error
            self.address += count
            self.remaining = max(0, self.remaining - count)
        if self.remaining:
            self.want(min(self.block, self.remaining) * SECTOR, interrupt=True)
        else:
            if not self.write_cache:
                self._flush()
            self.complete()

    def _flush(self) -> None:
        if self._backend.read_only:
            return
        try:
            self._backend.flush()
        except OSError as error:
            self.tell("write error", str(error))
            raise CommandError(ABRT) from error

    def block_was_read(self) -> None:
        """The next block, or the end, of which a read tells nothing more."""
        if self.remaining:
            self.busy(READ_STEP)
        else:
            self.settle()

    def block_was_written(self) -> None:
        """Put it where it belongs."""
        self.busy(WRITE_STEP)

    # Commands without sectors

    def _identify(self) -> None:
        settings = DiskSettings(self.geometry, self.multiple, self.write_cache, self.look_ahead, self.power_level)
        self.remaining = 0
        self.offer(disk_words(self.sectors, self._serial, self._model, settings))

    def _flush_cache(self) -> None:
        self._flush()
        self.complete()

    def _power(self) -> None:
        if self.opcode in SPIN_DOWN_COMMANDS:
            self._flush()
        self.power_command(self.opcode)

    def _set_multiple_mode(self) -> None:
        """0 disables it; otherwise a power of two."""
        count = self.current[COUNT]
        if count > LARGEST_MULTIPLE or count & count - 1:
            raise CommandError(ABRT)
        self.multiple = count
        self.complete()

    def _initialize_device_parameters(self) -> None:
        if not self.current[COUNT]:
            raise CommandError(ABRT)
        self.heads, self.track = (self.current[DEVICE] & 0x0F) + 1, self.current[COUNT]
        self.complete()

    def _read_native_max_address(self) -> None:
        if not self.current[DEVICE] & LBA_BIT:
            raise CommandError(ABRT)
        self._put_address(max(0, min(self.sectors, LBA28_SECTORS) - 1))
        self.complete()

    def _read_native_max_address_ext(self) -> None:
        self._put_address(max(0, self.sectors - 1))
        self.complete()

    def _set_features(self) -> None:
        feature, value = self.current[FEATURES], self.current[COUNT]
        if feature == 0x03 and value in PIO_TRANSFER_MODES:
            pass  # every mode is as fast
        elif feature == 0x02:
            self.write_cache = True
        elif feature == 0x82:
            self._flush()
            self.write_cache = False
        elif feature in (0xAA, 0x55):
            self.look_ahead = feature == 0xAA
        elif feature == 0x05 and 0 < value < 0xFF:
            self.power_level = value
        elif feature == 0x85:
            self.power_level = 0
        else:
            raise CommandError(ABRT)
        self.complete()


_HANDLERS: Final[Mapping[int, Callable[[AtaDisk], None]]] = {
    **dict.fromkeys(range(0x10, 0x20), AtaDisk.complete),  # RECALIBRATE
    **dict.fromkeys(range(0x70, 0x80), AtaDisk._seek),
    **dict.fromkeys(READS, AtaDisk._read),
    **dict.fromkeys(WRITES, AtaDisk._write),
    **dict.fromkeys(VERIFIES, AtaDisk._verify),
    **dict.fromkeys(POWER_COMMANDS, AtaDisk._power),
    READ_NATIVE_MAX_ADDRESS_EXT: AtaDisk._read_native_max_address_ext,
    0x91: AtaDisk._initialize_device_parameters,
    0xC6: AtaDisk._set_multiple_mode,
    0xE7: AtaDisk._flush_cache,
    0xEA: AtaDisk._flush_cache,
    0xEC: AtaDisk._identify,
    0xEF: AtaDisk._set_features,
    0xF8: AtaDisk._read_native_max_address,
}
