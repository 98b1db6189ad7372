"""Small kernels of raw machine code for tests of modes: an assembler of hexadecimal with labels, tables, and a machine.

Each of the first 32 vectors has a handler at HANDLERS + 16 * vector. A handler that a test does not give is HLT, with
interrupts disabled: the machine then stands still for ever with all that the handler was told, to be compared.
"""

import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from hvemu.cpu.state import Segment, TableRegister
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine

BASE, STACK, IDT, HANDLERS, GDT, TSS, USER, DIRECTORY, TABLES, DATA = (
    0x10_0000, 0x18_0000, 0x11_0000, 0x11_1000, 0x11_2000, 0x11_2100, 0x12_0000, 0x20_0000, 0x20_1000, 0x30_0000
)  # fmt: skip
MEMORY = 16 << 20
CODE_SELECTOR, USER_CODE, USER_DATA, TASK = 0x10, 0x23, 0x2B, 0x30
DESCRIPTORS = (
    0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF,
    0x67 | (TSS & 0xFF_FFFF) << 16 | 0x8B << 40,
)  # fmt: skip
TO_USER = f"6a{USER_DATA:02x} 68${USER + 0x1000:x} 6a02 6a{USER_CODE:02x} 68${USER:x} cf"
"""IRET to USER in ring 3."""
VECTORS = 33
PASS = "b010 e6f4"
"""mov al,10h / out 0f4h,al: status 33."""
_TOKEN = re.compile(r"(?:(\w+):|([0-9a-f]*)((?:[>=~$]\w+)*))$")


def word(value: int) -> str:
    """Four bytes as hexadecimal."""
    return struct.pack("<I", value & 0xFFFF_FFFF).hex()


def assemble(text: str, base: int = BASE) -> tuple[bytes, dict[str, int]]:
    """Machine code from words of hexadecimal, and the addresses of its labels.

    ``name:`` is a label; ``0f85>name`` ends with a 32-bit and ``75~name`` with an 8-bit distance to it, ``68=name``
    with its address; ``b9$1000`` ends with a 32-bit number, which is hexadecimal; ``c705=name$1`` with two of these.
    """
    code, labels = bytearray(), dict[str, int]()
    holes: list[tuple[int, str, str]] = []
    for token in text.split():
        found = _TOKEN.match(token)
        assert found, token
        label, digits, rest = found.groups()
        if label:
            labels[label] = base + len(code)
            continue
        code += bytes.fromhex(digits)
        for kind, name in re.findall(r"([>=~$])(\w+)", rest):
            if kind == "$":
                code += struct.pack("<I", int(name, 16))
                continue
            holes.append((len(code), kind, name))
            code += bytes(1 if kind == "~" else 4)
    for at, kind, name in holes:
        value = labels[name]
        if kind == "=":
            code[at : at + 4] = struct.pack("<I", value)
        elif kind == ">":
            code[at : at + 4] = struct.pack("<i", value - base - at - 4)
        else:
            code[at : at + 1] = struct.pack("<b", value - base - at - 1)
    return bytes(code), labels


def identity() -> dict[int, int]:
    """All memory where it is, writable, for the kernel: linear page -> entry; to be changed by a test.

    Pages of tables are marked accessed: a hypervisor that mirrors descriptors reads them where the CPU would mark that.
    """
    tables = (0, IDT, HANDLERS, GDT)
    return {page: page | (0x63 if page in tables else 3) for page in range(0, MEMORY, 0x1000)}


