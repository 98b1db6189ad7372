"""``hvemu lab disk``: exits of a mebibyte through each adapter, exactly."""

import json

import pytest

from hvemu.cli import main
from hvemu.labs.disk import ADAPTERS, Measured, measure, wall_seconds
from hvemu.labs.disk_text import lines_of

Captured = pytest.CaptureFixture[str]
MIB = 1 << 20
INTERRUPTS_OF_IDE = MIB // 8192
"""One for each block of 16 sectors."""


@pytest.mark.parametrize("mode", ["native", "svm"])
def test_the_exits_of_a_mebibyte_are_what_the_drivers_do(mode: str) -> None:
    """Counted by hand from the guest's sources; a full interrupt is a HLT and two OUTs to the 8259s besides."""
    ide, buslogic, virtio, ported = (measure(adapter, 64, mode, rounds=0) for adapter in ADAPTERS)
    assert {
        "io_in": MIB // 2 + INTERRUPTS_OF_IDE,
        "io_out": 16 * 6 + 2 * INTERRUPTS_OF_IDE,
        "hlt": INTERRUPTS_OF_IDE,
    } == ide.exits
    assert {"io_out": 16 * (2 + 2), "io_in": 16, "hlt": 16} == buslogic.exits
    assert {"io_out": 16 * (1 + 2), "io_in": 16, "hlt": 16} == virtio.exits
    assert {"hypercall": 16 * 2} == ported.exits
    rows = (ide, buslogic, virtio, ported)
    assert [INTERRUPTS_OF_IDE, 16, 16, 16] == [row.interrupts for row in rows]
    assert [(MIB, 0), *[(0, MIB)] * 3] == [(row.moved_by_cpu, row.moved_by_device) for row in rows]


@pytest.mark.parametrize("mode", ["trap", "bt"])
def test_the_order_is_the_same_where_more_exits(mode: str) -> None:
    """What a technique adds, it adds to all."""
    totals = [measure(adapter, 64, mode, rounds=0).total for adapter in ADAPTERS]
    assert sorted(totals, reverse=True) == totals
    assert len(set(totals)) == len(ADAPTERS)


def test_smaller_requests_cost_exits_where_they_are_paid_by_the_request() -> None:
    """Sixteen times as many; not so where words are paid for."""
    (ide, small_ide), (virtio, small_virtio) = (
        (measure(adapter, 64, "native", rounds=0), measure(adapter, 4, "native", rounds=0))
        for adapter in ("ide", "virtio-scsi")
    )
    assert 16 * virtio.total == small_virtio.total
    assert ide.total < small_ide.total < 1.01 * ide.total


def test_the_table_is_for_80_columns_and_the_values_for_programs(capsys: Captured) -> None:
    """Both of the same counts."""
    assert 0 == main(["lab", "disk", "--counts"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith(tuple(f" {adapter} " for adapter in ADAPTERS))]
    assert [*ADAPTERS] * 4 == [row[0] for row in rows]
    assert 0 == main(["lab", "disk", "--counts", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert [row[2] for row in rows[: 2 * len(ADAPTERS)]] == [f"{value['exits_per_mib']:,}" for value in values]
    assert {"adapter", "request", "exits", "interrupts", "seconds", "moved_by_cpu"} <= set(values[0])


def test_wall_time_is_a_ratio_to_the_first_row() -> None:
    """And a dash where it was not measured."""
    first, second = (
        Measured(name, 64, {"hlt": 1}, 1, 0, seconds) for name, seconds in (("ide", 2.0), ("buslogic", 0.5))
    )
    lines = lines_of([first, second], "native")
    assert any(line.startswith(" ide ") and line.endswith("1.0000 x") for line in lines)
    assert any(line.startswith(" buslogic ") and line.endswith("0.2500 x") for line in lines)
    lines = lines_of([first._replace(seconds=None)], "native")
    assert any(line.startswith(" ide ") and line.endswith(" -") for line in lines)


@pytest.mark.slow
def test_what_the_cpu_moves_takes_longer() -> None:
    """By more than any noise."""
    assert wall_seconds("ide", 64, "native") > 5 * wall_seconds("virtio-scsi", 64, "native") > 0


@pytest.mark.parametrize("arguments", [["--wide"], ["--mode"], ["--mode", "pv"], ["--mode=quick"]])
def test_what_it_does_not_know_is_a_mistake(arguments: list[str], capsys: Captured) -> None:
    """One sentence, status 2."""
    assert 2 == main(["lab", "disk", *arguments])
    assert capsys.readouterr().err.count("\n") == 1
