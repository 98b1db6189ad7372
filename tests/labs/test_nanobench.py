"""``hvemu lab nanobench``: exact counts per operation under each technique, and the paper's orderings in the model."""

import json
from dataclasses import replace

import pytest

from hvemu.cli import main
from hvemu.labs import nanobench, nanobench_text
from hvemu.labs.cost_model import CONSTANTS
from hvemu.labs.explained_operations import EXPLAINED, explained
from hvemu.labs.nanobench import (
    OPERATIONS,
    ORDERINGS,
    configuration_of,
    measure,
    order,
    possible,
    verdicts,
    wall_seconds,
)
from hvemu.labs.techniques import COMPARED, technique
from hvemu.testing.running import run_guest

CPU = "opteron-g3"
SMALL = [operation for operation in OPERATIONS.values() if operation.guest == "nanobench"]


def one(operation, name):
    """An operation measured under a technique."""
    return measure(OPERATIONS[operation], technique(name), CPU)


def exits(operation, name):
    """Exits per operation, by kind."""
    return one(operation, name).counts["exits"]


@pytest.fixture(scope="module")
def small():
    """Every operation of the small guest under every technique that has it."""
    return [
        measure(operation, technique(name), CPU)
        for operation in SMALL
        for name in COMPARED
        if possible(operation, technique(name))
    ]


# ---------------------------------------------------------------------- what each operation must cost


@pytest.mark.parametrize("name", ["native", "svm", "svm/nested-2"])
def test_a_store_to_a_page_table_is_the_guests_own_affair_with_nested_paging(name):
    """No exit, as natively: the tables are the guest's own."""
    assert {} == exits("ptemod", name)


@pytest.mark.parametrize("name", ["trap", "svm/shadow"])
def test_a_traced_store_to_a_page_table_is_an_exit_each(name):
    """Whether the CPU has virtualization or not."""
    assert {"traced_write": 1} == exits("ptemod", name)


def test_binary_translation_adapts_to_stores_to_page_tables():
    """After four faults the store is translated to call the hypervisor: no fault any more, one callout each."""
    assert {"callout": 1} == exits("ptemod", "bt")
    one_store, nine = (
        run_guest(configuration_of(OPERATIONS["ptemod"], technique("bt"), CPU, count)).statistics for count in (1, 9)
    )
    assert 3 == nine["exits"]["traced_write"] - one_store["exits"]["traced_write"]
    assert 5 == nine["exits"]["callout"] - one_store["exits"]["callout"]
    assert 1 == nine["translation"]["translation_adapted"]


@pytest.mark.parametrize("name", ["trap", "bt", "svm/shadow"])
def test_an_unsynchronized_table_takes_stores_without_exits(name):
    """Nobody looks at them before the next flush."""
    assert {} == exits("ptemod-unsync", name)


def test_a_port_changes_page_tables_in_batches():
    """One hypercall for sixteen entries, each of which is checked."""
    found = one("ptemod", "pv")
    assert {"hypercall": 1 / 16} == found.counts["exits"]
    assert 1 == found.count("page_table_update")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("native", {}),
        ("svm", {}),
        ("svm/shadow", {}),
        ("trap", {"reflected_interrupt": 1, "privileged": 1}),
        ("bt", {"reflected_interrupt": 1, "callout": 1}),
        ("pv", {"reflected_interrupt": 1}),
    ],
)
def test_a_system_call_needs_no_hypervisor_where_the_kernel_has_its_ring(name, expected):
    """Else INT is reflected, and IRET is emulated unless the kernel was ported."""
    assert expected == exits("syscall", name)


@pytest.mark.parametrize("operation", ["divzero", "pgfault"])
def test_exceptions_go_to_the_guest_under_svm(operation):
    """By the CPU, as natively."""
    for name in ("native", "svm"):
        found = one(operation, name)
        assert ({}, 1) == (found.counts["exits"], found.count("exception"))


def test_with_shadow_tables_the_guests_own_page_faults_exit_too():
    """The CPU cannot know whose they are; #DE is delivered without asking."""
    found = one("pgfault", "svm/shadow")
    assert ({"true_fault": 1}, 1) == (found.counts["exits"], found.count("exception"))
    assert {} == exits("divzero", "svm/shadow")


@pytest.mark.parametrize(
    ("name", "expected"), [("native", 0), ("trap", 0), ("bt", 0), ("svm", 1), ("svm/shadow", 1), ("pv", 0)]
)
def test_cpuid_exits_under_svm_alone(name, expected):
    """In ring 1 it does not trap: it is answered in place of the CPU, a hardware assist."""
    found = one("cpuid", name)
    assert (expected, 1 - expected) == (found.count("intercept"), found.count("cpuid"))
    assert expected == found.exits


