"""Sense data: what was wrong, in the fixed and in the descriptor format, and the exception that carries it.

Spec: SPC-4 4.5 (formats), 4.5.2.4.2 (sense key specific: field pointer).
"""

from typing import Final, NamedTuple

from hvemu.vocabulary.scsi import AdditionalSense, SenseKey

_CURRENT_FIXED: Final = 0x70
_CURRENT_DESCRIPTOR: Final = 0x72
_VALID: Final = 0x80
FIXED_LENGTH: Final = 18


class FieldPointer(NamedTuple):
    """Which byte was wrong, of the command descriptor block or of the parameter list; and its leftmost wrong bit."""

    in_cdb: bool
    byte: int
    bit: int | None = None

    def packed(self) -> bytes:
        """The three bytes of the sense key specific field, SKSV set."""
        flags = 0x80 | (0x40 if self.in_cdb else 0)
        if self.bit is not None:
            flags |= 0x08 | self.bit
        return bytes((flags,)) + min(self.byte, 0xFFFF).to_bytes(2, "big")


class Sense(NamedTuple):
    """``information`` is what the command defines: a logical block address, or an offset into data-out."""

    key: SenseKey
    code: AdditionalSense
    information: int | None = None
    pointer: FieldPointer | None = None

    def packed(self, *, descriptor: bool = False) -> bytes:
        """The sense data; the fixed format has no room for an INFORMATION of more than 32 bits and leaves it out."""
        return self._descriptors() if descriptor else self._fixed()

    def _fixed(self) -> bytes:
        data = bytearray(FIXED_LENGTH)
        data[0], data[2], data[7] = _CURRENT_FIXED, self.key, FIXED_LENGTH - 8
        if self.information is not None and self.information < 1 << 32:
            data[0] |= _VALID
            data[3:7] = self.information.to_bytes(4, "big")
        data[12:14] = self.code.to_bytes(2, "big")
        if self.pointer is not None:
            data[15:18] = self.pointer.packed()
        return bytes(data)

    def _descriptors(self) -> bytes:
        descriptors = b""
        if self.information is not None:
            descriptors += bytes((0x00, 10, _VALID, 0)) + self.information.to_bytes(8, "big")
        if self.pointer is not None:
            descriptors += bytes((0x02, 6, 0, 0)) + self.pointer.packed() + bytes(1)
        header = bytes((_CURRENT_DESCRIPTOR, self.key)) + self.code.to_bytes(2, "big") + bytes(3)
        return header + bytes((len(descriptors),)) + descriptors


NO_SENSE: Final = Sense(SenseKey.NO_SENSE, AdditionalSense.NO_ADDITIONAL_SENSE_INFORMATION)


class CheckCondition(Exception):
    """A command cannot be carried out; it never leaves the unit."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"{sense.key.name}: {sense.code.name}")
        self.sense = sense


class ReservationConflict(Exception):
    """Somebody else has reserved the unit; it never leaves the unit."""


def illegal(code: AdditionalSense, *, information: int | None = None) -> CheckCondition:
    """ILLEGAL REQUEST without a pointer to a field."""
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, code, information))


def invalid_cdb_field(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN CDB, pointing at it."""
    pointer = FieldPointer(True, byte, bit)
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, AdditionalSense.INVALID_FIELD_IN_CDB, pointer=pointer))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN PARAMETER LIST, pointing at it."""
    code = AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, code, pointer=FieldPointer(False, byte, bit)))


def parameter_list_length_error() -> CheckCondition:
    """The list is too short or ends within a field."""
    return illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)


def unit_attention(code: AdditionalSense) -> Sense:
    """UNIT ATTENTION."""
    return Sense(SenseKey.UNIT_ATTENTION, code)
