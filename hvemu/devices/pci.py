"""PCI bus 0 through configuration mechanism 1, and the configuration space that every function has.

The builder claims ``address`` (CF8h) and ``data`` (CFCh), adds functions and connects the two address spaces. A byte
access at CF9h is not for PCI: the address port passes it to the reset control device, when it was given one.
The registers behind a function's BARs belong to a device of its own, whose window moves as the guest programs the BAR;
where another device has the addresses already, that one keeps them.

Not emulated: other buses, mechanism 2, special cycles, extended configuration space, expansion ROMs.
Spec: PCI Local Bus 3.0, 3.2.2.3.2 "Software generation" and chapter 6 "Configuration space".
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from hvemu.devices.bus import Bus
from hvemu.devices.contract import Device
from hvemu.devices.saved import Number, Octets, SavedDevice

ENABLE: Final = 1 << 31
COMMAND, STATUS, INTERRUPT_LINE, INTERRUPT_PIN, BAR0 = 0x04, 0x06, 0x3C, 0x3D, 0x10
COMMAND_WRITABLE: Final = 0x0547
STATUS_WRITE_1_CLEARS: Final = 0xF900
COMMAND_IO, COMMAND_MEMORY, COMMAND_BUS_MASTER = 1 << 0, 1 << 1, 1 << 2
BAR_IO: Final = 0b1
CONFIG_ADDRESS_WRITABLE: Final = 0x80FF_FFFC


class PciFunction(SavedDevice):
    """A function's 256 bytes: identity, write masks, BARs that answer sizing. Subclasses name the numbers."""

    name = "pci-function"
    widest_access = 4
    vendor_id: ClassVar[int] = 0xFFFF
    device_id: ClassVar[int] = 0xFFFF
    revision: ClassVar[int] = 0
    class_code: ClassVar[int] = 0
    """Base class, subclass and interface, as in 0x060100."""
    header_type: ClassVar[int] = 0
    interrupt_pin: ClassVar[int] = 0
    """1 is INTA#; 0 uses none."""
    layout = {"config": Octets(256)}

    def __init__(self) -> None:
        self.config = bytearray(256)
        self._writable = bytearray(256)
        self._clears = bytearray(256)  # bits that a written 1 clears
        self._bar_flags: dict[int, int] = {}
        self._behind: dict[int, tuple[int, Device]] = {}
        self.on_decode: Callable[[PciFunction], None] = lambda function: None
        """Told when the addresses that the function answers may have changed."""
        self._put(self._writable, COMMAND, 2, COMMAND_WRITABLE)
        self._put(self._clears, STATUS, 2, STATUS_WRITE_1_CLEARS)
        if self.interrupt_pin:
            self._put(self._writable, INTERRUPT_LINE, 1, 0xFF)
        self.describe()
        self.reset()

    def describe(self) -> None:
        """For subclasses: declare BARs and writable registers."""

    def reset(self) -> None:
        """Identity and defaults; BARs are unassigned."""
        self.config[:] = bytes(256)
        self.put(0x00, 2, self.vendor_id)
        self.put(0x02, 2, self.device_id)
        self.put(0x08, 4, self.class_code << 8 | self.revision)
        self.put(0x0E, 1, self.header_type)
        self.put(INTERRUPT_PIN, 1, self.interrupt_pin)
        for number, flags in self._bar_flags.items():
            self.put(BAR0 + 4 * number, 4, flags)
        for device in self.behind().values():
            device.reset()
        self.set_defaults()
        self.on_decode(self)

    def resume(self) -> None:
        """After loading a state: answer at its addresses."""
        self.on_decode(self)

    def set_defaults(self) -> None:
        """For subclasses: registers that are not zero after reset."""

    def declare_bar(self, number: int, size: int, *, is_port: bool) -> None:
        """Base address register 0 to 5 of ``size`` bytes, a power of two."""
        if size & (size - 1) or size < 4 or not 0 <= number < 6:
            raise ValueError(f"{self.name}: BAR {number} cannot have {size:#x} bytes")
        self._bar_flags[number] = BAR_IO if is_port else 0
        self._put(self._writable, BAR0 + 4 * number, 4, ~(size - 1) & 0xFFFF_FFFF)

    def put_behind(self, number: int, size: int, device: Device, *, is_port: bool) -> None:
        """Base address register ``number`` with the registers of ``device``, which are ``size`` bytes, behind it."""
        self.declare_bar(number, size, is_port=is_port)
        self._behind[number] = size, device

    def behind(self) -> dict[int, Device]:
        """The devices behind base address registers; one that is behind several is named once."""
        found: dict[int, Device] = {}
        for number, (_, device) in self._behind.items():
            if device not in found.values():
                found[number] = device
        return found

    def bars(self) -> dict[int, tuple[bool, int]]:
        """Whether each register is for ports, and its size in bytes; for firmware, which assigns them."""
        return {number: (bool(flags & BAR_IO), self._bar_size(number)) for number, flags in self._bar_flags.items()}

    def _bar_size(self, number: int) -> int:
        where = BAR0 + 4 * number
        return (~int.from_bytes(self._writable[where : where + 4], "little") + 1) & 0xFFFF_FFFF

    def windows(self) -> list[tuple[bool, int, int, Device]]:
        """What the function decodes now: whether ports, base address, size and the device."""
        command, found = self.read(COMMAND, 2), []
        for number, (size, device) in self._behind.items():
            is_port = bool(self._bar_flags[number] & BAR_IO)
            base = self.bar(number)
            if base and command & (COMMAND_IO if is_port else COMMAND_MEMORY):
                found.append((is_port, base, size, device))
        return found

    def declare_writable(self, offset: int, size: int, mask: int) -> None:
        """Let the guest change the bits of ``mask`` in a register."""
        self._put(self._writable, offset, size, mask)

    def bar(self, number: int) -> int:
        """The base address that the guest programmed, without the flag bits."""
        value = self.read(BAR0 + 4 * number, 4)
        return value & ~(0b11 if value & BAR_IO else 0b1111)

    def put(self, offset: int, size: int, value: int) -> None:
        """Set a register, whatever its write mask says."""
        self._put(self.config, offset, size, value)

    def read(self, offset: int, size: int) -> int:
        """A register of the configuration space."""
        offset &= 0xFF
        return int.from_bytes(self.config[offset : offset + size].ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Change what the masks allow, byte by byte, then tell the subclass."""
        for index in range(size):
            where, byte = (offset & 0xFF) + index, value >> 8 * index & 0xFF
            if where < 256:
                mask = self._writable[where]
                kept = self.config[where] & ~mask & ~(byte & self._clears[where])
                self.config[where] = kept | byte & mask
        self.configuration_written(offset & 0xFF, size)
        if self._behind and (offset & 0xFC) <= BAR0 + 4 * 5:
            self.on_decode(self)

    def configuration_written(self, offset: int, size: int) -> None:
        """For subclasses: a register has changed."""

    @staticmethod
    def _put(where: bytearray, offset: int, size: int, value: int) -> None:
        where[offset : offset + size] = value.to_bytes(size, "little")


class PciHost:
    """The functions of bus 0 and the two ports through which they are reached."""

    def __init__(self, *, reset_control: Device | None = None) -> None:
        self.functions: dict[tuple[int, int], PciFunction] = {}
        self.address = PciAddressPort(reset_control)
        self.data = PciDataPort(self)
        self._spaces: tuple[Bus, Bus] | None = None
        self._claimed: dict[PciFunction, list[tuple[Bus, int]]] = {}

    def connect(self, ports: Bus, memory: Bus) -> None:
        """Where the windows of functions go."""
        self._spaces = ports, memory

    def add(self, device: int, function: int, pci_function: PciFunction) -> None:
        """Put a function at 00:device.function; ValueError when the place is taken or does not exist."""
        if not (0 <= device < 32 and 0 <= function < 8):
            raise ValueError(f"there is no place 00:{device:02x}.{function} for {pci_function.name}")
        taken = self.functions.get((device, function))
        if taken is not None:
            raise ValueError(f"{pci_function.name} cannot be 00:{device:02x}.{function}: {taken.name} is there")
        self.functions[device, function] = pci_function
        pci_function.on_decode = self._decode
        self._decode(pci_function)

    def assign(self, port: int, memory: int, interrupts: Mapping[int, int]) -> None:
        """What firmware does: a place for every BAR from ``port`` and ``memory`` on, and the interrupt lines."""
        for (place, _), function in sorted(self.functions.items()):
            for number, (is_port, size) in function.bars().items():
                base = (port if is_port else memory) + size - 1 & -size
                if is_port:
                    port = base + size
                else:
                    memory = base + size
                function.write(BAR0 + 4 * number, 4, base)
                kind = COMMAND_IO if is_port else COMMAND_MEMORY
                function.write(COMMAND, 2, function.read(COMMAND, 2) | kind | COMMAND_BUS_MASTER)
            if place in interrupts and function.interrupt_pin:
                function.write(INTERRUPT_LINE, 1, interrupts[place])

    def _decode(self, function: PciFunction) -> None:
        """Move the windows of a function to where its registers say."""
        if self._spaces is None:
            return
        for bus, base in self._claimed.pop(function, []):
            bus.release(base)
        claimed = []
        for is_port, base, size, device in function.windows():
            bus = self._spaces[0 if is_port else 1]
            try:
                bus.claim(base, size, device)
            except ValueError:
                continue  # taken, or beyond the end of the space
            claimed.append((bus, base))
        if claimed:
            self._claimed[function] = claimed

    def selected(self) -> PciFunction | None:
        """The function that the address register points at."""
        address = self.address.config_address
        if not address & ENABLE or address >> 16 & 0xFF:
            return None
        return self.functions.get((address >> 11 & 31, address >> 8 & 7))


class PciAddressPort(SavedDevice):
    """CONFIG_ADDRESS: answers 32-bit accesses only."""

    name = "pci-address"
    widest_access = 4
    layout = {"config_address": Number(0xFFFF_FFFF)}

    def __init__(self, reset_control: Device | None) -> None:
        self._reset_control = reset_control
        self.config_address = 0

    def reset(self) -> None:
        """Nothing selected."""
        self.config_address = 0

    def read(self, offset: int, size: int) -> int:
        """The register, or the reset control at offset 1."""
        if size == 4 and offset == 0:
            return self.config_address
        if size == 1 and offset == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The register, or the reset control at offset 1."""
        if size == 4 and offset == 0:
            self.config_address = value & CONFIG_ADDRESS_WRITABLE
        elif size == 1 and offset == 1 and self._reset_control is not None:
            self._reset_control.write(0, 1, value)


class PciDataPort(SavedDevice):
    """CONFIG_DATA: the selected register of the selected function. Absent functions read ones."""

    name = "pci-data"
    widest_access = 4
    layout = {}

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def reset(self) -> None:
        """Reset every function, as the bus's RST# does."""
        for function in self._host.functions.values():
            function.reset()

    def read(self, offset: int, size: int) -> int:
        """Configuration read."""
        function = self._host.selected()
        if function is None:
            return (1 << 8 * size) - 1
        return function.read((self._host.address.config_address & 0xFC) + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Configuration write."""
        function = self._host.selected()
        if function is not None:
            function.write((self._host.address.config_address & 0xFC) + offset, size, value)
