"""Command control blocks of BusLogic MultiMaster adapters: what a driver asks for, and how it is told of the end.

A block of the 32-bit kind comes with mailboxes of the 32-bit kind; the 24-bit kind is the Adaptec AHA-154x's.
A list of segments gives addresses and lengths; the data length field then counts the bytes of the list.

Not emulated: linked commands, the target role, sense data kept for a later REQUEST SENSE where autosense is off.
Spec: the structures and status codes in Linux's drivers/scsi/BusLogic.h and FreeBSD's sys/dev/buslogic/btreg.h;
AHA-1540C/1542C Technical Reference Manual, "Command Control Block" (24-bit).
"""

import struct
from typing import Final, NamedTuple

from hvemu.devices.contract import GuestMemory
from hvemu.devices.dma import LONGEST_REQUEST, gather, scatter
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.vocabulary.addresses import GuestPhysical
from hvemu.vocabulary.scsi import Status

OWN_ID: Final = 7
TARGETS: Final = 16
MOST_SEGMENTS: Final = 8192
"""Segments of one list, as Inquire Extended Setup Information declares."""
INITIATOR, INITIATOR_LIST, INITIATOR_RESIDUAL, INITIATOR_LIST_RESIDUAL, BUS_DEVICE_RESET = 0x00, 0x02, 0x03, 0x04, 0x81
UNCHECKED, DATA_IN, DATA_OUT, NO_DATA = 0, 1, 2, 3
"""Data direction; where it is unchecked, the target chooses and the length is not compared."""
NORMAL, SELECTION_TIMEOUT, DATA_RUN, INVALID_PHASE = 0x00, 0x11, 0x12, 0x14
INVALID_ACTION, INVALID_OPCODE, INVALID_PARAMETER = 0x15, 0x16, 0x1A
_LISTS: Final = frozenset({INITIATOR_LIST, INITIATOR_LIST_RESIDUAL})
_WITH_RESIDUAL: Final = frozenset({INITIATOR_RESIDUAL, INITIATOR_LIST_RESIDUAL})
_OPCODES: Final = _LISTS | _WITH_RESIDUAL | {INITIATOR}
_LENGTH_FIELD, _STATUS_FIELD, _CDB_FIELD, _LONGEST_CDB = 4, 14, 18, 12
_WIDE: Final = struct.Struct("<BBBBIIHBBBB12s6sI")
_WIDE_SEGMENT: Final = struct.Struct("<II")
_SENSE_DEFAULT, _SENSE_OFF = 14, 1
_SEGMENT_COST: Final = 512
_NAME: Final = "buslogic"

Pieces = list[tuple[int, int]]


class Ccb(NamedTuple):
    """The fields of either kind; addresses are guest-physical, lengths bytes. ``sense_length`` is as written."""

    address: int
    wide: bool
    """Of the 32-bit kind."""
    opcode: int
    direction: int
    cdb_length: int
    sense_length: int
    data_length: int
    data_address: int
    target: int
    lun: int
    cdb: bytes
    sense_address: int


class Ending(NamedTuple):
    """Host adapter status, target status, and what the work has cost, in bytes copied."""

    host_status: int
    target_status: int = Status.GOOD
    cost: int = 0


def fetch(memory: GuestMemory, address: int, *, wide: bool, extended_lun: bool) -> Ccb:
    """Read a block; ``extended_lun`` says that the logical unit has six bits, not three (32-bit kind)."""
    return _fetch_wide(memory, address, 0x3F if extended_lun else 0x07) if wide else _fetch_narrow(memory, address)


def _fetch_wide(memory: GuestMemory, address: int, lun_mask: int) -> Ccb:
    raw = memory.read(GuestPhysical(address), _WIDE.size)
    opcode, control, cdb_length, sense_length, length, data, _, _, _, target, lun, cdb, _, sense = _WIDE.unpack(raw)
    return Ccb(
        address, True, opcode, control >> 3 & 3, cdb_length, sense_length, length, data,
        target, lun & lun_mask, cdb[:cdb_length], sense,
    )  # fmt: skip


def _fetch_narrow(memory: GuestMemory, address: int) -> Ccb:
    raw = memory.read(GuestPhysical(address), _CDB_FIELD + _LONGEST_CDB)
    cdb_length = raw[2]
    return Ccb(
        address, False, raw[0], raw[1] >> 3 & 3, cdb_length, raw[3],
        int.from_bytes(raw[4:7], "big"), int.from_bytes(raw[7:10], "big"),
        raw[1] >> 5, raw[1] & 7, raw[_CDB_FIELD:][:cdb_length], address + _CDB_FIELD + cdb_length,
    )  # fmt: skip


