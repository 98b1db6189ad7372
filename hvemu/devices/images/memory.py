"""A medium in memory."""

from hvemu.devices.images.contract import SECTOR, checked_range


class MemoryMedium:
    """A ``BlockBackend`` with a copy of ``contents``, filled up to whole sectors."""

    read_only = False

    def __init__(self, contents: bytes) -> None:
        self._bytes = bytearray(contents)
        self._bytes += bytes(-len(contents) % SECTOR)
        self.size = len(self._bytes)

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, len(data))
        self._bytes[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Nothing is to last."""

    def discard(self, offset: int, length: int) -> None:
        """Zeros."""
        self.write(offset, bytes(length))

    def extent(self, offset: int) -> tuple[int, bool]:
        """Everything is there."""
        return self.size - offset, True
