"""What the firmware leaves in memory: vectors, BIOS data, the MP table, and ACPI tables that other tools can read."""

import itertools
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hvemu.loader import firmware
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary import machine_map as at

from .images import ram

IASL = shutil.which("iasl")
needs_iasl = pytest.mark.skipif(IASL is None, reason="needs iasl: apt-get install acpica-tools")


@pytest.fixture
def memory() -> GuestPhysicalMemory:
    installed = ram(1 << 20)
    firmware.install(installed)
    return installed


# ---------------------------------------------------------------------- vectors and stubs


def test_every_vector_leads_to_its_stub(memory: GuestPhysicalMemory) -> None:
    """OUT to the BIOS call port, then IRET: nothing else may lie on the stubs."""
    for vector in range(256):
        offset, segment = struct.unpack("<HH", memory.read(4 * vector, 4))
        stub = memory.read(segment * 16 + offset, 9)
        if vector == 0x16:
            assert bytes((0xE6, at.BIOS_CALL_PORT, 0x73, 4, 0xFB, 0xF4, 0xEB, 0xF8, 0xCF)) == stub
        else:
            assert bytes((0xE6, at.BIOS_CALL_PORT, 0xCF)) == stub[:3], hex(vector)
            assert vector == (segment * 16 + offset - at.BIOS_STUBS) // firmware.STUB_SIZE


def test_the_keyboard_stub_waits_and_returns(memory: GuestPhysicalMemory) -> None:
    """Its jumps lead back to the OUT and to the IRET, by a disassembler."""
    from capstone import CS_ARCH_X86, CS_MODE_16, Cs

    offset, segment = struct.unpack("<HH", memory.read(4 * 0x16, 4))
    code = memory.read(segment * 16 + offset, 9)
    lines = [f"{line.mnemonic} {line.op_str}".strip() for line in Cs(CS_ARCH_X86, CS_MODE_16).disasm(code, 0)]
    assert ["out 0xb8, al", "jae 8", "sti", "hlt", "jmp 0", "iret"] == lines


def test_the_reset_vector_leads_to_a_reset(memory: GuestPhysicalMemory) -> None:
    """A far jump out of the last paragraph, to code that writes 6 to the reset register."""
    jump, offset, segment = struct.unpack("<BHH", memory.read(0xF_FFF0, 5))
    port = at.RESET_CONTROL.to_bytes(2, "little")
    assert 0xEA == jump
    assert b"\xb0\x06\xba" + port + b"\xee\xf4" == memory.read(segment * 16 + offset, 7)


def test_the_bios_data_area(memory: GuestPhysicalMemory) -> None:
    """Ports, EBDA, equipment, memory, an empty keyboard buffer, an 80x25 screen."""

    def field(offset: int, size: int = 2) -> int:
        return int.from_bytes(memory.read(at.BIOS_DATA_AREA + offset, size), "little")

    assert (at.COM1_BASE, at.COM2_BASE, 0, 0) == tuple(field(offset) for offset in (0, 2, 4, 6))
    assert (at.EBDA_BASE >> 4, 639) == (field(0x0E), field(0x13))
    assert (1, 0b10, 0b10, 0) == (
        field(0x10) >> 1 & 1,
        field(0x10) >> 4 & 3,
        field(0x10) >> 9 & 7,
        field(0x10) & 1,
    )
    assert field(0x1A) == field(0x1C) == field(0x80) == 0x1E
    assert (3, 80, 24, 16, at.VGA_CRTC) == (field(0x49, 1), field(0x4A), field(0x84, 1), field(0x85), field(0x63))
    assert (0x0607, 0x1E, 0x3E) == (field(0x60), field(0x80), field(0x82))
    assert 1 == memory.read(at.EBDA_BASE, 1)[0]


# ---------------------------------------------------------------------- MP table


def mp_entries(memory: GuestPhysicalMemory) -> tuple[bytes, list[bytes]]:
    """The configuration table's header and its entries, found as an operating system finds them."""
    found = [
        address
        for address in range(0xF_0000, 0x10_0000, 16)
        if memory.read(address, 4) == b"_MP_" and not sum(memory.read(address, 16)) & 0xFF
    ]
    assert 1 == len(found)
    _, table, length, revision, _, *features = struct.unpack("<4sIBBB5B", memory.read(found[0], 16))
    assert (1, 4, [0] * 5) == (length, revision, features)
    size = int.from_bytes(memory.read(table + 4, 2), "little")
    content = memory.read(table, size)
    assert (b"PCMP", 0) == (content[:4], sum(content) & 0xFF)
    entries, rest = [], content[44:]
    while rest:
        step = 20 if rest[0] == 0 else 8
        entries.append(rest[:step])
        rest = rest[step:]
    return content[:44], entries


