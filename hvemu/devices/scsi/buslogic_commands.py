"""The host adapter commands of a BusLogic BT-958: one table row each, and what they set and report.

Not emulated: BIOS commands, target mode, diagnostics, the EEPROM, inquiry buffers and SCAM data, all of which are
refused, and the ISA-compatible ports, which are disabled and stay so.
Spec: operation codes and replies in Linux's drivers/scsi/BusLogic.h and FreeBSD's sys/dev/buslogic/btreg.h.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from hvemu.devices.contract import GuestMemory
from hvemu.devices.saved import Flag, Number, Octets
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.buslogic_ccb import MOST_SEGMENTS, OWN_ID, TARGETS
from hvemu.devices.scsi.buslogic_mailboxes import Mailboxes
from hvemu.vocabulary.addresses import GuestPhysical

START_MAILBOX: Final = 0x02
MODEL, FIRMWARE = b"958 \0", b"507B"
AUTOSCSI: Final = 64
"""Where in the local RAM the AutoSCSI data are, of as many bytes."""
PORTS_DISABLED: Final = 6
"""Of the ISA-compatible ports; 7 means the same."""
EVERY_TARGET: Final = 0xFFFF
_BUFFER: Final = 64
_SYNCHRONOUS, _PERIOD = 0x8F, 5  # negotiated, offset 15; in units of 10 ns: Ultra


class InvalidCommand(Exception):
    """The adapter refuses the command."""


class Firmware:
    """What commands change, apart from the registers."""

    layout = {
        "legacy_luns": Flag(), "outgoing_interrupt": Flag(), "interrupts": Flag(), "isa_port": Number(7),
        "rate": Number(0xFF), "on_time": Number(0xFF), "off_time": Number(0xFF),
        "ram": Octets(256), "buffer": Octets(_BUFFER),
    }  # fmt: skip

    def __init__(self, bus: ScsiBus, memory: GuestMemory) -> None:
        self._bus, self._memory = bus, memory
        self.mailboxes = Mailboxes(memory)
        self.interrupt_line = 0
        """What firmware wrote into the interrupt line register of the PCI function."""
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.mailboxes.reset()
        self.legacy_luns = True
        """A logical unit in a command control block has three bits, not six."""
        self.outgoing_interrupt = False
        self.interrupts = True
        self.isa_port = PORTS_DISABLED
        self.rate, self.on_time, self.off_time = 0, 7, 4
        self.ram = bytearray(256)
        self.ram[AUTOSCSI : AUTOSCSI + 64] = _autoscsi()
        self.buffer = bytearray(_BUFFER)

    def targets(self) -> int:
        """A bit for each target that is there."""
        return sum(1 << target for target in self._bus.targets if target < TARGETS and target != OWN_ID)

    def units(self, first: int) -> bytes:
        """For each of eight targets, a bit for each of units 0 to 7 that is there."""
        present = self.targets()
        return bytes(
            sum(1 << lun for lun in self._bus.targets[target].units if lun < 8) if present >> target & 1 else 0
            for target in range(first, first + 8)
        )

    # What commands do; a reply is bytes

    def initialize_mailboxes(self, parameters: bytes) -> bytes:
        """24-bit mailboxes."""
        return self._place(parameters[0], int.from_bytes(parameters[1:4], "big"), wide=False)

    def initialize_extended_mailboxes(self, parameters: bytes) -> bytes:
        """32-bit mailboxes."""
        return self._place(parameters[0], int.from_bytes(parameters[1:5], "little"), wide=True)

    def _place(self, count: int, base: int, *, wide: bool) -> bytes:
        if not count:
            raise InvalidCommand
        self.mailboxes.place(count, base, wide=wide)
        return b""

    def set_outgoing_interrupt(self, parameters: bytes) -> bytes:
        """Whether a freed outgoing mailbox interrupts."""
        self.outgoing_interrupt = _flag(parameters)
        return b""

    def set_interrupts(self, parameters: bytes) -> bytes:
        """Whether the adapter drives its interrupt pin."""
        self.interrupts = _flag(parameters)
        return b""

    def set_strict(self, parameters: bytes) -> bytes:
        """Strict or aggressive round robin mode."""
        self.mailboxes.strict = _flag(parameters)
        return b""

    def set_ccb_format(self, parameters: bytes) -> bytes:
        """Three or six bits of a logical unit."""
        self.legacy_luns = not _flag(parameters)
        return b""

    def set_on_time(self, parameters: bytes) -> bytes:
        """Microseconds on the bus; only reported."""
        self.on_time = parameters[0]
        return b""

    def set_off_time(self, parameters: bytes) -> bytes:
        """Microseconds off the bus; only reported."""
        self.off_time = parameters[0]
        return b""

    def set_rate(self, parameters: bytes) -> bytes:
        """Of the host's bus; only reported."""
        self.rate = parameters[0]
        return b""

    def modify_address(self, parameters: bytes) -> bytes:
        """ISA-compatible ports can only be disabled."""
        if parameters[0] not in (PORTS_DISABLED, PORTS_DISABLED + 1):
            raise InvalidCommand
        self.isa_port = parameters[0]
        return b""

    def configuration(self, parameters: bytes) -> bytes:
        """No DMA channel; the interrupt, where it is one that an ISA adapter could have; the own identifier."""
        line = self.interrupt_line
        return bytes((0, 1 << line - 9 if line in (9, 10, 11, 12, 14, 15) else 0, OWN_ID))

    def setup(self, parameters: bytes) -> bytes:
        """Inquire Setup Information."""
        boxes, present = self.mailboxes, self.targets()
        synchronous = bytes(_SYNCHRONOUS if present >> target & 1 else 0 for target in range(TARGETS))
        reply = bytes((0b11, self.rate, self.on_time, self.off_time, boxes.count))
        reply += (boxes.base & 0xFF_FFFF).to_bytes(3, "big") + synchronous[:8] + b"\0BDF"
        reply += bytes((0xFF, present & 0xFF)) + synchronous[8:] + bytes((0, 0, 0xFF, present >> 8))
        return _of_length(reply, parameters)

    def extended_setup(self, parameters: bytes) -> bytes:
        """Inquire Extended Setup Information: 32-bit bus master, no BIOS, level-triggered; wide, SCAM, Ultra."""
        boxes = self.mailboxes
        reply = struct.pack("<BBHBIB", ord("E"), 0, MOST_SEGMENTS, boxes.count, boxes.base, 1 << 6)
        return _of_length(reply + FIRMWARE[1:] + bytes((0b11101,)), parameters)

    def pci_information(self, parameters: bytes) -> bytes:
        """The ISA-compatible port, the interrupt line; both termination bits, which are valid."""
        return bytes((self.isa_port, self.interrupt_line, 0b1000_0011, 0))

    def model(self, parameters: bytes) -> bytes:
        """Digits, filled with a space and a zero."""
        return _of_length(MODEL, parameters)

    def synchronous_periods(self, parameters: bytes) -> bytes:
        """In units of 10 ns; 0 is asynchronous or not there."""
        present = self.targets()
        return _of_length(bytes(_PERIOD if present >> target & 1 else 0 for target in range(TARGETS)), parameters)

    def store_ram(self, parameters: bytes) -> bytes:
        """Parameters are an offset, a count and the bytes; the offset wraps."""
        for index, byte in enumerate(parameters[2:]):
            self.ram[parameters[0] + index & 0xFF] = byte
        return b""

    def fetch_ram(self, parameters: bytes) -> bytes:
        """Parameters are an offset and a count; the offset wraps."""
        return bytes(self.ram[parameters[0] + index & 0xFF] for index in range(parameters[1]))

    def fill_buffer(self, parameters: bytes) -> bytes:
        """From guest memory."""
        self.buffer[:] = self._memory.read(GuestPhysical(int.from_bytes(parameters[:3], "big")), _BUFFER)
        return b""

    def empty_buffer(self, parameters: bytes) -> bytes:
        """Into guest memory."""
        self._memory.write(GuestPhysical(int.from_bytes(parameters[:3], "big")), bytes(self.buffer))
        return b""


