"""The port that the firmware stubs write to: a BIOS service is wanted. No registers, no state."""

from collections.abc import Callable
from typing import ClassVar

from hvemu.devices.saved import SavedDevice


class BiosCallPort(SavedDevice):
    """Writes call ``on_call``; reads float."""

    name: ClassVar[str] = "bios-call"

    def __init__(self, *, on_call: Callable[[], None]) -> None:
        self._on_call = on_call

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        """Nothing drives the bus."""
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A stub in the BIOS segment asks for its service."""
        self._on_call()
