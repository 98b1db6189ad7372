"""The virtio SCSI host adapter: requests with a CDB on virtqueues, answered by the units of a SCSI bus.

Spec: Virtual I/O Device (VIRTIO) 1.2, 5.6 "SCSI Host Device". A LUN field addresses one target of up to 256 and a unit
of up to 16384 in it. Commands end as they are served, so there is never a task to abort.

Not emulated: hotplug and change events, asynchronous notifications, protection information.
"""

import struct
from typing import Final

from hvemu.devices.contract import GuestMemory
from hvemu.devices.dma import after, gather, scatter
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.contract import Command
from hvemu.devices.virtqueue import Chain, VirtqueueError

DEVICE_ID, SUBSYSTEM, CLASS_CODE = 0x1004, 8, 0x010000
CONTROL, EVENT, REQUEST = 0, 1, 2
INOUT: Final = 1 << 0
"""Feature: a request may have data in both directions."""
SENSE_SIZE, CDB_SIZE = 96, 32
MAXIMUM_TARGET, MAXIMUM_LUN = 255, 16383
SEGMENTS: Final = 126
MAXIMUM_SECTORS: Final = 16384
OK, BAD_TARGET, FAILURE, TMF_REJECTED, INCORRECT_LUN = 0, 3, 9, 11, 12
TMF, NOTIFICATION_QUERY, NOTIFICATION_SUBSCRIBE = 0, 1, 2
_LOGICAL_UNIT_RESET, _NEXUS_RESET, _LAST_TMF = 5, 4, 7
_CONFIGURATION: Final = struct.Struct("<IIIIIIIHHI")
_SENSE_FIELD, _CDB_FIELD = 20, 24
_INITIATOR: Final = "virtio-scsi"


class VirtioScsi:
    """The device behind the transport: a control queue, an event queue, a request queue."""

    queues = 3
    features = INOUT

    def __init__(self, bus: ScsiBus, memory: GuestMemory) -> None:
        self._bus, self._memory = bus, memory

    def configuration(self) -> bytes:
        """VIRTIO 5.6.4."""
        return _CONFIGURATION.pack(
            1, SEGMENTS, MAXIMUM_SECTORS, 64, 16, SENSE_SIZE, CDB_SIZE, 0, MAXIMUM_TARGET, MAXIMUM_LUN
        )

    def writable_configuration(self) -> bytes:
        """A driver chooses how long sense data and CDBs are."""
        mask = bytearray(_CONFIGURATION.size)
        mask[_SENSE_FIELD : _CDB_FIELD + 4] = b"\xff" * 8
        return bytes(mask)

    def reset(self) -> None:
        """Nothing is kept between requests."""

    def serve(self, queue: int, chain: Chain, configuration: bytes) -> int | None:
        """A request of any of the three queues."""
        if queue == EVENT:
            return None  # buffers wait for events, of which there are none
        if queue == CONTROL:
            return self._control(chain)
        return self._request(chain, configuration)

    def _request(self, chain: Chain, configuration: bytes) -> int:
        sense_size, cdb_size = struct.unpack_from("<II", configuration, _SENSE_FIELD)
        # A driver may ask for more than there is; a CDB has at most 260 bytes and sense data 252 (SPC-4)
        sense_size, cdb_size = min(sense_size, 252), min(cdb_size, 260)
        header, out = 19 + cdb_size, gather(self._memory, chain.readable)
        response_size = 12 + sense_size
        room = sum(length for _, length in chain.writable)
        if len(out) < header or room < response_size:
            raise VirtqueueError(f"a request has {len(out)} and {room} bytes where {header} and {response_size} belong")
        cdb, data_out = out[19:header], out[header:]
        expected_in = room - response_size
        place = _address(out[:8])
        if place is None or place[1] is None:
            return self._respond(chain, sense_size, 0, 0, BAD_TARGET if place is None else FAILURE)
        answer = self._bus.execute(place[0], place[1], Command(cdb, data_out, _INITIATOR))
        if answer is None:
            return self._respond(chain, sense_size, 0, 0, BAD_TARGET)
        data_in = answer.data_in[:expected_in]
        residual = max(0, len(data_out) - answer.data_out_length) if data_out else expected_in - len(data_in)
        written = self._respond(chain, sense_size, residual, answer.status, OK, answer.sense)
        return written + scatter(self._memory, after(chain.writable, response_size), data_in)

    def _respond(
        self, chain: Chain, sense_size: int, residual: int, status: int, response: int, sense: bytes = b""
    ) -> int:
        sense = sense[:sense_size]
        header = struct.pack("<IIHBB", len(sense), residual, 0, status, response)
        return scatter(self._memory, chain.writable, header + sense.ljust(sense_size, b"\0"))

    def _control(self, chain: Chain) -> int:
        out = gather(self._memory, chain.readable)
        if len(out) < 4 or not chain.writable:
            raise VirtqueueError("a control request has no type or no room for a response")
        kind = int.from_bytes(out[:4], "little")
        if kind in (NOTIFICATION_QUERY, NOTIFICATION_SUBSCRIBE):
            return scatter(self._memory, chain.writable, struct.pack("<IB", 0, OK))
        if kind != TMF or len(out) < 24:
            return scatter(self._memory, chain.writable, bytes((FAILURE,)))
        subtype, place = int.from_bytes(out[4:8], "little"), _address(out[8:16])
        return scatter(self._memory, chain.writable, bytes((self._manage(subtype, place),)))

    def _manage(self, subtype: int, place: tuple[int, int | None] | None) -> int:
        """SAM-5, 7: task management functions."""
        if place is None:
            return BAD_TARGET
        target, lun = place
        if lun is None:
            return INCORRECT_LUN
        if subtype > _LAST_TMF:
            return TMF_REJECTED
        if target not in self._bus.targets:
            return BAD_TARGET
        if subtype == _NEXUS_RESET:
            self._bus.reset_target(target)
        elif lun not in self._bus.targets[target].units:
            return INCORRECT_LUN
        elif subtype == _LOGICAL_UNIT_RESET:
            self._bus.reset_unit(target, lun)
        return OK


def _address(field: bytes) -> tuple[int, int | None] | None:
    """Target and unit of VIRTIO's LUN field; the unit is None where the format cannot be read."""
    if field[0] != 1:
        return None
    method, high = field[2] >> 6, field[2] & 0x3F
    return field[1], high << 8 | field[3] if method in (0, 1) else None
