"""Code that is written is never stale, whoever writes it and through whatever mapping; and stores to data are cheap.

Everything runs in mode ``native`` and in mode ``trap`` under every policy, with the same result. What mode ``trap``
does for it is seen in the tables that the engine's MMU walks.
"""

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvemu.memory.shadow import FrameState
from hvemu.memory.walk import PTE_NX, PTE_WRITABLE
from hvemu.vocabulary.addresses import PAGE_SIZE
from tests.memory.page_table_scripts import DATA, FORMATS, SHARED, Format
from tests.memory.page_table_scripts import layout as tables
from tests.memory.paging_guest import POLICIES, TSS, Command, Done, PagingGuest, Result, Step, shared_guest
from tests.modes.test_native import flat

TWO_LEVELS, _, _, WITH_NX = FORMATS
PAGE = 4 << 22
"""Linear address of the first of 32 pages that tests map as they like, by the table SHARED."""
ALIAS, OTHER, OTHER_ALIAS, CROSSING, CROSSING_ALIAS = (PAGE + number * PAGE_SIZE for number in (8, 16, 24, 1, 9))
FIRST, SECOND, THIRD = DATA[:3]
VALUE, PATCH, STORE, PUSH, CROSS = 0x100, 0x200, 0x300, 0x400, 0xFFD
modes = pytest.mark.parametrize("mode", ["native", *POLICIES])
forms = pytest.mark.parametrize("form", [TWO_LEVELS, WITH_NX], ids=["two levels", "PAE with NX"])


def entry(address: int, *, no_execute: bool = False) -> int:
    """A page for everybody."""
    return address | 0x67 | (PTE_NX if no_execute else 0)


def code(page: int, number: int) -> bytes:
    """A page of functions, at its linear address."""
    image = bytearray(PAGE_SIZE)
    for at, text in (
        (0, "0000 c3"),  # the end of what begins at CROSS in the page before
        (VALUE, f"b8 {struct.pack('<I', number).hex()} c3"),  # mov eax,number / ret
        (PATCH, f"890d {struct.pack('<I', page + PATCH + 7).hex()} b800000000 c3"),  # mov [next+1],ecx / mov eax,0
        (STORE, "8908 c3"),  # mov [eax],ecx
        # mov ebx,esp / mov esp,patch+5 / push ecx / mov esp,ebx / patch: mov eax,0 / ret
        (PUSH, f"89e3 bc {struct.pack('<I', page + PUSH + 15).hex()} 51 89dc b800000000 c3"),
        (CROSS, f"b8 {number & 0xFF:02x} 00"),
    ):
        data = bytes.fromhex(text.replace(" ", ""))
        image[at : at + len(data)] = data
    return bytes(image)


def start(mode: str, form: Format = TWO_LEVELS, **entries: int) -> PagingGuest:
    """Two frames of code, each at two addresses; ``entries`` replace those of SHARED, by the names of the pages."""
    mapped = {
        "page": entry(FIRST), "alias": entry(FIRST), "other": entry(SECOND), "other_alias": entry(SECOND),
        "crossing": entry(THIRD), "crossing_alias": entry(THIRD),
    } | entries  # fmt: skip
    names = dict(zip(mapped, (PAGE, ALIAS, OTHER, OTHER_ALIAS, CROSSING, CROSSING_ALIAS), strict=True))
    table = bytearray(PAGE_SIZE)
    size = 8 if form.pae else 4
    for name, value in mapped.items():
        at = (names[name] - PAGE >> 12) * size
        table[at : at + size] = value.to_bytes(size, "little")
    pages = ((FIRST, code(PAGE, 1)), (SECOND, code(OTHER, 2)), (THIRD, code(CROSSING, 3)), (SHARED, bytes(table)))
    guest = shared_guest(mode)
    guest.start([*tables(form), *pages], form.registers())
    return guest


def call(address: int, value: int = 0, count: int = 0, *, user: bool = False) -> Command:
    """Execute what is at an address, with EAX and ECX."""
    return Command("execute", address, value, count, user)


def values(results: list[Result]) -> list[int]:
    """EAX after each command, none of which may fault."""
    assert all(isinstance(result, Done) for result in results), results
    return [result[0] for result in results]


def called(guest: PagingGuest, steps: list[Step]) -> list[int]:
    """EAX after each call of code."""
    commands = [step for step in steps if isinstance(step, Command)]
    results = values(guest.run(steps))
    return [value for command, value in zip(commands, results, strict=True) if command.what == "execute"]


# ---------------------------------------------------------------------- never stale