def finish(memory: GuestMemory, ccb: int, ending: Ending) -> None:
    """Write the two statuses into the block, which both kinds have at the same place."""
    memory.write(GuestPhysical(ccb + _STATUS_FIELD), bytes((ending.host_status, ending.target_status)))


def carry_out(bus: ScsiBus, memory: GuestMemory, ccb: Ccb) -> Ending:
    """Do what the block asks for, except for writing the statuses."""
    if ccb.opcode == BUS_DEVICE_RESET:
        there = ccb.target != OWN_ID and bus.reset_target(ccb.target)
        return Ending(NORMAL if there else SELECTION_TIMEOUT)
    if ccb.opcode not in _OPCODES:
        return Ending(INVALID_OPCODE)
    pieces = _pieces(memory, ccb)
    if pieces is None or ccb.target >= TARGETS or not 1 <= ccb.cdb_length <= _LONGEST_CDB:
        return Ending(INVALID_PARAMETER)
    room = sum(length for _, length in pieces)
    data_out = gather(memory, pieces) if ccb.direction in (DATA_OUT, UNCHECKED) else b""
    answer = None
    if ccb.target != OWN_ID:
        answer = bus.execute(ccb.target, ccb.lun, Command(ccb.cdb, data_out, _NAME))
    cost = max(room, len(answer.data_in) if answer else 0) + _SEGMENT_COST * (1 + len(pieces))
    if answer is None:
        _report_residual(memory, ccb, room)
        return Ending(SELECTION_TIMEOUT, Status.GOOD, cost)
    if ccb.direction in (DATA_IN, UNCHECKED):
        scatter(memory, pieces, answer.data_in)
    residual = room - max(len(answer.data_in), answer.data_out_length)
    _report_residual(memory, ccb, residual)
    _report_sense(memory, ccb, answer)
    return Ending(_judge(ccb.direction, answer, residual), answer.status, cost)


def _judge(direction: int, answer: Answer, residual: int) -> int:
    """The host adapter status of a command that a target has ended."""
    if direction == UNCHECKED or answer.status != Status.GOOD:
        return NORMAL
    if (direction == DATA_IN and answer.data_out_length) or (direction == DATA_OUT and answer.data_in):
        return INVALID_PHASE
    return DATA_RUN if residual else NORMAL


def _pieces(memory: GuestMemory, ccb: Ccb) -> Pieces | None:
    """Where the data is; None where the list is no list or too much is asked for."""
    if ccb.direction == NO_DATA:
        return []
    if ccb.opcode not in _LISTS:
        return [(ccb.data_address, ccb.data_length)] if ccb.data_length <= LONGEST_REQUEST else None
    entry = _WIDE_SEGMENT.size if ccb.wide else 6
    count, rest = divmod(ccb.data_length, entry)
    if rest or count > MOST_SEGMENTS:
        return None
    raw = memory.read(GuestPhysical(ccb.data_address), ccb.data_length)
    if ccb.wide:
        pieces = [(address, length) for length, address in _WIDE_SEGMENT.iter_unpack(raw)]
    else:
        numbers = [int.from_bytes(raw[start : start + 3], "big") for start in range(0, len(raw), 3)]
        pieces = list(zip(numbers[1::2], numbers[0::2], strict=True))
    return pieces if sum(length for _, length in pieces) <= LONGEST_REQUEST else None


def _report_residual(memory: GuestMemory, ccb: Ccb, residual: int) -> None:
    """Bytes that were not transferred; less than 0 where the target wanted more than there was room for."""
    if ccb.opcode in _WITH_RESIDUAL:
        field = (
            (residual & 0xFFFF_FFFF).to_bytes(4, "little") if ccb.wide else (residual & 0xFF_FFFF).to_bytes(3, "big")
        )
        memory.write(GuestPhysical(ccb.address + _LENGTH_FIELD), field)


def _report_sense(memory: GuestMemory, ccb: Ccb, answer: Answer) -> None:
    """Autosense: a length of 0 is 14 bytes, a length of 1 is none."""
    if answer.status == Status.CHECK_CONDITION and ccb.sense_length != _SENSE_OFF:
        sense = answer.sense[: ccb.sense_length or _SENSE_DEFAULT]
        memory.write(GuestPhysical(ccb.sense_address), sense)
