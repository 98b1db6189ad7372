"""The register file that gdb is shown, against what gdb's documentation says of it."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.state import FLAG_VM, Segment, VirtualCpu
from hvemu.observers.gdb_registers import SIZES, TARGET_XML, read_registers, write_register

GENERAL = "eax ecx edx ebx esp ebp esi edi eip eflags cs ss ds es fs gs".split()
NAMES = [*GENERAL, *(f"st{n}" for n in range(8)), *"fctrl fstat ftag fiseg fioff foseg fooff fop".split()]
NUMBER = {name: number for number, name in enumerate(NAMES)}
ONE, ZERO, INFINITY = (bytes.fromhex(text) for text in ("0000000000000080ff3f", "00" * 10, "0000000000000080ff7f"))


def machine_state() -> VirtualCpu:
    """Every register another value; on the x87 stack of three 1, 0 and infinity."""
    image = bytearray(512)
    image[0:24] = bytes.fromhex("7f03 0028 e000 9a05 11111111 2222 0000 33333333 4444 0000")
    for index, value in enumerate((ONE, ZERO, INFINITY)):
        image[32 + 16 * index : 42 + 16 * index] = value
    return VirtualCpu(
        gprs=list(range(0x100, 0x108)),
        instruction_pointer=0xC010_0000,
        flags=0x246,
        segments=[Segment(selector, 0, 0xFFFF_FFFF, 0) for selector in (0xE5, 0xC5, 0x55, 0xD5, 0xF5, 0x65)],
        fpu=bytes(image),
    )


def value(cpu: VirtualCpu, name: str) -> int:
    """A register as a number."""
    return int.from_bytes(read_registers(cpu)[NUMBER[name]], "little")


def test_the_description_has_the_registers_that_gdb_demands_in_its_order() -> None:
    """Names and sizes of org.gnu.gdb.i386.core; nothing in it needs an escape on the way."""
    root = ElementTree.fromstring(TARGET_XML)
    assert ("i386", "org.gnu.gdb.i386.core") == (root.findtext("architecture"), root.find("feature").get("name"))
    registers = list(root.iter("reg"))
    assert NAMES == [register.get("name") for register in registers]
    assert list(SIZES) == [int(register.get("bitsize")) // 8 for register in registers]
    assert not set(TARGET_XML) & set(b"#$}*")


def test_general_registers_and_selectors_are_in_gdbs_order() -> None:
    """Which is not the processor's for the segments."""
    cpu = machine_state()
    assert list(range(0x100, 0x108)) == [value(cpu, name) for name in NAMES[:8]]
    assert (0xC010_0000, 0x246) == (value(cpu, "eip"), value(cpu, "eflags"))
    assert [0xC5, 0x55, 0xD5, 0xE5, 0xF5, 0x65] == [value(cpu, name) for name in "cs ss ds es fs gs".split()]


def test_x87_registers_come_from_the_fxsave_image() -> None:
    """With the full tag word, which that image lacks: 1 is valid, 0 is zero, infinity is special, the rest empty."""
    cpu = machine_state()
    assert [ONE, ZERO, INFINITY] == read_registers(cpu)[16:19]
    expected = {"fctrl": 0x37F, "fstat": 0x2800, "ftag": 0b10_01_00_11_11_11_11_11, "fop": 0x59A}
    expected |= {"fioff": 0x11111111, "fiseg": 0x2222, "fooff": 0x33333333, "foseg": 0x4444}
    assert expected == {name: value(cpu, name) for name in expected}


def test_without_x87_state_its_registers_have_no_value() -> None:
    """gdb shows them as unavailable, and cannot write them."""
    cpu = machine_state()
    cpu.fpu = b""
    assert [b""] * 16 == read_registers(cpu)[16:]
    with pytest.raises(ValueError, match="cannot be written"):
        write_register(cpu, NUMBER["fctrl"], bytes(4))


@given(name=st.sampled_from([name for name in NAMES if name not in ("eflags", "ftag")]), data=st.data())
def test_what_is_written_is_read_back_and_nothing_else_changes(name: str, data: st.DataObject) -> None:
    """Except selectors, which only the guest can load. Sixteen bits of an x87 control register exist."""
    cpu = machine_state()
    before, number = read_registers(cpu), NUMBER[name]
    size = 2 if name in ("fctrl", "fiseg", "foseg", "fop") else SIZES[number]
    new = data.draw(st.binary(min_size=size, max_size=size)).ljust(SIZES[number], b"\0")
    if number in range(10, 16):
        if new != before[number]:
            with pytest.raises(ValueError, match="cannot be written"):
                write_register(cpu, number, new)
        assert before == read_registers(cpu)
        return
    if name == "fstat":
        new = new[:1] + before[number][1:]  # the rest holds the top of the stack, by which tags are found
    write_register(cpu, number, new)
    before[number] = new
    if number in range(16, 24):
        before[NUMBER["ftag"]] = read_registers(cpu)[NUMBER["ftag"]]
    assert before == read_registers(cpu)


@given(flags=st.integers(0, 0xFFFF_FFFF))
def test_flags_that_do_not_exist_stay_as_they_are(flags: int) -> None:
    """So does VM: with it the segments would have to change."""
    cpu = machine_state()
    write_register(cpu, NUMBER["eflags"], flags.to_bytes(4, "little"))
    assert (flags & 0x3F7FD5 & ~FLAG_VM) | 2 == cpu.flags


def test_a_tag_that_is_written_says_only_empty_or_not() -> None:
    """The kinds follow from the contents."""
    cpu = machine_state()
    write_register(cpu, NUMBER["ftag"], (0x3FFF).to_bytes(4, "little"))
    assert (0x80, 0b10_11_11_11_11_11_11_11) == (cpu.fpu[4], value(cpu, "ftag"))


def test_a_new_instruction_pointer_wakes_a_halted_guest() -> None:
    """It has been told where to go on."""
    cpu = machine_state()
    cpu.halted = True
    write_register(cpu, NUMBER["eip"], read_registers(cpu)[NUMBER["eip"]])
    assert cpu.halted
    write_register(cpu, NUMBER["eip"], bytes(4))
    assert not cpu.halted


@pytest.mark.parametrize(("number", "size"), [(0, 0), (0, 3), (0, 5), (16, 4), (31, 10), (32, 4), (1000, 4)])
def test_a_register_has_its_size(number: int, size: int) -> None:
    """Others are refused."""
    with pytest.raises(ValueError, match="does not have"):
        write_register(machine_state(), number, bytes(size))