@modes
@forms
@pytest.mark.parametrize("user", [False, True])
def test_code_may_store_into_the_next_instruction(mode: str, form: Format, user: bool) -> None:
    """Of its own block, many times."""
    numbers = [7 * n + 1 for n in range(40)]
    guest = start(mode, form)
    assert numbers == values(guest.run(call(PAGE + PATCH, count=number, user=user) for number in numbers))


@modes
@forms
def test_code_may_push_into_the_next_instruction_but_one(mode: str, form: Format) -> None:
    """The stack is in the page of the code."""
    numbers = [7 * n + 1 for n in range(40)]
    guest = start(mode, form)
    assert numbers == values(guest.run(call(PAGE + PUSH, count=number) for number in numbers))


@modes
@forms
@pytest.mark.parametrize("what", ["write", "write8", "exchange", "fill", "push"])
@pytest.mark.parametrize("where", [PAGE, ALIAS])
@pytest.mark.parametrize("user", [False, True])
def test_code_that_another_page_writes_is_seen(mode: str, form: Format, what: str, where: int, user: bool) -> None:
    """Back and forth, at the same linear address and through an alias."""
    guest, steps = start(mode, form), []
    for number in range(30):
        steps += [Command(what, where + VALUE + 1, number, 1, user), call(PAGE + VALUE, user=user)]
        steps += [call(ALIAS + VALUE)]
    results = values(guest.run(steps))
    assert list(range(30)) == results[1::3] == results[2::3]


@modes
@forms
def test_two_pages_of_code_may_store_into_each_other(mode: str, form: Format) -> None:
    """And through aliases; after some time nothing flips any more."""
    guest, steps, expected = start(mode, form), [], []
    for number in range(0, 60, 3):
        steps += [call(PAGE + STORE, OTHER + VALUE + 1, number), call(OTHER + VALUE)]
        steps += [call(OTHER + STORE, ALIAS + VALUE + 1, number + 1), call(PAGE + VALUE)]
        steps += [call(PAGE + STORE, OTHER_ALIAS + VALUE + 1, number + 2, user=True), call(OTHER_ALIAS + VALUE)]
        expected += [number, number + 1, number + 2]
    assert expected == values(guest.run(steps))[1::2]


@modes
@forms
def test_code_that_a_device_writes_is_seen(mode: str, form: Format) -> None:
    """Between two instructions, and while the machine stands still."""
    guest = start(mode, form)
    for number in range(8):
        guest.memory.write(FIRST + VALUE + 1, struct.pack("<I", number))

        def write(machine, number=number):
            machine.memory.write(FIRST + VALUE + 1, struct.pack("<I", 1000 + number))

        steps: list[Step] = [call(PAGE + VALUE), write, call(ALIAS + VALUE), call(PAGE + VALUE, user=True)]
        assert [number, 1000 + number, 1000 + number] == values(guest.run(steps))


@modes
@forms
@pytest.mark.parametrize("by", ["the CPU", "an alias", "user code", "a device"])
@pytest.mark.parametrize("half", [0, 1])
def test_an_instruction_that_crosses_pages_is_seen_when_either_half_is_written(
    mode: str, form: Format, by: str, half: int
) -> None:
    """Its block belongs to both."""
    guest, steps = start(mode, form), []
    at, linear, alias = (
        (THIRD, CROSSING, CROSSING_ALIAS) if half else (FIRST + CROSS + 1, PAGE + CROSS + 1, ALIAS + CROSS + 1)
    )
    for number in range(1, 20):
        if by == "a device":
            steps.append(lambda machine, number=number: machine.memory.write(at, bytes([number])))
        else:
            steps.append(Command("write8", alias if by == "an alias" else linear, number, user=by == "user code"))
        steps.append(call(PAGE + CROSS))
    assert [number << 16 | 1 if half else number for number in range(1, 20)] == called(guest, steps)


@modes
@forms
def test_an_instruction_may_store_into_its_own_second_half_on_the_next_page(mode: str, form: Format) -> None:
    """It stores the operand it has, even if that is then another; the next time it stores that."""
    at, operand = PAGE + 0xFF8, CROSSING - 2
    # mov dword [operand],11111111h, ten bytes of which the operand is the last four / ret
    text = b"\xc7\x05" + struct.pack("<II", operand, 0x1111_1111) + b"\xc3"
    guest = start(mode, form)
    guest.memory.write(FIRST + 0xFF8, text[:8])
    guest.memory.write(THIRD, text[8:])
    steps = [call(at), Command("read", operand)]
    for number in (5, 6):
        steps += [Command("write", operand, number), call(at), call(at), Command("read", operand)]
    results = values(guest.run(steps))
    assert [0x1111_1111, 5, 6] == [results[n] for n in (1, 5, 9)]


