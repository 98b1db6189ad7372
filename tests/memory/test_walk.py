"""The page walker, against a second one that is written from the tables of SDM vol. 3A, chapter 4."""

import random
import struct
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.memory.walk import NOT_CANONICAL, PageFault, walk
from hvemu.vocabulary.paging import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    PagingRegisters,
)

SIZE = 0x1_0000
PHYSICAL_BITS = 40


class Access(NamedTuple):
    """One access to a linear address."""

    linear: int
    write: bool = False
    user: bool = False
    fetch: bool = False


# ---------------------------------------------------------------------- the reference


class Level(NamedTuple):
    """A level of the hierarchy: its name, where its index is in the linear address, and the size of its entries."""

    name: str
    shift: int
    bits: int
    size: int


TWO_LEVELS = (Level("PDE", 22, 10, 4), Level("PTE", 12, 10, 4))
FOUR_LEVELS = (
    Level("PML4E", 39, 9, 8), Level("PDPTE", 30, 9, 8), Level("PDE", 21, 9, 8), Level("PTE", 12, 9, 8),
)  # fmt: skip
THREE_LEVELS = (Level("PDPTE", 30, 2, 8), Level("PDE", 21, 9, 8), Level("PTE", 12, 9, 8))


def bits(value: int, high: int, low: int) -> int:
    """Bits ``high`` to ``low`` of a value, as the manual counts them."""
    return value >> low & (1 << high - low + 1) - 1


def reserved(level: Level, entry: int, large: bool, pae: bool, no_execute: bool) -> bool:
    """Whether a present entry has a bit set that tables 4-3 to 4-11 call reserved."""
    if not pae:
        return large and bits(entry, 21, 21) == 1  # with 40 physical bits, 13 to 20 are all address
    if bits(entry, 62, PHYSICAL_BITS):
        return True
    if level.name == "PDPTE":
        return bits(entry, 63, 63) == 1  # 1, 2 and 5 to 8 belong to MOV to CR3
    if bits(entry, 63, 63) and not no_execute:
        return True
    return large and bits(entry, 20, 13) != 0


def reference(image: bytes, registers: PagingRegisters, access: Access) -> tuple[int | PageFault, dict[int, int]]:
    """The result of a walk, and the bits it sets in memory by the address of the entry."""
    if not registers.cr0 & CR0_PG:
        return access.linear, {}
    if registers.efer & EFER_LMA:
        return long_reference(image, registers, access)
    pae = bool(registers.cr4 & CR4_PAE)
    no_execute = pae and bool(registers.efer & EFER_NXE)
    levels = THREE_LEVELS if pae else TWO_LEVELS
    table = bits(registers.cr3, 31, 5) << 5 if pae else bits(registers.cr3, 31, 12) << 12
    code = 2 * access.write + 4 * access.user + 16 * (access.fetch and no_execute)
    used: list[tuple[Level, int, int]] = []
    marks: dict[int, int] = {}
    for level in levels:
        at = table + level.size * bits(access.linear, level.shift + level.bits - 1, level.shift)
        stored = image[at : at + level.size] if at + level.size <= len(image) else b"\xff" * level.size
        entry = int.from_bytes(stored, "little")
        if not entry & 1:
            return PageFault(access.linear, code), marks
        large = level.name == "PDE" and bool(bits(entry, 7, 7)) and (pae or bool(registers.cr4 & CR4_PSE))
        if reserved(level, entry, large, pae, no_execute):
            return PageFault(access.linear, code | 1 | 8), marks
        used.append((level, at, entry))
        if large and pae:
            physical = bits(entry, 51, 21) << 21 | bits(access.linear, 20, 0)
            break
        if large:
            physical = bits(entry, 20, 13) << 32 | bits(entry, 31, 22) << 22 | bits(access.linear, 21, 0)
            break
        table = bits(entry, 51, 12) << 12 if pae else bits(entry, 31, 12) << 12
        if level.name == "PDE" and at + level.size <= len(image):
            marks[at] = 0x20  # used, whatever comes below it
    else:
        physical = table | bits(access.linear, 11, 0)
    rights = [entry for level, _, entry in used if level.name != "PDPTE"]
    user_page = all(bits(entry, 2, 2) for entry in rights)
    writable = all(bits(entry, 1, 1) for entry in rights)
    forbidden = access.user and not user_page
    if access.write and not writable and (access.user or registers.cr0 & CR0_WP):
        forbidden = True
    if access.fetch and no_execute and any(bits(entry, 63, 63) for entry in rights):
        forbidden = True
    if forbidden:
        return PageFault(access.linear, code | 1), marks
    for level, at, _ in used:
        if level.name != "PDPTE" and at + level.size <= len(image):
            leaf = at == used[-1][1]
            marks[at] = marks.get(at, 0) | 0x20 | (0x40 if leaf and access.write else 0)
    return physical, marks


