"""A comparison of techniques as text for people: 80 columns for six techniques, where counts stay below a million."""

import textwrap
from typing import Final

from hvemu.labs.comparing import Comparison, Row, ratio
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, ParavirtualEvent, TranslationEvent

_WIDTH: Final = 80
_NAME: Final = 20
_NARROWEST: Final = 8
_TOP: Final = 3
_SHORTEST: Final = 0.1
"""Seconds of wall time of which a ratio says something."""
_MILLION: Final = 1_000_000
_GROUPS: Final = {
    "exits": tuple(ExitKind),
    "assists": tuple(AssistKind),
    "paging": tuple(PagingEvent),
    "translation": tuple(TranslationEvent),
    "paravirtual": tuple(ParavirtualEvent),
}
_TITLES: Final = {
    "exits": "exits",
    "assists": "hardware assists: what hvemu does in place of the CPU, under every technique",
    "paging": "what the hypervisor did by itself",
    "translation": "",
    "paravirtual": "",
}


def number(value: float) -> str:
    """At most nine characters."""
    return f"{value:,.0f}" if value < 10 * _MILLION else f"{value / _MILLION:,.1f}M"


def comparison_lines(comparison: Comparison) -> list[str]:
    """Costs, checks, where the cycles go, and the counts by kind."""
    ran = [row for row in comparison.rows if not row.run.refused]
    first = comparison.rows[0].work.configuration
    lines = [f"{first.name} on {first.cpu}, {first.memory >> 20} MiB", ""]
    if ran:
        lines += [*_costs(comparison, ran), ""]
    lines += [*_checks(comparison.rows), ""]
    if ran:
        lines += [*_causes(ran), "", *_counts(ran)]
    return lines


def _costs(comparison: Comparison, ran: list[Row]) -> list[str]:
    baseline = comparison.baseline
    lines = [
        f"{'':11} {'world':>11} {'faults the':>11} {'modelled':>12} {'of':>8} {'wall':>11} {'of':>8}",
        f"{'technique':11} {'switches':>11} {'guest misses':>12} {'cycles':>11} {'native':>8} {'':>11} {'native':>8}",
    ]
    for row in ran:
        cycles = ratio(row.total, baseline.total if baseline else 0)
        wall = ratio(row.run.wall_seconds, baseline.run.wall_seconds if baseline else 0)
        if min(row.run.wall_seconds, baseline.run.wall_seconds if baseline else 0) < _SHORTEST:
            wall = None  # what it takes to start an engine is more
        lines.append(
            f"{row.name:12}{number(row.transitions):>11} {number(row.hidden_faults):>11} {number(row.total):>12}"
            f" {_ratio(cycles):>8} {row.run.wall_seconds:>9.3f} s {_ratio(wall):>8}"
        )
    return lines


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _words(row: Row) -> str:
    match row.check:
        case "baseline":
            return f"the baseline; {row.run.reason}"
        case "same":
            return f"the guest{' (a port)' if row.work.ported else ''} did the same: " + (
                "console and verdict" if row.work.ported else "console, verdict, position, screen, registers"
            )
        case "differs":
            return f"DIFFERS in {'; '.join(row.differences)}: {row.run.reason}"
        case "refused":
            return f"cannot run it. {row.run.reason}"
        case "ended":
            return f"cannot run it to its end. {row.run.reason}"
        case "limit":
            return f"not compared: {row.run.reason}"
    return f"nothing to compare with: {row.run.reason}"


def _checks(rows: tuple[Row, ...]) -> list[str]:
    """What came of each; techniques of which the same is to be said stand together."""
    said: dict[str, list[str]] = {}
    for row in rows:
        said.setdefault(_words(row), []).append(row.name)
    lines = []
    for words, names in said.items():
        lines += textwrap.wrap(f"{', '.join(names)}: {words}", _WIDTH, subsequent_indent="  ")
    return lines


_SLOW_BUS: Final = (
    "Ports: the bare machine pays for a slow bus each time, a hypervisor for its exit and a device in memory;"
    " a guest that prints much looks better virtual than it is."
)


def _causes(ran: list[Row]) -> list[str]:
    lines = ["where the modelled cycles go (hvemu compare --cost-model: what each costs)"]
    for row in ran:
        ranked = sorted(row.cycles.items(), key=lambda item: -item[1])
        words = ", ".join(f"{cause} {100 * cycles / row.total:.0f} %" for cause, cycles in ranked[:_TOP] if row.total)
        lines.append(f"{row.name:12}{words}")
    if any(ExitKind.IO_IN in row.run.statistics["exits"] for row in ran):
        lines += textwrap.wrap(_SLOW_BUS, _WIDTH)
    return lines


def _counts(ran: list[Row]) -> list[str]:
    table: list[tuple[str, list[str]]] = []
    for group, kinds in _GROUPS.items():
        rows = []
        for kind in kinds:
            counts = [row.run.statistics[group].get(kind, 0) for row in ran]
            if any(counts):
                rows.append((kind.value, [number(count) if count else "-" for count in counts]))
        if rows and _TITLES[group]:
            table.append((_TITLES[group], []))
        table += rows
    widths = [
        1 + max(_NARROWEST, len(row.name), *(len(cells[column]) for _, cells in table if cells))
        for column, row in enumerate(ran)
    ]
    lines = [" " * _NAME + "".join(f"{row.name:>{width}}" for row, width in zip(ran, widths, strict=True))]
    for name, cells in table:
        padded = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) if cells else ""
        lines.append(f"{name:{_NAME}}{padded}".rstrip())
    return lines
