"""Comparing techniques: what is counted, what is the same, and what is made of what is not."""

from dataclasses import replace

import pytest

from hvemu.labs.comparing import Run, Work, as_data, compare, observe, observe_apart
from hvemu.labs.comparison_text import comparison_lines
from hvemu.labs.techniques import COMPARED, common_cpu, technique, techniques, under
from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration
from hvemu.vocabulary.errors import UserError

CPU = "opteron-g3"


def work(guest, name, **changes):
    """One guest of the catalogue under one technique."""
    one = technique(name)
    return Work(one, under(guest_configuration(catalog()[guest]), one, CPU, "cached"), **changes)


@pytest.fixture(scope="module")
def ring3():
    """The works and runs of a guest under everything but mode pv."""
    works = [work("ring3", name, promised=True) for name in COMPARED if name != "pv"]
    return works, [observe(one) for one in works]


def test_a_technique_is_a_mode_and_perhaps_its_paging():
    """The mode's own choice has the shorter name."""
    assert ("svm", "svm", "") == technique("svm/nested") == technique("svm")
    assert ("svm/shadow", "svm", "shadow") == technique("svm/shadow")
    assert ["bt", "native"] == [one.name for one in techniques("bt, native,bt")]
    shadows = [one.name for one in techniques(None) if one.shadows]
    assert ["trap", "bt", "svm/shadow"] == shadows
    for wrong in ("vt", "svm/direct", "native/shadow", "svm/", ""):
        with pytest.raises(UserError, match="Techniques are: native, trap, bt, svm, svm/nested-2, svm/shadow, pv"):
            technique(wrong)


def test_all_run_on_one_cpu_model():
    """One that has what each needs, or the one that was asked for."""
    assert CPU == common_cpu(techniques("native,svm"), "")
    assert "" == common_cpu(techniques("native,trap"), "")
    assert "epyc" == common_cpu(techniques("native,svm"), "epyc")


def test_the_guest_does_the_same_under_every_technique(ring3):
    """And the comparison says so."""
    comparison = compare(*ring3)
    assert comparison.same
    assert ["baseline", *["same"] * 4] == [row.check for row in comparison.rows]


def test_world_switches_are_none_natively_and_fewest_with_hardware(ring3):
    """The guest makes system calls and faults in ring 3: deprivileged, each is one."""
    switches = {row.name: row.transitions for row in compare(*ring3).rows}
    assert 0 == switches["native"] < switches["svm"] < switches["trap"]


def test_a_difference_is_found_and_named(ring3):
    """In the console, the verdict, the position, the registers."""
    works, runs = ring3
    native = runs[0]
    wrong = replace(
        native, console="x", status=35, position=native.position + 1, registers={**native.registers, "cr2": "1"}
    )
    comparison = compare(works[:2], [native, wrong])
    assert not comparison.same
    words = (
        f"console, line 1: 'x' instead of {native.console.splitlines()[0]!r}",
        "status 35 instead of 33",
        f"position {wrong.position} instead of {native.position}",
    )
    assert (*words, "registers cr2") == comparison.rows[1].differences
    assert any("trap: DIFFERS in console, line 1: 'x' instead of" in line for line in comparison_lines(comparison))


def test_of_a_port_only_console_and_verdict_are_compared(ring3):
    """It is another program."""
    works, (native, *_) = ring3
    port = replace(works[1], ported=True)
    other = replace(native, position=1, registers={}, screen=())
    assert "same" == compare([works[0], port], [native, other]).rows[1].check
    assert "differs" == compare([works[0], port], [native, replace(other, status=35)]).rows[1].check


@pytest.mark.parametrize(
    ("promised", "run", "check"),
    [
        (False, Run(True, "No."), "refused"),
        (True, Run(True, "No."), "differs"),
        (False, Run(False, "It cannot.", 64), "ended"),
        (False, Run(False, "Fooled.", 66), "ended"),
        (True, Run(False, "It cannot.", 64), "differs"),
        (True, Run(False, "Too late.", 124), "limit"),
    ],
)
def test_what_a_technique_cannot_run_is_no_difference_unless_it_was_promised(ring3, promised, run, check):
    """A technique has limits; only the catalogue's word must hold."""
    works, (native, *_) = ring3
    comparison = compare([works[0], replace(works[1], promised=promised)], [native, run])
    assert check == comparison.rows[1].check
    assert (check != "differs") == comparison.same


def test_the_hardware_is_not_forgiven_a_crash(ring3):
    """Of mode trap it is known that some kernels are fooled; under svm a triple fault is a difference."""
    works, (native, *_) = ring3
    hardware = replace(next(one for one in works if one.technique.name == "svm"), promised=False)
    assert "differs" == compare([works[0], hardware], [native, Run(False, "Fooled.", 66)]).rows[1].check


