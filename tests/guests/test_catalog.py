"""Every guest of the catalogue does what its row says, in every mode that lists it and that this hvemu has."""

from functools import cache

import pytest

from hvemu.machine.configuration import MODES
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest

CASES = [(guest.name, mode) for guest in catalog().values() for mode in guest.modes if mode in MODES]
ENDING = [case for case in CASES if case[0] != "loop_forever"]


def run(name, mode, events):
    """Run a guest with its own input, counting instructions only where a limit is needed."""
    guest = catalog()[name]
    return run_guest(
        guest_configuration(guest, mode=mode),
        keys=guest.input,
        keys_after=guest.input_after,
        observer=events.append,
    )


@cache
def first_run(name, mode):
    """The result and the events of one run."""
    events = []
    return run(name, mode, events), events


@pytest.mark.parametrize(("name", "mode"), ENDING)
def test_every_guest_ends_as_its_row_says(name, mode):
    """Status as expected, every expected line in order, and no line says FAIL."""
    guest = catalog()[name]
    result, _ = first_run(name, mode)
    assert guest.expected_status == result.status, result.console
    lines = iter(result.console.splitlines())
    for wanted in guest.console:
        assert any(wanted == line for line in lines), f"{wanted!r} is missing in\n{result.console}"
    assert [] == [line for line in result.console.splitlines() if line.startswith("FAIL")]


@pytest.mark.parametrize(("name", "mode"), ENDING)
def test_two_runs_are_identical_event_by_event(name, mode):
    """Nothing of the host leaks into a run."""
    again = []
    second = run(name, mode, again)
    result, events = first_run(name, mode)
    assert (result.console, result.status) == (second.console, second.status)
    assert events == again
    first_ledger, second_ledger = (dict(r.statistics, wall_s=0) for r in (result, second))
    assert first_ledger == second_ledger


def test_a_guest_that_loops_for_ever_ends_at_its_instruction_limit():
    """The limit is exact and the sentence names the instruction."""
    guest = catalog()["loop_forever"]
    result = run_guest(
        guest_configuration(guest, count_instructions=True),
        prepare=lambda machine: machine.mode.limit_instructions(100_000),
    )
    assert 124 == result.status
    assert 100_000 == result.statistics["instructions"]
    assert "instruction 'jmp" in result.stop.reason


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("jump_nowhere", "EIP 0xd0000000"),
        ("rubbish", "triple fault: #UD"),
        ("no_stack", "#PF"),
        ("halt_forever", "'hlt': halted for ever with interrupts disabled"),
        ("triple", "instruction 'ud2': triple fault"),
    ],
)
def test_a_guest_that_dies_says_where_and_why(name, cause):
    """The sentence names EIP, the instruction and the cause."""
    reason = first_run(name, "native")[0].stop.reason
    assert reason.startswith("The guest ended at EIP 0x")
    assert "instruction" in reason
    assert cause in reason


def test_unclaimed_ports_and_addresses_are_in_the_ledger():
    """The guest that touches them sees ones; the ledger says where."""
    details = first_run("wild_port", "native")[0].statistics["exits_by_detail"]
    assert details["unclaimed_io"]
    assert details["unclaimed_mmio"]


def test_instructions_are_null_where_they_are_not_counted():
    """The ledger does not pretend."""
    assert None is first_run("hello", "native")[0].statistics["instructions"]
