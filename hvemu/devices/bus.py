"""One address space, ports or memory: which device answers where.

The dispatcher calls ``read`` and ``write`` for every access that a guest makes outside of RAM; the builder
claims windows before the guest runs, and PCI functions move theirs. An access wider than its device allows, or that
spans several devices, is split; bytes that nobody claimed read ones and are reported once per run of them.
The bus must not know what a device does, nor which mode the guest runs in.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from hvemu.devices.contract import Device

LIMITS: Final = {"port": 1 << 16, "memory": 1 << 52}

Unclaimed = Callable[[int, int, int | None], None]
"""Called with address, size, and the value that was written, or None for a read."""


def nobody_asks(address: int, size: int, value: int | None) -> None:
    """The default for unclaimed accesses."""


class Window(NamedTuple):
    """A claim: ``length`` addresses from ``base`` belong to ``device``, whose offsets begin at ``offset``."""

    base: int
    length: int
    device: Device
    offset: int


class _Entry(NamedTuple):
    """What an access at one address needs: bound methods, offset, and the widest access that fits."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]
    offset: int
    room: int


class Bus:
    """An address space of devices."""

    def __init__(self, space: Literal["port", "memory"], *, on_unclaimed: Unclaimed = nobody_asks) -> None:
        self.space = space
        self._on_unclaimed = on_unclaimed
        self._limit = LIMITS[space]
        self._windows: list[Window] = []  # by base address
        self._bases: list[int] = []
        self._entries: dict[int, _Entry] = {}  # by address, filled on demand

    def claim(self, base: int, length: int, device: Device, offset: int = 0) -> None:
        """Give a window to a device; ValueError when it is empty, does not fit, or is taken."""
        place = f"{device.name} cannot have {length:#x} addresses at {self.space} {base:#x}"
        if length <= 0 or base < 0 or base + length > self._limit:
            raise ValueError(f"{place}: the {self.space} space ends at {self._limit:#x} and a window is not empty")
        where = bisect_right(self._bases, base)
        for neighbour in self._windows[max(where - 1, 0) : where + 1]:
            if base < neighbour.base + neighbour.length and neighbour.base < base + length:
                end = neighbour.base + neighbour.length - 1
                raise ValueError(f"{place}: {neighbour.device.name} has {neighbour.base:#x} to {end:#x}")
        self._windows.insert(where, Window(base, length, device, offset))
        self._bases.insert(where, base)

    def release(self, base: int) -> None:
        """Take back the window that begins at ``base``; ValueError when there is none."""
        where = bisect_right(self._bases, base) - 1
        if where < 0 or self._bases[where] != base:
            raise ValueError(f"no window begins at {self.space} {base:#x}")
        del self._windows[where], self._bases[where]
        self._entries.clear()

    def listing(self) -> list[Window]:
        """All windows in order of address."""
        return list(self._windows)

    def read(self, address: int, size: int) -> int:
        """Read ``size`` bytes, little-endian."""
        entry = self._entries.get(address) or self._entry(address)
        if entry is not None and size <= entry.room:
            return entry.read(entry.offset, size)
        return self._read_in_parts(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes, little-endian."""
        entry = self._entries.get(address) or self._entry(address)
        if entry is not None and size <= entry.room:
            entry.write(entry.offset, size, value)
        else:
            self._write_in_parts(address, size, value)

    def _entry(self, address: int) -> _Entry | None:
        """The entry for an address, remembered. A guest can make as many as there are claimed addresses."""
        where = bisect_right(self._bases, address) - 1
        if where < 0:
            return None
        window = self._windows[where]
        left = window.base + window.length - address
        if left <= 0:
            return None
        device = window.device
        room = min(device.widest_access, 1 << left.bit_length() - 1)
        entry = _Entry(device.read, device.write, address - window.base + window.offset, room)
        if len(self._entries) < 1 << 16:
            self._entries[address] = entry
        return entry

    def _parts(self, address: int, size: int) -> list[tuple[int, int, _Entry | None]]:
        """The access as (address, size, entry) pieces; a run of unclaimed bytes is one piece."""
        parts: list[tuple[int, int, _Entry | None]] = []
        end = address + size
        while address < end:
            entry = self._entries.get(address) or self._entry(address)
            if entry is None:
                start = address
                while address < end and self._entry(address) is None:
                    address += 1
                parts.append((start, address - start, None))
            else:
                piece = min(entry.room, 1 << (end - address).bit_length() - 1)
                parts.append((address, piece, entry))
                address += piece
        return parts

    def _read_in_parts(self, address: int, size: int) -> int:
        value = 0
        for start, piece, entry in self._parts(address, size):
            if entry is None:
                self._on_unclaimed(start, piece, None)
                part = (1 << 8 * piece) - 1
            else:
                part = entry.read(entry.offset, piece)
            value |= part << 8 * (start - address)
        return value

    def _write_in_parts(self, address: int, size: int, value: int) -> None:
        for start, piece, entry in self._parts(address, size):
            part = value >> 8 * (start - address) & ((1 << 8 * piece) - 1)
            if entry is None:
                self._on_unclaimed(start, piece, part)
            else:
                entry.write(entry.offset, piece, part)
