"""RESERVE, RELEASE, PERSISTENT RESERVE IN and OUT.

Spec: SPC-4 6.15 and 6.16, 7.6.4 (TransportID); SPC-2 7.17, 7.21.
"""

import re
from typing import TYPE_CHECKING, Final

from hvemu.devices.scsi.operations import Access, Handler, Operation, Request, operation
from hvemu.devices.scsi.reservations import TYPE_MASK, reservation_type
from hvemu.devices.scsi.sense import invalid_parameter, parameter_list_length_error
from hvemu.vocabulary.scsi import Opcode

if TYPE_CHECKING:
    from hvemu.devices.scsi.unit import Unit

_PARAMETERS: Final = 24


def _reserve(unit: "Unit", request: Request) -> bytes:
    """The whole unit, for the sender: extents and third parties are obsolete and not in the usage mask."""
    unit.reservations.reserve_legacy(request.initiator)
    return b""


def _release(unit: "Unit", request: Request) -> bytes:
    unit.reservations.release_legacy(request.initiator)
    return b""


def _read_keys(unit: "Unit", request: Request) -> bytes:
    keys = b"".join(key.to_bytes(8, "big") for key in unit.reservations.keys.values())
    return _generation(unit) + len(keys).to_bytes(4, "big") + keys


def _read_reservation(unit: "Unit", request: Request) -> bytes:
    held = unit.reservations
    if held.kind is None:
        return _generation(unit) + bytes(4)
    key = 0 if held.holder is None else held.keys[held.holder]
    return _generation(unit) + b"\0\0\0\x10" + key.to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, held.kind, 0, 0))


def _report_capabilities(unit: "Unit", request: Request) -> bytes:
    """Neither CRH, SIP_C, ATP_C nor PTPL_C; all six types (TMV); what is allowed is not told (ALLOW COMMANDS 0)."""
    types = bytes((TYPE_MASK & 0xFF, TYPE_MASK >> 8))
    return b"\0\x08\0\x80" + types + bytes(2)


def _read_full_status(unit: "Unit", request: Request) -> bytes:
    held = unit.reservations
    descriptors = b""
    for nexus, key in held.keys.items():
        holder = held.holds(nexus)
        scope = bytes((0x01 if holder else 0, held.kind if holder and held.kind is not None else 0))
        transport = transport_id(nexus)
        descriptors += key.to_bytes(8, "big") + bytes(4) + scope + bytes(4) + b"\0\x01"
        descriptors += len(transport).to_bytes(4, "big") + transport
    return _generation(unit) + len(descriptors).to_bytes(4, "big") + descriptors


def transport_id(nexus: str) -> bytes:
    """An initiator port: an iSCSI name with its ISID, or the identifier of a device on a parallel bus."""
    if nexus.startswith(("iqn.", "eui.", "naa.")):
        text = nexus.encode() + b"\0"
        text += bytes(max(-len(text) % 4, 20 - len(text)))
        return bytes((0x45 if ",i,0x" in nexus else 0x05, 0)) + len(text).to_bytes(2, "big") + text
    digits = re.search(r"\d{1,3}$", nexus)
    return b"\x01\0" + int(digits[0] if digits else "0").to_bytes(2, "big") + b"\0\0\0\x01" + bytes(16)


def _cut(handler: Handler) -> Handler:
    return lambda unit, request: handler(unit, request)[: request.number(7, 2)]


def _generation(unit: "Unit") -> bytes:
    return unit.reservations.generation.to_bytes(4, "big")


class _Parameters:
    """The parameter list of PERSISTENT RESERVE OUT (SPC-4 table 185)."""

    def __init__(self, request: Request) -> None:
        length = request.number(5, 4)
        if length != _PARAMETERS:
            request.wanted = length
            raise parameter_list_length_error()
        data = request.parameters(length)
        self.key = int.from_bytes(data[0:8], "big")
        self.action_key = int.from_bytes(data[8:16], "big")
        flags = data[20]
        for bit in (3, 2, 0):  # SPEC_I_PT, ALL_TG_PT, APTPL: REPORT CAPABILITIES says that there are none
            if flags >> bit & 1:
                raise invalid_parameter(20, bit)


def _register(unit: "Unit", request: Request) -> bytes:
    parameters = _Parameters(request)
    ignore = request.operation.service_action == 6
    unit.reservations.register(request.initiator, parameters.key, parameters.action_key, ignore=ignore)
    return b""


def _persistent_reserve(unit: "Unit", request: Request) -> bytes:
    parameters, kind = _Parameters(request), reservation_type(request.cdb[2])
    unit.reservations.reserve(request.initiator, parameters.key, kind)
    return b""


def _persistent_release(unit: "Unit", request: Request) -> bytes:
    parameters, kind = _Parameters(request), reservation_type(request.cdb[2])
    unit.reservations.release(request.initiator, parameters.key, kind)
    return b""


def _clear(unit: "Unit", request: Request) -> bytes:
    unit.reservations.clear(request.initiator, _Parameters(request).key)
    return b""


def _preempt(unit: "Unit", request: Request) -> bytes:
    """Also PREEMPT AND ABORT: commands are carried out at once, so that there is none to abort."""
    parameters = _Parameters(request)
    kind = reservation_type(request.cdb[2])
    unit.reservations.preempt(request.initiator, parameters.key, parameters.action_key, kind)
    return b""


def _in(action: int, name: str, handler: Handler) -> Operation:
    title = f"PERSISTENT RESERVE IN, {name}"
    return operation(
        Opcode.PERSISTENT_RESERVE_IN,
        "1F 00 00 00 00 00 FF FF",
        Access.PERSISTENT,
        _cut(handler),
        service_action=action,
        name=title,
    )


def _out(action: int, name: str, handler: Handler) -> Operation:
    """Scope and type are looked at where the action uses them."""
    return operation(
        Opcode.PERSISTENT_RESERVE_OUT,
        "1F FF 00 00 FF FF FF FF",
        Access.PERSISTENT,
        handler,
        service_action=action,
        name=f"PERSISTENT RESERVE OUT, {name}",
    )


RESERVATION_OPERATIONS: Final = (
    operation(Opcode.RESERVE_6, "00 00 00 00", Access.LEGACY, _reserve),
    operation(Opcode.RELEASE_6, "00 00 00 00", Access.LEGACY, _release),
    operation(Opcode.RESERVE_10, "00 00 00 00 00 00 00 00", Access.LEGACY, _reserve),
    operation(Opcode.RELEASE_10, "00 00 00 00 00 00 00 00", Access.LEGACY, _release),
    _in(0, "READ KEYS", _read_keys),
    _in(1, "READ RESERVATION", _read_reservation),
    _in(2, "REPORT CAPABILITIES", _report_capabilities),
    _in(3, "READ FULL STATUS", _read_full_status),
    _out(0, "REGISTER", _register),
    _out(1, "RESERVE", _persistent_reserve),
    _out(2, "RELEASE", _persistent_release),
    _out(3, "CLEAR", _clear),
    _out(4, "PREEMPT", _preempt),
    _out(5, "PREEMPT AND ABORT", _preempt),
    _out(6, "REGISTER AND IGNORE EXISTING KEY", _register),
)
