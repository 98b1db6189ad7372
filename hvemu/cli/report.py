"""The ledger as text for people."""

from typing import Any, Final

from hvemu.vocabulary.exits import AssistKind, ExitKind
from hvemu.vocabulary.paging import error_words
from hvemu.vocabulary.vectors import vector_name

_TOP = 6
_PAGE_FAULTS: Final = frozenset({ExitKind.TRUE_FAULT, ExitKind.HIDDEN_FAULT, ExitKind.NESTED_FAULT})
_EXCEPTIONS: Final = frozenset({ExitKind.REFLECTED_EXCEPTION, AssistKind.EXCEPTION})


def ledger_lines(statistics: dict[str, Any]) -> list[str]:
    """A table: kind, count, and the details that happened most."""
    lines = []
    for title, group in (("exits", "exits"), ("hardware assists", "assists")):
        counts: dict[str, int] = statistics[group]
        if not counts:
            lines.append(f"{title}: none")
            continue
        lines.append(f"{title}:")
        for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
            details: dict[str, int] = statistics[f"{group}_by_detail"][kind]
            ranked = sorted(details.items(), key=lambda item: -item[1])
            between = "; " if kind in _PAGE_FAULTS else ", "
            shown = between.join(f"{_words(kind, name)}: {times}" for name, times in ranked[:_TOP])
            more = f", and {len(ranked) - _TOP} more" if len(ranked) > _TOP else ""
            lines.append(f"  {kind:20} {count:>10}  {shown}{more}")
    for group in ("paging", "translation", "paravirtual"):
        events: dict[str, int] = statistics[group]
        if events:
            lines.append(f"{group}:")
            lines += [f"  {event:24} {count:>6}" for event, count in sorted(events.items(), key=lambda item: -item[1])]
    return lines


def _words(kind: str, detail: str) -> str:
    """A detail of the ledger in words, where a number says little."""
    if kind in _PAGE_FAULTS:
        return error_words(int(detail, 16))
    if kind in _EXCEPTIONS:
        return vector_name(int(detail))
    return f"frame {detail}" if kind == ExitKind.TRACED_WRITE else detail


def summary_lines(statistics: dict[str, Any]) -> list[str]:
    """How the run ended, then the ledger."""
    ended = statistics["guest_exit"]
    lines = [f"ended: {ended['reason'] if ended else 'not yet'}"]
    if statistics["virtual_ns"] is not None:
        instructions = statistics["instructions"]
        counted = f", {instructions} instructions" if instructions is not None else ""
        lines.append(
            f"virtual time: {statistics['virtual_ns'] / 1e6:.3f} ms ({statistics['position']} code bytes{counted}),"
            f" host time: {statistics['wall_s']:.3f} s"
        )
    return lines + ledger_lines(statistics)
