"""The register file that gdb is shown, against what gdb's documentation says of it."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.state import FLAG_VM, FS, GS, Segment, VirtualCpu
from hvemu.observers.gdb_registers import AMD64, I386, RegisterFile
from hvemu.vocabulary.paging import EFER_LMA, EFER_LME, canonical

GENERAL = "eax ecx edx ebx esp ebp esi edi eip eflags cs ss ds es fs gs".split()
NAMES = [*GENERAL, *(f"st{n}" for n in range(8)), *"fctrl fstat ftag fiseg fioff foseg fooff fop".split()]
NUMBER = {name: number for number, name in enumerate(NAMES)}
LONG_GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
LONG_NAMES = [*LONG_GENERAL, *NAMES[9:], "fs_base", "gs_base"]
ONE, ZERO, INFINITY = (bytes.fromhex(text) for text in ("0000000000000080ff3f", "00" * 10, "0000000000000080ff7f"))


def machine_state() -> VirtualCpu:
    """Every register another value; on the x87 stack of three 1, 0 and infinity."""
    image = bytearray(512)
    image[0:24] = bytes.fromhex("7f03 0028 e000 9a05 11111111 2222 0000 33333333 4444 0000")
    for index, value in enumerate((ONE, ZERO, INFINITY)):
        image[32 + 16 * index : 42 + 16 * index] = value
    return VirtualCpu(
        gprs=list(range(0x100, 0x110)),
        instruction_pointer=0xC010_0000,
        flags=0x246,
        segments=[Segment(selector, 0, 0xFFFF_FFFF, 0) for selector in (0xE5, 0xC5, 0x55, 0xD5, 0xF5, 0x65)],
        fpu=bytes(image),
    )


def value(cpu: VirtualCpu, name: str) -> int:
    """A register as a number."""
    return int.from_bytes(I386.read(cpu)[NUMBER[name]], "little")


def long_machine_state() -> VirtualCpu:
    """The same in long mode."""
    cpu = machine_state()
    cpu.gprs[:] = [0xA000_0000_0000_0000 + index for index in range(16)]
    cpu.efer, cpu.instruction_pointer = EFER_LMA | EFER_LME, 0xFFFF_FFFF_8010_0000
    for index in (FS, GS):
        cpu.segments[index] = cpu.segments[index]._replace(base=0xFFFF_8880_0000_0000 + index)
    return cpu


@pytest.mark.parametrize(
    ("file", "architecture", "features", "names"),
    [
        (I386, "i386", ["org.gnu.gdb.i386.core"], NAMES),
        (AMD64, "i386:x86-64", ["org.gnu.gdb.i386.core", "org.gnu.gdb.i386.segments"], LONG_NAMES),
    ],
    ids=["i386", "amd64"],
)
def test_the_description_has_the_registers_that_gdb_demands_in_its_order(
    file: RegisterFile, architecture: str, features: list[str], names: list[str]
) -> None:
    """Names and sizes of its features; nothing in it needs an escape on the way."""
    root = ElementTree.fromstring(file.description)
    assert architecture == root.findtext("architecture")
    assert features == [feature.get("name") for feature in root.iter("feature")]
    registers = list(root.iter("reg"))
    assert names == [register.get("name") for register in registers]
    assert list(file.sizes) == [int(register.get("bitsize")) // 8 for register in registers]
    assert not set(file.description) & set(b"#$}*")


def test_registers_of_64_bits_are_in_gdbs_order() -> None:
    """Which is not the processor's for these either; and the bases that a kernel keeps its data behind."""
    cpu = long_machine_state()
    values = {name: int.from_bytes(data, "little") for name, data in zip(LONG_NAMES, AMD64.read(cpu), strict=True)}
    order = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7, "r8": 8, "r15": 15}
    assert {name: 0xA000_0000_0000_0000 + index for name, index in order.items()} == {n: values[n] for n in order}
    assert (0xFFFF_FFFF_8010_0000, 0x246, 0xC5) == (values["rip"], values["eflags"], values["cs"])
    assert (0xFFFF_8880_0000_0000 + FS, 0xFFFF_8880_0000_0000 + GS) == (values["fs_base"], values["gs_base"])
    assert [AMD64.shows(cpu), I386.shows(cpu), I386.shows(machine_state())] == [True, False, True]


@given(
    name=st.sampled_from([*LONG_GENERAL, "fs_base", "gs_base", "cs", "st3", "fioff"]), value=st.integers(0, 2**80 - 1)
)
def test_a_register_of_64_bits_is_written_as_it_is_or_not_at_all(name: str, value: int) -> None:
    """An address that the CPU could not hold is refused, and outside of long mode what has more than 32 bits."""
    number = LONG_NAMES.index(name)
    new = value.to_bytes(10, "little")[: AMD64.sizes[number]]
    value = int.from_bytes(new, "little")
    for cpu in (long_machine_state(), machine_state()):
        before = AMD64.read(cpu)
        try:
            AMD64.write(cpu, number, new)
        except ValueError:
            assert before == AMD64.read(cpu)
            is_address, long_mode = name in ("rip", "fs_base", "gs_base"), bool(cpu.efer & EFER_LMA)
            assert name == "cs" or (is_address and not canonical(value)) or not long_mode
            assert long_mode or "_base" in name or name == "cs" or value >> 32
        else:
            before[number] = new
            assert [before[n] for n in range(25)] == AMD64.read(cpu)[:25]
            assert before[34:] == AMD64.read(cpu)[34:]


