"""hvemu as a process of its own, with pipes or with a terminal."""

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0
HVEMU = [sys.executable, "-m", "hvemu"]


def environment() -> dict[str, str]:
    """Finds hvemu from every folder, and terminals without colour."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}


def run(*words: str, stdin: bytes = b"", cwd: Path = ROOT, command: list[str] | None = None) -> Any:
    """A finished process with its output as text."""
    done = subprocess.run(
        [*(command or HVEMU), *words],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )


@contextlib.contextmanager
def start(*words: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    """A process to talk to, which does not outlive the conversation."""
    with subprocess.Popen(
        [*HVEMU, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(),
        bufsize=0,
        # A suite that runs in the background of a shell ignores it, and what it starts would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def has_the_engine(process: str) -> bool:
    """Whether a process, if there is one of this number, has loaded it."""
    try:
        return "unicorn" in Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return False


def engine_of_a_child(process: "subprocess.Popen[bytes]") -> str:
    """The number of a child with the engine, as soon as there is one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := next(filter(has_the_engine, children.read_text().split()), "")):
        assert process.poll() is None
    return found


class Talk:
    """Reads descriptors until an expected text has come, with a deadline."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""
        self._seen = 0

    def until(self, expected: str) -> str:
        """What came up to and with ``expected``, which must not have been waited for before."""
        deadline = time.monotonic() + PATIENCE
        while expected not in self.text[self._seen :]:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{expected!r} did not come; what came is {self.text!r}"
            try:
                data = os.read(self._descriptor, 4096)
            except OSError:
                data = b""
            assert data, f"the end came before {expected!r}; what came is {self.text!r}"
            self.text += data.decode("utf-8", "replace")
        end = self.text.index(expected, self._seen) + len(expected)
        piece, self._seen = self.text[self._seen : end], end
        return piece


class Terminal:
    """hvemu on a pseudo-terminal that it controls."""

    def __init__(self, *words: str, cwd: Path = ROOT) -> None:
        self._controller, self._line = os.openpty()
        self.before = termios.tcgetattr(self._line)
        self.process = subprocess.Popen(
            [*HVEMU, *words],
            stdin=self._line,
            stdout=self._line,
            stderr=self._line,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - a shell does the same
        )
        self._talk = Talk(self._controller)
        self.until = self._talk.until

    def press(self, text: str) -> None:
        """Press keys."""
        os.write(self._controller, text.encode())

    def modes(self) -> Any:
        """What the terminal does with keys now."""
        return termios.tcgetattr(self._line)

    def next_line(self) -> bytes:
        """What a shell would be given when Enter is pressed now."""
        self.press("\n")
        return os.read(self._line, 4096)

    def wait(self) -> int:
        """The status, once the process has ended; the terminal is read meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"hvemu did not end; what came is {self._talk.text!r}"
            if select.select([self._controller], [], [], 0.02)[0]:
                self._talk.text += os.read(self._controller, 4096).decode("utf-8", "replace")
        while select.select([self._controller], [], [], 0)[0]:
            self._talk.text += os.read(self._controller, 4096).decode("utf-8", "replace")
        return self.process.returncode

    @property
    def text(self) -> str:
        """All that came, escape sequences left out."""
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self._talk.text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._controller)
        os.close(self._line)
