"""Protocol data units: 48 bytes of basic header, additional headers, digests, data; out of bytes and back.

Spec: RFC 7143 11 (formats), 13.1 (digests: CRC32C, reflected, least significant byte first on the wire).
"""

from enum import IntEnum
from typing import Final, NamedTuple

HEADER_LENGTH: Final = 48
NO_TAG: Final = 0xFFFFFFFF
SERIAL_MASK: Final = 0xFFFFFFFF


class ProtocolError(Exception):
    """The peer breaks the protocol in a way after which the connection ends (error recovery level 0)."""


class Opcode(IntEnum):
    """What a PDU is; target opcodes have bit 5."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    READY_TO_TRANSFER = 0x31
    REJECT = 0x3F


class Pdu(NamedTuple):
    """``header`` is the basic header segment."""

    header: bytes
    data: bytes = b""

    @property
    def opcode(self) -> int:
        """Six bits."""
        return self.header[0] & 0x3F

    @property
    def immediate(self) -> bool:
        """Delivered out of the order of CmdSN."""
        return bool(self.header[0] & 0x40)

    @property
    def flags(self) -> int:
        """Byte 1."""
        return self.header[1]

    @property
    def final(self) -> bool:
        """The F bit (T in a login request)."""
        return bool(self.header[1] & 0x80)

    @property
    def lun(self) -> bytes:
        """Eight bytes."""
        return self.header[8:16]

    @property
    def task_tag(self) -> int:
        """The initiator task tag."""
        return self.word(16)

    @property
    def command_number(self) -> int:
        """CmdSN of what has one."""
        return self.word(24)

    def word(self, offset: int) -> int:
        """32 bits of the header."""
        return int.from_bytes(self.header[offset : offset + 4], "big")


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901 - shifted bit by bit
        table.append(value)
    return tuple(table)


_CRC: Final = _crc_table()


def crc32c(data: bytes) -> bytes:
    """The digest as it is sent."""
    table, value = _CRC, 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return (value ^ 0xFFFFFFFF).to_bytes(4, "little")


def pack(
    header: bytes | bytearray, data: bytes = b"", *, header_digest: bool = False, data_digest: bool = False
) -> bytes:
    """The bytes of a PDU; the data segment length is put into the header."""
    head = bytes(header[:5]) + len(data).to_bytes(3, "big") + bytes(header[8:])
    parts = [head]
    if header_digest:
        parts.append(crc32c(head))
    if data:
        padded = data + bytes(-len(data) % 4)
        parts.append(padded)
        if data_digest:
            parts.append(crc32c(padded))
    return b"".join(parts)


class PduReader:
    """Takes bytes as they come; holds at most one PDU and what was fed after it."""

    def __init__(self, longest_data: int) -> None:
        self.longest_data = longest_data
        self.header_digest = self.data_digest = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """More bytes from the peer."""
        self._buffer += data

    def next(self) -> Pdu | None:
        """The next whole PDU, or None; ProtocolError when it is too long or a digest is wrong."""
        buffer = self._buffer
        if len(buffer) < HEADER_LENGTH:
            return None
        length = int.from_bytes(buffer[5:8], "big")
        if length > self.longest_data:
            raise ProtocolError(f"a data segment of {length} bytes is longer than {self.longest_data}")
        additional = HEADER_LENGTH + 4 * buffer[4]
        start = additional + (4 if self.header_digest else 0)
        end = start + length + -length % 4
        whole = end + (4 if self.data_digest and length else 0)
        if len(buffer) < whole:
            return None
        if self.header_digest and bytes(buffer[additional:start]) != crc32c(bytes(buffer[:additional])):
            raise ProtocolError("the digest of a header is wrong")
        if whole > end and bytes(buffer[end:whole]) != crc32c(bytes(buffer[start:end])):
            raise ProtocolError("the digest of a data segment is wrong")
        pdu = Pdu(bytes(buffer[:HEADER_LENGTH]), bytes(buffer[start : start + length]))
        del buffer[:whole]
        return pdu


def serial_difference(first: int, second: int) -> int:
    """How far ``first`` is ahead of ``second`` in serial number arithmetic of 32 bits (RFC 1982); may be negative."""
    difference = (first - second) & SERIAL_MASK
    return difference - (1 << 32) if difference >> 31 else difference


def lun_number(field: bytes) -> int:
    """The number of a single-level LUN (SAM-5 4.7.7); -1 for anything else, which no target has."""
    method, rest = field[0] >> 6, field[2:]
    if any(rest) or method > 1 or (method == 0 and field[0]):
        return -1
    return int.from_bytes(field[:2], "big") & 0x3FFF
