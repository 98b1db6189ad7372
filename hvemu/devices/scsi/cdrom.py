"""A CD-ROM or DVD-ROM drive (MMC-6) with an ISO image, or with nothing, in its tray.

The image is one data track of one session with blocks of 2048 bytes. The drive reads and never writes.

Not emulated: audio, READ CD in raw forms, sub-channels, DVD structures, regions and authentication.
"""

from typing import ClassVar, Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.scsi.cdrom_commands import CDROM_OPERATIONS
from hvemu.devices.scsi.identity import MMC_6, SAM_5, SPC_4, Identity
from hvemu.devices.scsi.medium import DRIVE_OPERATIONS, MediumUnit
from hvemu.devices.scsi.modes import (
    CONTROL,
    INFORMATIONAL_EXCEPTIONS,
    MODE_OPERATIONS,
    ModePage,
    mode_page,
)
from hvemu.devices.scsi.operations import OperationTable
from hvemu.devices.scsi.primary import PRIMARY_OPERATIONS
from hvemu.devices.scsi.reservation_commands import RESERVATION_OPERATIONS
from hvemu.devices.scsi.sense import illegal
from hvemu.vocabulary.scsi import AdditionalSense, DeviceType

BLOCK_SIZE: Final = 2048
LONGEST_TRANSFER: Final = 8 << 20
"""Bytes of data-in of one command."""
MOST_CD_BLOCKS: Final = 90 * 60 * 75
"""What a compact disc can hold, 90 minutes; a larger image is a DVD."""
_NO_CHANGE, _NEW_MEDIUM, _MEDIUM_REMOVED = 0, 2, 3

_READ_ERROR_RECOVERY: Final = mode_page(0x01, "00 05 00 00 00 00 00 00 00 00")
_CACHING: Final = mode_page(0x08, "00" * 10)
_CONTROL: Final = mode_page(CONTROL, "02 10 00 00 00 00 FF FF 00 00", "04" + "00" * 9)
_CAPABILITIES: Final = mode_page(0x2A, "3B 00 71 00 29 00 16 00 00 00 02 00 16 00 00 00 00 00")
"""Reads CD-R, CD-RW, DVD-ROM; mode 2 and multi-session; tray, lock and eject; 32x (SFF-8090)."""
_PAGES: Final[tuple[ModePage, ...]] = (
    _READ_ERROR_RECOVERY,
    _CACHING,
    _CONTROL,
    INFORMATIONAL_EXCEPTIONS,
    _CAPABILITIES,
)


class ScsiCdrom(MediumUnit):
    """The host changes the medium with ``insert``; an initiator opens and closes the tray."""

    name = "scsi-cdrom"
    operations: ClassVar[OperationTable] = OperationTable(
        PRIMARY_OPERATIONS, MODE_OPERATIONS, RESERVATION_OPERATIONS, DRIVE_OPERATIONS, CDROM_OPERATIONS
    )

    def __init__(self, medium: BlockBackend | None, *, serial: str) -> None:
        who = Identity("VIRTUAL CD-ROM", serial, DeviceType.CDROM, True, (SAM_5, SPC_4, MMC_6))
        super().__init__(medium, who, _PAGES, block_size=BLOCK_SIZE)
        self.longest_transfer = LONGEST_TRANSFER // BLOCK_SIZE
        self._event = _NO_CHANGE

    def check_range(self, address: int, count: int) -> None:
        """LOGICAL BLOCK ADDRESS OUT OF RANGE, with the first address that is wrong as INFORMATION."""
        if address + count > self.blocks or address >= self.blocks:
            code = AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
            raise illegal(code, information=max(address, self.blocks))

    @property
    def is_dvd(self) -> bool:
        """Whether the medium is too large for a compact disc."""
        return self.blocks > MOST_CD_BLOCKS

    def insert(self, medium: BlockBackend | None) -> None:
        """Also an event for who polls for it."""
        super().insert(medium)
        self._event = _MEDIUM_REMOVED if medium is None else _NEW_MEDIUM

    def start_stop(self, nexus: str, start: bool, load_or_eject: bool) -> None:
        """Ejecting and loading are events as well."""
        before = self.medium
        super().start_stop(nexus, start, load_or_eject)
        if self.medium is not before:
            self._event = _MEDIUM_REMOVED if self.medium is None else _NEW_MEDIUM

    def take_event(self) -> int:
        """What happened to the medium since the last call (MMC-6 table 248)."""
        event, self._event = self._event, _NO_CHANGE
        return event

    def block_descriptor(self, *, long: bool) -> bytes:
        """None: multimedia drives have none (MMC-6 7.2.2)."""
        return b""
