"""A guest on shadow page tables: which of the MMU's faults are the guest's, and what is done about the others."""

from collections.abc import Callable

from hvemu.cpu.delivery import PAGE_FAULT, Event
from hvemu.cpu.state import FLAG_TF
from hvemu.memory.shadow import ShadowPaging, Traced
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.emulation import Emulation
from hvemu.modes.stretches import Services
from hvemu.vocabulary.exits import ExitKind, PagingEvent


def paging_notes(services: Services) -> Callable[[PagingEvent], None]:
    """Counts what a paging technique does, in the ledger."""
    events = {event.value: services.ledger.counter(event) for event in PagingEvent}

    def note(event: PagingEvent) -> None:
        events[event._value_][0] += 1

    return note


class Shadowed(Emulation):
    """Hidden faults, traced stores, and true faults."""

    paging: ShadowPaging

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask."""
        super().connect()
        self.memory.on_watched_write = self.paging.written_by_others

    def dirty_pages(self) -> set[int]:
        """Frames written since the last call, by write protection; all at the first."""
        return self.paging.start_dirty_log()

    def _page_fault(self, event: Event) -> None:
        assert event.address is not None
        assert event.error_code is not None
        found = self.paging.fault(event.address, event.error_code, self.vcpu.linear_eip())
        if found is None:
            self._exit(ExitKind.HIDDEN_FAULT, event.error_code)
            self._watch_progress(event)
            self._again(event.error_code)
        elif isinstance(found, Traced):
            self._exit(ExitKind.TRACED_WRITE, found.frame)
            instruction = self._detailed()
            if instruction is not None and self._privileged.store(instruction):
                self.vcpu.forget_exception()
                self._retired_by_us(len(instruction.code), stepping=bool(self.cpu.eflags() & FLAG_TF))
            else:
                self._step_over(found.frame, instruction)
        else:
            DirectExecution._exception(self, Event(PAGE_FAULT, found.error_code, address=found.address))
