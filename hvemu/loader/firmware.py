"""What a PC's firmware leaves in memory: interrupt vectors, BIOS data area, MP table, ACPI tables.

ACPI 6.4 chapter 5 (RSDP, RSDT, FADT, FACS, MADT, DSDT with _S5), Intel MultiProcessor Specification 1.4. Real chipset
initialisation is done by the builder.
"""

import struct
from collections.abc import Sequence
from typing import Final

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary import machine_map as at

_OEM: Final = b"HVEMU "
_TABLE_ID: Final = b"HVEMUPC "
STUB_SIZE: Final = 4
_PCI_BUS, _ISA_BUS = 0, 1
_RESTART: Final = at.BIOS_STUBS + 0x500


def install(memory: GuestPhysicalMemory) -> None:
    """Write everything; call once before the guest is loaded."""
    _vectors(memory)
    _bios_data_area(memory)
    _multiprocessor_table(memory)
    _acpi(memory)


def _vectors(memory: GuestPhysicalMemory) -> None:
    """Each vector points at ``out BIOS_CALL_PORT, al; iret`` in the BIOS segment, four bytes a vector."""
    stub = bytes((0xE6, at.BIOS_CALL_PORT, 0xCF, 0x90))
    base = at.BIOS_STUBS - at.BIOS_BASE
    memory.write(at.BIOS_STUBS, stub * 256)
    for vector in range(256):
        memory.write(at.IVT_BASE + vector * 4, struct.pack("<HH", base + vector * STUB_SIZE, at.BIOS_SEGMENT))
    # INT 16h waits with HLT: out port, al / jnc +4 / sti / hlt / jmp back / iret
    wait = at.BIOS_STUBS + 0x400
    memory.write(wait, bytes((0xE6, at.BIOS_CALL_PORT, 0x73, 0x04, 0xFB, 0xF4, 0xEB, 0xF8, 0xCF)))
    memory.write(at.IVT_BASE + 0x16 * 4, struct.pack("<HH", base + 0x400, at.BIOS_SEGMENT))
    # The reset vector jumps behind the stubs, to: mov al, 6 / mov dx, RESET_CONTROL / out dx, al / hlt
    memory.write(_RESTART, bytes((0xB0, 0x06, 0xBA, *at.RESET_CONTROL.to_bytes(2, "little"), 0xEE, 0xF4)))
    memory.write(0xFFFF0, b"\xea" + struct.pack("<HH", _RESTART - at.BIOS_BASE, at.BIOS_SEGMENT) + b"01/01/00")


def _bios_data_area(memory: GuestPhysicalMemory) -> None:
    area = bytearray(256)
    struct.pack_into("<HHHH", area, 0x00, at.COM1_BASE, at.COM2_BASE, 0, 0)
    struct.pack_into("<H", area, 0x0E, at.EBDA_BASE >> 4)
    struct.pack_into("<H", area, 0x10, 0x0426)  # two serial ports, 80x25 colour, mouse-less, FPU
    struct.pack_into("<H", area, 0x13, at.EBDA_BASE >> 10)
    struct.pack_into("<HHHH", area, 0x1A, 0x1E, 0x1E, 0, 0)
    area[0x49] = 3
    struct.pack_into("<H", area, 0x4A, 80)
    struct.pack_into("<H", area, 0x4C, 0x1000)
    struct.pack_into("<H", area, 0x60, 0x0607)
    struct.pack_into("<H", area, 0x63, at.VGA_CRTC)
    struct.pack_into("<HH", area, 0x80, 0x1E, 0x3E)
    area[0x84] = 24
    struct.pack_into("<H", area, 0x85, 16)
    memory.write(at.BIOS_DATA_AREA, bytes(area))
    memory.write(at.EBDA_BASE, bytes((1,)))


def _checksummed(table: bytes, offset: int) -> bytes:
    value = bytearray(table)
    value[offset] = 0
    value[offset] = -sum(value) & 0xFF
    return bytes(value)


