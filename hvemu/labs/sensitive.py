"""``hvemu lab sensitive``: what the 18 sensitive instructions of IA-32 show a guest in each mode.

The guest ``sensitive`` executes one of them, in its kernel or in a user program, and says what it saw. In mode
``native`` that is right by definition. If it sees something else in another mode, that mode leaks; the trace says
whether the hypervisor had a chance to prevent it.

Popek and Goldberg, CACM 17(7), 1974; Robin and Irvine, USENIX Security 2000; SDM volume 2 for each instruction.
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from hvemu.trace.events import Event, Exited
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.exits import ExitKind, detail_name
from hvemu.vocabulary.machine_map import POST_PORT
from hvemu.vocabulary.vectors import vector_name

_ABOUT = (__doc__ or "").replace("``", "")
GUEST: Final = "sensitive"
BASELINE: Final = "native"
RINGS: Final = ("kernel", "user")
_MARK_BEFORE, _MARK_AFTER = 0xA1, 0xA2  # as in guests/15_sensitive/scene.h
_OUT_LENGTH: Final = 2
_LONGEST: Final = 15
_ENOUGH: Final = 20_000_000
"""Code bytes after which a guest that a leak has led astray is given up; it needs less than 100,000."""
_WIDTH: Final = 100
_COLUMNS: Final = (8, 8, 56)
_TITLES: Final = {"kernel": "In the kernel, which believes it is in ring 0", "user": "In a user program, in ring 3"}

_LUCK = "the VMM happens to have loaded the same"
_CAUGHT = "the VMM has found a way to catch it"
_RING_3 = "a program is in ring 3 in any case"
_HANDED_ON = "the way into the kernel is a #GP, which the VMM hands on to the guest"
_INTERRUPT = "INT n always vectors to the VMM, which pushes the frame that the guest expects"
_RIGHTS = "rights do not depend on ring 1 or 0 when the DPL moves along with the kernel"
_LOADS = "SS takes no RPL 0 at CPL 1, and a descriptor not yet copied is not there: #GP"
_SELECTORS = {name: f"ring 1 in the RPL of {name.upper()} ({{value}})" for name in ("cs", "ss", "ds")}
_TRANSFER = {
    "cs": "the CS that it runs with ({value})",
    "pushed_cs": "ring 1 in the RPL of the CS that it pushes ({value})",
    "gate.cs": "the CS behind the call gate ({value})",
}


class Text(NamedTuple):
    """What is said about one mnemonic in mode ``trap``. ``leaks`` has words for what differs, by the name in SAW."""

    leaks: dict[str, str]
    traps: str = _CAUGHT
    silent: str = _LUCK
    user_traps: str = _CAUGHT
    user_silent: str = _LUCK


TEXTS: Final[dict[str, Text]] = {
    "sgdt": Text({"limit": "the VMM's GDT limit {value}", "base": "the VMM's GDT base {value}"}),
    "sidt": Text({"limit": "the VMM's IDT limit {value}", "base": "the VMM's IDT base {value}"}),
    "sldt": Text({"selector": "the VMM's LDT selector {value}"}),
    "smsw": Text(
        {
            "numeric_error": "the physical CR0.NE ({value})",
            "paging": "the physical CR0.PG ({value})",
            "wp": "the physical CR0.WP ({value})",
        }
    ),
    "pushf": Text({"if": "the physical IF ({value})", "iopl": "the physical IOPL ({value})"}),
    "popf": Text(
        {"interrupted": "that IF is the VMM's: the change is dropped without a word"},
        user_silent="ring 3 cannot change IF in any case",
    ),
    "lar": Text(
        {
            "kernel.rights": "the DPL that the VMM gives the kernel's code, rights {value}",
            "tss.zf": "that the VMM's GDT has no such TSS",
            "tss.rights": "the rights of the VMM's TSS ({value})",
            "ldt.zf": "that the VMM's GDT has no such LDT",
            "ldt.rights": "the rights of the VMM's LDT ({value})",
        },
        user_silent="ring 3 sees neither system segments nor the kernel's in any case",
    ),
    "lsl": Text(
        {
            "tss.zf": "that the VMM's GDT has no such TSS",
            "tss.limit": "the limit of the VMM's TSS ({value})",
            "ldt.zf": "that the VMM's GDT has no such LDT",
            "ldt.limit": "the limit of the VMM's LDT ({value})",
        },
        user_silent="ring 3 sees neither system segments nor the kernel's in any case",
    ),
    "verr": Text({}, silent=_RIGHTS, user_silent="DPL 1 is as far from ring 3 as DPL 0"),
    "verw": Text({}, silent=_RIGHTS, user_silent="DPL 1 is as far from ring 3 as DPL 0"),
    "pop": Text(
        {},
        traps=_LOADS,
        silent="a data segment whose DPL moved along with the kernel loads as it is",
        user_traps=_HANDED_ON,
        user_silent=_RING_3,
    ),
    "push": Text(_SELECTORS, user_silent=_RING_3),
    "call": Text(
        _TRANSFER,
        traps="the target's DPL is not ring 1: #GP, and the VMM goes there in the guest's place",
        silent="the target's DPL has moved along with the kernel",
        user_traps="the VMM keeps gates out of its GDT and goes through the guest's itself; other ways in are a #GP",
        user_silent=_RING_3,
    ),
    "jmp": Text(
        _TRANSFER,
        traps="the target's DPL is not ring 1: #GP, and the VMM goes there in the guest's place",
        silent="the target's DPL has moved along with the kernel, and JMP leaves nothing to look at",
        user_traps=_HANDED_ON,
        user_silent=_RING_3,
    ),
    "int": Text(_TRANSFER, traps=_INTERRUPT, silent=_INTERRUPT, user_traps=_INTERRUPT, user_silent=_INTERRUPT),
    "ret": Text(
        _TRANSFER,
        traps="the RPL 0 in the frame would be a return to an inner ring: #GP, and the VMM returns in its place",
        silent="the frame says ring 1 already",
        user_traps=_HANDED_ON,
        user_silent=_RING_3,
    ),
    "str": Text({"selector": "the VMM's task register ({value})"}),
    "mov": Text(_SELECTORS, traps=_LOADS, silent=_LUCK, user_traps=_HANDED_ON, user_silent=_RING_3),
}
"""The 18 mnemonics, registers first, then references to the protection system; order as in the guest."""


class Trap(NamedTuple):
    """The exit that an instruction caused; ``detail`` is the exit's own."""

    kind: str
    detail: int


