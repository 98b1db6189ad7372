"""READ, WRITE, VERIFY and their kin of a direct-access disk, in all lengths of CDB.

Spec: SBC-3 chapter 5. Protection information is not supported: RDPROTECT, WRPROTECT and VRPROTECT must be 0.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from hvemu.devices.scsi.operations import Access, Handler, Operation, Request, operation
from hvemu.devices.scsi.sense import CheckCondition, Sense, illegal, invalid_cdb_field
from hvemu.vocabulary.scsi import CDB_LENGTHS, AdditionalSense, Opcode, SenseKey

if TYPE_CHECKING:
    from hvemu.devices.scsi.disk import ScsiDisk

_FUA: Final = 0x08


class Range(NamedTuple):
    """Logical blocks."""

    address: int
    length: int


def block_range(unit: "ScsiDisk", request: Request, *, limited: bool = True) -> Range:
    """The blocks that the CDB names, inside the medium and no longer than page B0h allows."""
    length = len(request.cdb)
    if length == 6:
        found = Range(request.number(1, 3) & 0x1FFFFF, request.cdb[4] or 256)
    elif length == 10:
        found = Range(request.number(2, 4), request.number(7, 2))
    elif length == 12:
        found = Range(request.number(2, 4), request.number(6, 4))
    else:
        found = Range(request.number(2, 8), request.number(10, 4))
    unit.check_range(found.address, found.length)
    if limited and found.length > unit.longest_transfer:
        raise invalid_cdb_field(_LENGTH_FIELD[length])
    return found


_LENGTH_FIELD: Final = {6: 4, 10: 7, 12: 6, 16: 10}


def whole_blocks(unit: "ScsiDisk", request: Request, count: int) -> bytes:
    """Data-out for ``count`` blocks: the whole blocks that were sent, which may be fewer; never a part of one.

    SPC-4 leaves it to the transport what a short transfer is. A residual tells the initiator what was not taken.
    """
    request.wanted = count * unit.block_size
    data = request.data_out[: request.wanted]
    if len(data) % unit.block_size:
        raise illegal(AdditionalSense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return data


def all_blocks(unit: "ScsiDisk", request: Request, count: int) -> bytes:
    """Data-out for exactly ``count`` blocks."""
    data = whole_blocks(unit, request, count)
    if len(data) != request.wanted:
        raise illegal(AdditionalSense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return data


def exact_blocks(unit: "ScsiDisk", request: Request, count: int, field: int) -> bytes:
    """The same where more or less would be another command than the initiator thinks; ``field`` of the CDB is wrong."""
    request.wanted = count * unit.block_size
    if len(request.data_out) != request.wanted:
        raise invalid_cdb_field(field)
    return request.data_out


def _forced(request: Request) -> bool:
    return len(request.cdb) > 6 and bool(request.cdb[1] & _FUA)


def _read(unit: "ScsiDisk", request: Request) -> bytes:
    address, count = block_range(unit, request)
    if _forced(request):
        unit.flush()
    return unit.read_blocks(address, count) if count else b""


def _write(unit: "ScsiDisk", request: Request) -> bytes:
    address, count = block_range(unit, request)
    unit.write_blocks(address, whole_blocks(unit, request, count), forced=_forced(request))
    return b""


def _write_and_verify(unit: "ScsiDisk", request: Request) -> bytes:
    """Verified by reading back after a flush, whatever BYTCHK says; BYTCHK of 1x does not exist here."""
    if request.cdb[1] & 0x04:
        raise invalid_cdb_field(1, 2)
    address, count = block_range(unit, request)
    data = whole_blocks(unit, request, count)
    unit.write_blocks(address, data, forced=True)
    _compare(unit, address, data)
    return b""


def _compare(unit: "ScsiDisk", address: int, data: bytes) -> None:
    for start, count in unit.pieces(address, len(data) // unit.block_size):
        offset = (start - address) * unit.block_size
        if unit.read_blocks(start, count) != data[offset : offset + count * unit.block_size]:
            raise miscompare()


def miscompare(offset: int | None = None) -> CheckCondition:
    """MISCOMPARE; COMPARE AND WRITE gives the offset of the first differing byte as INFORMATION."""
    code = AdditionalSense.MISCOMPARE_DURING_VERIFY_OPERATION
    return CheckCondition(Sense(SenseKey.MISCOMPARE, code, offset))


def _verify(unit: "ScsiDisk", request: Request) -> bytes:
    address, count = block_range(unit, request)
    check = request.cdb[1] >> 1 & 0b11
    if check == 0b10:
        raise invalid_cdb_field(1, 2)
    if check == 0b01:
        _compare(unit, address, all_blocks(unit, request, count))
    elif check == 0b11:
        block = all_blocks(unit, request, 1) if count else b""
        for start, piece in unit.pieces(address, count):
            if unit.read_blocks(start, piece) != block * piece:
                raise miscompare()
    else:
        for start, piece in unit.pieces(address, count):
            unit.read_blocks(start, piece)
    return b""


def _compare_and_write(unit: "ScsiDisk", request: Request) -> bytes:
    """Nothing comes between comparing and writing: a unit carries out one command at a time."""
    address, count = request.number(2, 8), request.cdb[13]
    unit.check_range(address, count)
    data = exact_blocks(unit, request, 2 * count, 13)
    half = len(data) // 2
    if not half:
        return b""
    found = unit.read_blocks(address, count)
    if found != data[:half]:
        raise miscompare(next(index for index in range(half) if found[index] != data[index]))
    unit.write_blocks(address, data[half:], forced=_forced(request))
    return b""


def _orwrite(unit: "ScsiDisk", request: Request) -> bytes:
    address, count = block_range(unit, request)
    data = all_blocks(unit, request, count)
    if data:
        found = int.from_bytes(unit.read_blocks(address, count), "big") | int.from_bytes(data, "big")
        unit.write_blocks(address, found.to_bytes(len(data), "big"), forced=_forced(request))
    return b""


def _pre_fetch(unit: "ScsiDisk", request: Request) -> bytes:
    """The cache is the host's; GOOD says that there is no room for all of the blocks (SBC-3 5.12)."""
    block_range(unit, request, limited=False)
    return b""


