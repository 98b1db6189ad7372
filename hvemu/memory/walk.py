"""The one walker of guest page tables: linear address -> guest-physical address, or the page fault the CPU raises.

2-level with PSE, PAE, and the four levels of long mode, with NX, WP, accessed and dirty bits (SDM vol. 3A, chapter 4).
Not here: SMEP, SMAP and protection keys, which no CPU model of hvemu shows yet, and the low reserved bits of a
page-directory pointer, for which a CPU refuses MOV to CR3 and the engine does not. Table pages outside RAM read as
ones, as the bus would answer. Pages of 1 GiB work on every CPU model, as in the engine.
"""

from typing import NamedTuple

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.paging import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_NXE,
    ERROR_FETCH,
    ERROR_PRESENT,
    ERROR_RESERVED,
    ERROR_USER,
    ERROR_WRITE,
    PHYSICAL_BITS,
    PagingRegisters,
    canonical,
)

PTE_PRESENT = 1 << 0
PTE_WRITABLE = 1 << 1
PTE_USER = 1 << 2
PTE_ACCESSED = 1 << 5
PTE_DIRTY = 1 << 6
PTE_PAGE_SIZE = 1 << 7
PTE_NX = 1 << 63
_RIGHTS = PTE_WRITABLE | PTE_USER
_PAE_RESERVED = 0x7FFF_FF00_0000_0000  # bits 52..62 and those above a 40-bit physical address
_PAE_FRAME = 0x000F_FFFF_FFFF_F000
_LONG_RESERVED = 0x000F_FF00_0000_0000  # bits 52 to 62 are the software's
_LEVELS = 39, 30, 21, 12
NOT_CANONICAL = -1
"""In place of an error code: the address is no linear address at all, which is #GP(0) or #SS(0), and not #PF."""


class PageFault(NamedTuple):
    """What #PF would say: the linear address for CR2 and the error code, which may be NOT_CANONICAL."""

    address: int
    error_code: int


class Path(NamedTuple):
    """What a successful walk went through. ``tables``: guest-physical addresses of the entries, the leaf's last."""

    tables: tuple[int, ...]
    directory: int
    """The page-directory entry above a 4 KiB leaf; 0 for a large page."""
    leaf: int
    """The leaf entry, with the bits that this walk has set."""
    rights: int
    """PTE_WRITABLE and PTE_USER where every level grants them."""
    no_execute: bool
    large: bool


def walk(
    memory: GuestPhysicalMemory,
    registers: PagingRegisters,
    linear: int,
    *,
    write: bool = False,
    user: bool = False,
    fetch: bool = False,
    mark: bool = True,
    path: list[Path] | None = None,
) -> int | PageFault:
    """Translate one linear address for one access.

    ``mark`` sets accessed and dirty bits as the CPU does; a debugger passes False. Returns the guest-physical address
    of the byte, or the fault. A ``path`` gets what the walk went through appended, when paging is on and it succeeds.
    """
    cr0 = registers.cr0
    if not cr0 & CR0_PG:
        return linear
    if registers.efer & EFER_LMA:
        return _walk_long(memory, registers, linear, write, user, fetch, mark, path)
    if registers.cr4 & CR4_PAE:
        return _walk_pae(memory, registers, linear, write, user, fetch, mark, path)
    pde_address = (registers.cr3 & 0xFFFFF000) + ((linear >> 20) & 0xFFC)
    pde = memory.read_u32(pde_address)
    if not pde & PTE_PRESENT:
        return PageFault(linear, (ERROR_WRITE if write else 0) | (ERROR_USER if user else 0))
    large = bool(pde & PTE_PAGE_SIZE and registers.cr4 & CR4_PSE)
    if large:
        rights = pde
        leaf_address = pde_address
        leaf = pde
        # PSE-36: bits 13..20 of the entry are bits 32..39 of the address; bit 21 is reserved
        if pde & 0x0020_0000:
            return PageFault(linear, _error(True, write, user, False) | ERROR_RESERVED)
        physical = ((pde & 0x1FE000) << 19) | (pde & 0xFFC00000) | (linear & 0x3FFFFF)
    else:
        if mark and not pde & PTE_ACCESSED:  # whatever its table says
            memory.set_bits_u32(pde_address, PTE_ACCESSED)
        leaf_address = (pde & 0xFFFFF000) + ((linear >> 10) & 0xFFC)
        leaf = memory.read_u32(leaf_address)
        if not leaf & PTE_PRESENT:
            return PageFault(linear, (ERROR_WRITE if write else 0) | (ERROR_USER if user else 0))
        rights = pde & leaf
        physical = (leaf & 0xFFFFF000) | (linear & 0xFFF)
    if _denied(registers, rights, write, user):
        return PageFault(linear, _error(True, write, user, False))
    if mark:
        leaf = _marked(memory, leaf_address, leaf, write)
    if path is not None:
        tables = (pde_address,) if large else (pde_address, leaf_address)
        path.append(Path(tables, 0 if large else pde, leaf, rights & _RIGHTS, False, large))
    return physical


