"""A PS/2 keyboard at the end of its cable: answers commands, turns keys into scan codes.

Owned by i8042.py, which takes bytes with ``take`` as the wire delivers them. What people type waits in
a bounded queue; a key whose codes do not fit is dropped whole.

Not emulated: typematic repeat, scan code set 3, the LEDs (their state is kept).
Spec: IBM PS/2 Hardware Interface Technical Reference (1988), "Keyboard"; codes in scancodes.py.
"""

from collections import deque
from typing import Final

from hvemu.devices.saved import Flag, Instant, Number, Queue
from hvemu.devices.scancodes import BREAK, EXTENDED, SET_2_TO_1, break_code, make_code

ACK: Final = 0xFA
RESEND: Final = 0xFE
SELF_TEST_PASSED: Final = 0xAA
IDENTITY: Final = (0xAB, 0x83)
QUEUE_LIMIT: Final = 16 * 1024

SET_LEDS, ECHO, SCAN_CODE_SET, IDENTIFY, TYPEMATIC = 0xED, 0xEE, 0xF0, 0xF2, 0xF3
ENABLE, DISABLE, DEFAULTS, RESEND_LAST, RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF


class Keyboard:
    """Scan code set, scanning, LEDs, and the bytes that wait for the wire."""

    layout = {
        "scan_code_set": Number(2, minimum=1),
        "scanning": Flag(),
        "leds": Number(7),
        "typematic": Number(0x7F),
        "expecting": Instant(),
        "last_sent": Number(0xFF),
        "queue": Queue(QUEUE_LIMIT),
    }

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """After its self-test, as a BIOS leaves it: scanning."""
        self.last_sent = 0
        self.queue: deque[int] = deque()
        self._set_defaults()
        self.leds = 0

    def _set_defaults(self) -> None:
        self.scan_code_set = 2
        self.scanning = True
        self.typematic = 0x2B
        self.expecting: int | None = None  # the command that waits for its parameter
        self.queue.clear()

    def take(self) -> int:
        """The next byte for the wire; the caller has seen that ``queue`` is not empty."""
        self.last_sent = self.queue.popleft()
        return self.last_sent

    def key_down(self, key: str) -> bool:
        """A key goes down; False when it is not heard."""
        return self._send(make_code(key))

    def key_up(self, key: str) -> bool:
        """A key comes up; False when it is not heard."""
        return self._send(break_code(key))

    def press(self, keys: list[str]) -> bool:
        """Keys go down in order and up in reverse: all of it is heard or nothing."""
        codes = [code for key in keys for code in make_code(key)]
        return self._send(codes + [code for key in reversed(keys) for code in break_code(key)])

    def _send(self, codes: list[int]) -> bool:
        if not self.scanning or len(self.queue) + len(codes) > QUEUE_LIMIT:
            return False
        self.queue.extend(_in_set_1(codes) if self.scan_code_set == 1 else codes)
        return True

    def command(self, value: int) -> None:
        """A byte from the controller: a command, or the parameter of the last one."""
        expecting, self.expecting = self.expecting, None
        if expecting is not None and value < SET_LEDS:
            self._parameter(expecting, value)
        elif value == ECHO:
            self._reply(ECHO)
        elif value in (SET_LEDS, SCAN_CODE_SET, TYPEMATIC):
            self.expecting = value
            self._reply(ACK)
        elif value == IDENTIFY:
            self._reply(ACK, *IDENTITY)
        elif value == ENABLE:
            self.queue.clear()
            self.scanning = True
            self._reply(ACK)
        elif value in (DISABLE, DEFAULTS):
            self._set_defaults()
            self.scanning = value == DEFAULTS
            self._reply(ACK)
        elif value == RESEND_LAST:
            self._reply(self.last_sent)
        elif value == RESET:
            self.reset()
            self._reply(ACK, SELF_TEST_PASSED)
        else:
            self._reply(ACK if value >= 0xF7 else RESEND)  # F7 to FD matter only to set 3

    def _parameter(self, command: int, value: int) -> None:
        if command == SET_LEDS:
            self.leds = value & 7
        elif command == TYPEMATIC:
            self.typematic = value & 0x7F
        elif value == 0:
            self._reply(ACK, self.scan_code_set)
            return
        elif value <= 2:
            self.scan_code_set = value
        else:
            self._reply(RESEND)
            return
        self._reply(ACK)

    def _reply(self, *values: int) -> None:
        """Answers overtake what was typed."""
        self.queue.extendleft(reversed(values))
        while len(self.queue) > QUEUE_LIMIT:
            self.queue.pop()


def _in_set_1(codes: list[int]) -> list[int]:
    """Set 1 has no prefix for a release: bit 7 of the code says it."""
    converted: list[int] = []
    release = 0
    for code in codes:
        if code == BREAK:
            release = 0x80
        else:
            converted.append(SET_2_TO_1[code] | release)
            release = release if code == EXTENDED else 0
    return converted
