"""The ledger: how often what trapped. Counting is one dictionary increment an exit, always on.

``counter(kind)`` hands out the dictionary that a dispatcher or mode increments by detail.
"""

from collections import defaultdict
from typing import Any

from hvemu.vocabulary.exits import (
    AssistKind,
    ExitKind,
    PagingEvent,
    ParavirtualEvent,
    TranslationEvent,
    detail_name,
)

Counter = defaultdict[int, int]
Kind = ExitKind | AssistKind | PagingEvent | TranslationEvent | ParavirtualEvent


_GROUPS = {"paging": PagingEvent, "translation": TranslationEvent, "paravirtual": ParavirtualEvent}


class Ledger:
    """Counts of exits, hardware assists and paging events by kind and by detail (port, vector, register)."""

    def __init__(self) -> None:
        self._counters: dict[Kind, Counter] = {}

    def counter(self, kind: Kind) -> Counter:
        """The counts of one kind, detail -> count; the same object every time."""
        return self._counters.setdefault(kind, defaultdict(int))

    def total(self, kind: Kind) -> int:
        """How often a kind was counted."""
        return sum(self._counters.get(kind, {}).values())

    def as_dict(self) -> dict[str, Any]:
        """``exits``, ``assists``, both by detail, and the groups of events; without what never happened."""
        result: dict[str, Any] = {
            "exits": {},
            "exits_by_detail": {},
            "assists": {},
            "assists_by_detail": {},
            "paging": {},
            "translation": {},
            "paravirtual": {},
        }
        for kind, counts in self._counters.items():
            if not counts:
                continue
            own = next((name for name, kinds in _GROUPS.items() if isinstance(kind, kinds)), None)
            if own is not None:
                result[own][kind.value] = sum(counts.values())
                continue
            assert isinstance(kind, (ExitKind, AssistKind))
            group = "exits" if isinstance(kind, ExitKind) else "assists"
            result[group][kind.value] = sum(counts.values())
            result[f"{group}_by_detail"][kind.value] = {
                detail_name(kind, detail): counts[detail] for detail in sorted(counts)
            }
        return {group: dict(sorted(values.items())) for group, values in result.items()}
