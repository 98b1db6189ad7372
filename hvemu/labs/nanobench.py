"""``hvemu lab nanobench``: what single operations of a kernel cost under each technique, after Adams and Agesen (2006).

The guest nanobench, and for switches and forks the kernel with processes, does an operation so many times as its
command line says. The counts of two runs, subtracted and divided, are exact: exits per operation. Modelled cycles
follow from them (hvemu compare --cost-model), wall time is measured, as a ratio to native. In mode pv ports run.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hvemu.labs.apart import apart
from hvemu.labs.cost_model import CONSTANTS, exits_of, modelled_cycles, transitions
from hvemu.labs.techniques import BASELINE, Technique, under
from hvemu.machine.configuration import MachineConfiguration
from hvemu.vocabulary.exits import ExitKind

_GROUPS: Final = ("exits", "assists", "paging", "translation", "paravirtual")
_DETAILS: Final = ("exits_by_detail", "assists_by_detail")
_ENOUGH_SECONDS: Final = 0.15
_MOST: Final = 10_000_000
_UNITS: Final = 16


class Operation(NamedTuple):
    """One operation. ``wording``: the guest's command line, with a number of times; ``counts``: those of the two runs,
    with as many digits, so that reading them takes the same time.

    ``shadow``: the variant of shadow paging, where there is any; ``slow``: the constant of the cost model for its
    instruction where that executes without an exit; ``not_under``: modes in which there is no such thing.
    """

    name: str
    what: str
    wording: str
    counts: tuple[int, int] = (128, 256)
    guest: str = "nanobench"
    shadow: str = "cached"
    leaves: str = ""
    slow: str = ""
    not_under: tuple[str, ...] = ()


OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation("null", "the loop around all others", "null={}"),
        Operation("syscall", "INT 80h from ring 3 and IRET", "syscall={}"),
        Operation("in", "IN from port 80h (in the port E9h: Xen's guests have few)", "in={}"),
        Operation(
            "cr0wr", "write CR0 as it is; stands for CR8, which 32-bit code has not", "cr0wr={}",
            slow="control_write", not_under=("pv",),
        ),
        Operation("callret", "CALL and RET", "callret={}"),
        Operation("pgfault", "a page fault that the guest's tables explain, handler and IRET", "pgfault={}"),
        Operation("divzero", "DIV by zero, handler and IRET", "divzero={}"),
        Operation("ptemod", "a store to a page table, all traced (--shadow trace)", "ptemod={}", shadow="trace"),
        Operation("ptemod-unsync", "the same where a table may be out of step until the next flush", "ptemod={}"),
        Operation("clisti", "CLI and STI (in the port: bytes that the hypervisor reads)", "clisti={}"),
        Operation("cpuid", "CPUID", "cpuid={}"),
        Operation("rdtsc", "RDTSC", "rdtsc={}"),
        Operation(
            "hypercall", "the least hypercall: KVM's kick_cpu, Xen's version", "hypercall={}",
            leaves="kvm", not_under=("native",),
        ),
        Operation("switch", "a context switch, by yield", "work=switch:{}", (400, 800), "processes"),
        Operation("fork", "fork, exit and wait: create a process", "work=fork:{}", (40, 80), "processes"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One operation under one technique; all counts are per operation. ``seconds`` is None if not measured."""

    operation: Operation
    technique: Technique
    counts: dict[str, dict[str, float]]
    cycles: dict[str, float]
    transitions: float
    seconds: float | None = None
    details: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By group, kind and detail."""

    @property
    def exits(self) -> float:
        """Exits per operation."""
        return exits_of(self.technique.mode, {**self.counts, **self.details})

    @property
    def total(self) -> float:
        """Modelled cycles per operation."""
        return sum(self.cycles.values())

    def count(self, kind: str) -> float:
        """How often one kind of exit, assist or event happens in an operation."""
        return sum(group.get(kind, 0) for group in self.counts.values())


def possible(operation: Operation, technique: Technique) -> bool:
    """Whether there is such an operation under such a technique."""
    return technique.mode not in operation.not_under


def configuration_of(operation: Operation, technique: Technique, cpu: str, count: int) -> MachineConfiguration:
    """The machine that does an operation so many times."""
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    guest = catalog()[operation.guest]
    guest = catalog()[guest.paravirtual] if technique.mode == "pv" else guest
    leaves = operation.leaves if technique.mode != "pv" else ""
    first = guest_configuration(
        guest, mode=BASELINE, append=operation.wording.format(count), hypervisor_leaves=leaves or "none"
    )
    return under(first, technique, cpu, operation.shadow)


def measure(operation: Operation, technique: Technique, cpu: str) -> Measured:
    """Count one operation under one technique. Raises what building a machine does."""
    from hvemu.testing.running import run_guest

    first, second = (run_guest(configuration_of(operation, technique, cpu, count)) for count in operation.counts)
    times = operation.counts[1] - operation.counts[0]
    counts = {group: _per_operation(first.statistics[group], second.statistics[group], times) for group in _GROUPS}
    details = {
        group: {
            kind: _per_operation(first.statistics[group].get(kind, {}), named, times)
            for kind, named in second.statistics[group].items()
        }
        for group in _DETAILS
    }
    asleep = second.machine.slept - first.machine.slept
    code_bytes = (second.machine.mode.position() - first.machine.mode.position() - asleep) / times
    together = {**counts, **details}
    cycles = modelled_cycles(technique.mode, together, code_bytes)
    if operation.slow and not exits_of(technique.mode, together):
        cycles["slow instruction"] = CONSTANTS[operation.slow].cycles
    if technique.mode == "bt" and operation.guest == "nanobench":
        cycles |= _inside_the_cache(operation, cpu)
    return Measured(operation, technique, counts, cycles, transitions(technique.mode, together), details=details)


def _per_operation(first: dict[str, int], second: dict[str, int], times: int) -> dict[str, float]:
    """Differences, without zeros."""
    return {name: (count - first.get(name, 0)) / times for name, count in second.items() if count != first.get(name, 0)}


def _inside_the_cache(operation: Operation, cpu: str) -> dict[str, float]:
    """Cycles of what the translation of the loop does by itself, as the translator translates it."""
    from hvemu.labs.techniques import technique
    from hvemu.labs.translating import translations
    from hvemu.modes.translator import Treatment

    name = operation.wording.partition("=")[0]
    if name == "syscall":  # a loop of ring 3, which runs as it is
        return {}
    found = translations(configuration_of(operation, technique("bt"), cpu, 1), f"loop_{name}", units=_UNITS)
    start, end = (found.symbols.address(f"{place}_{name}") or 0 for place in ("loop", "end"))
    inline = {
        item.eip: item
        for unit in found.units
        for item in unit.items
        if start <= item.eip < end and item.treatment is Treatment.INLINE
    }
    lookups = sum("looks its target up" in item.reason or item.code[:1] in _RETURNS for item in inline.values())
    emulated = sum(item.text.split()[0] in _EMULATED for item in inline.values())
    cycles = {
        "lookups in the cache": lookups * CONSTANTS["cache_lookup"].cycles,
        "emulation in the cache": emulated * CONSTANTS["cache_emulation"].cycles,
    }
    return {cause: value for cause, value in cycles.items() if value}


_RETURNS: Final = (b"\xc3", b"\xc2")
_EMULATED: Final = frozenset("cli sti pushfd popfd mov smsw sgdt sidt sldt str".split())


# ---------------------------------------------------------------------- wall time


def wall_seconds(operation: Operation, technique: Technique, cpu: str) -> float:
    """Host seconds per operation: of many times, without what a few take."""
    few, many = operation.counts[0], operation.counts[1] * 4
    while True:
        base, took = _seconds(operation, technique, cpu, few), _seconds(operation, technique, cpu, many)
        if took - base > _ENOUGH_SECONDS or many >= _MOST:
            return max(0.0, took - base) / (many - few)
        many = min(_MOST, many * (4 if took - base > _ENOUGH_SECONDS / 20 else 40))


def _seconds(operation: Operation, technique: Technique, cpu: str, count: int) -> float:
    from hvemu.machine.builder import build

    machine = build(configuration_of(operation, technique, cpu, count))
    started = time.process_time()
    machine.run()
    return time.process_time() - started


def wall_seconds_apart(operation: Operation, technique: Technique, cpu: str, rounds: int) -> float:
    """The median of as many rounds, each in a fresh process."""
    return statistics.median(apart(wall_seconds, operation, technique, cpu) for _ in range(rounds))


# ---------------------------------------------------------------------- the paper's orderings

_COLUMNS: Final = {"native": "native", "software VMM": "bt", "hardware VMM": "svm/shadow"}
"""The paper's columns, and which technique is compared with each."""
_ALIKE: Final = {"cycles": 1.25, "wall": 1.5}
"""Up to which factor two values count as equal; wall time is noisy."""


