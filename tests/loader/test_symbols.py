"""Names in ELF files: as the library reads them, where the loader puts them, and never a reason to fail."""

import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hvemu.loader.symbols import Symbols, read_symbols

from .images import GUESTS, elf, kernel_elf

NAMES = b"\0main\0data\0vector\0missing\0"
FUNCTION, OBJECT = 2, 1
SECTION, UNDEFINED, ABSOLUTE = 1, 0, 0xFFF1


def with_symbols(image: bytes, rows: list[tuple[str, int, int, int, int]], **changes: int) -> bytes:
    """An image with a symbol table behind it; a row is (name, value, size, type, section)."""
    table = b"".join(
        struct.pack("<IIIBBH", NAMES.index(name.encode() + b"\0"), value, size, kind, 0, section)
        for name, value, size, kind, section in rows
    )
    at = len(image)
    values = {"entry_size": 16, "names": 1, "size": len(table), "offset": at, **changes}
    symbols = (0, 2, 0, 0, values["offset"], values["size"], values["names"], 0, 0, values["entry_size"])
    strings = (0, 3, 0, 0, at + len(table), len(NAMES), 0, 0, 0, 0)
    headers = struct.pack("<10I", *symbols) + struct.pack("<10I", *strings)
    place = at + len(table) + len(NAMES)
    image = image[:32] + struct.pack("<I", place) + image[36:46] + struct.pack("<HH", 40, 2) + image[50:]
    return image + table + NAMES + headers


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*/*.elf")), ids=lambda path: path.stem)
def test_every_guest_has_the_functions_that_the_library_sees(path: Path) -> None:
    """All of them, at their addresses."""
    symbols = read_symbols(path.read_bytes())
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        rows = [row for row in table.iter_symbols() if row["st_info"]["type"] == "STT_FUNC"] if table else []
    assert {row.name: row["st_value"] for row in rows} == {row.name: symbols.address(row.name) for row in rows}


def test_a_kernel_that_is_linked_high_is_found_where_it_is_loaded() -> None:
    """Before it has turned paging on, its symbols are at their physical addresses."""
    image = elf((0x1000, 0xC010_0000, 0x10_0000, 0x1000, 0x2000), entry=0xC010_0000)
    symbols = read_symbols(with_symbols(image, [("main", 0xC010_0020, 8, FUNCTION, SECTION)]))
    assert 0x10_0020 == symbols.address("main")
    assert "main+0x4" == symbols.place(0x10_0024)


def test_a_place_has_the_name_of_what_it_is_in() -> None:
    """To the end of what has a size, and only at the start of what has none."""
    symbols = read_symbols(
        with_symbols(
            kernel_elf(),
            [("main", 0x10_0010, 16, FUNCTION, SECTION), ("data", 0x10_0040, 0, OBJECT, SECTION)],
        )
    )
    expected = {
        0x10_000F: "",
        0x10_0010: "main",
        0x10_001F: "main+0xf",
        0x10_0020: "",
        0x10_0040: "data",
        0x10_0041: "",
    }
    assert expected == {address: symbols.place(address) for address in expected}


def test_what_names_no_place_is_left_out() -> None:
    """A number, something that another file has, and what is not loaded."""
    rows = [
        ("vector", 0x100, 0, 0, ABSOLUTE),
        ("missing", 0x10_0000, 0, 0, UNDEFINED),
        ("data", 0x90_0000, 4, OBJECT, SECTION),
        ("main", 0x10_0000, 4, FUNCTION, SECTION),
    ]
    symbols = read_symbols(with_symbols(kernel_elf(), rows))
    assert 1 == len(symbols)
    assert 0x10_0000 == symbols.address("main")


@pytest.mark.parametrize(
    "changes",
    [{"entry_size": 0}, {"entry_size": 24}, {"names": 9}, {"size": 0}, {"offset": 0xFFFF_FFF0}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_absurd_table_has_no_symbols(changes: dict[str, int]) -> None:
    """The image can be loaded all the same."""
    image = with_symbols(kernel_elf(), [("main", 0x10_0000, 4, FUNCTION, SECTION)], **changes)
    assert 0 == len(read_symbols(image))


def test_a_table_that_claims_more_than_there_is_ends_with_the_file() -> None:
    """Rows that are rubbish have no name; nothing is read for minutes."""
    image = with_symbols(kernel_elf(), [("main", 0x10_0000, 4, FUNCTION, SECTION)], size=0xFFFF_FFF0)
    assert 0x10_0000 == read_symbols(image).address("main")


@pytest.mark.parametrize("length", [0, 40, 52, 0x900, -1, -41])
def test_a_file_that_is_cut_off_has_no_symbols(length: int) -> None:
    """Wherever it ends."""
    image = with_symbols(kernel_elf(), [("main", 0x10_0000, 4, FUNCTION, SECTION)])
    assert 1 == len(read_symbols(image))
    assert 0 == len(read_symbols(image[:length]))


def test_of_two_symbols_with_one_name_the_first_is_meant() -> None:
    """As two static functions in two files may be called."""
    rows = [("main", 0x10_0010, 4, FUNCTION, SECTION), ("main", 0x10_0000, 4, FUNCTION, SECTION)]
    symbols = read_symbols(with_symbols(kernel_elf(), rows))
    assert 0x10_0010 == symbols.address("main")
    assert "main" == symbols.place(0x10_0000)


def test_no_symbols_know_no_place() -> None:
    """And no name."""
    assert ("", None) == (Symbols([]).place(0), Symbols([]).address("main"))