def long_reference(image: bytes, registers: PagingRegisters, access: Access) -> tuple[int | PageFault, dict[int, int]]:
    """The same for four levels, by tables 4-15 to 4-20; the engine marks a page of 1 GiB before it checks it."""
    if bits(access.linear, 63, 47) not in (0, 0x1_FFFF):
        return PageFault(access.linear, NOT_CANONICAL), {}
    no_execute = bool(registers.efer & EFER_NXE)
    code = 2 * access.write + 4 * access.user + 16 * (access.fetch and no_execute)
    marks: dict[int, int] = {}
    if bits(registers.cr3, 63, PHYSICAL_BITS):
        return PageFault(access.linear, code), marks
    table, used = bits(registers.cr3, 51, 12) << 12, []
    for level in FOUR_LEVELS:
        at = table + 8 * bits(access.linear, level.shift + 8, level.shift)
        in_memory = at + 8 <= len(image)
        entry = int.from_bytes(image[at : at + 8] if in_memory else b"\xff" * 8, "little")
        if not entry & 1:
            return PageFault(access.linear, code), marks
        large = level.name in ("PDPTE", "PDE") and bool(bits(entry, 7, 7))
        wrong = bits(entry, 51, PHYSICAL_BITS) or (bits(entry, 63, 63) and not no_execute)
        if wrong or (level.name == "PML4E" and bits(entry, 7, 7)):
            return PageFault(access.linear, code | 1 | 8), marks
        leaf = large or level.name == "PTE"
        if in_memory and (not leaf or level.name == "PDPTE"):
            marks[at] = 0x20
        used.append(entry)
        if leaf:
            break
        table = bits(entry, 51, 12) << 12
    if large and bits(entry, level.shift - 1, 13):
        return PageFault(access.linear, code | 1 | 8), marks
    refused = access.user and not all(bits(entry, 2, 2) for entry in used)
    if access.write and not all(bits(entry, 1, 1) for entry in used):
        refused = refused or access.user or bool(registers.cr0 & CR0_WP)
    if access.fetch and no_execute and any(bits(entry, 63, 63) for entry in used):
        refused = True
    if refused:
        return PageFault(access.linear, code | 1), marks
    if in_memory:
        marks[at] = marks.get(at, 0) | 0x20 | (0x40 if access.write else 0)
    return bits(entry, 51, level.shift) << level.shift | bits(access.linear, level.shift - 1, 0), marks


# ---------------------------------------------------------------------- random tables


flag = st.booleans()
frames = st.one_of(st.integers(0, 15), st.integers(0, 15), st.sampled_from((16, 0xFFFFF)), st.integers(0, 0xFFFFF))


@st.composite
def entries_of_32_bits(draw: st.DrawFn) -> int:
    """Mostly present, mostly in RAM."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.integers(0, 0xFFFF_FFFF))
    low = draw(st.integers(0, 0xFFF)) | (1 if draw(st.integers(0, 7)) else 0)
    return draw(frames) << 12 | low


@st.composite
def entries_of_64_bits(draw: st.DrawFn) -> int:
    """Mostly without reserved bits."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.integers(0, (1 << 64) - 1))
    high = draw(
        st.sampled_from((0, 0, 0, 0, 0, 1 << 63, 1 << 63, 1 << 32, 1 << 39, 1 << 40, 1 << 51, 1 << 52, 1 << 62))
    )
    low = draw(st.integers(0, 0xFFF)) | (1 if draw(st.integers(0, 7)) else 0)
    if draw(flag):
        low &= ~0x1E6  # fit for a page-directory-pointer table
    return high | draw(frames) << 12 | low