class Ordering(NamedTuple):
    """An ordering of the paper: techniques from the cheapest to the dearest, equal ones together."""

    operation: str
    reported: str
    groups: tuple[tuple[str, ...], ...]


ORDERINGS: Final = (
    Ordering("syscall", "syscall", (("native", "svm/shadow"), ("bt",))),
    Ordering("in", "in", (("bt",), ("native",), ("svm/shadow",))),
    Ordering("cr0wr", "cr8wr", (("bt",), ("native", "svm/shadow"))),
    Ordering("callret", "call/ret", (("native", "svm/shadow"), ("bt",))),
    Ordering("pgfault", "pgfault", (("native",), ("bt",), ("svm/shadow",))),
    Ordering("divzero", "divzero", (("native", "svm/shadow"), ("bt",))),
    Ordering("ptemod", "ptemod", (("native",), ("bt",), ("svm/shadow",))),
    Ordering("ptemod", "ptemod with nested paging (derived)", (("native", "svm"),)),
    Ordering("fork", "forkwait", (("native",), ("bt",), ("svm/shadow",))),
)
_BESIDE_CODE: Final = (
    "a fork of this kernel stores some thirty times to a page that has translated code as well, and bt traces each;"
    " and a page table may be out of step until the next flush, so that its stores cost svm/shadow one fault together,"
    " where the VMM of 2006 traced each"
)
_ASSISTS: Final = (
    "the CPU's way through the IDT is Python here: a prepared plan under native and svm, general code under svm/shadow,"
    " so that equal hardware costs differ"
)
WHY: Final = {
    ("in", "wall"): (
        "no chip on a slow bus answers here: natively a port costs the same hook of the engine as an exit does; and"
        " translated code still executes the IN, where VMware's emulated it in the cache"
    ),
    ("cr0wr", "cycles"): (
        "CR8 is a register of its own that hardware can hold for the guest (TPR shadow) and a translator can write in"
        " the cache; CR0 decides what code means, so it is intercepted under svm and a callout under bt"
    ),
    ("fork", "cycles"): _BESIDE_CODE,
    ("fork", "wall"): _BESIDE_CODE,
    ("cr0wr", "wall"): "as for the cycles: CR0 is not CR8, and exits under svm and bt alike",
    ("syscall", "wall"): _ASSISTS,
    ("divzero", "wall"): _ASSISTS,
    ("pgfault", "wall"): (
        "a #VMEXIT of the engine's takes about a microsecond, far less than what follows in Python: under bt the fault"
        " and then the callout for IRET are two long ways, under svm/shadow it is one"
    ),
    ("ptemod", "wall"): (
        "a callout, a fault out of ring 1 and a #VMEXIT all come to one Python hook of the engine, so that their costs"
        " differ by what the hypervisor does, not by how it is reached"
    ),
    ("callret", "wall"): (
        "CALL stores, and the engine is slow to store to pages that are not marked NX (docs/engine.md): none of the"
        " guest's own tables marks any, shadow tables do, and that saves more than the lookup of a RET costs"
    ),
}
"""Why an ordering does not appear here, by operation and measure."""


