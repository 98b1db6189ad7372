"""``hvemu lab nanobench``: the command, and its tables for people, 80 columns wide for six techniques."""

import json
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from hvemu.labs.explained_operations import explained
from hvemu.labs.nanobench import (
    OPERATIONS,
    Measured,
    Operation,
    as_data,
    kinds_of,
    measure,
    possible,
    verdicts,
    wall_seconds_apart,
    words,
)
from hvemu.labs.techniques import BASELINE, Technique, common_cpu, techniques
from hvemu.machine.configuration import CPU_MODELS, MachineConfiguration
from hvemu.vocabulary.errors import UserError

_WIDTH: Final = 80
_NAME: Final = 15
_HELP: Final = "Type: hvemu lab nanobench --help."
_VALUED: Final = ("--modes", "--only", "--cpu", "--rounds", "--json", "--explain")
_ABOUT: Final = """\
usage: hvemu lab nanobench [--modes native,...] [--only ptemod,...]
                           [--cpu MODEL] [--counts] [--rounds N] [--json FILE]
       hvemu lab nanobench --explain OPERATION,...

What single operations of a kernel cost under each technique, after the
nanobenchmarks of Adams and Agesen (2006): exits per operation, which are exact,
modelled cycles (hvemu compare --cost-model), and wall time, of native.
--counts leaves out wall time, which takes minutes; --rounds takes the median of
several. Then: which orderings of the paper appear here, which do not, and why.
docs/comparing.md tells more.

operations:
"""


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write them as JSON; raises UserError."""
    options: dict[str, str] = {}
    given = iter(arguments)
    for word in given:
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            rows = (f"  {operation.name:{_NAME}} {operation.what}" for operation in OPERATIONS.values())
            print(_ABOUT + "\n".join(rows))
            return 0
        if word == "--counts":
            options[word] = word
            continue
        if name not in _VALUED:
            raise UserError(f"The lab does not know '{word}'", _HELP)
        options[name] = value if equals else next(given, "")
        if not options[name]:
            raise UserError(f"{name} wants a value", _HELP)
    if "--explain" in options:
        print("\n\n".join("\n".join(explained(operation)) for operation in _operations(options["--explain"])))
        return 0
    rounds = 0 if "--counts" in options else _rounds(options.get("--rounds", "1"))
    wanted, chosen = techniques(options.get("--modes")), _operations(options.get("--only"))
    cpu = common_cpu(wanted, options.get("--cpu", ""))
    if cpu and cpu not in CPU_MODELS:
        raise UserError(f"There is no cpu '{cpu}'", f"Choose one of: {', '.join(CPU_MODELS)}.")
    measured = [
        measured_once(operation, one, cpu, rounds) for operation in chosen for one in wanted if possible(operation, one)
    ]
    cpu = cpu or MachineConfiguration(image="").cpu
    if path := options.get("--json"):
        try:
            Path(path).write_text(json.dumps(as_data(measured, cpu), indent=1) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot write {path}: {error}", "Give --json another file.") from None
    print("\n".join(lines_of(measured, wanted, cpu)))
    return 0


def measured_once(operation: Operation, one: Technique, cpu: str, rounds: int) -> Measured:
    """Counts, and the wall time unless ``rounds`` is 0; raises what building a machine does."""
    counted = measure(operation, one, cpu)
    return replace(counted, seconds=wall_seconds_apart(operation, one, cpu, rounds)) if rounds else counted


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1000:
        raise UserError(f"'{text}' is not a number of rounds", "Write it as --rounds 3.")
    return int(text)


def _operations(text: str | None) -> list[Operation]:
    names = list(OPERATIONS) if text is None else [word.strip() for word in text.split(",")]
    for name in names:
        if name not in OPERATIONS:
            raise UserError(f"There is no operation '{name}'", f"Operations are: {', '.join(OPERATIONS)}.")
    return [OPERATIONS[name] for name in dict.fromkeys(names)]


def lines_of(measured: list[Measured], wanted: Iterable[Technique], cpu: str) -> list[str]:
    """The tables, what the exits are, and the paper's orderings."""
    columns = [one.name for one in wanted]
    lines = [f"nanobenchmarks on {cpu}", ""]
    lines += _table("exits per operation", measured, columns, lambda one: _short(one.exits))
    lines += ["", *_table("modelled cycles per operation", measured, columns, lambda one: f"{one.total:,.0f}")]
    if any(one.seconds is not None for one in measured):
        native = {one.operation.name: one.seconds for one in measured if one.technique.name == BASELINE and one.seconds}

        def wall(one: Measured) -> str:
            base = native.get(one.operation.name)
            if one.seconds is None:
                return "-"
            if not base or one.technique.name == BASELINE:
                return f"{one.seconds * 1e9:,.0f} ns"
            return f"{one.seconds / base:.2f} x"

        lines += ["", *_table("wall time per operation, of native", measured, columns, wall)]
    return [*lines, "", *_kinds(measured), "", *_orderings(measured)]


def _short(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _table(title: str, measured: list[Measured], columns: list[str], cell: Callable[[Measured], str]) -> list[str]:
    found = {(one.operation.name, one.technique.name): cell(one) for one in measured}
    names = list(dict.fromkeys(one.operation.name for one in measured))
    rows = [[found.get((name, column), "-") for column in columns] for name in names]
    widths = [1 + max(8, len(column), *(len(row[index]) for row in rows)) for index, column in enumerate(columns)]
    lines = [title, " " * _NAME + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:{_NAME}}" + "".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))
    return lines


def _kinds(measured: list[Measured]) -> list[str]:
    """What the exits of each operation are; techniques of which the same is to be said stand together."""
    lines = ["what they are: exits and hardware assists, with their details"]
    said: dict[str, dict[str, list[str]]] = {}
    for one in measured:
        said.setdefault(one.operation.name, {}).setdefault(kinds_of(one), []).append(one.technique.name)
    for name, kinds in said.items():
        for index, (what, names) in enumerate(kinds.items()):
            first = f"{'' if index else name:{_NAME}}"
            lines += textwrap.wrap(
                f"{', '.join(names)}: {what}", _WIDTH, initial_indent=first, subsequent_indent=" " * (_NAME + 2)
            )
    return lines


def _orderings(measured: list[Measured]) -> list[str]:
    found = list(verdicts(measured))
    if not found:
        return ["the paper's orderings: none of them can be judged by what was measured"]
    lines = ["the paper's orderings (its software VMM is bt here, its hardware VMM svm/shadow)"]
    for one in found:
        what = "modelled cycles" if one.measure == "cycles" else "wall time"
        verdict = "appears" if one.appears else "does NOT appear"
        text = f"{one.ordering.reported}: {words(one.ordering)}: {verdict} in {what}: {one.found}"
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
        if one.why:
            lines += textwrap.wrap(f"because {one.why}", _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines
