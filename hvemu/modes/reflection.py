"""What modes that deprivilege a kernel have in common: the physical CPU brings every exception to the hypervisor."""

from typing import Final

from hvemu.cpu.delivery import PAGE_FAULT, Event
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.stretches import Services
from hvemu.trace.events import Exited
from hvemu.vocabulary.exits import AssistKind, ExitKind

NO_VIRTUAL_8086: Final = "the guest went to virtual-8086 mode, which does not exist here; use --mode native"
"""The engine lets IRET go there from any ring, even in compatibility mode; a CPU would not."""


class Reflection(DirectExecution):
    """Exceptions and INT n of the guest are exits, which the hypervisor reflects to the guest."""

    _engine_holds_if = False

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        super().__init__(services, cpu)
        self._exits = {kind.value: services.ledger.counter(kind) for kind in ExitKind}

    def _exit(self, kind: ExitKind, detail: int) -> None:
        self._exits[kind._value_][detail] += 1  # hashing an Enum is slow
        if self._tracer.active:
            self._tracer.publish(Exited(self.position(), kind, self.vcpu.eip(), detail, 0, 0))

    def _record(self, kind: AssistKind, event: Event) -> None:
        """What the physical CPU would bring to the hypervisor, which reflects it to the guest, is an exit."""
        if kind is AssistKind.SOFTWARE_INTERRUPT:
            self._exit(ExitKind.REFLECTED_INTERRUPT, event.vector)
        elif event.vector == PAGE_FAULT and kind is AssistKind.EXCEPTION:
            self._exit(ExitKind.TRUE_FAULT, event.error_code or 0)
        elif kind is AssistKind.EXCEPTION:
            self._exit(ExitKind.REFLECTED_EXCEPTION, event.vector)
        else:
            super()._record(kind, event)
