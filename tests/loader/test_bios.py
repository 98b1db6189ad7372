"""The BIOS services but those of disks."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import (
    CS,
    DS,
    EAX,
    EBX,
    ECX,
    EDX,
    ES,
    ESP,
    FLAG_CF,
    FLAG_ZF,
    SS,
    Segment,
)
from hvemu.loader.contract import memory_map
from hvemu.vocabulary import machine_map as at
from hvemu.vocabulary.paging import CR0_PE

from .bios_desk import BDA, BUFFER, FAIL, REGISTERS, SUCCEED, Desk
from .images import boot_sector, cdrom


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---------------------------------------------------------------------- being called


def test_only_the_stubs_are_served(desk: Desk) -> None:
    """Somebody else's OUT to the port, protected mode and addresses between stubs do nothing."""
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * 0x12, 4))
    for segment, eip, cr0 in ((0, offset, 0), (selector, offset + 1, 0), (selector, offset, CR0_PE), (selector, 0, 0)):
        desk.cpu.set_segment(CS, Segment(segment, segment << 4, 0xFFFF, 0x9B00))
        desk.cpu.set_eip(eip)
        desk.cpu.cr0 = cr0
        desk.bios.call()
        assert 0 == desk.ax
    desk.cpu.cr0 = 0
    assert 639 == desk.interrupt(0x12).ax


def test_a_service_that_does_not_exist_sets_carry(desk: Desk) -> None:
    """Without touching anything else of the caller's flags."""
    assert 0x203 == desk.interrupt(0x18, flags=0x202).flags
    assert 0x8D7 == desk.interrupt(0x15, ax=0x5300, flags=0x8D6).flags


