"""The emulated host's memory: one zero-copy buffer that the engine's MMU and Python share.

It knows nothing of guests. Frames are handed out by the p2m of a VM.
"""

import ctypes
import mmap

from hvemu.vocabulary.addresses import PAGE_SIZE


class MachineMemory:
    """``size`` bytes of zeroed memory, a multiple of the page size."""

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"machine memory of {size} bytes is not a positive multiple of {PAGE_SIZE}")
        self.size = size
        # Private: what MADV_DONTNEED gives back of a shared mapping reads as before, not as zeros.
        self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._mapping)
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        self.host_address = ctypes.addressof(self._anchor)
        """Where the buffer lies in this process; for the engine's memory map only."""

    def clear(self, base: int = 0, size: int | None = None) -> None:
        """Give whole pages back to the host, all of them unless told; they read as zeros again."""
        self._mapping.madvise(mmap.MADV_DONTNEED, base, self.size - base if size is None else size)
