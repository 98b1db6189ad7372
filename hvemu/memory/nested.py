"""Nested paging: the MMU walks tables of the hypervisor's for every address that the guest's tables give.

The tables translate guest-physical to machine addresses; the guest's own are its affair (APM vol. 2, 15.25). They have
the format of the host's page tables: four levels, or two. Entries are made when the CPU faults for the first time on a
page. Dirty logging takes write permission away; a walk through the guest's tables counts as a write to them, as on a
CPU. With two levels the engine wraps guest-physical addresses at 4 GiB, where a CPU would fault. No entry forbids
execution: the engine ends the process when a guest uses such a page as a page table.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from hvemu.memory.frame_pool import FramePool
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.shadow import MMIO_WINDOW
from hvemu.memory.walk import PTE_PRESENT, PTE_USER, PTE_WRITABLE
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.exits import PagingEvent

_FORMATS: Final = {4: (struct.Struct("<Q"), 9), 2: (struct.Struct("<I"), 10)}
_ENTRY_BITS: Final = PTE_PRESENT | PTE_WRITABLE | PTE_USER
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_WINDOW_FRAMES: Final = MMIO_WINDOW >> PAGE_SHIFT


class NestedStep(NamedTuple):
    """One level of a walk through the nested tables."""

    level: int
    address: int
    """Machine address of the entry."""
    entry: int


class NestedPaging:
    """Nested tables of one virtual machine. ``flush`` drops what the CPU's TLB remembers of them."""

    def __init__(
        self,
        memory: GuestPhysicalMemory,
        pool: FramePool,
        flush: Callable[[], None],
        note: Callable[[PagingEvent], None],
        levels: int = 4,
    ) -> None:
        self._memory, self._pool, self._flush, self._note = memory, pool, flush, note
        self.levels = levels
        self._format, self._bits = _FORMATS[levels]
        self._frame_mask = (1 << levels * self._bits) - 1
        self._view = memory.machine.view
        self._ram_frames = memory.size >> PAGE_SHIFT
        self.root = pool.take()
        """Machine address for N_CR3."""
        self._leaves: dict[int, int] = {}  # guest frame -> machine address of its entry
        self._tables: list[int] = []
        self._opened: list[int] = []
        self._dirty: set[int] | None = None
        self._nobody = 0

    def frame_of(self, address: int) -> int:
        """The frame of a guest-physical address; with two levels addresses wrap at 4 GiB, as in the engine's walk."""
        return address >> PAGE_SHIFT & self._frame_mask

    def is_ram(self, address: int) -> bool:
        """Whether a guest-physical address is backed by memory."""
        return self.frame_of(address) < self._ram_frames

    def fault(self, address: int, *, write: bool) -> bool:
        """The CPU faulted on a guest-physical address; returns whether it can go on, which it can in RAM."""
        frame = self.frame_of(address)
        if frame >= self._ram_frames:
            return False
        if self._dirty is not None and write:
            self._dirty.add(frame)
        protected = self._dirty is not None and frame not in self._dirty
        self._note(PagingEvent.NESTED_WRITE if frame in self._leaves else PagingEvent.NESTED_FILL)
        rights = PTE_PRESENT | PTE_USER | (0 if protected else PTE_WRITABLE)
        self._set(frame, self._memory.machine_frame(frame) << PAGE_SHIFT | rights)
        return True

    def open(self, frame: int) -> None:
        """Let the CPU reach a frame that is not RAM: a device, through the engine's bus; see ``close``."""
        self._set(frame, self._window(frame) | _ENTRY_BITS)
        self._opened.append(frame)

    def close(self) -> None:
        """What was opened is closed again."""
        if self._opened:
            for frame in self._opened:
                self._set(frame, 0)
            self._opened.clear()
            self._flush()

    def _window(self, frame: int) -> int:
        if self.levels == 4:
            return MMIO_WINDOW + (min(frame, _WINDOW_FRAMES - 1) << PAGE_SHIFT)
        if frame << PAGE_SHIFT >= self._memory.machine.size:
            return frame << PAGE_SHIFT
        # 32-bit machine addresses have no room for a second memory map: nobody answers beside the hypervisor's own
        if not self._nobody:
            self._nobody = self._pool.take()
        self._view[self._nobody : self._nobody + PAGE_SIZE] = b"\xff" * PAGE_SIZE
        return self._nobody

    def start_dirty_log(self) -> set[int]:
        """Frames written since the last call, devices' writes included; all at the first. All are protected again."""
        written, self._dirty = self._dirty, set()
        self._memory.dirty_frames = self._dirty
        for address in self._leaves.values():
            entry = self._format.unpack_from(self._view, address)[0]
            self._format.pack_into(self._view, address, entry & ~PTE_WRITABLE)
        self._flush()
        return set(range(self._ram_frames)) if written is None else written

    def reset(self) -> None:
        """Forget everything: the guest begins anew."""
        self._opened.clear()
        self._dirty = self._memory.dirty_frames = None
        for address in self._leaves.values():
            self._format.pack_into(self._view, address, 0)
        self._leaves.clear()
        self._flush()

    def _set(self, frame: int, entry: int) -> None:
        address = self._leaves.get(frame)
        if address is None:
            address = self._make(frame)
            self._leaves[frame] = address
        self._format.pack_into(self._view, address, entry)
        if not entry:
            del self._leaves[frame]

    def _index(self, frame: int, level: int) -> int:
        return frame >> self._bits * (level - 1) & (1 << self._bits) - 1

    def _make(self, frame: int) -> int:
        """The machine address of a leaf entry, with the tables above it."""
        if self._pool.available < self.levels:
            self._drop_tables()
        table = self.root
        for level in range(self.levels, 1, -1):
            at = table + self._index(frame, level) * self._format.size
            entry = self._format.unpack_from(self._view, at)[0]
            if not entry & PTE_PRESENT:
                entry = self._pool.take() | _ENTRY_BITS
                self._tables.append(entry & ~_ENTRY_BITS)
                self._format.pack_into(self._view, at, entry)
            table = entry & _ADDRESS & ~(PAGE_SIZE - 1)
        return table + self._index(frame, 1) * self._format.size

    def _drop_tables(self) -> None:
        """Give all frames back but the root's: a guest can ask for devices everywhere. What is used comes again."""
        self._note(PagingEvent.EVICTION)
        self._view[self.root : self.root + PAGE_SIZE] = bytes(PAGE_SIZE)
        for table in self._tables:
            self._pool.give_back(table)
        self._tables.clear()
        self._leaves.clear()
        self._opened.clear()
        self._flush()

    def walk(self, address: int) -> list[NestedStep]:
        """The entries by which the CPU translates a guest-physical address, the root's first; ends at an absent one."""
        steps, table, frame = [], self.root, self.frame_of(address)
        for level in range(self.levels, 0, -1):
            at = table + self._index(frame, level) * self._format.size
            entry = self._format.unpack_from(self._view, at)[0]
            steps.append(NestedStep(level, at, entry))
            if not entry & PTE_PRESENT:
                break
            table = entry & _ADDRESS & ~(PAGE_SIZE - 1)
        return steps
