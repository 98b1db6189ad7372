"""Paging techniques on the real engine: for any legal life of page tables, every access is what the guest's tables say.

Each script runs on a real machine: in mode ``trap`` under every policy, in mode ``svm`` with nested and shadow paging,
and in mode ``native``, where the engine's own MMU walks the guest's tables. After each command its result, the fault's
error code and CR2, where a store went, and accessed and dirty bits must be what ``walk`` says on a plain copy; and it
must have taken as long as in ``native``.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.page_table_scripts import (
    ALIASES,
    ARENA,
    CODE_AT,
    DATA,
    DIRECTORIES,
    DIRTY,
    FORMATS,
    KINDS,
    LARGE,
    NX,
    PRIVATE,
    RARE_KINDS,
    SHARED,
    UPPER,
    USER,
    WRITABLE,
    Format,
    Script,
    play,
)
from tests.memory.paging_guest import POLICIES, TECHNIQUES, WINDOW, Command, PagingGuest, shared_guest

TWO_LEVELS, WITH_LARGE_PAGES, PAE, WITH_NX = FORMATS
Requests = list[tuple[str, bytes]]


def compose(form: Format, requests: Requests, formats: tuple[Format, ...]) -> Script:
    """The script of what is asked for, which may change to these formats."""
    script = Script(form, formats)
    for kind, numbers in requests:
        script.ask(kind, *numbers)
    return script


def play_on(policy: str, script: Script) -> list[int]:
    """Play it; a machine that has failed is not used again."""
    try:
        return play(shared_guest(policy), script)
    except BaseException:
        shared_guest.cache_clear()
        raise


def commands(script: Script) -> list[Command]:
    """What the guest does."""
    return [step for step in script.steps if isinstance(step, Command)]


def formats_of(policy: str) -> tuple[Format, ...]:
    """Two nested levels reach no address above 4 GiB, where the engine wraps: not what PAE's entries can name."""
    return tuple(form for form in FORMATS if policy != "nested-2" or not form.pae)


def check(form: Format, policy: str, requests: Requests) -> None:
    """One script, in mode native and then with the technique."""
    if form not in formats_of(policy):
        pytest.skip("the engine wraps such addresses at 4 GiB")
    script = compose(form, requests, formats_of(policy))
    expected, found = play_on("native", script), play_on(policy, script)
    for index, (command, known, taken) in enumerate(zip(commands(script), expected, found, strict=True)):
        assert known == taken, f"command {index}, {command}, took {taken} instead of {known}"


def scripts(kinds: tuple[str, ...], longest: int) -> st.SearchStrategy[Requests]:
    """What to ask for: kinds, and four numbers each."""
    return st.lists(
        st.tuples(st.sampled_from(kinds), st.binary(min_size=4, max_size=4)), min_size=longest // 3, max_size=longest
    )


ORDINARY = KINDS + RARE_KINDS
MIXED = KINDS + RARE_KINDS + ("format",)
QUICK = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=120)
forms = pytest.mark.parametrize(
    "form", FORMATS, ids=["two levels", "two levels with large pages", "PAE", "PAE with NX"]
)
policies = pytest.mark.parametrize("policy", [*POLICIES, *(name for name in TECHNIQUES if name != "native")])


@forms
@policies
@QUICK
@given(requests=scripts(ORDINARY, 120))
def test_every_access_is_what_the_guests_tables_say(form: Format, policy: str, requests: Requests) -> None:
    """One format of tables each, in several address spaces."""
    check(form, policy, requests)


@policies
@QUICK
@given(requests=scripts(MIXED, 120))
def test_every_access_is_what_the_tables_say_when_their_format_changes(policy: str, requests: Requests) -> None:
    """The same frames hold tables of two levels, PAE's, data and code in turn."""
    check(TWO_LEVELS, policy, requests)


@pytest.mark.slow
@forms
@policies
@LONG
@given(requests=scripts(ORDINARY, 200))
def test_many_more_accesses_are_what_the_guests_tables_say(form: Format, policy: str, requests: Requests) -> None:
    """The same, longer."""
    check(form, policy, requests)


@pytest.mark.slow
@policies
@LONG
@given(requests=scripts(MIXED, 200))
def test_many_more_accesses_are_what_changing_tables_say(policy: str, requests: Requests) -> None:
    """The same, longer."""
    check(TWO_LEVELS, policy, requests)


def test_the_scripts_reach_every_refinement() -> None:
    """Tables that get out of step and are compared again, tables that are given up, and a pool that is too small."""
    numbers = random.Random(1)
    for policy in ("cached", "eight tables"):
        before = dict(shared_guest(policy).machine.statistics().get("paging", {}))
        for form in (TWO_LEVELS, PAE):
            check(form, policy, [(numbers.choice(KINDS), numbers.randbytes(4)) for _ in range(500)])
        after = shared_guest(policy).machine.statistics()["paging"]
        grown = {name for name, count in after.items() if count > before.get(name, 0)}
        expected = {"shadow_fill", "shadow_flush", "shadow_unsync", "shadow_resync", "shadow_unshadow"}
        assert expected | ({"shadow_eviction"} if policy == "eight tables" else set()) <= grown