def _synchronize_cache(unit: "ScsiDisk", request: Request) -> bytes:
    """More than was asked for; with IMMED as well, because GOOD may come later."""
    block_range(unit, request, limited=False)
    unit.flush()
    return b""


def _seek(unit: "ScsiDisk", request: Request) -> bytes:
    address = request.number(1, 3) & 0x1FFFFF if len(request.cdb) == 6 else request.number(2, 4)
    unit.check_range(address, 1)
    return b""


_TAIL: Final = {10: "FF FF FF FF 1F FF FF", 12: "FF FF FF FF FF FF FF FF 1F", 16: "FF " * 12 + "1F"}
_SIX: Final = "1F FF FF FF"


def _row(opcode: Opcode, flags: str, access: Access, handler: Handler, *, modifies: bool = False) -> Operation:
    """With address, length and group number where they always are."""

    usage = f"{flags} {_TAIL[CDB_LENGTHS[opcode >> 5]]}"
    return operation(opcode, usage, access, handler, needs_medium=True, modifies=modifies)


BLOCK_OPERATIONS: Final = (
    operation(Opcode.READ_6, _SIX, Access.READ, _read, needs_medium=True),
    operation(Opcode.WRITE_6, _SIX, Access.WRITE, _write, needs_medium=True, modifies=True),
    operation(Opcode.SEEK_6, "1F FF FF 00", Access.READ, _seek, needs_medium=True),
    operation(Opcode.SEEK_10, "00 FF FF FF FF 00 00 00", Access.READ, _seek, needs_medium=True),
    *(_row(opcode, "18", Access.READ, _read) for opcode in (Opcode.READ_10, Opcode.READ_12, Opcode.READ_16)),
    *(
        _row(opcode, "18", Access.WRITE, _write, modifies=True)
        for opcode in (Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16)
    ),
    *(
        _row(opcode, "16", Access.WRITE, _write_and_verify, modifies=True)
        for opcode in (Opcode.WRITE_AND_VERIFY_10, Opcode.WRITE_AND_VERIFY_12, Opcode.WRITE_AND_VERIFY_16)
    ),
    *(_row(opcode, "16", Access.READ, _verify) for opcode in (Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16)),
    operation(
        Opcode.COMPARE_AND_WRITE,
        "18 FF FF FF FF FF FF FF FF 00 00 00 FF 1F",
        Access.WRITE,
        _compare_and_write,
        needs_medium=True,
        modifies=True,
    ),
    _row(Opcode.ORWRITE_16, "18", Access.WRITE, _orwrite, modifies=True),
    *(_row(opcode, "02", Access.READ, _pre_fetch) for opcode in (Opcode.PRE_FETCH_10, Opcode.PRE_FETCH_16)),
    *(
        _row(opcode, "06", Access.WRITE, _synchronize_cache)
        for opcode in (Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16)
    ),
)
