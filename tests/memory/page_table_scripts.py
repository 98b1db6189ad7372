"""Random but legal lives of page tables: what a script makes of a list of small numbers, and what must come of it.

A script keeps a plain copy of memory on which ``walk`` translates, and a list of what a CPU may have cached. Whatever
the numbers ask for, it becomes a command only after the flush that the architecture demands (SDM vol. 3A, 4.10.4), so
that no result depends on what was cached. A result is predicted together with all memory that the guest can reach.
"""

import contextlib
from itertools import pairwise
from typing import Final, NamedTuple

from hvemu.machine.machine import Machine
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.memory.walk import PageFault, walk
from hvemu.vocabulary.paging import CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, EFER_NXE, PagingRegisters
from tests.memory.paging_guest import (
    CODE0,
    CODE3,
    PROTECTED,
    RAM,
    STUB,
    STUB_END,
    STUB_ENTRY,
    STUB_IMAGE,
    WINDOW,
    WINDOW_SIZE,
    Command,
    Done,
    Fault,
    PagingGuest,
    Result,
    Step,
)

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, GLOBAL, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_FREE_TO_SET: Final = WRITABLE | USER | 0x18 | ACCESSED | DIRTY | 0xE00
_FREE_TO_CLEAR: Final = 0x18 | 0xE00 | NX
_RF: Final = 1 << 16

# Guest-physical memory: 32 frames for tables and data, and four more above 4 MiB
ARENA, FRAMES = 0x20_0000, 32
HIGH, HIGH_FRAMES = 0x40_0000, 4


def frame(number: int) -> int:
    """Address of a frame of the arena."""
    return ARENA + 0x1000 * number


DIRECTORIES: Final = (frame(0), frame(1), frame(2))
"""Page directories of three address spaces: of two levels, or PAE's for the first GiB. Entry 0 maps the stub."""
POINTERS: Final = (frame(3), frame(3) + 0x20, frame(4) + 0xFE0)
"""Page-directory-pointer tables, two of them in one frame."""
ALIASES, SHARED, PRIVATE, UPPER = frame(6), frame(7), (frame(8), frame(9), frame(10)), frame(11)
"""A table that maps the arena; one that several directories use; one for each; the directory of PAE's last GiB."""
TABLES: Final = (SHARED, *PRIVATE, ALIASES, UPPER, *DIRECTORIES, frame(5), frame(12), frame(13))
DATA: Final = tuple(frame(number) for number in range(14, FRAMES))
NOWHERE: Final = (RAM, 0x7654_3000, 0xFFFF_F000)
BEYOND: Final = (0x1_0020_0000, 0x80_0000_0000 + WINDOW, 0xFF_FFFF_F000)

SLOTS: Final = (2, 3, 4, 768, 1023)
"""Units of 4 MiB of the linear address space that scripts use."""
_INDICES: Final = (0, 1, 2, 3, 512, 513, 520, 1022, 1023)
PAGES: Final = tuple(
    dict.fromkeys(
        [slot << 10 | index for slot in SLOTS for index in _INDICES]
        + [1023 << 10 | index for index in (4, 768, 516, 768 + 3)]
        + [3 << 10 | number for number in range(FRAMES)]
    )
)
PHYSICAL_PAGES: Final = tuple(
    address >> 12
    for address in (*DATA, *TABLES, *POINTERS[::2], *(HIGH + 0x1000 * n for n in range(HIGH_FRAMES)), WINDOW, *NOWHERE)
)
CODE_AT, CROSSING_CODE_AT = 0xE00, 0xFFD
OFFSETS: Final = (0x010, 0x000, CODE_AT + 1, 0xFFE, 0x004, 0xFFC, 0x81C, 0xFFD)


class Format(NamedTuple):
    """Which tables the guest uses."""

    pae: bool = False
    pse: bool = False
    nxe: bool = False

    def control4(self) -> int:
        """CR4."""
        return (CR4_PAE if self.pae else 0) | (CR4_PSE if self.pse else 0)

    def registers(self) -> PagingRegisters:
        """In the first address space."""
        return PagingRegisters(PROTECTED, self.root(0), self.control4(), EFER_NXE if self.nxe else 0)

    def root(self, number: int) -> int:
        """CR3 of an address space."""
        return (POINTERS if self.pae else DIRECTORIES)[number]


FORMATS: Final = (Format(), Format(pse=True), Format(pae=True), Format(pae=True, nxe=True))