class Row(NamedTuple):
    """A command: how many bytes of parameters it has, what it does, and how it ends."""

    parameters: int
    act: Callable[[Firmware, bytes], bytes] = lambda firmware, parameters: b""
    completes: bool = True
    """The end is told by the Command Complete bit."""
    transfers: bool = False
    """It moves guest memory, so that it takes a while."""
    more: Callable[[bytes], int] = lambda parameters: 0
    """How many bytes follow the parameters."""

    def is_complete(self, given: bytes) -> bool:
        """Whether all parameters have come."""
        return len(given) >= self.parameters and len(given) >= self.parameters + self.more(given)


ROWS: Final[Mapping[int, Row]] = {
    0x00: Row(0),  # test the command complete interrupt
    0x01: Row(4, Firmware.initialize_mailboxes),
    0x04: Row(0, lambda firmware, parameters: b"AA" + FIRMWARE[:2]),  # inquire board ID
    0x05: Row(1, Firmware.set_outgoing_interrupt, completes=False),
    0x06: Row(4),  # set SCSI selection timeout; absent targets time out at once
    0x07: Row(1, Firmware.set_on_time),
    0x08: Row(1, Firmware.set_off_time),
    0x09: Row(1, Firmware.set_rate),
    0x0A: Row(0, lambda firmware, parameters: firmware.units(0)),
    0x0B: Row(0, Firmware.configuration),
    0x0D: Row(1, Firmware.setup),
    0x1A: Row(3, Firmware.fill_buffer, transfers=True),
    0x1B: Row(3, Firmware.empty_buffer, transfers=True),
    0x1C: Row(3, Firmware.fill_buffer, transfers=True),
    0x1D: Row(3, Firmware.empty_buffer, transfers=True),
    0x1F: Row(1, lambda firmware, parameters: parameters),  # echo
    0x21: Row(1, more=lambda parameters: parameters[0]),  # set adapter options: disconnection and retries
    0x23: Row(0, lambda firmware, parameters: firmware.units(8)),
    0x24: Row(0, lambda firmware, parameters: firmware.targets().to_bytes(2, "little")),
    0x25: Row(1, Firmware.set_interrupts),
    0x81: Row(5, Firmware.initialize_extended_mailboxes),
    0x84: Row(0, lambda firmware, parameters: FIRMWARE[2:3]),
    0x85: Row(0, lambda firmware, parameters: FIRMWARE[3:4]),
    0x86: Row(0, Firmware.pci_information),
    0x8B: Row(1, Firmware.model),
    0x8C: Row(1, Firmware.synchronous_periods),
    0x8D: Row(1, Firmware.extended_setup),
    0x8F: Row(1, Firmware.set_strict),
    0x90: Row(2, Firmware.store_ram, more=lambda parameters: parameters[1]),
    0x91: Row(2, Firmware.fetch_ram, completes=False),
    0x95: Row(1, Firmware.modify_address, completes=False),
    0x96: Row(1, Firmware.set_ccb_format),
}
"""By operation code; START_MAILBOX is an affair of the registers."""


