"""Where translated code came from: what to forget when the guest stores over its code or maps other code there."""

from collections.abc import Callable
from typing import Final

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.shadow import ShadowPaging
from hvemu.memory.walk import PTE_ACCESSED, Path, walk
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.translation_cache import Unit
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE

_PATIENCE: Final = 4
"""Times a page of code is given up because it is written often; then each of its writes is traced."""


class CodePages:
    """The frames that units were translated from, write-protected by ``paging``; ``remove`` is told of stale units."""

    def __init__(
        self, memory: GuestPhysicalMemory, paging: ShadowPaging, cpu: LiveCpu, remove: Callable[[Unit], None]
    ) -> None:
        self._memory, self._paging, self._cpu, self._remove = memory, paging, cpu, remove
        self._pages: dict[int, int] = {}  # linear page -> guest frame
        self._by_page: dict[int, list[Unit]] = {}
        self._by_frame: dict[int, list[tuple[Unit, int, int]]] = {}
        self._watched: set[int] = set()
        self._given_up: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def note(self, unit: Unit) -> None:
        """A unit has been translated from code that can be fetched."""
        linear, length = unit.linear, unit.translation.length
        while length > 0:
            part = min(length, PAGE_SIZE - linear % PAGE_SIZE)
            self._note_part(unit, linear, part)
            linear, length = (linear + part) & 0xFFFF_FFFF, length - part

    def _note_part(self, unit: Unit, linear: int, length: int) -> None:
        page = linear & ~(PAGE_SIZE - 1)
        physical = walk(self._memory, self._cpu.paging(), linear, mark=False)
        assert isinstance(physical, int)
        frame, start = physical >> PAGE_SHIFT, physical % PAGE_SIZE
        self._pages[page] = frame
        self._by_page.setdefault(page, []).append(unit)
        self._by_frame.setdefault(frame, []).append((unit, start, start + length))
        if frame not in self._watched and physical < self._memory.size:
            self._watched.add(frame)
            self._paging.watch(frame, _Watcher(self, frame))
            if self._given_up.get(frame, 0) >= _PATIENCE:
                self._paging.keep_watching(frame)

    def written(self, frame: int, offset: int, length: int) -> None:
        """Somebody stored into a frame that code was translated from; length 0: it is no longer watched."""
        if not length:
            self._watched.discard(frame)
            self._given_up[frame] = self._given_up.get(frame, 0) + 1
        left = []
        for unit, start, end in self._by_frame.get(frame, ()):
            if not length or (start < offset + length and offset < end):
                self._remove(unit)
            elif unit.valid:
                left.append((unit, start, end))
        self._by_frame[frame] = left

    def check(self) -> None:
        """The guest has changed its address space: forget code that is no longer where it was."""
        paging = self._cpu.paging()
        for page, frame in list(self._pages.items()):
            path: list[Path] = []
            physical = walk(self._memory, paging, page, fetch=True, mark=False, path=path)
            there = isinstance(physical, int) and physical >> PAGE_SHIFT == frame
            if there and (not path or path[0].leaf & PTE_ACCESSED):
                continue  # without the bit the CPU will set it when it next fetches there
            for unit in self._by_page.pop(page):
                self._remove(unit)
            del self._pages[page]

    def forget(self) -> None:
        """There are no units any more."""
        for table in (self._pages, self._by_page, self._by_frame):
            table.clear()

    def reset(self) -> None:
        """Nothing is watched any more either."""
        self.forget()
        self._watched.clear()
        self._given_up.clear()


class _Watcher:
    """Tells of stores into one frame."""

    __slots__ = ("_frame", "_pages")

    def __init__(self, pages: CodePages, frame: int) -> None:
        self._pages, self._frame = pages, frame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Watcher) and self._frame == other._frame

    def __hash__(self) -> int:
        return hash(self._frame)

    def __call__(self, offset: int, length: int) -> None:
        self._pages.written(self._frame, offset, length)