def _multiprocessor_table(memory: GuestPhysicalMemory) -> None:
    entries = [struct.pack("<BBBBIIQ", 0, at.LAPIC_ID, 0x14, 3, 0x0673, 0x0781_ABFD, 0)]
    entries.append(struct.pack("<BB6s", 1, _PCI_BUS, b"PCI   "))
    entries.append(struct.pack("<BB6s", 1, _ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, at.IOAPIC_ID, 0x11, 1, at.IOAPIC_BASE))
    for line in range(16):
        if line != at.IRQ_CASCADE:
            pin = at.TIMER_GSI if line == at.IRQ_TIMER else line
            entries.append(struct.pack("<BBHBBBB", 3, 0, 0, _ISA_BUS, line, at.IOAPIC_ID, pin))
    for device, line in at.PCI_INTERRUPTS.items():  # INTA#, as the bus says: level, active low
        entries.append(struct.pack("<BBHBBBB", 3, 0, 0, _PCI_BUS, device << 2, at.IOAPIC_ID, line))
    entries.append(struct.pack("<BBHBBBB", 4, 3, 0, _ISA_BUS, 0, 0xFF, 0))  # ExtINT to LINT0
    entries.append(struct.pack("<BBHBBBB", 4, 1, 0, _ISA_BUS, 0, 0xFF, 1))  # NMI to LINT1
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP", 44 + len(body), 4, 0, b"HVEMU   ", b"PC          ", 0, 0, len(entries), at.LAPIC_BASE, 0, 0, 0,
    )  # fmt: skip
    pointer = struct.pack("<4sIBBBBBBBB", b"_MP_", at.MP_TABLE + 16, 1, 4, 0, 0, 0, 0, 0, 0)
    memory.write(at.MP_TABLE, _checksummed(pointer, 10) + _checksummed(header + body, 7))


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM, _TABLE_ID, 1, b"HVEM", 1)
    return _checksummed(header + body, 9)


def _acpi(memory: GuestPhysicalMemory) -> None:
    facs_at = at.ACPI_TABLES + 0x40
    dsdt_at = at.ACPI_TABLES + 0x100
    fadt_at = at.ACPI_TABLES + 0x400
    madt_at = at.ACPI_TABLES + 0x600
    rsdt_at = at.ACPI_TABLES + 0x800
    memory.write(facs_at, struct.pack("<4sIIIIIQB", b"FACS", 64, 0, 0, 0, 0, 0, 1).ljust(64, b"\0"))
    memory.write(dsdt_at, _table(b"DSDT", 1, _dsdt_body()))
    memory.write(fadt_at, _table(b"FACP", 3, _fadt_body(facs_at, dsdt_at)))
    memory.write(madt_at, _table(b"APIC", 1, _madt_body()))
    memory.write(rsdt_at, _table(b"RSDT", 1, struct.pack("<II", fadt_at, madt_at)))
    rsdp = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 0, rsdt_at)
    memory.write(at.RSDP, _checksummed(rsdp, 8))


def _fadt_body(facs: int, dsdt: int) -> bytes:
    body = bytearray(244 - 36)

    def put(layout: str, offset: int, *values: int) -> None:
        struct.pack_into(layout, body, offset - 36, *values)

    put("<II", 36, facs, dsdt)
    put("<H", 46, at.IRQ_ACPI)
    put("<I", 56, at.ACPI_PM1_EVENT)
    put("<I", 64, at.ACPI_PM1_CONTROL)
    put("<I", 76, at.ACPI_PM_TIMER)
    put("<BBxB", 88, 4, 2, 4)  # lengths of PM1 event, PM1 control, PM timer
    put("<HH", 96, 0xFFFF, 0xFFFF)  # C2 and C3 not supported
    put("<B", 108, 0x32)  # century register of the RTC
    put("<H", 109, 0b11)  # legacy devices, 8042
    put("<I", 112, 1 << 0 | 1 << 2 | 1 << 5 | 1 << 8 | 1 << 10)  # WBINVD, C1, no sleep button, 32-bit timer, reset
    put("<BBBBQB", 116, 1, 8, 0, 1, at.RESET_CONTROL, 6)
    put("<QQ", 132, facs, dsdt)
    put("<BBBBQ", 148, 1, 32, 0, 2, at.ACPI_PM1_EVENT)
    put("<BBBBQ", 172, 1, 16, 0, 2, at.ACPI_PM1_CONTROL)
    put("<BBBBQ", 208, 1, 32, 0, 3, at.ACPI_PM_TIMER)
    return bytes(body)


