"""Names of places in an ELF kernel, for people; System V ABI, chapter 4, "Symbol Table".

Like ``elf.load_segments`` it looks at no more than it needs, and believes nothing. An image without symbols, or with
absurd ones, has no names.
"""

import struct
from bisect import bisect_right
from typing import Final, NamedTuple

from hvemu.loader.elf import ProgramHeader, is_64_bit, load_segments
from hvemu.vocabulary.errors import UserError

_SECTION: Final = struct.Struct("<IIIIIIIIII")
_SECTION_64: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IIIBBH")
_SYMBOL_64: Final = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE: Final = 2
_NO_TYPE, _OBJECT, _FUNCTION = range(3)
_FIRST_RESERVED_SECTION: Final = 0xFF00
_MOST_SECTIONS: Final = 1024
_MOST_SYMBOLS: Final = 1 << 20
_LONGEST_NAME: Final = 256


class Symbol(NamedTuple):
    """A name and where the loader puts what it stands for; ``size`` in bytes, 0 if unknown."""

    name: str
    address: int
    size: int


class Symbols:
    """The symbols of an image, at the physical addresses where a kernel without paging finds itself."""

    def __init__(self, symbols: list[Symbol]) -> None:
        self._sorted = sorted(symbols, key=lambda symbol: (symbol.address, symbol.size))
        self._starts = [symbol.address for symbol in self._sorted]
        self._addresses: dict[str, int] = {}
        for symbol in symbols:
            self._addresses.setdefault(symbol.name, symbol.address)

    def __len__(self) -> int:
        return len(self._sorted)

    def address(self, name: str) -> int | None:
        """Where this is: a name, or a name and a distance as ``place`` writes them."""
        symbol, plus, distance = name.rpartition("+")
        if plus and symbol in self._addresses:
            try:
                return (self._addresses[symbol] + int(distance, 0)) & 0xFFFF_FFFF
            except ValueError:
                return None
        return self._addresses.get(name)

    def place(self, address: int) -> str:
        """``name`` or ``name+0x12`` for an address in something that has a name, else nothing."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return ""
        name, start, size = self._sorted[index]
        distance = address - start
        return name if not distance else f"{name}+{distance:#x}" if distance < size else ""


def read_symbols(image: bytes) -> Symbols:
    """The symbols of an image; none if it is no ELF executable, is stripped or is damaged."""
    try:
        segments, _ = load_segments(image, "the image", allow_64_bit=True)
        return Symbols(_read(image, segments))
    except (UserError, struct.error):
        return Symbols([])


def _read(image: bytes, segments: list[ProgramHeader]) -> list[Symbol]:
    wide = is_64_bit(image)
    section, symbol = (_SECTION_64, _SYMBOL_64) if wide else (_SECTION, _SYMBOL)
    (table,) = struct.unpack_from("<Q", image, 40) if wide else struct.unpack_from("<I", image, 32)
    row_size, rows = struct.unpack_from("<HH", image, 58 if wide else 46)
    if row_size != section.size or table > len(image):
        return []
    sections = [section.unpack_from(image, table + row * row_size) for row in range(min(rows, _MOST_SECTIONS))]
    for _, kind, _, _, offset, size, names, _, _, entry_size in sections:
        if kind == _SYMBOL_TABLE and entry_size == symbol.size and names < len(sections):
            texts = image[sections[names][4] :][: sections[names][5]]
            count = min(size // entry_size, _MOST_SYMBOLS)
            data = image[offset : offset + count * entry_size]
            whole = data[: len(data) // entry_size * entry_size]
            order = (0, 4, 5, 1, 2, 3) if wide else range(6)
            rows_of_32 = (tuple(row[index] for index in order) for row in symbol.iter_unpack(whole))
            found = (_symbol(row, texts, segments) for row in rows_of_32)
            return [one for one in found if one is not None]
    return []


def _symbol(row: tuple[int, ...], texts: bytes, segments: list[ProgramHeader]) -> Symbol | None:
    """One row of the table, in the order of ELF32, if it names a place."""
    at, value, size, information, _, section = row
    end = texts.find(b"\0", at, at + _LONGEST_NAME)
    if information & 0xF not in (_NO_TYPE, _OBJECT, _FUNCTION) or not 0 < section < _FIRST_RESERVED_SECTION:
        return None
    name = texts[at : max(at, end)].decode("utf-8", "replace")
    if not name.isprintable() or not name:
        return None
    for segment in segments:
        if segment.virtual <= value < segment.virtual + segment.memory_size:
            return Symbol(name, value - segment.virtual + segment.physical, size)
    return None
