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

from hvemu.cpu.delivery import Event
from hvemu.cpu.state import CS, ECX, ESP, SS, TableRegister, segment_from_descriptor
from hvemu.memory.shadow import MMIO_WINDOW, FrameState, ShadowPaging, ShadowPolicy
from hvemu.memory.walk import PTE_NX, PTE_PRESENT, PTE_USER, PTE_WRITABLE
from hvemu.modes.deprivileged import VMM_FRAMES, HypervisorPages
from hvemu.modes.trap import TrapMode
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.outcomes import Stop
from tests.memory.page_table_scripts import (
    ALIASES,
    ARENA,
    BEYOND,
    CODE_AT,
    DATA,
    DIRECTORIES,
    FORMATS,
    FRAMES,
    KINDS,
    NOWHERE,
    POINTERS,
    PRIVATE,
    RARE_KINDS,
    SHARED,
    TABLES,
    Format,
    Script,
    layout,
    play,
)
from tests.memory.paging_guest import (
    CODE0,
    CODE3,
    DATA3,
    IDT,
    POLICIES,
    PROTECTED,
    RAM,
    STUB_ENTRY,
    TSS,
    Command,
    Done,
    PagingGuest,
    shared_guest,
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
            assert not any(upper[2:])
            for table in (root.pdpt, *root.directories):
                for entry in quads[table >> 3 : (table >> 3) + 512].tolist():
                    assert not entry or (entry & PTE_PRESENT and entry & _ADDRESS in tables)
        mine = guest_pages(self.guest)
        for entry in quads[mine._table >> 3 : (mine._table >> 3) + 512].tolist():
            assert not entry or not entry & PTE_USER, "user code reaches the hypervisor's pages"
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


def guest_pages(guest: PagingGuest) -> HypervisorPages:
    """The hypervisor's pages above 4 GiB."""
    return guest.mode._hypervisor_pages


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


# ---------------------------------------------------------------------- tables where no table should be


def play_everywhere(script: Script) -> None:
    """In mode native, and under every policy with a look at everything after each step."""
    play(shared_guest("native"), script)
    for policy in POLICIES:
        copy = Script(script.form)
        copy.steps, copy.expected, copy.memory = list(script.steps), script.expected, script.memory
        play_guarded(guarded(policy), copy, every=1)


@forms
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("address", [*NOWHERE, *BEYOND, 0xFEE0_0000])
def test_pages_and_tables_may_lie_outside_of_memory(form: Format, level: int, address: int) -> None:
    """Nobody answers: what is read is all ones, as an entry too, and stores go nowhere. Nobody's device is hit."""
    script = Script(form)
    size = 8 if form.pae else 4
    if (not form.pae and address >> 32) or (address == 0xFEE0_0000 and level):
        return
    script.edit(SHARED if level == 0 else DIRECTORIES[0] + 8 * size, address | 7, size, 0, 0)
    if not form.pae:
        script.edit(DIRECTORIES[0] + 4 * 4, (address if level else SHARED) | 7, 4, 0, 0)
    for user in (False, True):
        if address != 0xFEE0_0000:
            script.access("read", 4 << 22, user=user)
            script.access("write", 4 << 22, 0x5555_5555, user=user)
        script.access("write", (4 << 22) + 0xFFE, 0x5555_5555, user=user)
    play_everywhere(script)


@forms
@pytest.mark.parametrize("mode", ["native", *POLICIES])
def test_an_address_space_outside_of_memory_ends_the_guest(form: Format, mode: str) -> None:
    """Its entries are ones: of two levels, they lead to where nobody answers; of others, they are impossible."""
    how = "there is no memory at this address" if form == TWO_LEVELS else "triple fault"
    guest = shared_guest(mode) if mode == "native" else guarded(mode).guest
    guest.start(layout(form), form.registers())
    with pytest.raises(AssertionError, match=how):
        guest.run([Command("cr3", value=NOWHERE[1])])


@forms
def test_a_table_may_be_code_and_stack(form: Format) -> None:
    """At entries that are not used, and at some that are."""
    script = Script(form)
    window = 3 << 22
    for number in range(6):
        for table in (SHARED, PRIVATE[0], ALIASES, DIRECTORIES[0]):
            at = window + table - ARENA
            script.execute(at + CODE_AT, user=table != ALIASES)
            script.access("push", at + CODE_AT + 1, number << 8)
            script.execute(at + CODE_AT)
            script.access("write", at + CODE_AT + 8, 0x0040_0007 + number)
        for address in (2 << 22, 4 << 22, window + 0x1_0000):
            script.access("read", address)
    play_everywhere(script)


@forms
@pytest.mark.parametrize("table", [SHARED, ALIASES, DIRECTORIES[0]])
def test_interrupts_may_push_into_a_table(form: Format, table: int) -> None:
    """What is pushed are entries from then on."""
    size = 8 if form.pae else 4
    top = 0x900
    address = {SHARED: 4 << 22, ALIASES: 3 << 22, DIRECTORIES[0]: 0}[table]
    pushed = [address + (top - 4 * n) // size * (0x1000 if table != DIRECTORIES[0] else 0) for n in range(1, 6)]
    outcomes = []
    for mode in ("native", *POLICIES):
        guest = shared_guest(mode) if mode == "native" else guarded(mode).guest
        guest.start(layout(form), form.registers())
        guest.memory.write(TSS + 4, struct.pack("<I", (3 << 22) + table - ARENA + top))
        steps = []
        for number in range(5):
            steps += [Command("read", 2 << 22, user=True), Command("write", (2 << 22) + 4, number, user=True)]
            for page in pushed:
                steps += [Command("invlpg", page), Command("read", page), Command("read", page, user=True)]
        outcomes.append((guest.run(steps), guest.memory.read(ARENA, FRAMES * PAGE_SIZE)))
        if mode != "native":
            guarded(mode).inspect()
    assert all(outcome == outcomes[0] for outcome in outcomes)


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


_HOME = 0x10_6000
"""Ten pages that the stub's table maps for the kernel, at their own place."""
_TOP = _HOME + 0xA000
_ADDRESSES = (
    *(3 << 22 | number << 12 for number in range(FRAMES)),
    *(2 << 22 | number << 12 for number in (0, 1, 2, 3)),
    *(4 << 22 | number << 12 for number in (0, 1, 512)),
    *(1023 << 22 | number << 12 for number in (0, 3, 768, 1023)),
    0xFFFF_FFFE, 0, 0xFFF, 0x8000_0000, STUB_DESCRIPTORS, TSS, _HOME, _HOME + 0x3000,
)  # fmt: skip
_VALUES = (
    *(table | 7 for table in TABLES), *DIRECTORIES, *POINTERS, *(data | 7 for data in DATA[:4]), *NOWHERE,
    0, 1, 0xFFFF_FFFF, 0xE000_0007, 0x83, 0x0020_0087, _HOME | 0x67, 0x60, STUB_ENTRY,
)  # fmt: skip
_CONTROLS = (
    ("0f22d8", (*DIRECTORIES, *POINTERS)),  # mov cr3,eax
    ("0f22d8", _VALUES),
    ("0f22c0", (PROTECTED, PROTECTED & ~0x1_0000)),  # mov cr0,eax: WP
    ("0f22c0", (PROTECTED & ~0x8000_0000, PROTECTED, 0x8000_0011, 0)),
    ("0f22e0", (0, 0x10, 0x20, 0x80, 0xB0)),  # mov cr4,eax
    ("0f0138", _ADDRESSES),  # invlpg [eax]
    ("8ed8", (0x10, 0x18, 0x23, 0, 0x28, 0xFFFF)),  # mov ds,eax
    ("8ee0", (0x10, 0x18, 0x23, 0, 0x28, 0xFFFF)),  # mov fs,eax
    ("0f00d8", (0x28, 0x10)),  # ltr
    ("0f0118", _ADDRESSES),  # lidt [eax]
    ("0f0110", _ADDRESSES),  # lgdt [eax]
    ("b9800000c0 31d2 0f30", (0, 0x800, 0x801, 0xFFFF_FFFF)),  # wrmsr
    ("ffd0", _ADDRESSES),  # call eax
    ("89c4", _ADDRESSES),  # mov esp,eax
)
_DEEDS = tuple(
    bytes.fromhex(text)
    for text in (
        "8907", "8b07", "8707", "0907", "2107", "ab", "f3ab", "aa", "a5", "f3a5", "a4", "50", "58", "60", "61", "9c",
        "8c17", "894706", "c70700000000", "890e", "8b36", "0f20d8", "0f20c0", "0f20d0", "0f013f", "0fae07", "0fae0f",
        "0fc70f", "f00fb10f", "97", "96", "91", "8d7ffe", "47", "4f", "c7070567ab00", "66ab", "f366a5",
    )
)  # fmt: skip
"""Stores and loads of all sizes, of several pages too."""
_WILD = tuple(
    bytes.fromhex(text)
    for text in (
        "9d", "0f011f", "0f0117", "0f01e0", "0f32", "0f09", "0f06", "fa", "fb", "f4", "cf", "cd80", "cc", "f1", "0f0b",
        "8ed0", "8ec0", "0f00d0", "0fb2e7", "c3", "cb", "ffe7", "ff2f", "ff1f", "ebfe", "e2fe", "f7f1", "fd", "fc",
    )
)  # fmt: skip
"""What ends most programs."""


def random_code(numbers: random.Random, length: int) -> bytes:
    """Instructions that can hurt, with operands that can, and a little rubbish; a good stack now and then."""
    code = bytearray()
    while len(code) < length:
        kind = numbers.randrange(100)
        if not len(code) % 0x100 or kind < 5:
            code += b"\xbc" + (_TOP - 0x10 * numbers.randrange(8)).to_bytes(4, "little")  # mov esp,...
        elif kind < 45:
            value = numbers.choice(_ADDRESSES) + numbers.choice((0, 0, 4, 8, 0x10, 0xFFE, 0xE10, 0x800))
            code += bytes([0xB8 + numbers.choice((7, 7, 7, 6, 1))])  # mov edi,... or esi, ecx
            code += (value if code[-1] != 0xB9 else numbers.randrange(20)).to_bytes(8, "little")[:4]
            code += b"\xb8" + numbers.choice(_VALUES).to_bytes(4, "little") + numbers.choice(_DEEDS)
        elif kind < 75:
            code += numbers.choice(_DEEDS)
        elif kind < 95:
            text, operands = numbers.choice(_CONTROLS[:-1] if kind < 92 else _CONTROLS)
            code += b"\xb8" + (numbers.choice(operands) & 0xFFFF_FFFF).to_bytes(4, "little") + bytes.fromhex(text)
        elif kind < 98:
            code += numbers.choice(_WILD)
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
    homes = [_HOME + 0x1000 * number for number in range(6)]  # behind them is the stack
    pieces += [(address, random_code(numbers, PAGE_SIZE)) for address in (*homes, *DATA[-6:])]
    entries = homes + [3 << 22 | address - ARENA for address in DATA[-6:]]
    gates = b"".join(
        struct.pack("<HHHH", handler & 0xFFFF, CODE0, numbers.choice((0xEE00, 0x8E00, 0xEF00)), handler >> 16)
        for handler in (numbers.choice(homes) + 0x100 * numbers.randrange(16) for _ in range(0x81))
    )
    interrupts = numbers.choice((IDT, _HOME + 0x7000, DATA[0]))
    pieces.append((interrupts, gates))
    guest.start(pieces, form.registers())
    machine = guest.machine
    machine.board.power_on()
    cpu = machine.registers()
    cpu.idtr = TableRegister(interrupts if interrupts != DATA[0] else 3 << 22 | interrupts - ARENA, len(gates) - 1)
    cpu.gprs = [numbers.choice(_ADDRESSES) for _ in range(8)]
    cpu.gprs[ESP], cpu.gprs[ECX] = _TOP, numbers.randrange(20)
    cpu.instruction_pointer = numbers.choice(entries) + 0x100 * numbers.randrange(16)
    if numbers.random() < 0.3:
        cpu.instruction_pointer = numbers.choice(entries[6:])
        for index, selector in ((CS, CODE3), (SS, DATA3)):
            at = STUB_DESCRIPTORS + (selector & ~7)
            cpu.segments[index] = segment_from_descriptor(selector, guest.memory.read_u64(at))
    mode.enter(cpu)
    guest.most_faults = 10_000 + 4 * limit  # every byte retired may have had its faults
    count(mode, faults)
    stop = machine.run(guest.position() + limit)
    guard.inspect()
    return stop


def count(mode: TrapMode, deliveries: int, stretches: int = 2_000) -> None:
    """A guest that only faults retires nothing, and would never come to the limit; and nothing else may go on so."""
    deliver, go = (getattr(type(mode), name).__get__(mode) for name in ("_deliver_event", "_go"))

    def counted(event: Event) -> object:
        nonlocal deliveries
        deliveries -= 1
        if deliveries <= 0:
            mode.stop_soon(ENOUGH)
            mode._stop_now()
        return deliver(event)

    def watched(budget: int, **options: object) -> bool:
        nonlocal stretches
        stretches -= 1
        assert stretches, "the engine is started again and again"
        return go(budget, **options)

    mode._deliver_event, mode._go = counted, watched


ENOUGH = Stop(0, "enough")


@settings(QUICK, max_examples=300)
@given(seed=st.integers(0, 1 << 32))
def test_no_program_harms_the_hypervisor(seed: int) -> None:
    """It ends, or goes on; nothing is raised, and nothing reached."""
    try:
        let_loose(guarded("cached"), seed, limit=3_000, faults=300)
    except BaseException:
        guarded.cache_clear()
        raise


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["cached", "simple", "eight tables"])
@settings(QUICK, max_examples=1_500)
@given(seed=st.integers(0, 1 << 32))
def test_none_of_many_more_programs_harms_the_hypervisor(policy: str, seed: int) -> None:
    """The same, longer."""
    try:
        let_loose(guarded(policy), seed, limit=20_000, faults=500)
    except BaseException:
        guarded.cache_clear()
        raise
