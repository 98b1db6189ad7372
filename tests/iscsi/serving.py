"""``hvemu disk serve`` as a process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL of its first unit; it is ended by SIGTERM and must end well."""
    command = [sys.executable, "-m", "hvemu", "disk", "serve", *words, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("iscsi://127.0.0.1:"), process.communicate()
        yield process, url
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=240)
        assert (0, "") == (process.returncode, errors)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def scratch(folder: Path, size: int, name: str = "scratch.img") -> Path:
    """A sparse image."""
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    return path
