"""Direct paging: the guest's own PAE tables, full of machine frames, are what the MMU walks.

Nothing stands between guest and MMU but validation. Every machine frame has an owner, a count of references, and at
most one type at a time with a count of its uses: writable data, a page table of one level, or a page of descriptors. A
frame becomes a table only when it is nobody's writable page and every entry in it passes; while it is one, no writable
mapping of it is made. After Barham et al., "Xen and the Art of Virtualization" (2003), section 3.3.3.
"""

import struct
from array import array
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import PTE_ACCESSED, PTE_DIRTY, PTE_PAGE_SIZE, PTE_PRESENT, PTE_WRITABLE
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.xen import (
    HYPERVISOR_START,
    MMU_MACHPHYS,
    MMU_NORMAL,
    MMU_PRESERVE_AD,
    Errno,
    HypercallError,
)

ENTRIES: Final = PAGE_SIZE // 8
_TABLE: Final = struct.Struct(f"<{ENTRIES}Q")
_ENTRY: Final = struct.Struct("<Q")
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_RESERVED: Final = 0x7FF0_0000_0000_0000
_TOP: Final = 3
"""The slot of an L3 whose table also maps the hypervisor."""
_TOP_ENTRIES: Final = (HYPERVISOR_START & 0x3FFF_FFFF) >> 21
"""Entries of that table that are the guest's."""
_L3_ALLOWED: Final = 0xE67
"""Present, accessed, dirty, free bits; rights that mean nothing: as Xen lets 32-bit guests have them."""
_MAXIMUM_COUNT: Final = 0x7FFF_FFFF

_DPL_SHIFT, _SYSTEM_S, _PRESENT, _LONG = 45, 1 << 44, 1 << 47, 1 << 53
_GUEST_RING: Final = 1


class Owner(IntEnum):
    """Whose a machine frame is."""

    HYPERVISOR = 0
    GUEST = 1
    FREE = 2
    """Nobody's: the guest has given it back."""
    SHARED = 3
    """The hypervisor's, for the guest to map and write: shared info, grant table."""


class FrameType(IntEnum):
    """What a frame of the guest is used as, while its count of uses is not 0."""

    NONE = 0
    WRITABLE = 1
    L1 = 2
    L2 = 3
    L2_TOP = 4
    """A level-2 table for the last GiB, where the hypervisor's part of the address space is."""
    L3 = 5
    DESCRIPTORS = 6


_GUEST_ENTRIES: Final = {FrameType.L3: 4, FrameType.L2_TOP: _TOP_ENTRIES}
_TABLES: Final = frozenset({FrameType.L1, FrameType.L2, FrameType.L2_TOP, FrameType.L3})