def test_the_mp_table_describes_the_board(memory: GuestPhysicalMemory) -> None:
    """One enabled boot processor, a PCI and an ISA bus, one I/O APIC, and as many entries as the header counts."""
    header, entries = mp_entries(memory)
    count, lapic = struct.unpack_from("<HI", header, 34)
    assert (len(entries), at.LAPIC_BASE) == (count, lapic)
    assert [0, 1, 1, 2] + [3] * 17 + [4, 4] == [entry[0] for entry in entries]
    assert (at.LAPIC_ID, 0b11) == (entries[0][1], entries[0][3])
    assert [b"\0PCI   ", b"\1ISA   "] == [entry[1:] for entry in entries[1:3]]
    assert (at.IOAPIC_ID, 1, at.IOAPIC_BASE) == (entries[3][1], entries[3][3], int.from_bytes(entries[3][4:], "little"))


def test_the_mp_table_routes_isa_interrupts(memory: GuestPhysicalMemory) -> None:
    """Each line to its own pin, the timer to pin 2, the cascade nowhere; ExtINT and NMI to LINT0 and LINT1."""
    _, entries = mp_entries(memory)
    routes = {entry[5]: (entry[6], entry[7]) for entry in entries if entry[0] == 3 and entry[4] == 1}
    expected = {line: (at.IOAPIC_ID, line) for line in range(16) if line != 2} | {0: (at.IOAPIC_ID, at.TIMER_GSI)}
    assert expected == routes
    pci = {entry[5] >> 2: entry[7] for entry in entries if entry[0] == 3 and entry[4] == 0}
    assert pci == at.PCI_INTERRUPTS
    assert [(3, 0), (1, 1)] == [(entry[1], entry[7]) for entry in entries if entry[0] == 4]


# ---------------------------------------------------------------------- ACPI


def tables(memory: GuestPhysicalMemory) -> dict[str, bytes]:
    """Every ACPI table, found from the RSDP; checks signatures, lengths and sums on the way."""
    found = [
        address
        for address in range(0xE_0000, 0x10_0000, 16)
        if memory.read(address, 8) == b"RSD PTR " and not sum(memory.read(address, 20)) & 0xFF
    ]
    assert [at.RSDP] == found
    addresses: dict[str, int] = {}

    def table(address: int) -> bytes:
        length = memory.read_u32(address + 4)
        content = memory.read(address, length)
        name = content[:4].decode()
        assert at.ACPI_TABLES <= address < address + length <= at.BIOS_BASE
        if name != "FACS":
            assert 0 == sum(content) & 0xFF, name
        addresses[name] = address
        return content

    root = table(memory.read_u32(at.RSDP + 16))
    contents = {"RSDT": root}
    for offset in range(36, len(root), 4):
        content = table(int.from_bytes(root[offset : offset + 4], "little"))
        contents[content[:4].decode()] = content
    description = contents["FACP"]
    contents["FACS"] = table(int.from_bytes(description[36:40], "little"))
    contents["DSDT"] = table(int.from_bytes(description[40:44], "little"))
    assert [addresses["FACS"], addresses["DSDT"]] == list(struct.unpack_from("<QQ", description, 132))
    assert 0 == addresses["FACS"] % 64
    assert all(address % 16 == 0 for address in addresses.values())
    ends = sorted((address, address + len(contents[name])) for name, address in addresses.items())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    return contents


def test_the_tables_are_found_and_their_sums_are_zero(memory: GuestPhysicalMemory) -> None:
    """RSDP, RSDT, FADT, MADT, DSDT and FACS, none over another."""
    assert {"RSDT", "FACP", "APIC", "DSDT", "FACS"} == set(tables(memory))


