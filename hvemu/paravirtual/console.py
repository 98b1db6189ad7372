"""The paravirtual console: two byte rings on a page of the guest's, and an event channel (io/console.h)."""

from collections.abc import Callable
from typing import Final

from hvemu.devices.contract import CharacterBackend
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual.ring import ByteRing, RingError

_INPUT_SIZE, _OUTPUT_SIZE = 1024, 2048
_INDICES: Final = _INPUT_SIZE + _OUTPUT_SIZE


class Console:
    """The hypervisor's end. ``notify`` raises the guest's port; ``warn`` is told when the guest breaks the rings."""

    def __init__(self, memory: GuestPhysicalMemory, page: int, backend: CharacterBackend) -> None:
        at = page + _INDICES
        self._input = ByteRing(memory, page, _INPUT_SIZE, at, at + 4)
        self._output = ByteRing(memory, page + _INPUT_SIZE, _OUTPUT_SIZE, at + 8, at + 12)
        self._backend = backend
        self._waiting = b""
        self._broken = False
        self.notify: Callable[[], None] = lambda: None
        self.warn: Callable[[str], None] = lambda text: None

    def notified(self) -> None:
        """The guest has put in something, or taken something out."""
        if self._broken:
            return
        try:
            data = self._output.take()
            if data:
                self._backend.write(data)
            if data or self._feed():
                self.notify()
        except RingError as problem:
            self._broken = True
            self.warn(f"the paravirtual console is cut off: {problem}")

    def receive(self, data: bytes) -> None:
        """Bytes from outside; what does not fit waits."""
        self._waiting += data
        if self._broken:
            return
        try:
            if self._feed():
                self.notify()
        except RingError as problem:
            self._broken = True
            self.warn(f"the paravirtual console is cut off: {problem}")

    def _feed(self) -> int:
        count = self._input.give(self._waiting) if self._waiting else 0
        self._waiting = self._waiting[count:]
        return count
