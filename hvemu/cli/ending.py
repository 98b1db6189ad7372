"""Ends a running machine from outside: Ctrl-C, SIGTERM, a limit of host time. Used by ``run`` and ``demo``.

An exception raised by a signal handler may strike while the engine is calling us, where it is lost together with what
the guest was doing. So the first signal asks the machine to stop at its next boundary, as a device does; only a
second one, or one in the monitor (``patient = False``), is a KeyboardInterrupt.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from hvemu.machine.machine import Machine
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.outcomes import Stop

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """A context in which a machine may be run; ``timeout`` is host seconds."""

    def __init__(self, machine: Machine, timeout: float | None = None) -> None:
        self._machine = machine
        self._timeout = timeout
        self._asked: Stop | None = None
        self._before: list[Any] = []
        self._timer: threading.Timer | None = None
        self.patient = True

    def ask(self, status: ExitStatus, reason: str) -> None:
        """End the machine at its next boundary; may be called at any time and from any thread."""
        stop = self._asked = self._asked or Stop(status, reason)
        self._machine.stop = self._machine.stop or stop
        self._machine.mode.stop_soon(stop)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked is not None or not self.patient:
            raise KeyboardInterrupt
        self.ask(ExitStatus.INTERRUPTED, "interrupted")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handler: Callable[[int, FrameType | None], None] = self._on_signal
            self._before = [signal.signal(number, handler) for number in _SIGNALS]
        if self._timeout is not None:
            reason = f"the time limit of {self._timeout:g} s was reached"
            self._timer = threading.Timer(
                min(self._timeout, threading.TIMEOUT_MAX), lambda: self.ask(ExitStatus.LIMIT, reason)
            )
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        for number, handler in zip(_SIGNALS, self._before, strict=False):
            signal.signal(number, handler)
        stop = self._machine.stop
        if kind is None and stop is not None and stop is self._asked:
            self._machine.stop = Stop(stop.status, f"{stop.reason}; {self._machine.where()}")
