"""A raw image: the medium's bytes and nothing else. Holes of the file read as zeros and take no space."""

from hvemu.devices.images.contract import SECTOR, ImageFile, checked_range, checked_write
from hvemu.vocabulary.errors import UserError


class RawImage:
    """A ``BlockBackend``. A write stands in the host's file when it returns, and on its medium after ``flush``."""

    format = "raw"

    def __init__(self, file: ImageFile, *, read_only: bool) -> None:
        self.file = file
        self.size = file.size()
        self.read_only = read_only
        if self.size % SECTOR or not self.size:
            rounded = self.size // SECTOR * SECTOR + SECTOR
            hint = f"Type: truncate -s {rounded} {file.name}."
            if not self.size or file.name.lower().endswith(".iso"):
                hint = "It is not all there: fetch or make it again."
            raise UserError(f"'{file.name}' has {self.size} bytes, and a disk has whole sectors of {SECTOR}", hint)

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        return self.file.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, len(data), read_only=self.read_only)
        self.file.write(offset, data)

    def flush(self) -> None:
        """See ``BlockBackend``."""
        if not self.read_only:
            self.file.sync()

    def discard(self, offset: int, length: int) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, length, read_only=self.read_only)
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
