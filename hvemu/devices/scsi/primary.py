"""The commands of every unit: INQUIRY, REQUEST SENSE, TEST UNIT READY, REPORT LUNS and what is supported.

Spec: SPC-4 6.6, 6.33 (REPORT LUNS), 6.34 and 6.35 (supported operation codes, task management functions), 6.39, 6.47.
"""

from typing import TYPE_CHECKING, Final

from hvemu.devices.scsi.operations import Access, Operation, Request, operation
from hvemu.devices.scsi.sense import invalid_cdb_field
from hvemu.vocabulary.scsi import CDB_LENGTHS, Opcode

if TYPE_CHECKING:
    from hvemu.devices.scsi.unit import Unit

_REPORT_OPCODES, _REPORT_TASK_MANAGEMENT = 0x0C, 0x0D
_NOT_SUPPORTED, _SUPPORTED = 0b001, 0b011
_LEAST_LUNS_ALLOCATION: Final = 16
_TASK_MANAGEMENT: Final = b"\xd8\0\0\0"
"""ABORT TASK, ABORT TASK SET, CLEAR TASK SET and LOGICAL UNIT RESET."""
_TASK_MANAGEMENT_EXTENDED: Final = b"\xd8\0\0\x0c" + bytes(12)


def _test_unit_ready(unit: "Unit", request: Request) -> bytes:
    unit.check_medium()
    return b""


def _request_sense(unit: "Unit", request: Request) -> bytes:
    sense = unit.take_sense(request.initiator)
    return sense.packed(descriptor=bool(request.cdb[1] & 1))[: request.cdb[4]]


def _inquiry(unit: "Unit", request: Request) -> bytes:
    length, code = request.number(3, 2), request.cdb[2]
    if not request.cdb[1] & 1:
        if code:
            raise invalid_cdb_field(2)
        return unit.identity.standard()[:length]
    if code not in unit.vital_product_data:
        raise invalid_cdb_field(2)
    page = unit.vital_page(code)
    return (bytes((unit.identity.device_type, code)) + len(page).to_bytes(2, "big") + page)[:length]


def report_luns(cdb: bytes, luns: tuple[int, ...]) -> bytes:
    """The parameter data of REPORT LUNS, cut to the allocation length; no well-known units are there."""
    select, length = cdb[2], int.from_bytes(cdb[6:10], "big")
    if select > 2:
        raise invalid_cdb_field(2)
    if length < _LEAST_LUNS_ALLOCATION:
        raise invalid_cdb_field(6)
    entries = b"" if select == 1 else b"".join(packed_lun(lun) for lun in luns)
    return (len(entries).to_bytes(4, "big") + bytes(4) + entries)[:length]


def packed_lun(lun: int) -> bytes:
    """Single level addressing: peripheral device method up to 255, flat space method above (SAM-5 4.7.7)."""
    return (lun if lun < 256 else 0x4000 | lun).to_bytes(2, "big") + bytes(6)


def _report_luns(unit: "Unit", request: Request) -> bytes:
    return report_luns(request.cdb, unit.lun_list)


def _report_opcodes(unit: "Unit", request: Request) -> bytes:
    timeouts, option = bool(request.cdb[2] & 0x80), request.cdb[2] & 0x07
    opcode, action, length = request.cdb[3], request.number(4, 2), request.number(6, 4)
    if option == 0:
        rows = sorted(unit.operations.rows, key=lambda row: (row.opcode, row.service_action or 0))
        listed = b"".join(_command_descriptor(row, timeouts) for row in rows)
        return (len(listed).to_bytes(4, "big") + listed)[:length]
    actions = unit.operations.actions(opcode)
    if option == 1:
        if actions and None not in actions:
            raise invalid_cdb_field(2, 2)  # it has service actions: option 2 or 3 asks for them
        found = actions.get(None)
    elif option == 2:
        if None in actions:
            raise invalid_cdb_field(2, 2)
        found = actions.get(action)
    elif option == 3:
        found = actions.get(None) if action == 0 and None in actions else actions.get(action)
    else:
        raise invalid_cdb_field(2, 2)
    return _one_command(found, timeouts)[:length]


def _command_descriptor(row: Operation, timeouts: bool) -> bytes:
    flags = (0x02 if timeouts else 0) | (0x01 if row.service_action is not None else 0)
    descriptor = bytes((row.opcode, 0)) + (row.service_action or 0).to_bytes(2, "big") + bytes((0, flags))
    return descriptor + CDB_LENGTHS[row.opcode >> 5].to_bytes(2, "big") + (_NO_TIMEOUTS if timeouts else b"")


_NO_TIMEOUTS: Final = b"\0\x0a" + bytes(10)


def _one_command(row: Operation | None, timeouts: bool) -> bytes:
    if row is None:
        return bytes((0, _NOT_SUPPORTED, 0, 0))
    usage = bytearray(row.usage)
    usage[0] = row.opcode
    if row.service_action is not None:
        usage[1] = usage[1] & ~0x1F | row.service_action
    header = bytes((0, (0x80 if timeouts else 0) | _SUPPORTED)) + len(usage).to_bytes(2, "big")
    return header + bytes(usage) + (_NO_TIMEOUTS if timeouts else b"")


def _report_task_management(unit: "Unit", request: Request) -> bytes:
    data = _TASK_MANAGEMENT_EXTENDED if request.cdb[2] & 0x80 else _TASK_MANAGEMENT
    length = request.number(6, 4)
    if length < 4:
        raise invalid_cdb_field(6)
    return data[:length]


PRIMARY_OPERATIONS: Final = (
    operation(Opcode.TEST_UNIT_READY, "00 00 00 00", Access.READINESS, _test_unit_ready),
    operation(Opcode.REQUEST_SENSE, "01 00 00 FF", Access.FREE, _request_sense),
    operation(Opcode.INQUIRY, "01 FF FF FF", Access.FREE, _inquiry),
    operation(Opcode.REPORT_LUNS, "00 FF 00 00 00 FF FF FF FF 00", Access.FREE, _report_luns),
    operation(
        Opcode.MAINTENANCE_IN,
        "1F 87 FF FF FF FF FF FF FF 00",
        Access.WRITE,
        _report_opcodes,
        service_action=_REPORT_OPCODES,
        name="REPORT SUPPORTED OPERATION CODES",
    ),
    operation(
        Opcode.MAINTENANCE_IN,
        "1F 80 00 00 00 FF FF FF FF 00",
        Access.WRITE,
        _report_task_management,
        service_action=_REPORT_TASK_MANAGEMENT,
        name="REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    ),
)
