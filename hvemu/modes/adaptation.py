"""Adaptive translation: which stores are to call the tracer, because they keep hitting watched pages.

Innocent until proven guilty, as Adams and Agesen put it (2006, section 3.3): every store runs as it is until it has
faulted often; one that was convicted and stores elsewhere is acquitted, a few times.
"""

from typing import Final

_FAITH: Final = 4
"""Traced stores after which an instruction is no longer innocent."""
_PATIENCE: Final = 4
"""Acquittals after which it is innocent for good."""


class Adaptation:
    """Stores by their linear addresses."""

    def __init__(self) -> None:
        self.tracers: set[int] = set()
        """Those that call the tracer."""
        self._innocent: set[int] = set()
        self._suspects: dict[int, int] = {}
        self._acquittals: dict[int, int] = {}

    def suspect(self, site: int) -> bool:
        """A store has hit a watched page; returns whether it has done so often enough to be convicted."""
        count = self._suspects[site] = self._suspects.get(site, 0) + 1
        return count >= _FAITH and site not in self._innocent and site not in self.tracers

    def believe(self, site: int) -> None:
        """It will never call the tracer."""
        self._innocent.add(site)

    def acquit(self, site: int) -> None:
        """It stores elsewhere as well."""
        self.tracers.discard(site)
        self._suspects.pop(site, None)
        self._acquittals[site] = self._acquittals.get(site, 0) + 1
        if self._acquittals[site] >= _PATIENCE:
            self.believe(site)

    def reset(self) -> None:
        """Nothing is known of any store."""
        for table in (self.tracers, self._innocent, self._suspects, self._acquittals):
            table.clear()
