"""ELF32 x86 executables, as far as loading one needs: the two headers (System V ABI, chapter 4 and its x86 part)."""

import struct
from typing import Final, NamedTuple

from hvemu.vocabulary.errors import UserError

HINT: Final = "Check that the file is whole; build it as a 32-bit multiboot ELF, or as a paravirtual kernel."
_ELF_HEADER: Final = struct.Struct("<16sHHIIIIIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIIIIIII")
LOAD: Final = 1
NOTE: Final = 4
_EXECUTABLE: Final = 2
_KINDS: Final = {1: "an object file", 3: "a shared object", 4: "a core dump"}
_I386, _X86_64 = 3, 62
_MACHINES: Final = {_I386: "x86", 8: "MIPS", 20: "PowerPC", 40: "ARM", 183: "AArch64", 243: "RISC-V"}
_MOST_SEGMENTS: Final = 256


class ProgramHeader(NamedTuple):
    """A row of the program header table of an ELF32 file, in its order."""

    kind: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int
    flags: int
    alignment: int


def program_headers(image: bytes, name: str) -> tuple[list[ProgramHeader], int]:
    """The program headers of an ELF32 x86 executable, and its entry; raises UserError.

    Looks at nothing but the two headers: a general reader also follows sections and can be kept busy for minutes.
    """
    if image[:4] != b"\x7fELF" or len(image) < _ELF_HEADER.size:
        raise UserError(f"{name} is not a readable ELF file", HINT)
    bits, order = image[4], image[5]
    machine = int.from_bytes(image[18:20], "big" if order == 2 else "little")
    if machine == _X86_64 or (machine == _I386 and bits == 2):
        raise UserError(f"{name} is a 64-bit ELF image", "hvemu boots 32-bit kernels so far; give it one.")
    if machine != _I386 or bits != 1 or order != 1:
        what = _MACHINES.get(machine, f"machine {machine}")
        raise UserError(f"{name} is not a 32-bit x86 executable but for {what}", HINT)
    _, kind, _, _, entry, table, _, _, _, row_size, rows, *_ = _ELF_HEADER.unpack_from(image)
    if kind != _EXECUTABLE:
        raise UserError(f"{name} is not an executable ELF file but {_KINDS.get(kind, f'of type {kind}')}", HINT)
    if rows > _MOST_SEGMENTS:
        raise UserError(f"{name} claims {rows} segments", HINT)
    if rows and (row_size != _PROGRAM_HEADER.size or table + rows * row_size > len(image)):
        raise UserError(f"{name} is truncated or has an absurd program header table", HINT)
    return [ProgramHeader(*_PROGRAM_HEADER.unpack_from(image, table + row * row_size)) for row in range(rows)], entry


def load_segments(image: bytes, name: str) -> tuple[list[ProgramHeader], int]:
    """What such a file wants loaded, and its entry; raises UserError."""
    headers, entry = program_headers(image, name)
    segments = [header for header in headers if header.kind == LOAD and header.memory_size]
    if not segments:
        raise UserError(f"{name} has nothing to load", HINT)
    return segments, entry


def content(segment: ProgramHeader, image: bytes, name: str) -> bytes:
    """The bytes of a segment that are in the file; raises UserError."""
    if segment.memory_size < segment.file_size or segment.offset + segment.file_size > len(image):
        raise UserError(f"{name} is truncated or has absurd segments", HINT)
    return image[segment.offset : segment.offset + segment.file_size]
