"""The 16550A: FIFOs, interrupts in order of priority, modem lines, loopback."""

import pytest

from hvemu.devices.uart16550 import QUEUE_LIMIT, Uart16550

from .fakes import FakeBackend, FakeClock, FakeIrqLine, FakeWatcher

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
OUT2 = 0x08
CHARACTER_AT_115200 = 86_805  # nanoseconds for ten bits


class Desk:
    """A UART on a desk, with its ports."""

    def __init__(self, *, out2_gates_irq: bool = True) -> None:
        self.clock = FakeClock()
        self.irq = FakeIrqLine()
        self.backend = FakeBackend()
        self.watcher = FakeWatcher()
        self.uart = Uart16550(
            irq=self.irq, clock=self.clock, backend=self.backend, watcher=self.watcher, out2_gates_irq=out2_gates_irq
        )

    def out(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def inp(self, register: int) -> int:
        return self.uart.read(register, 1)

    def set_speed(self, divisor: int) -> None:
        self.out(LCR, 0x83)
        self.out(DLL, divisor & 0xFF)
        self.out(DLM, divisor >> 8)
        self.out(LCR, 0x03)

    def drain(self) -> bytes:
        read = bytearray()
        while self.inp(LSR) & 0x01:
            read.append(self.inp(RBR))
        return bytes(read)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_is_written_to_thr_reaches_the_backend(desk: Desk) -> None:
    """The transmitter is instantaneous: LSR says empty before and after."""
    desk.out(THR, ord("A"))
    assert (b"A", 0x60) == (desk.backend.written, desk.inp(LSR))


def test_the_divisor_latch_hides_thr_and_ier(desk: Desk) -> None:
    """With DLAB set offsets 0 and 1 are the divisor, and nothing is transmitted."""
    desk.out(LCR, 0x80)
    desk.out(DLL, 0x34)
    desk.out(DLM, 0x12)
    assert (0x34, 0x12, b"") == (desk.inp(DLL), desk.inp(DLM), desk.backend.written)
    desk.out(LCR, 0x03)
    assert 0 == desk.inp(IER)


def test_only_four_bits_of_ier_exist(desk: Desk) -> None:
    """Linux tells a 16550A from an XScale port by IER bit 6 and sleeping ports by bits 4 to 7."""
    desk.out(IER, 0xFF)
    assert 0x0F == desk.inp(IER)


def test_scratch_holds_a_byte(desk: Desk) -> None:
    """An 8250 has no scratch register, a 16450 and later do."""
    desk.out(SCR, 0xA5)
    assert 0xA5 == desk.inp(SCR)


def test_iir_shows_enabled_fifos(desk: Desk) -> None:
    """Both upper bits mean working FIFOs, as in the 16550A; FCR bits 1 and 2 clear themselves."""
    before = desk.inp(IIR)
    desk.out(FCR, 0x07)
    assert (0x01, 0xC1) == (before, desk.inp(IIR))


def test_linux_finds_a_16550a(desk: Desk) -> None:
    """The steps of the 8250 driver's autoconfiguration, with what each must see."""
    desk.out(IER, 0)
    assert 0 == desk.inp(IER) & 0x0F
    desk.out(IER, 0x0F)
    assert 0x0F == desk.inp(IER) & 0x0F
    desk.out(IER, 0)
    desk.out(MCR, 0x1A)
    assert 0x90 == desk.inp(MSR) & 0xF0
    desk.out(MCR, OUT2)
    desk.out(LCR, 0xBF)
    desk.out(FCR, 0)  # EFR of later chips
    desk.out(LCR, 0)
    desk.out(FCR, 0x01)
    assert 3 == desk.inp(IIR) >> 6
    desk.out(LCR, 0x80)
    assert 0 != desk.inp(IIR)  # no EFR here: not a 16650
    desk.out(FCR, 0x21)
    assert 0 == desk.inp(IIR) & 0x20  # no 64-byte FIFO: not a 16750


def test_enabling_the_thre_interrupt_raises_it(desk: Desk) -> None:
    """THR is empty, so IER bit 1 going from 0 to 1 interrupts at once, each time."""
    desk.out(MCR, OUT2)
    desk.out(IER, 0x02)
    first = desk.inp(IIR), desk.inp(IIR)
    desk.out(IER, 0x00)
    desk.out(IER, 0x02)
    assert ((0x02, 0x01), 0x02) == (first, desk.inp(IIR))


def test_reading_iir_clears_thre_and_lowers_the_line(desk: Desk) -> None:
    """The read that reports THRE is the acknowledgement."""
    desk.out(MCR, OUT2)
    desk.out(IER, 0x02)
    raised = desk.irq.level
    desk.inp(IIR)
    assert (True, False) == (raised, desk.irq.level)


def test_writing_thr_raises_thre_again_with_an_edge(desk: Desk) -> None:
    """Even when the last THRE was never read: the line falls and rises."""
    desk.out(MCR, OUT2)
    desk.out(IER, 0x02)
    desk.out(THR, 0x41)
    assert (2, 0x02) == (len(desk.irq.edges), desk.inp(IIR))


def test_received_data_interrupts_until_read(desk: Desk) -> None:
    """Without FIFOs one byte is enough for IIR 04."""
    desk.out(MCR, OUT2)
    desk.out(IER, 0x01)
    desk.uart.receive(b"x")
    assert (True, 0x04, ord("x"), False) == (desk.irq.level, desk.inp(IIR), desk.inp(RBR), desk.irq.level)


def test_below_the_trigger_level_it_is_a_character_timeout(desk: Desk) -> None:
    """Seven bytes of eight: 0C; the eighth makes it 04."""
    desk.out(FCR, 0x81)
    desk.out(IER, 0x01)
    desk.uart.receive(b"1234567")
    below = desk.inp(IIR)
    desk.drain()
    desk.uart.receive(b"12345678")
    assert (0xCC, 0xC4) == (below, desk.inp(IIR))


def test_out2_gates_the_line(desk: Desk) -> None:
    """On a PC the interrupt leaves the card only while OUT2 is on."""
    desk.out(IER, 0x01)
    desk.uart.receive(b"x")
    closed = desk.irq.level
    desk.out(MCR, OUT2)
    assert (False, True) == (closed, desk.irq.level)


def test_a_board_may_leave_the_gate_out() -> None:
    """Kernels that were only ever run on emulators do not set OUT2."""
    desk = Desk(out2_gates_irq=False)
    desk.out(IER, 0x01)
    desk.uart.receive(b"x")
    assert desk.irq.level


def test_the_receive_fifo_keeps_order_and_the_queue_refills_it(desk: Desk) -> None:
    """40 bytes arrive as loads of 16, 16 and 8, each after its time on the wire, with an edge each."""
    desk.set_speed(1)
    desk.out(MCR, OUT2)
    desk.out(FCR, 0x01)
    desk.out(IER, 0x01)
    text = bytes(range(40))
    desk.uart.receive(text)
    loads = [desk.drain()]
    assert [16 * CHARACTER_AT_115200] == desk.clock.pending()
    for _ in range(2):
        desk.clock.advance(16 * CHARACTER_AT_115200 + 16)
        loads.append(desk.drain())
    assert [text[:16], text[16:32], text[32:]] == loads
    assert 3 == len(desk.irq.edges)


def test_without_fifos_bytes_come_one_at_a_time(desk: Desk) -> None:
    """A handler that reads one byte per interrupt gets an interrupt per byte."""
    desk.set_speed(1)
    desk.out(MCR, OUT2)
    desk.out(IER, 0x01)
    desk.uart.receive(b"abc")
    read = bytearray([desk.inp(RBR)])
    for _ in range(2):
        desk.clock.advance(CHARACTER_AT_115200 + 1)
        read.append(desk.inp(RBR))
    assert (b"abc", 3, 0x60) == (bytes(read), len(desk.irq.edges), desk.inp(LSR))


def test_the_queue_is_bounded(desk: Desk) -> None:
    """A paste that is too long is cut, said so, and told to the watcher."""
    accepted = desk.uart.receive(bytes(QUEUE_LIMIT + 100))
    assert (QUEUE_LIMIT, 100) == (accepted, desk.watcher.events[0].detail)


def test_clearing_the_receiver_drops_the_fifo_but_not_the_queue(desk: Desk) -> None:
    """What the chip held is lost, as in hardware; what is on the wire still comes."""
    desk.out(FCR, 0x01)
    desk.uart.receive(bytes(range(20)))
    desk.out(FCR, 0x03)
    emptied = desk.inp(LSR) & 1
    desk.clock.advance(20_000_000)
    assert (0, bytes([16, 17, 18, 19])) == (emptied, desk.drain())


def test_loopback_returns_what_is_transmitted(desk: Desk) -> None:
    """Nothing leaves; nothing enters."""
    desk.out(MCR, 0x10)
    desk.uart.receive(b"outside")
    desk.out(THR, 0x5A)
    assert (0x5A, b"") == (desk.inp(RBR), desk.backend.written)
    desk.out(FCR, 0x01)
    desk.out(MCR, 0x00)
    desk.clock.advance(20_000_000)
    assert b"outside" == desk.drain()


def test_a_byte_too_many_in_loopback_is_an_overrun(desk: Desk) -> None:
    """LSR bit 1 is set until read, and is the interrupt of highest priority."""
    desk.out(FCR, 0x01)
    desk.out(MCR, 0x10)
    desk.out(IER, 0x05)
    for value in range(17):
        desk.out(THR, value)
    assert (0xC6, 0x63, 0x61) == (desk.inp(IIR), desk.inp(LSR), desk.inp(LSR))
    assert bytes(range(16)) == desk.drain()


def test_without_fifos_an_overrun_destroys_the_old_byte(desk: Desk) -> None:
    """The receiver buffer holds the last one."""
    desk.out(MCR, 0x10)
    desk.out(THR, 1)
    desk.out(THR, 2)
    assert (0x63, 2) == (desk.inp(LSR), desk.inp(RBR))


def test_modem_inputs_are_on_and_deltas_clear_on_reading(desk: Desk) -> None:
    """CTS, DSR and DCD at first; loopback takes them away and MSR tells which changed."""
    at_first = desk.inp(MSR)
    desk.out(MCR, 0x10)
    desk.out(IER, 0x08)
    assert (0xB0, 0x00, 0x0B, 0x00) == (at_first, desk.inp(IIR), desk.inp(MSR), desk.inp(MSR))
    assert 0x01 == desk.inp(IIR)


def test_the_ring_indicator_tells_only_its_trailing_edge(desk: Desk) -> None:
    """OUT1 in loopback is RI: its rise sets no delta, its fall sets bit 2."""
    desk.out(MCR, 0x10)
    desk.inp(MSR)
    desk.out(MCR, 0x14)
    rising = desk.inp(MSR)
    desk.out(MCR, 0x10)
    assert (0x40, 0x04) == (rising, desk.inp(MSR))


def test_a_pending_refill_survives_the_state(desk: Desk) -> None:
    """Another chip goes on where this one was, at the same time."""
    desk.uart.receive(b"ab")
    desk.inp(RBR)
    other = Desk()
    other.uart.from_state(desk.uart.state())
    assert desk.clock.pending() == other.clock.pending()
    other.clock.advance_to(other.clock.pending()[0])
    assert b"b" == other.drain()


def test_reset_cancels_the_refill_and_lowers_the_line(desk: Desk) -> None:
    """Power-on: no timer, no interrupt, no input."""
    desk.out(MCR, OUT2)
    desk.out(IER, 0x01)
    desk.uart.receive(b"abc")
    desk.inp(RBR)
    desk.uart.reset()
    assert ([], False, 0x60) == (desk.clock.pending(), desk.irq.level, desk.inp(LSR))


def test_sources_that_are_not_enabled_do_not_interrupt(desk: Desk) -> None:
    """Overrun, data, empty transmitter and modem lines all wait; IER bit by bit lets them out, highest first."""
    desk.out(MCR, 0x10)
    desk.out(THR, 1)
    desk.out(THR, 2)
    seen = []
    for enabled in (0x00, 0x08, 0x0A, 0x0B, 0x0F):
        desk.out(IER, enabled)
        seen.append(desk.inp(IIR))
    assert [0x01, 0x00, 0x02, 0x04, 0x06] == seen


def test_reading_lsr_and_msr_lowers_the_line() -> None:
    """Each is the acknowledgement of its own source."""
    desk = Desk(out2_gates_irq=False)
    desk.out(MCR, 0x10)
    desk.out(IER, 0x08)
    modem = desk.irq.level
    desk.inp(MSR)
    after_modem = desk.irq.level
    desk.out(IER, 0x04)
    desk.out(THR, 1)
    desk.out(THR, 2)
    overrun = desk.irq.level
    desk.inp(LSR)
    assert (True, False, True, False) == (modem, after_modem, overrun, desk.irq.level)


def test_clearing_the_receiver_lowers_the_line(desk: Desk) -> None:
    """What is gone interrupts no more."""
    desk.out(MCR, OUT2)
    desk.out(FCR, 0x01)
    desk.out(IER, 0x01)
    desk.uart.receive(b"x")
    desk.out(FCR, 0x03)
    assert not desk.irq.level


def test_changing_the_trigger_keeps_the_fifo(desk: Desk) -> None:
    """Only FCR bit 1, or switching the FIFOs, clears it."""
    desk.out(FCR, 0x01)
    desk.uart.receive(b"abc")
    desk.out(FCR, 0xC1)
    kept = desk.drain()
    desk.uart.receive(b"abc")
    desk.out(FCR, 0x00)
    assert (b"abc", 0x60) == (kept, desk.inp(LSR))


@pytest.mark.parametrize(
    ("line_control", "divisor", "nanoseconds"),
    [
        (0x03, 1, 86_805),
        (0x00, 1, 60_763),
        (0x0B, 1, 95_486),
        (0x07, 1, 95_486),
        (0x03, 12, 1_041_666),
        (0x03, 0, 86_805),
    ],
)
def test_a_character_takes_its_bits_on_the_wire(desk: Desk, line_control: int, divisor: int, nanoseconds: int) -> None:
    """Data, parity and stop bits; a divisor of 0 counts as 1."""
    desk.set_speed(divisor)
    desk.out(LCR, line_control)
    desk.uart.receive(b"ab")
    desk.inp(RBR)
    assert [nanoseconds] == desk.clock.pending()