# ---------------------------------------------------------------------- what scripts have found


SLOT = 4 << 20
ALIAS = 3 * SLOT
"""Where the arena is mapped, frame by frame."""


@policies
@pytest.mark.parametrize("what", ["write", "exchange", "or", "push"])
@pytest.mark.parametrize("user", [False, True])
def test_a_store_may_cross_from_one_watched_table_into_another(policy: str, what: str, user: bool) -> None:
    """Both are opened for one instruction; to watch the first again before the second is open would never end."""
    script = Script(TWO_LEVELS)
    for address in (2 * SLOT, 4 * SLOT):  # PRIVATE[0] and SHARED become tables
        script.access("read", address)
    script.dma(ALIASES, b"".join((entry | 0x67).to_bytes(4, "little") for entry in (SHARED, PRIVATE[0])))
    script.invalidate(ALIAS)
    script.invalidate(ALIAS + 0x1000)
    script.access(what, ALIAS + 0xFFE, (DATA[1] & 0xF000 | 0x67) << 16 | 0x7777, user=user)
    script.invalidate(2 * SLOT)
    assert script.access("read", 2 * SLOT)
    assert SHARED + 0x1000 == PRIVATE[0]
    play_on(policy, script)


@policies
def test_the_page_through_which_a_directory_maps_itself_is_no_large_page(policy: str) -> None:
    """Its lowest entry is its directory entry. A large page with the same rights has other frames."""
    script = Script(WITH_NX)
    script.access("write", 0xFFFF_F000 + 8 * 300, 0)  # UPPER, through itself twice
    script.dma(DIRECTORIES[0] + 8 * 9, (ARENA | LARGE | 0x67).to_bytes(8, "little"))
    script.load_cr3(script.registers.cr3)
    script.access("write", 4 * SLOT + (3 << 20) + (UPPER - ARENA), 0x5555_0000)
    script.access("read", 4 * SLOT + (2 << 20) + 511 * 0x1000)
    script.access("read", 0xFFFF_F000)
    play_on(policy, script)


@policies
def test_invlpg_counts_while_the_directory_entry_above_is_changing(policy: str) -> None:
    """A table that has got out of step is compared again when it is linked again."""
    script = Script(TWO_LEVELS)
    page = ALIAS + (DATA[0] - ARENA)
    script.access("write", page, 1)
    script.access("write", ALIAS + (ALIASES - ARENA) + (DATA[0] - ARENA >> 10), DATA[1] | 7)  # gets out of step
    script.dma(DIRECTORIES[0] + 4 * 3, (ALIASES | 7).to_bytes(4, "little"))  # unlinks it
    script.invalidate(page)
    script.access("read", ALIAS)
    script.access("write", page, 2)
    play_on(policy, script)


@policies
@pytest.mark.parametrize("form", [PAE, WITH_NX, WITH_LARGE_PAGES])
def test_an_address_beyond_512_gib_is_not_that_of_a_device_below(policy: str, form: Format) -> None:
    """Physical addresses have 40 bits; nobody answers up there."""
    script = Script(form)
    high = 1 << 39
    if form.pae:
        script.dma(SHARED, (high | WINDOW | 0x67).to_bytes(8, "little"))
        address = 4 * SLOT
    else:
        large = WINDOW | high >> 32 << 13 | LARGE | 7
        script.dma(DIRECTORIES[0] + 4 * 4, large.to_bytes(4, "little"))
        address = 4 * SLOT
    script.access("write", address, 0x1234_5678)
    assert script.access("read", address)
    assert 0xFFFF_FFFF == script.expected[-1].result[0]
    play_on("native", script)
    play_on(policy, script)


@policies
def test_a_table_that_is_as_it_was_may_have_been_otherwise_meanwhile(policy: str) -> None:
    """What was mapped while it was out of step is compared too, although all its bytes are as before."""
    script = Script(TWO_LEVELS)
    page, table = 2 * SLOT, ALIAS + (PRIVATE[0] - ARENA)
    script.dma(PRIVATE[0], (DATA[0] | 0x67).to_bytes(4, "little"))
    script.access("read", page)
    script.access("write", table, DATA[1] | 0x67)
    script.invalidate(page)
    script.access("read", page + 1)
    script.access("write", table, DATA[0] | 0x67)
    script.load_cr3(script.registers.cr3)
    script.access("read", page + 1)
    assert script.expected[-1].result != script.expected[-4].result
    play_on(policy, script)


