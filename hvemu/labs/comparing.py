"""One guest under every technique that can run it: what each counted, and whether the guest did the same.

Each run is a process of its own, because a second engine in a process is slower. The results are plain values.
"""

import threading
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from hvemu.labs.apart import apart
from hvemu.labs.cost_model import MACHINE, modelled_cycles, transitions
from hvemu.labs.techniques import BASELINE, Technique
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.exits import ExitKind
from hvemu.vocabulary.outcomes import Stop

FORMAT: Final = "hvemu-compare"
VERSION: Final = 1
_CRASHES: Final = (ExitStatus.TRIPLE_FAULT, ExitStatus.HALTED)
_UNSEEN: Final = (ExitKind.HIDDEN_FAULT, ExitKind.NESTED_FAULT, ExitKind.TRACED_WRITE)
"""Faults that the guest never learns of."""
_GROUPS: Final = (
    "exits", "exits_by_detail", "assists", "assists_by_detail", "paging", "translation", "paravirtual",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What to run: a machine under a technique, what is typed, and when it is over: at a position, after seconds.

    ``ported``: the image is another than the baseline's, the same program for another machine. ``promised``: the
    catalogue says that it runs. ``refusal``: why there is nothing to run.
    """

    technique: Technique
    configuration: MachineConfiguration
    keys: str = ""
    keys_after: str = ""
    until: int | None = None
    timeout: float | None = None
    ported: bool = False
    promised: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class Run:
    """What came of it. ``status`` is None if it was refused, or if the guest could go on at the position wanted."""

    refused: bool
    reason: str
    status: int | None = None
    console: str = ""
    position: int = 0
    slept: int = 0
    registers: dict[str, str] = field(default_factory=dict)
    screen: tuple[str, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    wall_seconds: float = 0.0


def observe(work: Work) -> Run:
    """Run it here and now; a refusal is a result, too."""
    from hvemu.testing.running import run_guest

    timer: threading.Timer | None = None

    def limit(machine: Machine) -> None:
        nonlocal timer
        if work.timeout is None:
            return
        stop = Stop(ExitStatus.LIMIT, f"the time limit of {work.timeout:g} s was reached")

        def end() -> None:
            machine.stop = machine.stop or stop
            machine.mode.stop_soon(stop)

        timer = threading.Timer(min(work.timeout, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()

    if work.refusal:
        return Run(True, work.refusal)
    try:
        result = run_guest(
            work.configuration, keys=work.keys, keys_after=work.keys_after, position=work.until, prepare=limit
        )
    except UserError as error:
        return Run(True, str(error))
    finally:
        if timer is not None:
            timer.cancel()
    machine = result.machine
    return Run(
        refused=False,
        reason=result.stop.reason if result.stop else f"position {machine.mode.position()} was reached",
        status=result.status,
        console=result.console,
        position=machine.mode.position(),
        slept=machine.slept,
        registers={name: repr(value) for name, value in vars(machine.registers()).items()},
        screen=tuple(machine.screen()),
        statistics=result.statistics,
        wall_seconds=machine.wall_seconds,
    )


def observe_apart(works: list[Work]) -> list[Run]:
    """Run each in a process of its own, one after the other."""
    return [apart(observe, work) for work in works]


_SHOWN: Final = 60


def _first_line(expected: str, said: str) -> str:
    """Where one console's text leaves the other's."""
    for number, (wanted, given) in enumerate(zip_longest(expected.splitlines(), said.splitlines(), fillvalue=""), 1):
        if wanted != given:
            return f"console, line {number}: {given[:_SHOWN]!r} instead of {wanted[:_SHOWN]!r}"
    return "console"


def differences(baseline: Run, other: Run, *, ported: bool) -> list[str]:
    """In what the guest did otherwise. Of a port only what it said and its verdict can be compared."""
    found = []
    if baseline.console != other.console:
        found.append(_first_line(baseline.console, other.console))
    if baseline.status != other.status:
        found.append(f"status {other.status} instead of {baseline.status}")
    if ported:
        return found
    if baseline.position != other.position:
        found.append(f"position {other.position} instead of {baseline.position}")
    if baseline.screen != other.screen:
        found.append("screen")
    names = [name for name, value in baseline.registers.items() if other.registers.get(name) != value]
    if names:
        found.append(f"registers {', '.join(names)}")
    return found


@dataclass(frozen=True)
class Row:
    """One technique of a comparison. ``check``: "baseline", "same", "differs", "refused", "ended" (the technique cannot
    run this guest to its end), "limit" (the time was up, so nothing can be said) or "alone" (there is no baseline)."""

    work: Work
    run: Run
    check: str
    differences: tuple[str, ...]
    transitions: int
    cycles: dict[str, float]

    @property
    def name(self) -> str:
        """The technique's."""
        return self.work.technique.name

    @property
    def total(self) -> float:
        """All modelled cycles."""
        return sum(self.cycles.values())

    def count(self, *kinds: ExitKind) -> int:
        """Exits of these kinds."""
        exits = self.run.statistics.get("exits", {})
        return sum(exits.get(kind, 0) for kind in kinds)

    @property
    def hidden_faults(self) -> int:
        """Faults that the guest never learns of."""
        return self.count(*_UNSEEN)


@dataclass(frozen=True)
class Comparison:
    """A guest under several techniques, in the order asked for."""

    rows: tuple[Row, ...]

    @property
    def baseline(self) -> Row | None:
        """The row that the others are measured against, if it ran."""
        return next((row for row in self.rows if row.name == BASELINE and not row.run.refused), None)

    @property
    def same(self) -> bool:
        """Whether every technique that should do the same did."""
        return not any(row.check == "differs" for row in self.rows)


def _check(work: Work, run: Run, baseline: Run | None) -> tuple[str, list[str]]:
    if run.refused:
        return ("differs", ["refused"]) if work.promised else ("refused", [])
    if baseline is None:
        return "alone", []
    if baseline is run:
        return "baseline", []
    if ExitStatus.LIMIT in (run.status, baseline.status):
        return "limit", []
    found = differences(baseline, run, ported=work.ported)
    unable = run.status == ExitStatus.GUEST_ENDED or (work.technique.mode == "trap" and run.status in _CRASHES)
    if found and unable and not work.promised and run.status != baseline.status:
        return "ended", []
    return ("differs" if found else "same"), found


def compare(works: list[Work], runs: list[Run]) -> Comparison:
    """Put what was observed side by side."""
    pairs = list(zip(works, runs, strict=True))
    baseline = next((run for work, run in pairs if work.technique.name == BASELINE and not run.refused), None)
    rows = []
    for work, run in pairs:
        check, found = _check(work, run, baseline)
        mode, counted = work.technique.mode, run.statistics
        cycles = modelled_cycles(mode, counted, run.position - run.slept) if counted else {}
        rows.append(Row(work, run, check, tuple(found), int(transitions(mode, counted)) if counted else 0, cycles))
    return Comparison(tuple(rows))


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values; docs/comparing.md describes them. None stands for what there is not."""
    first, baseline = comparison.rows[0].work.configuration, comparison.baseline
    return {
        "format": FORMAT,
        "version": VERSION,
        "image": first.image,
        "name": first.name,
        "cpu": first.cpu,
        "memory": first.memory,
        "append": first.append,
        "baseline": baseline.name if baseline else None,
        "same": comparison.same,
        "cost_model": MACHINE,
        "techniques": [_row_as_data(row, baseline) for row in comparison.rows],
    }


def _row_as_data(row: Row, baseline: Row | None) -> dict[str, Any]:
    run, configuration = row.run, row.work.configuration
    return {
        "technique": row.name,
        "mode": configuration.mode,
        "mmu": configuration.mmu,
        "image": configuration.image,
        "check": row.check,
        "differences": list(row.differences),
        "reason": run.reason,
        "status": run.status,
        "position": run.position,
        "slept": run.slept,
        "transitions": row.transitions,
        "hidden_faults": row.hidden_faults,
        "callouts": row.count(ExitKind.CALLOUT),
        "dispatches": row.count(ExitKind.DISPATCH),
        "hypercalls": row.count(ExitKind.HYPERCALL, ExitKind.VMCALL, ExitKind.HYPERV_CALL),
        "modelled_cycles": {
            "total": round(row.total),
            "of_baseline": ratio(row.total, baseline.total if baseline else 0),
            "by_cause": {cause: round(cycles) for cause, cycles in row.cycles.items()},
        },
        "wall_seconds": round(run.wall_seconds, 6),
        "wall_of_baseline": ratio(run.wall_seconds, baseline.run.wall_seconds if baseline else 0),
        **{group: run.statistics.get(group, {}) for group in _GROUPS},
    }


def ratio(value: float, baseline: float) -> float | None:
    """``value`` in units of ``baseline``; None where there is nothing to divide."""
    return round(value / baseline, 4) if value and baseline else None
