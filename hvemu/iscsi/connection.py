"""One connection as a protocol without I/O: bytes in, PDUs out.

``feed`` takes what has arrived, ``step`` carries out one PDU and gives what is to be sent. Only the oldest command
that waits for data is sent R2Ts, so that a session holds the data of one command and the unsolicited data of the
others. What breaks the protocol ends the connection with a reason (error recovery level 0), never the server.
Spec: RFC 7143 4.2 (numbering), 7 (error handling), 11.
"""

from collections.abc import Callable
from typing import Final

from hvemu.devices.scsi.bus import Target
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.devices.scsi.sense import Sense
from hvemu.iscsi import requests
from hvemu.iscsi.login import LONGEST_LOGIN_SEGMENT, Login, LoginRefused, LoginStatus
from hvemu.iscsi.pdu import (
    NO_TAG,
    SERIAL_MASK,
    Opcode,
    Pdu,
    PduReader,
    ProtocolError,
    pack,
    serial_difference,
)
from hvemu.iscsi.portal import Portal
from hvemu.iscsi.tasks import Task, answer_parts
from hvemu.iscsi.text import LONGEST_RECEIVED_SEGMENT, Parameters
from hvemu.vocabulary.scsi import Status

MOST_COMMANDS: Final = 32
"""How far MaxCmdSN is ahead: commands that wait for data or for a command before them."""


