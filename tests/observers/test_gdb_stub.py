"""The gdb stub on a socket: the connection, questions, registers and memory, running."""

import contextlib
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hvemu.cpu.state import VirtualCpu
from hvemu.machine.builder import build
from hvemu.observers.gdb_link import PACKET_SIZE
from hvemu.observers.gdb_registers import AMD64, I386
from hvemu.observers.gdb_session import GdbSession
from hvemu.observers.gdb_stub import GdbStub
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.outcomes import Stop

from .gdb_desk import EIP, MAIN, PRINT, REPORT, START, TURNS, Desk, guest, in_long_mode, packet


@pytest.fixture
def desk() -> Iterator[Desk]:
    """The guest hello, held at its entry, with a client."""
    with guest() as desk:
        yield desk.connect("swbreak+", "hwbreak+")


# ---------------------------------------------------------------------- the connection


def test_a_guest_runs_freely_until_a_client_comes() -> None:
    """It is stopped then, which counts as a trap."""
    with guest("loop_forever", holding=False) as desk:
        desk.at_third_poll(lambda: desk.client.connect(("127.0.0.1", desk.stub.port)))
        desk.stub.advance()
        desk.client.setblocking(False)
        assert desk.stub.holding
        assert desk.machine.mode.position() > 0
        assert "S05" == desk.ask("?")


def test_a_guest_that_is_to_be_held_has_not_run_when_the_client_comes(desk: Desk) -> None:
    """Not one instruction; that is -S."""
    assert "S05" == desk.ask("?")
    assert (START, 0) == (desk.register(EIP), desk.machine.mode.position())


def test_packets_are_acknowledged_until_the_client_asks_for_silence() -> None:
    """A wrong checksum is answered with a minus, and what was not understood is sent again."""
    with guest() as desk:
        desk.client.connect(("127.0.0.1", desk.stub.port))
        desk.client.setblocking(False)
        desk.say("qAttached")
        desk.turn_until(lambda: b"+" + packet(b"1") == desk.received, "an acknowledgement and the answer")
        desk.received.clear()
        desk.client.sendall(b"+$qAttached#00")
        desk.turn_until(lambda: b"-" == desk.received, "a minus")
        desk.client.sendall(b"-")
        desk.turn_until(lambda: b"-" + packet(b"1") == desk.received, "the answer again")
        desk.received.clear()
        assert "OK" == desk.ask("QStartNoAckMode")
        desk.received.clear()
        desk.client.sendall(b"+$qAttached#00" + packet(b"qC"))
        assert "QC1" == desk.hear()
        assert b"" == bytes(desk.received)


def test_a_packet_may_come_in_pieces(desk: Desk) -> None:
    """Byte after byte, also its checksum."""
    for byte in packet(b"qAttached"):
        desk.client.sendall(bytes([byte]))
        desk.stub.advance()
    assert "1" == desk.hear()


def test_a_packet_that_is_too_long_ends_the_connection(desk: Desk) -> None:
    """The guest stays held for the next client, as it was before this one."""
    with contextlib.suppress(ConnectionError, BlockingIOError):
        desk.client.sendall(b"$" + b"m" * (4 * PACKET_SIZE))
    desk.turn_until(desk.hung_up, "the end of the connection")
    assert desk.stub.holding


def test_the_longest_packet_is_taken(desk: Desk) -> None:
    """It has the size that qSupported told."""
    data = b"x" * (PACKET_SIZE - len(b"X200000,4000:"))
    assert "OK" == desk.ask(b"X200000,%04x:%s" % (len(data), data))
    assert data == desk.machine.memory.read(0x200000, len(data))


def test_a_client_that_takes_no_answers_is_hung_up_on(desk: Desk) -> None:
    """What is kept for it has a limit."""
    desk.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    question = packet(b"m0,2000")
    for _ in range(TURNS):
        if desk.stub._session is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            desk.client.send(question * 100)
        desk.stub.advance()
    raise AssertionError("the stub kept everything")


def test_the_next_client_is_served_when_the_first_has_gone(desk: Desk) -> None:
    """One at a time; a held guest stays held meanwhile."""
    with socket.create_connection(("127.0.0.1", desk.stub.port)) as second:
        assert "1" == desk.ask("qAttached")
        desk.client.close()
        desk.client = second
        second.setblocking(False)
        assert "QC1" == desk.ask("qC")
        assert desk.stub.holding
        assert "OK" == desk.ask(f"Z0,{MAIN:x},1")
        assert "S05" == desk.ask("c"), "what the first one could do is forgotten"


