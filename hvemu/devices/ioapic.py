"""The I/O APIC: 24 inputs, each with a redirection entry that says which vector to send to the local APIC, and how.

The board calls ``set_irq`` with the logical level (asserted or not), so the polarity bit is stored and not
applied. Every message goes to the one processor, whatever its destination field says. Messages take no time:
the delivery status always reads idle. An edge that arrives while its entry is masked is lost.

Not emulated: the EOI register (version 20h and later), the APIC bus and its arbitration.
Spec: Intel 82093AA (290566-001), chapter 3.
"""

from collections.abc import Callable
from typing import Final

from hvemu.devices.saved import Number, Numbers, SavedDevice
from hvemu.vocabulary.machine_map import IOAPIC_ID, IOAPIC_PINS

IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10
VERSION: Final = (IOAPIC_PINS - 1) << 16 | 0x11

REMOTE_IRR: Final = 1 << 14
LEVEL: Final = 1 << 15
MASKED: Final = 1 << 16
WRITABLE_LOW: Final = 0x0001_AFFF  # all but delivery status and remote IRR
WRITABLE_HIGH: Final = 0xFF00_0000
LEVEL_MODES: Final = (0, 1)  # fixed and lowest priority; the other delivery modes are always edges


class IoApic(SavedDevice):
    """An index register at offset 0 and a data window at 10h."""

    name = "ioapic"
    widest_access = 4
    layout = {
        "selected": Number(0xFF),
        "identifier": Number(15),
        "low": Numbers(IOAPIC_PINS, 0x1_FFFF),
        "high": Numbers(IOAPIC_PINS, 0xFFFF_FFFF),
        "levels": Number((1 << IOAPIC_PINS) - 1),
    }

    def __init__(self, *, deliver: Callable[[int, bool, int], None], identifier: int = IOAPIC_ID) -> None:
        self._deliver = deliver
        self._initial_identifier = identifier
        self.levels = 0
        self.reset()

    def reset(self) -> None:
        """Everything masked. The inputs keep their levels."""
        self.selected = 0
        self.identifier = self._initial_identifier
        self.low = [MASKED] * IOAPIC_PINS
        self.high = [0] * IOAPIC_PINS

    def read(self, offset: int, size: int) -> int:
        """The index, or the register that it selects."""
        where = offset & ~3
        value = self.selected if where == IOREGSEL else self._read_register() if where == IOWIN else 0
        return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Select by any width; the window wants 32 bits."""
        if offset == IOREGSEL:
            self.selected = value & 0xFF
        elif offset == IOWIN and size == 4:
            self._write_register(value & 0xFFFF_FFFF)

    def _read_register(self) -> int:
        register = self.selected
        if register >= IOREDTBL:
            pin = register - IOREDTBL >> 1
            if pin >= IOAPIC_PINS:
                return 0
            return self.high[pin] if register & 1 else self.low[pin]
        if register == IOAPICVER:
            return VERSION
        return self.identifier << 24 if register in (IOAPICID, IOAPICARB) else 0

    def _write_register(self, value: int) -> None:
        register = self.selected
        if register == IOAPICID:
            self.identifier = value >> 24 & 15
        elif IOREDTBL <= register < IOREDTBL + 2 * IOAPIC_PINS:
            pin = register - IOREDTBL >> 1
            if register & 1:
                self.high[pin] = value & WRITABLE_HIGH
            else:
                self._write_entry(pin, value & WRITABLE_LOW)

    def _write_entry(self, pin: int, value: int) -> None:
        """Changing an entry to edge clears its remote IRR, which is how drivers end a level without an EOI."""
        self.low[pin] = value | (self.low[pin] & REMOTE_IRR if value & LEVEL else 0)
        self._offer_level(pin)

    def set_irq(self, pin: int, asserted: bool) -> None:
        """Input ``pin`` changes."""
        bit = 1 << pin
        if asserted == bool(self.levels & bit):
            return
        self.levels ^= bit
        if not asserted:
            return
        entry = self.low[pin]
        if self._is_level(entry):
            self._offer_level(pin)
        elif not entry & MASKED:
            self._deliver(entry & 0xFF, False, entry >> 8 & 7)

    def end_of_interrupt(self, vector: int) -> None:
        """The local APIC ended a level-triggered vector: inputs that are still asserted send it again."""
        for pin, entry in enumerate(self.low):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self.low[pin] = entry & ~REMOTE_IRR
                self._offer_level(pin)

    def _offer_level(self, pin: int) -> None:
        entry = self.low[pin]
        if self.levels >> pin & 1 and self._is_level(entry) and not entry & (MASKED | REMOTE_IRR):
            self.low[pin] = entry | REMOTE_IRR
            self._deliver(entry & 0xFF, True, entry >> 8 & 7)

    @staticmethod
    def _is_level(entry: int) -> bool:
        return bool(entry & LEVEL) and entry >> 8 & 7 in LEVEL_MODES


class PinLine:
    """One input of an I/O APIC as an IrqLine."""

    def __init__(self, ioapic: IoApic, pin: int) -> None:
        self._ioapic = ioapic
        self._pin = pin

    def set_level(self, asserted: bool) -> None:
        """Set the input pin."""
        self._ioapic.set_irq(self._pin, asserted)
