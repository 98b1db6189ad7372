"""The keyboard controller and its keyboard: commands, translation, typing, pacing."""

import pytest

from hvemu.devices.i8042 import BYTE_TIME, I8042
from hvemu.devices.keyboard import QUEUE_LIMIT

from .fakes import FakeCalls, FakeClock, FakeIrqLine

FULL, AUXILIARY, TIMEOUT = 0x01, 0x20, 0x40


class Desk:
    """A controller with a keyboard."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.irq1 = FakeIrqLine(self.clock)
        self.irq12 = FakeIrqLine(self.clock)
        self.reset_line = FakeCalls()
        self.a20 = FakeCalls()
        self.chip = I8042(irq1=self.irq1, irq12=self.irq12, clock=self.clock, reset_line=self.reset_line, a20=self.a20)

    def command(self, *values: int) -> None:
        """A command and its parameters."""
        self.chip.command.write(0, 1, values[0])
        for value in values[1:]:
            self.chip.data.write(0, 1, value)

    def keyboard(self, *values: int) -> None:
        for value in values:
            self.chip.data.write(0, 1, value)

    def status(self) -> int:
        return self.chip.command.read(0, 1)

    def drain(self) -> list[int]:
        """All bytes that come, at the pace of the cable."""
        read = []
        while True:
            while self.status() & FULL:
                read.append(self.chip.data.read(0, 1))
            if not self.clock.pending():
                return read
            self.clock.advance_to(self.clock.pending()[0])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_state_that_a_bios_leaves(desk: Desk) -> None:
    """Translation, IRQ 1, system flag; no mouse; A20 open."""
    desk.command(0x20)
    assert ([0x65], 0x1C) == (desk.drain(), desk.status())
    assert [(True,)] == desk.a20.calls


def test_self_tests(desk: Desk) -> None:
    """AA gives 55; both cables are in order."""
    for command in (0xAA, 0xAB, 0xA9):
        desk.command(command)
    assert [0x55, 0x00, 0x00] == desk.drain()


def test_the_command_byte_is_kept(desk: Desk) -> None:
    """And AD, AE, A7, A8 change their bits in it."""
    desk.command(0x60, 0x41)
    seen = []
    for command in (0xAD, 0xA7, 0xAE, 0xA8):
        desk.command(command)
        desk.command(0x20)
        seen += desk.drain()
    assert [0x51, 0x71, 0x61, 0x41] == seen


def test_the_status_tells_commands_from_data(desk: Desk) -> None:
    """Bit 3: the last write was to 64h; bit 2: the system flag of the command byte."""
    desk.command(0x60)
    after_command = desk.status()
    desk.chip.data.write(0, 1, 0x61)
    assert (0x1C, 0x10) == (after_command, desk.status())


def test_controller_memory(desk: Desk) -> None:
    """60 to 7F write 32 bytes, 20 to 3F read them."""
    desk.command(0x7F, 0xA5)
    desk.command(0x3F)
    assert [0xA5] == desk.drain()


def test_identify_in_set_1_and_2(desk: Desk) -> None:
    """AB 83 on the cable is AB 41 when translated."""
    desk.keyboard(0xF2)
    translated = desk.drain()
    desk.command(0x60, 0x05)
    desk.keyboard(0xF2)
    assert ([0xFA, 0xAB, 0x41], [0xFA, 0xAB, 0x83]) == (translated, desk.drain())


def test_keyboard_reset_echo_and_unknown_command(desk: Desk) -> None:
    """FF: acknowledged, then the self-test passes. EE echoes. EC is no command."""
    answers = []
    for command in (0xFF, 0xEE, 0xEC):
        desk.keyboard(command)
        answers.append(desk.drain())
    assert [[0xFA, 0xAA], [0xEE], [0xFE]] == answers


def test_keyboard_commands_with_parameters(desk: Desk) -> None:
    """LEDs and typematic rate: two acknowledgements each."""
    desk.keyboard(0xED, 0x05)
    leds = desk.drain()
    desk.keyboard(0xF3, 0x20)
    assert ([0xFA, 0xFA], 5, [0xFA, 0xFA], 0x20) == (
        leds,
        desk.chip.keyboard.leds,
        desk.drain(),
        desk.chip.keyboard.typematic,
    )


def test_scan_code_sets(desk: Desk) -> None:
    """Set 1 and 2 can be chosen and asked for; 3 is refused."""
    desk.command(0x60, 0x05)
    answers = []
    for values in ((0xF0, 1), (0xF0, 0), (0xF0, 3), (0xF0, 2)):
        desk.keyboard(*values)
        answers.append(desk.drain())
    assert [[0xFA, 0xFA], [0xFA, 0xFA, 1], [0xFA, 0xFE], [0xFA, 0xFA]] == answers


def test_a_command_instead_of_a_parameter_is_a_command(desk: Desk) -> None:
    """ED then EE: the LEDs are not set and the echo comes."""
    desk.keyboard(0xED, 0xEE)
    assert ([0xFA, 0xEE], 0) == (desk.drain(), desk.chip.keyboard.leds)


def test_a_key_is_translated_to_set_1(desk: Desk) -> None:
    """A: 1E and 9E; the arrow keeps its prefix; F7 and F11 are the odd ones."""
    codes = []
    for key in ("a", "up", "f7", "f11"):
        desk.chip.press(key)
        codes.append(desk.drain())
    assert [[0x1E, 0x9E], [0xE0, 0x48, 0xE0, 0xC8], [0x41, 0xC1], [0x57, 0xD7]] == codes


def test_untranslated_keys_are_set_2(desk: Desk) -> None:
    """With F0 before a release."""
    desk.command(0x60, 0x05)
    desk.chip.press("ctrl_right")
    assert [0xE0, 0x14, 0xE0, 0xF0, 0x14] == desk.drain()


def test_an_untranslated_keyboard_in_set_1(desk: Desk) -> None:
    """The keyboard itself sends what translation would have made."""
    desk.command(0x60, 0x05)
    desk.keyboard(0xF0, 0x01)
    desk.drain()
    desk.chip.press("delete")
    assert [0xE0, 0x53, 0xE0, 0xD3] == desk.drain()


def test_text_is_typed_on_a_us_layout(desk: Desk) -> None:
    """Shift around capitals and symbols, Enter for a line's end."""
    desk.chip.type_text("aB!\n")
    expected = [0x1E, 0x9E, 0x2A, 0x30, 0xB0, 0xAA, 0x2A, 0x02, 0x82, 0xAA, 0x1C, 0x9C]
    assert expected == desk.drain()


