"""Where a CD-ROM has what a BIOS starts: "El Torito" Bootable CD-ROM Format Specification 1.0.

The boot record volume descriptor, at sector 17, points to the boot catalog; that begins with a validation entry and
the initial entry, which names the boot image. Only images without emulation are started; floppy and hard disk emulation
went out of use with the systems that needed it. Sectors of a CD-ROM have 2048 bytes, those that the catalog counts 512.
"""

import struct
from typing import Final, NamedTuple

from hvemu.devices.contract import BlockBackend
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE

SECTOR: Final = 2048
VIRTUAL_SECTOR: Final = 512
_DESCRIPTORS: Final = 16
_IDENTIFIER: Final = b"CD001"
_BOOT_RECORD: Final = b"\x00CD001\x01EL TORITO SPECIFICATION".ljust(39, b"\0")
_CATALOG_POINTER: Final = 0x47
_ENTRY: Final = 32
_BOOTABLE: Final = 0x88
_USUAL_SEGMENT: Final = 0x07C0
_EMULATIONS: Final = {1: "1.2M floppy", 2: "1.44M floppy", 3: "2.88M floppy", 4: "hard disk"}
_HINT: Final = "Make the image with: xorriso -as mkisofs -b FILE -no-emul-boot."


class BootImage(NamedTuple):
    """The initial entry: a program at ``sector`` of the CD-ROM, so many bytes of which are loaded at ``segment``."""

    sector: int
    length: int
    segment: int


def is_cdrom(image: bytes) -> bool:
    """Whether an image has a volume descriptor of ISO 9660."""
    return image[_DESCRIPTORS * SECTOR : _DESCRIPTORS * SECTOR + 6].endswith(_IDENTIFIER)


def is_cdrom_medium(medium: BlockBackend) -> bool:
    """The same of a medium; raises OSError."""
    return _sector(medium, _DESCRIPTORS)[:6].endswith(_IDENTIFIER)


def find_boot_image(medium: BlockBackend, name: str) -> BootImage:
    """What the initial entry says; raises UserError when there is none that can be started, and OSError."""
    if not is_cdrom_medium(medium):
        raise UserError(
            f"{name} is no image of a CD-ROM (ISO 9660)",
            "Give a hard disk with --disk, and a name that does not end in .iso.",
        )
    record = _sector(medium, _DESCRIPTORS + 1)
    if not record.startswith(_BOOT_RECORD):
        raise UserError(f"{name} is not bootable: it has no boot record", _HINT)
    catalog = _sector(medium, int.from_bytes(record[_CATALOG_POINTER : _CATALOG_POINTER + 4], "little"))
    validation, initial = catalog[:_ENTRY], catalog[_ENTRY : 2 * _ENTRY]
    if validation[:1] != b"\x01" or validation[30:] != b"\x55\xaa" or sum(struct.unpack("<16H", validation)) & 0xFFFF:
        raise UserError(f"{name} is not bootable: its boot catalog is damaged", _HINT)
    indicator, media, segment, _system, _unused, count, sector = struct.unpack("<BBHBBHI", initial[:12])
    if indicator != _BOOTABLE or validation[1] != 0:
        raise UserError(f"{name} is not bootable on a PC with a BIOS", _HINT)
    if media & 0xF:
        kind = _EMULATIONS.get(media & 0xF, "unknown")
        raise UserError(f"{name} wants to be booted with {kind} emulation, which is not there", _HINT)
    segment = segment or _USUAL_SEGMENT
    length = (count or 1) * VIRTUAL_SECTOR
    if not 0x500 <= segment << 4 <= EBDA_BASE - length:
        raise UserError(f"{name} is not bootable: its program fits not into memory below 640 KiB", _HINT)
    if sector * SECTOR + length > medium.size:
        raise UserError(f"{name} is not bootable: its program lies behind its end", "Take a whole copy of it.")
    return BootImage(sector, length, segment)


def _sector(medium: BlockBackend, number: int) -> bytes:
    """Zeros behind the end."""
    return medium.read(number * SECTOR, SECTOR) if (number + 1) * SECTOR <= medium.size else bytes(SECTOR)
