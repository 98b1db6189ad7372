"""The PS/2 keyboard controller: a data and a command port, one keyboard, an auxiliary port with nothing in it.

The output buffer holds one byte. Bytes from the keyboard follow each other at the speed of its cable, so that
every byte is an edge on IRQ 1; the controller's own answers wait for nothing but the buffer. The chip starts
as a PC's BIOS leaves it: translation and the interrupt on, gate A20 open.

Not emulated: a mouse (commands to it time out), the keyboard lock, the password, test inputs.
Spec: IBM PS/2 Hardware Interface Technical Reference (1988), "Keyboard and Auxiliary Device Controller".
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hvemu.devices.contract import Clock, Device, DeviceState, IrqLine, NoIrq
from hvemu.devices.deadline import Deadline
from hvemu.devices.keyboard import Keyboard
from hvemu.devices.saved import (
    Due,
    Flag,
    Kind,
    Number,
    Octets,
    Queue,
    SavedDevice,
    adopt_fields,
    fields_for,
    parse_fields,
    plain_fields,
)  # fmt: skip
from hvemu.devices.scancodes import BREAK, SET_2_TO_1, keys_for

OUTPUT_FULL: Final = 0b0000_0001
SYSTEM_FLAG: Final = 0b0000_0100  # also in the command byte
LAST_WAS_COMMAND: Final = 0b0000_1000
NOT_LOCKED: Final = 0b0001_0000
AUXILIARY_OUTPUT: Final = 0b0010_0000
TIMEOUT: Final = 0b0100_0000

KEYBOARD_INTERRUPT: Final = 0b0000_0001
AUXILIARY_INTERRUPT: Final = 0b0000_0010
KEYBOARD_DISABLED: Final = 0b0001_0000
AUXILIARY_DISABLED: Final = 0b0010_0000
TRANSLATE: Final = 0b0100_0000
COMMAND_BYTE_DEFAULT: Final = TRANSLATE | AUXILIARY_DISABLED | SYSTEM_FLAG | KEYBOARD_INTERRUPT

PORT_NOT_RESET: Final = 0b01
PORT_A20: Final = 0b10

WRITE_OUTPUT_PORT, WRITE_KEYBOARD_OUTPUT, WRITE_AUXILIARY_OUTPUT, WRITE_AUXILIARY = 0xD1, 0xD2, 0xD3, 0xD4
PARAMETER_COMMANDS: Final = frozenset((*range(0x60, 0x80), 0xD1, 0xD2, 0xD3, 0xD4))
REPLIES_LIMIT: Final = 16
BYTE_TIME: Final = 1_000_000  # nanoseconds for a byte on the keyboard's cable, with the controller's work


class I8042:
    """The chip. The builder claims ``data`` (port 60h) and ``command`` (port 64h)."""

    layout: dict[str, Kind] = {
        "memory": Octets(32),
        "output_port": Number(3),
        "output": Number(0xFF),
        "status": Number(0xFF),
        "expecting": Number(0xFF),
        "replies": Queue(REPLIES_LIMIT),
        "breaking": Flag(),
        "wire": Due(),
    }

    def __init__(
        self,
        *,
        irq1: IrqLine,
        clock: Clock,
        reset_line: Callable[[], None],
        a20: Callable[[bool], None],
        irq12: IrqLine | None = None,
    ) -> None:
        self._irq1 = irq1
        self._irq12 = irq12 or NoIrq()
        self._clock = clock
        self._reset_line = reset_line
        self._a20 = a20
        self.wire = Deadline(clock, self.load)  # the cable is busy until then
        self.keyboard = Keyboard()
        self.data = DataPort(self)
        self.command = CommandPort(self)
        self.reset()

    def reset(self) -> None:
        """As a BIOS leaves it."""
        self.memory = bytearray(32)
        self.memory[0] = COMMAND_BYTE_DEFAULT
        self.output_port = PORT_A20 | PORT_NOT_RESET
        self.output = 0
        self.status = NOT_LOCKED | SYSTEM_FLAG
        self.expecting = 0  # the command that waits for its parameter; 0 is none
        self.replies: deque[int] = deque()
        self.breaking = False  # F0 was translated away and the next code is a release
        self.wire.arm(None)
        self.keyboard.reset()
        self.drive()
        self._a20(True)

    # What people do

    def key_down(self, key: str) -> bool:
        """Hold a key; names are those of scancodes.KEYS. False when the keyboard did not hear it."""
        heard = self.keyboard.key_down(key)
        self.load()
        return heard

    def key_up(self, key: str) -> bool:
        """Release a key."""
        heard = self.keyboard.key_up(key)
        self.load()
        return heard

    def press(self, keys: str) -> bool:
        """Press keys together, such as ``ctrl-alt-delete``, and release them in reverse order."""
        heard = self.keyboard.press(keys.split("-"))
        self.load()
        return heard

    def type_text(self, text: str) -> int:
        """Type on a US layout and say how many characters were heard; ValueError, before anything is typed,
        names a character that the layout lacks."""
        presses = [keys_for(character) for character in text]
        heard = sum(self.keyboard.press(keys) for keys in presses)
        self.load()
        return heard

    # What the guest does

    def read_data(self) -> int:
        """Empty the output buffer; the line falls before the next byte raises it."""
        value = self.output
        if self.status & OUTPUT_FULL:
            self.status &= ~(OUTPUT_FULL | AUXILIARY_OUTPUT | TIMEOUT)
            self.drive()
            self.load()
        return value

    def write_data(self, value: int) -> None:
        """A parameter of the last command, or a byte for the keyboard, which that enables."""
        self.status &= ~LAST_WAS_COMMAND
        expecting, self.expecting = self.expecting, 0
        if expecting == 0:
            self.memory[0] &= ~KEYBOARD_DISABLED
            self.keyboard.command(value)
            self.load()
        elif expecting < 0x80:
            self._write_memory(expecting & 0x1F, value)
        elif expecting == WRITE_OUTPUT_PORT:
            self._write_output_port(value)
        elif expecting == WRITE_KEYBOARD_OUTPUT:
            self._fill(value, 0)
        elif expecting == WRITE_AUXILIARY_OUTPUT:
            self._fill(value, AUXILIARY_OUTPUT)
        else:
            self._fill(0xFE, AUXILIARY_OUTPUT | TIMEOUT)  # nobody answers on the auxiliary cable

    def write_command(self, value: int) -> None:
        """Port 64h. What needs a parameter waits for it; unknown commands do nothing."""
        self.status |= LAST_WAS_COMMAND
        self.expecting = 0
        if value in PARAMETER_COMMANDS:
            self.expecting = value
        elif 0x20 <= value < 0x40:
            self._answer(self.memory[value & 0x1F])
        elif value in (0xA7, 0xA8):
            self._set_command_bit(AUXILIARY_DISABLED, value == 0xA7)
        elif value in (0xAD, 0xAE):
            self._set_command_bit(KEYBOARD_DISABLED, value == 0xAD)
        elif value in (0xA9, 0xAB):
            self._answer(0x00)  # the lines of either cable are in order
        elif value == 0xAA:
            self._set_command_bit(SYSTEM_FLAG, True)
            self._answer(0x55)
        elif value == 0xC0:
            self._answer(0x80)  # input port: not locked
        elif value == 0xD0:
            full = (self.status & OUTPUT_FULL) << (5 if self.status & AUXILIARY_OUTPUT else 4)
            self._answer(self.output_port | full)
        elif value in (0xDD, 0xDF):
            self._write_output_port(self.output_port & ~PORT_A20 | (PORT_A20 if value == 0xDF else 0))
        elif value >= 0xF0 and not value & PORT_NOT_RESET:  # pulse the output bits that are 0
            self._reset_line()

    def _set_command_bit(self, bit: int, on: bool) -> None:
        self._write_memory(0, self.memory[0] | bit if on else self.memory[0] & ~bit)

    def _write_memory(self, address: int, value: int) -> None:
        self.memory[address] = value
        if address == 0:
            self.status = self.status & ~SYSTEM_FLAG | value & SYSTEM_FLAG
            self.drive()
            self.load()

    def _write_output_port(self, value: int) -> None:
        self.output_port = value & PORT_A20 | PORT_NOT_RESET
        self._a20(bool(value & PORT_A20))
        if not value & PORT_NOT_RESET:
            self._reset_line()

    def _answer(self, value: int) -> None:
        """The controller's own byte, ahead of the keyboard's."""
        if len(self.replies) < REPLIES_LIMIT:
            self.replies.append(value)
        self.load()

    def load(self) -> None:
        """Fill an empty output buffer: answers first, then the keyboard when its cable has brought a byte."""
        if self.status & OUTPUT_FULL:
            return
        if self.replies:
            self._fill(self.replies.popleft(), 0)
            return
        while self.keyboard.queue and self.wire.at is None and not self.memory[0] & KEYBOARD_DISABLED:
            code = self.keyboard.take()
            if not self.memory[0] & TRANSLATE:
                self.breaking = False
            elif code == BREAK:  # set 1 has no prefix for a release: bit 7 of the code says it
                self.breaking = True
                continue
            else:
                code = SET_2_TO_1[code] | (0x80 if self.breaking else 0)
                self.breaking = False
            self.wire.arm(self._clock.now() + BYTE_TIME)
            self._fill(code, 0)
            return

    def _fill(self, value: int, flags: int) -> None:
        self.output = value
        self.status = self.status & ~(AUXILIARY_OUTPUT | TIMEOUT) | OUTPUT_FULL | flags
        self.drive()

    def drive(self) -> None:
        """The interrupt lines follow the output buffer."""
        full = bool(self.status & OUTPUT_FULL)
        auxiliary = bool(self.status & AUXILIARY_OUTPUT)
        self._irq1.set_level(full and not auxiliary and bool(self.memory[0] & KEYBOARD_INTERRUPT))
        self._irq12.set_level(full and auxiliary and bool(self.memory[0] & AUXILIARY_INTERRUPT))

    def fields(self) -> dict[str, Any]:
        """The controller's and the keyboard's registers."""
        return {**plain_fields(self, self.layout), "keyboard": plain_fields(self.keyboard, Keyboard.layout)}

    def adopt(self, raw: dict[str, Any]) -> None:
        """Become what ``fields`` gave."""
        keyboard = parse_fields(Keyboard.layout, raw.pop("keyboard", None), "keyboard")
        adopt_fields(self, parse_fields(self.layout, raw, self.data.name))
        adopt_fields(self.keyboard, keyboard)
        self.drive()
        self._a20(bool(self.output_port & PORT_A20))


class DataPort(Device):
    """Port 60h. It carries the state of the whole chip."""

    name = "i8042"

    def __init__(self, chip: I8042) -> None:
        self._chip = chip

    def read(self, offset: int, size: int) -> int:
        """Take the byte in the output buffer."""
        return self._chip.read_data()

    def write(self, offset: int, size: int, value: int) -> None:
        """A parameter, or a byte for the keyboard."""
        self._chip.write_data(value & 0xFF)

    def reset(self) -> None:
        """Reset the whole chip."""
        self._chip.reset()

    def state(self) -> DeviceState:
        """The whole chip."""
        return DeviceState(self.name, self.version, self._chip.fields())

    def from_state(self, state: DeviceState) -> None:
        """The whole chip."""
        self._chip.adopt(dict(fields_for(self, state)))


class CommandPort(SavedDevice):
    """Port 64h. Its state is with the data port."""

    name = "i8042-command"

    def __init__(self, chip: I8042) -> None:
        self._chip = chip

    def read(self, offset: int, size: int) -> int:
        """The status register."""
        return self._chip.status

    def write(self, offset: int, size: int, value: int) -> None:
        """A command."""
        self._chip.write_command(value & 0xFF)

    def reset(self) -> None:
        """The data port resets the chip."""
