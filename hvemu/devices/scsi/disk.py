"""A direct-access disk (SBC-3, SPC-4) on a BlockBackend.

With WCE (caching page) a write is acknowledged when the backend has it; without, or with FUA, when it was flushed.
Limits on what one command may ask for stand in vital product data page B0h and are enforced.

Not emulated: protection information, SANITIZE, EXTENDED COPY, LOG SENSE, power conditions, saved mode pages.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.scsi import identity
from hvemu.devices.scsi.blocks import BLOCK_OPERATIONS
from hvemu.devices.scsi.identity import Identity
from hvemu.devices.scsi.medium import DRIVE_OPERATIONS, MediumUnit, medium_errors
from hvemu.devices.scsi.modes import (
    CACHING,
    CACHING_PAGE,
    CONTROL,
    CONTROL_PAGE,
    INFORMATIONAL_EXCEPTIONS,
    MODE_OPERATIONS,
    READ_WRITE_ERROR_RECOVERY,
)
from hvemu.devices.scsi.operations import OperationTable
from hvemu.devices.scsi.primary import PRIMARY_OPERATIONS
from hvemu.devices.scsi.provisioning import MOST_UNMAP_DESCRIPTORS, PROVISIONING_OPERATIONS
from hvemu.devices.scsi.reservation_commands import RESERVATION_OPERATIONS
from hvemu.devices.scsi.sense import CheckCondition, Sense, illegal
from hvemu.vocabulary.scsi import AdditionalSense, DeviceType, SenseKey

LONGEST_TRANSFER: Final = 8 << 20
"""Bytes of data-in or data-out of one command."""
LONGEST_WRITE_SAME: Final = 16 << 20
LONGEST_UNMAP: Final = 512 << 20
MOST_COMPARE_AND_WRITE: Final = 255
"""Blocks."""
_UNMAP_GRANULE: Final = 4096
"""Bytes: what file systems of hosts can give back."""
_WRITE_PROTECTED, _DPO_AND_FUA = 0x80, 0x10


class ScsiDisk(MediumUnit):
    """``physical_block_size`` is a hint to initiators: the unit in which the medium is best written."""

    name = "scsi-disk"
    operations: ClassVar[OperationTable] = OperationTable(
        PRIMARY_OPERATIONS,
        MODE_OPERATIONS,
        RESERVATION_OPERATIONS,
        DRIVE_OPERATIONS,
        BLOCK_OPERATIONS,
        PROVISIONING_OPERATIONS,
    )
    vital_product_data = (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2)

    def __init__(
        self,
        medium: BlockBackend,
        *,
        serial: str,
        block_size: int = 512,
        physical_block_size: int = 512,
        removable: bool = False,
    ) -> None:
        versions = (identity.SAM_5, identity.SPC_4, identity.SBC_3)
        who = Identity("VIRTUAL DISK", serial, DeviceType.DISK, removable, versions)
        pages = (READ_WRITE_ERROR_RECOVERY, CACHING_PAGE, CONTROL_PAGE, INFORMATIONAL_EXCEPTIONS)
        super().__init__(medium, who, pages, block_size=block_size)
        if self.blocks < 1:
            raise ValueError(f"a disk needs at least one block of {block_size} bytes")
        self.physical_exponent = max(0, (physical_block_size // block_size).bit_length() - 1)
        self.longest_transfer = LONGEST_TRANSFER // block_size
        self.longest_write_same = LONGEST_WRITE_SAME // block_size
        self.longest_unmap = LONGEST_UNMAP // block_size

    # Checks

    def check_range(self, address: int, count: int) -> None:
        """LOGICAL BLOCK ADDRESS OUT OF RANGE, with the first address that is wrong as INFORMATION."""
        if address > self.blocks or address + count > self.blocks or (not count and address == self.blocks):
            code = AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
            raise illegal(code, information=max(address, self.blocks))

    def check_writable(self) -> None:
        """DATA PROTECT on a read-only medium, or while SWP of the control page is set."""
        if self.loaded.read_only:
            raise CheckCondition(Sense(SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED))
        if self.modes.flag(CONTROL, 4, 3):
            code = AdditionalSense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED
            raise CheckCondition(Sense(SenseKey.DATA_PROTECT, code))

    # Writing

    def write_blocks(self, address: int, data: bytes, *, forced: bool) -> None:
        """Write whole blocks and settle them."""
        if data:
            self.put_blocks(address, data)
        self.settle(forced=forced)

    def put_blocks(self, address: int, data: bytes) -> None:
        """Write whole blocks; the caller settles them."""
        with medium_errors(address, AdditionalSense.WRITE_ERROR):
            self.loaded.write(address * self.block_size, data)

    def discard_blocks(self, address: int, count: int) -> None:
        """Deallocate; the caller settles it."""
        if count:
            with medium_errors(address, AdditionalSense.WRITE_ERROR):
                self.loaded.discard(address * self.block_size, count * self.block_size)

    def settle(self, *, forced: bool) -> None:
        """Flush what was written unless the write cache may keep it."""
        if forced or not self.modes.flag(CACHING, 2, 2):
            self.flush()

    # What INQUIRY and MODE SENSE ask

    def vital_page(self, code: int) -> bytes:
        """Block limits, block device characteristics and logical block provisioning besides the common ones."""
        if code == 0xB0:
            return self._block_limits()
        if code == 0xB1:
            return b"\0\x01" + bytes(58)  # a non-rotating medium
        if code == 0xB2:
            return bytes((0, 0xC4, 0x02, 0))  # LBPU, LBPWS, LBPRZ; thin
        return super().vital_page(code)

    def _block_limits(self) -> bytes:
        page = bytearray(60)
        page[1] = MOST_COMPARE_AND_WRITE
        page[2:4] = (1 << self.physical_exponent).to_bytes(2, "big")
        page[4:8] = self.longest_transfer.to_bytes(4, "big")
        page[8:12] = min(self.longest_transfer, (1 << 20) // self.block_size).to_bytes(4, "big")
        page[16:20] = self.longest_unmap.to_bytes(4, "big")
        page[20:24] = MOST_UNMAP_DESCRIPTORS.to_bytes(4, "big")
        page[24:28] = max(1, _UNMAP_GRANULE // self.block_size).to_bytes(4, "big")
        page[28:32] = (1 << 31).to_bytes(4, "big")  # UGAVALID: granules begin at block 0
        page[32:40] = self.longest_write_same.to_bytes(8, "big")
        return bytes(page)

    def block_descriptor(self, *, long: bool) -> bytes:
        """Number of blocks and their length."""
        if self.medium is None:
            return b""
        if long:
            return self.blocks.to_bytes(8, "big") + bytes(4) + self.block_size.to_bytes(4, "big")
        return min(self.blocks, 0xFFFFFFFF).to_bytes(4, "big") + self.block_size.to_bytes(4, "big")

    def device_parameter(self) -> int:
        """WP and DPOFUA."""
        protected = self.modes.flag(CONTROL, 4, 3) or (self.medium is not None and self.medium.read_only)
        return _DPO_AND_FUA | (_WRITE_PROTECTED if protected else 0)

    def before_modes_change(self, changed: Mapping[int, bytes]) -> None:
        """What the cache holds is written before the cache is turned off."""
        if CACHING in changed:
            self.flush()
