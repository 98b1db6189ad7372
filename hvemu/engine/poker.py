"""A thread that stops the engine at a host time: the clock of ``--clock host``, which hooks no blocks.

A stop asked for before the engine has started is lost, so it is repeated until the run is over.
"""

import threading
import time
from collections.abc import Callable

_AGAIN = 0.001


class Poker:
    """Calls ``stop`` when an armed deadline passes, and again every millisecond until disarmed."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self.fired = False
        threading.Thread(target=self._watch, name="hvemu host clock", daemon=True).start()

    def arm(self, seconds: float) -> None:
        """Stop the engine ``seconds`` from now."""
        with self._condition:
            self.fired = False
            self._deadline = time.perf_counter() + seconds
            self._condition.notify()

    def disarm(self) -> None:
        """The run is over; no stop comes after this returns."""
        with self._condition:
            self._deadline = None

    def _watch(self) -> None:
        with self._condition:
            while True:
                if self._deadline is None:
                    self._condition.wait()
                    continue
                left = self._deadline - time.perf_counter()
                if left > 0:
                    self._condition.wait(left)
                    continue
                self.fired = True
                self._stop()
                self._condition.wait(_AGAIN)
