"""The 16550A serial port: 16-byte FIFOs, interrupts, modem lines, loopback.

The transmitter takes no time, so THRE and TEMT are always set. Input waits in a bounded queue on the host's
side and arrives at line speed: a load of the receive FIFO each time the guest has emptied it, so that the
interrupt line falls in between. The character time-out is raised at once.

Not emulated: break, parity and framing errors, DMA mode. Modem inputs are CTS, DSR and DCD, always on.
A board that wires INTRPT to the bus without the OUT2 gate passes ``out2_gates_irq=False``.
Spec: National Semiconductor PC16550D (June 1995), section 8 "Registers".
"""

from collections import deque
from typing import Final

from hvemu.devices.contract import CharacterBackend, Clock, DeviceEvent, IrqLine, Watcher, nobody_watches
from hvemu.devices.deadline import Deadline
from hvemu.devices.saved import Due, Flag, Number, Queue, SavedDevice

IER_RECEIVED_DATA: Final = 0b0001
IER_TRANSMITTER_EMPTY: Final = 0b0010
IER_LINE_STATUS: Final = 0b0100
IER_MODEM_STATUS: Final = 0b1000

IIR_NONE: Final = 0b0001
IIR_MODEM_STATUS: Final = 0b0000
IIR_TRANSMITTER_EMPTY: Final = 0b0010
IIR_RECEIVED_DATA: Final = 0b0100
IIR_LINE_STATUS: Final = 0b0110
IIR_CHARACTER_TIMEOUT: Final = 0b1100
IIR_FIFOS_ENABLED: Final = 0b1100_0000

FCR_ENABLE: Final = 0b0001
FCR_CLEAR_RECEIVER: Final = 0b0010
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

LCR_DIVISOR_LATCH_ACCESS: Final = 0b1000_0000

MCR_RTS: Final = 0b0_0010
MCR_OUT2: Final = 0b0_1000
MCR_LOOPBACK: Final = 0b1_0000

LSR_DATA_READY: Final = 0b0000_0001
LSR_OVERRUN: Final = 0b0000_0010
LSR_TRANSMITTER: Final = 0b0110_0000  # THRE and TEMT

MSR_TRAILING_EDGE_RI: Final = 0b0000_0100
MSR_RI: Final = 0b0100_0000
MSR_LINES: Final = 0b1011_0000  # DCD, DSR and CTS of the terminal at the other end

