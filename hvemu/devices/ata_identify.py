"""The 256 words of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.

Spec: ATA/ATAPI-6 (T13 1410D) 8.15 and 8.16. Text is two characters a word, the first one in the high byte.
"""

import struct
from typing import Final, NamedTuple

FIRMWARE: Final = "1.0"
LARGEST_MULTIPLE: Final = 16
"""Sectors of one DRQ block of READ MULTIPLE and WRITE MULTIPLE."""
LBA28_SECTORS: Final = (1 << 28) - 1
"""The most that words 60 and 61 can say."""
LARGEST_CYLINDERS: Final = 16383

_FIXED_DEVICE, _CDROM_12_BYTE_PACKETS = 0x0040, 0x85C0
_CAPABILITIES: Final = 0x0E00
"""LBA, IORDY, which can be disabled; no DMA."""
_PIO_MODES_3_AND_4, _PIO_CYCLE_TIME = 0x0003, 120
_ATA_3_TO_6: Final = 0x0078
_VALID: Final = 0x4000
"""Bit 14 of words that say something, with bit 15 clear."""
NOP_COMMAND, DEVICE_RESET_COMMAND, LOOK_AHEAD, WRITE_CACHE, PACKET, POWER = (1 << bit for bit in (14, 9, 6, 5, 4, 3))
_FLUSH_EXT, _FLUSH, _LBA48, _POWER_LEVELS = (1 << bit for bit in (13, 12, 10, 3))


class Geometry(NamedTuple):
    """Sectors counted in cylinders, heads and sectors of a track."""

    cylinders: int
    heads: int
    track: int


class DiskSettings(NamedTuple):
    """What the host can change and IDENTIFY DEVICE shows. ``power_level`` is 0 while APM is disabled."""

    current: Geometry
    multiple: int
    write_cache: bool
    look_ahead: bool
    power_level: int


def default_geometry(sectors: int) -> Geometry:
    """16 heads and 63 sectors, and at most 16383 cylinders; a disk smaller than a cylinder has one head."""
    heads, track = (16, 63) if sectors >= 16 * 63 else (1, max(1, min(63, sectors)))
    return Geometry(min(LARGEST_CYLINDERS, sectors // (heads * track)), heads, track)


def disk_words(sectors: int, serial: str, model: str, settings: DiskSettings) -> bytes:
    """IDENTIFY DEVICE."""
    words = _common(_FIXED_DEVICE, serial, model)
    default, current = default_geometry(sectors), settings.current
    words[1], words[3], words[6] = default
    words[47] = 0x8000 | LARGEST_MULTIPLE
    words[50] = _VALID
    words[51] = 0x0200
    words[53] = 0x0003  # words 54 to 58 and 64 to 70 are valid
    words[54:57] = current
    words[57:59] = _low_first(current.cylinders * current.heads * current.track, 2)
    words[59] = 0x0100 | settings.multiple if settings.multiple else 0
    words[60:62] = _low_first(min(sectors, LBA28_SECTORS), 2)
    words[82] = NOP_COMMAND | LOOK_AHEAD | WRITE_CACHE | POWER
    words[83] = _VALID | _FLUSH_EXT | _FLUSH | _LBA48 | _POWER_LEVELS
    words[84] = words[87] = _VALID
    cache, ahead = WRITE_CACHE if settings.write_cache else 0, LOOK_AHEAD if settings.look_ahead else 0
    words[85] = NOP_COMMAND | POWER | cache | ahead
    words[86] = _FLUSH_EXT | _FLUSH | _LBA48 | (_POWER_LEVELS if settings.power_level else 0)
    words[91] = settings.power_level
    words[100:104] = _low_first(sectors, 4)
    return _packed(words)


def packet_words(serial: str, model: str) -> bytes:
    """IDENTIFY PACKET DEVICE of a CD-ROM drive."""
    words = _common(_CDROM_12_BYTE_PACKETS, serial, model)
    words[53] = 0x0002
    words[82] = words[85] = NOP_COMMAND | DEVICE_RESET_COMMAND | PACKET | POWER
    words[83] = words[84] = words[87] = _VALID
    return _packed(words)


def _common(kind: int, serial: str, model: str) -> list[int]:
    words = [0] * 256
    words[0] = kind
    words[10:20], words[23:27], words[27:47] = _text(serial, 20), _text(FIRMWARE, 8), _text(model, 40)
    words[48] = 0x0001  # 32-bit accesses of the data register; ATA-6 no longer says so, but drivers look
    words[49] = _CAPABILITIES
    words[64] = _PIO_MODES_3_AND_4
    words[67] = words[68] = _PIO_CYCLE_TIME
    words[80] = _ATA_3_TO_6
    return words


def _text(text: str, length: int) -> tuple[int, ...]:
    return struct.unpack(f">{length // 2}H", text.encode("ascii", "replace")[:length].ljust(length))


def _low_first(number: int, words: int) -> list[int]:
    return [number >> 16 * index & 0xFFFF for index in range(words)]


def _packed(words: list[int]) -> bytes:
    """With the integrity word: a signature, and a checksum that makes the sum of all bytes 0."""
    words[255] = 0x00A5
    data = bytearray(struct.pack("<256H", *words))
    data[511] = -sum(data) & 0xFF
    return bytes(data)