def test_what_the_guest_does_not_hold_is_refused() -> None:
    """Each rule by itself."""
    cpu = long_machine_state()
    for name, data in (("rip", 1 << 47), ("gs_base", 1 << 63), ("ss", 8)):
        with pytest.raises(ValueError, match=r"canonical|cannot be written"):
            AMD64.write(cpu, LONG_NAMES.index(name), data.to_bytes(8 if name != "ss" else 4, "little"))
    AMD64.write(cpu, LONG_NAMES.index("gs_base"), (0x7000_0000_0000).to_bytes(8, "little"))
    assert 0x7000_0000_0000 == cpu.segments[GS].base
    for name in ("rax", "rip", "fs_base"):
        with pytest.raises(ValueError, match=r"long mode|descriptor"):
            AMD64.write(machine_state(), LONG_NAMES.index(name), (1 << 32).to_bytes(8, "little"))


def test_general_registers_and_selectors_are_in_gdbs_order() -> None:
    """Which is not the processor's for the segments."""
    cpu = machine_state()
    assert list(range(0x100, 0x108)) == [value(cpu, name) for name in NAMES[:8]]
    assert (0xC010_0000, 0x246) == (value(cpu, "eip"), value(cpu, "eflags"))
    assert [0xC5, 0x55, 0xD5, 0xE5, 0xF5, 0x65] == [value(cpu, name) for name in "cs ss ds es fs gs".split()]


def test_x87_registers_come_from_the_fxsave_image() -> None:
    """With the full tag word, which that image lacks: 1 is valid, 0 is zero, infinity is special, the rest empty."""
    cpu = machine_state()
    assert [ONE, ZERO, INFINITY] == I386.read(cpu)[16:19]
    expected = {"fctrl": 0x37F, "fstat": 0x2800, "ftag": 0b10_01_00_11_11_11_11_11, "fop": 0x59A}
    expected |= {"fioff": 0x11111111, "fiseg": 0x2222, "fooff": 0x33333333, "foseg": 0x4444}
    assert expected == {name: value(cpu, name) for name in expected}


def test_without_x87_state_its_registers_have_no_value() -> None:
    """gdb shows them as unavailable, and cannot write them."""
    cpu = machine_state()
    cpu.fpu = b""
    assert [b""] * 16 == I386.read(cpu)[16:]
    with pytest.raises(ValueError, match="cannot be written"):
        I386.write(cpu, NUMBER["fctrl"], bytes(4))


@given(name=st.sampled_from([name for name in NAMES if name not in ("eflags", "ftag")]), data=st.data())
def test_what_is_written_is_read_back_and_nothing_else_changes(name: str, data: st.DataObject) -> None:
    """Except selectors, which only the guest can load. Sixteen bits of an x87 control register exist."""
    cpu = machine_state()
    before, number = I386.read(cpu), NUMBER[name]
    size = 2 if name in ("fctrl", "fiseg", "foseg", "fop") else I386.sizes[number]
    new = data.draw(st.binary(min_size=size, max_size=size)).ljust(I386.sizes[number], b"\0")
    if number in range(10, 16):
        if new != before[number]:
            with pytest.raises(ValueError, match="cannot be written"):
                I386.write(cpu, number, new)
        assert before == I386.read(cpu)
        return
    if name == "fstat":
        new = new[:1] + before[number][1:]  # the rest holds the top of the stack, by which tags are found
    I386.write(cpu, number, new)
    before[number] = new
    if number in range(16, 24):
        before[NUMBER["ftag"]] = I386.read(cpu)[NUMBER["ftag"]]
    assert before == I386.read(cpu)


@given(flags=st.integers(0, 0xFFFF_FFFF))
def test_flags_that_do_not_exist_stay_as_they_are(flags: int) -> None:
    """So does VM: with it the segments would have to change."""
    cpu = machine_state()
    I386.write(cpu, NUMBER["eflags"], flags.to_bytes(4, "little"))
    assert (flags & 0x3F7FD5 & ~FLAG_VM) | 2 == cpu.flags


def test_a_tag_that_is_written_says_only_empty_or_not() -> None:
    """The kinds follow from the contents."""
    cpu = machine_state()
    I386.write(cpu, NUMBER["ftag"], (0x3FFF).to_bytes(4, "little"))
    assert (0x80, 0b10_11_11_11_11_11_11_11) == (cpu.fpu[4], value(cpu, "ftag"))


def test_a_new_instruction_pointer_wakes_a_halted_guest() -> None:
    """It has been told where to go on."""
    cpu = machine_state()
    cpu.halted = True
    I386.write(cpu, NUMBER["eip"], I386.read(cpu)[NUMBER["eip"]])
    assert cpu.halted
    I386.write(cpu, NUMBER["eip"], bytes(4))
    assert not cpu.halted


@pytest.mark.parametrize(("number", "size"), [(0, 0), (0, 3), (0, 5), (16, 4), (31, 10), (32, 4), (1000, 4)])
def test_a_register_has_its_size(number: int, size: int) -> None:
    """Others are refused."""
    with pytest.raises(ValueError, match="does not have"):
        I386.write(machine_state(), number, bytes(size))
