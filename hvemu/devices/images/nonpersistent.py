"""A medium that forgets: what is written goes to a temporary file, and the image beneath is only read."""

import tempfile
from typing import Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.images.contract import SECTOR, checked_range

_BLOCK: Final = 4096
"""Bytes that are kept together."""


class NonpersistentMedium:
    """A ``BlockBackend`` over another one, which it never changes; gone when it is closed."""

    read_only = False

    def __init__(self, base: BlockBackend) -> None:
        self.size = base.size
        self._base = base
        self._own: set[int] = set()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the medium

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        first, last = offset // _BLOCK, (offset + length - 1) // _BLOCK
        if self._own.isdisjoint(range(first, last + 1)):
            return self._base.read(offset, length)
        parts, end = [], offset + length
        while offset < end:
            block = offset // _BLOCK
            size = min((block + 1) * _BLOCK, end) - offset
            parts.append(self._stored(offset, size) if block in self._own else self._base.read(offset, size))
            offset += size
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, len(data))
        end = offset + len(data)
        for edge in (offset // _BLOCK, (end - 1) // _BLOCK) if data else ():
            start = edge * _BLOCK
            whole = offset <= start and min(start + _BLOCK, self.size) <= end
            if edge not in self._own and not whole:
                self._store(start, self._base.read(start, min(_BLOCK, self.size - start)))
        self._store(offset, data)
        self._own.update(range(offset // _BLOCK, -(-end // _BLOCK)))

    def flush(self) -> None:
        """Nothing is to last."""

    def close(self) -> None:
        """What was written is gone; the image beneath is its owner's."""
        self._file.close()

    def discard(self, offset: int, length: int) -> None:
        """Zeros, like any others."""
        while length:
            size = min(length, 1 << 20)
            self.write(offset, bytes(size))
            offset, length = offset + size, length - size

    def extent(self, offset: int) -> tuple[int, bool]:
        """See ``BlockBackend``; what is its own is told a block at a time."""
        checked_range(self.size, offset, SECTOR)
        block = offset // _BLOCK
        rest = min((block + 1) * _BLOCK, self.size) - offset
        if block in self._own:
            return rest, True
        length, allocated = self._base.extent(offset)
        return min(length, rest), allocated

    def _stored(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length).ljust(length, b"\0")

    def _store(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._file.write(data)