class Verdict(NamedTuple):
    """Whether an ordering appears in a measure ("cycles" or "wall"), and what was found."""

    ordering: Ordering
    measure: str
    appears: bool
    found: str
    why: str


def order(values: dict[str, float], groups: tuple[tuple[str, ...], ...], alike: float) -> bool:
    """Whether values are equal within groups, up to a factor, and rise from one group to the next by more than it."""
    low = 0.0
    for group in groups:
        own = [values[name] for name in group]
        if max(own) > alike * min(own) or min(own) <= low * alike:
            return False
        low = max(own)
    return True


def verdicts(measured: list[Measured]) -> Iterator[Verdict]:
    """One for each ordering and measure whose techniques were all measured."""
    found = {(one.operation.name, one.technique.name): one for one in measured}
    for ordering in ORDERINGS:
        names = [name for group in ordering.groups for name in group]
        rows = {name: found.get((ordering.operation, name)) for name in names}
        for kind in ("cycles", "wall"):
            values = {name: _value(row, kind) for name, row in rows.items()}
            known = {name: value for name, value in values.items() if value is not None}
            if len(known) < len(names):
                continue
            appears = order(known, ordering.groups, _ALIKE[kind])
            ranked = sorted(known.items(), key=lambda item: item[1])
            unit = "" if kind == "cycles" else " ns"
            text = ", ".join(f"{name} {value:,.0f}{unit}" for name, value in ranked)
            why = "" if appears else WHY.get((ordering.operation, kind), "no reason is known: look at the counts above")
            yield Verdict(ordering, kind, appears, text, why)


