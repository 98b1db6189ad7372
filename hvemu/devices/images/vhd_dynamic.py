"""Dynamic and differencing VHDs: blocks that get a place in the file when they are written first.

What a flush promises rests on the order in which things reach the file. A write puts data into the file but remembers
in memory what tells where it is: entries of the table, bits of the bitmaps. ``flush`` makes the data durable, then
writes entries and bits, then makes those durable. So whatever the file holds after a crash, nothing in it speaks of
data that did not arrive. When the file grows, the new footer is written first, then the block where the old one was;
the copy of the footer at the start never moves.

"Implementing a Dynamic Disk" and "Implementing a Differencing Hard Disk": a sector whose bit is clear is the parent's,
or zeros without one. A block is given free when it is discarded as a whole and the parent has nothing there.
"""

import contextlib
import errno
import sys
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.images.contract import SECTOR, Image, ImageFile, checked_range, checked_write
from hvemu.devices.images.sector_bitmap import mark, run
from hvemu.devices.images.vhd_format import DIFFERENCING, UNUSED, Footer
from hvemu.devices.images.vhd_layout import Layout, examine

_PAGE: Final = 4096
"""Data of blocks starts at multiples of it, so that the host can make holes of whole pages."""
_CACHED_BITMAPS: Final = 4 << 20
_MOST_PENDING: Final = 1024
"""Entries and bitmaps that may wait for a flush before one is made for them."""
_MOST_STEPS: Final = 16
"""Blocks that one answer about an extent looks at."""