@modes
@forms
@pytest.mark.parametrize("alias", [False, True])
def test_an_instruction_may_store_over_its_own_second_half(mode: str, form: Format, alias: bool) -> None:
    """On the next page, and through a mapping that must not execute: what it has become is done the next time."""
    at, operand = PAGE + 0xFF8, (CROSSING_ALIAS if alias else CROSSING) - 2
    forbidden = {"alias": entry(FIRST, no_execute=form.nxe), "crossing_alias": entry(THIRD, no_execute=form.nxe)}
    guest = start(mode, form, **forbidden)
    for number in (0x2222_2222, 0x3333_3333):
        # mov dword [operand],number, which changes the number to what ECX holds / ... / ret
        text = b"\xc7\x05" + struct.pack("<II", operand, number) + b"\x89\x0d" + struct.pack("<I", operand) + b"\xc3"
        guest.memory.write(FIRST + 0xFF8, text[:8])
        guest.memory.write(THIRD, text[8:])
        steps = [call(at, count=7), Command("read", operand), call(at, count=8), Command("read", operand)]
        assert [7, 8] == values(guest.run(steps))[1::2]
        assert struct.pack("<I", 8) == guest.memory.read(FIRST + 0xFFE, 2) + guest.memory.read(THIRD, 2)


@modes
@pytest.mark.parametrize("warm", [False, True])
def test_code_written_through_a_mapping_that_must_not_execute_is_seen(mode: str, warm: bool) -> None:
    """The engine stops checking stores through such a mapping after the first."""
    guest, steps = start(mode, WITH_NX, alias=entry(FIRST, no_execute=True)), []
    for number in range(30):
        if warm:
            steps.append(Command("write", ALIAS + 0x800, number))
        steps += [Command("write", ALIAS + VALUE + 1, number), Command("read", ALIAS), call(PAGE + VALUE)]
        steps += [call(PAGE + PATCH, count=number)] if number % 5 == 4 else []  # stores to its own page
    expected = [n for number in range(30) for n in ([number, number] if number % 5 == 4 else [number])]
    assert expected == called(guest, steps)


@modes
@forms
def test_a_page_of_code_may_become_a_page_table_and_code_again(mode: str, form: Format) -> None:
    """It is watched as a table, and its code is as it was written meanwhile."""
    size = 8 if form.pae else 4
    directory = form.root(0) if not form.pae else tables(form)[0][0]
    slot = directory + (size * 10 if form.pae else size * 5)
    window = 5 << 22
    guest, steps = start(mode, form), []
    for number in range(6):
        steps += [
            call(PAGE + VALUE),
            lambda machine: machine.memory.write(slot, (FIRST | 0x67).to_bytes(size, "little")),
            Command("write", ALIAS + 3 * size, entry(THIRD)),
            Command("read", window + 0x3000 + VALUE + 1),
            Command("write", ALIAS + VALUE + 1, number),
            call(PAGE + VALUE),
            Command("write", ALIAS + 3 * size, entry(SECOND)),
            Command("invlpg", window + 0x3000),
            Command("read", window + 0x3000 + VALUE + 1),
            lambda machine: machine.memory.write(slot, bytes(size)),
            Command("invlpg", window + 0x3000),
            call(PAGE + PATCH, count=number),
        ]
    results = values(guest.run(steps))
    for number in range(6):
        found = results[10 * number : 10 * number + 10]
        assert [max(number - 1, 0) if number else 1, 3, number, 2, number] == [found[n] for n in (0, 2, 4, 7, 9)]


@modes
@forms
def test_the_stack_of_an_interrupt_may_lie_in_a_page_of_code(mode: str, form: Format) -> None:
    """What an event pushes is a store like any other."""
    guest = start(mode, form)
    guest.memory.write(TSS + 4, struct.pack("<I", PAGE + 0xC00))
    steps = []
    for number in range(10):
        steps += [call(PAGE + VALUE), Command("write", ALIAS + VALUE + 1, number, user=True)]
        steps += [call(ALIAS + VALUE, user=True), call(PAGE + PATCH, count=number, user=True)]
        steps += [Command("read", PAGE + 0xC00 - 4, user=True), Command("read", PAGE + 0xC00 - 16)]
    results = values(guest.run(steps))
    for number in range(10):
        found = results[6 * number : 6 * number + 6]
        assert [max(number - 1, 0) if number else 1, number, number, number, 0x23, 0x1B] == found


