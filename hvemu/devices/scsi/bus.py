"""A bus of targets and their units; the only thing that host bus adapters and network targets talk to.

A target that is not there is None: selection times out. A unit that is not there is answered for by its target.
Spec: SPC-4 6.6.2 (INQUIRY, incorrect logical unit), SAM-5 5.11, 4.7.7 (numbers of logical units).
"""

from collections.abc import Mapping
from typing import Final

from hvemu.devices.contract import DeviceState
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.devices.scsi.operations import Request, check_usage, whole_cdb
from hvemu.devices.scsi.primary import PRIMARY_OPERATIONS, report_luns
from hvemu.devices.scsi.sense import CheckCondition, Sense, illegal
from hvemu.devices.scsi.unit import Unit
from hvemu.vocabulary.scsi import AdditionalSense, Opcode, SenseKey, Status

LARGEST_LUN: Final = 0x3FFF
_NO_UNIT: Final = bytes((0x7F, 0, 0x06, 0x12, 31)) + bytes(31)
"""Standard INQUIRY data: peripheral qualifier 011b, no device type."""
_ROWS: Final = {row.opcode: row for row in PRIMARY_OPERATIONS}
_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)


class Target:
    """Its units by number; LUN 0 need not exist."""

    def __init__(self, units: Mapping[int, Unit]) -> None:
        if not units or not all(0 <= lun <= LARGEST_LUN for lun in units):
            raise ValueError(f"a target has units with numbers from 0 to {LARGEST_LUN}")
        self.units = dict(sorted(units.items()))
        for unit in self.units.values():
            unit.lun_list = tuple(self.units)

    def execute(self, lun: int, command: Command) -> Answer:
        """Carry a command out; a unit that is not there has no more than INQUIRY, REPORT LUNS and REQUEST SENSE."""
        unit = self.units.get(lun)
        return self._without_unit(command) if unit is None else unit.execute(command)

    def _without_unit(self, command: Command) -> Answer:
        try:
            return Answer(Status.GOOD, self._absent(command))
        except CheckCondition as error:
            return Answer(Status.CHECK_CONDITION, sense=error.sense.packed())

    def _absent(self, command: Command) -> bytes:
        row = _ROWS.get(Opcode(command.cdb[0])) if command.cdb[:1] in _ANSWERED else None
        if row is None:
            raise illegal(AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)
        cdb = whole_cdb(row, command.cdb)
        check_usage(row, cdb)
        request = Request(row, cdb, b"", command.initiator)
        if row.opcode is Opcode.REPORT_LUNS:
            return report_luns(cdb, tuple(self.units))
        if row.opcode is Opcode.REQUEST_SENSE:
            return _NOT_SUPPORTED.packed(descriptor=bool(cdb[1] & 1))[: cdb[4]]
        if cdb[1] & 1:
            raise illegal(AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)
        return _NO_UNIT[: request.number(3, 2)]

    def reset(self, what: str) -> None:
        """Reset every unit."""
        for unit in self.units.values():
            unit.reset(what)

    def nexus_lost(self, initiator: str) -> None:
        """Tell every unit."""
        for unit in self.units.values():
            unit.nexus_lost(initiator)


_ANSWERED: Final = frozenset(bytes((code,)) for code in (Opcode.INQUIRY, Opcode.REPORT_LUNS, Opcode.REQUEST_SENSE))


class ScsiBus:
    """Targets by identifier: 0 to 15 on a parallel bus, anything up to 255 elsewhere."""

    def __init__(self, targets: Mapping[int, Target] | None = None) -> None:
        self.targets: dict[int, Target] = dict(targets or {})

    def attach(self, identifier: int, target: Target) -> None:
        """Connect a target; ValueError when the identifier is taken."""
        if identifier in self.targets or not 0 <= identifier <= 255:
            raise ValueError(f"there can be no other target {identifier}")
        self.targets[identifier] = target

    def execute(self, identifier: int, lun: int, command: Command) -> Answer | None:
        """Carry a command out; None when no target answers."""
        target = self.targets.get(identifier)
        return None if target is None else target.execute(lun, command)

    def reset(self) -> None:
        """A bus reset."""
        for target in self.targets.values():
            target.reset("bus")

    def reset_target(self, identifier: int) -> bool:
        """A target reset; False when there is none."""
        target = self.targets.get(identifier)
        if target is not None:
            target.reset("logical unit")
        return target is not None

    def reset_unit(self, identifier: int, lun: int) -> bool:
        """A logical unit reset; False when there is none."""
        unit = self.targets[identifier].units.get(lun) if identifier in self.targets else None
        if unit is not None:
            unit.reset("logical unit")
        return unit is not None

    def states(self) -> dict[str, DeviceState]:
        """The state of every unit by ``identifier:lun``."""
        return {
            f"{identifier}:{lun}": unit.state()
            for identifier, target in self.targets.items()
            for lun, unit in target.units.items()
        }

    def from_states(self, states: Mapping[str, DeviceState]) -> None:
        """Every unit becomes what its state describes; ValueError when the units are others."""
        units = {
            f"{identifier}:{lun}": unit
            for identifier, target in self.targets.items()
            for lun, unit in target.units.items()
        }
        if set(states) != set(units):
            raise ValueError(f"the units of the bus are {', '.join(units)}, not {', '.join(states)}")
        before = self.states()
        try:
            for place, unit in units.items():
                unit.from_state(states[place])
        except ValueError:
            for place, unit in units.items():
                unit.from_state(before[place])
            raise
