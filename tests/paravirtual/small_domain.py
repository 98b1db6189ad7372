"""Small paravirtual kernels of raw machine code, in an ELF file with Xen's notes, and what tests ask of them."""

import struct
import tempfile
from pathlib import Path
from typing import Any

from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine
from hvemu.memory.walk import walk
from hvemu.trace.tracer import Tracer
from tests.modes.small_kernel import assemble

BASE = 0x10_0000
DATA = BASE + 0x1_0000
IMAGE_END = BASE + 0x4_0000
"""Code at BASE, pages for data from DATA to here."""
CALL = "cd82"
PASS = "b010 e6f4"
IOPL = f"b8$21 bb$6 b9${DATA:x} c705${DATA:x}$1 {CALL}"
"""physdev_op(SET_IOPL, {1}): the ring 1 kernel may use the debug exit port."""


class Sink:
    """A backend that keeps what it is told."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data


def note(number: int, content: bytes) -> bytes:
    """One ELF note of Xen's."""
    padded = content + bytes(-len(content) % 4)
    return struct.pack("<III4s", 4, len(content), number, b"Xen\0") + padded


def kernel_image(
    code: bytes, *, entry: int = BASE, notes: dict[int, bytes] | None = None, size: int = IMAGE_END - BASE
) -> bytes:
    """An ELF32 file with two segments: everything at BASE, and the notes."""
    own = {1: struct.pack("<I", entry), 3: bytes(4), 4: bytes(4), 5: b"xen-3.0\0", 8: b"generic\0", 9: b"yes\0"}
    text = b"".join(note(number, content) for number, content in {**own, **(notes or {})}.items() if content)
    header_size, rows = 52, 2
    start = header_size + 32 * rows
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, entry, header_size, 0, 0, header_size, 32, rows, 0, 0, 0
    )
    load = struct.pack("<8I", 1, start, BASE, BASE, len(code), max(size, len(code)), 7, 0x1000)
    notes_row = struct.pack("<8I", 4, start + len(code), 0, 0, len(text), len(text), 4, 4)
    return header + load + notes_row + code + text


class SmallDomain:
    """A machine in mode pv with such a kernel, before its first instruction."""

    def __init__(
        self,
        text: str,
        *,
        data: dict[int, bytes] | None = None,
        notes: dict[int, bytes] | None = None,
        tracer: Tracer | None = None,
        **changes: Any,
    ) -> None:
        code, self.labels = assemble(text, BASE)
        self.console, self.debug_console = Sink(), Sink()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "small.elf"
            path.write_bytes(kernel_image(code, notes=notes))
            settings = {"memory": 16 << 20, "mode": "pv", **changes}
            self.machine: Machine = build(
                MachineConfiguration(image=str(path), **settings),
                backends=Backends(self.console, Sink(), self.debug_console),
                tracer=tracer,
            )
        for address, content in (data or {}).items():
            self.write(address, content)

    @property
    def mode(self) -> Any:
        """The ParavirtualMode."""
        return self.machine.mode

    @property
    def domain(self) -> Any:
        """The Domain."""
        return self.mode.domain

    def machine_address(self, linear: int) -> int:
        """Through the guest's tables."""
        found = walk(self.machine.memory, self.machine.registers().paging(), linear, mark=False)
        assert isinstance(found, int), hex(linear)
        return found

    def write(self, linear: int, content: bytes) -> None:
        """Behind the guest's back."""
        self.machine.memory.write(self.machine_address(linear), content)

    def read(self, linear: int, length: int) -> bytes:
        """What is at a linear address."""
        return self.machine.memory.read(self.machine_address(linear), length)

    def words(self, linear: int, count: int = 1) -> tuple[int, ...]:
        """Doublewords at a linear address."""
        return struct.unpack(f"<{count}I", self.read(linear, 4 * count))

    def run(self, limit: int = 1_000_000) -> int:
        """To the end; returns the status, which the guest's end must be."""
        stop = self.machine.run(limit)
        assert stop is not None, f"still running at {self.machine.registers().instruction_pointer:#x}"
        return stop.status

    def exits(self) -> dict[str, int]:
        """Exits by kind."""
        return dict(self.machine.statistics()["exits"])

    def hypercalls(self) -> dict[str, int]:
        """Hypercalls by name."""
        return dict(self.machine.statistics()["exits_by_detail"].get("hypercall", {}))

    def events(self) -> dict[str, int]:
        """What they were about."""
        return dict(self.machine.statistics()["paravirtual"])


def call(number: int, *arguments: int | str) -> str:
    """A hypercall with arguments in EBX, ECX, EDX, ESI and EDI; a text is the name of a label."""
    loads = [f"b8${number:x}"]
    for opcode, value in zip(("bb", "b9", "ba", "be", "bf"), arguments, strict=False):
        loads.append(f"{opcode}={value}" if isinstance(value, str) else f"{opcode}${value & 0xFFFF_FFFF:x}")
    return " ".join([*loads, CALL])


OFFSET = 16 << 20
"""Machine addresses of these guests are so much above their own."""


def traps(*rows: tuple[int, int, str], labels: dict[str, int]) -> bytes:
    """A trap table of (vector, flags, label)."""
    packed = b"".join(struct.pack("<BBHI", vector, flags, 0xE019, labels[name]) for vector, flags, name in rows)
    return packed + bytes(8)