def layout(form: Format) -> list[tuple[int, bytes]]:
    """The tables at the start, and code and numbers in every frame."""
    arena = {frame(number): bytearray(0x1000) for number in range(FRAMES)}
    high = {HIGH + 0x1000 * number: bytearray(0x1000) for number in range(HIGH_FRAMES)}
    for number, (address, page) in enumerate([*arena.items(), *high.items()]):
        page[CODE_AT : CODE_AT + 8] = b"\xb8" + (0x1111_1100 + number).to_bytes(4, "little") + b"\xc3\x90\x90"
        if address not in TABLES and address not in (frame(3), frame(4)):
            # mov eax,... / ret, across the end of any page into any other
            page[:3] = bytes((number, number, 0xC3))
            page[CROSSING_CODE_AT:] = bytes((0xB8, number, number))
    size = 8 if form.pae else 4

    def put(table: int, index: int, entry: int) -> None:
        at = table % 0x1000 + size * index
        arena[table & ~0xFFF][at : at + size] = entry.to_bytes(size, "little")

    rights = (7, 7, 0x67, 5, 3, 7, 1, 0x27)
    indices = [index % 512 if form.pae else index for index in _INDICES]
    for space, table in enumerate((*PRIVATE, SHARED)):
        for n, index in enumerate(indices):
            put(table, index, DATA[(5 * space + n) % len(DATA)] | rights[(space + n) % len(rights)])
    for number in range(FRAMES):
        put(ALIASES, number, frame(number) | (7 if number % 3 else 3))
    for space, directory in enumerate(DIRECTORIES):
        put(directory, 0, STUB_ENTRY)
        if form.pae:
            for index, table in ((4, PRIVATE[space]), (5, SHARED), (6, ALIASES), (8, SHARED)):
                put(directory, index, table | 7)
            put(directory, 9, ARENA | LARGE | 7)
            put(POINTERS[space], 0, directory | 1)
            put(POINTERS[space], 3, UPPER | 1)
        else:
            for slot, table in ((2, PRIVATE[space]), (3, ALIASES), (4, SHARED), (768, SHARED), (1023, directory)):
                put(directory, slot, table | (5 if slot == 768 else 7))
            if form.pse:
                put(directory, 768, LARGE | (3 if space else 7))
    if form.pae:
        for index, table in ((0, SHARED), (1, PRIVATE[0]), (510, PRIVATE[1]), (511, UPPER)):
            put(UPPER, index, table | (5 if index == 1 else 7))
    return [(address, bytes(page)) for address, page in (*arena.items(), *high.items())]


class Expected(NamedTuple):
    """What must come of a command: its result, what has been stored since the last, and what the device keeps."""

    result: Result
    stores: tuple[tuple[int, bytes], ...]
    window: bytes


class _Recorded(GuestPhysicalMemory):
    """Memory that notes every store: the guest's, devices' and the marks of page walks."""

    def __init__(self) -> None:
        super().__init__(MachineMemory(RAM))
        self.stores: list[tuple[int, bytes]] = []

    def write(self, address: int, data: bytes) -> None:
        """Store and note."""
        super().write(address, data)
        self.stores.append((address, data))

    def set_bits_u32(self, address: int, bits: int) -> None:
        """Mark and note."""
        super().set_bits_u32(address, bits)
        if address + 4 <= RAM:
            self.stores.append((address, bytes(self.view[address : address + 4])))


class _Cached(NamedTuple):
    """A translation that the CPU may remember: the entries it came from, as they were."""

    entries: tuple[tuple[int, int], ...]
    large: bool
    kept: bool
    """Global: survives a load of CR3."""


class UnfitError(Exception):
    """What was asked for would be illegal, or would hit the stub."""


def _grew(before: int, now: int) -> bool:
    """Whether an entry has at most been given more rights."""
    return not (before & ~now & ~_FREE_TO_CLEAR or now & ~before & ~_FREE_TO_SET)


