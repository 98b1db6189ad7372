"""Every mode does to a guest what ``native`` does: the same console, verdict, disk and registers at the same position."""

from functools import cache

import pytest

from hvemu.machine.configuration import SHADOWS
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from tests.techniques import bare_cpu, settings, techniques

LIMIT = 30_000_000
LYING = {"sensitive"}
"""Guests that ask what a technique cannot hide; ``hvemu lab sensitive`` shows how."""
CASES = [
    (guest.name, technique)
    for guest in catalog().values()
    for technique in techniques(guest.modes[1:])
    if guest.name not in LYING or technique.startswith("svm")
]


@cache
def final(name, technique, cpu=""):
    """Everything a guest can have done by its end."""
    guest = catalog()[name]
    result = run_guest(
        guest_configuration(guest, **settings(technique), cpu=cpu), keys=guest.input, keys_after=guest.input_after, position=LIMIT
    )
    machine = result.machine
    cpu = machine.registers()
    # RAM the guest can see, without the page-table and descriptor bits that only a later access would set
    return result.console, result.status, machine.mode.position(), machine.screen(), cpu


@pytest.mark.parametrize(("name", "technique"), CASES)
def test_a_guest_behaves_as_on_the_bare_machine(name, technique):
    """Console, verdict, position, screen and all guest-visible registers."""
    native, other = final(name, "native", **bare_cpu(technique)), final(name, technique)
    assert native[0] == other[0]
    assert native[1:4] == other[1:4]
    for field in vars(native[4]):
        assert (field, getattr(native[4], field)) == (field, getattr(other[4], field))


@pytest.mark.parametrize("mode", ["native", "trap", "bt", "svm"])
@pytest.mark.parametrize("work", ["", "work=fork:5", "work=switch:50", "work=pte:100", "work=null:10", "work=sleep:3"])
def test_the_ported_kernel_does_what_the_unported_one_does(mode, work):
    """One source, built twice: the same lines, the same verdict. Neither has a disk yet."""
    results = []
    for name, technique in (("processes", mode), ("processes_pv", "pv")):
        result = run_guest(guest_configuration(catalog()[name], mode=technique, append=work))
        results.append((result.console, result.status))
    assert results[0] == results[1]
    assert results[0][1] == 33


@pytest.mark.parametrize("technique", ["trap", "svm/shadow"])
@pytest.mark.parametrize("shadow", [variant for variant in SHADOWS if variant != "cached"])
@pytest.mark.parametrize("name", ["paging", "selfmod", "preempt", "faults"])
def test_every_variant_of_shadow_paging_does_the_same(name, shadow, technique):
    """Flushing and tracing cost exits, not correctness."""
    guest = catalog()[name]
    result = run_guest(guest_configuration(guest, **settings(technique), shadow=shadow), position=LIMIT)
    native = final(name, "native", **bare_cpu(technique))
    assert native[0] == result.console
    assert native[1:3] == (result.status, result.machine.mode.position())
    assert native[4] == result.machine.registers()