class Kernel:
    """A machine in a mode with such a kernel, before its first instruction. ``labels``: where its labels are."""

    def __init__(
        self,
        mode: str,
        text: str,
        *,
        handlers: dict[int, str] | None = None,
        pages: dict[int, int] | None = None,
        registers: dict[int, int] | None = None,
        data: dict[int, str] | None = None,
        flags: int = 2,
        cr4: int = 0,
        **changes: Any,
    ) -> None:
        code, self.labels = assemble(text)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "small.bin"
            path.write_bytes(code)
            settings = {"loader": "flat", "memory": MEMORY, "serial": "none", "mode": mode, **changes}
            self.machine: Machine = build(MachineConfiguration(image=str(path), load_address=BASE, **settings))
        for port in (0x21, 0xA1):  # no interrupts but those that a test wants
            self.machine.ports.write(port, 1, 0xFF)
        memory = self.machine.memory
        for vector in range(VECTORS):
            at = HANDLERS + 16 * vector
            memory.write(at, assemble((handlers or {}).get(vector, "f4"), at)[0])
            gate = at & 0xFFFF | CODE_SELECTOR << 16 | 0x8E00 << 32 | (at & 0xFFFF_0000) << 32
            memory.write(IDT + 8 * vector, struct.pack("<Q", gate))
        memory.write(GDT, struct.pack("<7Q", *DESCRIPTORS))
        memory.write(TSS, struct.pack("<3I", 0, STACK, CODE_SELECTOR + 8).ljust(0x68, b"\0"))
        for at, piece in (data or {}).items():
            memory.write(at, assemble(piece, at)[0])
        cpu = self.machine.registers()
        cpu.idtr = TableRegister(IDT, 8 * VECTORS - 1)
        cpu.gdtr = TableRegister(GDT, 8 * len(DESCRIPTORS) - 1)
        cpu.tr = Segment(TASK, TSS, 0x67, 0x8900)
        cpu.gprs[4] = STACK
        cpu.flags = flags
        cpu.cr4 |= cr4
        for number, value in (registers or {}).items():
            cpu.gprs[number] = value
        if pages is not None:
            self.map(pages)
            cpu.cr3 = DIRECTORY
            cpu.cr0 |= 1 << 31 | 1 << 16
        self.machine.mode.enter(cpu)

    def map(self, pages: dict[int, int]) -> None:
        """Lay out page tables of two levels: linear page -> entry."""
        memory, tables = self.machine.memory, dict[int, int]()
        for page, entry in pages.items():
            if page >> 22 not in tables:
                tables[page >> 22] = TABLES + 0x1000 * len(tables)
                rights = 7 if any(entry & 4 for entry in pages.values()) else 3
                memory.write(DIRECTORY + 4 * (page >> 22), struct.pack("<I", tables[page >> 22] | rights))
            memory.write(tables[page >> 22] + (page >> 12 & 1023) * 4, struct.pack("<I", entry))

    @property
    def translation(self) -> Any:
        """The BinaryTranslation of mode bt."""
        return self.machine.mode._translation  # type: ignore[attr-defined]

    def exits(self) -> dict[str, int]:
        """Exits by kind."""
        return dict(self.machine.statistics()["exits"])

    def events(self) -> dict[str, int]:
        """What the translator did by itself."""
        return dict(self.machine.statistics()["translation"])


def seen(kernel: Kernel) -> dict[str, Any]:
    """Everything the guest can know, by name; of the segments what is loaded."""
    machine = kernel.machine
    cpu = machine.registers()
    fields = {name: value for name, value in vars(cpu).items() if name != "fpu"}
    fields["segments"] = [segment if segment.selector & ~3 else segment.selector for segment in cpu.segments]
    fields["position"] = machine.mode.position()
    fields["stop"] = machine.stop and (machine.stop.status, machine.stop.reason)
    return fields


LIMIT = 60_000_000
"""Position at which a test is certainly wrong."""


def run_both(text: str, *, limit: int = 0, **settings: Any) -> tuple[Kernel, Kernel]:
    """Run a kernel in mode native and in mode bt to its end, or to a position that is the ``limit``; all that can be
    seen must be equal, memory included. Returns both."""
    only_bt = {name: settings.pop(name) for name in ("shadow",) if name in settings}
    native, other = Kernel("native", text, **settings), Kernel("bt", text, **settings, **only_bt)
    for kernel in (native, other):
        ended = kernel.machine.run(limit or LIMIT) is not None
        assert ended or limit, f"{kernel.machine.mode.name} did not end"
    compare(native, other)
    return native, other


def compare(native: Kernel, other: Kernel) -> None:
    """Two machines look the same to the guest."""
    expected, actual = seen(native), seen(other)
    for name, value in expected.items():
        assert (name, value) == (name, actual[name])
    mine, its = (kernel.machine.memory.read(0, MEMORY) for kernel in (native, other))
    if mine != its:
        at = next(at for at in range(0, MEMORY, 4) if mine[at : at + 4] != its[at : at + 4])
        raise AssertionError(f"memory at {at:#x}: {mine[at : at + 4].hex()} != {its[at : at + 4].hex()}")
