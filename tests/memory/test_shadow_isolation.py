"""Whatever a guest does to its page tables, it reaches no machine frame but its own, and the hypervisor goes on.

The guests here are scripts of legal edits, tables of rubbish, and random programs that have both in their hands. The
hypervisor's memory is filled with a pattern; afterwards every table that it has made is looked at, entry by entry.
"""

import random
import struct
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvemu.cpu.msr import EFER
from hvemu.cpu.state import CS, ESP, SS, Segment, TableRegister, VirtualCpu, segment_from_descriptor
from hvemu.memory.shadow import MMIO_WINDOW, FrameState, ShadowPaging, ShadowPolicy
from hvemu.memory.walk import PTE_NX, PTE_PRESENT, PTE_USER, PTE_WRITABLE
from hvemu.modes.deprivileged import VMM_FRAMES
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.outcomes import Stop
from hvemu.vocabulary.paging import PagingRegisters
from tests.memory.page_table_scripts import (
    ARENA,
    BEYOND,
    DATA,
    DIRECTORIES,
    FORMATS,
    FRAMES,
    KINDS,
    NOWHERE,
    POINTERS,
    RARE_KINDS,
    SHARED,
    TABLES,
    Format,
    Script,
    frame,
    layout,
    play,
)
from tests.memory.paging_guest import (
    CODE0,
    DATA0,
    DATA3,
    POLICIES,
    PROTECTED,
    RAM,
    STUB_ENTRY,
    STUB_IMAGE,
    TASK,
    TSS,
    Command,
    Done,
    PagingGuest,
)
from tests.memory.paging_guest import TABLES as STUB_DESCRIPTORS

TWO_LEVELS, WITH_LARGE_PAGES, PAE, WITH_NX = FORMATS
_OWN = VMM_FRAMES - 1 + 3
"""Frames that the hypervisor takes for its pages and the tables that map them."""
_ROOT = 6
_ADDRESS = 0x000F_FFFF_FFFF_F000
_SECRET = b"\xa5secret!"
forms = pytest.mark.parametrize(
    "form", FORMATS, ids=["two levels", "two levels with large pages", "PAE", "PAE with NX"]
)
QUICK = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