def _value(row: Measured | None, kind: str) -> float | None:
    if row is None:
        return None
    if kind == "cycles":
        return row.total
    return row.seconds * 1e9 if row.seconds is not None else None


def words(ordering: Ordering) -> str:
    """``native = svm/shadow < bt``."""
    return " < ".join(" = ".join(group) for group in ordering.groups)


# ---------------------------------------------------------------------- plain values


def as_data(measured: list[Measured], cpu: str) -> dict[str, Any]:
    """All of it for JSON; docs/comparing.md describes it."""
    native = {one.operation.name: one for one in measured if one.technique.name == BASELINE}
    return {
        "format": "hvemu-nanobench",
        "version": 1,
        "cpu": cpu,
        "operations": [
            {
                "operation": one.operation.name,
                "what": one.operation.what,
                "technique": one.technique.name,
                "shadow": one.operation.shadow if one.technique.shadows else None,
                "exits": one.exits,
                "transitions": one.transitions,
                "counts": one.counts,
                "details": one.details,
                "modelled_cycles": {cause: round(cycles, 2) for cause, cycles in one.cycles.items()},
                "wall_nanoseconds": None if one.seconds is None else round(one.seconds * 1e9, 1),
                "wall_of_native": _wall_ratio(one, native.get(one.operation.name)),
            }
            for one in measured
        ],
        "orderings": [
            {
                "operation": found.ordering.operation,
                "reported": found.ordering.reported,
                "ordering": words(found.ordering),
                "measure": found.measure,
                "appears": found.appears,
                "found": found.found,
                "why": found.why,
            }
            for found in verdicts(measured)
        ],
    }


def _wall_ratio(one: Measured, native: Measured | None) -> float | None:
    if native is None or not native.seconds or one.seconds is None:
        return None
    return round(one.seconds / native.seconds, 3)


def kinds_of(one: Measured) -> str:
    """What the exits and assists of an operation are, with their details; "nothing" if there are none."""
    parts = [
        f"{'' if times == 1 else f'{times:g} '}{kind} {detail}"
        for group in _DETAILS
        for kind, details in one.details[group].items()
        for detail, times in details.items()
        if not (kind == ExitKind.VMCALL and one.technique.mode == "svm")
    ]
    return ", ".join(parts) or "nothing"