def test_a_guest_goes_on_when_a_client_is_lost_that_stopped_it() -> None:
    """As a port scanner does; nothing of it is left behind."""
    with guest(holding=False) as desk:
        desk.connect()
        assert "OK" == desk.ask(f"Z0,{MAIN:x},1")
        desk.client.close()
        desk.client = socket.socket()
        for _ in range(TURNS):
            if desk.machine.stop is not None:
                break
            desk.stub.advance()
        assert 33 == desk.machine.stop.status


def test_a_client_that_is_lost_while_the_guest_runs_leaves_no_breakpoints(desk: Desk) -> None:
    """Nobody could go on from one."""
    assert "OK" == desk.ask(f"Z0,{REPORT:x},1")
    desk.say("c")
    desk.client.close()
    desk.client = socket.socket()
    for _ in range(TURNS):
        if desk.machine.stop is not None:
            break
        desk.stub.advance()
    assert 33 == desk.machine.stop.status


def test_a_port_in_use_is_a_sentence() -> None:
    """With what to do; so is a host that is not ours."""
    machine = build(guest_configuration(catalog()["hello"]))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(UserError, match=r"Address already in use\. Give -gdb tcp::PORT a free port\."),
    ):
        GdbStub(machine, "127.0.0.1", listener.getsockname()[1])
    with pytest.raises(UserError, match=r"Cannot listen for gdb on .*\. Give -gdb"):
        GdbStub(machine, "192.0.2.1", 0)


def test_the_announcement_is_what_to_type_in_gdb(desk: Desk) -> None:
    """With the port that was found."""
    assert f"gdb: target remote localhost:{desk.stub.port}" == desk.stub.announcement


# ---------------------------------------------------------------------- questions


def test_the_features_are_those_that_exist(desk: Desk) -> None:
    """Nothing is promised that is not kept."""
    features = desk.ask("qSupported:multiprocess+;xmlRegisters=i386").split(";")
    assert {f"PacketSize={PACKET_SIZE:x}", "qXfer:features:read+", "swbreak+", "hwbreak+"} < set(features)
    assert "QStartNoAckMode+" in features


def test_the_target_description_can_be_read_in_pieces(desk: Desk) -> None:
    """An m says that there is more, an l that there is not."""
    text, more = "", True
    while more:
        answer = desk.ask(f"qXfer:features:read:target.xml:{len(text):x},100")
        text, more = text + answer[1:], answer[0] == "m"
    assert I386.description == text.encode()
    assert "l" == desk.ask("qXfer:features:read:target.xml:ffffffff,ffffffff")
    assert "" == desk.ask("qXfer:features:read:other.xml:0,100")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("vCont?", "vCont;c;C;s;S"), ("qC", "QC1"), ("qfThreadInfo", "m1"), ("qsThreadInfo", "l"), ("T1", "OK"),
        ("T2", "E01"), ("Hg0", "OK"), ("Hc-1", "OK"), ("qAttached", "1"),
    ],
)  # fmt: skip
def test_there_is_one_thread_that_was_there_before(desk: Desk, question: str, answer: str) -> None:
    """gdb detaches from it at its end, and does not kill it."""
    assert answer == desk.ask(question)


UNKNOWN = [
    "",
    "!",
    "R00",
    "vMustReplyEmpty",
    "qTStatus",
    "QNonStop:1",
    "Z2,0,4",
    "Z3,0,4",
    "z4,0,4",
    "i",
    "\0",
    "vContc",
]


@pytest.mark.parametrize("question", UNKNOWN)
def test_what_is_unknown_is_answered_with_nothing(desk: Desk, question: str) -> None:
    """So gdb learns that it is not supported; watchpoints too."""
    assert "" == desk.ask(question)


WRONG = [
    "m", "m1", "mx,4", "m0x10,4", "m-1,4", "m 1,4", "m1_0,4", "m100000000,4", "m0,4,4", "M0,1", "M0,1:0", "M0,2:00",
    "M0,1:zz", "M0,1:0 0", "X0,2:a", "p", "pxx", "p20", "p-1", "P", "P0", "P0=", "P0=00", "P0=0000000g", "P20=00000000",
    "Pa=ffffffff", "G", "Gzz", "G00", "cx", "s-1", "C05;zz", "vCont", "vCont;", "vCont;r1,2", "vCont;;c", "Z0", "Z0,",
    "Z0,xx,1", "z1,0", "T", "qXfer:features:read:target.xml:0", "qXfer:features:read:target.xml:0,", "M10000,ffffffff:",
]  # fmt: skip


