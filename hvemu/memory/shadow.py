"""Shadow paging: the MMU walks tables that the hypervisor derives from the guest's (Adams and Agesen 2006, 2.4).

Shadow tables have the 4-level format, with NX, whatever the guest's have. They are filled when the MMU faults: a fault
that the guest's tables explain is *true*, all others are *hidden* from it. Guest tables are write-protected. A write to
a leaf table makes it *unsync*, that is writable until the guest flushes, as a TLB allows; a write to an upper table is
*traced*, and repeated ones *unshadow* the table. Leaf tables are shared between address spaces and kept over
CR3 switches; the pool they come from is bounded.

Guest RAM pages are in one of three states over all their mappings: DATA (writable, never executable), CODE
(executable, never writable) and MIXED (both, for code that stores into its own page). The engine checks stores through
executable mappings against translated code, and only those; so stores to data are cheap and code is never stale.
"""

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from hvemu.memory.frame_pool import FramePool
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_USER,
    PTE_WRITABLE,
    PageFault,
    Path,
    walk,
)
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.exits import PagingEvent
from hvemu.vocabulary.paging import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    EFER_NXE,
    ERROR_FETCH,
    ERROR_USER,
    ERROR_WRITE,
    PagingRegisters,
)

MMIO_WINDOW: Final = 1 << 39
"""Machine address at which guest-physical address 0 appears for what is not RAM."""
_ENTRY = struct.Struct("<Q")
_TABLE: Final = PTE_PRESENT | PTE_WRITABLE | PTE_USER | PTE_ACCESSED
_LEAF: Final = PTE_PRESENT | PTE_ACCESSED
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_MODE_BITS: Final = CR4_PSE | CR4_PAE
_FLOOD: Final = 3
"""Traced writes to an upper table, with no fill in between, after which it is unshadowed."""
_ADDRESS_SPACES: Final = 128
"""Most address spaces kept; the one not used for longest goes."""
_LAST_WINDOW_FRAME: Final = (1 << 27) - 1
"""What stands for every address from 512 GiB on, where nobody answers."""
_LONGEST_INSTRUCTION: Final = 15
_FLIPS: Final = 8
"""Changes from CODE to DATA after which a frame is MIXED for good: two pages that store into each other."""


class Physical(Protocol):
    """What paging needs of the physical CPU."""

    def flush_tlb(self) -> None:
        """Drop every cached translation of an address."""

    def forget_frame(self, address: int) -> None:
        """Drop translated code of the machine frame at ``address``."""


@dataclass(frozen=True)
class ShadowPolicy:
    """Which of the refinements are in use; without them the technique is as simple as it was in 1999."""

    keep: bool = True
    """Keep shadow tables over CR3 loads; otherwise every load flushes."""
    unsync: bool = True
    """Let leaf tables be written until the next flush, and unshadow what is written often; otherwise trace all."""
    tables: int = 1024
    """Most leaf tables at a time."""


class Traced(NamedTuple):
    """The store goes to a guest frame that is watched: emulate it, or ``open`` the frame for one instruction."""

    frame: int


class FrameState(Enum):
    """What a frame of guest RAM is used for, over all its mappings."""

    DATA = "data"
    CODE = "code"
    MIXED = "mixed"


class _Leaf:
    """One shadow page table: 512 entries of 4 KiB. ``guest_frame`` is the table it mirrors, None for large pages."""

    __slots__ = ("address", "filled", "guest_frame", "key", "parents", "snapshot", "sources")

    def __init__(self, address: int, key: tuple[int, ...], guest_frame: int | None) -> None:
        self.address, self.key, self.guest_frame = address, key, guest_frame
        self.parents: set[int] = set()
        self.filled: dict[int, int] = {}  # index -> guest frame
        self.sources: dict[int, int] = {}  # index -> guest entry, as it was used
        self.snapshot = b""


