"""The ports with a single register: POST, console, exit, resets, A20."""

from hvemu.devices.debug_ports import DebugConsole, DebugExit, PostPort, ResetControl, SystemControlPortA

from .fakes import FakeBackend, FakeCalls, FakeWatcher


def test_post_remembers_the_last_code_and_tells_new_ones() -> None:
    """The same code again is no event: kernels write it to pass time."""
    watcher = FakeWatcher()
    port = PostPort(watcher=watcher)
    for code in (0x31, 0x31, 0x132):
        port.write(0, 1, code)
    assert (0x32, [0x31, 0x32]) == (port.read(0, 1), [event.detail for event in watcher.events])


def test_the_debug_console_prints_and_says_it_is_there() -> None:
    """Reading gives its own number."""
    backend = FakeBackend()
    console = DebugConsole(backend=backend)
    for character in b"hi":
        console.write(0, 1, character)
    assert (b"hi", 0xE9) == (backend.written, console.read(0, 1))


def test_debug_exit_passes_the_verdict_on() -> None:
    """Of any width."""
    on_exit = FakeCalls()
    port = DebugExit(on_exit=on_exit)
    port.write(0, 1, 0x110)
    port.write(0, 4, 0x12345)
    assert [(0x10,), (0x12345,)] == on_exit.calls


def test_reset_control_acts_on_the_rising_bit() -> None:
    """06 twice resets once; 02 between makes another edge."""
    on_reset = FakeCalls()
    control = ResetControl(on_reset=on_reset)
    for value in (0x02, 0x06, 0x06, 0x02, 0x0E):
        control.write(0, 1, value)
    assert ([(), ()], 0x06) == (on_reset.calls, control.read(0, 1))


def test_port_92_resets_and_gates_a20() -> None:
    """The gate is open at first; only changes are passed on."""
    on_reset, a20 = FakeCalls(), FakeCalls()
    port = SystemControlPortA(on_reset=on_reset, a20=a20)
    at_first = port.read(0, 1)
    for value in (0x02, 0x00, 0x02, 0x03, 0x03):
        port.write(0, 1, value)
    assert (2, [(False,), (True,)], [()]) == (at_first, a20.calls, on_reset.calls)


def test_a_closed_gate_survives_the_state() -> None:
    """Restoring sets the gate."""
    port = SystemControlPortA(on_reset=FakeCalls(), a20=FakeCalls())
    port.write(0, 1, 0x00)
    a20 = FakeCalls()
    other = SystemControlPortA(on_reset=FakeCalls(), a20=a20)
    other.from_state(port.state())
    assert ([(False,)], 0) == (a20.calls, other.read(0, 1))


def test_resetting_port_92_opens_the_gate() -> None:
    """After power-on memory does not wrap."""
    a20 = FakeCalls()
    port = SystemControlPortA(on_reset=FakeCalls(), a20=a20)
    port.write(0, 1, 0x00)
    port.reset()
    assert ([(False,), (True,)], 2) == (a20.calls, port.read(0, 1))


def test_post_without_a_watcher_only_remembers() -> None:
    """Kernels write it millions of times."""
    port = PostPort()
    port.write(0, 1, 0x80)
    assert 0x80 == port.read(0, 1)
