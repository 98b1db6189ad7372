"""An initiator for tests: builds requests, takes responses apart, and feeds a connection without a socket."""

from collections.abc import Iterator

from hvemu.iscsi.connection import Connection
from hvemu.iscsi.pdu import NO_TAG, Opcode, Pdu, PduReader, pack
from hvemu.iscsi.portal import Portal
from hvemu.iscsi.text import pack_keys, parse_keys
from tests.devices.scsi.desk import disk, one_target

TARGET = "iqn.2026-11.org.hvemu:disk"
NAME = "iqn.1992-01.com.example:joe"
ISID = bytes((0x80, 1, 2, 3, 4, 5))


def portal(**options: object) -> Portal:
    """One target with one disk as LUN 0."""
    return Portal({TARGET: one_target()}, random=lambda count: bytes(range(1, count + 1)), **options)


def header(opcode: int, flags: int, tag: int, **fields: object) -> bytearray:
    """A basic header; fields by name of their offset, ``w20=5`` for 32 bits, ``b8=bytes`` for bytes."""
    data = bytearray(48)
    data[0], data[1], data[16:20] = opcode, flags, tag.to_bytes(4, "big")
    for name, value in fields.items():
        offset = int(name[1:])
        content = value.to_bytes(4, "big") if isinstance(value, int) else value
        data[offset : offset + len(content)] = content
    return data


def login(text: dict[str, str], *, current: int = 1, following: int = 3, transit: bool = True, tag: int = 1) -> bytes:
    """A login request."""
    flags = (0x80 if transit else 0) | current << 2 | (following if transit else 0)
    return pack(header(0x43, flags, tag, b8=ISID, w24=10, w28=100), pack_keys(text))


class Initiator:
    """Counts CmdSN; ``ask`` sends a PDU and gives the responses to it."""

    def __init__(self, to: Portal, text: dict[str, str] | None = None, *, name: str = NAME) -> None:
        self.hung_up: list[str] = []
        self.unasked: list[bytes] = []
        self.connection = Connection(to, self.hung_up.append, self.unasked.append)
        self.command_number = 10
        self.tag = 1
        self._reader = PduReader(1 << 24)
        if text is not None:
            keys = {"InitiatorName": name, "TargetName": TARGET, "SessionType": "Normal", **text}
            (answer,) = self.raw(login(keys))
            assert 0 == int.from_bytes(answer.header[36:38], "big")
            self.answers = parse_keys(answer.data)

    def raw(self, data: bytes) -> list[Pdu]:
        """Feed bytes; the responses."""
        self.connection.feed(data)
        while (output := self.connection.step()) is not None:
            self._reader.feed(output)
        return list(self._responses())

    def _responses(self) -> Iterator[Pdu]:
        while (pdu := self._reader.next()) is not None:
            yield pdu

    def ask(self, opcode: int, flags: int = 0x80, data: bytes = b"", **fields: object) -> list[Pdu]:
        """A request with the next CmdSN."""
        self.tag += 1
        head = header(opcode, flags, self.tag, w24=self.command_number, **fields)
        if not opcode & 0x40:
            self.command_number += 1
        return self.raw(pack(head, data))

    def command(
        self, cdb: str | bytes, *, expected: int = 0, flags: int = 0x80, data: bytes = b"", **fields: object
    ) -> list[Pdu]:
        """A SCSI command."""
        octets = (bytes.fromhex(cdb) if isinstance(cdb, str) else cdb).ljust(16, b"\0")
        return self.ask(Opcode.SCSI_COMMAND, flags, data, w20=expected, b32=octets, **fields)

    def ready(self) -> "Initiator":
        """Take the unit attention of power on away."""
        (answer,) = self.command(bytes(6))
        assert 2 == answer.header[3]
        return self

    def data_out(
        self, request: Pdu | None, data: bytes, *, number: int = 0, offset: int = 0, final: bool = True
    ) -> list[Pdu]:
        """Data-Out for an R2T, or unsolicited for None."""
        transfer = NO_TAG if request is None else request.word(20)
        tag = self.tag if request is None else request.task_tag
        fields = {"w20": transfer, "w36": number, "w40": offset}
        return self.raw(pack(header(Opcode.DATA_OUT, 0x80 if final else 0, tag, **fields), data))


__all__ = ["ISID", "NAME", "TARGET", "Initiator", "disk", "header", "login", "portal"]
