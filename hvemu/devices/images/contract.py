"""What an image format needs of a file, and what a disk image is to everybody else.

Offsets and lengths are bytes. Tests give formats a file that loses what was not synchronised.
"""

import errno
from typing import Final, Protocol

from hvemu.devices.contract import BlockBackend

SECTOR: Final = 512


class ImageFile(Protocol):
    """What an image format needs of a file. Every method may raise OSError."""

    name: str

    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; OSError EIO when the file ends before."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of ``data``; the file grows when it must, with zeros in between."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Make a range inside the file zeros, and give its space back where the host can."""
        ...

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None:
        """A barrier: what was written before survives a power cut, what is written later came later."""
        ...

    def extent(self, offset: int) -> tuple[int, bool]:
        """How many bytes from ``offset`` on are alike, up to the end of the file; and whether the host stores them."""
        ...

    def stored(self) -> int:
        """Bytes that the host has allocated to the file."""
        ...

    def modified(self) -> float:
        """The time of the last modification, in seconds since 1970."""
        ...

    def restore_modified(self, when: float) -> None:
        """Take back the time of modification: what was changed were not the contents."""
        ...

    def same(self, other: "ImageFile") -> bool:
        """Whether both are one file of the host."""
        ...

    def close(self) -> None: ...


def checked_range(size: int, offset: int, length: int) -> None:
    """Refuse what a ``BlockBackend`` is never asked for; raises OSError EINVAL."""
    if offset % SECTOR or length % SECTOR or offset < 0 or length < 0 or offset + length > size:
        raise OSError(errno.EINVAL, f"{length} bytes at {offset} are not sectors of a medium of {size} bytes")


def checked_write(size: int, offset: int, length: int, *, read_only: bool) -> None:
    """The same for a change; raises OSError EROFS too."""
    checked_range(size, offset, length)
    if read_only:
        raise OSError(errno.EROFS, "the medium is write-protected")


class Image(BlockBackend, Protocol):
    """A ``BlockBackend`` that lies in a file. ``format`` is a word for the user."""

    file: ImageFile
    format: str

    def close(self) -> None:
        """Flush, and give the files and their locks back."""
        ...
