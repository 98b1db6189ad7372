"""The structures of a virtual hard disk (VHD) as bytes: footer, dynamic disk header, parent locators.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0, 2006; section names are quoted. All
numbers are big-endian. Nothing here opens a file. ``parse`` gives None for what is damaged, and never raises.
"""

import struct
from typing import Final, NamedTuple, Self

from hvemu.devices.images.contract import SECTOR

FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4
TYPE_NAMES: Final = {FIXED: "vhd-fixed", DYNAMIC: "vhd", DIFFERENCING: "vhd differencing"}
UNUSED: Final = 0xFFFFFFFF
"""A block without a place in the file ("Block Allocation Table and Data Blocks")."""
BLOCK_SIZE: Final = 2 << 20
"""The specification's default."""
LARGEST_DISK: Final = 2040 << 30
"""More cannot be addressed by sector numbers of 32 bits with room for the rest; Windows and QEMU stop here too."""
LARGEST_BLOCK: Final = 256 << 20
MOST_BLOCKS: Final = 1 << 21
"""Blocks of a table that is read: 8 MiB of memory, enough for the largest disk in blocks of half the usual size."""
YEAR_2000: Final = 946_684_800
"""Time stamps count from then; seconds since 1970."""
_NO_OFFSET: Final = 0xFFFF_FFFF_FFFF_FFFF
_VERSION: Final = 0x0001_0000
_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQ4sII16sB427s")
_HEADER: Final = struct.Struct(">8sQQIIII16sII512s192s256s")
_LOCATOR: Final = struct.Struct(">4sIIIQ")
HEADER_SIZE: Final = _HEADER.size
_FOOTER_CHECKSUM: Final = 64
_HEADER_CHECKSUM: Final = 36


def _checksum(data: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes, those of the checksum left out."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


class Footer(NamedTuple):
    """ "Hard Disk Footer Format": the end of every image, and the start of all but fixed ones."""

    cookie: bytes
    features: int
    version: int
    data_offset: int
    """Where the dynamic disk header is, in bytes."""
    time_stamp: int
    creator_application: bytes
    creator_version: int
    creator_host: bytes
    original_size: int
    current_size: int
    """Bytes of the medium."""
    geometry: bytes
    disk_type: int
    checksum: int
    unique_id: bytes
    saved_state: int
    reserved: bytes

    @classmethod
    def make(cls, disk_type: int, size: int, unique_id: bytes, time_stamp: int) -> Self:
        """For a disk of ``size`` bytes. QEMU believes the size of creator "win ", and the geometry of unknown ones."""
        offset = _NO_OFFSET if disk_type == FIXED else SECTOR
        return cls(
            b"conectix", 2, _VERSION, offset, time_stamp, b"win ", 0x0006_0001, b"Wi2k", size, size, geometry(size),
            disk_type, 0, unique_id, 0, bytes(427),
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """A footer that is whole and describes a disk that can exist, or None."""
        if len(data) != _FOOTER.size or not data.startswith(b"conectix"):
            return None
        footer = cls(*_FOOTER.unpack(data))
        fits = 0 < footer.current_size <= LARGEST_DISK and footer.current_size % SECTOR == 0
        known = footer.disk_type in TYPE_NAMES and footer.version >> 16 == _VERSION >> 16
        return footer if fits and known and footer.checksum == _checksum(data, _FOOTER_CHECKSUM) else None

    def pack(self) -> bytes:
        """512 bytes with their checksum."""
        data = _FOOTER.pack(*self._replace(checksum=0))
        return _FOOTER.pack(*self._replace(checksum=_checksum(data, _FOOTER_CHECKSUM)))


class ParentLocator(NamedTuple):
    """One of eight in a header. ``offset`` and ``length`` are bytes, ``space`` is sectors."""

    code: bytes
    space: int
    length: int
    reserved: int
    offset: int


class DynamicHeader(NamedTuple):
    """ "Dynamic Disk Header Format", of dynamic and differencing images."""

    cookie: bytes
    data_offset: int
    table_offset: int
    """Where the block allocation table is, in bytes."""
    version: int
    most_entries: int
    block_size: int
    checksum: int
    parent_unique_id: bytes
    parent_time_stamp: int
    """When the parent was modified last, in seconds since 2000."""
    reserved: int
    parent_name: bytes
    locators: bytes
    reserved_too: bytes

    @classmethod
    def make(cls, size: int, block_size: int, table_offset: int) -> Self:
        """Of a disk of ``size`` bytes without a parent."""
        return cls(
            b"cxsparse", _NO_OFFSET, table_offset, _VERSION, -(-size // block_size), block_size, 0, bytes(16), 0, 0,
            bytes(512), bytes(192), bytes(256),
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """A header that is whole, or None; whether it fits its disk is for the reader to say."""
        if len(data) != HEADER_SIZE or not data.startswith(b"cxsparse"):
            return None
        header = cls(*_HEADER.unpack(data))
        return header if header.checksum == _checksum(data, _HEADER_CHECKSUM) else None

    def pack(self) -> bytes:
        """1024 bytes with their checksum."""
        data = _HEADER.pack(*self._replace(checksum=0))
        return _HEADER.pack(*self._replace(checksum=_checksum(data, _HEADER_CHECKSUM)))

    def parent_locators(self) -> list[ParentLocator]:
        """Those in use."""
        return [entry for entry in map(ParentLocator._make, _LOCATOR.iter_unpack(self.locators)) if any(entry.code)]

    def with_locators(self, locators: list[ParentLocator]) -> Self:
        """The same header with up to eight other locators."""
        return self._replace(locators=b"".join(_LOCATOR.pack(*entry) for entry in locators).ljust(192, b"\0"))

    def blocks(self, size: int) -> int:
        """Blocks that a disk of ``size`` bytes needs."""
        return -(-size // self.block_size)

    def bitmap_size(self) -> int:
        """Bytes of the sector bitmap before each block: a bit for each sector, in whole sectors."""
        return -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR or SECTOR

    def misfit(self, size: int) -> str:
        """Why this header cannot belong to a disk of ``size`` bytes, or nothing."""
        if self.version >> 16 != _VERSION >> 16:
            return f"its header has version {self.version >> 16}"
        if self.block_size & (self.block_size - 1) or not SECTOR <= self.block_size <= LARGEST_BLOCK:
            return f"its blocks of {self.block_size} bytes are none of 512 bytes to {LARGEST_BLOCK >> 20} MiB"
        if self.blocks(size) > min(self.most_entries, MOST_BLOCKS):
            return f"a table of {self.most_entries} blocks is too small for it, or it needs more than {MOST_BLOCKS}"
        if self.table_offset % SECTOR:
            return "its table does not start at a sector"
        return ""


def geometry(size: int) -> bytes:
    """Cylinders, heads and sectors per track ("Appendix: CHS Calculation")."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        tracks = sectors // per_track
    else:
        per_track = 17
        tracks = sectors // per_track
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads = 31, 16
            tracks = sectors // per_track
        if tracks >= heads * 1024:
            per_track = 63
            tracks = sectors // per_track
    return struct.pack(">HBB", tracks // heads, heads, per_track)