@pytest.mark.parametrize(
    ("name", "expected"), [("native", 0), ("trap", 2), ("bt", 0), ("svm", 0), ("svm/shadow", 0), ("pv", 0)]
)
def test_only_trap_and_emulate_pays_for_the_interrupt_flag(name, expected):
    """CLI and STI: two exits; a jump in translated code; the guest's own flag; a byte in memory."""
    found = one("clisti", name)
    assert expected == found.exits == found.count("privileged")


@pytest.mark.parametrize("name", COMPARED)
def test_a_port_exits_everywhere(name):
    """The devices are the hypervisor's."""
    assert {"io_in": 1} == exits("in", name)


@pytest.mark.parametrize("operation", ["null", "callret", "rdtsc"])
def test_what_is_innocuous_exits_nowhere(small, operation):
    """Under no technique."""
    found = [row.exits for row in small if row.operation.name == operation]
    assert [0] * len(COMPARED) == found


def test_a_hypercall_is_one_exit_wherever_there_is_one(small):
    """Natively there is nobody to call."""
    assert [1] * (len(COMPARED) - 1) == [row.exits for row in small if row.operation.name == "hypercall"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("native", {}), ("svm", {}), ("svm/shadow", {"intercept": 1}), ("pv", {"hypercall": 1, "reflected_interrupt": 1})],
)
def test_a_context_switch_is_one_thing_at_most(name, expected):
    """A load of CR3 under shadow paging, one multicall in the port, nothing with nested paging."""
    assert expected == exits("switch", name)


def test_creating_a_process_is_cheapest_for_the_port_and_dearest_for_the_translator():
    """In modelled cycles, of those that have a hypervisor."""
    cycles = {name: one("fork", name).total for name in COMPARED}
    assert ["native", "pv", "svm", "trap", "svm/shadow", "bt"] == sorted(cycles, key=lambda name: cycles[name])


# ---------------------------------------------------------------------- how it is measured


def test_counts_are_exact_whatever_the_number_of_times(small):
    """Other runs give the same per operation, to the last code byte."""
    for row in small:
        again = measure(row.operation._replace(counts=(512, 768)), row.technique, CPU)
        assert (row.counts, row.cycles) == (again.counts, again.cycles), row


def test_the_model_adds_what_the_cache_does_by_itself(small):
    """A lookup for RET; CLI and STI emulated; nothing where all is chained."""
    found = {row.operation.name: row.cycles for row in small if row.technique.name == "bt"}
    assert CONSTANTS["cache_lookup"].cycles == found["callret"]["lookups in the cache"]
    assert 2 * CONSTANTS["cache_emulation"].cycles == found["clisti"]["emulation in the cache"]
    assert {"guest code"} == set(found["null"])


def test_a_slow_instruction_costs_where_it_executes(small):
    """Where it exits, the exit is what it costs."""
    found = {row.technique.name: row.cycles for row in small if row.operation.name == "cr0wr"}
    assert CONSTANTS["control_write"].cycles == found["native"]["slow instruction"]
    assert not any("slow instruction" in found[name] for name in ("trap", "bt", "svm"))


def test_wall_time_is_that_of_one_operation(monkeypatch):
    """More times until it takes long enough; a few are subtracted."""
    monkeypatch.setattr(nanobench, "_seconds", lambda _operation, _technique, _cpu, count: 1.0 + count * 1e-6)
    assert 1e-6 == pytest.approx(wall_seconds(OPERATIONS["null"], technique("native"), CPU))


# ---------------------------------------------------------------------- the paper


def test_the_papers_orderings_appear_in_the_model_but_for_the_register_that_is_not_there(small):
    """CR0 is not CR8; everything else is as reported."""
    found = {(row.ordering.reported, row.measure): row for row in verdicts(small)}
    assert {(ordering.reported, "cycles") for ordering in ORDERINGS if ordering.operation != "fork"} == set(found)
    assert {"cr8wr"} == {reported for (reported, _), row in found.items() if not row.appears}
    assert "CR0 decides what code means" in found["cr8wr", "cycles"].why


def test_forkwait_does_not_appear_and_the_traced_stores_are_why():
    """Of all techniques bt has the most exits, and most of them beside its code."""
    measured = [measure(OPERATIONS["fork"], technique(name), CPU) for name in ("native", "bt", "svm/shadow")]
    row = next(row for row in verdicts(measured) if row.ordering.reported == "forkwait")
    assert not row.appears
    assert "stores some thirty times to a page that has translated code" in row.why
    assert 30 < measured[1].counts["exits"]["traced_write"] < 40


