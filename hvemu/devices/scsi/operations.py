"""The one table of a unit: operation code -> name, usage of each byte, handler, and what reservations do to it.

CDB checks, the reservation check and REPORT SUPPORTED OPERATION CODES all come from it. A handler is a function
``(unit, request) -> data-in``; what it cannot carry out it raises as CheckCondition.
Spec: SPC-4 6.34 (usage data), 5.9.1.4 and SBC-3 4.16 (reservations), SPC-2 5.5.1 (RESERVE and RELEASE).
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from hvemu.devices.scsi.sense import (
    CheckCondition,
    illegal,
    invalid_cdb_field,
    parameter_list_length_error,
)
from hvemu.vocabulary.scsi import CDB_LENGTHS, AdditionalSense, Opcode


class Access(Enum):
    """What a command does, as far as another nexus' reservation cares."""

    FREE = "free"
    """Never conflicts, as INQUIRY."""
    READINESS = "readiness"
    """Conflicts with RESERVE only, as TEST UNIT READY."""
    READ = "read"
    """Conflicts with RESERVE and with exclusive access."""
    WRITE = "write"
    """Conflicts with every reservation."""
    LEGACY = "legacy"
    """RESERVE and RELEASE: refused while anybody has registered a key."""
    PERSISTENT = "persistent"
    """PERSISTENT RESERVE: refused while RESERVE holds; the rest is its handler's affair."""


class Request:
    """A checked command on its way to a handler."""

    __slots__ = ("cdb", "data_out", "initiator", "operation", "wanted")

    def __init__(self, operation: "Operation", cdb: bytes, data_out: bytes, initiator: str) -> None:
        self.operation = operation
        self.cdb = cdb
        self.data_out = data_out
        self.initiator = initiator
        self.wanted = 0
        """Bytes of data-out that the CDB asks for."""

    def number(self, offset: int, length: int) -> int:
        """The big-endian field of ``length`` bytes at ``offset`` of the CDB."""
        return int.from_bytes(self.cdb[offset : offset + length], "big")

    def bit(self, byte: int, bit: int) -> bool:
        """One bit of the CDB."""
        return bool(self.cdb[byte] >> bit & 1)

    def parameters(self, length: int) -> bytes:
        """The parameter list of ``length`` bytes; PARAMETER LIST LENGTH ERROR when less was sent."""
        self.wanted = length
        if len(self.data_out) < length:
            raise parameter_list_length_error()
        return self.data_out[:length]


Handler = Callable[[Any, Request], bytes]


class Operation(NamedTuple):
    """``usage`` has a bit for every bit of the CDB that the unit looks at; byte 0 is the operation code."""

    opcode: Opcode
    name: str
    usage: bytes
    access: Access
    handler: Handler
    service_action: int | None = None
    access_of: Callable[[bytes], Access] | None = None
    """Where it depends on the CDB (START STOP UNIT), what ``access`` is then."""
    needs_medium: bool = False
    modifies: bool = False
    """It changes what is on the medium: refused where that is write-protected."""

    def access_for(self, cdb: bytes) -> Access:
        """What reservations look at."""
        return self.access if self.access_of is None else self.access_of(cdb)


def operation(
    opcode: Opcode,
    usage: str,
    access: Access,
    handler: Handler,
    *,
    service_action: int | None = None,
    name: str = "",
    access_of: Callable[[bytes], Access] | None = None,
    needs_medium: bool = False,
    modifies: bool = False,
    control: int = 0,
) -> Operation:
    """A row; ``usage`` is hexadecimal, without the operation code and the CONTROL byte, of which NACA is not used."""
    octets = bytes((opcode,)) + bytes.fromhex(usage) + bytes((control,))
    if len(octets) != CDB_LENGTHS[opcode >> 5]:
        raise ValueError(f"the usage of {opcode.name} has {len(octets)} bytes")
    title = name or opcode.name
    return Operation(opcode, title, octets, access, handler, service_action, access_of, needs_medium, modifies)


class OperationTable:
    """All rows of a unit, found by operation code and service action."""

    def __init__(self, *groups: Iterable[Operation]) -> None:
        self.rows: list[Operation] = [row for group in groups for row in group]
        self._by_opcode: dict[int, dict[int | None, Operation]] = {}
        for row in self.rows:
            actions = self._by_opcode.setdefault(row.opcode, {})
            if row.service_action in actions or ((None in actions) != (row.service_action is None) and actions):
                raise ValueError(f"two rows for operation code {row.opcode:#x}")
            actions[row.service_action] = row

    def actions(self, opcode: int) -> Mapping[int | None, Operation]:
        """The rows of an operation code by service action; {None: row} where it has none."""
        return self._by_opcode.get(opcode, {})

    def find(self, cdb: bytes) -> Operation:
        """The row for a CDB; CheckCondition where there is none."""
        actions = self.actions(cdb[0]) if cdb else {}
        if not actions:
            raise illegal(AdditionalSense.INVALID_COMMAND_OPERATION_CODE)
        if None in actions:
            return actions[None]
        found = actions.get(cdb[1] & 0x1F) if len(cdb) > 1 else None
        if found is None:
            raise invalid_cdb_field(1, 4)
        return found


def whole_cdb(row: Operation, cdb: bytes) -> bytes:
    """The CDB without padding; INVALID FIELD IN CDB when it is too short."""
    if len(cdb) < len(row.usage):
        raise invalid_cdb_field(len(cdb))
    return cdb[: len(row.usage)]


def check_usage(row: Operation, cdb: bytes) -> None:
    """INVALID FIELD IN CDB, pointing at the first bit that the unit does not know."""
    for index in range(1, len(cdb)):
        unknown = cdb[index] & ~row.usage[index]
        if unknown:
            raise _unknown_bit(index, unknown)


def _unknown_bit(index: int, unknown: int) -> CheckCondition:
    return invalid_cdb_field(index, unknown.bit_length() - 1)
