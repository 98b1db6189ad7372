"""What an initiator may ask for in the full feature phase, one function a request.

Spec: RFC 7143 11.2 to 11.19; 4.2.3 and 11.5 (task management).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from hvemu.devices.scsi.sense import Sense
from hvemu.iscsi.pdu import NO_TAG, Opcode, Pdu, ProtocolError, lun_number
from hvemu.iscsi.portal import PORTAL_GROUP
from hvemu.iscsi.tasks import DataError, Task
from hvemu.iscsi.text import Keys, negotiate, pack_keys, parse_keys
from hvemu.vocabulary.scsi import AdditionalSense, SenseKey

if TYPE_CHECKING:
    from hvemu.iscsi.connection import Connection

SNACK_REJECT, PROTOCOL_ERROR, COMMAND_NOT_SUPPORTED, TASK_IN_PROGRESS, INVALID_FIELD = 0x03, 0x04, 0x05, 0x07, 0x09
_COMPLETE, _NO_TASK, _NO_LUN, _NO_REASSIGNMENT, _NOT_SUPPORTED = 0, 1, 2, 4, 5
_ABORT_TASK, _ABORT_TASK_SET, _CLEAR_TASK_SET, _LUN_RESET, _WARM_RESET, _COLD_RESET, _REASSIGN = 1, 2, 4, 5, 6, 7, 8
INCORRECT_AMOUNT_OF_DATA: Final = Sense(
    SenseKey.ABORTED_COMMAND, AdditionalSense.WRITE_ERROR_NOT_ENOUGH_UNSOLICITED_DATA
)
"""RFC 7143 11.4.7.2."""


def _response(opcode: Opcode, pdu: Pdu) -> bytearray:
    header = bytearray(48)
    header[0], header[1], header[16:20] = opcode, 0x80, pdu.header[16:20]
    return header


def _nop_out(connection: "Connection", pdu: Pdu) -> None:
    """An answer to nothing we asked for is dropped; a ping comes back with its data."""
    if pdu.task_tag == NO_TAG:
        return
    header = _response(Opcode.NOP_IN, pdu)
    header[8:16], header[20:24] = pdu.lun, NO_TAG.to_bytes(4, "big")
    connection.send(header, pdu.data[: connection.parameters.peer_segment])


def _scsi_command(connection: "Connection", pdu: Pdu) -> None:
    task, parameters = Task(pdu), connection.parameters
    if task.tag in connection.tasks or task.tag == NO_TAG:
        connection.reject(pdu, TASK_IN_PROGRESS)
    elif task.reads and task.writes:
        connection.reject(pdu, COMMAND_NOT_SUPPORTED)
    elif pdu.data and (not parameters.immediate_data or len(pdu.data) > min(parameters.first_burst, task.needed)):
        raise ProtocolError("a command has more immediate data than was agreed on")
    elif task.unsolicited and parameters.initial_r2t:
        raise ProtocolError("a command announces unsolicited data, which was not agreed on")
    elif not task.writes and not pdu.final:
        connection.reject(pdu, INVALID_FIELD)
    else:
        connection.start(task)


def _data_out(connection: "Connection", pdu: Pdu) -> None:
    """Data of a task that has gone is dropped: it was aborted, or outside of the window."""
    task = connection.tasks.get(pdu.task_tag)
    if task is None:
        return
    if not task.unsolicited and not (connection.soliciting and connection.soliciting[0] is task):
        raise ProtocolError("Data-Out comes for a task that was not asked for any")
    try:
        ended = task.accept(pdu)
    except DataError:
        connection.fail(task, INCORRECT_AMOUNT_OF_DATA)
        return
    if ended:
        connection.burst_ended(task)


def _task_management(connection: "Connection", pdu: Pdu) -> None:
    function, lun = pdu.flags & 0x7F, lun_number(pdu.lun)
    header = _response(Opcode.TASK_MANAGEMENT_RESPONSE, pdu)
    header[2] = _manage(connection, pdu, function, lun)
    connection.send(header)
    if function == _COLD_RESET and connection.target is not None:
        for session in connection.portal.sessions_of(connection.target):
            if session is not connection:
                session.hang_up("the target was reset")
        connection.end("the target was reset")


def _manage(connection: "Connection", pdu: Pdu, function: int, lun: int) -> int:
    target = connection.target
    assert target is not None
    if function == _REASSIGN:
        return _NO_REASSIGNMENT
    if function in (_WARM_RESET, _COLD_RESET):
        target.reset("power on" if function == _COLD_RESET else "logical unit")
        for session in connection.portal.sessions_of(target):
            session.abort_tasks(None)
        return _COMPLETE
    if function not in (_ABORT_TASK, _ABORT_TASK_SET, _CLEAR_TASK_SET, _LUN_RESET):
        return _NOT_SUPPORTED
    if lun not in target.units:
        return _NO_LUN
    if function == _ABORT_TASK:
        return _abort(connection, pdu)
    if function == _ABORT_TASK_SET:
        connection.abort_tasks(lun)
        return _COMPLETE
    for session in connection.portal.sessions_of(target):
        session.abort_tasks(lun)
    if function == _LUN_RESET:
        target.units[lun].reset("logical unit")
    return _COMPLETE


def _abort(connection: "Connection", pdu: Pdu) -> int:
    """A task that waits for data, or for its turn."""
    task = connection.tasks.get(pdu.word(20))
    if task is not None:
        connection.forget(task)
        return _COMPLETE
    return _COMPLETE if connection.drop_early(pdu.word(32), pdu.word(20)) else _NO_TASK


def _text(connection: "Connection", pdu: Pdu) -> None:
    """SendTargets, and a new MaxRecvDataSegmentLength; in one PDU."""
    if not pdu.final or pdu.flags & 0x40 or pdu.word(20) != NO_TAG:
        connection.reject(pdu, COMMAND_NOT_SUPPORTED)
        return
    keys = parse_keys(pdu.data)
    listed = _send_targets(connection, keys.pop("SendTargets")) if "SendTargets" in keys else b""
    allowed = {key: value for key, value in keys.items() if key == "MaxRecvDataSegmentLength"}
    answers: Keys = negotiate(connection.parameters, allowed)
    answers |= {key: "Reject" for key in keys if key not in allowed}
    header = _response(Opcode.TEXT_RESPONSE, pdu)
    header[20:24] = NO_TAG.to_bytes(4, "big")
    connection.send(header, (listed + pack_keys(answers))[: connection.parameters.peer_segment])


def _send_targets(connection: "Connection", which: str) -> bytes:
    """All targets in a discovery session, one by name, and the session's own for no name."""
    portal = connection.portal
    if which == "All":
        names = list(portal.targets) if connection.target is None else []
    else:
        names = [which or connection.login.target_name]
    lines = [
        f"TargetName={name}\0TargetAddress={connection.address},{PORTAL_GROUP}\0"
        for name in names
        if name in portal.targets
    ]
    return "".join(lines).encode()


def _logout(connection: "Connection", pdu: Pdu) -> None:
    """Reason 2, recovery, needs error recovery level 1 or more."""
    reason = pdu.flags & 0x7F
    header = _response(Opcode.LOGOUT_RESPONSE, pdu)
    header[2] = 0 if reason in (0, 1) else 2
    connection.send(header)
    if reason in (0, 1):
        connection.end("the initiator has logged out")


def _snack(connection: "Connection", pdu: Pdu) -> None:
    connection.reject(pdu, SNACK_REJECT)


HANDLERS: Final[Mapping[int, Callable[["Connection", Pdu], None]]] = {
    Opcode.NOP_OUT: _nop_out,
    Opcode.SCSI_COMMAND: _scsi_command,
    Opcode.TASK_MANAGEMENT_REQUEST: _task_management,
    Opcode.TEXT_REQUEST: _text,
    Opcode.DATA_OUT: _data_out,
    Opcode.LOGOUT_REQUEST: _logout,
    Opcode.SNACK: _snack,
}
IN_DISCOVERY: Final = frozenset({Opcode.NOP_OUT, Opcode.TEXT_REQUEST, Opcode.LOGOUT_REQUEST})
