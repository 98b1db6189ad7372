"""A fixed VHD: a raw image with a footer behind it ("Fixed Hard Disk Images")."""

import uuid

from hvemu.devices.images.contract import SECTOR, ImageFile, checked_range, checked_write
from hvemu.devices.images.vhd_format import Footer


class FixedVhd:
    """A ``BlockBackend``. The first write after opening gives it a new unique id, which its children notice."""

    format = "vhd-fixed"

    def __init__(self, file: ImageFile, footer: Footer, *, read_only: bool, same_contents: bool = False) -> None:
        self.file = file
        self.footer = footer
        self.size = footer.current_size
        self.read_only = read_only
        self._identified = same_contents

    def identify(self, unique_id: bytes) -> None:
        """Take another unique id, for good before anything else changes."""
        self.footer = self.footer._replace(unique_id=unique_id)
        self.file.write(self.size, self.footer.pack())
        self.file.sync()
        self._identified = True

    def read(self, offset: int, length: int) -> bytes:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, length)
        return self.file.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, len(data), read_only=self.read_only)
        if not self._identified:
            self.identify(uuid.uuid4().bytes)
        self.file.write(offset, data)

    def flush(self) -> None:
        """See ``BlockBackend``."""
        if not self.read_only:
            self.file.sync()

    def discard(self, offset: int, length: int) -> None:
        """See ``BlockBackend``."""
        checked_write(self.size, offset, length, read_only=self.read_only)
        if not self._identified:
            self.identify(uuid.uuid4().bytes)
        self.file.punch(offset, length)

    def extent(self, offset: int) -> tuple[int, bool]:
        """See ``BlockBackend``."""
        checked_range(self.size, offset, SECTOR)
        length, stored = self.file.extent(offset)
        return max(SECTOR, min(length, self.size - offset) // SECTOR * SECTOR), stored

    def close(self) -> None:
        """Flush, and give the file back."""
        try:
            self.flush()
        finally:
            self.file.close()
