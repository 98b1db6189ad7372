"""Where everything is in a VHD file, and what is wrong with it.

``examine`` reads a file and trusts none of its words: every offset is checked against the file, every count is bounded.
It changes nothing and raises OSError only. A fixed image is known by its footer at the end, which its guest cannot
reach; the others by the copy at their start, which their guest cannot reach either and which never moves.
"""

import sys
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from hvemu.devices.images.contract import SECTOR, ImageFile
from hvemu.devices.images.vhd_format import (
    DIFFERENCING,
    FIXED,
    HEADER_SIZE,
    UNUSED,
    DynamicHeader,
    Footer,
)

LONGEST_LOCATOR: Final = 4096
"""Bytes of a parent's path that are read."""


class Damage(NamedTuple):
    """What is wrong, whether ``check --repair`` can do something about it, and whether that gives up contents."""

    what: str
    repairable: bool
    loses: bool = False


@dataclass
class Layout:
    """A VHD as found. ``footer`` is None when there is none to go by, ``header`` and ``table`` for fixed images."""

    footer: Footer | None = None
    header: DynamicHeader | None = None
    table: "array[int]" = field(default_factory=lambda: array("I"))
    end: int = 0
    """The byte after the last one in use, before the footer."""
    damages: list[Damage] = field(default_factory=list)
    lost_blocks: list[int] = field(default_factory=list)
    """Blocks whose places in the file cannot be true."""
    file_size: int = 0
    at_end: bytes = b""
    at_start: bytes = b""

    def leaked(self) -> int:
        """Bytes of the file that nothing uses, before the footer."""
        if self.header is None:
            return 0
        stride = self.header.bitmap_size() + self.header.block_size
        used = stride * (len(self.table) - self.table.count(UNUSED))
        return max(0, self.file_size - SECTOR - first_block(self.header) - used) // stride * stride


def first_block(header: DynamicHeader) -> int:
    """Where blocks may begin: after the table, in bytes."""
    return -(-(header.table_offset + 4 * header.most_entries) // SECTOR) * SECTOR


def examine(file: ImageFile) -> Layout:
    """Read footers, header and table; where one damage cannot be repaired, none is."""
    layout = _examine(file)
    if not all(damage.repairable for damage in layout.damages):
        layout.damages = [damage._replace(repairable=False) for damage in layout.damages]
    return layout


def _examine(file: ImageFile) -> Layout:
    size = file.size()
    layout = Layout(file_size=size)
    if size < SECTOR:
        layout.damages.append(Damage("it is too short for a footer", repairable=False))
        return layout
    layout.at_end = file.read(size - SECTOR, SECTOR)
    layout.at_start = file.read(0, SECTOR)
    last, first = Footer.parse(layout.at_end), Footer.parse(layout.at_start)
    if first is not None and first.disk_type == FIXED:
        first = None  # what a guest wrote there
    if last is not None and last.disk_type == FIXED:
        _examine_fixed(layout, last, first)
        return layout
    if first is None and last is None:
        layout.damages.append(Damage("it has no footer that is whole", repairable=False))
        return layout
    layout.footer = first or last
    if first is None:
        layout.damages.append(Damage("the copy of its footer at the start is damaged", repairable=True))
    elif last is None or (last.disk_type, last.current_size) != (first.disk_type, first.current_size):
        layout.damages.append(Damage("its footer is missing at the end", repairable=True))
    _examine_blocks(file, layout)
    return layout


def _examine_fixed(layout: Layout, last: Footer, first: Footer | None) -> None:
    if first is not None:
        # One of them was written by a guest, to be taken for the other
        layout.damages.append(Damage("it starts as one disk and ends as another", repairable=False))
    elif last.current_size != layout.file_size - SECTOR:
        text = f"its footer promises {last.current_size} bytes and {layout.file_size - SECTOR} are there"
        layout.damages.append(Damage(text, repairable=False))
    else:
        layout.footer = last
        layout.end = last.current_size


def _examine_blocks(file: ImageFile, layout: Layout) -> None:
    footer = layout.footer
    assert footer is not None
    if footer.data_offset % SECTOR or not SECTOR <= footer.data_offset <= layout.file_size - HEADER_SIZE:
        layout.damages.append(Damage("its header lies outside of it", repairable=False))
        return
    header = DynamicHeader.parse(file.read(footer.data_offset, HEADER_SIZE))
    misfit = "its header is damaged" if header is None else header.misfit(footer.current_size)
    if header is not None and not misfit:
        length = 4 * header.blocks(footer.current_size)
        used = _used_by_metadata(footer, header, length)
        if any(stop > layout.file_size for _, stop in used):
            misfit = "its header speaks of places outside of it"
        elif any(stop > after for (_, stop), (after, _) in pairwise(used)):
            misfit = "parts of its metadata overlap"
    if header is None or misfit:
        layout.damages.append(Damage(misfit, repairable=False))
        return
    layout.header = header
    layout.table = array("I", file.read(header.table_offset, length))
    if sys.byteorder == "little":
        layout.table.byteswap()
    _examine_table(layout, used)


def _used_by_metadata(footer: Footer, header: DynamicHeader, table_length: int) -> list[tuple[int, int]]:
    """Start and stop of everything that is no block, in order."""
    used = [(0, SECTOR), (footer.data_offset, footer.data_offset + HEADER_SIZE)]
    used.append((header.table_offset, header.table_offset + table_length))
    if footer.disk_type == DIFFERENCING:
        for locator in header.parent_locators():
            if 0 < locator.length <= LONGEST_LOCATOR:
                used.append((locator.offset, locator.offset + locator.length))
    return sorted(used)


def _examine_table(layout: Layout, used: list[tuple[int, int]]) -> None:
    """Blocks must lie in the file, before the footer, and share no sector with anything else."""
    header, table = layout.header, layout.table
    assert header is not None
    stride = header.bitmap_size() + header.block_size
    limit = layout.file_size // SECTOR * SECTOR
    if Footer.parse(layout.at_end) is not None:
        limit -= SECTOR
    last_stop = end = used[-1][1]
    block_end = 0
    # Numbers, not pairs: a table of the largest size is sorted in 80 MiB
    for packed in sorted(entry << 32 | index for index, entry in enumerate(table) if entry != UNUSED):
        start, index = (packed >> 32) * SECTOR, packed & 0xFFFFFFFF
        stop = start + stride
        on_metadata = start < last_stop and used[bisect_left(used, (stop, 0)) - 1][1] > start
        if start < block_end or stop > limit or on_metadata:
            layout.lost_blocks.append(index)
        else:
            block_end = stop
    # A table may have more entries than the disk has blocks, and they are not ours to write over
    end = max(end, min(first_block(header), limit))
    layout.end = -(-max(end, block_end) // SECTOR) * SECTOR
    if layout.lost_blocks:
        what = f"{len(layout.lost_blocks)} blocks of its table lie outside of it, on its metadata or on each other"
        layout.damages.append(Damage(what, repairable=True, loses=True))