FIFO_SIZE: Final = 16
QUEUE_LIMIT: Final = 64 * 1024
CRYSTAL_HZ: Final = 1_843_200
SINGLE_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class Uart16550(SavedDevice):
    """Eight registers at offsets 0 to 7."""

    name = "uart16550"
    layout = {
        "interrupt_enable": Number(0x0F),
        "fifo_enabled": Flag(),
        "trigger_level": Number(14, minimum=1),
        "line_control": Number(0xFF),
        "modem_control": Number(0x1F),
        "overrun": Flag(),
        "modem_status": Number(0xFF),
        "scratch": Number(0xFF),
        "divisor_latch": Number(0xFFFF),
        "transmitter_interrupt": Flag(),
        "receive_fifo": Queue(FIFO_SIZE),
        "queue": Queue(QUEUE_LIMIT),
        "refill": Due(),
    }

    def __init__(
        self,
        *,
        irq: IrqLine,
        clock: Clock,
        backend: CharacterBackend,
        watcher: Watcher = nobody_watches,
        out2_gates_irq: bool = True,
    ) -> None:
        self._irq = irq
        self._clock = clock
        self._backend = backend
        self._watcher = watcher
        self._out2_gates_irq = out2_gates_irq
        self.refill = Deadline(clock, self._load_fifo)
        self.queue: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Master reset; what waits on the host's side is dropped as well."""
        self.interrupt_enable = 0
        self.fifo_enabled = False
        self.trigger_level = 1
        self.line_control = 0
        self.modem_control = 0
        self.overrun = False
        self.modem_status = MSR_LINES
        self.scratch = 0
        self.divisor_latch = 12  # 9600 baud; the datasheet leaves it undefined
        self.transmitter_interrupt = False
        self.receive_fifo: deque[int] = deque()
        self.queue.clear()
        self.refill.arm(None)
        self._irq.set_level(False)

    def receive(self, data: bytes) -> int:
        """Bytes from the other end of the wire; gives how many there was room for."""
        accepted = data[: QUEUE_LIMIT - len(self.queue)]
        if len(accepted) < len(data):
            self._watcher(DeviceEvent(self.name, "input dropped", len(data) - len(accepted)))
        self.queue.extend(accepted)
        if self.refill.at is None and not self.receive_fifo and not self.modem_control & MCR_LOOPBACK:
            self._load_fifo()  # the wire was idle: no waiting
        return len(accepted)

    def read(self, offset: int, size: int) -> int:
        """Read the register at ``offset``; RBR, IIR, LSR and MSR have side effects."""
        if offset == 5:
            value = LSR_TRANSMITTER
            if self.receive_fifo:
                value |= LSR_DATA_READY
            if self.overrun:
                value |= LSR_OVERRUN
                self.overrun = False
                self.resume()
            return value
        if offset == 0:
            if self.line_control & LCR_DIVISOR_LATCH_ACCESS:
                return self.divisor_latch & 0xFF
            return self._read_receiver_buffer()
        if offset == 1:
            return self.divisor_latch >> 8 if self.line_control & LCR_DIVISOR_LATCH_ACCESS else self.interrupt_enable
        if offset == 2:
            return self._read_interrupt_identification()
        if offset == 3:
            return self.line_control
        if offset == 4:
            return self.modem_control
        if offset == 6:
            value = self.modem_status
            if value & 0x0F:
                self.modem_status = value & 0xF0  # reading clears the delta bits
                self.resume()
            return value
        return self.scratch if offset == 7 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register at ``offset``; LSR and MSR are read only."""
        value &= 0xFF
        if offset == 0:
            if self.line_control & LCR_DIVISOR_LATCH_ACCESS:
                self.divisor_latch = self.divisor_latch & 0xFF00 | value
            else:
                self._transmit(value)
        elif offset == 1:
            if self.line_control & LCR_DIVISOR_LATCH_ACCESS:
                self.divisor_latch = self.divisor_latch & 0x00FF | value << 8
            else:
                self._write_interrupt_enable(value & 0x0F)
        elif offset == 2:
            self._write_fifo_control(value)
        elif offset == 3:
            self.line_control = value
        elif offset == 4:
            self._write_modem_control(value & 0x1F)
        elif offset == 7:
            self.scratch = value

    def resume(self) -> None:
        """Drive the interrupt line from the highest pending source and the OUT2 gate."""
        control = self.modem_control
        gate = not self._out2_gates_irq or (control & MCR_OUT2 and not control & MCR_LOOPBACK)
        self._irq.set_level(bool(gate) and self._pending() != IIR_NONE)

    def _pending(self) -> int:
        """The interrupt identification of the highest-priority source that is enabled."""
        enabled = self.interrupt_enable
        if self.overrun and enabled & IER_LINE_STATUS:
            return IIR_LINE_STATUS
        if self.receive_fifo and enabled & IER_RECEIVED_DATA:
            return IIR_RECEIVED_DATA if len(self.receive_fifo) >= self.trigger_level else IIR_CHARACTER_TIMEOUT
        if self.transmitter_interrupt and enabled & IER_TRANSMITTER_EMPTY:
            return IIR_TRANSMITTER_EMPTY
        if self.modem_status & 0x0F and enabled & IER_MODEM_STATUS:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _read_interrupt_identification(self) -> int:
        pending = self._pending()
        if pending == IIR_TRANSMITTER_EMPTY:  # reading it is one of the two ways to clear THRE
            self.transmitter_interrupt = False
            self.resume()
        return pending | IIR_FIFOS_ENABLED if self.fifo_enabled else pending

    def _read_receiver_buffer(self) -> int:
        if not self.receive_fifo:
            return 0
        value = self.receive_fifo.popleft()
        self._refill_when_empty()
        self.resume()
        return value

    def _transmit(self, value: int) -> None:
        """THR: the byte is gone before the guest's next instruction, so THRE is raised anew."""
        if self.modem_control & MCR_LOOPBACK:
            self._push_looped(value)
        else:
            self._backend.write(SINGLE_BYTES[value])
        if not self.interrupt_enable & IER_TRANSMITTER_EMPTY:
            self.transmitter_interrupt = True
            return
        if self.transmitter_interrupt:
            self.transmitter_interrupt = False  # writing THR is the other way: the line falls before it rises again
            self.resume()
        self.transmitter_interrupt = True
        self.resume()

    def _write_interrupt_enable(self, value: int) -> None:
        """Enabling the THRE interrupt while THR is empty raises it; the 8250 drivers test for that."""
        if (value ^ self.interrupt_enable) & IER_TRANSMITTER_EMPTY:
            self.transmitter_interrupt = bool(value & IER_TRANSMITTER_EMPTY)
        self.interrupt_enable = value
        self.resume()

    def _write_fifo_control(self, value: int) -> None:
        """FCR: bit 0 must be set for the other bits to count; changing it clears both FIFOs."""
        enable = bool(value & FCR_ENABLE)
        if enable != self.fifo_enabled or value & (FCR_ENABLE | FCR_CLEAR_RECEIVER) == FCR_ENABLE | FCR_CLEAR_RECEIVER:
            self.receive_fifo.clear()
            self._refill_when_empty()
        self.fifo_enabled = enable
        self.trigger_level = TRIGGER_LEVELS[value >> 6] if enable else 1
        self.resume()

    def _write_modem_control(self, value: int) -> None:
        """In loopback the four outputs come back as the four inputs, and the pins go inactive."""
        self.modem_control = value
        lines = MSR_LINES
        if value & MCR_LOOPBACK:
            lines = (value & 0b1100) << 4 | (value & 0b0001) << 5 | (value & MCR_RTS) << 3
        before = self.modem_status & 0xF0
        deltas = (before ^ lines) >> 4 & 0b1011  # bit 2 tells only the trailing edge of RI
        if before & ~lines & MSR_RI:
            deltas |= MSR_TRAILING_EDGE_RI
        self.modem_status = lines | self.modem_status & 0x0F | deltas
        self._refill_when_empty()
        self.resume()

    def _push_looped(self, value: int) -> None:
        """A byte that came back through loopback; one too many is an overrun."""
        if len(self.receive_fifo) < self._capacity():
            self.receive_fifo.append(value)
        else:
            self.overrun = True
            if not self.fifo_enabled:
                self.receive_fifo[0] = value  # without FIFOs the new byte destroys the old one
        self.resume()

    def _capacity(self) -> int:
        return FIFO_SIZE if self.fifo_enabled else 1

    def _refill_when_empty(self) -> None:
        """Let the next load arrive after the time it takes on the wire."""
        if self.queue and not self.receive_fifo and self.refill.at is None:
            characters = min(len(self.queue), self._capacity())
            self.refill.arm(self._clock.now() + characters * self._character_time())

    def _load_fifo(self) -> None:
        if self.modem_control & MCR_LOOPBACK:  # the input pin is disconnected; leaving loopback tries again
            return
        while self.queue and len(self.receive_fifo) < self._capacity():
            self.receive_fifo.append(self.queue.popleft())
        self.resume()

    def _character_time(self) -> int:
        """Start, data, parity and stop bits at the programmed speed, in nanoseconds."""
        control = self.line_control
        bits = 7 + (control & 0b11) + (control >> 3 & 1) + (control >> 2 & 1)
        return max(self.divisor_latch, 1) * 16 * bits * 1_000_000_000 // CRYSTAL_HZ