class Connection:
    """``on_hang_up`` is called with a reason when somebody else ends the connection, ``on_output`` with bytes that are
    to be sent although nothing was received."""

    def __init__(
        self,
        portal: Portal,
        on_hang_up: Callable[[str], None] = lambda reason: None,
        on_output: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        self.portal = portal
        self.address = portal.address
        """Where the initiator reaches us, for SendTargets."""
        self.parameters = Parameters()
        self.login = Login(portal, self.parameters)
        self.nexus = ""
        self.target: Target | None = None
        self.closed = ""
        """Why the connection is over; empty while it is not."""
        self.tasks: dict[int, Task] = {}
        self.soliciting: list[Task] = []
        self.expected_command = 0
        self._max_command = 0
        self._reader = PduReader(LONGEST_LOGIN_SEGMENT)
        self._early: dict[int, Pdu] = {}
        self._on_hang_up = on_hang_up
        self._on_output = on_output
        self._stepping = False
        self._output: list[bytes] = []
        self._status_number = 0
        self._handle = 0
        self._last_transfer_tag = 0

    # The outside

    def feed(self, data: bytes) -> None:
        """Bytes that have arrived; ``step`` until it gives None before feeding more."""
        self._reader.feed(data)

    def step(self) -> bytes | None:
        """Carry out one PDU and give the bytes to send; None when no whole PDU is left, or after the end."""
        if self.closed:
            return None
        self._stepping = True
        try:
            pdu = self._reader.next()
            if pdu is None:
                return None
            if self.login.done:
                self._order(pdu)
            else:
                self._log_in(pdu)
        except ProtocolError as error:
            self.end(str(error))
        finally:
            self._stepping = False
        return self._take_output()

    def _take_output(self) -> bytes:
        output, self._output = b"".join(self._output), []
        return output

    def end(self, reason: str) -> None:
        """The connection is over, for whatever reason; its nexus is lost."""
        if not self.closed:
            self.closed = reason
            self.tasks.clear()
            self.soliciting.clear()
            self._early.clear()
            self.portal.end(self._handle)

    def hang_up(self, reason: str) -> None:
        """End it from outside."""
        self.end(reason)
        self._on_hang_up(reason)

    # Sending

    def send(self, header: bytearray, data: bytes = b"", *, status: bool = True) -> None:
        """Queue a PDU with StatSN, ExpCmdSN and MaxCmdSN; ``status``: it takes a StatSN."""
        if status or header[0] & 0x3F in (Opcode.READY_TO_TRANSFER, Opcode.NOP_IN):
            header[24:28] = self._status_number.to_bytes(4, "big")
        if status:
            self._status_number = (self._status_number + 1) & SERIAL_MASK
        header[28:32] = self.expected_command.to_bytes(4, "big")
        room = (self.expected_command + MOST_COMMANDS - len(self.tasks) - 1) & SERIAL_MASK
        if serial_difference(room, self._max_command) > 0:
            self._max_command = room
        header[32:36] = self._max_command.to_bytes(4, "big")
        digests = self.parameters if self.login.done else Parameters()
        packed = pack(header, data, header_digest=digests.header_digest, data_digest=digests.data_digest)
        self._output.append(packed)

    def reject(self, pdu: Pdu, reason: int) -> None:
        """A PDU that is not carried out; the connection goes on."""
        header = bytearray(48)
        header[0], header[1], header[2] = Opcode.REJECT, 0x80, reason
        header[16:20] = NO_TAG.to_bytes(4, "big")
        self.send(header, pdu.header)

    # Login

    def _log_in(self, pdu: Pdu) -> None:
        if not self.login.requests:
            self._status_number = pdu.word(28)
            self.expected_command = self._max_command = pdu.command_number
        flags, data, status = 0, b"", LoginStatus.SUCCESS
        try:
            flags, data = self.login.request(pdu)
            if self.login.done:
                self._begin()
        except LoginRefused as refusal:
            status = refusal.status
            self.login.done = False
            self.end(str(refusal))
        header = bytearray(48)
        header[0], header[1] = Opcode.LOGIN_RESPONSE, flags if status == LoginStatus.SUCCESS else 0
        header[8:14] = pdu.header[8:14]
        header[14:16] = self._handle.to_bytes(2, "big")
        header[16:20] = pdu.header[16:20]
        header[36:38] = status.to_bytes(2, "big")
        done, self.login.done = self.login.done, False  # no digests yet
        self.send(header, data if status == LoginStatus.SUCCESS else b"")
        self.login.done = done
        if done:
            self._reader.longest_data = LONGEST_RECEIVED_SEGMENT
            self._reader.header_digest = self.parameters.header_digest
            self._reader.data_digest = self.parameters.data_digest

    def _begin(self) -> None:
        self.nexus, self.target = self.login.nexus, self.login.target
        self.portal.reinstate(self)
        if self.portal.full:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, "there are too many sessions")
        self._handle = self.portal.begin(self)

    # Full feature phase

    def _order(self, pdu: Pdu) -> None:
        """Commands in the order of CmdSN; what is outside of the window is dropped (RFC 7143 4.2.2.1)."""
        if pdu.opcode in (Opcode.DATA_OUT, Opcode.SNACK):
            self._carry_out(pdu)
            return
        if pdu.opcode not in requests.HANDLERS:
            self.reject(pdu, requests.PROTOCOL_ERROR)
            return
        ahead = serial_difference(pdu.command_number, self.expected_command)
        window = serial_difference(self._max_command, self.expected_command)
        if pdu.immediate:
            if -MOST_COMMANDS <= ahead <= window + 1:
                self._carry_out(pdu)
            return
        if not 0 <= ahead <= window:
            return
        if ahead:
            self._early[pdu.command_number] = pdu
            return
        following: Pdu | None = pdu
        while following is not None and not self.closed:
            self.expected_command = (self.expected_command + 1) & SERIAL_MASK
            self._carry_out(following)
            following = self._early.pop(self.expected_command, None)

    def _carry_out(self, pdu: Pdu) -> None:
        handler = requests.HANDLERS.get(pdu.opcode)
        if handler is None or (self.target is None and pdu.opcode not in requests.IN_DISCOVERY):
            self.reject(pdu, requests.PROTOCOL_ERROR)
        else:
            handler(self, pdu)

    # Tasks

    def start(self, task: Task) -> None:
        """Execute a command, or wait for its data."""
        if task.complete:
            self.execute(task)
            return
        if len(self.tasks) >= 2 * MOST_COMMANDS:  # the window forbids it but for immediate commands
            self._answer(task, Answer(Status.TASK_SET_FULL))
            return
        self.tasks[task.tag] = task
        if task.unsolicited:
            task.burst_end = min(self.parameters.first_burst, task.expected)
        else:
            self.want_data(task)

    def want_data(self, task: Task) -> None:
        """Ask for the rest of the data, when it is the task's turn."""
        self.soliciting.append(task)
        if self.soliciting[0] is task:
            self._send_request(task)

    def _send_request(self, task: Task) -> None:
        self._last_transfer_tag = (self._last_transfer_tag + 1) % NO_TAG
        number, offset, length = task.solicit(self._last_transfer_tag, self.parameters.max_burst)
        header = bytearray(48)
        header[0], header[1], header[8:16] = Opcode.READY_TO_TRANSFER, 0x80, task.lun_field
        header[16:20] = task.tag.to_bytes(4, "big")
        header[20:24] = task.transfer_tag.to_bytes(4, "big")
        header[36:40], header[40:44] = number.to_bytes(4, "big"), offset.to_bytes(4, "big")
        header[44:48] = length.to_bytes(4, "big")
        self.send(header, status=False)

    def burst_ended(self, task: Task) -> None:
        """A sequence of Data-Out has ended: execute, or ask for more."""
        if task.complete:
            self.forget(task)
            self.execute(task)
        elif task in self.soliciting:
            self._send_request(task)
        else:
            self.want_data(task)

    def forget(self, task: Task) -> None:
        """The task no longer waits; the next one in the queue is asked for its data."""
        self.tasks.pop(task.tag, None)
        if task in self.soliciting:
            first = self.soliciting[0] is task
            self.soliciting.remove(task)
            if first and self.soliciting:
                self._send_request(self.soliciting[0])

    def execute(self, task: Task) -> None:
        """Carry the command out and answer it."""
        assert self.target is not None
        self._answer(task, self.target.execute(task.lun, Command(task.cdb, bytes(task.data), self.nexus)))

    def fail(self, task: Task, sense: Sense) -> None:
        """End a task that waits for data with CHECK CONDITION."""
        self.forget(task)
        self._answer(task, Answer(Status.CHECK_CONDITION, sense=sense.packed()))

    def _answer(self, task: Task, answer: Answer) -> None:
        for part in answer_parts(task, answer, self.parameters.peer_segment, self.parameters.max_burst):
            self.send(part.header, part.data, status=part.has_status)

    def drop_early(self, command_number: int, tag: int) -> bool:
        """Forget a command that waits for its turn; its number counts as used. False when there is none."""
        pdu = self._early.get(command_number)
        if pdu is None or (pdu.opcode, pdu.task_tag) != (Opcode.SCSI_COMMAND, tag):
            return False
        self._early[command_number] = pdu._replace(header=_harmless(pdu.header), data=b"")
        return True

    def abort_tasks(self, lun: int | None) -> None:
        """Forget the tasks that wait for data; of all units for None. Their data is dropped when it comes."""
        first = self.soliciting[0] if self.soliciting else None
        self.tasks = {tag: task for tag, task in self.tasks.items() if lun not in (None, task.lun)}
        self.soliciting = [task for task in self.soliciting if task.tag in self.tasks]
        if self.soliciting and self.soliciting[0] is not first:
            self._send_request(self.soliciting[0])
            if not self._stepping:
                self._on_output(self._take_output())


def _harmless(header: bytes) -> bytes:
    """The same number as a NOP-Out that wants no answer."""
    return bytes((Opcode.NOP_OUT, 0x80)) + header[2:16] + NO_TAG.to_bytes(4, "big") * 2 + header[24:]
