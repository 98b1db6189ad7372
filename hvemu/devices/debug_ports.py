"""The single-register ports of a PC and of emulators: POST codes, debug console, debug exit, and three resets.

Each does one thing through the call that the builder gave it; ending or resetting the machine is the board's
affair, after the guest's instruction.

Not emulated: the activity lights and the password lock of port 92h; full-reset timing of CF9h.
Spec: IBM PC/AT Technical Reference (port 80h); Intel 82371AB, 4.2.5 (92h) and 4.2.8 "RC" (CF9h); the rest are
Bochs' and QEMU's conventions.
"""

from collections.abc import Callable
from typing import Final

from hvemu.devices.contract import CharacterBackend, DeviceEvent, Watcher, nobody_watches
from hvemu.devices.saved import Number, SavedDevice
from hvemu.devices.uart16550 import SINGLE_BYTES

CONSOLE_PRESENT: Final = 0xE9
FAST_RESET: Final = 0b01
A20_GATE: Final = 0b10
HARD_RESET: Final = 0b0010
RESET_CPU: Final = 0b0100


class PostPort(SavedDevice):
    """Port 80h: remembers the last code. Kernels also write it to pass time."""

    name = "post"
    layout = {"code": Number(0xFF)}

    def __init__(self, *, watcher: Watcher = nobody_watches) -> None:
        self._watcher = watcher if watcher is not nobody_watches else None
        self.code = 0

    def reset(self) -> None:
        """No code."""
        self.code = 0

    def read(self, offset: int, size: int) -> int:
        """The last code."""
        return self.code

    def write(self, offset: int, size: int, value: int) -> None:
        """A code; only a new one is worth an event."""
        if self._watcher is not None and value & 0xFF != self.code:
            self._watcher(DeviceEvent(self.name, "POST code", value & 0xFF))
        self.code = value & 0xFF


class DebugConsole(SavedDevice):
    """Port E9h: what is written is printed; reading E9h back says that it is there."""

    name = "debug-console"

    def __init__(self, *, backend: CharacterBackend) -> None:
        self._backend = backend

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        """The sign of presence."""
        return CONSOLE_PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        """A character."""
        self._backend.write(SINGLE_BYTES[value & 0xFF])


class DebugExit(SavedDevice):
    """Port F4h: the guest's verdict."""

    name = "debug-exit"
    widest_access = 4

    def __init__(self, *, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        """Nothing to read: zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the guest with this verdict."""
        self._on_exit(value & ((1 << 8 * size) - 1))


class ResetControl(SavedDevice):
    """CF9h: bit 2 going from 0 to 1 resets."""

    name = "reset-control"
    layout = {"register": Number(0xFF)}

    def __init__(self, *, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self.register = 0

    def reset(self) -> None:
        """No reset asked for."""
        self.register = 0

    def read(self, offset: int, size: int) -> int:
        """Bit 1, the kind of reset, reads back."""
        return self.register

    def write(self, offset: int, size: int, value: int) -> None:
        """Hard or soft, the machine does the same."""
        before, self.register = self.register, value & (HARD_RESET | RESET_CPU)
        if self.register & ~before & RESET_CPU:
            self._on_reset()


class SystemControlPortA(SavedDevice):
    """Port 92h: fast reset and the fast A20 gate, which is open from the start."""

    name = "system-control-a"
    layout = {"register": Number(0xFF)}

    def __init__(self, *, on_reset: Callable[[], None], a20: Callable[[bool], None]) -> None:
        self._on_reset = on_reset
        self._a20 = a20
        self.register = A20_GATE

    def reset(self) -> None:
        """The gate opens."""
        self.register = A20_GATE
        self._a20(True)

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return self.register

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 0 going from 0 to 1 resets; bit 1 is the gate."""
        before, self.register = self.register, value & (FAST_RESET | A20_GATE)
        if (before ^ self.register) & A20_GATE:
            self._a20(bool(self.register & A20_GATE))
        if self.register & ~before & FAST_RESET:
            self._on_reset()

    def resume(self) -> None:
        """Set the gate."""
        self._a20(bool(self.register & A20_GATE))
