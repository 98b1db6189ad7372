"""The port of VMware's backdoor: reading it is a call. No registers, no state."""

from collections.abc import Callable
from typing import ClassVar

from hvemu.devices.saved import SavedDevice


class BackdoorPort(SavedDevice):
    """Reads of 32 bits ask ``on_call`` for their value; others float, and writes go nowhere."""

    name: ClassVar[str] = "vmware-backdoor"
    widest_access: ClassVar[int] = 4

    def __init__(self, *, on_call: Callable[[], int]) -> None:
        self._on_call = on_call

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        """A call, where it is the whole register."""
        return self._on_call() if size == 4 and offset == 0 else (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Nobody listens."""