@modes
@pytest.mark.parametrize("what", ["write", "exchange", "fill", "push"])
def test_code_may_store_to_its_own_frame_where_that_must_not_execute(mode: str, what: str) -> None:
    """The frame cannot be data for the store and code for the instruction; the store is done all the same."""
    guest = start(mode, WITH_NX, alias=entry(FIRST, no_execute=True))
    text = {
        "write": "8908 b8 00000000",  # mov [eax],ecx / mov eax,0
        "exchange": "8708 b8 00000000",  # xchg [eax],ecx
        "fill": "97 91 b901000000 ab b8 00000000",  # xchg eax,edi / xchg eax,ecx / mov ecx,1 / stosd
        "push": "89e3 8d6004 51 89dc b8 00000000",  # mov ebx,esp / lea esp,[eax+4] / push ecx / mov esp,ebx
    }[what]
    data = bytes.fromhex(text.replace(" ", "")) + b"\xc3"
    guest.memory.write(FIRST + 0x500, data)
    patch = ALIAS + 0x500 + len(data) - 5
    numbers = list(range(100, 130))
    assert numbers == values(guest.run(call(PAGE + 0x500, patch, number, user=number % 2) for number in numbers))


@pytest.mark.parametrize("mode", ["native", "trap"])
def test_an_instruction_that_overwrites_itself_can_be_stepped(tmp_path, monkeypatch, mode: str) -> None:
    """A position, an event or a breakpoint may be due right after it."""
    # mov eax,100005h / mov [eax],al: the byte that it is itself / nop / nop
    machine = flat(tmp_path, "b805001000 8800 9090 e6f4 f4", mode=mode)
    machine.run(5)
    left = iter(range(100))
    go = machine.mode._go
    monkeypatch.setattr(machine.mode, "_go", lambda *words, **options: (next(left), go(*words, **options))[1])
    machine.step()
    assert (7, 0x10_0007) == (machine.mode.position(), machine.registers().instruction_pointer)


@modes
@forms
def test_every_store_of_an_instruction_with_many_is_seen(mode: str, form: Format) -> None:
    """PUSHA: the engine looks at the first store through such a mapping, and at no other."""
    guest = start(mode, form, alias=entry(FIRST, no_execute=form.nxe))
    # mov edx,0B8000000h / mov ebx,esp / mov esp,ALIAS+689h / pusha / mov esp,ebx / jmp 680h
    text = b"\xba\x00\x00\x00\xb8\x89\xe3\xbc" + struct.pack("<I", ALIAS + 0x689) + b"\x60\x89\xdc\xe9"
    at = 0x600 + len(text) + 4
    guest.memory.write(FIRST + 0x600, text + struct.pack("<I", 0x680 - at))
    guest.memory.write(FIRST + 0x680, b"\xb8\x00\x00\x00\x00\xc3")  # as PUSHA leaves it: EDX, ECX, EAX
    numbers = list(range(100, 130))
    assert numbers == values(guest.run(call(PAGE + 0x600, 0xC3, number, user=number % 2) for number in numbers))


# ---------------------------------------------------------------------- any of it, in any order


CODE_PAGES = (PAGE, ALIAS, OTHER, OTHER_ALIAS)
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(("call", "write", "patch", "store", "push", "device", "log")),
        st.integers(0, 3),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=10,
    max_size=60,
)


def deeds(plan: list[tuple[str, int, int, bool]]) -> tuple[list[Step], list[int]]:
    """Steps, and what each call must return. The second alias must not execute, with NX."""
    steps: list[Step] = []
    expected: list[int] = []
    held = {FIRST: 1, SECOND: 2}
    for number, (what, which, other, user) in enumerate(plan, 100):
        page, target = CODE_PAGES[which], CODE_PAGES[other]
        page_frame, target_frame = ((FIRST, FIRST, SECOND, SECOND)[n] for n in (which, other))
        if page == OTHER_ALIAS and what != "write":
            page = OTHER
        if what == "write":
            steps.append(Command("write", page + VALUE + 1, number, user=user))
            held[page_frame] = number
        elif what == "store":
            steps.append(call(page + STORE, target + VALUE + 1, number, user=user))
            expected.append(target + VALUE + 1)
            held[target_frame] = number
        elif what == "device":
            at, data = page_frame + VALUE + 1, struct.pack("<I", number)
            steps.append(lambda machine, at=at, data=data: machine.memory.write(at, data))
            held[page_frame] = number
        elif what == "log":
            steps.append(lambda machine: machine.mode.dirty_pages())
        elif what == "call":
            steps.append(call(page + VALUE, user=user))
            expected.append(held[page_frame])
        else:
            steps.append(call(page + (PATCH if what == "patch" else PUSH), count=number, user=user))
            expected.append(number)
    for page in (PAGE, ALIAS, OTHER):
        steps.append(call(page + VALUE))
        expected.append(held[SECOND if page == OTHER else FIRST])
    return steps, expected


