"""Position and everything that hangs on it is the same, whatever happened in between.

Each guest runs once straight through; then again with stops at random positions, cold caches, single steps and
changes through ``leave`` and ``enter``. Every traced event, with its position, must be the same.
"""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.exits import MNEMONICS, ExitKind
from tests.techniques import settings as settings_of
from tests.techniques import techniques

GUESTS = (
    *("ring3", "preempt", "paging", "faults", "interrupts", "selfmod", "hello", "realmode_boot", "processes_pv"),
    "long_mode",
)
CASES = [(name, technique) for name in GUESTS for technique in techniques(catalog()[name].modes, ("svm", "svm/shadow"))]
CACHING = {ExitKind.HIDDEN_FAULT, ExitKind.TRACED_WRITE, ExitKind.NESTED_FAULT}
"""Exits by which a mode fills its caches; how many there are is its own affair."""
SEGMENT_LOADS = {"mov": 2, "pop": 1, "lds": 6, "les": 6, "lfs": 7, "lgs": 7}
"""MOV and POP to a segment register, by mnemonic and length: they trap until the descriptor has been mirrored."""


def fills_a_cache(event):
    """Whether it is such an exit; MOV to and from control registers has three bytes."""
    kind = getattr(event, "kind", None)
    if kind not in (ExitKind.PRIVILEGED, ExitKind.CALLOUT):
        return kind in CACHING
    return SEGMENT_LOADS.get(MNEMONICS[event.detail]) == event.size


def trace_of(name, mode="native", prepare=None, **changes):
    """Console, status and all events of a run but those of caches."""
    guest, events = catalog()[name], []

    def note(event):
        if not fills_a_cache(event):
            events.append(event)

    result = run_guest(
        guest_configuration(guest, **settings_of(mode), **changes),
        keys=guest.input,
        keys_after=guest.input_after,
        observer=note,
        prepare=prepare,
    )
    return result.console, result.status, events, result.machine.mode.position()


@cache
def straight(name, mode="native"):
    """The undisturbed run."""
    return trace_of(name, mode)


def compare(name, mode, disturbed):
    """The first difference, if any, is what the assertion shows."""
    console, status, events, position = straight(name, mode)
    for expected, actual in zip(events, disturbed[2], strict=False):
        assert expected == actual
    assert (console, status, len(events), position) == (disturbed[0], disturbed[1], len(disturbed[2]), disturbed[3])


DISTURBANCES = st.lists(
    st.tuples(st.integers(1, 3_000), st.sampled_from(["stop", "cold", "tlb", "step", "reenter"])),
    min_size=1,
    max_size=40,
)


def disturb(machine, plan):
    """Stop at each position of the plan and do what it says there."""
    for distance, what in plan:
        if machine.run(machine.mode.position() + distance) is not None:
            return
        if what == "cold":
            machine.mode.vcpu.forget_code()
        elif what == "tlb":
            machine.mode.vcpu.flush_tlb()
        elif what == "step":
            for _ in range(5):
                machine.step()
        elif what == "reenter":
            machine.mode.enter(machine.mode.leave())


@pytest.mark.parametrize(("name", "mode"), CASES)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(plan=DISTURBANCES)
def test_stops_cold_caches_and_steps_change_nothing(name, mode, plan):
    """Random stops, flushes, steps and re-entries leave the trace as it was."""
    compare(name, mode, trace_of(name, mode, lambda machine: disturb(machine, plan)))


STOPS = (1, 19, 105, 192, 217, 261, 277, 405, 443, 859, 895, 935, 1163, 1427, 2207, 2255, 2255, 2609, 2608, 3000)


@pytest.mark.parametrize("mode", ["trap", "bt"])
def test_an_entry_that_mirrors_a_descriptor_sooner_changes_nothing_else(mode):
    """The first load of a segment traps only while its descriptor has not been mirrored."""
    plan = [(distance, "stop") for distance in STOPS] + [(3000, "reenter")]
    compare("ring3", mode, trace_of("ring3", mode, lambda machine: disturb(machine, plan)))


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.parametrize("distance", range(-3, 4))
def test_a_stop_inside_the_instruction_that_ends_the_guest_does_not_move_the_end(name, mode, distance):
    """A device that ends the guest does so at its instruction, also when the run was to stop there."""
    end = straight(name, mode)[3]
    compare(name, mode, trace_of(name, mode, lambda machine: machine.run(end + distance)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), CASES)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(plan=DISTURBANCES)
def test_many_more_disturbances_change_nothing(name, mode, plan):
    """The same, longer."""
    compare(name, mode, trace_of(name, mode, lambda machine: disturb(machine, plan)))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_guest_run_by_single_steps_for_a_while_is_the_same(name, mode):
    """A thousand single steps in the middle change nothing."""

    def steps(machine):
        machine.run(20_000)
        for _ in range(1_000):
            if machine.step() is not None:
                return

    compare(name, mode, trace_of(name, mode, steps))


def test_counting_instructions_does_not_move_the_position():
    """The instruction hook changes neither blocks' bytes nor deliveries."""
    compare("ring3", "native", trace_of("ring3", count_instructions=True))


def test_the_portable_clock_gives_the_same_trace(monkeypatch):
    """The Python block callback and the native one agree event by event."""
    from hvemu.engine import block_clock

    expected = straight("ring3")
    monkeypatch.setattr(block_clock, "native_clock_supported", lambda: False)
    assert expected == trace_of("ring3")


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_stopping_is_exact(name, mode):
    """A run to a position stops at the first instruction boundary at or after it: less than one instruction over."""
    from hvemu.machine.builder import build

    machine = build(guest_configuration(catalog()[name], **settings_of(mode)))
    for target in range(1_000, 30_000, 997):
        if machine.run(target) is not None:
            return
        assert 0 <= machine.mode.position() - target < 15
