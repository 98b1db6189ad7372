"""What an ATA disk and an ATAPI drive share: registers, status, the blocks of a PIO transfer, and interrupts.

A command makes the drive busy for SERVICE_TIME of virtual time; what it does happens when that is over. Data pass
through one buffer, of which the host is shown one DRQ block at a time: ``position`` is where it is, ``in_end`` or
``out_end`` where the block ends. Both are 0 where nothing is transferred, so that the channel has one thing to compare.

Not emulated: DMA, overlap and queuing.
Spec: ATA/ATAPI-6 (T13 1410D) chapter 7 (registers), 9.5 to 9.8 (PIO and PACKET protocols), 9.12 (signatures).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from hvemu.devices.contract import Clock, DeviceEvent, Watcher
from hvemu.devices.deadline import Deadline
from hvemu.devices.saved import Buffer, Due, Flag, Kind, Number, Numbers, adopt_fields, parse_fields, plain_fields

DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
FEATURES: Final = ERROR
"""The same register, written."""
BSY, DRDY, DSC, DRQ, ERR = 0x80, 0x40, 0x10, 0x08, 0x01
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
DEV: Final = 0x10
READY: Final = DRDY | DSC

DEVICE_RESET, EXECUTE_DEVICE_DIAGNOSTIC = 0x08, 0x90
DIAGNOSTIC_PASSED: Final = 0x01

ACTIVE, IDLE, STANDBY, SLEEPING = 0xFF, 0x80, 0x00, 0x01
"""Power modes; the first three as CHECK POWER MODE reports them."""
SERVICE_TIME: Final = 20_000
"""Nanoseconds from a command, or from the end of a DRQ block, to the interrupt."""
LARGEST_BUFFER: Final = 1 << 16
LAST_STEP: Final = 7
COMMAND_STEP, RESET_STEP, DIAGNOSTIC_STEP = 0, 1, 2
"""What happens when the drive is no longer busy; a kind of drive adds its own."""

PIO_TRANSFER_MODES: Final = (0x00, 0x01, *range(0x08, 0x0D))
"""SET FEATURES 03h: the default, the default without IORDY, and PIO modes 0 to 4 with flow control (table 50)."""

_REGISTERS: Final[Mapping[str, Kind]] = {
    "current": Numbers(8, 0xFF),
    "previous": Numbers(8, 0xFF),
    "status": Number(0xFF),
    "error": Number(0xFF),
    "opcode": Number(0xFF),
    "pending": Flag(),
    "power": Number(0xFF),
    "step": Number(LAST_STEP),
    "buffer": Buffer(LARGEST_BUFFER),
    "position": Number(LARGEST_BUFFER),
    "in_end": Number(LARGEST_BUFFER),
    "out_end": Number(LARGEST_BUFFER),
    "due": Due(),
}


class CommandError(Exception):
    """A command ends with bits in the error register; it never leaves the drive."""

    def __init__(self, bits: int) -> None:
        super().__init__(f"error {bits:#04x}")
        self.bits = bits


class AtaDevice(ABC):
    """A drive at one end of the cable. ``connect`` comes before anything else."""

    name: ClassVar[str] = "ata-device"
    signature: ClassVar[tuple[int, int]] = (0, 0)
    """LBA Mid and LBA High after a reset."""
    ready_after_reset: ClassVar[int] = READY
    layout: ClassVar[Mapping[str, Kind]] = {}
    """What a kind of drive adds to the state."""

    def __init__(self) -> None:
        self._all_fields = {**_REGISTERS, **self.layout}
        self.current = [0] * 8
        self.previous = [0] * 8
        self.buffer = bytearray()
        self.position = self.in_end = self.out_end = 0
        self.status = self.error = self.opcode = self.step = 0
        self.pending = False
        self.power = ACTIVE

    def connect(self, clock: Clock, interrupt_changed: Callable[[], None], watcher: Watcher) -> None:
        """Plug the cable in."""
        self._clock, self._interrupt_changed, self._watcher = clock, interrupt_changed, watcher
        self.due = Deadline(clock, self._serve)

    def power_on(self) -> None:
        """The state after power-on, with the reset already over."""
        self.hold_reset()
        self.current, self.previous = [0] * 8, [0] * 8
        self.opcode = 0
        self.set_defaults()
        self._reset_over()

    @abstractmethod
    def set_defaults(self) -> None:
        """Settings that only power-on changes back."""

    # Registers

    def read_register(self, offset: int, high_order: bool) -> int:
        """Registers 1 to 6; ``high_order`` is the HOB bit of the device control register."""
        if offset == ERROR:
            return self.error
        return self.previous[offset] if high_order and offset < DEVICE else self.current[offset]

    def write_register(self, offset: int, value: int) -> None:
        """Registers 1 to 6. A drive with something else to do does not listen."""
        if not self.status & (BSY | DRQ):
            self.previous[offset] = self.current[offset]
            self.current[offset] = value

    def read_status(self) -> int:
        """The status register, which acknowledges the interrupt."""
        if self.pending:
            self.pending = False
            self._interrupt_changed()
        return self.status

    def write_command(self, opcode: int) -> None:
        """The command register."""
        if self.pending:
            self.pending = False
            self._interrupt_changed()
        if self.status & (BSY | DRQ) or self.power == SLEEPING:
            return
        self.opcode, self.error = opcode, 0
        self.begin()

    def begin(self) -> None:
        """Start on the command; most of them wait for the end of the busy time."""
        self.busy(COMMAND_STEP)

    # Ends and beginnings

    def busy(self, step: int) -> None:
        """Have nothing to say until ``step``."""
        self._end_block()
        self.status, self.step = BSY, step
        self.due.arm(self._clock.now() + SERVICE_TIME)

    def complete(self, error: int = 0) -> None:
        """The command is over."""
        self._drop()
        self.error = error
        self.status = READY | ERR if error else READY
        self.interrupt()

    def settle(self) -> None:
        """The host has read all there was: a PIO read ends without another interrupt."""
        self._drop()
        self.status = READY

    def offer(self, data: bytes | bytearray) -> None:
        """One DRQ block for the host to read, with an interrupt."""
        self.buffer, self.position = bytearray(data), 0
        self.open_in(len(data))

    def open_in(self, end: int) -> None:
        """Let the host read the buffer up to ``end``."""
        self.in_end, self.status = end, READY | DRQ
        self.interrupt()

    def want(self, length: int, *, interrupt: bool) -> None:
        """One DRQ block for the host to write. The first one of a command comes at once and without interrupt."""
        self.buffer, self.position = bytearray(length), 0
        self.open_out(length, interrupt=interrupt)

    def open_out(self, end: int, *, interrupt: bool) -> None:
        """Let the host write the buffer up to ``end``."""
        self.out_end, self.status = end, READY | DRQ
        if interrupt:
            self.interrupt()

    def interrupt(self) -> None:
        """INTRQ, as soon as the drive is selected and allowed to."""
        self.pending = True
        self._interrupt_changed()

    def tell(self, what: str, detail: int | str) -> None:
        """The watcher."""
        self._watcher(DeviceEvent(self.name, what, detail))

    def _end_block(self) -> None:
        self.in_end = self.out_end = 0

    def _drop(self) -> None:
        self._end_block()
        self.position, self.buffer = 0, bytearray()

    # The data register, where the channel's short way ends

    def read_last(self, size: int) -> int:
        """The access that ends a block, or that finds none."""
        if not self.in_end:
            return 0
        value = int.from_bytes(self.buffer[self.position : min(self.position + size, self.in_end)], "little")
        self.position = self.in_end
        self._end_block()
        self.block_was_read()
        return value

    def write_last(self, size: int, value: int) -> None:
        """The access that ends a block, or that finds none."""
        if self.out_end:
            length = self.out_end - self.position
            self.buffer[self.position : self.out_end] = value.to_bytes(size, "little")[:length]
            self.position = self.out_end
            self.block_was_written()

    @abstractmethod
    def block_was_read(self) -> None:
        """The host has what was offered."""

    @abstractmethod
    def block_was_written(self) -> None:
        """The host has filled what was wanted."""

    # Service

    def _serve(self) -> None:
        if self.step == RESET_STEP:
            self._reset_over()
        elif self.step == DIAGNOSTIC_STEP:
            self._reset_over()
            self.interrupt()
        else:
            try:
                self.serve(self.step)
            except CommandError as error:
                self.complete(error.bits)

    @abstractmethod
    def serve(self, step: int) -> None:
        """What comes after the busy time. Raises CommandError."""

    def quiesce(self) -> None:
        """Carry on until the host has to do something."""
        while self.due.at is not None:
            self.due.arm(None)
            self._serve()

    # Resets

    def hold_reset(self) -> None:
        """SRST is set: what was going on is over."""
        self.due.arm(None)
        self._drop()
        self.status, self.error, self.power = BSY, 0, ACTIVE
        self.pending = False
        self._interrupt_changed()

    def release_reset(self) -> None:
        """SRST is clear again."""
        self.busy(RESET_STEP)

    def diagnose(self, *, interrupt: bool) -> None:
        """EXECUTE DEVICE DIAGNOSTIC, which reaches both drives; device 0 speaks for both."""
        self.hold_reset()
        self.busy(DIAGNOSTIC_STEP if interrupt else RESET_STEP)

    def _reset_over(self) -> None:
        self.put_signature()
        self.error, self.status = DIAGNOSTIC_PASSED, self.ready_after_reset

    def put_signature(self) -> None:
        """What kind of drive this is."""
        self.current[COUNT] = self.current[LBA_LOW] = 1
        self.current[LBA_MID], self.current[LBA_HIGH] = self.signature
        self.current[DEVICE] = 0

    # Power

    def power_command(self, opcode: int) -> None:
        """STANDBY, IDLE, CHECK POWER MODE, SLEEP and their older numbers."""
        if opcode in (0xE5, 0x98):
            self.current[COUNT] = self.power
        else:
            self.power = {0xE0: STANDBY, 0xE2: STANDBY, 0xE6: SLEEPING}.get(_OLDER.get(opcode, opcode), IDLE)
        self.complete()

    # State

    def plain_state(self) -> dict[str, Any]:
        """The fields of the state."""
        return plain_fields(self, self._all_fields)

    def parse_state(self, raw: Any) -> Callable[[], None]:
        """Check a state; what comes back adopts it. ValueError when it is not one of ours."""
        fields = parse_fields(self._all_fields, raw, self.name)
        ends = fields["in_end"], fields["out_end"]
        if not fields["position"] <= len(fields["buffer"]) or max(ends) > len(fields["buffer"]) or 0 not in ends:
            raise ValueError(f"the state of {self.name} has a transfer outside of its buffer")
        return lambda: adopt_fields(self, fields)


_OLDER: Final = {0x94: 0xE0, 0x95: 0xE1, 0x96: 0xE2, 0x97: 0xE3, 0x99: 0xE6}
POWER_COMMANDS: Final = frozenset((*range(0x94, 0x9A), 0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6))
SPIN_DOWN_COMMANDS: Final = frozenset((0x94, 0x96, 0x99, 0xE0, 0xE2, 0xE6))
"""Those before which a disk empties its cache."""