class _Root:
    """One address space: PML4, PDPT and four page directories. ``uppers``: guest table -> (level, slot) it serves."""

    __slots__ = ("directories", "key", "links", "pdpt", "pml4", "uppers")

    def __init__(self, key: tuple[int, int], pool: FramePool, reserved: int) -> None:
        self.key = key
        self.pml4, self.pdpt = pool.take(), pool.take()
        self.directories = [pool.take() for _ in range(4)]
        self.links: dict[int, _Leaf] = {}  # page-directory index 0..2047 -> leaf table
        self.uppers: dict[int, set[tuple[int, int]]] = {}
        view = pool.machine.view
        _ENTRY.pack_into(view, self.pml4, self.pdpt | _TABLE)
        if reserved:
            _ENTRY.pack_into(view, self.pml4 + 8, reserved | PTE_PRESENT | PTE_WRITABLE | PTE_USER)
        for index, directory in enumerate(self.directories):
            _ENTRY.pack_into(view, self.pdpt + 8 * index, directory | _TABLE)
        # An access that crosses 4 GiB goes on at 0
        _ENTRY.pack_into(view, self.pdpt + 32, self.directories[0] | _TABLE)

    def frames(self) -> list[int]:
        return [self.pml4, self.pdpt, *self.directories]

    def entry(self, index: int) -> int:
        return self.directories[index >> 9] + (index & 511) * 8


class _Tracked:
    """A guest frame that is a table: the leaf tables that mirror it, the roots it serves above them."""

    __slots__ = ("leaves", "roots", "writes")

    def __init__(self) -> None:
        self.leaves: list[_Leaf] = []
        self.roots: list[_Root] = []
        self.writes = 0


