"""The portal on a TCP port: sockets around ``Connection``, without threads.

A client that does not log in in time, or does not take its answers, is hung up on. Reading waits until what was read
is carried out and sent, so that a connection holds one PDU, one answer and the data of its commands.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

from hvemu.iscsi.connection import Connection
from hvemu.iscsi.portal import MOST_SESSIONS, Portal

MOST_CONNECTIONS: Final = 2 * MOST_SESSIONS
_CHUNK: Final = 64 << 10
_LOGIN_SECONDS: Final = 15.0
_SEND_SECONDS: Final = 60.0
_OUTPUT_LIMIT: Final = 1 << 20


class Server:
    """``log`` is told why connections end."""

    def __init__(self, portal: Portal, log: Callable[[str], None] = lambda text: None) -> None:
        self.portal = portal
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Open the port and give its number (0 chooses one). OSError when it cannot be opened."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_CHUNK)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def close(self) -> None:
        """Stop listening and hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MOST_CONNECTIONS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("socket")
        writer.transport.set_write_buffer_limits(_OUTPUT_LIMIT)
        connection = Connection(self.portal, lambda reason: writer.transport.abort(), writer.write)
        peer = _place(writer.get_extra_info("peername"))
        connection.address = _place(writer.get_extra_info("sockname"))
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(_LOGIN_SECONDS):
                while not connection.closed and not connection.login.done:
                    await self._round(connection, reader, writer)
            while not connection.closed:
                await self._round(connection, reader, writer)
        except TimeoutError:
            connection.end("the client is too slow")
        except OSError as error:
            connection.end(error.strerror or str(error))
        except asyncio.CancelledError:
            connection.end("the server stops")
        finally:
            connection.end("a bug in hvemu")
            self._log(f"{peer} {connection.nexus}: {connection.closed}")
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def _round(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(_CHUNK)
        if not data:
            connection.end("the client has gone")
            return
        connection.feed(data)
        while (output := connection.step()) is not None:
            if output:
                writer.write(output)
                async with asyncio.timeout(_SEND_SECONDS):
                    await writer.drain()
            else:
                await asyncio.sleep(0)


def _place(name: tuple[str, int] | None) -> str:
    """Host and port as SendTargets wants them; of a client that has gone already there are none."""
    if name is None:
        return "nowhere"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
