"""The back end of paravirtual SCSI: requests with a CDB on a shared ring, data on pages that the guest grants.

The two sides find each other through the store: the guest writes where its ring is and which event channel it has, and
says that it is initialised; the host connects. Layout of io/vscsiif.h: 252 bytes a slot, up to 26 segments a request.
Requests are served by an event of virtual time, never within the guest's hypercall.
"""

import struct
from collections.abc import Callable
from typing import Final

from hvemu.devices.contract import Clock
from hvemu.devices.deadline import Deadline
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.contract import Command
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual.event_channels import EventChannels
from hvemu.paravirtual.grant_table import GrantError, GrantTable, Mapping
from hvemu.paravirtual.ring import BackRing, RingError
from hvemu.paravirtual.store import Store
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.xen import HypercallError

FRONT: Final = "device/vscsi/0"
BACK: Final = "/local/domain/0/backend/vscsi/1/0"
INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = b"2", b"3", b"4", b"5", b"6"
SERVICE_TIME: Final = 20_000
"""Nanoseconds from a notification to the answer."""
ACTION_CDB, ACTION_ABORT, ACTION_RESET = 1, 2, 3
TO_DEVICE, FROM_DEVICE = 1, 2
MOST_SEGMENTS: Final = 26
NO_CONNECT, ERROR, SUCCESS, FAILED = 0x01 << 16, 0x07 << 16, 0x2002, 0x2003
SLOT: Final = 252
_REQUEST: Final = struct.Struct("<HBB16sHHHHHBB")
_SEGMENT: Final = struct.Struct("<IHH")
_RESPONSE: Final = struct.Struct("<HBB96siI")
_INITIATOR: Final = "paravirtual"


class ScsiBackEnd:
    """The host's end, for the targets of ``bus``."""

    def __init__(
        self,
        bus: ScsiBus,
        memory: GuestPhysicalMemory,
        grants: GrantTable,
        events: EventChannels,
        store: Store,
        clock: Clock,
    ) -> None:
        self._bus, self._memory, self._grants, self._events = bus, memory, grants, events
        self._store, self._clock = store, clock
        self._due = Deadline(clock, self._serve)
        self._ring: BackRing | None = None
        self._ring_page: Mapping | None = None
        self._raise: Callable[[], None] = lambda: None
        self.warn: Callable[[str], None] = lambda text: None

    def announce(self) -> None:
        """Tell the guest, through the store, what there is."""
        write = self._store.write
        for number, identifier in enumerate(self._bus.targets):
            device = f"{BACK}/vscsi-devs/dev-{number}"
            write(f"{device}/v-dev", f"0:0:{identifier}:0".encode())
            write(f"{device}/state", CONNECTED)
        write(f"{BACK}/frontend", b"/local/domain/1/" + FRONT.encode())
        write(f"{FRONT}/backend", BACK.encode())
        write(f"{FRONT}/backend-id", b"0")
        write(f"{FRONT}/state", b"1")
        write(f"{BACK}/state", INIT_WAIT)

    def changed(self, name: str) -> None:
        """The guest has written to the store."""
        if name != f"/local/domain/1/{FRONT}/state":
            return
        state = self._store.read(f"{FRONT}/state")
        if state == INITIALISED and self._ring is None:
            self._connect()
        elif state in (CLOSING, CLOSED):
            self._disconnect()
            self._store.write(f"{BACK}/state", CLOSED)

    def quiesce(self) -> None:
        """Answer what was notified."""
        if self._due.at is not None:
            self._due.arm(None)
            self._serve()

    def reset(self) -> None:
        """The guest and all that it granted are gone; what was notified is never answered."""
        self._due.arm(None)
        self._ring = self._ring_page = None

    def _connect(self) -> None:
        try:
            reference, port = (
                int(self._store.read(f"{FRONT}/{name}") or b"") for name in ("ring-ref", "event-channel")
            )
            page = self._grants.map(reference, write=True)
        except (ValueError, GrantError) as problem:
            self.warn(f"the guest's SCSI ring cannot be used: {problem}")
            return
        try:
            self._raise = self._events.bind(port, self._notified)
        except HypercallError as problem:
            self._grants.unmap(page)
            self.warn(f"the guest's SCSI event channel cannot be used: {problem}")
            return
        self._ring_page, self._ring = page, BackRing(self._memory, page.address, SLOT)
        self._store.write(f"{BACK}/state", CONNECTED)

    def _disconnect(self) -> None:
        self._due.arm(None)
        if self._ring_page is not None:
            self._grants.unmap(self._ring_page)
        self._ring = self._ring_page = None

    def _notified(self) -> None:
        if self._ring is not None and self._due.at is None:
            self._due.arm(self._clock.now() + SERVICE_TIME)

    def _serve(self) -> None:
        """Everything that is on the ring."""
        if self._ring is None:
            return
        try:
            responses = [self._answer(request) for request in self._ring.requests()]
        except RingError as problem:
            self._disconnect()
            self.warn(f"the guest's SCSI ring is cut off: {problem}")
            return
        if self._ring.respond(responses):
            self._raise()

    def _answer(self, request: bytes) -> bytes:
        identifier, action, length, cdb, _, channel, target, lun, _, direction, count = _REQUEST.unpack_from(request)
        result, sense, residual = ERROR, b"", 0
        if action == ACTION_RESET:
            result = SUCCESS if not channel and self._bus.reset_unit(target, lun) else FAILED
        elif action == ACTION_ABORT:
            result = SUCCESS  # there is never a command that has not ended
        elif action == ACTION_CDB and length <= len(cdb) and count <= MOST_SEGMENTS:
            segments = [_SEGMENT.unpack_from(request, _REQUEST.size + _SEGMENT.size * index) for index in range(count)]
            try:
                result, sense, residual = self._command(cdb[:length], channel, target, lun, direction, segments)
            except GrantError:
                result = ERROR
        return _RESPONSE.pack(identifier, 0, len(sense), sense, result, residual).ljust(SLOT, b"\0")

    def _command(
        self, cdb: bytes, channel: int, target: int, lun: int, direction: int, segments: list[tuple[int, int, int]]
    ) -> tuple[int, bytes, int]:
        """Result, sense data and residual; raises GrantError."""
        if any(offset + length > PAGE_SIZE for _, offset, length in segments):
            return ERROR, b"", 0
        pages: list[Mapping] = []
        try:
            for reference, _, _ in segments if direction in (TO_DEVICE, FROM_DEVICE) else ():
                pages.append(self._grants.map(reference, write=direction == FROM_DEVICE))
            places = [
                (page.address + offset, length) for page, (_, offset, length) in zip(pages, segments, strict=False)
            ]
            room = sum(length for _, length in places)
            out = b"".join(self._memory.read(*place) for place in places) if direction == TO_DEVICE else b""
            answer = None if channel else self._bus.execute(target, lun, Command(cdb, out, _INITIATOR))
            if answer is None:
                return NO_CONNECT, b"", room
            data = answer.data_in if direction == FROM_DEVICE else b""
            used = answer.data_out_length if direction == TO_DEVICE else len(data)
            done = 0
            for address, length in places:
                if done < len(data):
                    self._memory.write(address, data[done : done + length])
                    done += length
            return answer.status, answer.sense[:96], max(0, room - used)
        finally:
            for page in pages:
                self._grants.unmap(page)