def test_flags_are_found_where_the_stack_wraps(desk: Desk) -> None:
    """SP + 4 is taken modulo 64 KiB."""
    desk.memory.write(0x1_0000, b"\0" * 4)
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * 0x18, 4))
    desk.cpu.set_segment(SS, Segment(0x1000, 0x1_0000, 0xFFFF, 0x9300))
    desk.cpu.set_segment(CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
    desk.cpu.set_gpr(ESP, 0xFFFC)
    desk.cpu.set_eip(offset)
    desk.bios.call()
    assert 1 == desk.memory.read_u32(0x1_0000)


def test_equipment_and_base_memory(desk: Desk) -> None:
    """INT 11h and 12h read the BIOS data area."""
    assert 0x0426 == desk.interrupt(0x11).ax
    assert 639 == desk.interrupt(0x12).ax


@pytest.mark.parametrize("vector", range(0x08, 0x10))
def test_an_interrupt_of_the_first_controller_is_acknowledged(desk: Desk, vector: int) -> None:
    """Whether somebody cares about it or not."""
    desk.interrupt(vector)
    assert [(at.PIC_MASTER, 0x20)] == [
        write for write in desk.ports.written if write[0] in (at.PIC_MASTER, at.PIC_SLAVE)
    ]


@pytest.mark.parametrize("vector", range(0x70, 0x78))
def test_an_interrupt_of_the_second_controller_is_acknowledged_at_both(desk: Desk, vector: int) -> None:
    """Slave first."""
    desk.interrupt(vector)
    assert [(at.PIC_SLAVE, 0x20), (at.PIC_MASTER, 0x20)] == desk.ports.written


# ---------------------------------------------------------------------- INT 10h


def test_teletype_writes_and_moves(desk: Desk) -> None:
    """Character, carriage return, line feed, backspace; the bell is silent."""
    desk.type("Hello\r\nworld\b\bk\a!")
    assert ["Hello", "work!"] == [desk.row(row).rstrip() for row in (0, 1)]
    assert 0x0105 == desk.bda(0x50)


def test_the_cursor_of_the_screen_follows(desk: Desk) -> None:
    """CRTC registers 0Eh and 0Fh hold its cell."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0305)
    expected = [(at.VGA_CRTC, 0x0E), (at.VGA_CRTC + 1, 0), (at.VGA_CRTC, 0x0F), (at.VGA_CRTC + 1, 245)]
    assert expected == desk.ports.written


def test_teletype_wraps_and_scrolls(desk: Desk) -> None:
    """At the right edge to the next row, at the bottom everything moves up."""
    desk.number_the_rows()
    desk.interrupt(0x10, ax=0x0200, dx=0x184E)
    desk.type("xyz")
    assert ("B" * 80, "Y" * 78 + "xy", "z" + " " * 79) == (desk.row(0), desk.row(23), desk.row(24))
    assert 0x1801 == desk.bda(0x50)


def test_backspace_stops_at_the_left_edge(desk: Desk) -> None:
    """It does not climb."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0200)
    desk.type("\b\bx")
    assert "x" == desk.row(2).rstrip()


def test_a_cursor_outside_the_screen_writes_in_its_last_row_and_column(desk: Desk) -> None:
    """Nothing is written behind the screen."""
    desk.interrupt(0x10, ax=0x0200, dx=0x1E64)
    desk.type("x")
    assert (" " * 79 + "x", " " * 80) == (desk.row(23), desk.row(24))
    assert 0x1800 == desk.bda(0x50)
    desk.interrupt(0x10, ax=0x0200, dx=0xFFFF)
    desk.interrupt(0x10, ax=0x0A79, cx=1)
    assert " " * 79 + "y" == desk.row(24)


def test_cursor_position_and_shape_are_read_back(desk: Desk) -> None:
    """Functions 1, 2 and 3."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0A14)
    desk.interrupt(0x10, ax=0x0100, cx=0x2000)
    desk.interrupt(0x10, ax=0x0300, cx=0, dx=0)
    assert (0x0A14, 0x2000) == (desk.dx, desk.cx)
    assert [(at.VGA_CRTC, 0x0A), (at.VGA_CRTC + 1, 0x20)] == desk.ports.written[4:6]


def test_setting_the_mode_clears_the_screen(desk: Desk) -> None:
    """And homes the cursor; function 0Fh says 80 columns, mode 3, page 0."""
    desk.type("text")
    desk.interrupt(0x10, ax=0x0003)
    assert ("", 0, b"\x07" * 80) == (desk.row(0).rstrip(), desk.bda(0x50), desk.attributes(0))
    desk.interrupt(0x10, ax=0x0F00, bx=0xFFFF)
    assert (0x5003, 0x00FF) == (desk.ax, desk.bx)


@pytest.mark.parametrize(
    ("function", "lines", "expected"),
    [
        (6, 1, "ABDEF.GHI"),
        (6, 2, "ABEF..GHI"),
        (6, 4, "AB....GHI"),
        (6, 0, "AB....GHI"),
        (6, 200, "AB....GHI"),
        (7, 1, "AB.CDEGHI"),
        (7, 3, "AB...CGHI"),
        (7, 0, "AB....GHI"),
    ],
)
def test_scrolling_a_window(desk: Desk, function: int, lines: int, expected: str) -> None:
    """Rows 2 to 5, columns 10 to 69; the rest stays; what appears has the attribute of BH."""
    desk.number_the_rows()
    desk.interrupt(0x10, ax=function << 8 | lines, bx=0x4E00, cx=0x020A, dx=0x0545)
    assert expected == "".join(desk.row(row)[10] for row in range(9)).replace(" ", ".")
    for row in range(9):
        assert {chr(0x41 + row)} == set(desk.row(row)[:10] + desk.row(row)[70:])
        assert {desk.row(row)[10]} == set(desk.row(row)[10:70])
        inner = {0x4E} if desk.row(row)[10] == " " else {0x17}
        assert inner == set(desk.attributes(row)[10:70])


@pytest.mark.parametrize(("cx", "dx"), [(0x0500, 0x0409), (0x0009, 0x0500), (0x1900, 0xFFFF), (0x0050, 0xFFFF)])
def test_an_empty_window_is_not_scrolled(desk: Desk, cx: int, dx: int) -> None:
    """Upside down, or outside the screen."""
    desk.number_the_rows()
    before = desk.memory.read(at.VGA_TEXT_BUFFER, 0x8000)
    desk.interrupt(0x10, ax=0x0600, bx=0x0700, cx=cx, dx=dx)
    assert before == desk.memory.read(at.VGA_TEXT_BUFFER, 0x8000)


def test_reading_and_writing_cells(desk: Desk) -> None:
    """08h reads, 09h writes character and attribute, 0Ah the character alone; the cursor stays."""
    desk.interrupt(0x10, ax=0x0200, dx=0x0102)
    desk.interrupt(0x10, ax=0x0923, bx=0x001F, cx=3)
    assert ("  ### ", b"\x07\x07\x1f\x1f\x1f\x07") == (desk.row(1)[:6], desk.attributes(1)[:6])
    desk.interrupt(0x10, ax=0x0A40, bx=0x0055, cx=2)
    assert ("  @@# ", b"\x07\x07\x1f\x1f\x1f\x07") == (desk.row(1)[:6], desk.attributes(1)[:6])
    assert (0x1F40, 0x0102) == (desk.interrupt(0x10, ax=0x0800).ax, desk.bda(0x50))


def test_a_run_of_cells_ends_with_the_screen(desk: Desk) -> None:
    """Nothing behind the last cell is written."""
    desk.memory.write(at.VGA_TEXT_BUFFER + 4000, b"\xaa" * 8)
    desk.interrupt(0x10, ax=0x0200, dx=0x184F)
    desk.interrupt(0x10, ax=0x0958, bx=0x0007, cx=0xFFFF)
    assert (79 * " " + "X", b"\xaa" * 8) == (desk.row(24), desk.memory.read(at.VGA_TEXT_BUFFER + 4000, 8))


@pytest.mark.parametrize(
    ("mode", "text", "attributes", "cursor"),
    [
        (0, b"Hi!", b"\x1e\x1e\x1e", 0x0000),
        (1, b"Hi!", b"\x1e\x1e\x1e", 0x0405),
        (2, b"H\x21i\x22!\x23", b"\x21\x22\x23", 0x0000),
        (3, b"H\x21i\x22!\x23", b"\x21\x22\x23", 0x0405),
    ],
)
def test_writing_a_string(desk: Desk, mode: int, text: bytes, attributes: bytes, cursor: int) -> None:
    """Bit 0 moves the cursor, bit 1 means that attributes are in the string."""
    desk.memory.write(BUFFER, text)
    desk.interrupt(0x10, ax=0x1300 | mode, bx=0x001E, cx=3, dx=0x0402, bp=BUFFER)
    assert ("  Hi! ", attributes, cursor) == (desk.row(4)[:6], desk.attributes(4)[2:5], desk.bda(0x50))


# ---------------------------------------------------------------------- INT 14h 15h 19h


def test_the_serial_port(desk: Desk) -> None:
    """Sending goes to COM1; receiving gives what is there or a timeout; other ports time out."""
    desk.ports.values.update({at.COM1_BASE: 0x58, at.COM1_BASE + 5: 0x61, at.COM1_BASE + 6: 0xB0})
    assert 0 == desk.interrupt(0x14, ax=0x0141, dx=0).ah & 0x80
    assert [(at.COM1_BASE, 0x41)] == desk.ports.written
    assert 0x61B0 == desk.interrupt(0x14, ax=0x0300, dx=0).ax
    assert 0x0058 == desk.interrupt(0x14, ax=0x0200, dx=0).ax
    desk.ports.values[at.COM1_BASE + 5] = 0x60
    assert 0x80 == desk.interrupt(0x14, ax=0x0200, dx=0).ah & 0x80
    assert 0x80 == desk.interrupt(0x14, ax=0x0141, dx=1).ah & 0x80


def e820(desk: Desk, length: int = 20) -> Iterator[tuple[int, int, int]]:
    """Walk the memory map as an operating system does."""
    index = 0
    for _ in range(100):
        desk.cpu.set_gpr(EDX, 0x534D4150)
        desk.cpu.set_gpr(EBX, index)
        desk.cpu.set_gpr(ECX, length)
        desk.memory.write(BUFFER, b"\xaa" * 32)
        desk.interrupt(0x15, ax=0xE820, di=BUFFER)
        assert not desk.carry
        assert (0x534D4150, 20) == (desk.cpu.gpr(EAX), desk.cpu.gpr(ECX))
        assert b"\xaa" * 12 == desk.memory.read(BUFFER + 20, 12)
        yield struct.unpack("<QQI", desk.memory.read(BUFFER, 20))
        index = desk.cpu.gpr(EBX)
        if not index:
            return


@pytest.mark.parametrize("size", [1 << 20, 4 << 20, 64 << 20])
@pytest.mark.parametrize("length", [20, 24, 0x1000])
def test_the_memory_map_by_e820(size: int, length: int) -> None:
    """Every row once, then EBX is zero; longer buffers get 20 bytes."""
    assert [tuple(row) for row in memory_map(size)] == list(e820(Desk(size=size), length))


@pytest.mark.parametrize(
    ("signature", "index", "length"),
    [(0, 0, 20), (0x534D4150, 4, 20), (0x534D4150, 0, 19), (0x534D4150, 0xFFFF_FFFF, 20)],
)
def test_e820_refuses(desk: Desk, signature: int, index: int, length: int) -> None:
    """Without the signature, behind the last row, and into a buffer that is too small."""
    desk.cpu.set_gpr(EDX, signature)
    desk.cpu.set_gpr(EBX, index)
    desk.cpu.set_gpr(ECX, length)
    desk.memory.write(BUFFER, b"untouched")
    desk.interrupt(0x15, ax=0xE820, di=BUFFER, flags=FAIL)
    assert (True, 0x86, b"untouched") == (desk.carry, desk.ah, desk.memory.read(BUFFER, 9))


@pytest.mark.parametrize(
    ("size", "below", "above", "old"),
    [
        (1 << 20, 0, 0, 0),
        (4 << 20, 3072, 0, 3072),
        (16 << 20, 15360, 0, 15360),
        (17 << 20, 15360, 16, 16384),
        (64 << 20, 15360, 768, 0xFC00),
        (256 << 20, 15360, 3840, 0xFFFF),
    ],
)
def test_the_older_memory_sizes(size: int, below: int, above: int, old: int) -> None:
    """E801 counts KiB up to 16 MiB and 64 KiB above, twice; 88h counts KiB in 16 bits."""
    desk = Desk(size=size).interrupt(0x15, ax=0xE801)
    assert (False, below, above, below, above) == (desk.carry, desk.ax, desk.bx, desk.cx, desk.dx)
    desk.interrupt(0x15, ax=0x8800)
    assert (False, old) == (desk.carry, desk.ax)


def test_the_a20_gate(desk: Desk) -> None:
    """Always open, and closing it succeeds without an effect."""
    assert [False] * 3 == [desk.interrupt(0x15, ax=ax).carry for ax in (0x2400, 0x2401, 0x2403)]
    assert 3 == desk.bx
    assert 1 == desk.interrupt(0x15, ax=0x2402).ax


def test_bootstrap_again_resets_the_machine(desk: Desk) -> None:
    """INT 19h goes to the reset register."""
    desk.interrupt(0x19)
    assert [(at.RESET_CONTROL, 6)] == desk.ports.written


# ---------------------------------------------------------------------- INT 08h 1Ah


def test_ticks_are_counted_and_acknowledged(desk: Desk) -> None:
    """INT 8 counts; INT 1Ah reads."""
    for _ in range(3):
        desk.interrupt(8)
    assert [(at.PIC_MASTER, 0x20)] * 3 == desk.ports.written
    desk.interrupt(0x1A, ax=0x00FF)
    assert (0, 3, 0) == (desk.cx, desk.dx, desk.al)


def test_midnight(desk: Desk) -> None:
    """1,573,040 ticks make a day; the flag is given once."""
    desk.interrupt(0x1A, ax=0x0100, cx=0x0018, dx=0x00AF)
    assert 0x1800AF == desk.bda(0x6C, 4)
    desk.interrupt(8).interrupt(0x1A, ax=0)
    assert (0, 0, 1) == (desk.cx, desk.dx, desk.al)
    assert 0 == desk.interrupt(0x1A, ax=0).al


def test_ticks_beyond_16_bits(desk: Desk) -> None:
    """CX holds the high half."""
    desk.interrupt(0x1A, ax=0x0100, cx=0x0001, dx=0xFFFF)
    desk.interrupt(8).interrupt(0x1A, ax=0)
    assert (2, 0) == (desk.cx, desk.dx)


def test_the_clock_in_cmos(desk: Desk) -> None:
    """Time and date as the RTC holds them, in BCD."""
    desk.ports.cmos = {0x04: 0x13, 0x02: 0x37, 0x00: 0x59, 0x32: 0x20, 0x09: 0x24, 0x08: 0x12, 0x07: 0x31}
    desk.interrupt(0x1A, ax=0x0200)
    assert (False, 0x1337, 0x5900) == (desk.carry, desk.cx, desk.dx)
    desk.interrupt(0x1A, ax=0x0400)
    assert (False, 0x2024, 0x1231) == (desk.carry, desk.cx, desk.dx)
    assert desk.interrupt(0x1A, ax=0x0900, flags=FAIL).carry


# ---------------------------------------------------------------------- INT 09h 16h


def waits(desk: Desk, function: int = 0) -> bool:
    """Ask for a key; whether the stub has to halt and ask again."""
    desk.interrupt(0x16, ax=function << 8)
    return bool(desk.cpu.eflags() & FLAG_CF)


def keys(desk: Desk) -> list[int]:
    """Take all keys out of the buffer."""
    found: list[int] = []
    while not waits(desk):
        found.append(desk.ax)
    return found


def test_keys_go_through_the_buffer_in_order(desk: Desk) -> None:
    """Character in AL, scan code in AH; releasing a key does nothing."""
    desk.press(0x1E, 0x9E, 0x30, 0xB0, 0x1C, 0x9C, 0x01)
    assert [0x1E61, 0x3062, 0x1C0D, 0x011B] == keys(desk)
    assert 7 == len(desk.ports.written)


def test_without_a_key_the_stub_waits(desk: Desk) -> None:
    """Carry at the stub itself, not in the caller's flags."""
    assert (True, True) == (waits(desk), waits(desk, 0x10))
    assert SUCCEED == desk.flags
    desk.press(0x1E)
    assert not waits(desk, 0x10)


def test_looking_does_not_take(desk: Desk) -> None:
    """01h and 11h answer in the caller's zero flag, and the stub goes on."""
    for function in (0x01, 0x11):
        desk = Desk()
        assert (False, FLAG_ZF) == (waits(desk, function), desk.flags & FLAG_ZF)
        desk.press(0x1E)
        for _ in range(2):
            assert (False, 0, 0x1E61) == (waits(desk, function), desk.flags & FLAG_ZF, desk.ax)
        assert [0x1E61] == keys(desk)


def test_shift_control_and_the_locks(desk: Desk) -> None:
    """Held keys change what comes and show in the shift flags; locks toggle."""
    desk.press(0x2A, 0x1E, 0x02, 0xAA, 0x36, 0x1E, 0xB6)
    assert [0x1E41, 0x0221, 0x1E41] == keys(desk)
    desk.press(0x1D, 0x2E, 0x1E, 0x2C, 0x02, 0x29, 0x9D)
    assert [0x2E03, 0x1E01, 0x2C1A, 0x0231, 0x2960] == keys(desk)
    desk.press(0x3A, 0xBA, 0x1E, 0x02, 0x2A, 0x1E, 0xAA, 0x3A, 0x1E)
    assert [0x1E41, 0x0231, 0x1E61, 0x1E61] == keys(desk)
    for code, flag in ((0x2A, 2), (0x36, 1), (0x1D, 4), (0x38, 8)):
        desk.press(code)
        assert flag == desk.interrupt(0x16, ax=0x0200).al
        desk.press(code | 0x80)
        assert 0 == desk.interrupt(0x16, ax=0x1200).ax  # AH is the extended flags, of which none is kept
    desk.press(0x45)
    assert 0x20 == desk.interrupt(0x16, ax=0x0200).al
    assert [] == keys(desk)


def test_keys_without_a_character(desk: Desk) -> None:
    """F1 and the arrows give zero and their scan code."""
    desk.press(0x3B, 0xE0, 0x48)
    assert [0x3B00, 0x4800] == keys(desk)


def test_the_buffer_holds_fifteen_keys_and_wraps(desk: Desk) -> None:
    """One place stays free; what does not fit is lost, what was there is not."""
    for round_number in range(5):
        desk.press(*range(0x02, 0x0C), *range(0x10, 0x1A))
        taken = keys(desk)
        assert [*range(0x02, 0x0C), *range(0x10, 0x15)] == [key >> 8 for key in taken], round_number


@pytest.mark.parametrize("vector", sorted({*range(8, 0x1B), 0x70, 0xFF}))
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_caller_can_make_a_service_raise(vector: int, data: st.DataObject) -> None:
    """Any registers, any segments, any BIOS data area; and the stub's own frame is all that is certain to be used."""
    desk = Desk(boot_sector(sectors=100), size=1 << 20, disc=cdrom())
    word = st.integers(0, 0xFFFF_FFFF)
    desk.memory.write(BDA, data.draw(st.binary(min_size=256, max_size=256)))
    desk.ports.keys = data.draw(st.lists(st.integers(0, 255), max_size=3))
    functions = st.one_of(word, st.integers(0, 0x4F).map(lambda value: value << 8), st.sampled_from((0xE820, 0xE801)))
    for name, register in REGISTERS.items():
        desk.cpu.set_gpr(register, data.draw(functions if name == "ax" else word))
    desk.cpu.set_gpr(EDX, data.draw(st.one_of(word, st.sampled_from((0x80, 0xE0, 0x534D4150)))))
    for index in (DS, ES, SS):
        selector = data.draw(st.integers(0, 0xFFFF))
        desk.cpu.set_segment(index, Segment(selector, selector << 4, 0xFFFF, 0x9300))
    offset, selector = struct.unpack("<HH", desk.memory.read(4 * vector, 4))
    desk.cpu.set_segment(CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
    desk.cpu.set_eip(offset)
    desk.cpu.set_gpr(ESP, data.draw(word))
    desk.bios.call()
    assert desk.disk is not None
    assert 512 * 100 == len(desk.disk)
    assert all(0 <= value <= 0xFFFF_FFFF for value in desk.cpu.gprs)
