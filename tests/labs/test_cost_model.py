"""The cost model: every event has a price, every price a source, and sums are what they say."""

from pathlib import Path

import pytest

from hvemu.labs.cost_model import (
    CONSTANTS,
    EXITS,
    GUEST,
    charges,
    cost_model_lines,
    cycles_of,
    modelled_cycles,
    transitions,
)
from hvemu.machine.configuration import MODES
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.exits import AssistKind, ExitKind

ROOT = Path(__file__).resolve().parents[2]
OF_NO_MODE = {ExitKind.UNCLAIMED_IO, ExitKind.UNCLAIMED_MMIO, ExitKind.TRIPLE_FAULT, ExitKind.ENGINE_ERROR}


def statistics(**groups):
    """A ledger's groups; those not given are empty."""
    empty = ("exits", "exits_by_detail", "assists", "assists_by_detail", "paging", "translation", "paravirtual")
    return {group: groups.get(group, {}) for group in empty}


def test_every_constant_says_where_it_comes_from():
    """Reported, derived or assumed, with a source."""
    for name, constant in CONSTANTS.items():
        assert constant.basis in ("reported", "derived", "assumed"), name
        assert constant.source, name


def test_derived_constants_are_the_sums_they_name():
    """What is computed from reported values follows them."""
    cycles = {name: constant.cycles for name, constant in CONSTANTS.items()}
    assert cycles["emulation"] == cycles["trap_and_emulate"] - cycles["exception"]
    vmcb = 3 * cycles["vmcb_read"] + 2 * cycles["vmcb_write"]
    assert cycles["world_switch"] == cycles["vm_entry"] + cycles["vm_exit"] + vmcb
    assert cycles["hypercall"] == cycles["system_call"] + 200
    assert cycles["control_write"] == 4 * cycles["cache_emulation"]


def test_every_kind_of_event_has_a_price():
    """No exit and no assist is forgotten, and all modes are there."""
    rows = list(charges())
    assert set(MODES) == set(EXITS)
    assert set(ExitKind) - OF_NO_MODE == {kind for mode in EXITS.values() for kind in mode}
    assert {kind.value for kind in AssistKind} == {kind for mode, kind, _ in rows if mode == "all"}
    assert set() == {name for _, _, names in rows for name in names} - set(CONSTANTS)


@pytest.mark.parametrize("mode", MODES)
def test_whatever_a_guest_causes_is_in_the_tables(mode):
    """No exit is charged for want of a row, in a guest that does a bit of everything."""
    guest = catalog()["processes_pv" if mode == "pv" else "processes"]
    counted = run_guest(guest_configuration(guest, mode=mode)).statistics
    assert set() == {kind for kind in counted["exits"] if ExitKind(kind) not in EXITS[mode]}


def test_cycles_are_counts_times_constants():
    """By cause: guest code, an exit, a page fault beside another exception, events of a translator."""
    counted = statistics(
        exits={"intercept": 3},
        exits_by_detail={"intercept": {"CPUID": 3}},
        assists={"exception": 5},
        assists_by_detail={"exception": {"0": 3, "14": 2}},
    )
    exits = 3 * cycles_of(("world_switch", "emulation"))
    faults = 3 * cycles_of(("exception",)) + 2 * cycles_of(("page_fault",))
    assert {GUEST: 100, "intercept": exits, "exception": faults} == modelled_cycles("svm", counted, 300)
    counted = statistics(translation={"translated_unit": 2, "translation_chained": 5})
    assert {"translated_unit": 2 * cycles_of(("translation",))} == modelled_cycles("bt", counted, 0)


def test_a_hypercall_under_svm_is_one_world_switch():
    """Its #VMEXIT is in a second row of the ledger."""
    counted = statistics(exits={"intercept": 7, "vmcall": 5}, exits_by_detail={"intercept": {"VMMCALL": 5, "CPUID": 2}})
    assert 7 == transitions("svm", counted)
    assert 7 * cycles_of(EXITS["svm"][ExitKind.INTERCEPT]) == sum(modelled_cycles("svm", counted, 0).values())


def test_an_unclaimed_port_is_one_world_switch():
    """The access is counted as well; natively nobody is switched to."""
    counted = statistics(exits={"io_in": 2, "unclaimed_io": 2})
    assert (0, 2) == (transitions("native", counted), transitions("trap", counted))


def test_the_documentation_is_what_the_command_prints():
    """docs/cost_model.md, word by word."""
    text = (ROOT / "docs" / "cost_model.md").read_text(encoding="utf-8")
    assert "```text\n" + "\n".join(cost_model_lines(100)) + "\n```\n" in text
    assert 80 >= max(len(line) for line in cost_model_lines())
