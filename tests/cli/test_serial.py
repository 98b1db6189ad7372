"""``--serial``: where the guest's COM1 leads."""

import os
import socket
from pathlib import Path

import pytest

from hvemu.cli import main
from hvemu.cli.console import TcpConsole, open_console
from hvemu.vocabulary.errors import UserError

from . import guests
from .process import PATIENCE, Talk, run, start


def test_a_file_gets_what_the_guest_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With or without QEMU's prefix; standard output stays silent."""
    for words in (str(tmp_path / "console"), f"file:{tmp_path / 'console'}"):
        assert 33 == main(["run", "hello", "--serial", words])
        assert "Hello from ring 0" in (tmp_path / "console").read_text()
        (tmp_path / "console").unlink()
    assert "" == capfd.readouterr().out


def test_none_drops_what_the_guest_says(capfd: pytest.CaptureFixture[str]) -> None:
    """The verdict is what is left; QEMU's null is the same."""
    for words in ("none", "null"):
        assert 33 == main(["run", "hello", "--serial", words])
    assert ("", "") == capfd.readouterr()


def test_a_full_disk_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """The guest cannot be heard, so the run ends with what to do."""
    assert 2 == main(["run", "hello", "--serial", "/dev/full"])
    error = capfd.readouterr().err
    assert "hvemu: Cannot write '/dev/full': No space left on device. Give --serial another file.\n" == error


def test_a_file_that_cannot_be_made_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """What is wrong in words, not as a number."""
    assert 2 == main(["run", "hello", "--serial", "/no/such/folder/a"])
    advice = "No such file or directory. Give --serial a file in a folder that exists.\n"
    assert f"hvemu: Cannot write '/no/such/folder/a': {advice}" == capfd.readouterr().err


def test_standard_input_reaches_the_guest(tmp_path: Path) -> None:
    """Bytes from a pipe, the special key of terminals included."""
    done = run(*guests.echo(tmp_path), stdin=b"\x01xq")
    assert (33, ">\x01xq") == (done.returncode, done.stdout)


def test_a_client_on_a_tcp_port_talks_with_the_guest(tmp_path: Path) -> None:
    """Port 0 is any free one, announced on standard error; what was said before the client came is kept."""
    with start(*guests.echo(tmp_path), "--serial", "tcp:0") as process:
        assert process.stderr is not None
        announced = Talk(process.stderr.fileno()).until("\n")
        assert announced.startswith("serial line on 127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(announced.rpartition(":")[2])), timeout=PATIENCE) as client:
            talk = Talk(client.fileno())
            talk.until(">")
            client.sendall(b"abc")
            talk.until("abc")
            client.sendall(b"q")
            talk.until("q")
        assert 33 == process.wait(PATIENCE)


def test_a_second_client_comes_after_the_first_has_gone(tmp_path: Path) -> None:
    """One at a time, and the guest does not end when nobody listens."""
    with start(*guests.echo(tmp_path), "--serial", "tcp:127.0.0.1:0,server,nowait") as process:
        assert process.stderr is not None
        address = ("127.0.0.1", int(Talk(process.stderr.fileno()).until("\n").rpartition(":")[2]))
        for word in ("one", "two"):
            with socket.create_connection(address, timeout=PATIENCE) as client:
                client.sendall(word.encode())
                Talk(client.fileno()).until(word)
        with socket.create_connection(address, timeout=PATIENCE) as client:
            client.sendall(b"q")
            assert 33 == process.wait(PATIENCE)


def test_a_client_at_the_door_gets_all_of_a_short_guests_words() -> None:
    """A guest that ends before anybody looked at the door is read to its last line."""
    with start("run", "hello", "--serial", "tcp:0", "-S") as process:
        assert process.stderr is not None
        assert process.stdin is not None
        port = int(Talk(process.stderr.fileno()).until("\n").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            process.stdin.write(b"cont\n")
            Talk(client.fileno()).until("PASS the loader says how much memory there is")
        assert 33 == process.wait(PATIENCE)


def test_a_port_in_use_is_a_sentence() -> None:
    """Status 2 and what to do."""
    advice = "Give --serial tcp:PORT a free port"
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UserError, match=advice):
        TcpConsole(listener.getsockname()[1])


def test_a_tcp_console_keeps_the_last_64_kib() -> None:
    """A guest that talks to nobody does not fill the host's memory."""
    console = TcpConsole(0)
    try:
        console.write(b"x" * 100_000 + b"end")
        with socket.create_connection(("127.0.0.1", console.port), timeout=PATIENCE) as client:
            assert console.wait(PATIENCE)
            console.close()
            data = b""
            while piece := client.recv(65536):
                data += piece
        assert (65536, b"xend") == (len(data), data[-4:])
    finally:
        console.close()


def test_a_pty_is_announced_and_talks_with_the_guest(tmp_path: Path) -> None:
    """Another program opens the terminal whose name standard error gives."""
    with start(*guests.echo(tmp_path), "--serial", "pty") as process:
        assert process.stderr is not None
        announced = Talk(process.stderr.fileno()).until("\n")
        assert announced.startswith("serial line on /dev/")
        line = os.open(announced.split()[-1], os.O_RDWR | os.O_NOCTTY)
        try:
            talk = Talk(line)
            talk.until(">")
            os.write(line, b"ab")
            talk.until("ab")
            os.write(line, b"q")
            talk.until("q")
        finally:
            os.close(line)
        assert 33 == process.wait(PATIENCE)


@pytest.mark.parametrize("where", ["unix:path", "udp::4555", "telnet::1", "chardev:x", "vc", "vc:80x24"])
def test_a_line_that_qemu_has_and_hvemu_lacks_is_refused(where: str) -> None:
    """It is not taken for the name of a file."""
    with pytest.raises(UserError, match=r"is not supported by hvemu\. Choose stdio"):
        open_console(where)