def test_every_printable_character_can_be_typed(desk: Desk) -> None:
    """The layout has no holes; Ctrl-C is there too."""
    text = "".join(map(chr, range(0x20, 0x7F))) + "\x03"
    assert len(text) == desk.chip.type_text(text)


def test_a_character_without_a_key_types_nothing(desk: Desk) -> None:
    """It is named, before any of the text is typed."""
    with pytest.raises(ValueError, match="'ä'"):
        desk.chip.type_text("xä")
    assert [] == desk.drain()


def test_keys_pressed_together_are_released_in_reverse(desk: Desk) -> None:
    """Ctrl-Alt-Delete."""
    desk.chip.press("ctrl-alt-delete")
    assert [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D] == desk.drain()


def test_a_key_held_and_released(desk: Desk) -> None:
    """Down and up are separate acts; an unknown key is refused by name."""
    heard = desk.chip.key_down("shift"), desk.chip.key_up("shift")
    assert ((True, True), [0x2A, 0xAA]) == (heard, desk.drain())
    with pytest.raises(ValueError, match="'any'"):
        desk.chip.key_down("any")


def test_every_byte_is_an_edge_at_the_pace_of_the_cable(desk: Desk) -> None:
    """The next byte comes a millisecond after the last, though the guest reads at once."""
    desk.chip.type_text("ab")
    desk.drain()
    assert [0, BYTE_TIME, 2 * BYTE_TIME, 3 * BYTE_TIME] == desk.irq1.edges


