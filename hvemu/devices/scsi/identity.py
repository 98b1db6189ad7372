"""Who a unit says it is: standard INQUIRY data and the vital product data pages that every unit has.

Spec: SPC-4 6.6 (INQUIRY), 7.8 (vital product data), 7.8.6.6.5 (NAA locally assigned).
"""

import hashlib
from typing import Final, NamedTuple

from hvemu.vocabulary.scsi import DeviceType

VENDOR: Final = "HVEMU"
REVISION: Final = "1.0"

SAM_5, SPC_4, SBC_3, MMC_6, ISCSI = 0x00A0, 0x0460, 0x04C0, 0x04E0, 0x0960
"""Version descriptors without a version claimed (SPC-4 table 144)."""


class Identity(NamedTuple):
    """``serial`` is up to 36 printable characters and unique among the units of an installation."""

    product: str
    serial: str
    device_type: DeviceType
    removable: bool = False
    versions: tuple[int, ...] = ()

    def standard(self) -> bytes:
        """Standard INQUIRY data: SPC-4, command queuing, not multi-port."""
        data = bytearray(74)
        data[0] = self.device_type
        data[1] = 0x80 if self.removable else 0
        data[2], data[3] = 0x06, 0x12  # SPC-4; HISUP, response data format 2
        data[4] = len(data) - 5
        data[7] = 0x02  # CMDQUE
        data[8:36] = _padded(VENDOR, 8) + _padded(self.product, 16) + _padded(REVISION, 4)
        for index, version in enumerate(self.versions[:8]):
            data[58 + 2 * index : 60 + 2 * index] = version.to_bytes(2, "big")
        return bytes(data)

    def serial_page(self) -> bytes:
        """Page 80h."""
        return self.serial.encode("ascii", "replace")

    def identification_page(self) -> bytes:
        """Page 83h: an NAA name made from the serial number, and the T10 vendor identification."""
        name = bytearray(hashlib.sha256(f"{self.product}\0{self.serial}".encode()).digest()[:8])
        name[0] = 0x30 | name[0] & 0x0F
        vendor = _padded(VENDOR, 8) + _padded(self.product, 16) + self.serial_page()
        return bytes((0x01, 0x03, 0, 8)) + bytes(name) + bytes((0x02, 0x01, 0, len(vendor))) + vendor


def _padded(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length].ljust(length)
