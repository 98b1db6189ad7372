"""x86 executables in ELF32 or ELF64, as far as loading one needs: the two headers (System V ABI, chapter 4)."""

import struct
from typing import Final, NamedTuple

from hvemu.vocabulary.errors import UserError

HINT: Final = "Check that the file is whole; build it as a multiboot ELF, or as a 32-bit paravirtual kernel."
_ELF_HEADER: Final = struct.Struct("<16sHHIIIIIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIIIIIII")
_ELF64_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER_64: Final = struct.Struct("<IIQQQQQQ")
LOAD: Final = 1
NOTE: Final = 4
_EXECUTABLE: Final = 2
_KINDS: Final = {1: "an object file", 3: "a shared object", 4: "a core dump"}
_I386, _X86_64 = 3, 62
_MACHINES: Final = {_I386: "x86", 8: "MIPS", 20: "PowerPC", 40: "ARM", 183: "AArch64", 243: "RISC-V"}
_MOST_SEGMENTS: Final = 256


class ProgramHeader(NamedTuple):
    """A row of the program header table, in the order of ELF32."""

    kind: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int
    flags: int
    alignment: int


def is_64_bit(image: bytes) -> bool:
    """Whether it is an ELF64 file."""
    return image[:5] == b"\x7fELF\x02"


def program_headers(image: bytes, name: str, *, allow_64_bit: bool = False) -> tuple[list[ProgramHeader], int]:
    """The program headers of an x86 executable, and its entry; raises UserError, also for ELF64 unless allowed.

    Looks at nothing but the two headers: a general reader also follows sections and can be kept busy for minutes.
    """
    if image[:4] != b"\x7fELF" or len(image) < _ELF_HEADER.size:
        raise UserError(f"{name} is not a readable ELF file", HINT)
    bits, order = image[4], image[5]
    machine = int.from_bytes(image[18:20], "big" if order == 2 else "little")
    wide = machine == _X86_64 and bits == 2 and order == 1
    if (wide and not allow_64_bit) or (machine == _X86_64 and bits == 1) or (machine == _I386 and bits == 2):
        raise UserError(f"{name} is a 64-bit ELF image", "Give it a multiboot header, or give the kernel as a bzImage.")
    if not wide and (machine != _I386 or bits != 1 or order != 1):
        what = _MACHINES.get(machine, f"machine {machine}")
        raise UserError(f"{name} is not an x86 executable but for {what}", HINT)
    header, program_header = (_ELF64_HEADER, _PROGRAM_HEADER_64) if wide else (_ELF_HEADER, _PROGRAM_HEADER)
    if len(image) < header.size:
        raise UserError(f"{name} is not a readable ELF file", HINT)
    _, kind, _, _, entry, table, _, _, _, row_size, rows, *_ = header.unpack_from(image)
    if kind != _EXECUTABLE:
        raise UserError(f"{name} is not an executable ELF file but {_KINDS.get(kind, f'of type {kind}')}", HINT)
    if rows > _MOST_SEGMENTS:
        raise UserError(f"{name} claims {rows} segments", HINT)
    if rows and (row_size != program_header.size or table + rows * row_size > len(image)):
        raise UserError(f"{name} is truncated or has an absurd program header table", HINT)
    found = [program_header.unpack_from(image, table + row * row_size) for row in range(rows)]
    if wide:  # the flags stand elsewhere
        found = [(kind, *places, flags, alignment) for kind, flags, *places, alignment in found]
    return [ProgramHeader(*row) for row in found], entry


def load_segments(image: bytes, name: str, *, allow_64_bit: bool = False) -> tuple[list[ProgramHeader], int]:
    """What such a file wants loaded, and its entry; raises UserError."""
    headers, entry = program_headers(image, name, allow_64_bit=allow_64_bit)
    segments = [header for header in headers if header.kind == LOAD and header.memory_size]
    if not segments:
        raise UserError(f"{name} has nothing to load", HINT)
    return segments, entry


def content(segment: ProgramHeader, image: bytes, name: str) -> bytes:
    """The bytes of a segment that are in the file; raises UserError."""
    if segment.memory_size < segment.file_size or segment.offset + segment.file_size > len(image):
        raise UserError(f"{name} is truncated or has absurd segments", HINT)
    return image[segment.offset : segment.offset + segment.file_size]