def test_irq1_follows_its_enable(desk: Desk) -> None:
    """A byte that waits interrupts when it is enabled."""
    desk.command(0x60, 0x44)
    desk.chip.key_down("a")
    quiet = desk.irq1.level
    desk.command(0x60, 0x45)
    assert (False, True) == (quiet, desk.irq1.level)


def test_a_disabled_keyboard_waits_and_writing_to_it_enables_it(desk: Desk) -> None:
    """AD holds the keys back; nothing is lost."""
    desk.command(0xAD)
    desk.chip.press("a")
    held = desk.drain()
    desk.command(0xAE)
    released = desk.drain()
    desk.command(0xAD)
    desk.keyboard(0xEE)
    assert ([], [0x1E, 0x9E], [0xEE]) == (held, released, desk.drain())


def test_a_keyboard_that_does_not_scan_hears_nothing(desk: Desk) -> None:
    """F5 until F4."""
    desk.keyboard(0xF5)
    desk.drain()
    deaf = desk.chip.press("a")
    desk.keyboard(0xF4)
    desk.drain()
    assert (False, True, [0x1E, 0x9E]) == (deaf, desk.chip.press("a"), desk.drain())


def test_typing_is_bounded_by_whole_keys(desk: Desk) -> None:
    """What does not fit is not heard, and no key sticks."""
    heard = desk.chip.type_text("a" * QUEUE_LIMIT)
    assert QUEUE_LIMIT // 3 == heard
    assert [0x1E, 0x9E] * heard == desk.drain()


def test_the_reset_line_can_be_pulsed(desk: Desk) -> None:
    """FE, or the output port with bit 0 clear; FF pulses nothing."""
    desk.command(0xFE)
    desk.command(0xD1, 0x02)
    desk.command(0xFF)
    assert [(), ()] == desk.reset_line.calls


def test_gate_a20(desk: Desk) -> None:
    """By the output port, which D0 reads, and by DD and DF."""
    desk.command(0xD1, 0xDD)
    desk.command(0xD0)
    closed = desk.drain()
    desk.command(0xDF)
    desk.command(0xDD)
    assert ([0x01], [(True,), (False,), (True,), (False,)]) == (closed, desk.a20.calls)


def test_the_output_buffer_can_be_written(desk: Desk) -> None:
    """D2 as if from the keyboard, D3 as if from the auxiliary port."""
    desk.command(0xD2, 0x11)
    first = desk.status() & AUXILIARY, desk.chip.data.read(0, 1)
    desk.command(0x60, 0x47)
    desk.command(0xD3, 0x5A)
    assert ((0, 0x11), AUXILIARY, 0x5A) == (first, desk.status() & AUXILIARY, desk.chip.data.read(0, 1))
    assert 1 == len(desk.irq12.edges)


def test_a_command_to_the_absent_mouse_times_out(desk: Desk) -> None:
    """FE with the time-out bit, from the auxiliary port; no acknowledgement."""
    desk.command(0xD4, 0xF2)
    assert (FULL | AUXILIARY | TIMEOUT, 0xFE) == (desk.status() & 0x61, desk.chip.data.read(0, 1))
    assert 0 == desk.status() & 0x61


def test_reading_an_empty_buffer_gives_the_last_byte(desk: Desk) -> None:
    """As the latch does."""
    desk.keyboard(0xEE)
    assert [0xEE, 0xEE] == [desk.chip.data.read(0, 1), desk.chip.data.read(0, 1)]


def test_typed_text_and_the_cable_survive_the_state(desk: Desk) -> None:
    """The rest of the text comes from the restored controller."""
    desk.chip.type_text("ab")
    first = desk.chip.data.read(0, 1)
    other = Desk()
    other.chip.data.from_state(desk.chip.data.state())
    assert ([0x1E, 0x9E, 0x30, 0xB0], [BYTE_TIME]) == ([first, *other.drain()], other.irq1.edges[:1])