@pytest.mark.parametrize("question", WRONG)
def test_what_is_malformed_is_an_error(desk: Desk, question: str) -> None:
    """And changes nothing: Python's own ways to write numbers are none here."""
    before = (desk.machine.registers(), bytes(desk.machine.memory.view))
    assert "E01" == desk.ask(question)
    assert before == (desk.machine.registers(), bytes(desk.machine.memory.view))
    assert desk.stub.holding


def test_what_the_monitor_says_comes_before_the_answer_in_pieces() -> None:
    """Gdb prints them as they come; more than a screenful of screenfuls is cut off. Without one there is no command."""
    with guest() as desk:
        desk.connect()
        assert "" == desk.ask("qRcmd," + b"help".hex())
        link = SimpleNamespace(sent=[])
        link.send = link.sent.append
        answers = {"help": "some help\n", "much": "x" * 20_000, "too much": "y" * 100_000, "": ""}
        session = GdbSession(desk.machine, link, monitor=answers.__getitem__)
        for line, said in answers.items():
            assert b"OK" == session.answer(b"qRcmd," + line.encode().hex().encode())
            pieces = [bytes.fromhex(piece[1:].decode()) for piece in link.sent]
            assert all(piece[:1] == b"O" and len(piece) <= PACKET_SIZE for piece in link.sent)
            limit = said[: 1 << 16] + "\n... and more\n" if len(said) > 1 << 16 else said
            assert limit == b"".join(pieces).decode()
            link.sent.clear()
        assert b"E01" == session.answer(b"qRcmd,6")


# ---------------------------------------------------------------------- registers and memory


def test_registers_are_read_together_or_singly(desk: Desk) -> None:
    """The same bytes."""
    everything = desk.ask("g")
    assert "".join(desk.ask(f"p{number:x}") for number in range(32)) == everything
    values = desk.machine.register_values()
    assert values["eax"].to_bytes(4, "little").hex() == everything[:8]
    assert values["eip"] == desk.register(EIP) == START


