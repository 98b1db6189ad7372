"""The monitor's lines of standard input."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvemu.cli.console import input_lines

from . import guests
from .process import HVEMU, run

_FUTEX = "202"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read and where to write."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_line_is_taken_and_what_follows_is_left(pipe: tuple[int, int]) -> None:
    """Also the other half of a line that comes in two."""
    reading, writing = pipe
    os.write(writing, b"info exits\ncont\nfor the guest")
    lines = input_lines(reading)
    assert ["info exits\n", "cont\n"] == [next(lines), next(lines)]
    assert b"for the guest" == os.read(reading, 99)


def test_the_last_line_need_not_end(tmp_path: Path) -> None:
    """And what is not text is a mistake in the command, not ours."""
    path = tmp_path / "commands"
    path.write_bytes(b"help\n\xff\n\ncont")
    with path.open() as file:
        assert ["help\n", "\ufffd\n", "\n", "cont"] == list(input_lines(file.fileno()))


def test_a_signal_that_interrupts_no_read_is_noticed_all_the_same(pipe: tuple[int, int]) -> None:
    """As when it strikes after Python's last look and before the read: here another thread is the one interrupted."""
    reading, writing = pipe
    waiting = threading.get_native_id()
    noticed, late = threading.Event(), threading.Event()

    def strike() -> None:
        system_call = Path(f"/proc/self/task/{waiting}/syscall")
        while (now := system_call.read_text().split()[0]) in ("running", _FUTEX):
            pass
        assert now.isdigit()
        os.kill(os.getpid(), signal.SIGINT)
        if not noticed.wait(20):
            late.set()
            os.write(writing, b"too late\n")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    striker = threading.Thread(target=strike)
    striker.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with pytest.raises(KeyboardInterrupt):
            next(input_lines(reading))
    finally:
        noticed.set()
        striker.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, before)
    assert not late.is_set()


def test_what_stands_after_cont_is_for_the_guest(tmp_path: Path) -> None:
    """One stream for both, read no further than asked."""
    done = run(*guests.echo(tmp_path), "-S", stdin=b"info mem\ncont\nabcq")
    assert 33 == done.returncode
    assert done.stdout.endswith(">abcq")


def test_with_standard_input_closed_the_guest_goes_on_by_itself() -> None:
    """There is nobody to ask what the monitor is to do."""
    done = run(command=["bash", "-c", f"{' '.join(HVEMU)} run hello -S <&-"])
    assert 33 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
