"""A SCSI command on its way: what it still waits for, and the PDUs of its answer.

Spec: RFC 7143 4.2.5 (data transfer), 11.4 (residuals), 11.7 and 11.8 (Data-In, Data-Out, R2T).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from hvemu.devices.scsi.contract import Answer
from hvemu.devices.scsi.disk import LONGEST_TRANSFER
from hvemu.iscsi.pdu import NO_TAG, Opcode, Pdu, lun_number
from hvemu.vocabulary.scsi import Status

_READ, _WRITE = 0x40, 0x20
_FINAL, _OVERFLOW, _UNDERFLOW, _HAS_STATUS = 0x80, 0x04, 0x02, 0x01
_WITH_DATA: Final = frozenset({Status.GOOD, Status.CONDITION_MET})


class DataError(Exception):
    """A Data-Out PDU does not follow from the last one: the command fails, the connection goes on."""


class Task:
    """Data-out is collected in order, at most what a command can use."""

    def __init__(self, pdu: Pdu) -> None:
        self.tag = pdu.task_tag
        self.lun_field = pdu.lun
        self.lun = lun_number(pdu.lun)
        self.cdb = pdu.header[32:48]
        self.reads, self.writes = bool(pdu.flags & _READ), bool(pdu.flags & _WRITE)
        self.expected = pdu.word(20)
        self.command_number = pdu.command_number
        self.needed = min(self.expected, LONGEST_TRANSFER) if self.writes else 0
        self.data = bytearray(pdu.data)
        self.unsolicited = self.writes and not pdu.final
        self.transfer_tag = NO_TAG
        self.burst_end = 0
        self.next_data_number = 0
        self.next_request_number = 0

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return not self.unsolicited and len(self.data) >= self.needed

    def accept(self, pdu: Pdu) -> bool:
        """Take a Data-Out PDU; True when its sequence has ended. DataError when it does not follow."""
        if pdu.word(20) != self.transfer_tag or pdu.word(36) != self.next_data_number:
            raise DataError("a Data-Out PDU is not the one that comes next")
        end = len(self.data) + len(pdu.data)
        other_unit = self.transfer_tag != NO_TAG and pdu.lun != self.lun_field  # reserved in unsolicited data
        if pdu.word(40) != len(self.data) or end > self.burst_end or other_unit:
            raise DataError("a Data-Out PDU has data that was not asked for")
        self.next_data_number += 1
        self.data += pdu.data
        if pdu.final and self.transfer_tag != NO_TAG and end != self.burst_end:
            raise DataError("a sequence of Data-Out PDUs ends too early")
        if not pdu.final and end == self.burst_end and self.transfer_tag != NO_TAG:
            raise DataError("a sequence of Data-Out PDUs does not end")
        if pdu.final:
            self.unsolicited = False
        return pdu.final

    def solicit(self, transfer_tag: int, max_burst: int) -> tuple[int, int, int]:
        """Begin a burst: number of the R2T, offset and length."""
        offset = len(self.data)
        self.transfer_tag, self.next_data_number = transfer_tag, 0
        self.burst_end = min(self.needed, offset + max_burst)
        number = self.next_request_number
        self.next_request_number += 1
        return number, offset, self.burst_end - offset


class Part(NamedTuple):
    """A PDU of an answer; the connection adds the numbers. ``has_status``: it ends the task and takes a StatSN."""

    header: bytearray
    data: bytes
    has_status: bool


def answer_parts(task: Task, answer: Answer, segment: int, max_burst: int) -> Iterator[Part]:
    """Data-In PDUs of at most ``segment`` bytes, F at the end of each burst; status in the last, or on its own."""
    data = answer.data_in[: task.expected] if task.reads else b""
    residual = _residual(task, answer)
    in_last = bool(data) and answer.status in _WITH_DATA and not answer.sense
    count, position = 0, 0
    while position < len(data):
        burst_end = min(len(data), (position // max_burst + 1) * max_burst)
        end = min(position + segment, burst_end)
        last = end == len(data)
        header = bytearray(48)
        header[0], header[1] = Opcode.DATA_IN, _FINAL if end == burst_end else 0
        header[16:20], header[20:24] = task.tag.to_bytes(4, "big"), NO_TAG.to_bytes(4, "big")
        header[36:40], header[40:44] = count.to_bytes(4, "big"), position.to_bytes(4, "big")
        if last and in_last:
            header[1] |= _HAS_STATUS | residual[0]
            header[3], header[44:48] = answer.status, residual[1].to_bytes(4, "big")
        yield Part(header, data[position:end], last and in_last)
        position, count = end, count + 1
    if not in_last:
        header = bytearray(48)
        header[0], header[1], header[3] = Opcode.SCSI_RESPONSE, _FINAL | residual[0], answer.status
        header[16:20], header[36:40] = task.tag.to_bytes(4, "big"), count.to_bytes(4, "big")
        header[44:48] = residual[1].to_bytes(4, "big")
        sense = len(answer.sense).to_bytes(2, "big") + answer.sense if answer.sense else b""
        yield Part(header, sense, True)


def _residual(task: Task, answer: Answer) -> tuple[int, int]:
    """The flag and the count, of what the command would transfer against what was expected (RFC 7143 11.4.5)."""
    actual = len(answer.data_in) if task.reads else answer.data_out_length
    if not task.reads and not task.writes:
        actual = max(len(answer.data_in), answer.data_out_length)
    if actual > task.expected:
        return _OVERFLOW, actual - task.expected
    return (_UNDERFLOW, task.expected - actual) if actual < task.expected else (0, 0)