def test_a_refusal_is_a_result():
    """A PC's kernel under mode pv."""
    run = observe(work("hello", "pv"))
    assert run.refused
    assert "is not a paravirtual kernel" in run.reason


def test_runs_may_end_at_a_position_and_after_a_time():
    """At a position everything can be compared, for no guest is at its end."""
    works = [work("loop_forever", name, until=100_000) for name in ("native", "bt")]
    runs = [observe(one) for one in works]
    assert [None, None] == [run.status for run in runs]
    assert "same" == compare(works, runs).rows[1].check
    run = observe(work("loop_forever", "native", timeout=0.1))
    assert (124, "the time limit of 0.1 s was reached") == (run.status, run.reason)


def test_time_asleep_costs_nothing():
    """Guest code is what was executed."""
    run = observe(work("timers", "native"))
    assert 0 < run.slept < run.position
    own = compare([work("timers", "native")], [run]).rows[0].cycles["guest code"]
    assert pytest.approx((run.position - run.slept) / 3) == own


def test_a_process_of_its_own_gives_the_same():
    """But for the time it took."""
    one = work("hello", "trap")
    here, apart = observe(one), observe_apart([one])[0]
    assert replace(here, wall_seconds=0, statistics={}) == replace(apart, wall_seconds=0, statistics={})
    assert dict(here.statistics, wall_s=0) == dict(apart.statistics, wall_s=0)


def test_the_table_fits_a_terminal(ring3):
    """80 columns for as many techniques as are compared unless asked otherwise."""
    works, runs = ring3
    lines = comparison_lines(compare([*works, work("ring3", "pv")], [*runs, Run(True, "No.")]))
    assert 80 >= max(len(line) for line in lines)
    assert "pv: cannot run it. No." in lines
    assert any(line.startswith("reflected_interrupt ") for line in lines)


def test_the_schema_is_stable(ring3):
    """As docs/comparing.md has it."""
    data = as_data(compare(*ring3))
    assert ("hvemu-compare", 1, "native", True) == tuple(data[key] for key in ("format", "version", "baseline", "same"))
    keys = (
        "technique mode mmu image check differences reason status position slept transitions hidden_faults callouts"
        " dispatches hypercalls modelled_cycles wall_seconds wall_of_baseline exits exits_by_detail assists"
        " assists_by_detail paging translation paravirtual"
    )
    assert [keys.split()] * 5 == [list(row) for row in data["techniques"]]
    bt = data["techniques"][2]
    assert bt["callouts"] == bt["exits"]["callout"]
    assert bt["modelled_cycles"]["total"] == pytest.approx(sum(bt["modelled_cycles"]["by_cause"].values()), abs=20)


def test_a_baseline_is_not_needed():
    """Without it there are no ratios."""
    works = [work("hello", "bt")]
    data = as_data(compare(works, [observe(works[0])]))
    assert (None, "alone") == (data["baseline"], data["techniques"][0]["check"])
    assert None is data["techniques"][0]["modelled_cycles"]["of_baseline"]


def test_a_true_page_fault_under_shadow_paging_is_an_exit_of_svm():
    """The CPU brings every page fault to the hypervisor; nested paging leaves the guest's to the guest."""
    shadow, nested = (observe(work("paging", name)).statistics for name in ("svm/shadow", "svm"))
    assert shadow["exits"]["true_fault"] == shadow["assists_by_detail"]["exception"]["14"]
    assert "true_fault" not in nested["exits"]
    assert shadow["assists_by_detail"]["exception"] == nested["assists_by_detail"]["exception"]


def test_configurations_keep_what_they_were_given():
    """Memory and command line; what belongs to a mode is the mode's."""
    first = MachineConfiguration(image="x", memory=32 << 20, append="a", mode="trap", audit=True, shadow="trace")
    other = under(first, technique("pv"), CPU, "trace")
    assert (32 << 20, "a", "direct", "xen", "cached") == (
        other.memory, other.append, other.mmu, other.hypervisor_leaves, other.shadow,
    )  # fmt: skip
    assert "trace" == under(first, technique("svm/shadow"), CPU, "trace").shadow


def test_a_hypervisor_that_is_shown_is_shown_under_every_technique_but_xens():
    """A port talks to Xen, whatever a PC's guest is shown."""
    first = MachineConfiguration(image="x", mode="svm", hypervisor_leaves="kvm", intercept=("rdtsc",))
    shown = {name: under(first, technique(name), CPU, "cached") for name in ("native", "svm/shadow", "pv")}
    assert {"native": "kvm", "svm/shadow": "kvm", "pv": "xen"} == {
        name: one.hypervisor_leaves for name, one in shown.items()
    }
    assert ["rdtsc"] == [name for one in shown.values() for name in one.intercept]
    port = MachineConfiguration(image="x", mode="pv")
    assert "none" == under(port, technique("native"), CPU, "cached").hypervisor_leaves
