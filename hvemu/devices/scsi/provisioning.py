"""UNMAP, WRITE SAME, GET LBA STATUS, READ CAPACITY, FORMAT UNIT and READ DEFECT DATA of a direct-access disk.

Thin provisioning: an unmapped block reads as zeros (LBPRZ); blocks cannot be anchored (ANC_SUP is 0).
Spec: SBC-3 4.7.3, 5.3 (FORMAT UNIT), 5.5 (GET LBA STATUS), 5.15, 5.16, 5.28 (UNMAP), 5.40 and 5.41 (WRITE SAME).
"""

from typing import TYPE_CHECKING, Final

from hvemu.devices.scsi.blocks import exact_blocks
from hvemu.devices.scsi.medium import medium_errors
from hvemu.devices.scsi.operations import Access, Request, operation
from hvemu.devices.scsi.sense import invalid_cdb_field, invalid_parameter, parameter_list_length_error
from hvemu.vocabulary.scsi import AdditionalSense, Opcode

if TYPE_CHECKING:
    from hvemu.devices.scsi.disk import ScsiDisk

MOST_UNMAP_DESCRIPTORS: Final = 256
_MOST_STATUS_DESCRIPTORS: Final = 256
_MAPPED, _DEALLOCATED = 0, 1
_UNMAP, _NO_DATA_OUT = 0x08, 0x01


def _read_capacity_10(unit: "ScsiDisk", request: Request) -> bytes:
    last = min(unit.blocks - 1, 0xFFFFFFFF)
    return last.to_bytes(4, "big") + unit.block_size.to_bytes(4, "big")


def _read_capacity_16(unit: "ScsiDisk", request: Request) -> bytes:
    data = (unit.blocks - 1).to_bytes(8, "big") + unit.block_size.to_bytes(4, "big")
    thin = 0xC0  # LBPME and LBPRZ
    data += bytes((0, unit.physical_exponent, thin, 0)) + bytes(16)
    return data[: request.number(10, 4)]


