"""The server on a real port of the loopback interface: clients come, go, and break off."""

import asyncio

from hvemu.iscsi.pdu import Opcode, PduReader, pack
from hvemu.iscsi.server import MOST_CONNECTIONS, Server
from tests.devices.scsi.desk import write10
from tests.iscsi.initiator import NAME, TARGET, header, login, portal

TEXT = {"InitiatorName": NAME, "TargetName": TARGET, "SessionType": "Normal", "ImmediateData": "No"}


def serve(scenario, there=None):
    """Run a scenario against a server; what it logged."""
    log = []

    async def run():
        server = Server(there or portal(), log.append)
        port = await server.listen("127.0.0.1", 0)
        async with asyncio.timeout(240):
            await scenario(server, port)
        await server.close()

    asyncio.run(run())
    return log


async def answer(reader):
    """The next PDU of the server; None at the end."""
    frames = PduReader(1 << 24)
    while (pdu := frames.next()) is None:
        data = await reader.read(4096)
        if not data:
            return None
        frames.feed(data)
    return pdu


def test_a_session_from_login_to_logout():
    """Commands are answered; the end is logged with its reason."""

    async def scenario(server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(login(TEXT))
        assert Opcode.LOGIN_RESPONSE == (await answer(reader)).opcode
        writer.write(pack(header(Opcode.NOP_OUT, 0x80, 2, w20=0xFFFFFFFF, w24=10), b"ping"))
        assert b"ping" == (await answer(reader)).data
        writer.write(pack(header(Opcode.LOGOUT_REQUEST, 0x80, 3, w24=11)))
        assert Opcode.LOGOUT_RESPONSE == (await answer(reader)).opcode
        assert await answer(reader) is None
        writer.close()

    (line,) = serve(scenario)
    assert line.endswith("the initiator has logged out")


def test_discovery_tells_the_address_that_the_client_has_reached():
    """Whatever the server listens at."""

    async def scenario(server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(login({"InitiatorName": NAME, "SessionType": "Discovery"}))
        await answer(reader)
        writer.write(pack(header(Opcode.TEXT_REQUEST, 0x80, 2, w20=0xFFFFFFFF, w24=10), b"SendTargets=All\0"))
        assert f"TargetAddress=127.0.0.1:{port},1".encode() in (await answer(reader)).data
        writer.close()

    serve(scenario)


def test_noise_ends_its_connection_and_nothing_else():
    """The next client is served."""

    async def scenario(server, port):
        for noise in (b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * 100, login(TEXT)[:50]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            writer.write_eof()
            while await answer(reader) is not None:
                pass
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(login(TEXT))
        assert 0 == (await answer(reader)).header[36]
        writer.close()

    assert 4 == len(serve(scenario))


def test_a_client_that_breaks_off_frees_its_session_and_its_reserve():
    """In the middle of a transfer."""
    there = portal()

    async def scenario(server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(login(TEXT))
        await answer(reader)
        for number, cdb in enumerate((bytes(6), b"\x16" + bytes(5))):
            writer.write(pack(header(Opcode.SCSI_COMMAND, 0x80, 5, w24=10 + number, b32=cdb)))
            await answer(reader)
        writer.write(pack(header(Opcode.SCSI_COMMAND, 0xA0, 6, w20=512, w24=12, b32=write10(0, 1))))
        assert Opcode.READY_TO_TRANSFER == (await answer(reader)).opcode
        unit = there.targets[TARGET].units[0]
        assert unit.reservations.legacy_holder is not None
        writer.transport.abort()
        while unit.reservations.legacy_holder is not None:
            await asyncio.sleep(0)

    serve(scenario, there)


def test_connections_are_bounded():
    """The one too many is closed at once."""

    async def scenario(server, port):
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS)]
        while len(server._tasks) < MOST_CONNECTIONS:
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"" == await reader.read()
        for _, each in [*clients, (reader, writer)]:
            each.close()

    serve(scenario)


def test_closing_hangs_up_on_everybody():
    """Also on who has said nothing."""

    async def scenario(server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not server._tasks:
            await asyncio.sleep(0)
        await server.close()
        assert b"" == await reader.read()
        writer.close()

    (line,) = serve(scenario)
    assert line.endswith("the server stops")
