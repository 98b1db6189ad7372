"""The commands of a CD-ROM drive.

Spec: MMC-6 6.8 (GET CONFIGURATION), 6.7 (events), 6.11, 6.17 to 6.27, 6.26 (READ TOC), 5.3 (features).
"""

from typing import TYPE_CHECKING, Final

from hvemu.devices.scsi.operations import Access, Request, operation
from hvemu.devices.scsi.sense import invalid_cdb_field
from hvemu.vocabulary.scsi import Opcode

if TYPE_CHECKING:
    from hvemu.devices.scsi.cdrom import ScsiCdrom

_LEAD_OUT: Final = 0xAA
_DATA_TRACK: Final = 0x14
"""ADR 1, a data track."""
_PREGAP: Final = 150
"""Frames before block 0."""
_CD_ROM, _DVD_ROM = 0x0008, 0x0010
_MEDIA_CLASS: Final = 4


def _read(unit: "ScsiCdrom", request: Request) -> bytes:
    address = request.number(2, 4)
    count = request.number(7, 2) if len(request.cdb) == 10 else request.number(6, 4)
    if not count:
        return b""
    unit.check_range(address, count)
    if count > unit.longest_transfer:
        raise invalid_cdb_field(7 if len(request.cdb) == 10 else 6)
    return unit.read_blocks(address, count)


def _read_capacity(unit: "ScsiCdrom", request: Request) -> bytes:
    return min(max(unit.blocks - 1, 0), 0xFFFFFFFF).to_bytes(4, "big") + unit.block_size.to_bytes(4, "big")


def _seek(unit: "ScsiCdrom", request: Request) -> bytes:
    unit.check_range(request.number(2, 4), 1)
    return b""


def _address(block: int, as_time: bool) -> bytes:
    """Four bytes: a block, or minutes, seconds and frames (75 a second)."""
    if not as_time:
        return block.to_bytes(4, "big")
    seconds, frame = divmod(block + _PREGAP, 75)
    minute, second = divmod(seconds, 60)
    return bytes((0, min(minute, 255), second, frame))


def _read_toc(unit: "ScsiCdrom", request: Request) -> bytes:
    """One session with one data track. The format may stand in the CONTROL byte as well (SFF-8020)."""
    as_time, track, length = bool(request.cdb[1] & 2), request.cdb[6], request.number(7, 2)
    form = request.cdb[2] & 0xF or request.cdb[9] >> 6
    end = min(unit.blocks, 0xFFFFFFFF)
    if form == 0:
        if track > 1 and track != _LEAD_OUT:
            raise invalid_cdb_field(6)
        entries = b"" if track == _LEAD_OUT else bytes((0, _DATA_TRACK, 1, 0)) + _address(0, as_time)
        entries += bytes((0, _DATA_TRACK, _LEAD_OUT, 0)) + _address(end, as_time)
    elif form == 1:
        entries = bytes((0, _DATA_TRACK, 1, 0)) + _address(0, as_time)
    elif form == 2:
        points: tuple[tuple[int, bytes], ...] = (
            (0xA0, bytes((0, 1, 0, 0))),
            (0xA1, bytes((0, 1, 0, 0))),
            (0xA2, _address(end, True)),
        )
        points += ((1, _address(0, True)),)
        entries = b"".join(bytes((1, _DATA_TRACK, 0, point, 0, 0, 0)) + where for point, where in points)
    else:
        raise invalid_cdb_field(2, 3)
    return ((2 + len(entries)).to_bytes(2, "big") + b"\x01\x01" + entries)[:length]


def _feature(code: int, version: int, persistent: bool, current: bool, data: bytes) -> tuple[int, bool, bytes]:
    flags = version << 2 | (2 if persistent else 0) | (1 if current else 0)
    return code, current, code.to_bytes(2, "big") + bytes((flags, len(data))) + data