def test_reset_forgets_what_was_typed(desk: Desk) -> None:
    """Power-on: nothing waits."""
    desk.chip.type_text("abc")
    desk.chip.data.reset()
    assert ([], False) == (desk.drain(), desk.irq1.level)


def test_the_output_port_shows_the_output_buffer(desk: Desk) -> None:
    """Bit 4 for the keyboard's byte, bit 5 for the auxiliary one."""
    values = []
    for command in (0xD2, 0xD3):
        desk.command(command, 0x11)
        desk.command(0xD0)
        desk.chip.data.read(0, 1)
        values.append(desk.chip.data.read(0, 1))
    assert [0x13, 0x23] == values


def test_the_input_port_says_not_locked(desk: Desk) -> None:
    """C0; and the status' bit 4."""
    desk.command(0xC0)
    assert ([0x80], 0x10) == (desk.drain(), desk.status() & 0x10)


def test_other_pulses_reset_nothing(desk: Desk) -> None:
    """Only bit 0 is the reset line, and only F0 to FF pulse."""
    for command in (0xF1, 0xFD, 0xEE):
        desk.command(command)
    assert [] == desk.reset_line.calls
    desk.command(0xF0)
    assert [()] == desk.reset_line.calls


def test_irq12_needs_its_enable(desk: Desk) -> None:
    """The command byte's bit 1."""
    desk.command(0xD3, 0x5A)
    quiet = desk.irq12.level
    desk.chip.data.read(0, 1)
    desk.command(0x60, 0x03)
    desk.command(0xD3, 0x5A)
    assert (False, True, False) == (quiet, desk.irq12.level, desk.irq1.level)


def test_a_keyboard_byte_after_an_auxiliary_one_is_the_keyboards(desk: Desk) -> None:
    """The flags belong to the byte in the buffer."""
    desk.command(0xD4, 0x00)
    desk.command(0xD2, 0x22)
    assert FULL == desk.status() & (FULL | AUXILIARY | TIMEOUT)


def test_enabling_scanning_clears_what_was_typed(desk: Desk) -> None:
    """F4 empties the keyboard's buffer; F6 sets defaults and goes on scanning."""
    desk.chip.type_text("abc")
    desk.keyboard(0xF4)
    after_enable = desk.drain()
    desk.keyboard(0xF3, 0x00, 0xF6)
    desk.drain()
    assert ([0x1E, 0xFA], 0x2B, True) == (after_enable, desk.chip.keyboard.typematic, desk.chip.press("a"))


def test_resend_and_set_3_commands(desk: Desk) -> None:
    """FE repeats the last byte; F7 to FD are acknowledged."""
    answers = []
    for command in (0xEE, 0xFE, 0xF7, 0xFD):
        desk.keyboard(command)
        answers.append(desk.drain())
    assert [[0xEE], [0xEE], [0xFA], [0xFA]] == answers


def test_answers_overtake_typing_in_a_full_queue(desk: Desk) -> None:
    """The last typed codes make room."""
    desk.chip.type_text("a" * QUEUE_LIMIT)
    desk.chip.data.read(0, 1)
    desk.keyboard(0xF2)
    assert [0xFA, 0xAB, 0x41] == desk.drain()[:3]


def test_keyboard_reset_sets_everything_back(desk: Desk) -> None:
    """LEDs, scan code set, scanning."""
    desk.command(0x60, 0x05)
    desk.keyboard(0xED, 7, 0xF0, 1, 0xF5, 0xFF)
    keyboard = desk.chip.keyboard
    assert (0, 2, True) == (keyboard.leds, keyboard.scan_code_set, keyboard.scanning)


def test_restoring_drives_the_lines_and_the_gate(desk: Desk) -> None:
    """A byte in the buffer interrupts, a closed gate is closed."""
    desk.chip.key_down("a")
    desk.command(0xDD)
    other = Desk()
    other.chip.data.from_state(desk.chip.data.state())
    assert (True, (False,)) == (other.irq1.level, other.a20.calls[-1])