class DynamicVhd:
    """A ``BlockBackend``. ``parent`` must have the same size; it belongs to this image and is closed with it."""

    def __init__(
        self, file: ImageFile, layout: Layout, parent: Image | None, *, read_only: bool, same_contents: bool = False
    ) -> None:
        assert layout.footer is not None
        assert layout.header is not None
        self.file = file
        self.footer: Footer = layout.footer
        self.header = layout.header
        self.parent = parent
        self.size = self.footer.current_size
        self.read_only = read_only
        self.format = "vhd differencing" if self.footer.disk_type == DIFFERENCING else "vhd"
        self.table: array[int] = layout.table
        self.end = layout.end
        self._stale_tail = layout.file_size != layout.end + SECTOR
        self._identified = same_contents
        self._block = self.header.block_size
        self._bitmap_size = self.header.bitmap_size()
        self._bitmaps: OrderedDict[int, bytearray] = OrderedDict()
        self._dirty_bitmaps: set[int] = set()
        self._dirty_entries: set[int] = set()
        self._freed: dict[int, int] = {}
        """Blocks that the table of the file still knows, and their places."""
        self._free: list[int] = []
        """Places that nothing in the file speaks of any more."""
        self._failed = False

    def identify(self, unique_id: bytes) -> None:
        """Take another unique id, for good before anything else changes."""
        self.footer = self.footer._replace(unique_id=unique_id)
        packed = self.footer.pack()
        self.file.write(0, packed)
        if not self._stale_tail:
            self.file.write(self.end, packed)
        self.file.sync()
        self._identified = True

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        parts = []
        for index, inside, size in self._pieces(offset, length):
            for start, stop, own in self._runs(index, inside, size):
                if own:
                    parts.append(self.file.read(self._data(index) + start, stop - start))
                elif self.parent is not None:
                    parts.append(self.parent.read(index * self._block + start, stop - start))
                else:
                    parts.append(bytes(stop - start))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``. Zeros take no space where there is nothing yet, and no parent."""
        self._before_change(offset, len(data))
        view = memoryview(data)
        for index, inside, size in self._pieces(offset, len(data)):
            self._bound_pending()
            piece = view[:size]
            view = view[size:]
            if self.table[index] == UNUSED:
                if self.parent is None and piece == bytes(size):
                    continue
                self._allocate(index)
            self.file.write(self._data(index) + inside, piece)
            self._mark(index, inside, size)

    def flush(self) -> None:
        """See ``BlockBackend``."""
        if self.read_only:
            return
        if self._failed:
            raise OSError(errno.EIO, f"'{self.file.name}' has lost writes since a flush failed")
        try:
            self.file.sync()
            if self._dirty_entries or self._dirty_bitmaps:
                self._write_bitmaps()
                self._write_entries()
                self.file.sync()
        except OSError:
            self._failed = True
            raise
        self._dirty_entries.clear()
        self._dirty_bitmaps.clear()
        self._free += self._freed.values()
        self._freed.clear()

    def discard(self, offset: int, length: int) -> None:
        """See ``BlockBackend``. Where the parent has something, zeros must hide it: they are a hole in a block."""
        self._before_change(offset, length)
        for index, inside, size in self._pieces(offset, length):
            self._bound_pending()
            start = index * self._block
            whole = inside == 0 and start + size == min(start + self._block, self.size)
            if self.table[index] == UNUSED:
                if _is_empty(self.parent, start + inside, size):
                    continue
                self._allocate(index)
            if whole and _is_empty(self.parent, start, size):
                # With what lies behind the end of the disk: the place may become that of a block which is not the last
                self.file.punch(self._data(index), self._block)
                self._free_block(index)
            else:
                self.file.punch(self._data(index) + inside, size)
                self._mark(index, inside, size)

    def extent(self, offset: int) -> tuple[int, bool]:
        """See ``BlockBackend``; what is allocated in the parent counts."""
        checked_range(self.size, offset, SECTOR)
        length, allocated = self.extent_in_block(offset)
        for _ in range(_MOST_STEPS):
            if offset + length >= self.size:
                break
            more, alike = self.extent_in_block(offset + length)
            if alike != allocated:
                break
            length += more
        return length, allocated

    def extent_in_block(self, offset: int) -> tuple[int, bool]:
        """The same inside one block. An image asks its parent so, which makes a long chain no more than long."""
        length, own = self.own_extent(offset)
        if own or self.parent is None:
            return length, own
        below, allocated = _extent_below(self.parent, offset)
        return min(length, below), allocated

    def own_extent(self, offset: int) -> tuple[int, bool]:
        """How many bytes from ``offset`` on, inside its block, are this image's own, or all not."""
        checked_range(self.size, offset, SECTOR)
        index, inside = divmod(offset, self._block)
        size = min(self._block - inside, self.size - offset)
        start, stop, own = next(self._runs(index, inside, size))
        return stop - start, own

    def empty(self) -> None:
        """Forget all blocks, durably, and give their space back; what is read is the parent's then."""
        self._before_change(0, 0)
        self._dirty_entries = {index for index, entry in enumerate(self.table) if entry != UNUSED}
        for index in self._dirty_entries:
            self.table[index] = UNUSED
        self._dirty_bitmaps.clear()
        self._bitmaps.clear()
        self._freed.clear()
        self.flush()
        self.end = examine(self.file).end
        self._free.clear()
        self._end_here()
        self.file.sync()

    def close(self) -> None:
        """Flush, and give the files back."""
        try:
            self.flush()
        finally:
            self.file.close()
            if self.parent is not None:
                self.parent.close()

    def allocated_blocks(self) -> int:
        """Blocks that have a place in the file."""
        return len(self.table) - self.table.count(UNUSED)

    def _before_change(self, offset: int, length: int) -> None:
        checked_write(self.size, offset, length, read_only=self.read_only)
        if self._failed:
            raise OSError(errno.EIO, f"'{self.file.name}' has lost writes since a flush failed")
        if not self._identified:
            self.identify(uuid.uuid4().bytes)

    def _bound_pending(self) -> None:
        if len(self._dirty_entries) + len(self._dirty_bitmaps) >= _MOST_PENDING:
            self.flush()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Block, offset inside it and length of every part of a range."""
        while length:
            index, inside = divmod(offset, self._block)
            size = min(self._block - inside, length)
            yield index, inside, size
            offset += size
            length -= size

    def _runs(self, index: int, inside: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """Parts of a block that are alike: start and stop inside it, and whether they are its own."""
        if self.table[index] == UNUSED:
            yield inside, inside + size, False
            return
        bitmap = self._bitmap(index)
        at, stop = inside // SECTOR, (inside + size) // SECTOR
        while at < stop:
            own, until = run(bitmap, at, stop)
            yield at * SECTOR, until * SECTOR, own
            at = until

    def _data(self, index: int) -> int:
        return self.table[index] * SECTOR + self._bitmap_size

    def _bitmap(self, index: int) -> bytearray:
        bitmap = self._bitmaps.get(index)
        if bitmap is None:
            bitmap = bytearray(self.file.read(self.table[index] * SECTOR, self._bitmap_size))
            self._remember(index, bitmap)
        else:
            self._bitmaps.move_to_end(index)
        return bitmap

    def _remember(self, index: int, bitmap: bytearray) -> None:
        self._bitmaps[index] = bitmap
        if len(self._bitmaps) * self._bitmap_size > _CACHED_BITMAPS:
            oldest = next((each for each in self._bitmaps if each not in self._dirty_bitmaps and each != index), None)
            if oldest is not None:
                del self._bitmaps[oldest]

    def _mark(self, index: int, inside: int, size: int) -> None:
        if mark(self._bitmap(index), inside // SECTOR, (inside + size) // SECTOR):
            self._dirty_bitmaps.add(index)

    def _allocate(self, index: int) -> None:
        """Give a block a place whose data are zeros, in memory."""
        if index in self._freed:
            self.table[index] = self._freed.pop(index)
            return
        # Without a parent the whole block is valid at once; a parent's sectors show through until they are written
        bitmap = bytearray(self._bitmap_size) if self.parent is not None else bytearray(b"\xff" * self._bitmap_size)
        if self._free:
            start = self._free[-1] * SECTOR
            self.file.write(start, bitmap)
            self._free.pop()
        else:
            start = self._grow(bitmap)
        self.table[index] = start // SECTOR
        self._dirty_entries.add(index)
        self._dirty_bitmaps.discard(index)
        self._remember(index, bitmap)

    def _grow(self, bitmap: bytearray) -> int:
        """Make room for a block at the end, and move the footer behind it; where the block starts."""
        start = -(-(self.end + self._bitmap_size) // _PAGE) * _PAGE - self._bitmap_size
        end = start + self._bitmap_size + self._block
        if start // SECTOR >= UNUSED:
            raise OSError(errno.ENOSPC, f"'{self.file.name}' is as long as a VHD can be")
        if self._stale_tail:
            self.file.truncate(self.end)
        try:
            self.file.write(end, self.footer.pack())
            self.file.write(start, bitmap)
        except OSError:
            self._stale_tail = True
            with contextlib.suppress(OSError):
                self._end_here()
            raise
        self._stale_tail = False
        self.end = end
        return start

    def _end_here(self) -> None:
        """Cut off what nothing in the file speaks of, and put the footer there."""
        self._stale_tail = True
        self.file.truncate(self.end)
        self.file.write(self.end, self.footer.pack())
        self._stale_tail = False

    def _free_block(self, index: int) -> None:
        self._freed[index] = self.table[index]
        self.table[index] = UNUSED
        self._dirty_entries.add(index)
        self._dirty_bitmaps.discard(index)
        self._bitmaps.pop(index, None)

    def _write_bitmaps(self) -> None:
        for index in sorted(self._dirty_bitmaps):
            self.file.write(self.table[index] * SECTOR, self._bitmaps[index])

    def _write_entries(self) -> None:
        """By sectors of the table, which are written as a whole or not at all."""
        per_sector = SECTOR // 4
        for sector in sorted({index // per_sector for index in self._dirty_entries}):
            entries = self.table[sector * per_sector : (sector + 1) * per_sector]
            if sys.byteorder == "little":
                entries.byteswap()
            self.file.write(self.header.table_offset + sector * SECTOR, entries.tobytes())


def _extent_below(parent: BlockBackend, offset: int) -> tuple[int, bool]:
    return parent.extent_in_block(offset) if isinstance(parent, DynamicVhd) else parent.extent(offset)


def _is_empty(parent: BlockBackend | None, offset: int, length: int) -> bool:
    """Whether a range of the parent takes no space, and so reads as zeros."""
    while parent is not None and length > 0:
        alike, allocated = _extent_below(parent, offset)
        if allocated:
            return False
        offset += alike
        length -= alike
    return True
