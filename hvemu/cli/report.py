"""The ledger as text for people."""

from typing import Any

_TOP = 6


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
            shown = ", ".join(f"{name}: {times}" for name, times in ranked[:_TOP])
            more = f", and {len(ranked) - _TOP} more" if len(ranked) > _TOP else ""
            lines.append(f"  {kind:20} {count:>10}  {shown}{more}")
    return lines


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