def _walk_pae(
    memory: GuestPhysicalMemory,
    registers: PagingRegisters,
    linear: int,
    write: bool,
    user: bool,
    fetch: bool,
    mark: bool,
    path: list[Path] | None,
) -> int | PageFault:
    no_execute = bool(registers.efer & EFER_NXE)
    reserved = _PAE_RESERVED if no_execute else _PAE_RESERVED | PTE_NX
    show_fetch = fetch and no_execute
    pdpte_address = (registers.cr3 & 0xFFFFFFE0) + ((linear >> 27) & 0x18)
    pdpte = memory.read_u64(pdpte_address)
    if not pdpte & PTE_PRESENT:
        return PageFault(linear, _error(False, write, user, show_fetch))
    if pdpte & (reserved | PTE_NX):
        return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
    pde_address = (pdpte & _PAE_FRAME) + ((linear >> 18) & 0xFF8)
    pde = memory.read_u64(pde_address)
    if not pde & PTE_PRESENT:
        return PageFault(linear, _error(False, write, user, show_fetch))
    if pde & reserved:
        return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
    large = bool(pde & PTE_PAGE_SIZE)
    if large:
        if pde & 0x1FE000:
            return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
        leaf_address, leaf, rights, deny = pde_address, pde, pde, pde
        physical = (pde & _PAE_FRAME & ~0x1FFFFF) | (linear & 0x1FFFFF)
    else:
        if mark and not pde & PTE_ACCESSED:
            memory.set_bits_u32(pde_address, PTE_ACCESSED)
        leaf_address = (pde & _PAE_FRAME) + ((linear >> 9) & 0xFF8)
        leaf = memory.read_u64(leaf_address)
        if not leaf & PTE_PRESENT:
            return PageFault(linear, _error(False, write, user, show_fetch))
        if leaf & reserved:
            return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
        rights, deny = pde & leaf, pde | leaf
        physical = (leaf & _PAE_FRAME) | (linear & 0xFFF)
    if _denied(registers, rights, write, user) or (show_fetch and deny & PTE_NX):
        return PageFault(linear, _error(True, write, user, show_fetch))
    if mark:
        leaf = _marked(memory, leaf_address, leaf, write)
    if path is not None:
        tables = (pdpte_address, pde_address) if large else (pdpte_address, pde_address, leaf_address)
        denied = no_execute and bool(deny & PTE_NX)
        path.append(Path(tables, 0 if large else pde, leaf, rights & _RIGHTS, denied, large))
    return physical


def _walk_long(
    memory: GuestPhysicalMemory,
    registers: PagingRegisters,
    linear: int,
    write: bool,
    user: bool,
    fetch: bool,
    mark: bool,
    path: list[Path] | None,
) -> int | PageFault:
    """SDM vol. 3A, 4.5.4; a wild CR3 finds nothing present, as in the engine."""
    if not canonical(linear):
        return PageFault(linear, NOT_CANONICAL)
    no_execute = bool(registers.efer & EFER_NXE)
    reserved = _LONG_RESERVED if no_execute else _LONG_RESERVED | PTE_NX
    show_fetch = fetch and no_execute
    table, tables = registers.cr3 & ~0xFFF, []
    if table >> PHYSICAL_BITS:
        return PageFault(linear, _error(False, write, user, show_fetch))
    rights, deny, directory = _RIGHTS, 0, 0
    for shift in _LEVELS:
        address = table + (linear >> shift - 3 & 0xFF8)
        entry = memory.read_u64(address)
        if not entry & PTE_PRESENT:
            return PageFault(linear, _error(False, write, user, show_fetch))
        large = entry & PTE_PAGE_SIZE and shift != 12
        if entry & reserved or (large and shift == 39):
            return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
        if mark and not entry & PTE_ACCESSED and (shift == 30 or not (large or shift == 12)):
            memory.set_bits_u32(address, PTE_ACCESSED)  # the engine marks a page of 1 GiB even if it then refuses
        rights &= entry
        deny |= entry
        tables.append(address)
        if large or shift == 12:
            break
        directory = entry
        table = entry & _PAE_FRAME
    size = 1 << shift
    if large and entry & (size - 1) & ~0x1FFF:
        return PageFault(linear, _error(True, write, user, show_fetch) | ERROR_RESERVED)
    if _denied(registers, rights, write, user) or (show_fetch and deny & PTE_NX):
        return PageFault(linear, _error(True, write, user, show_fetch))
    if mark:
        entry = _marked(memory, address, entry, write)
    if path is not None:
        denied = no_execute and bool(deny & PTE_NX)
        path.append(Path(tuple(tables), 0 if large else directory, entry, rights & _RIGHTS, denied, bool(large)))
    return (entry & _PAE_FRAME & ~(size - 1)) | (linear & (size - 1))


def _denied(registers: PagingRegisters, rights: int, write: bool, user: bool) -> bool:
    """Whether what all levels allow is too little (SDM vol. 3A, 4.6.1), but for instruction fetches."""
    if user and not rights & PTE_USER:
        return True
    return write and not rights & PTE_WRITABLE and bool(user or registers.cr0 & CR0_WP)


def _marked(memory: GuestPhysicalMemory, address: int, leaf: int, write: bool) -> int:
    """The entry that maps the page, with its accessed and dirty bits set as the CPU sets them (SDM vol. 3A, 4.8)."""
    wanted = PTE_ACCESSED | (PTE_DIRTY if write else 0)
    if leaf & wanted != wanted:
        memory.set_bits_u32(address, wanted)
    return leaf | wanted


def _error(present: bool, write: bool, user: bool, fetch: bool) -> int:
    return (
        (ERROR_PRESENT if present else 0)
        | (ERROR_WRITE if write else 0)
        | (ERROR_USER if user else 0)
        | (ERROR_FETCH if fetch else 0)
    )