@policies
def test_a_table_out_of_step_that_becomes_a_directory_is_watched(policy: str) -> None:
    """The directory of the last GiB is used as a table of the first before."""
    script = Script(PAE)
    script.dma(DIRECTORIES[0] + 8 * 10, (UPPER | 0x67).to_bytes(8, "little"))
    script.access("read", 5 * SLOT)
    upper = ALIAS + (UPPER - ARENA)
    script.access("write", upper + 8 * 5, 0)
    script.access("write", upper + 8 * 6, DATA[0] | 7)
    script.access("read", 768 * SLOT)
    script.access("write", upper, PRIVATE[1] | 0x67)
    script.invalidate(768 * SLOT)
    script.access("read", 768 * SLOT)
    assert script.expected[-1].result != script.expected[-4].result
    play_on(policy, script)


@policies
@pytest.mark.parametrize("form", [TWO_LEVELS, PAE])
def test_a_directory_that_is_written_often_is_forgotten_altogether(policy: str, form: Format) -> None:
    """From another address space: later stores to it go unseen, and so must what it said before."""
    script = Script(form)
    size = 8 if form.pae else 4
    for slot in (2, 4):
        script.access("read", slot * SLOT)
    script.load_cr3(form.root(1))
    directory = ALIAS + (DIRECTORIES[0] - ARENA)
    for number in range(12):
        script.access("write", directory + size * (200 + number), 0)
    script.access("write", directory + size * (8 if form.pae else 4), PRIVATE[1] | 0x67)
    script.load_cr3(form.root(0))
    script.access("read", 4 * SLOT)
    assert script.expected[-1].result != script.expected[1].result
    play_on(policy, script)


@policies
def test_what_is_no_memory_and_not_executable_faults_when_it_is_executed(policy: str) -> None:
    """After a read of it as well: the fault is the guest's, not the end of it."""
    script = Script(WITH_NX)
    page = 5 * SLOT
    script.dma(DIRECTORIES[0] + 8 * (page >> 21), (0x4000_0000 | NX | LARGE | 0x67).to_bytes(8, "little"))
    script.access("read", page)
    script.execute(page + CODE_AT)
    play_on(policy, script)


@policies
@pytest.mark.parametrize("deed", ["read", "write", "execute"])
@pytest.mark.parametrize("difference", [DIRTY, WRITABLE, USER, NX])
@pytest.mark.parametrize("first", [0, 1])
def test_two_large_pages_with_the_same_frames_have_their_own_rights(
    policy: str, deed: str, difference: int, first: int
) -> None:
    """And their own dirty bits: what is found in the one is not found in the other."""
    script = Script(WITH_NX)
    entry = ARENA | LARGE | 0x67
    entries = [entry | NX if difference == NX else entry & ~difference, entry]
    pages = [5 * SLOT, 6 * SLOT]
    for page, value in zip(pages, entries, strict=True):
        script.dma(DIRECTORIES[0] + 8 * (page >> 21), value.to_bytes(8, "little"))
    same, another = DATA[0] - ARENA, DATA[1] - ARENA
    for page in (pages[first], pages[1 - first]):
        script.access("read", page + another)
        for user in (True, False):
            if deed == "execute":
                script.execute(page + same + CODE_AT, user=user)
            else:
                script.access(deed, page + same + 0x10, 1, user=user)
    play_on(policy, script)


def test_after_a_reset_every_frame_counts_as_written() -> None:
    """Power-on has cleared them all."""
    mine = PagingGuest("trap")
    mine.start(*_start(TWO_LEVELS))
    everything = mine.mode.dirty_pages()
    mine.run([Command("write", 2 * SLOT)])
    assert mine.mode.dirty_pages() < everything
    mine.machine.reset()
    assert everything == mine.mode.dirty_pages()


def _start(form: Format):
    script = Script(form)
    return script.pieces, script.start_registers


def test_a_store_that_crosses_from_a_watched_table_into_a_device_reaches_both() -> None:
    """The second page is no memory."""
    script = Script(TWO_LEVELS)
    script.dma(ALIASES + 4, (WINDOW | 7).to_bytes(4, "little"))
    script.access("write", ALIAS + 0xFFE, 0x1122_3344)
    play_on("native", script)
    play_on("trace", script)


def test_a_repeated_store_into_a_watched_table_takes_as_long_as_in_native() -> None:
    """REP STOSD is charged once more than it repeats, but not when its last turn is single-stepped."""
    script = Script(TWO_LEVELS)
    script.access("read", 2 * SLOT)
    script.fill(ALIAS + (DIRECTORIES[0] - ARENA) + 0x800, 4, 0)
    assert play_on("native", script) == play_on("trace", script)


def test_a_fault_marks_the_directory_entry_above_it() -> None:
    """As the engine does, and CPUs, which mark what they use on the way to a fault."""
    script = Script(TWO_LEVELS)
    script.access("read", 2 * SLOT + 0x10_0000)
    play_on("trace", script)
    play_on("native", script)
