"""An IDE channel: the command block and the control block of two drives on one cable.

A write reaches both drives, a read is answered by the selected one. An absent drive beside a present one reads 0, as
its neighbour answers for it; a cable without drives floats, and so does device 0 where only device 1 is there.

Not emulated: DMA. Spec: ATA/ATAPI-6 (T13 1410D) chapter 7, 9.2 to 9.4 (resets), 9.16 (single devices).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from hvemu.devices.ata_device import (
    DATA,
    DEV,
    DEVICE,
    EXECUTE_DEVICE_DIAGNOSTIC,
    STATUS,
    AtaDevice,
)
from hvemu.devices.contract import Clock, DeviceState, IrqLine, Watcher, nobody_watches
from hvemu.devices.saved import Number, SavedDevice, adopt_fields, fields_for, parse_fields, plain_fields

NIEN, SRST, HOB = 0x02, 0x04, 0x80
FLOATING: Final = 0xFF


class IdeChannel:
    """``drives`` are device 0 and device 1; None is an empty connector."""

    def __init__(
        self,
        drives: Sequence[AtaDevice | None],
        *,
        clock: Clock,
        irq: IrqLine,
        watcher: Watcher = nobody_watches,
    ) -> None:
        if len(drives) != 2:
            raise ValueError(f"an IDE channel has two connectors, not {len(drives)}")
        self.command = IdeCommandBlock(drives, clock=clock, irq=irq, watcher=watcher)
        self.control = IdeControlBlock(self.command)


class IdeCommandBlock(SavedDevice):
    """Eight registers; the data register has 16 or 32 bits, the others 8. Its state is that of the whole channel."""

    name = "ide-channel"
    widest_access = 4
    layout = {"device_control": Number(0xFF), "selected": Number(1)}

    def __init__(self, drives: Sequence[AtaDevice | None], *, clock: Clock, irq: IrqLine, watcher: Watcher) -> None:
        self._irq = irq
        self._present = [drive for drive in drives if drive is not None]
        empty = _EmptyConnector(0 if drives[0] is not None else FLOATING)
        self._drives: list[AtaDevice | _EmptyConnector] = [empty if drive is None else drive for drive in drives]
        self._drive = self._drives[0]
        for drive in self._present:
            drive.connect(clock, self._drive_line, watcher)
        self.device_control = self.selected = 0
        self.reset()

    def reset(self) -> None:
        """Power-on: both drives are ready, device 0 is selected, interrupts are enabled."""
        self.device_control = 0
        self._select(0)
        for drive in self._present:
            drive.power_on()
        self._drive_line()

    def quiesce(self) -> None:
        """Let the drives do what they have in hand."""
        for drive in self._present:
            drive.quiesce()

    def read(self, offset: int, size: int) -> int:
        """A register; the status register acknowledges the interrupt."""
        if offset == DATA:
            drive = self._drive
            start = drive.position
            end = start + size
            if end < drive.in_end:
                drive.position = end
                return int.from_bytes(drive.buffer[start:end], "little")
            return drive.read_last(size)
        value = 0
        for index in range(size):
            value |= self._read_octet(offset + index) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A register."""
        if offset == DATA:
            drive = self._drive
            start = drive.position
            end = start + size
            if end < drive.out_end:
                drive.buffer[start:end] = value.to_bytes(size, "little")
                drive.position = end
            else:
                drive.write_last(size, value)
            return
        for index in range(size):
            self._write_octet(offset + index, value >> 8 * index & 0xFF)

    def _read_octet(self, offset: int) -> int:
        drive = self._drive
        if offset >= STATUS:
            return drive.read_status() if offset == STATUS else FLOATING
        value = drive.read_register(offset, bool(self.device_control & HOB))
        if offset == DEVICE and isinstance(drive, AtaDevice):
            return value & ~DEV | self.selected << 4
        return value

    def _write_octet(self, offset: int, value: int) -> None:
        self.device_control &= ~HOB
        if offset >= STATUS:
            if offset == STATUS and not self.device_control & SRST:
                self._write_command(value)
            return
        for drive in self._present:
            drive.write_register(offset, value)
        if offset == DEVICE:
            self._select(value >> 4 & 1)
            self._drive_line()

    def _write_command(self, opcode: int) -> None:
        if opcode == EXECUTE_DEVICE_DIAGNOSTIC:
            for drive in self._present:
                drive.diagnose(interrupt=drive is self._drives[0])
            self._select(0)
            self._drive_line()
        else:
            self._drive.write_command(opcode)

    def read_alternate_status(self) -> int:
        """The status, which acknowledges nothing here."""
        return self._drive.status

    def write_device_control(self, value: int) -> None:
        """NIEN, SRST and HOB."""
        before, self.device_control = self.device_control, value & (NIEN | SRST | HOB)
        if value & ~before & SRST:
            self._select(0)
            for drive in self._present:
                drive.hold_reset()
        elif before & ~value & SRST:
            for drive in self._present:
                drive.release_reset()
        self._drive_line()

    def _select(self, number: int) -> None:
        self.selected = number
        self._drive = self._drives[number]

    def _drive_line(self) -> None:
        """INTRQ of the selected drive; the other one's output is not driven."""
        self._irq.set_level(self._drive.pending and not self.device_control & NIEN)

    def state(self) -> DeviceState:
        """The channel's registers and its drives."""
        drives = [drive.plain_state() if isinstance(drive, AtaDevice) else None for drive in self._drives]
        return DeviceState(self.name, self.version, plain_fields(self, self.layout) | {"drives": drives})

    def from_state(self, state: DeviceState) -> None:
        """Adopt all or nothing; the drives have to be of the same kinds."""
        raw = dict(fields_for(self, state))
        drives = raw.pop("drives", None)
        fields = parse_fields(self.layout, raw, self.name)
        if not isinstance(drives, list) or len(drives) != 2:
            raise ValueError(f"the state of {self.name} must have two drives")
        adoptions = [drive.parse_state(saved) for drive, saved in zip(self._drives, drives, strict=True)]
        adopt_fields(self, fields)
        for adopt in adoptions:
            adopt()
        self._select(self.selected)
        self._drive_line()


class IdeControlBlock(SavedDevice):
    """One register: alternate status when read, device control when written."""

    name = "ide-control"
    layout = {}

    def __init__(self, channel: IdeCommandBlock) -> None:
        self._channel = channel

    def reset(self) -> None:
        """The command block resets both."""

    def read(self, offset: int, size: int) -> int:
        """Alternate status."""
        return self._channel.read_alternate_status() if offset == 0 else FLOATING

    def write(self, offset: int, size: int, value: int) -> None:
        """Device control."""
        if offset == 0:
            self._channel.write_device_control(value & 0xFF)


class _EmptyConnector:
    """Where no drive is: nothing is ever transferred, nothing interrupts."""

    def __init__(self, value: int) -> None:
        self.status = value
        self.position = self.in_end = self.out_end = 0
        self.buffer = bytearray()
        self.pending = False

    def read_register(self, offset: int, high_order: bool) -> int:
        return self.status

    def read_status(self) -> int:
        return self.status

    def read_last(self, size: int) -> int:
        return self.status * 0x01010101 & ((1 << 8 * size) - 1)

    def write_last(self, size: int, value: int) -> None:
        """Nobody takes it."""

    def write_command(self, opcode: int) -> None:
        """Nobody hears it."""

    def parse_state(self, raw: Any) -> Callable[[], None]:
        if raw is not None:
            raise ValueError("the state of an IDE channel has a drive where there is none")
        return lambda: None
