"""What every logical unit does with a command before and after its handler.

Unit attentions and reservations belong to I_T nexuses, which are names; a nexus that was never seen has the unit
attention of power on. A disk or a CD-ROM subclasses ``Unit`` and gives its table of operations and its mode pages.
Spec: SAM-5 5.14 (unit attentions), 5.13 (sense data), 6.3 (resets); SPC-4.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from hvemu.devices.contract import DeviceState
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.devices.scsi.identity import Identity
from hvemu.devices.scsi.modes import CONTROL, ModePage, ModePages
from hvemu.devices.scsi.operations import OperationTable, Request, check_usage, whole_cdb
from hvemu.devices.scsi.reservations import Reservations
from hvemu.devices.scsi.sense import (
    NO_SENSE,
    CheckCondition,
    ReservationConflict,
    Sense,
    illegal,
    invalid_cdb_field,
    unit_attention,
)
from hvemu.vocabulary.scsi import AdditionalSense, Opcode, SenseKey, Status

MOST_NEXUSES: Final = 256
"""Nexuses whose unit attentions are remembered; the one that was silent longest is forgotten first."""
_MOST_ATTENTIONS: Final = 16
_BEFORE_ATTENTION: Final = frozenset({Opcode.INQUIRY, Opcode.REPORT_LUNS, Opcode.REQUEST_SENSE})
RESETS: Final[Mapping[str, AdditionalSense]] = {
    "power on": AdditionalSense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
    "bus": AdditionalSense.SCSI_BUS_RESET_OCCURRED,
    "logical unit": AdditionalSense.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
}


class Unit:
    """``lun_list`` is what REPORT LUNS answers; a target sets it to all of its units."""

    name: ClassVar[str] = "scsi-unit"
    version: ClassVar[int] = 1
    operations: ClassVar[OperationTable]
    vital_product_data: ClassVar[tuple[int, ...]] = (0x00, 0x80, 0x83)
    medium_type: ClassVar[int] = 0

    def __init__(self, identity: Identity, pages: Iterable[ModePage]) -> None:
        self.identity = identity
        self.modes = ModePages(pages)
        self.reservations = Reservations(self.attention)
        self.lun_list: tuple[int, ...] = (0,)
        self._attentions: dict[str, list[AdditionalSense]] = {}

    def execute(self, command: Command) -> Answer:
        """Carry the command out at once. Raises nothing for anything an initiator sends."""
        request: Request | None = None
        try:
            self._report_attention(command)
            row = self.operations.find(command.cdb)
            cdb = whole_cdb(row, command.cdb)
            self.reservations.check(row.access_for(cdb), command.initiator)
            if row.needs_medium:
                self.check_medium()
            if row.modifies:
                self.check_writable()
            check_usage(row, cdb)
            request = Request(row, cdb, command.data_out, command.initiator)
            data_in = row.handler(self, request)
        except CheckCondition as error:
            wanted = request.wanted if request is not None else 0
            return Answer(Status.CHECK_CONDITION, b"", self._packed(error.sense), wanted)
        except ReservationConflict:
            return Answer(Status.RESERVATION_CONFLICT)
        return Answer(Status.GOOD, data_in, b"", request.wanted)

    def _packed(self, sense: Sense) -> bytes:
        return sense.packed(descriptor=self.modes.flag(CONTROL, 2, 2))

    def check_medium(self) -> None:
        """CheckCondition where there is nothing to read or write."""

    def check_writable(self) -> None:
        """CheckCondition where nothing may be written."""

    # Unit attentions

    def _pending(self, nexus: str) -> list[AdditionalSense]:
        pending = self._attentions.pop(nexus, None)
        if pending is None:
            pending = [AdditionalSense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED]
            if len(self._attentions) >= MOST_NEXUSES:
                del self._attentions[next(iter(self._attentions))]
        self._attentions[nexus] = pending
        return pending

    def _report_attention(self, command: Command) -> None:
        pending = self._pending(command.initiator)
        if pending and command.cdb[:1] not in _EXEMPT:
            raise CheckCondition(unit_attention(pending.pop(0)))

    def take_sense(self, nexus: str) -> Sense:
        """What REQUEST SENSE reports: a unit attention, which ends with that, or nothing."""
        pending = self._pending(nexus)
        return unit_attention(pending.pop(0)) if pending else NO_SENSE

    def attention(self, nexus: str, code: AdditionalSense) -> None:
        """Establish a unit attention for one nexus."""
        pending = self._pending(nexus)
        if code not in pending and len(pending) < _MOST_ATTENTIONS:
            pending.append(code)

    def attention_of_others(self, nexus: str | None, code: AdditionalSense) -> None:
        """Establish it for every nexus but one."""
        for other in list(self._attentions):
            if other != nexus:
                self.attention(other, code)

    # Resets

    def reset(self, what: str) -> None:
        """A reset of ``what``: "power on", "bus" or "logical unit"; establishes its unit attention for everybody."""
        self.modes.reset()
        self.reservations.reset(power=what == "power on")
        for pending in self._attentions.values():
            pending[:] = [RESETS[what]]

    def nexus_lost(self, initiator: str) -> None:
        """Its unit attentions and its RESERVE end; when it comes back it is told of a reset."""
        self._attentions.pop(initiator, None)
        self.reservations.forget_nexus(initiator)

    # What MODE SENSE and INQUIRY ask of a device type

    def block_descriptor(self, *, long: bool) -> bytes:
        """Of the mode parameter list; nothing by default."""
        return b""

    def device_parameter(self) -> int:
        """The device-specific parameter of a mode parameter header."""
        return 0

    def before_modes_change(self, changed: Mapping[int, bytes]) -> None:
        """Called before new values of mode pages count; may raise CheckCondition."""

    def vital_page(self, code: int) -> bytes:
        """The contents of a vital product data page, without its header."""
        if code == 0x00:
            return bytes(self.vital_product_data)
        if code == 0x80:
            return self.identity.serial_page()
        if code == 0x83:
            return self.identity.identification_page()
        raise invalid_cdb_field(2)

    # State

    def state(self) -> DeviceState:
        """Reservations, mode pages, unit attentions and what the device type adds."""
        return DeviceState(self.name, self.version, self.plain_state())

    def plain_state(self) -> dict[str, Any]:
        """The fields of the state."""
        return {
            "modes": self.modes.plain(),
            "reservations": self.reservations.plain(),
            "attentions": {nexus: [int(code) for code in pending] for nexus, pending in self._attentions.items()},
        }

    def from_state(self, state: DeviceState) -> None:
        """Become the unit that ``state`` describes, all of it or nothing; ValueError when it is not one of ours."""
        if (state.device, state.version) != (self.name, self.version):
            raise ValueError(f"{self.name} version {self.version} cannot become {state.device} {state.version}")
        if not isinstance(state.fields, Mapping) or set(state.fields) != set(self.plain_state()):
            raise ValueError(f"the state of {self.name} must have exactly {', '.join(self.plain_state())}")
        self.adopt_state(state.fields)

    def adopt_state(self, fields: Mapping[str, Any]) -> None:
        """Check all fields, then adopt them."""
        attentions = _parsed_attentions(fields["attentions"])
        modes, reservations = self.modes.adopt(fields["modes"]), self.reservations.adopt(fields["reservations"])
        modes()
        reservations()
        self._attentions = attentions


_EXEMPT: Final = frozenset(bytes((opcode,)) for opcode in _BEFORE_ATTENTION)


def _parsed_attentions(raw: object) -> dict[str, list[AdditionalSense]]:
    if not isinstance(raw, dict) or len(raw) > MOST_NEXUSES:
        raise ValueError(f"unit attentions are of at most {MOST_NEXUSES} nexuses")
    parsed: dict[str, list[AdditionalSense]] = {}
    for nexus, codes in raw.items():
        if not isinstance(nexus, str) or not isinstance(codes, list) or len(codes) > _MOST_ATTENTIONS:
            raise ValueError(f"a nexus has a name and at most {_MOST_ATTENTIONS} unit attentions")
        parsed[nexus] = [AdditionalSense(code) for code in codes]
    return parsed


def not_ready(code: AdditionalSense) -> CheckCondition:
    """NOT READY."""
    return CheckCondition(Sense(SenseKey.NOT_READY, code))


def medium_removal_prevented() -> CheckCondition:
    """Somebody wants the medium to stay."""
    return illegal(AdditionalSense.MEDIUM_REMOVAL_PREVENTED)
