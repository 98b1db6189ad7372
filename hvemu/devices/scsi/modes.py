"""Mode pages, MODE SENSE and MODE SELECT.

A page is its default bytes and a mask of what can be changed. Nothing is saved: PC = 3 and SP are refused, as SPC
asks of a unit without saved pages. Spec: SPC-4 6.11 to 6.14 and 7.5.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from hvemu.devices.scsi.operations import Access, Request, operation
from hvemu.devices.scsi.sense import illegal, invalid_cdb_field, invalid_parameter, parameter_list_length_error
from hvemu.vocabulary.scsi import AdditionalSense, Opcode

if TYPE_CHECKING:
    from hvemu.devices.scsi.unit import Unit

CACHING, CONTROL = 0x08, 0x0A
_ALL_PAGES, _ALL_SUBPAGES = 0x3F, 0xFF
_CHANGEABLE, _DEFAULT, _SAVED = 1, 2, 3


class ModePage(NamedTuple):
    """``default`` and ``changeable`` have the same length and leave out the page's two bytes of header."""

    code: int
    default: bytes
    changeable: bytes

    def packed(self, values: bytes) -> bytes:
        """With its header; nothing can be saved, so PS is 0."""
        return bytes((self.code, len(values))) + values


def mode_page(code: int, default: str, changeable: str = "") -> ModePage:
    """Both in hexadecimal; nothing can be changed where ``changeable`` is left out."""
    values = bytes.fromhex(default)
    return ModePage(code, values, bytes.fromhex(changeable) if changeable else bytes(len(values)))


READ_WRITE_ERROR_RECOVERY: Final = mode_page(0x01, "80 00 00 00 00 00 00 00 00 00")  # AWRE: the host reassigns
CACHING_PAGE: Final = mode_page(
    CACHING, "04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00", "04" + " 00" * 17
)  # WCE
CONTROL_PAGE: Final = mode_page(CONTROL, "02 10 00 00 00 00 FF FF 00 00", "04 00 08 00 00 00 00 00 00 00")  # GLTSD
INFORMATIONAL_EXCEPTIONS: Final = mode_page(0x1C, "08 00 00 00 00 00 00 00 00 00")  # DEXCPT


class ModePages:
    """The pages of one unit and their current values, in ascending order of code."""

    def __init__(self, pages: Iterable[ModePage]) -> None:
        self.pages = {page.code: page for page in sorted(pages)}
        self.current: dict[int, bytes] = {}
        self.reset()

    def reset(self) -> None:
        """Everything is as by default."""
        self.current = {code: page.default for code, page in self.pages.items()}

    def flag(self, code: int, byte: int, bit: int) -> bool:
        """A bit of a current page; ``byte`` counts as the standard does, header included."""
        return code in self.current and bool(self.current[code][byte - 2] >> bit & 1)

    def values(self, page: ModePage, control: int) -> bytes:
        """As the page control field asks."""
        if control == _CHANGEABLE:
            return page.changeable
        return page.default if control == _DEFAULT else self.current[page.code]

    def plain(self) -> dict[str, str]:
        """As JSON can carry it."""
        return {str(code): values.hex() for code, values in self.current.items()}

    def adopt(self, raw: object) -> Callable[[], None]:
        """Check what ``plain`` gave; ValueError, or a function that adopts it."""
        if not isinstance(raw, dict) or set(raw) != {str(code) for code in self.pages}:
            raise ValueError(f"the mode pages are {', '.join(map(str, self.pages))}")
        parsed = {}
        for code, page in self.pages.items():
            text = raw[str(code)]
            values = bytes.fromhex(text) if isinstance(text, str) else b""
            if len(values) != len(page.default) or _forbidden(page, values) is not None:
                raise ValueError(f"mode page {code:#x} cannot be {text!r}")
            parsed[code] = values

        def become() -> None:
            self.current = parsed

        return become


def _forbidden(page: ModePage, values: bytes) -> tuple[int, int] | None:
    """The first byte and bit in which values differ from the default although they cannot be changed."""
    for index, (value, default, mask) in enumerate(zip(values, page.default, page.changeable, strict=True)):
        wrong = (value ^ default) & ~mask
        if wrong:
            return index, wrong.bit_length() - 1
    return None


