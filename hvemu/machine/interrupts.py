"""The board's interrupt wiring: lines that fan out to both controllers, and the CPU's pins."""

from collections.abc import Callable

from hvemu.devices.contract import IrqLine
from hvemu.devices.lapic import LocalApic


class InterruptPin:
    """The CPU's INTR input. A rising level asks for the mode's attention."""

    def __init__(self) -> None:
        self.level = False
        self.attend: Callable[[], None] = lambda: None

    def set_level(self, asserted: bool) -> None:
        """Follow the local APIC's output."""
        if asserted and not self.level:
            self.level = True
            self.attend()
        else:
            self.level = asserted


class NmiPin:
    """The CPU's NMI input, an edge."""

    def __init__(self) -> None:
        self.pending = False
        self.attend: Callable[[], None] = lambda: None

    def raise_nmi(self) -> None:
        """Latch a non-maskable interrupt."""
        self.pending = True
        self.attend()


class FanOut:
    """One ISA interrupt line, seen by the 8259 pair and by the I/O APIC."""

    def __init__(self, *lines: IrqLine) -> None:
        self._lines = lines

    def set_level(self, asserted: bool) -> None:
        """Drive every connected input."""
        for line in self._lines:
            line.set_level(asserted)


class CallLine:
    """An interrupt line that calls a function with its level."""

    def __init__(self, call: Callable[[bool], None]) -> None:
        self._call = call

    def set_level(self, asserted: bool) -> None:
        """Tell the function."""
        self._call(asserted)


class LocalApicPriority:
    """CR8 of a CPU with a local APIC: the upper four bits of its task priority (SDM vol. 3A, 10.8.6.1)."""

    def __init__(self, lapic: LocalApic) -> None:
        self._lapic = lapic

    def read_priority(self) -> int:
        """MOV from CR8."""
        return self._lapic.task_priority >> 4

    def write_priority(self, value: int) -> None:
        """MOV to CR8, which clears the lower four."""
        self._lapic.task_priority = value << 4
