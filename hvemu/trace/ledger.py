"""The ledger: how often what trapped. Counting is one dictionary increment an exit, always on.

``counter(kind)`` hands out the dictionary that a dispatcher or mode increments by detail.
"""

from collections import defaultdict
from typing import Any

from hvemu.vocabulary.exits import AssistKind, ExitKind

Counter = defaultdict[int, int]
_BY_VECTOR = frozenset(
    {AssistKind.EXCEPTION, AssistKind.SOFTWARE_INTERRUPT, AssistKind.EXTERNAL_INTERRUPT, AssistKind.NMI}
)


class Ledger:
    """Counts of exits and hardware assists by kind and by detail (port, vector, register)."""

    def __init__(self) -> None:
        self._counters: dict[ExitKind | AssistKind, Counter] = {}

    def counter(self, kind: ExitKind | AssistKind) -> Counter:
        """The counts of one kind, detail -> count; the same object every time."""
        return self._counters.setdefault(kind, defaultdict(int))

    def total(self, kind: ExitKind | AssistKind) -> int:
        """How often a kind was counted."""
        return sum(self._counters.get(kind, {}).values())

    def as_dict(self) -> dict[str, Any]:
        """``exits``, ``assists`` and both by detail, with names; kinds that never happened are left out."""
        result: dict[str, Any] = {"exits": {}, "exits_by_detail": {}, "assists": {}, "assists_by_detail": {}}
        for kind, counts in self._counters.items():
            if not counts:
                continue
            group = "exits" if isinstance(kind, ExitKind) else "assists"
            result[group][kind.value] = sum(counts.values())
            result[f"{group}_by_detail"][kind.value] = {
                _name(kind, detail): counts[detail] for detail in sorted(counts)
            }
        return {group: dict(sorted(values.items())) for group, values in result.items()}


def _name(kind: ExitKind | AssistKind, detail: int) -> str:
    return str(detail) if kind in _BY_VECTOR else f"{detail:#x}"