class Tables(NamedTuple):
    """A memory image full of entries, and the registers."""

    image: bytes
    registers: PagingRegisters


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """Memory in which every word is one of a handful of entries, so that every walk meets them."""
    levels = draw(st.sampled_from((2, 3, 4)))
    pae = levels > 2
    entry = entries_of_64_bits() if pae else entries_of_32_bits()
    pool = draw(st.lists(entry, min_size=1, max_size=12))
    shuffle = random.Random(draw(st.integers(0, 1 << 32)))
    size = 8 if pae else 4
    image = b"".join(shuffle.choice(pool).to_bytes(size, "little") for _ in range(0x1000 // size * 4))
    registers = PagingRegisters(
        CR0_PE | CR0_PG | draw(st.sampled_from((0, CR0_WP))),
        draw(st.one_of(st.integers(0, SIZE - 1), st.integers(0, 0xFFFF_FFFF))),
        draw(st.sampled_from((0, CR4_PGE))) | draw(st.sampled_from((0, CR4_PSE))) | (CR4_PAE if pae else 0),
        draw(st.sampled_from((0, EFER_NXE))) | (EFER_LME | EFER_LMA if levels == 4 else 0),
    )
    return Tables(image * (SIZE // len(image)), registers)


accesses = st.builds(
    lambda linear, kind, user: Access(linear & (1 << 64) - 1, kind == "write", user, kind == "fetch"),
    st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0, (1 << 64) - 1), st.integers(-(1 << 47), (1 << 47) - 1)),
    st.sampled_from(("read", "write", "fetch")),
    flag,
)


def memory_of(image: bytes) -> GuestPhysicalMemory:
    """RAM with these bytes."""
    memory = GuestPhysicalMemory(MachineMemory(len(image)))
    memory.write(0, image)
    return memory


@settings(deadline=None, max_examples=200)
@given(tables(), st.lists(accesses, min_size=1, max_size=6), st.booleans())
@example(Tables(b"\xff" * SIZE, PagingRegisters(CR0_PG, 0xFFFF_F000, 0, 0)), [Access(0xFFFF_FFFF, write=True)], True)
def test_every_walk_is_as_the_manual_says(given_tables: Tables, several: list[Access], mark: bool) -> None:
    """Address or fault, error code, and accessed and dirty bits; one access after the other on the same tables."""
    image, registers = given_tables
    memory = memory_of(image)
    if not registers.efer & EFER_LMA:
        several = [access._replace(linear=access.linear & 0xFFFF_FFFF) for access in several]
    for access in several * 2:
        expected, marks = reference(image, registers, access)
        linear, write, user, fetch = access
        assert expected == walk(memory, registers, linear, write=write, user=user, fetch=fetch, mark=mark)
        if mark:
            changed = bytearray(image)
            for at, value in marks.items():
                changed[at] |= value
            image = bytes(changed)
        assert image == bytes(memory.view)


# ---------------------------------------------------------------------- one rule each


PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
NX = 1 << 63
DIRECTORY, TABLE, POINTERS = 0x1000, 0x2000, 0x3000
LINEAR = 0x00C0_5123  # entry 3 of the directory of two levels, 6 of that of PAE, and entry 5 of the table


def two_levels(pde: int, pte: int = 0, *, cr0: int = 0, cr4: int = 0) -> tuple[GuestPhysicalMemory, PagingRegisters]:
    """Tables in which one address is mapped."""
    memory = memory_of(bytes(SIZE))
    memory.write(DIRECTORY + 4 * 3, struct.pack("<I", pde))
    memory.write(TABLE + 4 * 5, struct.pack("<I", pte))
    return memory, PagingRegisters(CR0_PE | CR0_PG | cr0, DIRECTORY, cr4, 0)


def three_levels(
    pde: int, pte: int = 0, *, pdpte: int = DIRECTORY | 1, cr0: int = 0, efer: int = EFER_NXE
) -> tuple[GuestPhysicalMemory, PagingRegisters]:
    """The same with PAE."""
    memory = memory_of(bytes(SIZE))
    memory.write(POINTERS, struct.pack("<Q", pdpte))
    memory.write(DIRECTORY + 8 * 6, struct.pack("<Q", pde))
    memory.write(TABLE + 8 * 5, struct.pack("<Q", pte))
    return memory, PagingRegisters(CR0_PE | CR0_PG | cr0, POINTERS, CR4_PAE, efer)


def test_without_paging_nothing_is_translated() -> None:
    """Whatever CR3 and CR4 say."""
    memory = memory_of(b"\xff" * SIZE)
    registers = PagingRegisters(CR0_PE | CR0_WP, 0x1234_5000, CR4_PAE | CR4_PSE, EFER_NXE)
    assert 0xDEAD_BEEF == walk(memory, registers, 0xDEAD_BEEF, write=True, user=True)


def test_a_page_of_4_kib() -> None:
    """Both walks end in the frame, with the offset of the linear address."""
    memory, registers = two_levels(TABLE | 7, 0x7000 | 7)
    assert 0x7123 == walk(memory, registers, LINEAR)
    memory, registers = three_levels(TABLE | 7, 0xA5_8765_4000 | 7)
    assert 0xA5_8765_4123 == walk(memory, registers, LINEAR)


def test_a_large_page() -> None:
    """4 MiB with bits 13 to 20 above the fourth GiB (PSE-36), or 2 MiB."""
    memory, registers = two_levels(0x1234_5678 & 0xFFC0_0000 | 0xA5 << 13 | 1 << 12 | LARGE | 7, cr4=CR4_PSE)
    assert 0xA5_1200_5123 == walk(memory, registers, LINEAR)
    memory, registers = three_levels(0xA5_8760_0000 | 1 << 12 | LARGE | 7)
    assert 0xA5_8760_5123 == walk(memory, registers, LINEAR)


@pytest.mark.parametrize("bit", range(12, 32))
def test_every_bit_of_the_address_chooses_an_entry(bit: int) -> None:
    """Only the entries on the way of one address exist; its neighbour in that bit is not mapped."""
    linear = 0x5A5A_5123 ^ 1 << bit
    memory = memory_of(bytes(SIZE))
    memory.write(DIRECTORY + 4 * (linear // (4 << 20)), struct.pack("<I", TABLE | 7))
    memory.write(TABLE + 4 * (linear // 4096 % 1024), struct.pack("<I", 0x7000 | 7))
    registers = PagingRegisters(CR0_PE | CR0_PG, DIRECTORY, 0, 0)
    assert 0x7123 == walk(memory, registers, linear)
    assert PageFault(linear ^ 1 << bit, 0) == walk(memory, registers, linear ^ 1 << bit)
    memory = memory_of(bytes(SIZE))
    memory.write(POINTERS + 8 * (linear // (1 << 30)), struct.pack("<Q", DIRECTORY | 1))
    memory.write(DIRECTORY + 8 * (linear // (2 << 20) % 512), struct.pack("<Q", TABLE | 7))
    memory.write(TABLE + 8 * (linear // 4096 % 512), struct.pack("<Q", 0x7000 | 7))
    registers = PagingRegisters(CR0_PE | CR0_PG, POINTERS | 0b11010, CR4_PAE, 0)
    assert 0x7123 == walk(memory, registers, linear)
    assert PageFault(linear ^ 1 << bit, 0) == walk(memory, registers, linear ^ 1 << bit)


def test_without_pse_the_size_bit_means_nothing() -> None:
    """The directory entry leads to a table; with PAE there is no such choice."""
    memory, registers = two_levels(TABLE | LARGE | 7, 0x7000 | 7)
    assert 0x7123 == walk(memory, registers, LINEAR)
    memory, registers = three_levels(LARGE | 7)
    assert 0x5123 == walk(memory, registers, LINEAR)


@pytest.mark.parametrize(
    ("write", "user", "code"), [(False, False, 0), (True, False, 2), (False, True, 4), (True, True, 6)]
)
def test_what_is_not_present(write: bool, user: bool, code: int) -> None:
    """At every level; reserved bits of such an entry do not count."""
    everything = 0xFFFF_FFFE
    for memory, registers in (
        two_levels(everything),
        two_levels(TABLE | 7, everything),
        three_levels(0, pdpte=0xFFFF_FFFF_FFFF_FFFE),
        three_levels(0xFFFF_FFFF_FFFF_FFFE),
        three_levels(TABLE | 7, 0xFFFF_FFFF_FFFF_FFFE),
    ):
        assert PageFault(LINEAR, code) == walk(memory, registers, LINEAR, write=write, user=user)


@pytest.mark.parametrize("pde", range(8))
@pytest.mark.parametrize("pte", range(8))
@pytest.mark.parametrize("write_protect", [False, True])
def test_rights_of_both_levels_count(pde: int, pte: int, write_protect: bool) -> None:
    """Section 4.6: user and writable only if both say so; CR0.WP binds the supervisor."""
    rights = pde & pte
    for memory, registers in (
        two_levels(TABLE | pde, 0x7000 | pte, cr0=CR0_WP if write_protect else 0),
        three_levels(TABLE | pde, 0x7000 | pte, cr0=CR0_WP if write_protect else 0),
    ):
        for write in (False, True):
            for user in (False, True):
                allowed = (not user or rights & USER) and (
                    not write or rights & WRITABLE or (not user and not write_protect)
                )
                code = 2 * write + 4 * user
                expected: object = PageFault(LINEAR, code)
                if rights & PRESENT:
                    expected = 0x7123 if allowed else PageFault(LINEAR, code | 1)
                assert expected == walk(memory, registers, LINEAR, write=write, user=user)


@pytest.mark.parametrize("where", ["pde", "pte", "large"])
def test_no_execute_at_any_level(where: str) -> None:
    """Fetches fault with bit 4; data does not care. Without EFER.NXE the bit is reserved for every access."""
    pde = (TABLE if where != "large" else LARGE) | 7 | (NX if where != "pte" else 0)
    pte = 0x7000 | 7 | (NX if where == "pte" else 0)
    memory, registers = three_levels(pde, pte)
    physical = 0x5123 if where == "large" else 0x7123
    assert physical == walk(memory, registers, LINEAR, write=True, user=True)
    assert PageFault(LINEAR, 0b10001) == walk(memory, registers, LINEAR, fetch=True)
    assert PageFault(LINEAR, 0b10101) == walk(memory, registers, LINEAR, fetch=True, user=True)
    memory, registers = three_levels(pde, pte, efer=0)
    assert PageFault(LINEAR, 0b01001) == walk(memory, registers, LINEAR)
    assert PageFault(LINEAR, 0b01101) == walk(memory, registers, LINEAR, fetch=True, user=True)


def test_fetches_show_in_the_error_code_only_with_no_execute() -> None:
    """PAE with NXE; never in two levels."""
    for (memory, registers), code in (
        (two_levels(0), 0),
        (three_levels(0, efer=0), 0),
        (three_levels(0), 16),
        (three_levels(0, pdpte=0), 16),
    ):
        assert PageFault(LINEAR, code) == walk(memory, registers, LINEAR, fetch=True)


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 9, 11, 40, 51, 52, 62, 63])
def test_reserved_bits_of_a_directory_pointer(bit: int) -> None:
    """High ones fault when used, as in the engine; low ones are the affair of MOV to CR3, and grant nothing."""
    memory, registers = three_levels(TABLE | 1, 0x7000 | 1, pdpte=DIRECTORY | 1 | 1 << bit)
    expected: object = PageFault(LINEAR, 0b01001) if bit >= 40 else 0x7123
    assert expected == walk(memory, registers, LINEAR)
    if bit < 40:
        assert PageFault(LINEAR, 0b00101) == walk(memory, registers, LINEAR, user=True)


@pytest.mark.parametrize("bit", [40, 51, 52, 62])
def test_reserved_bits_of_pae_entries(bit: int) -> None:
    """Those above the physical address, at both levels."""
    for memory, registers in (
        three_levels(TABLE | 7 | 1 << bit, 0x7000 | 7),
        three_levels(TABLE | 7, 0x7000 | 7 | 1 << bit),
        three_levels(LARGE | 7 | 1 << bit),
    ):
        assert PageFault(LINEAR, 0b01111) == walk(memory, registers, LINEAR, write=True, user=True)


def test_reserved_bits_of_large_pages() -> None:
    """Bit 21 of 4 MiB, bits 13 to 20 of 2 MiB; they come before the rights."""
    memory, registers = two_levels(1 << 21 | LARGE | PRESENT, cr4=CR4_PSE)
    assert PageFault(LINEAR, 0b01111) == walk(memory, registers, LINEAR, write=True, user=True)
    for bit in range(13, 21):
        memory, registers = three_levels(1 << bit | LARGE | PRESENT)
        assert PageFault(LINEAR, 0b01101) == walk(memory, registers, LINEAR, user=True)


def test_accessed_and_dirty_bits() -> None:
    """A read marks both levels accessed; a write also marks the last one dirty; large pages have both in one."""
    memory, registers = two_levels(TABLE | 7, 0x7000 | 7)
    walk(memory, registers, LINEAR, mark=False)
    assert (TABLE | 7, 0x7000 | 7) == (memory.read_u32(DIRECTORY + 12), memory.read_u32(TABLE + 20))
    walk(memory, registers, LINEAR)
    assert (TABLE | 0x27, 0x7000 | 0x27) == (memory.read_u32(DIRECTORY + 12), memory.read_u32(TABLE + 20))
    walk(memory, registers, LINEAR, write=True)
    assert (TABLE | 0x27, 0x7000 | 0x67) == (memory.read_u32(DIRECTORY + 12), memory.read_u32(TABLE + 20))
    memory, registers = two_levels(LARGE | 7, cr4=CR4_PSE)
    walk(memory, registers, LINEAR, write=True)
    assert LARGE | 0x67 == memory.read_u32(DIRECTORY + 12)
    memory, registers = three_levels(TABLE | 7, NX | 0x7000 | 7)
    walk(memory, registers, LINEAR, write=True)
    assert (TABLE | 0x27, NX | 0x7000 | 0x67) == (memory.read_u64(DIRECTORY + 48), memory.read_u64(TABLE + 40))
    assert DIRECTORY | 1 == memory.read_u64(POINTERS)


def test_a_fault_marks_the_directory_entry_but_not_the_leaf() -> None:
    """As the engine does: what was used on the way is accessed, what refused is not."""
    memory, registers = two_levels(TABLE | 7, 0x7000 | PRESENT)
    walk(memory, registers, LINEAR, write=True, user=True)
    assert (TABLE | 0x27, 0x7000 | PRESENT) == (memory.read_u32(DIRECTORY + 12), memory.read_u32(TABLE + 20))
    memory, registers = three_levels(TABLE | 7, 0)
    walk(memory, registers, LINEAR)
    assert (TABLE | 0x27, 0) == (memory.read_u64(DIRECTORY + 48), memory.read_u64(TABLE + 40))


def test_a_directory_that_maps_itself() -> None:
    """The recursive entry is directory and table in one."""
    memory, registers = two_levels(0)
    memory.write(DIRECTORY + 4 * 1023, struct.pack("<I", DIRECTORY | 7))
    assert DIRECTORY + 12 == walk(memory, registers, 0xFFFF_F00C, write=True)
    assert DIRECTORY | 0x67 == memory.read_u32(DIRECTORY + 4 * 1023)
