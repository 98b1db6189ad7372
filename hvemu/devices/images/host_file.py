"""The host's file that an image lies in: positioned reads and writes, barriers, holes, a lock.

It is an ``ImageFile``. After a ``sync`` that failed none succeeds, nor does a change: what the kernel has dropped stays
lost.
"""

import ctypes
import errno
import functools
import os
import stat
import sys
from collections.abc import Callable
from typing import Final, Self

from hvemu.devices.images.contract import SECTOR, ImageFile
from hvemu.vocabulary.errors import UserError

_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02
"""fallocate(2): FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE."""
_ZEROS: Final = bytes(1 << 16)


class HostFile:
    """A regular file of the host, locked: one writer, or any number of readers."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.name = path
        self._descriptor = descriptor
        self._failed = False

    @classmethod
    def open(cls, path: str, *, read_only: bool, lock: bool = True) -> Self:
        """Open and lock an existing file; raises UserError. Without a lock it may be read, and change meanwhile."""
        flags = os.O_RDONLY if read_only else os.O_RDWR
        return cls._opened(path, flags, read_only=read_only, lock=lock)

    @classmethod
    def create(cls, path: str) -> Self:
        """Make a file that was not there, and lock it; raises UserError."""
        return cls._opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, read_only=False)

    @classmethod
    def _opened(cls, path: str, flags: int, *, read_only: bool, lock: bool = True) -> Self:
        try:
            # A FIFO must not hold us up, a terminal must not become ours
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
        except FileExistsError:
            raise UserError(f"'{path}' exists already", "Give another name, or --force to overwrite it.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "that is no name of a file"
            raise UserError(f"Cannot open '{path}': {reason}", "Give the path of a disk image.") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"'{path}' is not a regular file", "Give the path of a disk image.")
            if lock:
                _lock(descriptor, path, read_only)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def _check(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, f"'{self.name}' has lost writes since a synchronisation failed")

    def size(self) -> int:
        """Bytes from the file's start to its end."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See ``ImageFile``."""
        parts = []
        while length:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                raise OSError(errno.EIO, f"'{self.name}' ends too early")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``ImageFile``."""
        self._check()
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            offset += written
            view = view[written:]

    def punch(self, offset: int, length: int) -> None:
        """See ``ImageFile``."""
        self._check()
        if length and not _punch_hole(self._descriptor, offset, length):
            for start in range(offset, offset + length, len(_ZEROS)):
                self.write(start, _ZEROS[: offset + length - start])

    def truncate(self, size: int) -> None:
        """See ``ImageFile``."""
        self._check()
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        """See ``ImageFile``."""
        self._check()
        try:
            _data_sync(self._descriptor)
        except OSError:
            self._failed = True
            raise

    def extent(self, offset: int) -> tuple[int, bool]:
        """See ``ImageFile``."""
        size = self.size()
        try:
            data = os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: nothing but a hole up to the end. Anything else: a file system that does not tell
            return size - offset, error.errno != errno.ENXIO
        if data > offset:
            return data - offset, False
        return os.lseek(self._descriptor, offset, os.SEEK_HOLE) - offset, True

    def stored(self) -> int:
        """See ``ImageFile``."""
        return os.fstat(self._descriptor).st_blocks * SECTOR

    def modified(self) -> float:
        """See ``ImageFile``."""
        return os.fstat(self._descriptor).st_mtime

    def restore_modified(self, when: float) -> None:
        """See ``ImageFile``."""
        os.utime(self._descriptor, (os.fstat(self._descriptor).st_atime, when))

    def same(self, other: ImageFile) -> bool:
        """See ``ImageFile``."""
        return isinstance(other, HostFile) and os.path.sameopenfile(self._descriptor, other._descriptor)

    def close(self) -> None:
        """Give the lock back; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def refuse_leftover(path: str) -> None:
    """What is to be written under a name of its own must not be there; raises UserError."""
    if os.path.lexists(path):
        raise UserError(f"'{path}' is there, which an interrupted command may have left", f"Type: rm {path}.")


def sync_folder(path: str) -> None:
    """Make the names in the folder of ``path`` survive a power cut."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str, read_only: bool) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"'{path}' is in use: it, or an image that builds on it, is open already",
            "End what uses it, or name it once, and try again; hvemu disk info --force-share reads it meanwhile.",
        ) from None
    except OSError as error:
        raise UserError(f"Cannot lock '{path}': {error.strerror}", "Copy it to a local file system.") from None


_data_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


@functools.cache
def _fallocate() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """False when the host or its file system cannot; raises OSError when it could and failed."""
    function = _fallocate()
    if function is None:
        return False
    while function(descriptor, _KEEP_SIZE_PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
