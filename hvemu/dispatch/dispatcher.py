"""One table from exit kind to handler.

The builder registers; modes ask for ``entry(kind)`` once and call it for every exit. A double registration, or an
exit nobody handles, is a HostBug.
"""

from collections.abc import Callable
from typing import Any, Final

from hvemu.trace.events import Exited
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.errors import HostBug
from hvemu.vocabulary.exits import ExitKind
from hvemu.vocabulary.outcomes import Outcome, Retire

_WITH_RESULT: Final = frozenset(
    {ExitKind.IO_IN, ExitKind.MMIO_READ, ExitKind.HYPERCALL, ExitKind.VMCALL, ExitKind.HYPERV_CALL}
)
"""Kinds whose trace shows what the guest was given."""
Handler = Callable[[Any], Outcome]
"""Takes the qualification of its kind."""


class Dispatcher:
    """The table. ``where`` is set by the mode: EIP and position of the exit being handled."""

    def __init__(self, ledger: Ledger, tracer: Tracer) -> None:
        self._handlers: dict[ExitKind, Handler] = {}
        self._ledger = ledger
        self._tracer = tracer
        self.where: Callable[[], tuple[int, Position]] = lambda: (0, Position(0))

    def register(self, kind: ExitKind, handler: Handler) -> None:
        """Let ``handler`` answer for ``kind``; raises HostBug when somebody already does."""
        if kind in self._handlers:
            raise HostBug(f"two handlers for exit kind {kind.value}")
        self._handlers[kind] = handler

    def entry(self, kind: ExitKind) -> Handler:
        """The counted and traced way into the handler of ``kind``; its first qualification field is the detail."""
        if kind not in self._handlers:
            raise HostBug(f"no handler for exit kind {kind.value}; registered: {sorted(self._handlers)}")
        handler, counts, tracer = self._handlers[kind], self._ledger.counter(kind), self._tracer

        def enter(qualification: Any) -> Outcome:
            counts[qualification[0]] += 1
            if not tracer.active:
                return handler(qualification)
            eip, position = self.where()
            outcome = handler(qualification)
            detail, size, value = qualification
            if type(outcome) is Retire and kind in _WITH_RESULT:
                value = outcome.value
            tracer.publish(Exited(position, kind, eip, detail, size, value))
            return outcome

        return enter