@dataclass(frozen=True)
class Observation:
    """One run of the guest: what it saw, by name; how often the instruction ran, and which of these runs trapped."""

    saw: dict[str, str]
    executed: int = 1
    traps: tuple[Trap, ...] = ()
    failed: str = ""
    """How the run ended, if not with the guest's verdict."""


def seen(console: str) -> dict[str, str]:
    """The guest's SAW lines as name -> value, both as printed."""
    lines = [line.removeprefix("SAW ") for line in console.splitlines() if line.startswith("SAW ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def traps_between_marks(events: Sequence[Event]) -> list[Trap | None]:
    """For each pair of marks the exit that the instruction between them caused, if any.

    Such an exit is at the instruction or, as for INT, right behind it. What a guest's fault handler does before the
    second mark is elsewhere, and the second mark may trap itself.
    """
    result: list[Trap | None] = []
    start, candidates = None, list[Exited]()
    for event in events:
        if not isinstance(event, Exited):
            continue
        mark = event.value if event.kind is ExitKind.IO_OUT and event.detail == POST_PORT else None
        if mark == _MARK_BEFORE:
            start, candidates = event.eip + _OUT_LENGTH, []
        elif mark == _MARK_AFTER and start is not None:
            own = [exit_ for exit_ in candidates if exit_.eip != event.eip]
            result.append(Trap(own[0].kind.value, own[0].detail) if own else None)
            start = None
        elif start is not None and start <= event.eip <= start + _LONGEST:
            candidates.append(event)
    return result


def observe(mnemonic: str, ring: str, mode: str) -> Observation:
    """Run the guest for one instruction, in its ``kernel`` or as its ``user``; raises what building a machine does."""
    from hvemu.machine.configuration import SVM_CPU_MODELS
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration, run_guest

    guest, events = catalog()[GUEST], list[Event]()
    configuration = guest_configuration(guest, append=f"{mnemonic} {ring}", mode=mode, cpu=SVM_CPU_MODELS[0])
    result = run_guest(configuration, position=_ENOUGH, observer=events.append)
    failed = ""
    if result.stop is None:
        failed = f"still running after {_ENOUGH} code bytes"
    elif result.status != guest.expected_status:
        failed = result.stop.reason
    pairs = traps_between_marks(events)
    return Observation(seen(result.console), len(pairs), tuple(trap for trap in pairs if trap), failed)


def _words(observation: Observation) -> str:
    return " ".join(f"{name}={value}" for name, value in observation.saw.items()) or "nothing"


def _differences(mnemonic: str, native: Observation, other: Observation) -> Iterator[str]:
    """Words for each thing that the guest saw otherwise. What is missing or new is told by a fault or by ZF."""
    words = TEXTS[mnemonic].leaks
    for name in dict.fromkeys((*native.saw, *other.saw)):
        was, is_ = native.saw.get(name), other.saw.get(name)
        subject, _, what = name.rpartition(".")
        if was == is_:
            continue
        if was is not None and is_ is not None:
            yield words.get(name, "{name}={value} instead of {was}").format(name=name, value=is_, was=was)
        elif what == "fault":
            vector = vector_name(int(was or is_ or 0))
            yield f"{'a' if is_ else 'no'} {vector}{' at ' + subject if subject else ''}"


def verdict(mode: str, mnemonic: str, ring: str, native: Observation, other: Observation) -> str:
    """What ``other``, observed in ``mode``, is worth against ``native``: a clause for the table."""
    if other.failed:
        return f"fails: {other.failed}"
    differences = list(_differences(mnemonic, native, other))
    if differences:
        return f"leaks {', '.join(differences)}"
    if native.saw != other.saw:
        return f"leaks: it saw {_words(other)}"
    if mode != "trap":
        return "equivalent"
    text = TEXTS[mnemonic]
    if other.traps:
        return f"traps here, because {text.traps if ring == 'kernel' else text.user_traps}"
    return f"equivalent, no trap: {text.silent if ring == 'kernel' else text.user_silent}"


@dataclass(frozen=True)
class Row:
    """One instruction in one ring: observations by mode, the baseline among them."""

    mnemonic: str
    ring: str
    observations: dict[str, Observation]

    def verdicts(self) -> dict[str, str]:
        """By mode; the baseline has none."""
        native = self.observations[BASELINE]
        return {
            mode: verdict(mode, self.mnemonic, self.ring, native, observation)
            for mode, observation in self.observations.items()
            if mode != BASELINE
        }


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values; the baseline's verdict is ""."""
    return [
        {
            "mnemonic": row.mnemonic,
            "ring": row.ring,
            "modes": {
                mode: {
                    **asdict(observation),
                    "traps": [trap._asdict() for trap in observation.traps],
                    "verdict": row.verdicts().get(mode, ""),
                }
                for mode, observation in row.observations.items()
            },
        }
        for row in rows
    ]


def _trapped(observation: Observation) -> str:
    """Kind and detail of the exits; of how many executions, where a probe asks about several things."""
    if not observation.traps:
        return "no trap"
    names = ", ".join(
        dict.fromkeys(f"{trap.kind} {detail_name(ExitKind(trap.kind), trap.detail)}" for trap in observation.traps)
    )
    share = f" {len(observation.traps)} of {observation.executed}" if observation.executed > 1 else ""
    return names + share


def _columns(*cells: str) -> list[str]:
    """One line of the table, its cells wrapped; the last one has the rest of the width."""
    widths = (*_COLUMNS, _WIDTH - sum(_COLUMNS))
    wrapped = [textwrap.wrap(cell, width - 1) for cell, width in zip(cells, widths, strict=True)]
    height = max(len(lines) for lines in wrapped)
    padded = [[*lines, *[""] * (height - len(lines))] for lines in wrapped]
    return [
        "".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The table for people, at most 100 columns wide: the kernel's instructions, then the user program's."""
    lines = []
    for ring in RINGS:
        lines += [_TITLES[ring], "", *_columns("", "mode", "the guest saw", "trap"), "-" * _WIDTH]
        for row in rows:
            if row.ring != ring:
                continue
            verdicts, native = row.verdicts(), row.observations[BASELINE]
            for mode, observation in row.observations.items():
                same = mode != BASELINE and observation.saw == native.saw
                first = row.mnemonic if mode == BASELINE else ""
                trapped = "" if mode == BASELINE else _trapped(observation)
                lines += _columns(first, mode, "as native" if same else _words(observation), trapped)
                indent = " " * sum(_COLUMNS[:2])
                lines += textwrap.wrap(verdicts.get(mode, ""), _WIDTH, initial_indent=indent, subsequent_indent=indent)
        lines.append("")
    return lines[:-1]


def _chosen_modes(text: str | None) -> list[str]:
    """The modes to run, the baseline first; None means all that the guest is written for and that there are."""
    from hvemu.machine.configuration import MODES
    from hvemu.testing.catalog import catalog

    possible = [mode for mode in MODES if mode in catalog()[GUEST].modes]
    words = possible if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in possible:
            raise UserError(f"There is no mode '{word}' for this lab", f"Modes are: {', '.join(possible)}.")
    return list(dict.fromkeys((BASELINE, *words)))


def main(arguments: list[str]) -> int:
    """Run every instruction in every mode asked for, print the table, write it as JSON; raises UserError."""
    options: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            print(f"usage: hvemu lab sensitive [--modes native,...] [--json FILE]\n\n{_ABOUT}", end="")
            return 0
        if name not in ("--modes", "--json"):
            raise UserError(f"The lab does not know '{word}'", "Type: hvemu lab sensitive --help.")
        options[name] = value if equals else next(words, "")
        if not options[name]:
            raise UserError(f"{name} wants a value", "Type: hvemu lab sensitive --help.")
    modes = _chosen_modes(options.get("--modes"))
    rows = [
        Row(mnemonic, ring, {mode: observe(mnemonic, ring, mode) for mode in modes})
        for ring in RINGS
        for mnemonic in TEXTS
    ]
    if path := options.get("--json"):
        try:
            Path(path).write_text(json.dumps({"guest": GUEST, "modes": modes, "rows": as_data(rows)}, indent=1) + "\n")
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot write {path}: {error}", "Give --json another file.") from None
    print("\n".join(table_lines(rows)))
    return 0
