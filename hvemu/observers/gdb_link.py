"""One gdb client on a socket: packets out of bytes and back, checksums, acknowledgements. Never waits unless asked to.

Spec: Debugging with GDB, appendix E.1 (Overview of the remote protocol). Run-length encoding is not used.
"""

import contextlib
import select
import socket
from collections.abc import Iterator
from typing import Final

PACKET_SIZE: Final = 0x4000
"""The longest packet taken, in bytes; gdb is told."""
_OUTPUT_LIMIT: Final = 16 * PACKET_SIZE
_FAREWELL: Final = 1.0
"""Host seconds that the last bytes may take to reach the client."""


class GdbLink:
    """A client that sends too long a packet, or does not take what it asked for, is no longer ``open``."""

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self._input, self._output, self._last = bytearray(), bytearray(), b""
        self.open = True
        self.acknowledging = True

    @property
    def pending(self) -> bool:
        """Whether the client said anything but acknowledgements that nobody has looked at; Ctrl-C counts."""
        return bool(self._input.strip(b"+"))

    def wait(self, seconds: float) -> None:
        """Wait for bytes from the client, then ``fill``."""
        select.select([self._client], [self._client] if self._output else [], [], seconds)
        self.fill()

    def fill(self) -> None:
        """Send what could not be sent before, and take the bytes that have arrived."""
        self._flush()
        if not self.open or len(self._input) > PACKET_SIZE + 4:
            return
        try:
            data = self._client.recv(PACKET_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._input += data
        self.open = bool(data)

    def packets(self) -> Iterator[bytes]:
        """The contents of the packets that have arrived whole; those with a wrong checksum are asked for again."""
        while self._input and self.open:
            if self._input[0] != ord("$"):  # an acknowledgement, or a Ctrl-C when the guest has stopped already
                if self._input[0] == ord("-"):
                    self._write(self._last)
                del self._input[0]
                continue
            end = self._input.find(b"#")
            if end < 0 or len(self._input) < end + 3:
                self.open = len(self._input) <= PACKET_SIZE + 4
                return
            body, checksum = bytes(self._input[1:end]), bytes(self._input[end + 1 : end + 3])
            del self._input[: end + 3]
            good = len(body) <= PACKET_SIZE and checksum.lower() == b"%02x" % (sum(body) & 0xFF)
            if self.acknowledging:
                self._write(b"+" if good else b"-")
            if good:
                yield body

    def send(self, body: bytes) -> None:
        """Send a packet; the caller has escaped what needs it."""
        self._last = b"$%s#%02x" % (body, sum(body) & 0xFF)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        self._output += data
        self._flush()
        self.open = self.open and len(self._output) <= _OUTPUT_LIMIT

    def _flush(self) -> None:
        try:
            while self._output and self.open:
                del self._output[: self._client.send(self._output)]
        except BlockingIOError:
            return
        except OSError:
            self.open = False

    def close(self) -> None:
        """Hand over what is still to be sent, for at most a second, and hang up."""
        if self.open:
            with contextlib.suppress(OSError):
                self._client.settimeout(_FAREWELL)
                self._client.sendall(self._output)
        self._client.close()
