"""The mapped linear ranges of a guest with paging, for the monitor's ``info mem``."""

from collections.abc import Iterator
from itertools import islice

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import PTE_PAGE_SIZE, PTE_PRESENT, walk
from hvemu.vocabulary.paging import CR4_PAE, CR4_PSE, EFER_LMA, PagingRegisters

_FRAME = 0x000F_FFFF_FFFF_F000
_MOST_PAGES = 1 << 18


def mapped_ranges(memory: GuestPhysicalMemory, paging: PagingRegisters) -> Iterator[tuple[int, int, str]]:
    """First and last address and rights, such as ``-rw`` or ``ur-``, of each range that is mapped alike."""
    start, end, rights = 0, -1, ""
    for linear, size in _pages(memory, paging):
        found = _rights(memory, paging, linear)
        if found != rights or linear != end + 1:
            if rights:
                yield start, end, rights
            start, rights = linear, found
        end = linear + size - 1
    if rights:
        yield start, end, rights


def _rights(memory: GuestPhysicalMemory, paging: PagingRegisters, linear: int) -> str:
    """Empty where nothing is mapped."""
    if not isinstance(walk(memory, paging, linear, mark=False), int):
        return ""
    user = isinstance(walk(memory, paging, linear, user=True, mark=False), int)
    write = isinstance(walk(memory, paging, linear, write=True, user=user, mark=False), int)
    return f"{'u' if user else '-'}r{'w' if write else '-'}"


def _pages(memory: GuestPhysicalMemory, paging: PagingRegisters) -> Iterator[tuple[int, int]]:
    """Linear address and size of what may be a page; a directory entry that is absent is passed over whole."""
    if paging.efer & EFER_LMA:
        yield from islice(_long_pages(memory, paging.cr3 & _FRAME, 39, 0), _MOST_PAGES)
        return
    pae = bool(paging.cr4 & CR4_PAE)
    read, width, span = (memory.read_u64, 8, 1 << 21) if pae else (memory.read_u32, 4, 1 << 22)
    for directory, base in _directories(memory, paging) if pae else ((paging.cr3 & 0xFFFFF000, 0),):
        for index in range(0x1000 // width):
            entry, linear = read(directory + width * index), base + span * index
            if entry & PTE_PRESENT:
                large = entry & PTE_PAGE_SIZE and (pae or paging.cr4 & CR4_PSE)
                size = span if large else 0x1000
                yield from ((at, size) for at in range(linear, linear + span, size))


def _long_pages(memory: GuestPhysicalMemory, table: int, shift: int, base: int) -> Iterator[tuple[int, int]]:
    """Four levels; a table that contains itself makes more of them than anybody wants to see."""
    for index in range(512):
        entry, linear = memory.read_u64(table + 8 * index), base + (index << shift)
        if shift == 39 and index >= 256:
            linear |= 0xFFFF << 48
        if entry & PTE_PRESENT:
            if shift == 12 or (entry & PTE_PAGE_SIZE and shift < 39):
                yield linear, 1 << shift
            else:
                yield from _long_pages(memory, entry & _FRAME, shift - 9, linear)


def _directories(memory: GuestPhysicalMemory, paging: PagingRegisters) -> Iterator[tuple[int, int]]:
    """PAE: the page directories that are present, each with the linear address of its gigabyte."""
    for index in range(4):
        pointer = memory.read_u64((paging.cr3 & 0xFFFFFFE0) + 8 * index)
        if pointer & PTE_PRESENT:
            yield pointer & _FRAME, index << 30