def _mode_sense(unit: "Unit", request: Request) -> bytes:
    short = request.cdb[0] == Opcode.MODE_SENSE_6
    control, code, subpage = request.cdb[2] >> 6, request.cdb[2] & 0x3F, request.cdb[3]
    if subpage not in (0, _ALL_SUBPAGES):
        raise invalid_cdb_field(3)
    if code != _ALL_PAGES and code not in unit.modes.pages:
        raise invalid_cdb_field(2, 5)
    if control == _SAVED:
        raise illegal(AdditionalSense.SAVING_PARAMETERS_NOT_SUPPORTED)
    pages = [page for page in unit.modes.pages.values() if code in (_ALL_PAGES, page.code)]
    body = b"".join(page.packed(unit.modes.values(page, control)) for page in pages)
    long_descriptor = not short and request.cdb[1] & 0x10 != 0
    descriptor = b"" if request.cdb[1] & 0x08 else unit.block_descriptor(long=long_descriptor)
    if short:
        header = bytes((3 + len(descriptor) + len(body), unit.medium_type, unit.device_parameter(), len(descriptor)))
        return (header + descriptor + body)[: request.cdb[4]]
    length = 6 + len(descriptor) + len(body)
    header = length.to_bytes(2, "big") + bytes((unit.medium_type, unit.device_parameter(), int(long_descriptor), 0))
    return (header + len(descriptor).to_bytes(2, "big") + descriptor + body)[: request.number(7, 2)]


def _mode_select(unit: "Unit", request: Request) -> bytes:
    """All pages are checked before the first one changes."""
    short = request.cdb[0] == Opcode.MODE_SELECT_6
    length = request.cdb[4] if short else request.number(7, 2)
    data = request.parameters(length)
    if not data:
        return b""
    start = 4 if short else 8
    if len(data) < start:
        raise parameter_list_length_error()
    long_descriptor = not short and data[4] & 1 != 0
    descriptors = data[3] if short else int.from_bytes(data[6:8], "big")
    if start + descriptors > len(data):
        raise parameter_list_length_error()
    if descriptors:
        _check_descriptor(unit, data[start : start + descriptors], start, long=long_descriptor)
    changed = _parse_pages(unit, data, start + descriptors)
    if any(unit.modes.current[code] != values for code, values in changed.items()):
        unit.before_modes_change(changed)
        unit.modes.current.update(changed)
        unit.attention_of_others(request.initiator, AdditionalSense.MODE_PARAMETERS_CHANGED)
    return b""


def _check_descriptor(unit: "Unit", descriptor: bytes, start: int, *, long: bool) -> None:
    """The number of blocks may be given as it is, as 0 or as all ones; the block length cannot change."""
    expected = unit.block_descriptor(long=long)
    if len(descriptor) != len(expected):
        raise invalid_parameter(3 if start == 4 else 6)
    count_bytes, length_bytes = (8, 4) if long else (4, 3)
    if descriptor[-length_bytes:] != expected[-length_bytes:] and any(descriptor[-length_bytes:]):
        raise invalid_parameter(start + len(descriptor) - length_bytes)
    count = descriptor[:count_bytes]
    if count not in (expected[:count_bytes], bytes(count_bytes), b"\xff" * count_bytes):
        raise invalid_parameter(start)


def _parse_pages(unit: "Unit", data: bytes, position: int) -> dict[int, bytes]:
    changed: dict[int, bytes] = {}
    while position < len(data):
        page = unit.modes.pages.get(data[position] & 0x3F)
        if page is None or data[position] & 0x40:
            raise invalid_parameter(position, 5)
        if position + 2 > len(data):
            raise parameter_list_length_error()
        if data[position + 1] != len(page.default):
            raise invalid_parameter(position + 1)
        values = data[position + 2 : position + 2 + len(page.default)]
        if len(values) != len(page.default):
            raise parameter_list_length_error()
        wrong = _forbidden(page, values)
        if wrong is not None:
            raise invalid_parameter(position + 2 + wrong[0], wrong[1])
        changed[page.code] = values
        position += 2 + len(values)
    return changed


MODE_OPERATIONS: Final = (
    operation(Opcode.MODE_SENSE_6, "08 FF FF FF", Access.WRITE, _mode_sense),
    operation(Opcode.MODE_SENSE_10, "18 FF FF 00 00 00 FF FF", Access.WRITE, _mode_sense),
    operation(Opcode.MODE_SELECT_6, "10 00 00 FF", Access.WRITE, _mode_select),
    operation(Opcode.MODE_SELECT_10, "10 00 00 00 00 00 FF FF", Access.WRITE, _mode_select),
)