@modes
@forms
@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=DEEDS)
@example(plan=[(what, 0, 3, False) for what in ("call", "store", "call", "patch", "write", "call") * 8])
def test_no_order_of_stores_leaves_code_stale(mode: str, form: Format, plan: list) -> None:
    """By the CPU from its own page, from another and through aliases, and by devices; also while stores are logged."""
    steps, expected = deeds(plan)
    guest = start(mode, form, other_alias=entry(SECOND, no_execute=form.nxe))
    assert expected == called(guest, steps)


@pytest.mark.slow
@modes
@forms
@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=DEEDS)
def test_no_order_of_many_more_stores_leaves_code_stale(mode: str, form: Format, plan: list) -> None:
    """The same, longer."""
    steps, expected = deeds(plan)
    guest = start(mode, form, other_alias=entry(SECOND, no_execute=form.nxe))
    assert expected == called(guest, steps)


# ---------------------------------------------------------------------- cheap


def rights(guest: PagingGuest, linear: int) -> tuple[bool, bool]:
    """Whether the entry that the engine walks lets an address be written, and executed."""
    paging = guest.mode.paging
    leaf = paging._root.links[linear >> 21]
    (found,) = struct.unpack_from("<Q", guest.memory.machine.view, leaf.address + 8 * (linear >> 12 & 511))
    assert found & 1, f"{linear:#x} is not mapped"
    return bool(found & PTE_WRITABLE), not found & PTE_NX


@forms
@pytest.mark.parametrize("policy", POLICIES)
def test_only_pages_of_data_are_written_without_a_look_at_code(form: Format, policy: str) -> None:
    """Data is writable and must not execute, code executes and is read-only, and only what is both may do both."""
    guest, seen = start(policy, form), []

    def look(*pages: int) -> Step:
        return lambda machine: seen.append([rights(guest, page) for page in pages])

    guest.run(
        [
            Command("write", PAGE + 0x800, 1),
            look(PAGE),
            Command("read", ALIAS),
            call(PAGE + VALUE),
            look(PAGE),
            Command("read", ALIAS),
            look(PAGE, ALIAS),
            Command("write", ALIAS + 0x800, 2),
            look(ALIAS),
            Command("read", PAGE),
            look(PAGE),
            call(OTHER + PATCH),
            look(OTHER),
            Command("write", OTHER_ALIAS + 0x800, 2),
            look(OTHER_ALIAS),
        ]
    )
    data, code_only, both = (True, False), (False, True), (True, True)
    assert [[data], [code_only], [code_only] * 2, [data], [data], [both], [both]] == seen
    states = [guest.mode.paging.state(address >> 12) for address in (FIRST, SECOND, THIRD)]
    assert [FrameState.DATA, FrameState.MIXED, FrameState.DATA] == states


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mapping_that_must_not_execute_is_never_writable_while_its_frame_does(policy: str) -> None:
    """A store through it makes the frame data again, and its code is forgotten."""
    guest, seen = start(policy, WITH_NX, other_alias=entry(SECOND, no_execute=True)), []
    guest.run(
        [
            call(OTHER + PATCH),
            Command("read", OTHER_ALIAS),
            lambda machine: seen.extend([rights(guest, OTHER), rights(guest, OTHER_ALIAS)]),
            Command("write", OTHER_ALIAS + 0x800, 1),
            lambda machine: seen.append(rights(guest, OTHER_ALIAS)),
        ]
    )
    assert [(True, True), (False, False), (True, False)] == seen


def test_pages_that_store_into_each_other_come_to_rest() -> None:
    """After a few changes they are both for good, and stores no longer fault."""
    guest = start("cached")
    turn = [call(PAGE + STORE, OTHER + VALUE + 1), call(OTHER + STORE, PAGE + VALUE + 1), call(OTHER + VALUE)]
    guest.run(turn * 20)
    faults = guest.machine.statistics()["exits"]["hidden_fault"]
    guest.run(turn * 20)
    assert faults == guest.machine.statistics()["exits"]["hidden_fault"]