def test_registers_without_a_value_are_unavailable(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two x for each byte that is not known."""
    monkeypatch.setattr(desk.machine, "registers", VirtualCpu)
    assert "x" * 20 == desk.ask("p10")
    assert desk.ask("g").endswith("x" * 2 * (8 * 10 + 8 * 4))


def test_a_register_that_is_written_is_the_guests(desk: Desk) -> None:
    """Little-endian, one or all of them; a wrong one among all changes none."""
    assert "OK" == desk.ask("P0=78563412")
    assert 0x12345678 == desk.machine.register_values()["eax"]
    everything = desk.ask("g")
    assert "OK" == desk.ask("G" + "21436587" + everything[8:])
    assert 0x87654321 == desk.machine.register_values()["eax"]
    assert "E01" == desk.ask("G" + "00000000" + everything[8:80] + "ffffffff" + everything[88:])
    assert 0x87654321 == desk.machine.register_values()["eax"]


def test_memory_is_read_and_written(desk: Desk) -> None:
    """In hexadecimal, or as bytes with their escapes."""
    assert "OK" == desk.ask("M200000,4:deadbeef")
    assert "deadbeef" == desk.ask("m200000,4")
    assert "OK" == desk.ask(b"X200000,5:a}\x03}\x04}]\x7f")
    assert b"a#$}\x7f" == desk.machine.memory.read(0x200000, 5)
    assert "OK" == desk.ask("X0,0:")
    assert "" == desk.ask("m0,0")


def test_a_long_read_is_answered_as_far_as_a_packet_goes(desk: Desk) -> None:
    """gdb asks again for the rest."""
    assert PACKET_SIZE == len(desk.ask("m0,ffffffff"))


def test_memory_that_is_not_there_cannot_be_written(desk: Desk) -> None:
    """Beyond RAM, which ends in the middle of the write; what is before the end stays."""
    end = desk.machine.memory.size
    assert "E01" == desk.ask(f"M{end - 4:x},8:" + "11" * 8)
    assert "00000000" == desk.ask(f"m{end - 4:x},4")
    assert "E01" == desk.ask("Mffffffff,2:1111")


def test_addresses_are_those_of_the_guests_page_tables() -> None:
    """A read stops where a page is missing; a page may be read-only for the guest, and is not marked accessed."""
    with guest("paging") as desk:
        desk.connect()
        while not desk.machine.registers().paging().enabled:
            assert desk.machine.run(desk.machine.mode.position() + 2000) is None
        memory = bytes(desk.machine.memory.view)
        assert 2 * 16 == len(desk.ask("m3ffff0,100"))
        assert "E01" == desk.ask("m400000,1")
        assert "E01" == desk.ask("M3fffff,2:1122")
        assert memory == bytes(desk.machine.memory.view)
        physical = int.from_bytes(bytes.fromhex(desk.ask("mfffffffc,4")), "little")  # the directory maps itself
        assert desk.machine.registers().cr3 & ~0xFFF == physical & ~0xFFF


def test_a_client_is_shown_the_registers_of_the_mode_that_it_finds() -> None:
    """One that came before long mode is told to come again; memory and breakpoints it may have all the while."""
    with guest("long_mode") as desk:
        desk.machine.is_64_bit_kernel = False  # as one that is loaded by a loader of its own
        desk.connect()
        assert 2 * sum(I386.sizes) == len(desk.ask("g"))
        in_long_mode(desk)
        for request in ("g", "p0", "P0=00000000", "G00"):
            assert "E.the guest has gone to long mode: disconnect, and connect" in desk.ask(request)
        assert ("OK", 8) == (desk.ask("Z0,100000,1"), len(desk.ask("m100000,4")))
        session = GdbSession(desk.machine, desk.session.link)
        assert 2 * sum(AMD64.sizes) == len(session.answer(b"g") or b"")
        assert b"E01" == session.answer(b"Z0,800000000000,1")
        assert b"E01" == session.answer(b"m800000000000,1")
        assert b"OK" == session.answer(b"Z0,ffffffff80000000,1")


def test_a_64_bit_kernel_has_its_registers_from_its_first_instruction() -> None:
    """Though that is 32-bit code: the image says what it will be."""
    with guest("long_mode") as desk:
        session = GdbSession(desk.machine, SimpleNamespace())
        assert b"<architecture>i386:x86-64" in (session.answer(b"qXfer:features:read:target.xml:0,800") or b"")
        assert 2 * sum(AMD64.sizes) == len(session.answer(b"g") or b"")
        assert b"E01" == session.answer(b"P0=0000000001000000")
        assert b"OK" == session.answer(b"P0=7856341200000000")
        assert 0x12345678 == desk.machine.registers().gpr(0)


# ---------------------------------------------------------------------- running


@pytest.mark.parametrize(("kind", "why"), [(0, "T05swbreak:;"), (1, "T05hwbreak:;")])
def test_a_breakpoint_stops_before_its_instruction(desk: Desk, kind: int, why: str) -> None:
    """The client is told its kind. Removed, it does not stop again."""
    assert "OK" == desk.ask(f"Z{kind},{PRINT:x},1")
    for _ in range(2):
        assert why == desk.ask("c")
        assert PRINT == desk.register(EIP)
    assert "OK" == desk.ask(f"z{kind},{PRINT:x},1")
    desk.say("c")
    desk.turn_until(lambda: desk.machine.stop is not None, "the end")
    assert 33 == desk.machine.stop.status


def test_a_client_that_does_not_know_kinds_of_breakpoints_is_not_told() -> None:
    """A plain trap, as ever."""
    with guest() as desk:
        desk.connect()
        assert "OK" == desk.ask(f"Z0,{MAIN:x},1")
        assert "S05" == desk.ask("c")


@pytest.mark.parametrize(
    "resume", ["s", "S05", "vCont;s", "vCont;s:1;c", "vCont;S05:1", f"s{START:x}", f"S05;{START:x}"]
)
def test_a_step_is_one_instruction(desk: Desk, resume: str) -> None:
    """Whichever way it is written; a breakpoint on it does not matter."""
    assert "OK" == desk.ask(f"Z0,{START:x},1")
    assert "S05" == desk.ask(resume)
    other = build(guest_configuration(catalog()["hello"]))
    other.step()
    assert other.registers() == desk.machine.registers()


@pytest.mark.parametrize("resume", ["c", "C05", "vCont;c", "vCont;C05:1;c", f"c{START:x}", f"C05;{START:x}"])
def test_continue_runs_to_the_next_breakpoint(desk: Desk, resume: str) -> None:
    """Whichever way it is written."""
    assert "OK" == desk.ask(f"Z1,{MAIN:x},1")
    assert "T05hwbreak:;" == desk.ask(resume)
    assert MAIN == desk.register(EIP)


def test_continue_at_another_address_goes_on_there(desk: Desk) -> None:
    """``jump`` in gdb."""
    desk.machine.memory.write(0x200000, b"\x90\x90")
    assert "S05" == desk.ask("s200000")
    assert 0x200001 == desk.register(EIP)


def test_the_number_of_breakpoints_is_limited(desk: Desk) -> None:
    """A client cannot fill the host's memory."""
    answers = [desk.session.answer(b"Z0,%x,1" % address) for address in range(2000)]
    assert {b"OK", b"E01"} == set(answers)
    assert b"E01" == answers[-1]
    assert b"OK" == desk.session.answer(b"z0,0,1")
    assert b"OK" == desk.session.answer(b"Z0,0,1")


def test_control_c_stops_the_guest() -> None:
    """As an interrupt, and it goes on from there."""
    with guest("loop_forever") as desk:
        desk.connect()
        for _ in range(2):
            before = desk.machine.mode.position()
            desk.at_third_poll(lambda: desk.client.sendall(b"\x03"))
            assert "S02" == desk.ask("c")
            assert desk.machine.mode.position() > before


def test_control_c_of_a_stopped_guest_is_too_late(desk: Desk) -> None:
    """It crossed the stop reply on its way."""
    desk.client.sendall(b"\x03")
    assert "QC1" == desk.ask("qC")
    assert desk.stub.holding


def test_control_c_stops_a_guest_that_sleeps() -> None:
    """In HLT, as it waits for somebody to type."""
    with guest("keyboard") as desk:
        desk.connect()
        asleep: list[float] = []

        def idle(seconds: float) -> bool:
            asleep.append(seconds)
            if len(asleep) == 3:
                desk.client.sendall(b"\x03")
            return True

        desk.machine.idle = idle
        assert "S02" == desk.ask("c")
        assert desk.machine.registers().halted


def test_any_word_from_the_client_stops_the_guest() -> None:
    """And is answered after the stop, as in QEMU."""
    with guest("loop_forever") as desk:
        desk.connect()
        desk.at_third_poll(lambda: desk.say("qC"))
        assert ["S02", "QC1"] == [desk.ask("c"), desk.hear()]


def test_a_packet_right_behind_a_continue_is_answered_after_the_stop() -> None:
    """Not while the guest runs."""
    with guest("loop_forever") as desk:
        desk.connect()
        desk.client.sendall(packet(b"c") + packet(b"qC"))
        assert ["S02", "QC1"] == [desk.hear(), desk.hear()]


def test_an_acknowledgement_does_not_stop_the_guest(desk: Desk) -> None:
    """It is late, and nothing to look at."""
    desk.client.sendall(packet(b"c") + b"+")
    desk.turn_until(lambda: desk.machine.stop is not None, "the end")
    assert b"" == bytes(desk.received)


def test_the_end_of_the_guest_is_told_with_its_status(desk: Desk) -> None:
    """Which is that of the process."""
    desk.say("c")
    desk.turn_until(lambda: desk.machine.stop is not None, "the end")
    desk.stub.close()
    assert "W21" == desk.hear()


def test_a_client_that_waits_for_nothing_is_told_nothing_at_the_end(desk: Desk) -> None:
    """Somebody ended the guest from outside while it was held."""
    desk.machine.stop = Stop(ExitStatus.INTERRUPTED, "interrupted")
    desk.stub.close()
    assert desk.hung_up()
    assert b"" == bytes(desk.received)


def test_detach_lets_the_guest_go_on_without_breakpoints(desk: Desk) -> None:
    """To its end, without a client."""
    assert "OK" == desk.ask(f"Z0,{MAIN:x},1")
    assert "OK" == desk.ask("D")
    desk.turn_until(desk.hung_up, "the end of the connection")
    assert frozenset() == desk.machine.breakpoints
    assert not desk.stub.holding
    desk.turn_until(lambda: desk.machine.stop is not None, "the end")
    assert 33 == desk.machine.stop.status


def test_kill_ends_the_guest(desk: Desk) -> None:
    """With the status of a machine that was switched off."""
    desk.say("k")
    desk.turn_until(lambda: desk.machine.stop is not None, "the end")
    assert (0, "ended by gdb") == (desk.machine.stop.status, desk.machine.stop.reason)


def test_a_guest_that_was_looked_at_does_not_notice() -> None:
    """Breakpoints and steps on the way change neither the ledger nor the position."""
    with guest("preempt") as desk:
        desk.connect()
        for _ in range(50):
            assert "S05" == desk.ask("s")
        eip = desk.register(EIP)
        desk.ask(f"Z0,{eip:x},1")
        desk.ask("g")
        desk.ask("m100000,1000")
        desk.say("c")
        desk.turn_until(lambda: desk.machine.stop is not None or desk.stub.holding, "the end or the breakpoint")
        if desk.machine.stop is None:
            desk.ask("D")
            desk.turn_until(lambda: desk.machine.stop is not None, "the end")
        alone = build(guest_configuration(catalog()["preempt"]))
        alone.run()
        assert {**alone.statistics(), "wall_s": 0} == {**desk.machine.statistics(), "wall_s": 0}
