"""An image that has its medium's bytes in a row. Holes of the file read as zeros and take no space."""

from hvemu.devices.images.contract import SECTOR, ImageFile, checked_range, checked_write


class FlatImage:
    """A ``BlockBackend``. A write stands in the host's file when it returns, and on its medium after ``flush``."""

    def __init__(self, file: ImageFile, size: int, *, read_only: bool) -> None:
        self.file = file
        self.size = size
        self.read_only = read_only

    def before_change(self) -> None:
        """What a format does before its medium's bytes change."""

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        return self.file.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, len(data), read_only=self.read_only)
        self.before_change()
        self.file.write(offset, data)

    def flush(self) -> None:
        """See ``BlockBackend``."""
        if not self.read_only:
            self.file.sync()

    def discard(self, offset: int, length: int) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, length, read_only=self.read_only)
        self.before_change()
        self.file.punch(offset, length)

    def extent(self, offset: int) -> tuple[int, bool]:
        """See ``BlockBackend``. Blocks of the host's file system that are larger than a sector count as a whole."""
        checked_range(self.size, offset, SECTOR)
        length, stored = self.file.extent(offset)
        return max(SECTOR, min(length, self.size - offset) // SECTOR * SECTOR), stored

    def close(self) -> None:
        """Flush, and give the file back."""
        try:
            self.flush()
        finally:
            self.file.close()