class Guarded:
    """A guest in mode trap, and all machine memory that is not its own."""

    def __init__(self, policy: ShadowPolicy | None = None, **options: int) -> None:
        self.guest = PagingGuest("trap", policy, **options)
        self.paging: ShadowPaging = self.guest.mode.paging
        self.memory = self.guest.memory
        self.pool = self.paging._pool
        self.taken: set[int] = set()
        take = self.pool.take

        def noted() -> int:
            address = take()
            self.taken.add(address)
            return address

        self.pool.take = noted
        view = self.memory.machine.view
        view[:PAGE_SIZE] = _SECRET * (PAGE_SIZE // 8)
        for number in self.pool._free:
            view[number << 12 : (number + 1) << 12] = _SECRET * (PAGE_SIZE // 8)
        self.own = {bytes(view[page : page + PAGE_SIZE]) for page in ()}

    def inspect(self) -> None:
        """Every table and every entry, and what nobody may have touched."""
        paging, memory = self.paging, self.memory
        view = memory.machine.view
        quads = view.cast("B").cast("Q")
        leaves = {leaf.address: leaf for leaf in paging._leaves.values()}
        roots = {id(root): root for root in (paging._root, *paging._roots.values())}
        used = [*leaves, *(address for root in roots.values() for address in root.frames())]
        free = [number << 12 for number in self.pool._free]
        assert len(used) == len(set(used)), "a frame is used twice"
        assert not set(used) & set(free), "a free frame is used"
        assert self.pool.count == _OWN + len(used) + len(free), "a frame is lost"
        assert all(PAGE_SIZE <= address < memory.base for address in used)
        for root in roots.values():
            tables = {root.pdpt, *root.directories, *leaves}
            upper = quads[root.pml4 >> 3 : (root.pml4 >> 3) + 512].tolist()
            assert [root.pdpt, paging._reserved] == [entry & _ADDRESS for entry in upper[:2]]
            assert not upper[1] & PTE_USER
            assert not any(upper[2:])
            for table in (root.pdpt, *root.directories):
                for entry in quads[table >> 3 : (table >> 3) + 512].tolist():
                    assert not entry or (entry & PTE_PRESENT and entry & _ADDRESS in tables)
        for leaf in leaves.values():
            entries = quads[leaf.address >> 3 : (leaf.address >> 3) + 512].tolist()
            assert {index for index, entry in enumerate(entries) if entry} == set(leaf.filled)
            for index, number in leaf.filled.items():
                self._inspect_entry(entries[index], number)
        pattern = _SECRET * (PAGE_SIZE // 8)
        for address in [0, *(address for address in free if address not in self.taken)]:
            assert pattern == view[address : address + PAGE_SIZE].tobytes(), f"{address:#x} was written"

    def _inspect_entry(self, entry: int, number: int) -> None:
        """A leaf entry leads to the machine frame of a guest frame, or to where devices are; what it allows."""
        paging, memory = self.paging, self.memory
        address = entry & _ADDRESS
        assert entry & PTE_PRESENT
        if number >= RAM >> 12:
            assert MMIO_WINDOW <= address < 2 * MMIO_WINDOW
            return
        assert memory.machine_frame(number) << 12 == address
        assert memory.base <= address < memory.base + memory.size
        state = paging.state(number)
        assert entry & PTE_NX or state is not FrameState.DATA
        assert not entry & PTE_WRITABLE or state is not FrameState.CODE
        if entry & PTE_WRITABLE and state is FrameState.MIXED:
            assert not entry & PTE_NX
        if entry & PTE_WRITABLE and number in paging._tracked:
            assert number in paging._unsync


@lru_cache
def guarded(policy: str) -> Guarded:
    """A guarded guest that scripts share."""
    return Guarded(POLICIES[policy])


def play_guarded(guard: Guarded, script: Script, every: int = 10) -> None:
    """Play a script with a look at everything now and then, and at the end."""
    steps = script.steps
    script.steps = []
    for number, step in enumerate(steps):
        script.steps.append(step)
        if number % every == every - 1:
            script.steps.append(lambda machine: guard.inspect())
    try:
        play(guard.guest, script)
        guard.inspect()
    except BaseException:
        guarded.cache_clear()
        raise


REQUESTS = st.lists(
    st.tuples(st.sampled_from((*KINDS, *RARE_KINDS, "format")), st.binary(min_size=4, max_size=4)),
    min_size=30,
    max_size=90,
)


@forms
@pytest.mark.parametrize("policy", POLICIES)
@settings(QUICK, max_examples=6)
@given(requests=REQUESTS)
def test_no_edit_of_tables_leads_to_a_frame_that_is_not_the_guests(form: Format, policy: str, requests: list) -> None:
    """Aliases, tables that map tables or themselves, devices, and what is neither memory nor device."""
    script = Script(form)
    for kind, numbers in requests:
        script.ask(kind, *numbers)
    play_guarded(guarded(policy), script)


# ---------------------------------------------------------------------- few frames, many address spaces


@forms
@pytest.mark.parametrize("tables", [3, 4, 6])
@settings(QUICK, max_examples=8)
@given(requests=REQUESTS)
def test_a_table_in_use_may_have_to_make_room(form: Format, tables: int, requests: list) -> None:
    """An instruction, its code and its two operands need three tables; there is no need for more."""
    script = Script(form)
    for kind, numbers in requests:
        script.ask(kind, *numbers)
    play_guarded(few_tables(tables), script)


@lru_cache
def few_tables(tables: int) -> Guarded:
    """A guest with so many shadow tables."""
    return Guarded(ShadowPolicy(tables=tables))


@lru_cache
def few_frames(spaces: int, tables: int) -> Guarded:
    """A hypervisor whose memory is enough for so many address spaces and tables, and no more."""
    return Guarded(ShadowPolicy(), vmm_memory=(1 + _OWN + _ROOT * spaces + tables) * PAGE_SIZE)


@forms
@pytest.mark.parametrize(("spaces", "tables"), [(2, 3), (2, 9), (5, 4)])
@settings(QUICK, max_examples=8)
@given(requests=REQUESTS)
def test_the_hypervisors_memory_may_be_small(form: Format, spaces: int, tables: int, requests: list) -> None:
    """Tables and address spaces make room for each other."""
    script = Script(form)
    for kind, numbers in requests:
        script.ask(kind, *numbers)
    play_guarded(few_frames(spaces, tables), script)


SPACES = 200
_FIRST_SPACE = 0x30_0000


def many_spaces() -> tuple[list[tuple[int, bytes]], list[int]]:
    """Directories in which the same address is another page each, and the page before it the same."""
    pieces, roots = layout(TWO_LEVELS), []
    entries = bytearray(PAGE_SIZE)
    for number in range(SPACES):
        root = _FIRST_SPACE + number * PAGE_SIZE
        page = bytearray(PAGE_SIZE)
        struct.pack_into("<I", page, 0, STUB_ENTRY)
        struct.pack_into("<I", page, 8, SHARED | 7)
        # A page-sized window on itself: the directory serves as a table too
        struct.pack_into("<I", page, 12, root | 7)
        struct.pack_into("<I", page, 4 * 1000, root | 7)
        struct.pack_into("<I", page, 4 * 500, 0x4242_0000 + number & ~1)
        pieces.append((root, bytes(page)))
        roots.append(root)
    return [*pieces, (0, bytes(entries))], roots


@pytest.mark.parametrize("guard", ["cached", "eight tables", "small"])
def test_two_hundred_address_spaces_are_as_good_as_one(guard: str) -> None:
    """The oldest make room; each is what it was when it comes back."""
    which = few_frames(5, 4) if guard == "small" else guarded(guard)
    pieces, roots = many_spaces()
    which.guest.start(pieces, TWO_LEVELS.registers())
    order = [*range(SPACES), *range(SPACES), *random.Random(1).sample(range(SPACES), SPACES)]
    steps = []
    for turn, number in enumerate(order):
        own = (3 << 22) + 1000 * PAGE_SIZE
        steps += [Command("cr3", value=roots[number]), Command("read", own + 4 * 500)]
        steps += [Command("write", own + 4 * 501, turn << 1), Command("read", 2 << 22), Command("read", own + 4 * 501)]
    results = [result[0] if isinstance(result, Done) else result for result in which.guest.run(steps)]
    for turn, number in enumerate(order):
        found = results[5 * turn : 5 * turn + 5]
        assert [roots[number], 0x4242_0000 + number & ~1, turn << 1, turn << 1] == [found[n] for n in (0, 1, 2, 4)]
    assert len(which.paging._roots) <= 128
    which.inspect()


# ---------------------------------------------------------------------- programs out of control


EAX_IS = b"\xb8"
_ADDRESSES = (
    *(3 << 22 | number << 12 for number in range(FRAMES)),
    *(2 << 22 | number << 12 for number in (0, 1, 2, 3)),
    *(4 << 22 | number << 12 for number in (0, 1, 512)),
    *(1023 << 22 | number << 12 for number in (0, 3, 768, 1023)),
    0xFFFF_FFFE, 0, 0xFFF, 0x8000_0000, STUB_DESCRIPTORS, TSS,
)  # fmt: skip
_VALUES = (
    *(table | 7 for table in TABLES), *DIRECTORIES, *POINTERS, *(data | 7 for data in DATA[:4]), *NOWHERE,
    PROTECTED, PROTECTED & ~0x1_0000, 0x20, 0x10, 0xB0, 0, 1, 0xFFFF_FFFF, 0xE000_0007, 0x83, 0x0020_0087,
    CODE0, DATA0, DATA3, 0xC000_0080, 0x800, 0x02, 0x0100, 0x3202,
)  # fmt: skip
_DEEDS = tuple(
    bytes.fromhex(text)
    for text in (
        "8907", "8b07", "8707", "0907", "2107", "ab", "f3ab", "aa", "a5", "f3a5", "a4", "50", "58", "60", "61", "9c",
        "9d", "8c17", "894706", "c70700000000", "890e", "8b36", "0f22d8", "0f22c0", "0f22e0", "0f20d8", "0f20c0",
        "0f20d0", "0f013f", "0f0138", "0f011f", "0f0117", "0f01e0", "0f30", "0f32", "0f09", "0f06", "fa", "fb", "f4",
        "cf", "cd80", "cc", "f1", "0f0b", "8ed8", "8ed0", "8ec0", "8ee0", "0f00d8", "0f00d0", "0fb2e7", "c3", "cb",
        "ffd0", "ffe7", "ff2f", "ff1f", "ebfe", "e2fe", "f7f1", "0fae07", "0fae0f", "0fc70f", "f00fb10f", "89e7",
        "89fc", "89c4", "8d67fe", "97", "96", "91", "fc", "fd", "8d7ffe", "47", "4f",
    )
)  # fmt: skip
"""Stores, loads, stacks, control registers, descriptor tables, far transfers: what can hurt."""


def random_code(numbers: random.Random, length: int) -> bytes:
    """Instructions that can hurt, with operands that can, and rubbish."""
    code = bytearray()
    while len(code) < length:
        kind = numbers.randrange(10)
        if kind < 4:
            value = numbers.choice(_ADDRESSES) + numbers.choice((0, 0, 4, 8, 0x10, 0xFFE, 0x800))
            if kind == 0:
                value = numbers.choice(_VALUES)
            code += bytes([0xB8 + numbers.choice((0, 0, 7, 7, 6, 1, 2, 4))]) + (value & 0xFFFF_FFFF).to_bytes(
                4, "little"
            )
        elif kind < 9:
            code += numbers.choice(_DEEDS)
        else:
            code += numbers.randbytes(numbers.randrange(1, 4))
    return bytes(code[:length])


def random_tables(numbers: random.Random, form: Format) -> list[tuple[int, bytes]]:
    """Tables as scripts have them, some with rubbish in them, or all rubbish but for what maps the stub."""
    pieces = layout(form)
    rubbish = numbers.choice((0.0, 0.0, 0.01, 0.1, 0.6))
    size = 8 if form.pae else 4
    result = []
    for address, page in pieces:
        data = bytearray(page)
        if address in TABLES and rubbish:
            for at in range(8, PAGE_SIZE, size):
                if numbers.random() < rubbish:
                    value = numbers.choice(_VALUES) | numbers.choice((0, 1, 7, 0x67, 0x87))
                    if form.pae and numbers.random() < 0.2:
                        value |= numbers.choice((*BEYOND, 1 << 63, 1 << 51, 1 << 39))
                    data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        result.append((address, bytes(data)))
    return result


def let_loose(guard: Guarded, seed: int, *, limit: int, faults: int) -> Stop | None:
    """Run a random program with random tables; it may end, or go on for ever."""
    numbers = random.Random(seed)
    form = numbers.choice(FORMATS)
    guest, mode = guard.guest, guard.guest.mode
    pieces = random_tables(numbers, form)
    window = 3 << 22
    code_at = [address for address in DATA if address >= frame(20)]
    pieces += [(address, random_code(numbers, PAGE_SIZE)) for address in code_at]
    entries = [window + address - ARENA for address in code_at]
    gates = bytearray()
    for _ in range(0x81):
        handler = numbers.choice(entries) + numbers.randrange(0xF00)
        gates += struct.pack("<HHHH", handler & 0xFFFF, CODE0, numbers.choice((0xEE00, 0x8E00, 0xEF00)), handler >> 16)
    interrupts = DATA[0]
    pieces.append((interrupts, bytes(gates).ljust(PAGE_SIZE, b"\0")))
    guest.start(pieces, form.registers())
    cpu = guest.machine.registers()
    user = numbers.random() < 0.3
    cpu.instruction_pointer = numbers.choice(entries)
    cpu.idtr = TableRegister(window + interrupts - ARENA, 0x81 * 8 - 1)
    for index in range(8):
        cpu.gprs[index] = numbers.choice(_ADDRESSES)
    cpu.gprs[ESP] = window + DATA[2] - ARENA + numbers.choice((0x800, 0xFFC, 2))
    cpu.gprs[1] = numbers.randrange(20)
    if user:
        for index, selector in ((CS, 0x1B), (SS, 0x23)):
            at = STUB_DESCRIPTORS + (selector & ~7)
            cpu.segments[index] = segment_from_descriptor(selector, guest.memory.read_u64(at))
    mode.enter(cpu)
    machine = guest.machine
    machine.stop = None
    delivered = 0
    deliver = type(mode)._deliver_event.__get__(mode)

    def counted(event: object) -> object:
        nonlocal delivered
        delivered += 1
        if delivered >= faults:
            mode.stop_soon(Stop(0, "enough"))
            mode._stop_now()
        return deliver(event)

    mode._deliver_event = counted
    guest._faults = 0
    machine.board.power_on()
    stop = machine.run(guest.position() + limit)
    guard.inspect()
    return stop


@settings(QUICK, max_examples=300)
@given(seed=st.integers(0, 1 << 32))
def test_no_program_harms_the_hypervisor(seed: int) -> None:
    """It ends, or goes on; nothing is raised, and nothing reached."""
    try:
        let_loose(guarded("cached"), seed, limit=3_000, faults=300)
    except BaseException:
        guarded.cache_clear()
        raise