def _get_configuration(unit: "ScsiCdrom", request: Request) -> bytes:
    which, start, length = request.cdb[1] & 3, request.number(2, 2), request.number(7, 2)
    if which == 3:
        raise invalid_cdb_field(1, 1)
    present = unit.medium is not None
    disc, video = present and not unit.is_dvd, present and unit.is_dvd
    profiles = b"".join(
        code.to_bytes(2, "big") + bytes((int(current), 0)) for code, current in ((_DVD_ROM, video), (_CD_ROM, disc))
    )
    random_readable = unit.block_size.to_bytes(4, "big") + b"\0\x10\x01\0"
    features = (
        _feature(0x0000, 0, True, True, profiles),
        _feature(0x0001, 2, True, True, b"\0\0\0\x01\x01\0\0\0"),  # SCSI, DBE
        _feature(0x0002, 1, True, True, b"\0\0\0\0"),  # polled events
        _feature(0x0003, 0, True, True, b"\x29\0\0\0"),  # tray, eject, lock
        _feature(0x0010, 0, False, present, random_readable),
        _feature(0x001E, 2, False, disc, b"\0\0\0\0"),
        _feature(0x001F, 0, False, video, b""),
    )
    chosen = b"".join(
        data
        for code, current, data in features
        if (code == start if which == 2 else code >= start) and (current or which != 1)
    )
    profile = _DVD_ROM if video else _CD_ROM if disc else 0
    return ((4 + len(chosen)).to_bytes(4, "big") + bytes(2) + profile.to_bytes(2, "big") + chosen)[:length]


def _get_events(unit: "ScsiCdrom", request: Request) -> bytes:
    """Polled only; of the classes only that of the medium has events."""
    if not request.cdb[1] & 1:
        raise invalid_cdb_field(1, 0)
    length = request.number(7, 2)
    if not request.cdb[4] & 1 << _MEDIA_CLASS:
        return bytes((0, 2, 0x80, 1 << _MEDIA_CLASS))[:length]  # NEA: none of these classes
    present = (2 if unit.medium is not None else 0) | (1 if unit.tray_open else 0)
    event = unit.take_event() if length >= 8 else 0
    return bytes((0, 6, _MEDIA_CLASS, 1 << _MEDIA_CLASS, event, present, 0, 0))[:length]


def _read_disc_information(unit: "ScsiCdrom", request: Request) -> bytes:
    """Complete, one session, one track; not erasable."""
    data = bytearray(34)
    data[1] = len(data) - 2
    data[2] = 0x0E
    data[3] = data[4] = data[5] = data[6] = 1
    data[7] = 0x20  # URU
    data[16:24] = b"\xff" * 8
    return bytes(data)[: request.number(7, 2)]


def _read_track_information(unit: "ScsiCdrom", request: Request) -> bytes:
    """By block, track or session: all of them are the one there is."""
    kind, number = request.cdb[1] & 3, request.number(2, 4)
    if kind == 3 or (kind == 0 and number >= unit.blocks) or (kind and number != 1):
        raise invalid_cdb_field(2)
    data = bytearray(36)
    data[1], data[2], data[3] = len(data) - 2, 1, 1
    data[5], data[6] = 0x04, 0x01  # a data track, mode 1
    data[24:28] = min(unit.blocks, 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)[: request.number(7, 2)]


def _mechanism_status(unit: "ScsiCdrom", request: Request) -> bytes:
    door = 0x10 if unit.tray_open else 0
    return bytes((0, door, 0, 0, 0, 0, 0, 0))[: request.number(8, 2)]


def _set_speed(unit: "ScsiCdrom", request: Request) -> bytes:
    """Every speed is the host's."""
    return b""


CDROM_OPERATIONS: Final = (
    operation(Opcode.READ_10, "18 FF FF FF FF 00 FF FF", Access.READ, _read, needs_medium=True),
    operation(Opcode.READ_12, "18 FF FF FF FF FF FF FF FF 80", Access.READ, _read, needs_medium=True),
    operation(Opcode.SEEK_10, "00 FF FF FF FF 00 00 00", Access.READ, _seek, needs_medium=True),
    operation(Opcode.READ_CAPACITY_10, "00 00 00 00 00 00 00 00", Access.FREE, _read_capacity, needs_medium=True),
    operation(Opcode.READ_TOC, "02 0F 00 00 00 FF FF FF", Access.READ, _read_toc, needs_medium=True, control=0xC0),
    operation(Opcode.GET_CONFIGURATION, "03 FF FF 00 00 00 FF FF", Access.FREE, _get_configuration),
    operation(Opcode.GET_EVENT_STATUS_NOTIFICATION, "01 00 00 FF 00 00 FF FF", Access.FREE, _get_events),
    operation(
        Opcode.READ_DISC_INFORMATION, "07 00 00 00 00 00 FF FF", Access.READ, _read_disc_information, needs_medium=True
    ),
    operation(
        Opcode.READ_TRACK_INFORMATION,
        "03 FF FF FF FF 00 FF FF",
        Access.READ,
        _read_track_information,
        needs_medium=True,
    ),
    operation(Opcode.MECHANISM_STATUS, "00 00 00 00 00 00 00 FF FF 00", Access.FREE, _mechanism_status),
    operation(Opcode.SET_CD_SPEED, "03 FF FF FF FF 00 00 00 00 00", Access.FREE, _set_speed),
)
