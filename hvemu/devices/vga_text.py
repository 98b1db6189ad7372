"""The registers of a VGA in 80 x 25 text mode, and the picture that it makes of the text buffer.

The chip starts as a video BIOS leaves it in mode 3. ``screen`` reads the text buffer through GuestMemory; the
buffer itself is ordinary memory. Retrace bits follow from virtual time: 449 lines, 31.5 kHz, 70 Hz.

Not emulated: graphics modes, planes, fonts, colours beyond the attribute bytes, the light pen, interrupts.
Spec: IBM VGA Technical Reference (1992), "Registers". Offsets count from port 3B0h.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from hvemu.devices.contract import Clock, GuestMemory
from hvemu.devices.saved import Flag, Number, Octets, SavedDevice
from hvemu.vocabulary.addresses import GuestPhysical

ATTRIBUTE, ATTRIBUTE_READ, MISCELLANEOUS, SEQUENCER_INDEX, SEQUENCER = 0x10, 0x11, 0x12, 0x14, 0x15
DAC_MASK, DAC_READ, DAC_WRITE, DAC_DATA = 0x16, 0x17, 0x18, 0x19
FEATURE_READ, MISCELLANEOUS_READ, GRAPHICS_INDEX, GRAPHICS = 0x1A, 0x1C, 0x1E, 0x1F
CRTC_INDEX, CRTC, STATUS = 0x04, 0x05, 0x0A  # plus 20h when the miscellaneous output selects colour

COLOUR: Final = 0b0000_0001
CURSOR_OFF: Final = 0b0010_0000
DISPLAY_DISABLED: Final = 0b0000_0001
VERTICAL_RETRACE: Final = 0b0000_1000

LINE: Final = 31_778  # nanoseconds
VISIBLE_PART: Final = 25_422  # of a line
LINES, VISIBLE_LINES, RETRACE_LINE = 449, 400, 412
WINDOWS: Final = (0xA_0000, 0xA_0000, 0xB_0000, 0xB_8000)  # by the memory map field, graphics register 6
WINDOW_SIZE: Final = 0x8000

MODE_3_CRTC: Final = bytes.fromhex("5f4f50825581bf1f004f0d0e00000000 9c8e8f281f96b9a3ff00000000000000")
MODE_3_ATTRIBUTES: Final = bytes.fromhex("000102030405140738393a3b3c3d3e3f 0c000f0800")
MODE_3_SEQUENCER: Final = bytes.fromhex("0300030002")
MODE_3_GRAPHICS: Final = bytes.fromhex("0000000000100e00ff")

CONTROL_GLYPHS: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CODE_PAGE_437: Final = CONTROL_GLYPHS + bytes(range(0x20, 0x7F)).decode() + "⌂" + bytes(range(0x80, 0xFF)).decode(
    "cp437"
) + " "  # fmt: skip


class TextScreen(NamedTuple):
    """What a person sees: rows of characters, the cursor as (row, column) or None, and the attribute bytes."""

    rows: list[str]
    cursor: tuple[int, int] | None
    attributes: list[bytes]


def render_text(memory: bytes, columns: int = 80, rows: int = 25, start: int = 0) -> list[str]:
    """The characters of a text buffer of character and attribute bytes, from character ``start``, wrapping."""
    return ["".join(CODE_PAGE_437[code] for code in row) for row in _cells(memory, columns, rows, start, attribute=0)]


def _cells(memory: bytes, columns: int, rows: int, start: int, attribute: int) -> list[bytes]:
    size = len(memory) // 2 or 1
    padded = memory if len(memory) > 1 else b"\0\0"
    return [
        bytes(padded[2 * ((start + row * columns + column) % size) + attribute] for column in range(columns))
        for row in range(rows)
    ]


class VgaText(SavedDevice):
    """One window of 48 ports, from the monochrome CRTC index to the colour status register."""

    name = "vga-text"
    layout = {
        "miscellaneous": Number(0xFF),
        "feature": Number(0xFF),
        "crtc_index": Number(0x1F),
        "crtc": Octets(32),
        "sequencer_index": Number(7),
        "sequencer": Octets(8),
        "graphics_index": Number(0xF),
        "graphics": Octets(16),
        "attribute_index": Number(0x3F),
        "attribute_data_next": Flag(),
        "attributes": Octets(32),
        "dac_mask": Number(0xFF),
        "dac_reading": Flag(),
        "dac_position": Number(767),
        "palette": Octets(768),
    }

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Mode 3."""
        self.miscellaneous = 0x67
        self.feature = 0
        self.crtc_index = self.sequencer_index = self.graphics_index = 0
        self.crtc = bytearray(MODE_3_CRTC)
        self.sequencer = bytearray(MODE_3_SEQUENCER.ljust(8, b"\0"))
        self.graphics = bytearray(MODE_3_GRAPHICS.ljust(16, b"\0"))
        self.attribute_index = 0x20
        self.attribute_data_next = False  # the flip-flop: next byte at 3C0h is data, not an index
        self.attributes = bytearray(MODE_3_ATTRIBUTES.ljust(32, b"\0"))
        self.dac_mask = 0xFF
        self.dac_reading = False
        self.dac_position = 0
        self.palette = bytearray(768)

    def read(self, offset: int, size: int) -> int:
        """A register; the status register resets the attribute flip-flop."""
        if self._of_other_screen(offset):
            return 0xFF
        where = offset & 0x1F if offset >= 0x20 else offset
        if where == STATUS:
            return self._read_status()
        reader = READERS.get(where)
        return reader(self) if reader is not None else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A register."""
        value &= 0xFF
        if self._of_other_screen(offset):
            return
        where = offset & 0x1F if offset >= 0x20 else offset
        if where == CRTC:
            self._write_crtc(self.crtc_index, value)
        elif where == CRTC_INDEX:
            self.crtc_index = value & 0x1F
        elif where == ATTRIBUTE:
            self._write_attribute(value)
        elif where == MISCELLANEOUS:
            self.miscellaneous = value
        elif where == SEQUENCER_INDEX:
            self.sequencer_index = value & 7
        elif where == SEQUENCER:
            self.sequencer[self.sequencer_index] = value
        elif where == GRAPHICS_INDEX:
            self.graphics_index = value & 0xF
        elif where == GRAPHICS:
            self.graphics[self.graphics_index] = value
        elif where == DAC_MASK:
            self.dac_mask = value
        elif where in (DAC_READ, DAC_WRITE):
            self.dac_reading = where == DAC_READ
            self.dac_position = 3 * value
        elif where == DAC_DATA:
            self.palette[self.dac_position] = value & 0x3F
            self.dac_position = (self.dac_position + 1) % 768
        elif where == STATUS:
            self.feature = value

    def screen(self, memory: GuestMemory) -> TextScreen:
        """The picture now: characters, cursor and attributes."""
        base = WINDOWS[self.graphics[6] >> 2 & 3]
        cells = memory.read(GuestPhysical(base), WINDOW_SIZE)
        columns, rows = self._columns(), self._rows()
        start = self.crtc[0x0C] << 8 | self.crtc[0x0D]
        place = (self.crtc[0x0E] << 8 | self.crtc[0x0F]) - start
        visible = not self.crtc[0x0A] & CURSOR_OFF and 0 <= place < columns * rows
        return TextScreen(
            render_text(cells, columns, rows, start),
            divmod(place, columns) if visible else None,
            _cells(cells, columns, rows, start, attribute=1),
        )

    def _of_other_screen(self, offset: int) -> bool:
        """The CRTC and the status register are at 3Bxh or at 3Dxh, by the miscellaneous output."""
        return offset < 0x10 if self.miscellaneous & COLOUR else offset >= 0x20

    def _columns(self) -> int:
        return self.crtc[0x01] + 1

    def _rows(self) -> int:
        overflow = self.crtc[0x07]
        lines = (self.crtc[0x12] | (overflow & 0b10) << 7 | (overflow & 0b100_0000) << 3) + 1
        return max(lines // ((self.crtc[0x09] & 0x1F) + 1), 1)

    def _read_status(self) -> int:
        self.attribute_data_next = False
        line, part = divmod(self._clock.now() % (LINES * LINE), LINE)
        value = DISPLAY_DISABLED if line >= VISIBLE_LINES or part >= VISIBLE_PART else 0
        return value | VERTICAL_RETRACE if RETRACE_LINE <= line < RETRACE_LINE + 2 else value

    def _write_crtc(self, index: int, value: int) -> None:
        """Bit 7 of register 11h protects the timings in 0 to 7, but for the line compare bit."""
        if self.crtc[0x11] & 0x80 and index <= 7:
            if index != 7:
                return
            value = self.crtc[7] & ~0x10 | value & 0x10
        self.crtc[index] = value

    def _write_attribute(self, value: int) -> None:
        if self.attribute_data_next:
            self.attributes[self.attribute_index & 0x1F] = value
        else:
            self.attribute_index = value & 0x3F
        self.attribute_data_next = not self.attribute_data_next

    def read_dac(self) -> int:
        """The next byte of the palette: red, green and blue in turn."""
        value = self.palette[self.dac_position]
        self.dac_position = (self.dac_position + 1) % 768
        return value


READERS: Final[dict[int, Callable[[VgaText], int]]] = {
    CRTC_INDEX: lambda vga: vga.crtc_index,
    CRTC: lambda vga: vga.crtc[vga.crtc_index],
    ATTRIBUTE: lambda vga: vga.attribute_index,
    ATTRIBUTE_READ: lambda vga: vga.attributes[vga.attribute_index & 0x1F],
    MISCELLANEOUS: lambda vga: 0b0001_0000,  # input status 0: a monitor is connected
    SEQUENCER_INDEX: lambda vga: vga.sequencer_index,
    SEQUENCER: lambda vga: vga.sequencer[vga.sequencer_index],
    DAC_MASK: lambda vga: vga.dac_mask,
    DAC_READ: lambda vga: 0b11 if vga.dac_reading else 0b00,
    DAC_WRITE: lambda vga: vga.dac_position // 3,
    DAC_DATA: lambda vga: vga.read_dac(),
    FEATURE_READ: lambda vga: vga.feature,
    MISCELLANEOUS_READ: lambda vga: vga.miscellaneous,
    GRAPHICS_INDEX: lambda vga: vga.graphics_index,
    GRAPHICS: lambda vga: vga.graphics[vga.graphics_index],
}
