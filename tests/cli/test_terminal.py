"""hvemu on a terminal: the keys that are ours, the monitor, and that the terminal comes back as it was."""

import signal
import termios
from pathlib import Path

import pytest

from . import guests
from .process import PATIENCE, Talk, Terminal, start

READY = "type a line and press Enter"
CTRL_A, CTRL_C, CTRL_Z, CTRL_BACKSLASH = "\x01", "\x03", "\x1a", "\x1c"


def test_control_a_x_ends_the_run() -> None:
    """Status 0, and the terminal echoes again."""
    with Terminal("run", "keyboard") as terminal:
        terminal.until(READY)
        assert terminal.before != terminal.modes()
        terminal.press(CTRL_A + "x")
        assert 0 == terminal.wait()
        assert terminal.before == terminal.modes()


def test_control_a_h_helps_and_control_a_a_is_a_control_a(tmp_path: Path) -> None:
    """The help names the keys; a doubled or named Ctrl-A goes to the guest, as every other key does."""
    with Terminal(*guests.echo(tmp_path)) as terminal:
        terminal.until(">")
        terminal.press(CTRL_A + "h")
        terminal.until("Ctrl-A X  end")
        terminal.press(f"ab\r{CTRL_A}a{CTRL_A}{CTRL_A}c")
        terminal.until("ab\r\x01\x01c")
        terminal.press(CTRL_Z + CTRL_BACKSLASH + "d")
        terminal.until(CTRL_Z + CTRL_BACKSLASH + "d")
        terminal.press("q")
        assert 33 == terminal.wait()
        assert terminal.before == terminal.modes()


@pytest.mark.parametrize("ported", [False, True], ids=["computing", "at its ports"])
def test_control_c_ends_the_run_cleanly(tmp_path: Path, ported: bool) -> None:
    """Status 130, a sentence with EIP, the ledger, and the terminal as it was."""
    ledger = tmp_path / "ledger.json"
    words = guests.flat(tmp_path, guests.SPIN_ON_A_PORT) if ported else ["run", "loop_forever"]
    with Terminal(*words, "--ledger", str(ledger), "-S") as terminal:
        terminal.until("(hvemu) ")
        terminal.press("cont\n")
        terminal.until("cont\r\n")
        terminal.press(CTRL_C)
        assert 130 == terminal.wait()
        assert "hvemu: interrupted" in terminal.text
        assert "Traceback" not in terminal.text
        assert "ctypes" not in terminal.text
        assert terminal.before == terminal.modes()
    assert '"status": 130' in ledger.read_text()


def test_control_c_in_the_monitor_ends_the_run() -> None:
    """There is no guest to wait for; one Ctrl-C is enough, and half a command is not left for the shell."""
    with Terminal("run", "keyboard", "-S") as terminal:
        terminal.until("(hvemu) ")
        terminal.press("inf" + CTRL_C)
        assert 130 == terminal.wait()
        assert terminal.before == terminal.modes()
        assert b"\n" == terminal.next_line()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_the_terminal_in_order(number: signal.Signals) -> None:
    """kill is as clean as Ctrl-C."""
    with Terminal("run", "keyboard") as terminal:
        terminal.until(READY)
        terminal.process.send_signal(number)
        assert 130 == terminal.wait()
        assert terminal.before == terminal.modes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_guest_busy_at_its_ports(number: signal.Signals, tmp_path: Path) -> None:
    """A signal that strikes inside a callback of the engine is not lost, and costs the guest nothing."""
    with start(*guests.flat(tmp_path, guests.SPIN_ON_A_PORT), "-S") as process:
        assert process.stdin is not None
        process.stdin.write(b"info exits\ncont\n")
        process.stdin.close()
        process.stdin = None
        assert process.stdout is not None
        Talk(process.stdout.fileno()).until("hardware assists: none")
        process.send_signal(number)
        _, error = process.communicate(timeout=PATIENCE)
    assert 130 == process.returncode
    assert error.startswith(b"hvemu: interrupted; the guest was at EIP 0x0010000")
    assert 1 == len(error.splitlines())


def test_the_monitor_pauses_the_guest_and_lets_it_go_on() -> None:
    """Ctrl-A C opens it with line editing, cont closes it without; then the guest hears what sendkey typed."""
    with Terminal("run", "keyboard") as terminal:
        terminal.until(READY)
        raw = terminal.modes()
        terminal.press(CTRL_A + "c")
        terminal.until("(hvemu) ")
        assert terminal.modes()[3] & termios.ECHO
        assert terminal.modes()[3] & termios.ICANON
        assert terminal.modes()[3] & termios.NOFLSH  # or Ctrl-C could take away the line that a read was promised
        terminal.press("info registers\n")
        terminal.until("EIP=")
        terminal.until("(hvemu) ")
        terminal.press("sendkey hi\\n\n")
        terminal.until("(hvemu) ")
        terminal.press("cont\n")
        terminal.until('you typed "hi"')
        assert 33 == terminal.wait()
        assert raw != terminal.before == terminal.modes()


def test_quit_in_the_monitor_ends_the_run() -> None:
    """Status 0 and the terminal as it was."""
    with Terminal("-kernel", "hello", "-S") as terminal:
        terminal.until("(hvemu) ")
        terminal.press("quit\n")
        assert 0 == terminal.wait()
        assert terminal.before == terminal.modes()


@pytest.mark.parametrize(
    ("name", "status"), [("hello", 33), ("triple", 66), ("jump_nowhere", 64), ("halt_forever", 68), ("poweroff", 0)]
)
def test_a_guest_that_ends_leaves_the_terminal_as_it_was(name: str, status: int) -> None:
    """Passed, crashed, powered off: and a guest asleep for ever is noticed although somebody could type."""
    with Terminal("run", name) as terminal:
        assert status == terminal.wait()
        assert terminal.before == terminal.modes()


def test_a_limit_leaves_the_terminal_as_it_was() -> None:
    """--timeout on a guest that waits for a key."""
    with Terminal("run", "keyboard", "--timeout", "1") as terminal:
        assert 124 == terminal.wait()
        assert terminal.before == terminal.modes()


def test_a_mistake_leaves_the_terminal_as_it_was() -> None:
    """The terminal is not touched before there is a machine."""
    with Terminal("run", "/no/such/image") as terminal:
        assert 2 == terminal.wait()
        assert terminal.before == terminal.modes()


def test_the_end_of_the_input_in_the_monitor_lets_the_guest_go_on() -> None:
    """Ctrl-D is not a command and no error."""
    with Terminal("run", "hello", "-S") as terminal:
        terminal.until("(hvemu) ")
        terminal.press("\x04")
        assert 33 == terminal.wait()
        assert terminal.before == terminal.modes()