def test_the_fixed_description_names_the_boards_ports(memory: GuestPhysicalMemory) -> None:
    """As 32-bit fields and as generic addresses, with the lengths of the register blocks."""
    table = tables(memory)["FACP"]
    assert (244, 3) == (len(table), table[8])
    assert at.IRQ_ACPI == int.from_bytes(table[46:48], "little")
    ports = (at.ACPI_PM1_EVENT, at.ACPI_PM1_CONTROL, at.ACPI_PM_TIMER)
    assert ports == tuple(struct.unpack_from("<I", table, offset)[0] for offset in (56, 64, 76))
    assert (4, 2, 4) == (table[88], table[89], table[91])
    assert (1, 32, 0, 2, ports[0]) == struct.unpack_from("<BBBBQ", table, 148)
    assert (1, 16, 0, 2, ports[1]) == struct.unpack_from("<BBBBQ", table, 172)
    assert (1, 32, 0, 3, ports[2]) == struct.unpack_from("<BBBBQ", table, 208)
    assert (0x32, 0b11) == (table[108], int.from_bytes(table[109:111], "little"))
    assert 0b101_0010_0101 == int.from_bytes(table[112:116], "little")
    assert (1, 8, 0, 1, at.RESET_CONTROL, 6) == struct.unpack_from("<BBBBQB", table, 116)


def test_the_interrupt_description(memory: GuestPhysicalMemory) -> None:
    """Local APIC, I/O APIC, the timer's detour to pin 2, the level-triggered SCI, NMI at LINT1."""
    table = tables(memory)["APIC"]
    assert (at.LAPIC_BASE, 1) == struct.unpack_from("<II", table, 36)
    entries, rest = [], table[44:]
    while rest:
        entries.append(rest[: rest[1]])
        rest = rest[rest[1] :]
    assert [(0, 8), (1, 12), (2, 10), (2, 10), (4, 6)] == [(entry[0], entry[1]) for entry in entries]
    assert (at.LAPIC_ID, 1) == (entries[0][3], entries[0][4])
    assert (at.IOAPIC_ID, at.IOAPIC_BASE, 0) == (entries[1][2], *struct.unpack_from("<II", entries[1], 4))
    assert (0, 0, at.TIMER_GSI, 0) == struct.unpack_from("<BBIH", entries[2], 2)
    assert (0, at.IRQ_ACPI, at.IRQ_ACPI, 0b1101) == struct.unpack_from("<BBIH", entries[3], 2)
    assert (0xFF, 1) == (entries[4][2], entries[4][5])


def disassemble(name: str, content: bytes, folder: Path) -> tuple[str, str]:
    """What iasl makes of a table: its source, and what it said."""
    path = folder / f"{name.lower()}.aml"
    path.write_bytes(content)
    done = subprocess.run([str(IASL), "-d", path.name], cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert 0 == done.returncode, said
    return path.with_suffix(".dsl").read_text(), said


@needs_iasl
@pytest.mark.parametrize("name", ["FACP", "APIC", "DSDT", "FACS", "RSDT"])
def test_iasl_reads_every_table(memory: GuestPhysicalMemory, name: str, tmp_path: Path) -> None:
    """The ACPI reference implementation has nothing to complain of."""
    source, said = disassemble(name, tables(memory)[name], tmp_path)
    complaints = re.findall(r"(?i)^.*(?:error|warning|invalid|unknown|incorrect|should be).*$", said + source, re.M)
    assert [] == complaints, source


@needs_iasl
def test_iasl_compiles_the_namespace_again(memory: GuestPhysicalMemory, tmp_path: Path) -> None:
    """From the disassembled DSDT comes the same AML, without errors or warnings; it has what it should."""
    content = tables(memory)["DSDT"]
    source, _ = disassemble("DSDT", content, tmp_path)
    for words in ("Name (_S5", 'EisaId ("PNP0A03")', 'EisaId ("PNP0303")', 'EisaId ("PNP0501")', "WordBusNumber"):
        assert words in source
    done = subprocess.run(
        [str(IASL), "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert re.search(r"Compilation successful\. 0 Errors, 0 Warnings", said), said
    assert content[36:] == (tmp_path / "again.aml").read_bytes()[36:]


def test_everything_fits_where_the_memory_map_says(memory: GuestPhysicalMemory) -> None:
    """Nothing is written outside the vectors, the BIOS data, the EBDA and the ROM area."""
    assert b"\0" * (at.EBDA_BASE - 0x500) == memory.read(0x500, at.EBDA_BASE - 0x500)
    assert b"\0" * (at.ROM_BASE - 0xA_0000) == memory.read(0xA_0000, at.ROM_BASE - 0xA_0000)
