"""The guest's serial line on this terminal, a file, a TCP port or a pty; and the keys that belong to us.

Ctrl-A X ends the run, Ctrl-A C opens the monitor, Ctrl-A A sends Ctrl-A, Ctrl-A H helps. Without a terminal no key
is special. The terminal is put back on every way out.
"""

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from hvemu.vocabulary.errors import UserError

_ESCAPE: Final = 0x01
_HELP: Final = "\r\nCtrl-A X  end    Ctrl-A C  monitor    Ctrl-A A  send Ctrl-A    Ctrl-A H  this help\r\n"
_PATIENCE: Final = 0.01
_MOMENT: Final = 0.1
_FAREWELL: Final = 1.0
"""Host seconds that the last bytes may take to reach a client."""
_QEMU_LACKING: Final = frozenset("braille chardev con msmouse pipe telnet tn3270 udp unix vc websocket".split())


class Console:
    """Bytes out, bytes in. ``receive`` is set by the runner to what takes input."""

    def __init__(self) -> None:
        self.receive: Callable[[bytes], None] = lambda data: None
        self.on_quit: Callable[[], None] = lambda: None
        self.on_monitor: Callable[[], None] = lambda: None
        self.announcement = ""
        self._last_look = 0.0

    def write(self, data: bytes) -> None:
        """The guest wrote."""

    def readable(self) -> list[int]:
        """File descriptors that input may come from; empty when none ever will."""
        return []

    def read(self, descriptor: int) -> None:
        """Take what has arrived at a descriptor."""

    def poll(self) -> None:
        """Look for input without waiting, at most a hundred times a second."""
        now = time.monotonic()
        if now - self._last_look >= _PATIENCE:
            self._last_look = now
            self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Wait for input; returns whether any can still come."""
        descriptors = self.readable()
        if not descriptors:
            return False
        ready, _, _ = select.select(descriptors, [], [], max(0.0, seconds))
        for descriptor in ready:
            self.read(descriptor)
        return bool(self.readable())

    def close(self) -> None:
        """Let go of files and sockets."""


class TerminalConsole(Console):
    """Standard input and output."""

    def __init__(self) -> None:
        super().__init__()
        self._input = 0
        self._open = sys.stdin is not None
        self._escaped = False
        self.interactive = self._open and os.isatty(0)

    def write(self, data: bytes) -> None:
        """Show the bytes at once."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def readable(self) -> list[int]:
        """Standard input, until its end."""
        return [self._input] if self._open else []

    def read(self, descriptor: int) -> None:
        """Pass input on, minus what belongs to us."""
        try:
            data = os.read(descriptor, 4096)
        except OSError:
            data = b""
        if not data:
            self._open = False
            return
        if not self.interactive:
            self.receive(data)
            return
        passed = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                self._command(byte, passed)
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                passed.append(byte)
        if passed:
            self.receive(bytes(passed))

    def _command(self, byte: int, passed: bytearray) -> None:
        key = chr(byte).lower()
        if key == "x":
            self.on_quit()
        elif key == "c":
            self.on_monitor()
        elif byte == _ESCAPE or key == "a":
            passed.append(_ESCAPE)
        else:
            self.write(_HELP.encode())

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """No echo and no line editing while the guest has the terminal; of its keys only Ctrl-C still makes a signal.

        Ctrl-Z and Ctrl-\\ go to the guest: they would leave a shell with a terminal that does not echo.
        """
        if not self.interactive:
            yield
            return
        import termios

        before = termios.tcgetattr(0)
        changed: list[Any] = termios.tcgetattr(0)
        changed[0] &= ~termios.ICRNL
        changed[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        changed[6][termios.VSUSP] = changed[6][termios.VQUIT] = b"\0"
        termios.tcsetattr(0, termios.TCSANOW, changed)
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSANOW, before)