def _flag(parameters: bytes) -> bool:
    if parameters[0] > 1:
        raise InvalidCommand
    return bool(parameters[0])


def _of_length(reply: bytes, parameters: bytes) -> bytes:
    """As long as the driver has asked for."""
    return reply[: parameters[0]].ljust(parameters[0], b"\0")


def _autoscsi() -> bytes:
    """Everything that is permitted is permitted to every target; no BIOS, no SCAM."""
    data = bytearray(64)
    data[0:10] = b"FA\x40BT-958\0"
    data[10] = 1 << 2  # level-triggered
    data[11] = data[12] = 1 << 7  # DMA channel and interrupt are chosen by themselves
    data[14] = OWN_ID
    data[15] = 0b1011_0111  # both terminations, parity, fast, bus reset, active negation
    data[16:18] = bytes((7, 4))
    data[18] = 1 << 2  # extended translation
    struct.pack_into("<HHHHH", data, 19, *[EVERY_TARGET] * 5)  # enabled, wide, fast, synchronous, disconnect
    data[33] = 1 | 1 << 4  # INTA#; strict round robin mode
    struct.pack_into("<H", data, 34, EVERY_TARGET)  # Ultra
    data[41] = 32
    struct.pack_into("<H", data, 62, sum(data))
    return bytes(data)