class ShadowPaging:
    """Shadow tables of one virtual CPU. ``reserved``: a PDPT for PML4 slot 1, which is the hypervisor's own."""

    def __init__(
        self,
        memory: GuestPhysicalMemory,
        pool: FramePool,
        physical: Physical,
        note: Callable[[PagingEvent], None],
        policy: ShadowPolicy | None = None,
        reserved: int = 0,
    ) -> None:
        self._memory, self._pool, self._physical, self._note = memory, pool, physical, note
        self.policy = policy or ShadowPolicy()
        self._reserved = reserved
        self._view = memory.machine.view
        self._ram_frames = memory.size >> PAGE_SHIFT
        self._registers = PagingRegisters(0, 0, 0, 0)
        self._roots: dict[tuple[int, int], _Root] = {}
        self._leaves: dict[tuple[int, ...], _Leaf] = {}
        self._by_address: dict[int, _Leaf] = {}
        self._tracked: dict[int, _Tracked] = {}
        self._watched: dict[int, tuple[Callable[[int, int], None], ...]] = {}
        self._kept: set[int] = set()  # watched frames that stay so, however often they are written
        self._hole: tuple[int, list[int]] = (0, [])  # first slot of 2 MiB, tables of the hypervisor's own there
        self._hole_shown = False
        self._watched_writes: dict[int, int] = defaultdict(int)
        self._opened: dict[int, bytes] = {}  # watched frames that one instruction may store to -> what they held
        self._unsync: set[int] = set()
        self._mappings: dict[int, set[int]] = defaultdict(set)  # guest frame -> addresses of entries that map it
        self._states: dict[int, FrameState] = {}
        self._flips: dict[int, int] = defaultdict(int)
        self._dirty: set[int] | None = None
        self._stale = False
        self._root = self._new_root((0, 0))

    # ------------------------------------------------------------------ what a mode calls

    @property
    def root(self) -> int:
        """Machine address for the physical CR3."""
        return self._root.pml4

    @property
    def pae_root(self) -> int:
        """The same for a CPU that walks three levels: the PDPT of the lowest 512 GiB."""
        return self._root.pdpt

    def load(self, registers: PagingRegisters, *, flush: bool = True) -> None:
        """CR0, CR3, CR4 or EFER changed, or CR3 was loaded again, which flushes what a TLB would forget."""
        before, self._registers = self._registers, registers
        changed = (before.cr0 ^ registers.cr0) & (CR0_WP | CR0_PG)
        changed |= (before.cr4 ^ registers.cr4) & (_MODE_BITS | CR4_PGE) | (before.efer ^ registers.efer) & EFER_NXE
        if changed or (flush and not self.policy.keep):
            self._note(PagingEvent.FLUSH)
            self._drop_everything()
        elif flush:
            self._resync()
        self._root = self._find_root()
        self._show_hole()
        self._physical.flush_tlb()
        self._stale = False

    def invalidate(self, linear: int) -> None:
        """INVLPG: what the guest's tables now say of this page holds."""
        leaf = self._root.links.get((linear & 0xFFFF_FFFF) >> 21)
        if leaf is not None and leaf.guest_frame in self._unsync:
            index = (linear >> 12) & 511
            if index in leaf.filled and not self._agrees(leaf, index):
                self._zap(leaf, index)
        self._physical.flush_tlb()
        self._stale = False

    def fault(self, linear: int, error_code: int, instruction: int) -> PageFault | Traced | None:
        """The MMU faulted at ``linear``; ``instruction`` is the linear address of the instruction.

        Returns the guest's own fault, a store to be traced, or None when the instruction can be tried again.
        """
        linear &= 0xFFFF_FFFF
        write, user, fetch = error_code & ERROR_WRITE != 0, error_code & ERROR_USER != 0, error_code & ERROR_FETCH != 0
        path: list[Path] = []
        physical = walk(self._memory, self._registers, linear, write=write, user=user, fetch=fetch, path=path)
        if not isinstance(physical, int):
            return physical
        frame = physical >> PAGE_SHIFT
        if write and (frame in self._tracked or frame in self._watched) and not self._may_write(frame):
            return Traced(frame)
        executable = not path or not path[0].no_execute
        if write and not executable and self._runs_in(frame, instruction) and not self._may_patch_itself(frame):
            return Traced(frame)
        self._change_state(frame, write, fetch, executable, instruction)
        self._map(linear, frame, write, path[0] if path else None)
        self._settle()
        return None

    def unshadow(self, frame: int) -> None:
        """Forget what was derived from a guest frame and let it be written freely until it is a table again."""
        self._kept.discard(frame)
        for watcher in self._watched.pop(frame, ()):
            watcher(0, 0)
        tracked = self._tracked.pop(frame, None)
        self._unwatch(frame)
        if tracked is None:
            return
        self._note(PagingEvent.UNSHADOW)
        self._unsync.discard(frame)
        for root in list(tracked.roots):
            self._clear_slots(root, root.uppers.pop(frame), None)
            if root is not self._root and not root.uppers:
                self._drop_root(root)
        for leaf in list(tracked.leaves):
            leaf.guest_frame = None
            self._drop_leaf(leaf)
        self._settle()

    def open(self, frame: int) -> None:
        """Let the next instruction store to a watched frame, and to others it crosses into; see ``close``."""
        self._opened[frame] = self._page(frame)

    def close(self) -> None:
        """The instruction is done, or will not be: watch its frames again and act on what has changed."""
        opened, self._opened = self._opened, {}
        for frame, before in opened.items():
            self._protect(frame)
            after = self._page(frame)
            if after != before:
                if frame in self._states:
                    self._physical.forget_frame(self._memory.machine_frame(frame) << PAGE_SHIFT)
                for offset in range(0, PAGE_SIZE, 8):
                    if after[offset : offset + 8] != before[offset : offset + 8]:
                        changed = [at for at in range(offset, offset + 8) if after[at] != before[at]]
                        self.written_by_others(frame, changed[0], changed[-1] + 1 - changed[0])
        self._settle()

    def watch(self, frame: int, written: Callable[[int, int], None]) -> None:
        """Trace stores to a guest frame: ``written(offset, length)`` is called after each, also after ours.

        A length of 0 says that the frame is no longer watched.
        """
        if frame >= self._ram_frames or written in self._watched.get(frame, ()):
            return
        self._watched[frame] = (*self._watched.get(frame, ()), written)
        self._watched_writes.pop(frame, None)
        self._memory.watched_frames.add(frame)
        self._protect(frame)
        self._settle()

    def keep_watching(self, frame: int) -> None:
        """However often this watched frame is written, go on tracing: forgetting it has not helped."""
        self._kept.add(frame)

    def is_table(self, frame: int) -> bool:
        """Whether a guest frame is taken for a page table, so that stores to it fault now or after the next flush."""
        return frame in self._tracked

    def place_hole(self, linear: int, tables: list[int]) -> None:
        """Keep 2 MiB for each of ``tables``, from ``linear`` on, for the hypervisor's own pages, shown or not."""
        for root in [self._root, *self._roots.values()]:
            for number in range(len(self._hole[1])):
                _ENTRY.pack_into(self._view, root.entry(self._hole[0] + number), 0)
            for number in range(len(tables)):
                if (linear >> 21) + number in root.links:
                    self._unlink(root, (linear >> 21) + number)
        self._hole = linear >> 21, tables
        self._show_hole()
        self._physical.flush_tlb()

    def show_hole(self, shown: bool) -> None:
        """Let the CPU see what is in the hole, or an absent page table."""
        self._hole_shown = shown
        self._show_hole()

    def _show_hole(self) -> None:
        first, tables = self._hole
        for number, table in enumerate(tables):
            entry = table | PTE_PRESENT | PTE_USER | PTE_ACCESSED if self._hole_shown else 0
            _ENTRY.pack_into(self._view, self._root.entry(first + number), entry)

    def is_mapped(self, linear: int) -> bool:
        """Whether the guest has used any address in the same 2 MiB, in this address space."""
        return linear >> 21 in self._root.links

    def start_dirty_log(self) -> set[int]:
        """Frames written since the last call; all at the first. Every mapping is write-protected again."""
        written, self._dirty = self._dirty, set()
        self._memory.dirty_frames = self._dirty
        for frame in self._mappings:
            self._protect(frame)
        self._settle()
        return set(range(self._ram_frames)) if written is None else written

    def reset(self) -> None:
        """Power-on: nothing is known of the guest's memory."""
        self._drop_everything()
        for frame in list(self._watched):
            del self._watched[frame]
            self._unwatch(frame)
        self._states.clear()
        self._flips.clear()
        self._kept.clear()
        self._dirty = self._memory.dirty_frames = None  # so that every frame counts as written

    def state(self, frame: int) -> FrameState:
        """What a guest frame is used for."""
        return self._states.get(frame, FrameState.DATA)

    def statistics(self) -> dict[str, int]:
        """Sizes, for people: leaf tables, address spaces, mapped pages."""
        return {
            "tables": len(self._leaves),
            "address_spaces": len(self._roots),
            "pages": sum(len(entries) for entries in self._mappings.values()),
        }

    # ------------------------------------------------------------------ filling

    def _map(self, linear: int, frame: int, write: bool, path: Path | None) -> None:
        index = (linear >> 12) & 511
        guest_frame: int | None = None
        if path is None:
            leaf = self._leaf(linear, ((linear >> 21) << 9, -1, 0, 0), None)
            writable = user = True
            execute, source = True, 0
        else:
            rights = path.rights
            dirty = bool(path.leaf & PTE_DIRTY)
            override = write and not rights & PTE_WRITABLE  # the supervisor, with CR0.WP = 0
            writable = override or bool(rights & PTE_WRITABLE and dirty)
            user = bool(rights & PTE_USER) and not override
            execute, source = not path.no_execute, path.leaf
            upper = [address >> PAGE_SHIFT for address in path.tables]
            if path.large:
                key = ((frame & ~511), rights, path.leaf & PTE_DIRTY, path.no_execute)
                leaf = self._leaf(linear, key, None)
            else:
                guest_frame = upper.pop()
                directory = path.directory & (PTE_WRITABLE | PTE_USER | PTE_NX)
                quadrant = 0 if self._registers.cr4 & CR4_PAE else (linear >> 21) & 1
                leaf = self._leaf(linear, (guest_frame, -2 - quadrant, directory, 0), guest_frame)
            self._track_uppers(linear, upper)
        self._note(PagingEvent.FILL)
        before = _ENTRY.unpack_from(self._view, leaf.address + 8 * index)[0]
        if index in leaf.filled:
            self._zap(leaf, index, stale=False)
        if guest_frame is not None and guest_frame in self._unsync:
            leaf.snapshot = b""  # filled from a table that may change back before it is compared
        entry = _LEAF | (PTE_USER if user else 0)
        if frame < self._ram_frames:
            entry |= self._memory.machine_frame(frame) << PAGE_SHIFT
            state = self._states.get(frame, FrameState.DATA)
            if state is FrameState.DATA or not execute:
                entry |= PTE_NX
            protected = frame in self._watched or (frame in self._tracked and frame not in self._unsync)
            protected = protected and frame not in self._opened
            logged = self._dirty is not None and not write
            allowed = state is FrameState.DATA or (state is FrameState.MIXED and execute) or frame in self._opened
            if writable and allowed and not protected and not logged:
                entry |= PTE_WRITABLE | PTE_DIRTY
                if self._dirty is not None:
                    self._dirty.add(frame)
            self._mappings[frame].add(leaf.address + 8 * index)
        else:
            entry |= MMIO_WINDOW + (min(frame, _LAST_WINDOW_FRAME) << PAGE_SHIFT)
            entry |= (PTE_WRITABLE | PTE_DIRTY if writable else 0) | (0 if execute else PTE_NX)
        if before & ~entry & PTE_WRITABLE or (before and (before ^ entry) & _ADDRESS):
            self._stale = True
        leaf.filled[index], leaf.sources[index] = frame, source
        _ENTRY.pack_into(self._view, leaf.address + 8 * index, entry)

    def _leaf(self, linear: int, key: tuple[int, ...], guest_frame: int | None) -> _Leaf:
        """The leaf table for this address, created and linked as needed."""
        leaf = self._leaves.get(key)
        slot = linear >> 21
        linked = self._root.links.get(slot)
        if leaf is None:
            leaf = self._new_leaf(key, guest_frame)
            linked = self._root.links.get(slot)  # an eviction may have unlinked it
        if linked is not leaf:
            if linked is not None:
                self._unlink(self._root, slot)
            if leaf.guest_frame in self._unsync:  # INVLPG has not reached it while it was not linked here
                self._compare(leaf)
            address = self._root.entry(slot)
            _ENTRY.pack_into(self._view, address, leaf.address | _TABLE)
            leaf.parents.add(slot | id(self._root) << 11)
            self._root.links[slot] = leaf
        return leaf

    def _new_leaf(self, key: tuple[int, ...], guest_frame: int | None) -> _Leaf:
        if len(self._leaves) >= self.policy.tables or not self._pool.available:
            self._evict()
        leaf = _Leaf(self._pool.take(), key, guest_frame)
        self._leaves[key] = self._by_address[leaf.address] = leaf
        if guest_frame is not None and guest_frame < self._ram_frames:
            tracked = self._track(guest_frame)
            tracked.leaves.append(leaf)
            leaf.snapshot = self._page(guest_frame)
        return leaf

    def _evict(self) -> None:
        """Make room: the oldest leaf table, or else an address space that is not the present one."""
        self._note(PagingEvent.EVICTION)
        if self._leaves:
            self._drop_leaf(next(iter(self._leaves.values())))
            self._settle()
        else:
            self._drop_root(next(root for root in self._roots.values() if root is not self._root))

    def _track(self, frame: int) -> _Tracked:
        tracked = self._tracked.get(frame)
        if tracked is None:
            tracked = self._tracked[frame] = _Tracked()
            self._memory.watched_frames.add(frame)
            self._protect(frame)
        return tracked

    def _track_uppers(self, linear: int, frames: list[int]) -> None:
        """The tables above the leaf are traced as long as this root holds anything they decided."""
        root = self._root
        roles: tuple[tuple[int, int], ...] = ((2, 0),)
        if self._registers.cr4 & CR4_PAE:
            roles = (3, self._registers.cr3 & 0xFE0), (1, linear >> 30)
        for frame, role in zip(frames, roles, strict=True):
            if frame >= self._ram_frames:
                continue
            known = root.uppers.get(frame)
            if known is not None and role in known:
                self._tracked[frame].writes = 0
                continue
            tracked = self._track(frame)
            if frame in self._unsync:
                self._resync_frame(frame)
            tracked.writes = 0
            if root not in tracked.roots:
                tracked.roots.append(root)
            root.uppers.setdefault(frame, set()).add(role)

    # ------------------------------------------------------------------ writes to tables

    def _may_write(self, frame: int) -> bool:
        """A guest store to a table: whether to let it through from now on."""
        tracked = self._tracked.get(frame)
        if frame in self._unsync or frame in self._opened:
            return True
        if self._opened:  # the same instruction crosses from one watched frame into another
            self.open(frame)
            return True
        if not self.policy.unsync:
            return False
        if tracked is None or frame in self._watched:
            self._watched_writes[frame] += 1
            if self._watched_writes[frame] <= _FLOOD or frame in self._kept:
                return False
        elif not tracked.roots:
            self._note(PagingEvent.UNSYNC)
            self._unsync.add(frame)
            return True
        else:
            tracked.writes += 1
            if tracked.writes <= _FLOOD:
                return False
        self.unshadow(frame)
        return True

    def written_by_others(self, frame: int, offset: int, length: int) -> None:
        """Somebody stored to a table without the MMU: an emulated instruction, event delivery, a device."""
        for watcher in self._watched.get(frame, ()):
            watcher(offset, length)
        tracked = self._tracked.get(frame)
        if tracked is None:
            return
        for root in list(tracked.roots):
            self._clear_slots(root, root.uppers[frame], (offset, length))
        if frame not in self._unsync:
            size = 8 if self._registers.cr4 & CR4_PAE else 4
            for position in range(offset // size, (offset + length - 1) // size + 1):
                for leaf in tracked.leaves:
                    if size == 8 or -2 - leaf.key[1] == position >> 9:
                        index = position & 511
                        if index in leaf.filled and not self._agrees(leaf, index):
                            self._zap(leaf, index)
            for leaf in tracked.leaves:
                leaf.snapshot = self._page(frame)

    def _clear_slots(self, root: _Root, roles: set[tuple[int, int]], where: tuple[int, int] | None) -> None:
        """Unlink what a guest upper table decided: all of it, or what the bytes at ``where`` did."""
        for level, slot in roles:
            if level == 2:  # 1024 entries of 4 MiB
                first, last = (0, 1023) if where is None else (where[0] >> 2, (where[0] + where[1] - 1) >> 2)
                slots = range(2 * first, 2 * last + 2)
            elif level == 1:  # 512 entries of 2 MiB
                first, last = (0, 511) if where is None else (where[0] >> 3, (where[0] + where[1] - 1) >> 3)
                slots = range(512 * slot + first, 512 * slot + last + 1)
            else:  # four entries of 1 GiB at an offset in the page
                first, last = (0, 31) if where is None else (where[0] - slot, where[0] + where[1] - 1 - slot)
                if last < 0 or first > 31:
                    continue
                slots = range(max(first, 0) // 8 * 512, min(last, 31) // 8 * 512 + 512)
            if len(slots) > len(root.links):
                for linked in [index for index in root.links if index in slots]:
                    self._unlink(root, linked)
            else:
                for index in slots:
                    if index in root.links:
                        self._unlink(root, index)

    def _resync(self) -> None:
        """A flush: every unsync table is write-protected and compared again."""
        for frame in list(self._unsync):
            self._resync_frame(frame)

    def _resync_frame(self, frame: int) -> None:
        self._note(PagingEvent.RESYNC)
        self._unsync.discard(frame)
        self._protect(frame)
        page = self._page(frame)
        for leaf in self._tracked[frame].leaves:
            if leaf.snapshot != page:
                self._compare(leaf)
                leaf.snapshot = page

    def _compare(self, leaf: _Leaf) -> None:
        for index in [index for index in leaf.filled if not self._agrees(leaf, index)]:
            self._zap(leaf, index)

    def _agrees(self, leaf: _Leaf, index: int) -> bool:
        """Whether a filled entry is still what the guest's entry says; newly set A and D bits do not matter."""
        if leaf.guest_frame is None:
            return True
        if self._registers.cr4 & CR4_PAE:
            now = self._memory.read_u64((leaf.guest_frame << PAGE_SHIFT) + 8 * index)
        else:
            quadrant = -2 - leaf.key[1]
            now = self._memory.read_u32((leaf.guest_frame << PAGE_SHIFT) + 2048 * quadrant + 4 * index)
        source = leaf.sources[index]
        if now & ~(PTE_ACCESSED | PTE_DIRTY) != source & ~(PTE_ACCESSED | PTE_DIRTY) or not now & PTE_ACCESSED:
            return False
        return not source & PTE_DIRTY or bool(now & PTE_DIRTY)

    # ------------------------------------------------------------------ frame states

    def _change_state(self, frame: int, write: bool, fetch: bool, executable: bool, instruction: int) -> None:
        if frame >= self._ram_frames:
            return
        state = self._states.get(frame, FrameState.DATA)
        if fetch and state is FrameState.DATA:
            if self._flips.get(frame, 0) >= _FLIPS:
                self._set_state(frame, FrameState.MIXED)
            else:
                self._set_state(frame, FrameState.CODE)
        elif write and state is FrameState.CODE:
            if self._runs_in(frame, instruction):
                self._set_state(frame, FrameState.MIXED)
            else:
                self._flips[frame] += 1
                self._physical.forget_frame(self._memory.machine_frame(frame) << PAGE_SHIFT)
                self._set_state(frame, FrameState.DATA)
        elif write and state is FrameState.MIXED and not executable and frame not in self._opened:
            # Stores through a mapping that the guest forbids to execute are not checked against translated code.
            self._physical.forget_frame(self._memory.machine_frame(frame) << PAGE_SHIFT)
            self._set_state(frame, FrameState.DATA)

    def _runs_in(self, frame: int, instruction: int) -> bool:
        """Whether the instruction at a linear address is in a frame that executes, or its end may be."""
        if frame not in self._states:
            return False
        for address in (instruction, instruction + _LONGEST_INSTRUCTION - 1):
            own = walk(self._memory, self._registers, address & 0xFFFF_FFFF, mark=False)
            if isinstance(own, int) and own >> PAGE_SHIFT == frame:
                return True
        return False

    def _may_patch_itself(self, frame: int) -> bool:
        """Code that stores to its own frame where it must not execute: the frame cannot be CODE and DATA at once."""
        if self._opened:
            self._opened.setdefault(frame, self._page(frame))
        return frame in self._opened

    def _set_state(self, frame: int, state: FrameState) -> None:
        """Every mapping is dropped, so that each is filled again as the new state wants it."""
        if state is FrameState.DATA:
            self._states.pop(frame, None)
        else:
            self._states[frame] = state
        for address in list(self._mappings.get(frame, ())):
            leaf = self._by_address[address & _ADDRESS]
            self._zap(leaf, (address & 0xFFF) >> 3)

    # ------------------------------------------------------------------ taking away

    def _protect(self, frame: int) -> None:
        """No mapping of a frame is writable any more."""
        for address in self._mappings.get(frame, ()):
            entry = _ENTRY.unpack_from(self._view, address)[0]
            if entry & PTE_WRITABLE:
                _ENTRY.pack_into(self._view, address, entry & ~(PTE_WRITABLE | PTE_DIRTY))
                self._stale = True

    def _zap(self, leaf: _Leaf, index: int, *, stale: bool = True) -> None:
        frame = leaf.filled.pop(index)
        leaf.sources.pop(index, None)
        address = leaf.address + 8 * index
        _ENTRY.pack_into(self._view, address, 0)
        if frame < self._ram_frames:
            entries = self._mappings[frame]
            entries.discard(address)
            if not entries:
                del self._mappings[frame]
        self._stale = self._stale or stale

    def _unlink(self, root: _Root, slot: int) -> None:
        leaf = root.links.pop(slot)
        leaf.parents.discard(slot | id(root) << 11)
        _ENTRY.pack_into(self._view, root.entry(slot), 0)
        self._stale = True

    def _drop_leaf(self, leaf: _Leaf) -> None:
        for index in list(leaf.filled):
            self._zap(leaf, index)
        for root in [self._root, *self._roots.values()]:
            for parent in list(leaf.parents):
                if parent >> 11 == id(root):
                    self._unlink(root, parent & 2047)
        del self._leaves[leaf.key], self._by_address[leaf.address]
        if leaf.guest_frame is not None and leaf.guest_frame in self._tracked:
            tracked = self._tracked[leaf.guest_frame]
            tracked.leaves.remove(leaf)
            self._untrack_if_unused(leaf.guest_frame, tracked)
        self._pool.give_back(leaf.address)
        self._stale = True

    def _drop_root(self, root: _Root) -> None:
        for slot in list(root.links):
            self._unlink(root, slot)
        for frame in root.uppers:
            tracked = self._tracked[frame]
            tracked.roots.remove(root)
            self._untrack_if_unused(frame, tracked)
        root.uppers.clear()
        self._roots.pop(root.key, None)
        for address in root.frames():
            self._pool.give_back(address)

    def _untrack_if_unused(self, frame: int, tracked: _Tracked) -> None:
        if not tracked.leaves and not tracked.roots:
            self._tracked.pop(frame, None)
            self._unsync.discard(frame)
            self._unwatch(frame)

    def _unwatch(self, frame: int) -> None:
        if frame not in self._watched and frame not in self._tracked:
            self._memory.watched_frames.discard(frame)

    def _drop_everything(self) -> None:
        for leaf in list(self._leaves.values()):
            self._drop_leaf(leaf)
        for root in list(self._roots.values()):
            self._drop_root(root)
        self._root = self._new_root((0, 0))

    def _new_root(self, key: tuple[int, int]) -> _Root:
        if len(self._roots) >= _ADDRESS_SPACES:
            self._note(PagingEvent.EVICTION)
            self._drop_root(next(root for root in self._roots.values() if root is not self._root))
        while self._pool.available < 6:
            self._evict()
        root = self._roots[key] = _Root(key, self._pool, self._reserved)
        return root

    def _find_root(self) -> _Root:
        registers = self._registers
        if registers.cr0 & CR0_PG:
            mask = 0xFFFF_FFE0 if registers.cr4 & CR4_PAE else 0xFFFF_F000
            key = (1 + (registers.cr3 & mask), registers.cr4 & _MODE_BITS)
        else:
            key = (0, 0)
        root = self._roots.pop(key, None)
        if root is None:
            return self._new_root(key)
        self._roots[key] = root  # the dictionary's order is that of use
        return root

    def _settle(self) -> None:
        """Rights were taken away: the physical TLB must not remember them."""
        if self._stale:
            self._stale = False
            self._physical.flush_tlb()

    def _page(self, frame: int) -> bytes:
        return self._memory.read(frame << PAGE_SHIFT, PAGE_SIZE)
