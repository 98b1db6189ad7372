"""Another technique takes over a running guest, which ends as if nothing had happened."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.machine.builder import build
from hvemu.machine.configuration import SVM_CPU_MODELS
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import UserError

CPU = SVM_CPU_MODELS[0]
LIMIT = 30_000_000
FULL = (("native", ""), ("bt", ""), ("svm", "nested"), ("svm", "nested-2"), ("svm", "shadow"))
WIDE = (("native", ""), ("svm", "nested"), ("svm", "nested-2"))
FAITHFUL = (*WIDE, ("svm", "shadow"))
"""Without bt: what executes user code directly shows it the descriptor tables of the VMM (the sensitive lab)."""
OF_32_BITS = (
    *("ring3", "preempt", "paging", "faults", "interrupts", "selfmod", "timers", "processes"),
    *("keyboard", "poweroff", "red_pill", "cpuid", "hello", "realmode_boot", "triple"),
)
GUESTS = dict.fromkeys(OF_32_BITS, FULL) | {"sensitive": FAITHFUL, "long_mode": WIDE}
QUICK = settings(max_examples=5, deadline=None, derandomize=True, database=None)


def plans(longest):
    """After how many bytes to switch, and to which of the guest's techniques."""
    distances = st.one_of(st.integers(1, 60), st.integers(1, 3_000), st.integers(1_000, 20_000))
    return st.lists(st.tuples(distances, st.integers(0, 4)), min_size=longest // 4, max_size=longest)


def played(name, prepare=None):
    """Everything that a guest can have done by its end."""
    guest = catalog()[name]
    result = run_guest(
        guest_configuration(guest, cpu=CPU, mode="native"),
        keys=guest.input,
        keys_after=guest.input_after,
        position=LIMIT,
        prepare=prepare,
    )
    machine = result.machine
    return result.console, result.status, machine.mode.position(), machine.screen(), vars(machine.registers())


@cache
def straight(name):
    """In mode native from beginning to end."""
    return played(name)


def switch(machine, plan, techniques):
    """Run for a while, switch, and so on; over and over, until the plan or the guest ends."""
    for distance, number in plan:
        if machine.run(machine.mode.position() + distance) is not None:
            return
        machine.switch_mode(*techniques[number % len(techniques)])


def compare(name, plan):
    """The first difference, if any, is what the assertion shows."""
    expected = straight(name)
    found = played(name, lambda machine: switch(machine, plan, GUESTS[name]))
    for one, other in zip(expected[:4], found[:4], strict=True):
        assert one == other
    for field, value in expected[4].items():
        assert (field, value) == (field, found[4][field])


@pytest.mark.parametrize("name", GUESTS)
@QUICK
@given(plan=plans(40))
def test_a_guest_that_is_switched_at_random_points_ends_the_same(name, plan):
    """Console, verdict, position, screen and all registers."""
    compare(name, plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUESTS)
@settings(QUICK, max_examples=60)
@given(plan=plans(150))
def test_a_guest_that_is_switched_very_often_ends_the_same(name, plan):
    """The same, longer."""
    compare(name, plan)


@pytest.mark.parametrize("name", ["ring3", "paging", "selfmod"])
def test_every_technique_hands_over_to_every_other(name):
    """And to itself, in every direction, every two thousand bytes from the beginning."""
    directions = [there for here in range(5) for other in range(5) for there in (here, other)]
    compare(name, [(2_000, number) for number in directions])


@pytest.mark.parametrize("name", ["interrupts", "processes", "keyboard"])
def test_who_is_polled_may_switch(name):
    """In the middle of a run, also while the guest sleeps: where the monitor is."""

    def prepare(machine):
        again = iter(range(200))

        def poll():
            if (number := next(again, None)) is not None:
                machine.switch_mode(*FULL[number % len(FULL)])

        machine.poll = poll
        machine.idle = lambda seconds: next(again, None) is not None

    found = played(name, prepare)
    for one, other in zip(straight(name)[:4], found[:4], strict=True):
        assert one == other


def test_breakpoints_and_the_count_of_instructions_go_along():
    """What people have set stays set. Mode bt counts a few instructions of its own."""
    counts = set()
    for techniques in ([("native", "")], WIDE):
        machine = build(guest_configuration(catalog()["hello"], cpu=CPU, count_instructions=True))
        for number in range(20):
            machine.run(machine.mode.position() + 500)
            machine.switch_mode(*techniques[number % len(techniques)])
        counts.add(machine.mode.instructions())
        here = machine.registers().instruction_pointer
        machine.breakpoints = frozenset({here})
        machine.switch_mode("svm")
        assert {here} == machine.breakpoints
    assert len(counts) == 1


def refusal(machine, *technique):
    """The sentence with which a technique is refused."""
    with pytest.raises(UserError) as error:
        machine.switch_mode(*technique)
    return str(error.value)


def test_what_cannot_take_over_is_refused_by_name():
    """And the guest goes on where it is."""
    machine = build(guest_configuration(catalog()["hello"], cpu=CPU))
    assert "'trap'" in refusal(machine, "trap")
    assert "Choose native, bt, svm, svm/nested-2 or svm/shadow." in refusal(machine, "pv")
    assert "no paging technique 'shadow'. Choose native, " in refusal(machine, "native", "shadow")
    assert 33 == machine.run().status
    assert "AMD-V" in refusal(build(guest_configuration(catalog()["hello"])), "svm")
    ported = build(guest_configuration(catalog()["processes_pv"]))
    assert "'pv'" in refusal(ported, "native")


def test_a_guest_in_long_mode_stays_where_it_can_run():
    """There are no shadow tables of four levels, and no translation of 64-bit code."""
    machine = build(guest_configuration(catalog()["long_mode"], cpu=CPU))
    while not machine.registers().efer & 1 << 8:
        assert machine.run(machine.mode.position() + 100) is None
    for technique in (("bt",), ("svm", "shadow")):
        assert "long mode" in refusal(machine, *technique)
    machine.switch_mode("svm")
    assert 33 == machine.run().status