def _get_lba_status(unit: "ScsiDisk", request: Request) -> bytes:
    address, length = request.number(2, 8), request.number(10, 4)
    unit.check_range(address, 1)
    room = max(0, min(_MOST_STATUS_DESCRIPTORS, (length - 8) // 16))
    descriptors = b""
    with medium_errors(address, AdditionalSense.UNRECOVERED_READ_ERROR):
        while room and address < unit.blocks:
            count, allocated = _alike(unit, address)
            status = _MAPPED if allocated else _DEALLOCATED
            descriptors += address.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes((status, 0, 0, 0))
            address += count
            room -= 1
    return ((4 + len(descriptors)).to_bytes(4, "big") + bytes(4) + descriptors)[:length]


def _alike(unit: "ScsiDisk", address: int) -> tuple[int, bool]:
    """How many blocks from ``address`` on are alike; a block of which a part is allocated counts as mapped."""
    most = min(unit.blocks - address, 0xFFFFFFFF)
    length, allocated = unit.loaded.extent(address * unit.block_size)
    if length < unit.block_size:
        return 1, True
    whole = -(-length // unit.block_size) if allocated else length // unit.block_size
    return min(whole, most), allocated


def _unmap(unit: "ScsiDisk", request: Request) -> bytes:
    """All descriptors are checked before the first is carried out."""
    length = request.number(7, 2)
    data = request.parameters(length)
    if not data:
        return b""
    if length < 8:
        raise parameter_list_length_error()
    size = min(int.from_bytes(data[2:4], "big"), length - 8) // 16 * 16
    if size // 16 > MOST_UNMAP_DESCRIPTORS:
        raise invalid_parameter(2)
    ranges = []
    for offset in range(8, 8 + size, 16):
        address, count = (
            int.from_bytes(data[offset : offset + 8], "big"),
            int.from_bytes(data[offset + 8 : offset + 12], "big"),
        )
        if count or address > unit.blocks:
            unit.check_range(address, count)
        ranges.append((address, count))
    if sum(count for _, count in ranges) > unit.longest_unmap:
        raise invalid_parameter(8)
    for address, count in ranges:
        unit.discard_blocks(address, count)
    unit.settle(forced=False)
    return b""


def _write_same(unit: "ScsiDisk", request: Request) -> bytes:
    """0 blocks are all up to the end. With UNMAP, what reads back as the data does unmapped is unmapped, else written.

    WRITE SAME (10) has no UNMAP here (LBPWS10 is 0): initiators that unmap know WRITE SAME (16).
    """
    long = len(request.cdb) == 16
    flags = request.cdb[1]
    address, count = (
        (request.number(2, 8), request.number(10, 4)) if long else (request.number(2, 4), request.number(7, 2))
    )
    unit.check_range(address, count)
    count = count or unit.blocks - address
    if count > unit.longest_write_same:
        raise invalid_cdb_field(10 if long else 7)
    block = bytes(unit.block_size) if long and flags & _NO_DATA_OUT else exact_blocks(unit, request, 1, 1)
    if flags & _UNMAP and not any(block):
        unit.discard_blocks(address, count)
        unit.settle(forced=False)
        return b""
    for start, piece in unit.pieces(address, count):
        unit.put_blocks(start, block * piece)
    unit.settle(forced=False)
    return b""


def _format_unit(unit: "ScsiDisk", request: Request) -> bytes:
    """Without parameters: every block reads as zeros afterwards."""
    unit.discard_blocks(0, unit.blocks)
    unit.settle(forced=True)
    return b""


def _read_defect_data(unit: "ScsiDisk", request: Request) -> bytes:
    """The host has taken care of defects: both lists are empty, in whatever format was asked for."""
    if len(request.cdb) == 10:
        return (bytes((0, request.cdb[2])) + bytes(2))[: request.number(7, 2)]
    return (bytes((0, request.cdb[1])) + bytes(6))[: request.number(6, 4)]


PROVISIONING_OPERATIONS: Final = (
    operation(Opcode.READ_CAPACITY_10, "00 00 00 00 00 00 00 00", Access.FREE, _read_capacity_10, needs_medium=True),
    operation(
        Opcode.SERVICE_ACTION_IN_16,
        "1F 00 00 00 00 00 00 00 00 FF FF FF FF 00",
        Access.FREE,
        _read_capacity_16,
        service_action=0x10,
        name="READ CAPACITY (16)",
        needs_medium=True,
    ),
    operation(
        Opcode.SERVICE_ACTION_IN_16,
        "1F FF FF FF FF FF FF FF FF FF FF FF FF 00",
        Access.READ,
        _get_lba_status,
        service_action=0x12,
        name="GET LBA STATUS",
        needs_medium=True,
    ),
    operation(Opcode.UNMAP, "00 00 00 00 00 1F FF FF", Access.WRITE, _unmap, needs_medium=True, modifies=True),
    operation(
        Opcode.WRITE_SAME_10, "00 FF FF FF FF 1F FF FF", Access.WRITE, _write_same, needs_medium=True, modifies=True
    ),
    operation(
        Opcode.WRITE_SAME_16,
        "09 FF FF FF FF FF FF FF FF FF FF FF FF 1F",
        Access.WRITE,
        _write_same,
        needs_medium=True,
        modifies=True,
    ),
    operation(Opcode.FORMAT_UNIT, "00 00 00 00", Access.WRITE, _format_unit, needs_medium=True, modifies=True),
    operation(Opcode.READ_DEFECT_DATA_10, "00 1F 00 00 00 00 FF FF", Access.READ, _read_defect_data, needs_medium=True),
    operation(
        Opcode.READ_DEFECT_DATA_12, "1F 00 00 00 00 FF FF FF FF 00", Access.READ, _read_defect_data, needs_medium=True
    ),
)