class Script:
    """Steps for a guest and what each command must do. ``ask`` takes five small numbers and never refuses."""

    def __init__(self, form: Format, formats: tuple[Format, ...] = FORMATS) -> None:
        """A life that begins with one format and may change to these."""
        self.form = form
        self._formats = formats
        self.memory = _Recorded()
        self.window = bytearray(WINDOW_SIZE)
        self.pieces = layout(form)
        self.memory.write(STUB, STUB_IMAGE)
        for address, data in self.pieces:
            self.memory.write(address, data)
        self.memory.stores.clear()
        self.registers = self.start_registers = form.registers()
        self.steps: list[Step] = []
        self.expected: list[Expected] = []
        self._cached: dict[int, _Cached] = {}
        self._directories: dict[int, tuple[int, int]] = {}  # region of a directory entry -> where it was, and what
        self._pointers: tuple[int, ...] = ()
        self._reduced: dict[int, tuple[int, bool]] = {}  # entry -> when it was last taken rights, and if it was global
        self._flushed: dict[int, int] = {}  # page -> when
        self._flushed_large: dict[int, int] = {}  # region of a large page -> when
        self._logged: dict[int, bytes] | None = None
        self._now = 0
        self._load_pointers()

    # ------------------------------------------------------------------ the paging that is believed in

    @property
    def paging(self) -> bool:
        """CR0.PG."""
        return bool(self.registers.cr0 & CR0_PG)

    @property
    def pae(self) -> bool:
        """CR4.PAE."""
        return bool(self.registers.cr4 & CR4_PAE)

    def trace(self, linear: int) -> tuple[list[tuple[int, int]], bool]:
        """The entries on the way of an address, down to the first that ends it; whether that is a large page."""
        read, cr3 = self.memory, self.registers.cr3
        if not self.paging:
            return [], False
        if not self.pae:
            at = (cr3 & 0xFFFF_F000) + (linear >> 20 & 0xFFC)
            pde = read.read_u32(at)
            if not pde & PRESENT or (pde & LARGE and self.registers.cr4 & CR4_PSE):
                return [(at, pde)], bool(pde & PRESENT)
            below = (pde & 0xFFFF_F000) + (linear >> 10 & 0xFFC)
            return [(at, pde), (below, read.read_u32(below))], False
        found = []
        table = cr3 & 0xFFFF_FFE0
        for shift, mask in ((27, 0x18), (18, 0xFF8), (9, 0xFF8)):
            at = table + (linear >> shift & mask)
            entry = read.read_u64(at)
            found.append((at, entry))
            if not entry & PRESENT:
                return found, False
            if shift == 18 and entry & LARGE:
                return found, True
            table = entry & _FRAME
        return found, False

    def _load_pointers(self) -> None:
        self._pointers = ()
        if self.paging and self.pae:
            at = self.registers.cr3 & 0xFFFF_FFE0
            self._pointers = tuple(self.memory.read_u64(at + 8 * index) for index in range(4))

    def _region(self, linear: int) -> int:
        return linear >> (21 if self.pae else 22)

    def _stale(self, linear: int) -> str:
        """What must be flushed before an access: nothing, the page, or everything."""
        entries, large = self.trace(linear)
        if self._pointers and self._pointers[linear >> 30] != entries[0][1]:
            return "everything"
        cached = self._cached.get(linear >> 12)
        if cached is not None and not _still_good(cached.entries, entries):
            return "page"
        # Even if this address has not been used, the CPU may have looked ahead while the entry was good
        if entries:
            flushed = self._flushed.get(linear >> 12, 0)
            if large:
                flushed = max(flushed, self._flushed_large.get(self._region(linear), 0))
            if self._reduced.get(entries[-1][0], (0, False))[0] > flushed:
                return "page"
        above = self._directories.get(self._region(linear))
        if above is not None:
            now = entries[-2] if len(entries) > 1 + self.pae else entries[-1]
            if above[0] != now[0] or not _grew(above[1] & ~(DIRTY | GLOBAL), now[1] & ~(DIRTY | GLOBAL)):
                return "page"
        return ""

    def _check_fit(self, linear: int) -> None:
        """No walk through the device, the stub's memory, or a directory-pointer table but as such."""
        entries, _ = self.trace(linear)
        for level, (at, _) in enumerate(entries):
            if WINDOW <= at < WINDOW + WINDOW_SIZE or (STUB <= at < STUB_END):
                raise UnfitError
            if (level or not self.pae) and any(root <= at < root + 32 for root in POINTERS):
                raise UnfitError

    def _translate(self, linear: int, *, write: bool, user: bool, fetch: bool = False) -> int | PageFault:
        """One translation, marked and remembered."""
        linear &= 0xFFFF_FFFF
        result = walk(self.memory, self.registers, linear, write=write, user=user, fetch=fetch)
        if not self.paging:
            return result
        if isinstance(result, int):
            entries, large = self.trace(linear)
            kept = bool(entries[-1][1] & GLOBAL and self.registers.cr4 & CR4_PGE)
            self._cached[linear >> 12] = _Cached(tuple(entries), large, kept)
            if not large:
                self._directories[self._region(linear)] = entries[-2]
        return result

    def _look(self, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False) -> int | None:
        """Where an access would go, without doing it."""
        found = walk(self.memory, self.registers, linear & 0xFFFF_FFFF, write=write, user=user, fetch=fetch, mark=False)
        return found if isinstance(found, int) else None

    # ------------------------------------------------------------------ memory that is believed in

    def _read(self, physical: int, length: int) -> bytes:
        if WINDOW <= physical < WINDOW + WINDOW_SIZE:
            return bytes(self.window[physical - WINDOW : physical - WINDOW + length])
        return self.memory.read(physical, length)

    def _write(self, physical: int, data: bytes) -> None:
        if WINDOW <= physical < WINDOW + WINDOW_SIZE:
            self.window[physical - WINDOW : physical - WINDOW + len(data)] = data
        elif physical < RAM:
            self._note_reduced(physical, data)
            self.memory.write(physical, data)

    def _note_reduced(self, physical: int, data: bytes) -> None:
        """An entry that the CPU may remember loses something."""
        if not self.paging or self.memory.read(physical, len(data)) == data:
            return
        size = 8 if self.pae else 4
        self._now += 1
        start = physical & -size
        end = (physical + len(data) + size - 1) & -size
        before = self.memory.read(start, end - start)
        now = before[: physical - start] + data + before[physical - start + len(data) :]
        for at in range(0, end - start, size):
            old, new = before[at : at + size], now[at : at + size]
            if old != new and old[0] & ACCESSED and old[0] & PRESENT:
                entry = int.from_bytes(old, "little")
                if not _grew(entry, int.from_bytes(new, "little")):
                    kept = bool(entry & GLOBAL and self.registers.cr4 & CR4_PGE)
                    self._reduced[start + at] = self._now, kept

    def _check_target(self, physical: int, length: int, *, pointer: bool = False) -> None:
        """Nobody writes to the stub, to what maps it, or anything odd into a directory-pointer table."""
        end = physical + length
        if STUB < end and physical < STUB_END:
            raise UnfitError
        if any(root < end and physical < root + 8 for root in DIRECTORIES):
            raise UnfitError
        if any(root < end and physical < root + (8 if pointer else 32) for root in POINTERS):
            raise UnfitError

    # ------------------------------------------------------------------ emitting

    def _emit(self, command: Command, result: Result) -> None:
        self.steps.append(command)
        self.expected.append(Expected(result, tuple(self.memory.stores), bytes(self.window)))
        self.memory.stores.clear()

    def invalidate(self, linear: int) -> None:
        """INVLPG."""
        linear &= 0xFFFF_FFFF
        cached = self._cached.pop(linear >> 12, None)
        self._flushed[linear >> 12] = self._now
        if self.trace(linear)[1]:
            self._flushed_large[self._region(linear)] = self._now
        if cached is not None and cached.large:
            for page, other in list(self._cached.items()):
                if other.large and other.entries[-1][0] == cached.entries[-1][0]:
                    del self._cached[page]
        self._directories.clear()
        self._emit(Command("invlpg", linear), Done(0))

    def load_cr3(self, root: int) -> None:
        """MOV to CR3, which may be the same."""
        self.registers = self.registers._replace(cr3=root)
        self._cached = {page: cached for page, cached in self._cached.items() if cached.kept}
        self._reduced = {at: (when, kept) for at, (when, kept) in self._reduced.items() if kept}
        self._directories.clear()
        self._load_pointers()
        self._emit(Command("cr3", value=root), Done(root))

    def _forget(self) -> None:
        self._cached.clear()
        self._reduced.clear()
        self._directories.clear()
        self._load_pointers()

    def load_cr0(self, value: int) -> None:
        """Only a change of PG flushes."""
        changed = value ^ self.registers.cr0
        self.registers = self.registers._replace(cr0=value)
        if changed & CR0_PG:
            self._forget()
        self._emit(Command("cr0", value=value), Done(value))

    def load_cr4(self, value: int) -> None:
        """A change of PGE, PSE or PAE flushes everything."""
        if value != self.registers.cr4:
            self.registers = self.registers._replace(cr4=value)
            self._forget()
        self._emit(Command("cr4", value=value), Done(value))

    def change_format(self, form: Format) -> None:
        """Out of paging and in again with other tables, which are laid out in between; as EFER and CR4 say."""
        self.load_cr0(PROTECTED & ~CR0_PG)
        for address, data in layout(form):
            self.dma(address, data)
        self.form = form
        self.registers = form.registers()
        self._forget()
        _, root, control4, efer = self.registers
        words = (control4, root, efer, PROTECTED)
        self._emit(Command("switch", value=PROTECTED & ~CR0_PG, more=words), Done(PROTECTED))

    def dma(self, address: int, data: bytes) -> None:
        """A device writes to RAM."""
        self._note_reduced(address, data)
        self.memory.write(address, data)
        self.steps.append(lambda machine: machine.memory.write(address, data))

    def prepare(self, linear: int, length: int, how: int) -> None:
        """Flush what an access would otherwise find stale."""
        for page in range(linear >> 12, (linear + length - 1 >> 12) + 1):
            address = page << 12 & 0xFFFF_FFFF
            self._check_fit(address)
            need = self._stale(address)
            if need == "everything" or (need and how & 3 == 1):
                self.load_cr3(self.registers.cr3)
                need = self._stale(address)
            if need and how & 15 == 2:
                self.load_cr4(self.registers.cr4 ^ CR4_PGE)
                need = self._stale(address)
            if need:
                self.invalidate(address + (how & 0xF0) * 16)
            assert not self._stale(address)

    # ------------------------------------------------------------------ accesses

    def _fault(self, command: Command, fault: PageFault, address: int = -1, left: int = -1) -> None:
        cs = CODE3 if command.user else CODE0
        edi = command.address if address < 0 else address
        ecx = command.count if left < 0 else left
        self._emit(command, Fault(fault.error_code, fault.address, command.faults_at(), cs, _RF, edi, ecx))

    def _pieces(self, linear: int, size: int) -> list[tuple[int, int]]:
        first = 0x1000 - (linear & 0xFFF)
        if size <= first:
            return [(linear, size)]
        return [(linear, first), (linear + first & 0xFFFF_FFFF, size - first)]

    def _translate_all(self, linear: int, size: int, *, write: bool, user: bool) -> list[tuple[int, int]] | PageFault:
        found = []
        for address, length in self._pieces(linear, size):
            physical = self._translate(address, write=write, user=user)
            if not isinstance(physical, int):
                return physical
            found.append((physical, length))
        return found

    def access(self, what: str, linear: int, value: int = 0, *, user: bool = False, how: int = 0, pointer: bool = False,
               ) -> bool:  # fmt: skip
        """A load, a store, or both; returns whether it succeeds. Raises UnfitError when it may not be done."""
        linear &= 0xFFFF_FFFF
        size = 1 if what.endswith("8") else 4
        self.prepare(linear, size, how)
        store = not what.startswith("read")
        may = True
        for address, length in self._pieces(linear, size):
            target = self._look(address, write=store, user=user)
            if target is None:
                may = False
            elif store:
                self._check_target(target, length, pointer=pointer)
            elif STUB < target + length and target < STUB_END:
                raise UnfitError
        if what == "push" and not user and not may:
            raise UnfitError  # the handler would push to the same place
        loads = what in ("read", "read8", "or", "and", "exchange")
        if loads and store and may:
            self._check_marked(linear, size)
        command = Command(what, linear, value, user=user)
        places: list[tuple[int, int]] | PageFault = []
        old = b""
        if loads:
            places = self._translate_all(linear, size, write=False, user=user)
            if isinstance(places, PageFault):
                self._fault(command, places)
                return False
            old = b"".join(self._read(physical, length) for physical, length in places)
        result = value
        if store:
            places = self._translate_all(linear, size, write=True, user=user)
            if isinstance(places, PageFault):
                self._fault(command, places)
                return False
            before = int.from_bytes(old, "little")
            if what == "exchange":
                result = before
            new = {"or": value | before, "and": value & before}.get(what, value)
            data = (new & 0xFFFF_FFFF).to_bytes(4, "little")
            for physical, length in places:
                self._write(physical, data[:length])
                data = data[length:]
        else:
            result = value >> 8 * size << 8 * size | int.from_bytes(old, "little")
        self._emit(command, Done(result))
        return True

    def _check_marked(self, linear: int, size: int) -> None:
        """What loads and then stores may do the load twice; it must not see itself set the dirty bit in between."""
        targets = {(self._look(linear + n) or 0) & ~3 for n in (0, size - 1)}
        for address, _ in self._pieces(linear, size):
            at, entry = self.trace(address)[0][-1] if self.paging else (0, DIRTY)
            if at in targets and not entry & DIRTY:
                raise UnfitError

    def execute(self, linear: int, *, user: bool = False, how: int = 0) -> None:
        """Call ``mov eax,n / ret`` there."""
        linear &= 0xFFFF_FFFF
        self.prepare(linear, 6, how)
        pieces = self._pieces(linear, 6)
        where = [self._look(address, user=user, fetch=True) for address, _ in pieces]
        code = b""
        for physical, (_, length) in zip(where, pieces, strict=True):
            if physical is not None:
                if physical + length > RAM or (STUB < physical + length and physical < STUB_END):
                    raise UnfitError
                code += self.memory.read(physical, length)
        if None not in where and not (code[0] == 0xB8 and code[5] == 0xC3):
            raise UnfitError
        if len(where) > 1 and where[0] is not None and code[0] != 0xB8:
            raise UnfitError
        command = Command("execute", linear, user=user)
        for address, _ in pieces:
            physical = self._translate(address, write=False, user=user, fetch=True)
            if isinstance(physical, PageFault):
                self._fault(command, physical)
                return
        self._emit(command, Done(int.from_bytes(code[1:5], "little")))

    def fill(self, linear: int, count: int, value: int, *, user: bool = False, how: int = 0) -> None:
        """REP STOSD."""
        linear &= 0xFFFF_FFFC
        self.prepare(linear, 4 * count, how)
        written, used = set(), set()
        for address in range(linear, linear + 4 * count, 4):
            used.update(at & ~3 for at, _ in self.trace(address & 0xFFFF_FFFF)[0])
            target = self._look(address, write=True, user=user)
            if target is not None:
                self._check_target(target, 4)
                written.add(target)
        used |= {at + 4 for at in used}
        if written & used:
            raise UnfitError  # the later stores would go through entries that the earlier ones changed
        command = Command("fill", linear, value, count, user)
        for done in range(count):
            address = linear + 4 * done & 0xFFFF_FFFF
            target = self._translate(address, write=True, user=user)
            if isinstance(target, PageFault):
                self._fault(command, target, address, count - done)
                return
            self._write(target, value.to_bytes(4, "little"))
        self._emit(command, Done(value))

    # ------------------------------------------------------------------ edits of tables

    def alias(self, physical: int, length: int, which: int) -> tuple[int, bool] | None:
        """One of the linear addresses at which a store now reaches guest-physical memory, and whether of the user's."""
        pages = PAGES if self.paging else PHYSICAL_PAGES
        start = which % len(pages)
        for page in pages[start:] + pages[:start]:
            linear = page << 12 | physical & 0xFFF
            if self._look(linear, write=True) == physical:
                end = linear + length - 1
                if length == 1 or self._look(end, write=True) == physical + length - 1:
                    user = all(self._look(address, write=True, user=True) is not None for address in (linear, end))
                    return linear, user and which & 1 == 0
        return None

    def edit(self, at: int, value: int, size: int, ways: int, how: int) -> None:
        """Make an entry what it shall be: by a device, or by the CPU through a mapping in one of several ways."""
        pointer = any(root <= at < root + 32 for root in POINTERS)
        self._check_target(at, size, pointer=pointer)
        alias = self.alias(at, size, ways >> 3 | how & 0x60) if ways & 7 else None
        if alias is None:
            self.dma(at, value.to_bytes(size, "little"))
            return
        linear, user = alias
        for offset in reversed(range(0, size, 4)):
            now, wanted = self.memory.read_u32(at + offset), value >> 8 * offset & 0xFFFF_FFFF
            if size == 8 and now == wanted:
                continue
            what, operand = "write", wanted
            if ways & 7 == 2 and not now & ~wanted:
                what, operand = "or", wanted & ~now
            elif ways & 7 in (2, 3) and not wanted & ~now:
                what, operand = "and", wanted
            elif ways & 7 == 4:
                what = "exchange"
            elif ways & 7 == 5:
                what = "push"
            elif ways & 7 == 6:
                self.fill(linear + offset, 1, wanted, user=user, how=how)
                continue
            self.access(what, linear + offset, operand, user=user, how=how, pointer=pointer)

    def entry(self, level: int, b: int, c: int) -> int:
        """An entry for a level, 0 the lowest; 0 and 0 is a page of data for everybody."""
        flags = PRESENT | (0 if c & 1 else WRITABLE) | (0 if c & 2 else USER)
        flags |= (ACCESSED if c & 4 else 0) | (DIRTY if c & 8 else 0)
        if c & 0x70 == 0x70:
            flags &= ~PRESENT
        if c & 0x80 and self.pae:
            flags |= NX
        kind, which = b & 15, b >> 4
        if level == 2:
            return (DIRECTORIES[which % 3] if kind & 1 else UPPER) | flags & PRESENT
        if level == 1 and kind >= 10:
            sizes = (ARENA, 0, HIGH, WINDOW) if self.pae else (0, HIGH, WINDOW, 0)
            large = sizes[which & 3] | LARGE | (GLOBAL if which & 4 else 0)
            if kind == 15 and which & 8:
                large |= 0x2000 if self.pae else 1 << 21
            return large | flags
        if kind in (6, 7, 8) or (level == 1 and kind < 9):
            return TABLES[(which + kind) % len(TABLES)] | flags
        if kind == 9:
            outside = NOWHERE + BEYOND if self.pae else NOWHERE
            return outside[which % len(outside)] | flags
        if kind == 10:
            return (WINDOW + 0x1000 * (which & 3)) | flags
        if kind == 11:
            return (HIGH + 0x1000 * (which & 3)) | flags
        return DATA[(which + 3 * kind) % len(DATA)] | flags | (GLOBAL if kind == 12 else 0)

    # ------------------------------------------------------------------ from numbers

    def _address(self, a: int, b: int) -> int:
        pages = PAGES if self.paging else PHYSICAL_PAGES
        return pages[a % len(pages)] << 12 | OFFSETS[b % len(OFFSETS)]

    def ask(self, kind: str, a: int, b: int, c: int, d: int) -> None:
        """Do something of a kind, or nothing if that would be illegal now."""
        with contextlib.suppress(UnfitError):
            getattr(self, f"ask_{kind}")(a, b, c, d)

    def ask_read(self, a: int, b: int, c: int, d: int) -> None:
        """A load."""
        self.access("read8" if b & 8 else "read", self._address(a, b), user=bool(c & 1), how=d)

    def ask_write(self, a: int, b: int, c: int, d: int) -> None:
        """A store; with PUSH and the instructions that load first."""
        what = ("write", "write8", "or", "and", "exchange", "push")[(c >> 1) % 6]
        self.access(what, self._address(a, b), 0x5050_5051 + 0x0102_0304 * (c >> 4), user=bool(c & 1), how=d)

    def ask_execute(self, a: int, b: int, c: int, d: int) -> None:
        """Code."""
        at = CROSSING_CODE_AT if b & 1 else CODE_AT
        self.execute(self._address(a, 0) & ~0xFFF | at, user=bool(c & 1), how=d)

    def ask_fill(self, a: int, b: int, c: int, d: int) -> None:
        """REP STOSD, up to the end of the page and beyond, or over the entries that are used."""
        at = (0, 0xFF0, 8, 0xFEC, 0x10)[b % 5]
        value = self.entry(0, c, d) & 0xFFFF_FFFF if b & 0x80 else 0
        self.fill(self._address(a, 0) & ~0xFFF | at, 1 + (c >> 2) % 12, value, user=bool(c & 1), how=d)

    def ask_tweak(self, a: int, b: int, c: int, d: int) -> None:
        """Change one bit of an entry that is on the way of an address."""
        entries, large = self.trace(PAGES[a % len(PAGES)] << 12)
        if not entries:
            return
        level = (b & 15) % len(entries)
        at, value = entries[-1 - level]
        if not at + 8 <= RAM:
            return
        bit = (WRITABLE, USER, PRESENT, ACCESSED, DIRTY, ACCESSED | DIRTY, NX, GLOBAL, LARGE)[(b >> 4) % 9]
        if self.pae and level == len(entries) - 1:
            bit = PRESENT
        if bit == NX and not self.pae:
            bit = WRITABLE
        if bit == LARGE and (level or not large):
            bit = USER
        changed = value & ~bit if bit & (ACCESSED | DIRTY) else value ^ bit
        self.edit(at, changed, 8 if self.pae else 4, c, d)

    def ask_edit(self, a: int, b: int, c: int, d: int) -> None:
        """Make an entry on the way of an address another one."""
        entries, _ = self.trace(PAGES[a % len(PAGES)] << 12)
        if not entries:
            return
        level = 0 if d & 4 else len(entries) - 1 - (d >> 3) % len(entries)
        at, _ = entries[level]
        if not at + 8 <= RAM:
            return
        name = 2 - level if self.pae else 1 - level
        self.edit(at, self.entry(name, b, c), 8 if self.pae else 4, c >> 2 ^ d, d)

    def ask_edit_low(self, a: int, b: int, c: int, d: int) -> None:
        """Make the lowest entry on the way of an address another one."""
        entries, large = self.trace(PAGES[a % len(PAGES)] << 12)
        if not entries or entries[-1][0] + 8 > RAM:
            return
        full = len(entries) == 2 + self.pae and not large
        level = 0 if full else (1 if len(entries) == 1 + self.pae else 2)
        self.edit(entries[-1][0], self.entry(level, b, c), 8 if self.pae else 4, d, d >> 3)

    def ask_flood(self, a: int, b: int, c: int, d: int) -> None:
        """Many edits of one table in a row, as a fork or an exit does them."""
        table = TABLES[b % len(TABLES)]
        size = 8 if self.pae else 4
        for number in range(2 + (b >> 4) % 5):
            index = (_INDICES[(a + number) % len(_INDICES)] if b & 8 else a + number) % (0x1000 // size)
            level = 1 if table in (*DIRECTORIES, UPPER) else 0
            value = self.entry(level, c + 16 * number & 255, c if c & 8 else 0) if d & 8 else 0
            self.edit(table + size * index, value, size, 1 | d & 0xF6, 0)

    def ask_cross(self, a: int, b: int, c: int, d: int) -> None:
        """A store from the end of one frame of the arena into the next; tables too."""
        at = frame(a % (FRAMES - 1)) + 0xFFE - (b & 1)
        alias = self.alias(at, 4, b)
        if alias is not None:
            linear, user = alias
            what = ("exchange", "write", "push", "or", "and")[c % 5]
            self.access(what, linear, self.entry(0, c, d) << 16 & 0xFFFF_FFFF, user=user, how=d)

    def ask_log(self, a: int, b: int, c: int, d: int) -> None:
        """Ask which frames have been written: at least those that differ from the last time."""
        now = {
            start >> 12: self.memory.view[start : start + 0x1000].tobytes()
            for start in (*range(ARENA, ARENA + 0x1000 * FRAMES, 0x1000), *range(HIGH, HIGH + 0x4000, 0x1000))
        }
        before, self._logged = self._logged, now
        changed = {number for number in now if before is not None and now[number] != before[number]}

        def check(machine: Machine) -> None:
            assert changed <= machine.mode.dirty_pages()

        self.steps.append(check)

    def ask_restore(self, a: int, b: int, c: int, d: int) -> None:
        """A device writes a table as it was at the start; so that scripts do not end up with nothing mapped."""
        for address, data in layout(self.form):
            if address in (ALIASES, (*TABLES, *DIRECTORIES)[a % (len(TABLES) + 3)]) and address not in DIRECTORIES:
                self.dma(address, data)
            elif address in DIRECTORIES and address == DIRECTORIES[b % 3]:
                self.dma(address + 8, data[8:])

    def ask_invalidate(self, a: int, b: int, c: int, d: int) -> None:
        """INVLPG."""
        self.invalidate(self._address(a, b))

    def ask_space(self, a: int, b: int, c: int, d: int) -> None:
        """Another address space, or the same again."""
        self.load_cr3(self.form.root(a % 3))

    def ask_protect(self, a: int, b: int, c: int, d: int) -> None:
        """CR0.WP."""
        self.load_cr0(self.registers.cr0 ^ CR0_WP)

    def ask_paging(self, a: int, b: int, c: int, d: int) -> None:
        """CR0.PG."""
        self.load_cr0(self.registers.cr0 ^ CR0_PG)

    def ask_control(self, a: int, b: int, c: int, d: int) -> None:
        """CR4.PGE or CR4.PSE."""
        self.load_cr4(self.registers.cr4 ^ (CR4_PSE if a & 1 else CR4_PGE))

    def ask_format(self, a: int, b: int, c: int, d: int) -> None:
        """Other tables altogether."""
        self.change_format(self._formats[a % len(self._formats)])


def _still_good(cached: tuple[tuple[int, int], ...], now: list[tuple[int, int]]) -> bool:
    if len(cached) != len(now):
        return False
    for level, ((at, before), (at_now, value)) in enumerate(zip(cached, now, strict=True)):
        ignored = 0 if level == len(now) - 1 else DIRTY | GLOBAL
        if at != at_now or not _grew(before & ~ignored, value & ~ignored):
            return False
    return True


_COMMON: Final = "read read write write write execute execute fill tweak tweak tweak edit edit_low edit_low edit_low"
KINDS: Final = tuple(f"{_COMMON} {_COMMON} edit flood flood flood cross cross invalidate space space restore".split())
"""What scripts are made of; the more often, the more often."""
RARE_KINDS: Final = ("protect", "paging", "control", "log")
"""What flushes everything, or write-protects it."""


def play(guest: PagingGuest, script: Script) -> list[int]:
    """Let a guest do it and compare everything with what was expected; returns how long each command took."""
    guest.start(script.pieces, script.start_registers)
    view, window = guest.memory.view, guest.window
    ends = ((ARENA, ARENA + 0x1000 * FRAMES), (HIGH, HIGH + 0x1000 * HIGH_FRAMES))
    images = [bytearray(view[start:end]) for start, end in ends]
    commands = [step for step in script.steps if isinstance(step, Command)]
    times = [guest.position()]

    def compare(index: int, result: Result) -> None:
        times.append(guest.position())
        want = script.expected[index]
        if result != want.result:
            raise AssertionError(f"command {index}, {commands[index]}: expected {want.result}, found {result}")
        for (start, end), image in zip(ends, images, strict=True):
            for address, data in want.stores:
                if start <= address < end:
                    image[address - start : address - start + len(data)] = data
            _compare_bytes(index, commands[index], start, image, view[start:end].tobytes())
        _compare_bytes(index, commands[index], WINDOW, want.window, bytes(window.bytes))

    guest.run(script.steps, compare)
    for start, end in ((0, STUB), (STUB_END, RAM)):
        assert script.memory.view[start:end].tobytes() == view[start:end].tobytes(), "something else was written"
    return [after - before for before, after in pairwise(times)]


def _compare_bytes(index: int, command: Command, base: int, expected: bytes, found: bytes) -> None:
    if expected != found:
        at = next(n for n in range(0, len(expected), 4) if expected[n : n + 4] != found[n : n + 4])
        raise AssertionError(
            f"command {index}, {command}: at {base + at:#x}"
            f" expected {expected[at : at + 4].hex()}, found {found[at : at + 4].hex()}"
        )