def input_lines(descriptor: int = 0) -> Iterator[str]:
    """Lines of standard input, for the monitor; what follows the last one asked for is left to the guest.

    A signal that strikes just before a read that waits is noticed only after it, so no wait is longer than a moment.
    What has arrived must stay: a terminal that discards it at Ctrl-C would make the read wait.
    """
    line = bytearray()
    while True:
        while not select.select([descriptor], [], [], _MOMENT)[0]:
            pass
        byte = os.read(descriptor, 1)
        line += byte
        if line and byte in (b"", b"\n"):
            yield line.decode("utf-8", "replace")
            line.clear()
        if not byte:
            return


class FileConsole(Console):
    """Output to a file; no input."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        try:
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"Cannot write '{path}': {why}", "Give --serial a file in a folder that exists.") from None

    def write(self, data: bytes) -> None:
        """Append the bytes; raises UserError when there is no room for them."""
        try:
            self._file.write(data)
        except OSError as error:
            raise UserError(f"Cannot write '{self._path}': {error.strerror}", "Give --serial another file.") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TcpConsole(Console):
    """One client at a time on a loopback port; what is written before it connects is kept, up to 64 KiB."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            self._listener.close()
            why = getattr(error, "strerror", None) or error
            raise UserError(f"Cannot listen on port {port}: {why}", "Give --serial tcp:PORT a free port.") from None
        self._listener.listen(1)
        self.port = self._listener.getsockname()[1]
        self.announcement = f"serial line on 127.0.0.1:{self.port}"
        self._client: socket.socket | None = None
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Send to the client, or keep."""
        self._kept += data
        del self._kept[:-65536]
        self._flush()

    def _flush(self) -> None:
        if self._client is None or not self._kept:
            return
        try:
            sent = self._client.send(self._kept, socket.MSG_DONTWAIT)
            del self._kept[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._client.close()
            self._client = None

    def readable(self) -> list[int]:
        """The client, or the door."""
        return [self._client.fileno() if self._client is not None else self._listener.fileno()]

    def read(self, descriptor: int) -> None:
        """Take bytes, or a new client."""
        if self._client is None:
            self._client = self._listener.accept()[0]
            self._flush()
            return
        try:
            data = self._client.recv(4096)
        except OSError:
            data = b""
        if data:
            self.receive(data)
        else:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Hand what is kept to a client that is there or at the door, and close the sockets."""
        if self._client is None and self._kept and select.select([self._listener], [], [], 0.0)[0]:
            self._client = self._listener.accept()[0]
        self._listener.close()
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.settimeout(_FAREWELL)
                self._client.sendall(self._kept)
            self._client.close()


class PtyConsole(Console):
    """A pseudo-terminal whose name is announced."""

    def __init__(self) -> None:
        super().__init__()
        import tty

        self._controller, self._terminal = os.openpty()
        tty.setraw(self._terminal)
        os.set_blocking(self._controller, False)
        self.announcement = f"serial line on {os.ttyname(self._terminal)}"

    def write(self, data: bytes) -> None:
        """Write what fits; a terminal nobody reads loses the rest."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._controller, data)

    def readable(self) -> list[int]:
        """Our end."""
        return [self._controller]

    def read(self, descriptor: int) -> None:
        """Take what was typed."""
        with contextlib.suppress(OSError):
            self.receive(os.read(descriptor, 4096))

    def close(self) -> None:
        """Close both ends."""
        os.close(self._controller)
        os.close(self._terminal)


def open_console(where: str) -> Console:
    """The console that ``--serial`` names; raises UserError."""
    if where in ("none", "null"):
        return Console()
    if where.partition(":")[0] in _QEMU_LACKING:
        raise UserError(
            f"QEMU's serial line '{where}' is not supported by hvemu", "Choose stdio, none, tcp:PORT, pty or file:PATH."
        )
    if where in ("stdio", "mon:stdio"):
        return TerminalConsole()
    if where == "pty":
        return PtyConsole()
    if where.startswith("tcp:"):
        port = where.removeprefix("tcp:").removeprefix("127.0.0.1").removeprefix("localhost").lstrip(":").split(",")[0]
        if not port.isdecimal() or int(port) > 65535:
            raise UserError(f"'{where}' names no TCP port", "Write it as tcp:4444; hvemu listens on 127.0.0.1 only.")
        return TcpConsole(int(port))
    return FileConsole(where.removeprefix("file:"))
