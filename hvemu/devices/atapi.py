"""An ATAPI CD-ROM drive: the PACKET interface to a SCSI drive.

Data go through the PIO registers in pieces of what the host set as byte count limit. A long READ is carried out a few
blocks at a time. There is no autosense here: the sense data of a command wait for the next REQUEST SENSE.
What asks for data that it did not get, but would take them, is carried out again with them.

Not emulated: DMA, overlap.
Spec: ATA/ATAPI-6 (T13 1410D) 8.23 (PACKET), 9.8 (protocol), 8.9 (DEVICE RESET); MMC-6 annex A (no autosense).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from hvemu.devices.ata_device import (
    ABRT,
    COMMAND_STEP,
    COUNT,
    DEVICE_RESET,
    FEATURES,
    LARGEST_BUFFER,
    LBA_HIGH,
    LBA_MID,
    PIO_TRANSFER_MODES,
    POWER_COMMANDS,
    AtaDevice,
    CommandError,
)
from hvemu.devices.ata_identify import packet_words
from hvemu.devices.contract import DeviceState
from hvemu.devices.saved import Buffer, Flag, Number, Octets
from hvemu.devices.scsi.cdrom import BLOCK_SIZE, ScsiCdrom
from hvemu.devices.scsi.contract import Answer, Command
from hvemu.vocabulary.scsi import Opcode, SenseKey

MODEL: Final = "HVEMU CD-ROM"
PACKET, IDENTIFY_PACKET_DEVICE, IDENTIFY_DEVICE, SET_FEATURES = 0xA0, 0xA1, 0xEC, 0xEF
PACKET_LENGTH: Final = 12
PIECE: Final = 16
"""Blocks that a READ takes from the medium at once."""
LONGEST_SENSE: Final = 252
PACKET_STEP, IN_STEP, OUT_STEP, DONE_STEP = 3, 4, 5, 6
COMMAND_OR_DATA, INPUT = 0b01, 0b10
"""The interrupt reason, which is in the sector count register."""
_DMA_OR_OVERLAP: Final = 0b11
_WITH_SIGNATURE: Final = frozenset((IDENTIFY_DEVICE, 0x20, 0x21))
"""Commands for disks whose failure says what kind of drive this is (9.12)."""
_COUNT_FIELDS: Final[Mapping[int, tuple[int, int]]] = {Opcode.READ_10: (7, 9), Opcode.READ_12: (6, 10)}


class AtapiCdrom(AtaDevice):
    """The drive at an IDE channel. What is in its tray is the affair of ``cdrom``; the state has both."""

    name = "atapi-cdrom"
    signature = (0x14, 0xEB)
    ready_after_reset = 0
    layout = {
        "packet": Octets(PACKET_LENGTH),
        "awaits_packet": Flag(),
        "limit": Number(0xFFFF),
        "next_block": Number(1 << 33),
        "blocks_left": Number(0xFFFFFFFF),
        "sense": Buffer(LONGEST_SENSE),
    }

    def __init__(self, cdrom: ScsiCdrom) -> None:
        super().__init__()
        self._cdrom = cdrom
        self._forget()

    def _forget(self) -> None:
        self.packet = bytearray(PACKET_LENGTH)
        self.awaits_packet = False
        self.limit = self.next_block = self.blocks_left = 0
        self.sense = bytearray()

    def set_defaults(self) -> None:
        """Power-on of the SCSI side as well."""
        self._forget()
        self._cdrom.reset("power on")

    def hold_reset(self) -> None:
        """The sense data are gone; modes, and who keeps the tray closed, stay."""
        super().hold_reset()
        self._forget()

    # ATA commands

    def write_command(self, opcode: int) -> None:
        """DEVICE RESET is heard even by a drive that is busy or asleep; it interrupts nobody."""
        if opcode == DEVICE_RESET:
            self.hold_reset()
            self._reset_over()
        else:
            super().write_command(opcode)

    def begin(self) -> None:
        """The packet is wanted at once, without interrupt."""
        if self.opcode == PACKET and not self.current[FEATURES] & _DMA_OR_OVERLAP:
            self.limit = self.current[LBA_HIGH] << 8 | self.current[LBA_MID]
            self.awaits_packet = True
            self.current[COUNT] = COMMAND_OR_DATA
            self.want(PACKET_LENGTH, interrupt=False)
        else:
            self.busy(COMMAND_STEP)

    def serve(self, step: int) -> None:
        """The busy time is over."""
        if step == PACKET_STEP:
            self._start_packet()
        elif step == IN_STEP:
            self._more_input()
        elif step == OUT_STEP:
            self._more_output()
        elif step == DONE_STEP:
            self._end_packet()
        else:
            self._ata_command()

    def _ata_command(self) -> None:
        feature, value = self.current[FEATURES], self.current[COUNT]
        if self.opcode == IDENTIFY_PACKET_DEVICE:
            self.blocks_left = 0
            self.offer(packet_words(self._cdrom.identity.serial, MODEL))
        elif self.opcode in POWER_COMMANDS:
            self.power_command(self.opcode)
        elif self.opcode == SET_FEATURES and feature == 0x03 and value in PIO_TRANSFER_MODES:
            self.complete()
        else:
            if self.opcode in _WITH_SIGNATURE:
                self.put_signature()
            raise CommandError(ABRT)

    # Packets

    def _execute(self, cdb: bytes, data_out: bytes = b"") -> Answer:
        return self._cdrom.execute(Command(cdb, data_out))

    def _start_packet(self) -> None:
        cdb = bytes(self.packet)
        if cdb[0] == Opcode.REQUEST_SENSE and self.sense:
            data = bytes(self.sense[: cdb[4]])
            self.sense = bytearray()
            self._start_input(data)
            return
        self.sense = bytearray()
        first, end = _COUNT_FIELDS.get(cdb[0], (0, 0))
        count = int.from_bytes(cdb[first:end], "big")
        if count > PIECE:
            self.next_block, self.blocks_left = int.from_bytes(cdb[2:6], "big"), count
            data_in = self._read_piece()
            if data_in is not None:
                self._start_input(data_in)
            return
        answer = self._execute(cdb)
        if answer.status and 0 < answer.data_out_length <= 0xFFFF:
            self._require_limit()
            self.buffer, self.position = bytearray(answer.data_out_length), 0
            self._open_output()
        elif answer.status:
            self._fail(answer)
        else:
            self._start_input(answer.data_in[:LARGEST_BUFFER])

    def _read_piece(self) -> bytes | None:
        """The next blocks of a READ; None when the command has ended with an error instead."""
        cdb, count = bytearray(self.packet), min(PIECE, self.blocks_left)
        first, end = _COUNT_FIELDS.get(cdb[0], (0, 0))
        if not count or not end:
            raise self._aborted()
        cdb[2:6] = (self.next_block & 0xFFFFFFFF).to_bytes(4, "big")
        cdb[first:end] = count.to_bytes(end - first, "big")
        answer = self._execute(bytes(cdb))
        if answer.status or len(answer.data_in) != count * BLOCK_SIZE:
            self._fail(answer)
            return None
        self.next_block += count
        self.blocks_left -= count
        return answer.data_in

    def _aborted(self) -> CommandError:
        """The end of a packet that is no affair of the SCSI side."""
        self.blocks_left = 0
        self.current[COUNT] = COMMAND_OR_DATA | INPUT
        return CommandError(ABRT)

    def _require_limit(self) -> None:
        if not self.limit:
            raise self._aborted()  # a transfer in pieces of nothing

    def _start_input(self, data: bytes) -> None:
        if not data:
            self._end_packet()
            return
        self._require_limit()
        self.buffer, self.position = bytearray(data), 0
        self._open_input()

    def _block_end(self) -> int:
        """Where the next DRQ block ends; only the last one may have an odd length."""
        left = len(self.buffer) - self.position
        length = left if left <= self.limit else max(2, self.limit & ~1)
        self.current[LBA_MID], self.current[LBA_HIGH] = length & 0xFF, length >> 8
        return self.position + length

    def _open_input(self) -> None:
        self.current[COUNT] = INPUT
        self.open_in(self._block_end())

    def _open_output(self) -> None:
        self.current[COUNT] = 0
        self.open_out(self._block_end(), interrupt=True)

    def _more_input(self) -> None:
        if self.position >= len(self.buffer):
            data = self._read_piece()
            if data is None:
                return
            self.buffer, self.position = bytearray(data), 0
        self._open_input()

    def _more_output(self) -> None:
        if self.position < len(self.buffer):
            self._open_output()
            return
        answer = self._execute(bytes(self.packet), bytes(self.buffer))
        if answer.status:
            self._fail(answer)
        else:
            self._end_packet()

    def _end_packet(self) -> None:
        self.current[COUNT] = COMMAND_OR_DATA | INPUT
        self.complete()

    def _fail(self, answer: Answer) -> None:
        """CHECK CONDITION: the sense key is in the error register, the rest waits."""
        self.sense = bytearray(answer.sense[:LONGEST_SENSE])
        key = _sense_key(answer.sense)
        self.blocks_left = 0
        self.current[COUNT] = COMMAND_OR_DATA | INPUT
        refused = key in (SenseKey.ILLEGAL_REQUEST, SenseKey.ABORTED_COMMAND)
        self.complete(key << 4 | (ABRT if refused else 0))

    def block_was_read(self) -> None:
        """More of it, or the end, which has an interrupt of its own."""
        if self.opcode == IDENTIFY_PACKET_DEVICE:
            self.settle()
        else:
            self.busy(IN_STEP if self.position < len(self.buffer) or self.blocks_left else DONE_STEP)

    def block_was_written(self) -> None:
        """The packet, or a part of its data."""
        if self.awaits_packet:
            self.awaits_packet = False
            self.packet[:] = self.buffer[:PACKET_LENGTH].ljust(PACKET_LENGTH, b"\0")
            self._drop()
            self.busy(PACKET_STEP)
        else:
            self.busy(OUT_STEP)

    # State

    def plain_state(self) -> dict[str, Any]:
        """With that of the SCSI side."""
        state = self._cdrom.state()
        return super().plain_state() | {"cdrom": {"version": state.version, "fields": dict(state.fields)}}

    def parse_state(self, raw: Any) -> Callable[[], None]:
        """Check both sides; what comes back adopts them."""
        if not isinstance(raw, dict) or not isinstance(raw.get("cdrom"), dict):
            raise ValueError(f"the state of {self.name} must have that of its drive")
        adopt = super().parse_state({name: value for name, value in raw.items() if name != "cdrom"})
        saved = raw["cdrom"]
        wanted = DeviceState(self._cdrom.name, saved.get("version", 0), saved.get("fields", {}))
        before = self._cdrom.state()
        self._cdrom.from_state(wanted)  # refuses what is not one of its own
        self._cdrom.from_state(before)

        def adopt_both() -> None:
            adopt()
            self._cdrom.from_state(wanted)

        return adopt_both


def _sense_key(sense: bytes) -> int:
    """Of the fixed or the descriptor format; a status without sense data is as good as ABORTED COMMAND."""
    if len(sense) < 3:
        return SenseKey.ABORTED_COMMAND
    return (sense[1] if sense[0] & 0x7F >= 0x72 else sense[2]) & 0x0F