def test_an_ordering_that_does_not_appear_is_explained(small):
    """In wall time, if all were equally fast; with the values."""
    timed = [replace(row, seconds=1e-6) for row in small]
    found = [row for row in verdicts(timed) if row.measure == "wall" and not row.appears]
    assert {"syscall", "in", "cr8wr", "call/ret", "pgfault", "divzero", "ptemod"} == {
        row.ordering.reported for row in found
    }
    assert all("no reason" not in row.why and row.why for row in found)
    assert "native 1,000 ns" in found[0].found


def test_equal_is_up_to_a_factor_and_less_is_beyond_it():
    """Both sides of it."""
    groups = (("a", "b"), ("c",))
    assert order({"a": 10, "b": 12, "c": 20}, groups, 1.25)
    assert not order({"a": 10, "b": 13, "c": 20}, groups, 1.25)
    assert not order({"a": 10, "b": 12, "c": 14}, groups, 1.25)


# ---------------------------------------------------------------------- the command


def test_the_lab_prints_tables_and_writes_them_down(tmp_path, capsys):
    """80 columns; JSON with the same counts; without wall time where only counts are wanted."""
    path = tmp_path / "nanobench.json"
    assert 0 == main(["lab", "nanobench", "--counts", "--only", "syscall,ptemod,cr0wr", "--json", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert 80 >= max(len(line) for line in lines)
    assert "ptemod                 0        1        1        0          1   0.0625" in lines
    assert "cr0wr                  0        1        1        1          1        -" in lines
    assert "ptemod: native < bt < svm/shadow: appears in modelled cycles: native 6, bt" in lines
    data = json.loads(path.read_text())
    assert ("hvemu-nanobench", 1, CPU) == (data["format"], data["version"], data["cpu"])
    rows = {(row["operation"], row["technique"]): row for row in data["operations"]}
    assert {"exits": {"traced_write": 1}} == {
        group: counts for group, counts in rows["ptemod", "trap"]["counts"].items() if counts
    }
    assert ("trace", None) == (rows["ptemod", "trap"]["shadow"], rows["ptemod", "svm"]["shadow"])
    assert {True, False} == {row["appears"] for row in data["orderings"]}


def test_wall_time_is_a_ratio_to_native(monkeypatch, capsys):
    """Nanoseconds natively."""
    seconds = {"native": 2e-6, "trap": 5e-6}
    monkeypatch.setattr(
        nanobench_text, "wall_seconds_apart", lambda _operation, one, _cpu, rounds: seconds[one.name] * rounds
    )
    assert 0 == main(["lab", "nanobench", "--only", "in", "--modes", "native,trap", "--rounds", "2"])
    assert "in              4,000 ns   2.50 x" in capsys.readouterr().out


def test_every_operation_is_explained(capsys):
    """In a few words for each technique, 80 columns wide."""
    assert set(OPERATIONS) == set(EXPLAINED)
    for operation in OPERATIONS.values():
        assert 80 >= max(len(line) for line in explained(operation))
    assert 0 == main(["lab", "nanobench", "--explain", "ptemod,in"])
    output = capsys.readouterr().out
    assert output.startswith("ptemod: operation of guest nanobench\n  what   a store to a page table")
    assert "  paper  in: bt < native < svm/shadow\n" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "getpid"], "There is no operation 'getpid'. Operations are: null, syscall,"),
        (["--modes", "vt"], "There is no technique 'vt'. Techniques are: native,"),
        (["--cpu", "i386"], "There is no cpu 'i386'. Choose one of: conroe,"),
        (["--rounds", "many"], "'many' is not a number of rounds. Write it as --rounds 3."),
        (["--json"], "--json wants a value. Type: hvemu lab nanobench --help."),
        (["--fast"], "The lab does not know '--fast'. Type: hvemu lab nanobench --help."),
        (["--modes", "svm", "--cpu", "penryn"], "Mode svm needs a CPU with AMD-V, and penryn has none."),
    ],
)
def test_mistakes_are_sentences(words, sentence, capsys):
    """Status 2."""
    assert 2 == main(["lab", "nanobench", *words])
    assert capsys.readouterr().err.startswith(f"hvemu: {sentence}")


def test_the_help_names_the_operations(capsys):
    """And fits a terminal."""
    assert 0 == main(["lab", "nanobench", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 80 >= max(len(line) for line in lines)
    assert set(OPERATIONS) <= {line.split()[0] for line in lines if line.startswith("  ")}
