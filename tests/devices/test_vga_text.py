"""The VGA's text mode: CRTC, attribute flip-flop, palette, retrace, and the picture."""

import pytest

from hvemu.devices.vga_text import VgaText, render_text
from hvemu.vocabulary.addresses import GuestPhysical
from hvemu.vocabulary.machine_map import VGA_TEXT_BUFFER

from .fakes import FakeClock, FakeMemory

FRAME = 449 * 31_778


class Desk:
    """A VGA with its text buffer."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = FakeMemory()
        self.vga = VgaText(clock=self.clock)

    def out(self, port: int, value: int) -> None:
        self.vga.write(port - 0x3B0, 1, value)

    def inp(self, port: int) -> int:
        return self.vga.read(port - 0x3B0, 1)

    def crtc(self, index: int, value: int) -> None:
        self.out(0x3D4, index)
        self.out(0x3D5, value)

    def put_text(self, text: str, at: int = 0, attribute: int = 0x07) -> None:
        cells = b"".join(bytes((ord(character), attribute)) for character in text)
        self.memory.write(GuestPhysical(VGA_TEXT_BUFFER + 2 * at), cells)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_screen_is_80_by_25(desk: Desk) -> None:
    """Spaces where nothing was written; the cursor at the top left."""
    desk.put_text("hvemu", at=80)
    screen = desk.vga.screen(desk.memory)
    assert (25, {80}, (0, 0)) == (len(screen.rows), {len(row) for row in screen.rows}, screen.cursor)
    assert [" " * 80, "hvemu".ljust(80)] == screen.rows[:2]


def test_attributes_come_with_the_characters(desk: Desk) -> None:
    """White on blue."""
    desk.put_text("ab", attribute=0x1F)
    assert b"\x1f\x1f\0" == desk.vga.screen(desk.memory).attributes[0][:3]


def test_the_cursor_follows_the_crtc(desk: Desk) -> None:
    """Registers 0Eh and 0Fh; bit 5 of 0Ah hides it."""
    desk.crtc(0x0E, 0x01)
    desk.crtc(0x0F, 0x43)
    shown = desk.vga.screen(desk.memory).cursor
    desk.crtc(0x0A, 0x20)
    assert ((4, 3), None) == (shown, desk.vga.screen(desk.memory).cursor)


def test_the_start_address_scrolls(desk: Desk) -> None:
    """Registers 0Ch and 0Dh, in characters; the buffer wraps after 32 KiB."""
    desk.put_text("second", at=80)
    desk.crtc(0x0D, 80)
    scrolled = desk.vga.screen(desk.memory).rows[0][:6]
    desk.crtc(0x0C, 0x40)
    assert ("second", "second") == (scrolled, desk.vga.screen(desk.memory).rows[0][:6])


def test_the_cursor_off_the_screen_is_not_shown(desk: Desk) -> None:
    """Some kernels park it below the last row."""
    desk.crtc(0x0E, 2000 >> 8)
    desk.crtc(0x0F, 2000 & 0xFF)
    assert desk.vga.screen(desk.memory).cursor is None


def test_code_page_437() -> None:
    """Boxes, accents, Greek, and the pictures of control codes."""
    codes = bytes((0x01, 0xC9, 0xCD, 0xBB, 0x81, 0xE0, 0x7F, 0x00, 0xFF, 0x41))
    cells = b"".join(bytes((code, 7)) for code in codes)
    assert ["☺╔═╗üα⌂  A"] == render_text(cells, columns=10, rows=1)


def test_rendering_wraps_and_survives_an_empty_buffer() -> None:
    """Start beyond the end begins again."""
    assert (["bca"], ["   "]) == (render_text(b"a\0b\0c\0", 3, 1, start=4), render_text(b"", 3, 1))


def test_crtc_registers_read_back(desk: Desk) -> None:
    """The index too; 3Bxh is silent while colour is selected."""
    desk.crtc(0x0E, 0x12)
    assert (0x12, 0x0E, 0xFF) == (desk.inp(0x3D5), desk.inp(0x3D4), desk.inp(0x3B5))


def test_monochrome_moves_the_crtc(desk: Desk) -> None:
    """Miscellaneous output bit 0."""
    desk.out(0x3C2, 0x66)
    desk.out(0x3B4, 0x0F)
    desk.out(0x3B5, 0x77)
    assert (0x77, 0xFF, 0x66) == (desk.inp(0x3B5), desk.inp(0x3D5), desk.inp(0x3CC))


def test_the_timing_registers_are_protected(desk: Desk) -> None:
    """Bit 7 of register 11h, but for the line compare bit of 7."""
    desk.crtc(0x01, 0x27)
    desk.crtc(0x07, 0x00)
    protected = desk.inp(0x3D5)
    desk.crtc(0x11, 0x0E)
    desk.crtc(0x01, 0x27)
    assert (0x0F, 40) == (protected, len(desk.vga.screen(desk.memory).rows[0]))


def test_the_attribute_flip_flop(desk: Desk) -> None:
    """Index, then data; reading 3DAh makes the next one an index again."""
    desk.out(0x3C0, 0x30)
    desk.inp(0x3DA)
    desk.out(0x3C0, 0x31)
    desk.out(0x3C0, 0x15)
    assert (0x31, 0x15) == (desk.inp(0x3C0), desk.inp(0x3C1))


def test_sequencer_and_graphics_registers_are_kept(desk: Desk) -> None:
    """Index and data pairs."""
    desk.out(0x3C4, 2)
    desk.out(0x3C5, 0x0F)
    desk.out(0x3CE, 5)
    desk.out(0x3CF, 0x40)
    assert (0x0F, 0x40, 2, 5) == (desk.inp(0x3C5), desk.inp(0x3CF), desk.inp(0x3C4), desk.inp(0x3CE))


def test_the_palette_is_written_and_read_in_threes(desk: Desk) -> None:
    """Six bits a colour; the index goes on by itself."""
    desk.out(0x3C8, 255)
    for value in (0xFF, 1, 2, 3, 4, 5):
        desk.out(0x3C9, value)
    desk.out(0x3C7, 255)
    assert [0x3F, 1, 2, 3, 4, 5] == [desk.inp(0x3C9) for _ in range(6)]
    assert (3, 1) == (desk.inp(0x3C7), desk.inp(0x3C8))


def test_retrace_follows_the_clock(desk: Desk) -> None:
    """In a line, at the end of a line, in vertical retrace, in the next frame."""
    seen = []
    for time in (0, 26_000, 401 * 31_778, 412 * 31_778, 414 * 31_778, FRAME):
        desk.clock.advance_to(time)
        seen.append(desk.inp(0x3DA))
    assert [0x00, 0x01, 0x01, 0x09, 0x01, 0x00] == seen


def test_the_buffer_is_where_the_memory_map_says(desk: Desk) -> None:
    """Graphics register 6: B0000 instead of B8000."""
    desk.memory.write(GuestPhysical(0xB0000), b"m\x07")
    desk.out(0x3CE, 6)
    desk.out(0x3CF, 0x0A)
    assert "m" == desk.vga.screen(desk.memory).rows[0][0]


def test_the_cursor_counts_from_the_start_address(desk: Desk) -> None:
    """Both are positions in the buffer."""
    desk.crtc(0x0D, 80)
    desk.crtc(0x0F, 165)
    assert (1, 5) == desk.vga.screen(desk.memory).cursor


def test_taller_characters_make_fewer_rows(desk: Desk) -> None:
    """400 lines of 32 are 12 rows; 350 lines of 14 are 25."""
    desk.crtc(0x09, 0x5F)
    twelve = len(desk.vga.screen(desk.memory).rows)
    desk.crtc(0x09, 0x4D)
    desk.crtc(0x11, 0x0E)
    desk.crtc(0x12, 0x5D)
    assert (12, 25) == (twelve, len(desk.vga.screen(desk.memory).rows))


def test_ports_of_the_window_that_do_nothing(desk: Desk) -> None:
    """They read ones; input status 0 says that a monitor is there."""
    assert (0xFF, 0xFF, 0x10) == (desk.inp(0x3C3), desk.inp(0x3D0), desk.inp(0x3C2))