class DirectPaging:
    """Validation of one guest's tables in ``memory``, whose addresses are machine addresses.

    ``flush()`` drops the CPU's cached translations; ``pointed(frame)`` is told when the four entries that CR3 leads to
    are others. Refused operations raise HypercallError and change nothing.
    """

    def __init__(
        self,
        memory: GuestPhysicalMemory,
        flush: Callable[[], None],
        pointed: Callable[[int], None],
    ) -> None:
        self._memory, self._flush, self._pointed = memory, flush, pointed
        self.frames = memory.size >> PAGE_SHIFT
        self.owner = bytearray(self.frames)
        self._type = bytearray(self.frames)
        self._uses = array("I", bytes(4 * self.frames))
        self._references = array("I", bytes(4 * self.frames))
        self._pinned: set[int] = set()
        self.work = 0
        """Entries looked at so far; whoever serves the guest resets it, to bound what one request can cost."""
        self._stale: set[int] = set()  # frames that the TLB may still know as writable
        self.base = -1
        """The frame of the L3 that is in use."""
        self.machine_to_physical = array("I", bytes(4 * self.frames))
        self.told: Callable[[int, int], None] = lambda frame, pfn: None
        """Told of every change of that table."""
        self.top_entries = b""
        """Level-2 entries of the hypervisor, from HYPERVISOR_START on."""

    def reset(self) -> None:
        """Nobody owns anything, and nothing is in use."""
        self.owner[:] = bytes(self.frames)
        for table in (self._uses, self._references, self.machine_to_physical):
            table[:] = array("I", bytes(4 * self.frames))
        self._pinned.clear()
        self.base = -1
        self.flush()

    def own(self, frames: range, owner: Owner) -> None:
        """Give frames to somebody."""
        self.owner[frames.start : frames.stop] = bytes([owner]) * len(frames)

    # ------------------------------------------------------------------ references and types

    def type_of(self, frame: int) -> FrameType:
        """What a frame is used as now."""
        return FrameType(self._type[frame]) if self._uses[frame] else FrameType.NONE

    def uses(self, frame: int) -> int:
        """How often it is used as that."""
        return self._uses[frame]

    def references(self, frame: int) -> int:
        """Mappings and other references to a frame; while there is one it cannot be given back."""
        return self._references[frame]

    def is_guests(self, frame: int) -> bool:
        """Whether the frame exists and is the guest's."""
        return 0 <= frame < self.frames and self.owner[frame] == Owner.GUEST

    def get(self, frame: int) -> None:
        """One more reference to a frame that the guest may map."""
        if not (0 <= frame < self.frames and self.owner[frame] in (Owner.GUEST, Owner.SHARED)):
            raise HypercallError(Errno.EINVAL)
        if self._references[frame] >= _MAXIMUM_COUNT:
            raise HypercallError(Errno.EBUSY)
        self._references[frame] += 1

    def put(self, frame: int) -> None:
        """One reference less."""
        self._references[frame] -= 1

    def get_type(self, frame: int, wanted: FrameType) -> None:
        """One more use of a frame as ``wanted``; the first one validates it."""
        if not self.is_guests(frame):
            if wanted is FrameType.WRITABLE and 0 <= frame < self.frames and self.owner[frame] == Owner.SHARED:
                self._uses[frame] += 1
                self._type[frame] = wanted
                return
            raise HypercallError(Errno.EINVAL)
        if self._uses[frame]:
            if self._type[frame] != wanted:
                raise HypercallError(Errno.EINVAL)
            if self._uses[frame] >= _MAXIMUM_COUNT:
                raise HypercallError(Errno.EBUSY)
            self._uses[frame] += 1
            return
        if wanted is not FrameType.WRITABLE and frame in self._stale:
            # A mapping that is gone from the tables may still be in the TLB, and be written through
            self.flush()
        self._type[frame] = wanted
        self._uses[frame] = 1  # while it is validated it cannot become anything else
        try:
            self._validate(frame, wanted)
        except HypercallError:
            self._uses[frame] = 0
            raise

    def put_type(self, frame: int) -> None:
        """One use less; with the last one a table lets go of all that it refers to."""
        if self._uses[frame] > 1:
            self._uses[frame] -= 1
            return
        kind = FrameType(self._type[frame])
        if kind in _TABLES:
            for index, entry in self._present(frame, kind):
                self._put_entry(kind, index, entry)
            if kind == FrameType.L2_TOP:
                self._memory.write(_top(frame), bytes(PAGE_SIZE - 8 * _TOP_ENTRIES))
        elif kind == FrameType.WRITABLE:
            self._stale.add(frame)
        self._uses[frame] = 0

    def flush(self) -> None:
        """The CPU forgets what it knows of tables."""
        self._stale.clear()
        self._flush()

    def _validate(self, frame: int, kind: FrameType) -> None:
        done: list[tuple[int, int]] = []
        try:
            if kind == FrameType.DESCRIPTORS:
                self._validate_descriptors(frame)
            elif kind != FrameType.WRITABLE:
                for index, entry in self._present(frame, kind):
                    self._get_entry(kind, index, entry)
                    done.append((index, entry))
        except HypercallError:
            for index, entry in done:
                self._put_entry(kind, index, entry)
            raise
        if kind == FrameType.L2_TOP:
            self._memory.write(_top(frame), self.top_entries.ljust(PAGE_SIZE - 8 * _TOP_ENTRIES, b"\0"))

    def _present(self, frame: int, kind: FrameType) -> list[tuple[int, int]]:
        """Entries that refer to something, with their places; of an L3 only four count."""
        self.work += ENTRIES
        entries = _TABLE.unpack_from(self._memory.view, frame << PAGE_SHIFT)[: _GUEST_ENTRIES.get(kind, ENTRIES)]
        return [(index, entry) for index, entry in enumerate(entries) if entry & PTE_PRESENT]

    # ------------------------------------------------------------------ entries

    def _get_entry(self, kind: int, index: int, entry: int) -> None:
        """Take the references that a present entry means."""
        frame = (entry & _FRAME) >> PAGE_SHIFT
        if entry & _RESERVED:
            raise HypercallError(Errno.EINVAL)
        if kind == FrameType.L1:
            self.get(frame)
            if entry & PTE_WRITABLE:
                try:
                    self.get_type(frame, FrameType.WRITABLE)
                except HypercallError:
                    self.put(frame)
                    raise
            return
        if kind == FrameType.L3:
            if entry & ~_FRAME & ~_L3_ALLOWED:
                raise HypercallError(Errno.EINVAL)
            below = FrameType.L2_TOP if index == _TOP else FrameType.L2
        else:
            if entry & PTE_PAGE_SIZE:
                raise HypercallError(Errno.EINVAL)
            below = FrameType.L1
        self.get_type(frame, below)
        self.get(frame)

    def _put_entry(self, kind: int, index: int, entry: int) -> None:
        """Let go of them."""
        frame = (entry & _FRAME) >> PAGE_SHIFT
        if kind != FrameType.L1 or entry & PTE_WRITABLE:
            self.put_type(frame)
        self.put(frame)

    def entry(self, address: int) -> int:
        """The entry at a machine address."""
        return self._memory.read_u64(address)

    def update(self, pointer: int, value: int) -> None:
        """One request of mmu_update: ``pointer`` is a machine address with a command in its low bits."""
        command, address = pointer & 3, pointer & ~7
        frame = address >> PAGE_SHIFT
        if command == MMU_MACHPHYS:
            if not self.is_guests(frame):
                raise HypercallError(Errno.EINVAL)
            self.set_machine_to_physical(frame, value & 0xFFFF_FFFF)
            return
        if command not in (MMU_NORMAL, MMU_PRESERVE_AD) or pointer & 4 or not self.is_guests(frame):
            raise HypercallError(Errno.EINVAL)
        kind = self._type[frame] if self._uses[frame] else FrameType.NONE
        if kind in _TABLES:
            if command == MMU_PRESERVE_AD and kind == FrameType.L1:
                value = value & ~(PTE_ACCESSED | PTE_DIRTY) | self.entry(address) & (PTE_ACCESSED | PTE_DIRTY)
            self._set_entry(frame, kind, address, value)
        elif kind == FrameType.DESCRIPTORS:
            raise HypercallError(Errno.EINVAL)
        else:
            self._memory.write(address, _ENTRY.pack(value))  # data, or a table to be

    def _set_entry(self, frame: int, kind: int, address: int, value: int) -> None:
        index, before = (address & (PAGE_SIZE - 1)) >> 3, self.entry(address)
        if kind == FrameType.L2_TOP and index >= _TOP_ENTRIES:
            raise HypercallError(Errno.EINVAL)
        counts = kind != FrameType.L3 or index < 4
        if counts and value & PTE_PRESENT:
            self._get_entry(kind, index, value)
        self._memory.write(address, _ENTRY.pack(value))
        if counts and before & PTE_PRESENT:
            self._put_entry(kind, index, before)
        if kind == FrameType.L3 and frame == self.base and counts:
            self._pointed(frame)

    def leaf_address(self, linear: int) -> int:
        """Machine address of the L1 entry for a linear address, through the tables in use."""
        if linear >= HYPERVISOR_START or self.base < 0:
            raise HypercallError(Errno.EINVAL)
        third = self.entry((self.base << PAGE_SHIFT) + 8 * (linear >> 30))
        if not third & PTE_PRESENT:
            raise HypercallError(Errno.EINVAL)
        second = self.entry((third & _FRAME) + 8 * (linear >> 21 & 511))
        if not second & PTE_PRESENT:
            raise HypercallError(Errno.EINVAL)
        return (second & _FRAME) + 8 * (linear >> 12 & 511)

    def set_machine_to_physical(self, frame: int, pfn: int) -> None:
        """What the guest calls a frame."""
        self.machine_to_physical[frame] = pfn
        self.told(frame, pfn)

    # ------------------------------------------------------------------ pinning and switching

    def pin(self, frame: int, kind: FrameType) -> None:
        """Keep a frame validated as a table although nothing refers to it."""
        if frame in self._pinned:
            raise HypercallError(Errno.EINVAL)
        self.get_type(frame, kind)
        self.get(frame)
        self._pinned.add(frame)

    def unpin(self, frame: int) -> None:
        """No longer."""
        if frame not in self._pinned:
            raise HypercallError(Errno.EINVAL)
        self._pinned.discard(frame)
        self.put_type(frame)
        self.put(frame)

    def load(self, frame: int) -> None:
        """Use an L3: the guest's CR3."""
        self.get_type(frame, FrameType.L3)
        self.get(frame)
        before, self.base = self.base, frame
        self._pointed(frame)
        if before >= 0:
            self.put_type(before)
            self.put(before)

    # ------------------------------------------------------------------ descriptors

    def _validate_descriptors(self, frame: int) -> None:
        """Every descriptor of a page; those of ring 0 are moved to ring 1."""
        self.work += ENTRIES
        values = _TABLE.unpack_from(self._memory.view, frame << PAGE_SHIFT)
        checked = [checked_descriptor(value) for value in values]
        for index, (value, good) in enumerate(zip(values, checked, strict=True)):
            if value != good:
                self._memory.write((frame << PAGE_SHIFT) + 8 * index, _ENTRY.pack(good))

    def update_descriptor(self, address: int, value: int) -> None:
        """One descriptor at a machine address: of a page in use as a table of them, or of one to be."""
        frame = address >> PAGE_SHIFT
        if address & 7 or not self.is_guests(frame):
            raise HypercallError(Errno.EINVAL)
        if self.type_of(frame) not in (FrameType.NONE, FrameType.WRITABLE, FrameType.DESCRIPTORS):
            raise HypercallError(Errno.EINVAL)
        self._memory.write(address, _ENTRY.pack(checked_descriptor(value)))

    # ------------------------------------------------------------------ giving frames away

    def release(self, frame: int) -> None:
        """The guest gives a frame back that nothing refers to; the caller flushes, before the guest runs again."""
        if not self.is_guests(frame):
            raise HypercallError(Errno.EINVAL)
        if self._references[frame] or self._uses[frame]:
            raise HypercallError(Errno.EBUSY)
        self.owner[frame] = Owner.FREE
        self._memory.write(frame << PAGE_SHIFT, bytes(PAGE_SIZE))

    def grant(self, frame: int, pfn: int) -> None:
        """The guest gets a free frame, as its page ``pfn``."""
        self.owner[frame] = Owner.GUEST
        self.set_machine_to_physical(frame, pfn)


def checked_descriptor(value: int) -> int:
    """A descriptor the guest may have: code or data of 16 or 32 bits, outside ring 0; raises HypercallError."""
    if value & _LONG and value & _SYSTEM_S:
        # 64-bit code would reach the hypervisor's pages, even if it is marked present only later
        raise HypercallError(Errno.EINVAL)
    if not value & _PRESENT:
        return value
    if not value & _SYSTEM_S:
        raise HypercallError(Errno.EINVAL)
    if not value >> _DPL_SHIFT & 3:
        value |= _GUEST_RING << _DPL_SHIFT
    return value


def _top(frame: int) -> int:
    """Where the hypervisor's entries of a level-2 table for the last GiB are."""
    return (frame << PAGE_SHIFT) + 8 * _TOP_ENTRIES