def _madt_body() -> bytes:
    return b"".join(
        (
            struct.pack("<II", at.LAPIC_BASE, 1),
            struct.pack("<BBBBI", 0, 8, 0, at.LAPIC_ID, 1),
            struct.pack("<BBBBII", 1, 12, at.IOAPIC_ID, 0, at.IOAPIC_BASE, 0),
            struct.pack("<BBBBIH", 2, 10, 0, at.IRQ_TIMER, at.TIMER_GSI, 0),
            struct.pack("<BBBBIH", 2, 10, 0, at.IRQ_ACPI, at.IRQ_ACPI, 0b1101),  # level, active high
            struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
        )
    )


_PCI_PORTS: Final = ((0x0000, at.PCI_CONFIG_ADDRESS - 1), (at.PCI_CONFIG_DATA + 4, 0xFFFF))
"""What the root bridge hands on, but for its own registers."""


def _package(*elements: bytes) -> bytes:
    content = bytes((len(elements),)) + b"".join(elements)
    return b"\x12" + _package_length(content) + content


def _package_length(content: bytes) -> bytes:
    """AML PkgLength, which counts itself (ACPI 6.4, 20.2.4)."""
    if len(content) + 1 < 0x40:
        return bytes((len(content) + 1,))
    total = len(content) + 2
    return bytes((0x40 | (total & 0xF), total >> 4))


def _device(name: bytes, *terms: bytes) -> bytes:
    content = name + b"".join(terms)
    return b"\x5b\x82" + _package_length(content) + content


def _name(name: bytes, value: bytes) -> bytes:
    return b"\x08" + name + value


def _eisa_id(vendor: str, product: int) -> bytes:
    letters = [ord(letter) - 0x40 for letter in vendor]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | product
    return b"\x0c" + packed.to_bytes(4, "big")


def _resources(items: Sequence[bytes]) -> bytes:
    template = b"".join(items) + b"\x79\x00"
    content = b"\x0a" + bytes((len(template),)) + template
    return b"\x11" + _package_length(content) + content


def _io_range(base: int, length: int) -> bytes:
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def _irq(line: int) -> bytes:
    return struct.pack("<BH", 0x22, 1 << line)


def _range(first: int, last: int) -> tuple[int, int, int, int]:
    """Minimum, maximum, translation and length of an address space descriptor."""
    return first, last, 0, last - first + 1


def _route(device: int, line: int) -> bytes:
    """A row of _PRT (ACPI 6.4, 6.2.13): pin A of a device, hard-wired to an interrupt line."""
    return _package(b"\x0c" + (device << 16 | 0xFFFF).to_bytes(4, "little"), b"\x00", b"\x00", bytes((0x0A, line)))


def _dsdt_body() -> bytes:
    """\\_S5 for power-off, and \\_SB with a PCI root, the keyboard controller and COM1."""
    bus_numbers = struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, 0, 0xFF, 0, 0x100)
    windows = [
        *(struct.pack("<BHBBBHHHHH", 0x88, 13, 1, 0x0C, 3, 0, *_range(*ports)) for ports in _PCI_PORTS),
        struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1, 0, *_range(at.PCI_MEMORY, at.PCI_MEMORY_END)),
    ]
    root = _device(
        b"PCI0",
        _name(b"_HID", _eisa_id("PNP", 0x0A03)),
        _name(b"_UID", b"\x00"),
        _name(b"_CRS", _resources([bus_numbers, _io_range(at.PCI_CONFIG_ADDRESS, 8), *windows])),
        _name(b"_PRT", _package(*(_route(device, line) for device, line in at.PCI_INTERRUPTS.items()))),
    )
    keyboard = _device(
        b"KBD_",
        _name(b"_HID", _eisa_id("PNP", 0x0303)),
        _name(b"_CRS", _resources([_io_range(at.I8042_DATA, 1), _io_range(at.I8042_COMMAND, 1), _irq(1)])),
    )
    serial = _device(
        b"COM1",
        _name(b"_HID", _eisa_id("PNP", 0x0501)),
        _name(b"_UID", b"\x01"),
        _name(b"_CRS", _resources([_io_range(at.COM1_BASE, 8), _irq(at.IRQ_COM1)])),
    )
    content = b"_SB_" + root + keyboard + serial
    scope = b"\x10" + _package_length(content) + content
    sleep = _name(b"_S5_", _package(b"\x0a\x05", b"\x0a\x05", b"\x00", b"\x00"))
    return sleep + scope
