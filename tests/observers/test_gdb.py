"""The real gdb against ``hvemu run``: what a reader of the lessons would type."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from hvemu.testing.catalog import catalog

from ..cli.process import PATIENCE, Talk, run, start

HELLO = str(catalog()["hello"].image)


def gdb(port: int, *commands: str, timeout: float = PATIENCE) -> str:
    """What gdb says to these commands, after it has connected; skips where there is no gdb."""
    program = shutil.which("gdb")
    if program is None:
        pytest.skip("gdb is not installed; on Debian: apt-get install gdb")
    words = [program, "-batch", "-nx", "-iex", "set debuginfod enabled off", "-ex", f"target remote localhost:{port}"]
    for command in commands:
        words += ["-ex", command]
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
    )
    return done.stdout.decode("utf-8", "replace")


def check_said(said: str, *expected: str) -> None:
    """Each of these, with all that was said if one is missing."""
    for text in expected:
        assert text in said, said


def announced(process: "subprocess.Popen[bytes]") -> int:
    """The port that hvemu says gdb should connect to."""
    assert process.stderr is not None
    line = Talk(process.stderr.fileno()).until("\n")
    assert line.startswith("gdb: target remote localhost:")
    return int(line.rpartition(":")[2])


def test_gdb_debugs_a_guest_from_its_first_instruction_to_its_end(tmp_path: Path) -> None:
    """Symbols, a breakpoint, registers, code, steps, memory, a changed register, and the status at the end."""
    words = ("run", "hello", "--append", "hello", "--serial", str(tmp_path / "console"), "-gdb", "tcp::0", "-S")
    with start(*words) as process:
        said = gdb(
            announced(process),
            f"file {HELLO}",
            "print/x $pc == (long)&_start",
            "break *main",
            "continue",
            "info registers",
            "x/4i $pc",
            "stepi",
            "print/x $pc - (long)&main",
            "x/s 0x1015e8",
            "set var {int}0x105640 = 0x1234",
            "print/x {int}0x105640",
            "set $eax = 0x1badb002",
            "print/x $eax",
            "set $st0 = 1.5",
            "print $st0",
            "hbreak *report",
            "continue",
            "print $pc == (long)&report",
            "delete",
            "continue",
            "print $_exitcode",
        )
        assert 33 == process.wait(PATIENCE)
    check_said(
        said,
        "$1 = 0x1\n",
        "Breakpoint 1, 0x00100010 in main ()",
        "eip            0x100010            0x100010 <main>",
        "eflags         0x46                [ PF ZF ]",
        "=> 0x100010 <main>:",
        "$2 = 0x1\n",
        '0x1015e8:\t"no unexpected exceptions"',
        "$3 = 0x1234\n",
        "$4 = 0x1badb002\n",
        "$5 = 1.5\n",
        "Breakpoint 2, 0x001003b0 in report ()",
        "$6 = 1\n",
        "exited with code 041",
        "$7 = 33\n",
    )
    assert "PASS the loader says" in (tmp_path / "console").read_text()


@pytest.mark.parametrize("mode", ["native", "svm"])
def test_gdb_debugs_a_64_bit_kernel(mode: str) -> None:
    """From its first instruction, which is 32-bit code, into long mode; wide registers, addresses and stack frames."""
    with start("run", "long_mode", "--mode", mode, "--serial", "none", "-gdb", "tcp::0", "-S") as process:
        said = gdb(
            announced(process),
            f"file {catalog()['long_mode'].image}",
            "print/x $rip == (long)&_start",
            "break *main",
            "continue",
            "x/i $pc",
            "stepi",
            "print/x $rip - (long)&main",
            "set $r12 = 0x123456789abcdef0",
            "print/x $r12",
            "hbreak system_call",
            "continue",
            "backtrace 2",
            "x/2gx $rsp",
            "delete",
            "set $r12 = 0",
            "continue",
            "print $_exitcode",
        )
        assert 33 == process.wait(PATIENCE)
    check_said(
        said,
        "$1 = 0x1\n",
        "Breakpoint 1, 0x0000000000102b60 in main ()",
        "=> 0x102b60 <main>:\txor    %eax,%eax",
        "$2 = 0x2\n",
        "$3 = 0x123456789abcdef0\n",
        "Breakpoint 2, 0x0000000000102b20 in system_call ()",
        "#1  0x000000000010286f in system_call_entry ()",
        "0x000000000010286f\t0x0000000000000203",
        "$4 = 33\n",
    )


def test_gdb_reaches_the_monitor() -> None:
    """Its look at the machine, in more than one packet; but the guest is gdb's to move, and files are nobody's."""
    with start("run", "hello", "--serial", "none", "-gdb", "tcp::0", "-S") as process:
        said = gdb(
            announced(process),
            "monitor info registers",
            "monitor x 0x100000 4096",
            "monitor step",
            "monitor cont",
            "monitor screendump /tmp/screen",
            "monitor fly",
            "print/x $pc",
            "continue",
        )
        assert 33 == process.wait(PATIENCE)
    check_said(
        said,
        "EIP=00100075",
        "00100000  02 b0 ad 1b",
        "00100ff0  ",
        "Say stepi to gdb.",
        "Say continue to gdb.",
        "gdb writes no files here. Leave the name out.",
        "There is no command 'fly'.",
        "$1 = 0x100075\n",
    )


def test_gdb_stays_while_what_runs_the_guest_changes() -> None:
    """Its breakpoints hold under every technique, and the guest notices nothing."""
    words = ("run", "processes", "--cpu", "opteron-g3", "--serial", "none", "-gdb", "tcp::0", "-S")
    with start(*words) as process:
        said = gdb(
            announced(process),
            "file guests/17_processes/processes.elf",
            "break machine_switch",
            "continue",
            "monitor mode svm",
            "stepi",
            "continue",
            "monitor mode svm/shadow",
            "continue",
            "monitor mode bt",
            "continue",
            "delete",
            "continue",
        )
        assert 33 == process.wait(PATIENCE)
    assert (4, 5) == (said.count("Breakpoint 1, 0x"), said.count(" in machine_switch ()"))
    check_said(said, "mode svm, nested paging", "mode svm, shadow paging", "mode bt, shadow paging")


def test_gdb_comes_and_goes_while_a_guest_runs() -> None:
    """It finds it running, detaches, comes back and ends it."""
    with start("run", "loop_forever", "--serial", "none", "-gdb", "tcp::0") as process:
        port = announced(process)
        for _ in range(2):
            assert "=> 0x100010:\tjmp    0x100010" in gdb(port, "x/i $pc", "detach")
        assert "killed]" in gdb(port, "kill")
        assert 0 == process.wait(PATIENCE)


def test_gdb_can_change_what_a_guest_will_do() -> None:
    """It writes the verdict's port access itself, with code of its own."""
    with start("run", "loop_forever", "--serial", "none", "-gdb", "tcp::0", "-S") as process:
        said = gdb(
            announced(process),
            "set var {char[6]}0x200000 = {0xb0, 0x11, 0xe6, 0xf4, 0xeb, 0xfe}",
            "set $pc = 0x200000",
            "break *0x200002",
            "continue",
            "set $al = 0x10",
            "continue",
        )
        assert "exited with code 041" in said
        assert 33 == process.wait(PATIENCE)


def test_a_guest_held_for_gdb_obeys_limits_and_signals() -> None:
    """Nobody need come: --timeout ends it before its first instruction, and so does a signal."""
    done = run("run", "hello", "-gdb", "tcp::0", "-S", "--timeout", "0.2")
    assert (124, "") == (done.returncode, done.stdout)
    assert "the time limit of 0.2 s was reached; the guest was at EIP 0x00100075" in done.stderr
    with (
        start("run", "hello", "-gdb", "tcp::0", "-S") as process,
        socket.create_connection(("127.0.0.1", announced(process)), timeout=PATIENCE) as client,
    ):
        client.sendall(b"$qC#b4")
        Talk(client.fileno()).until("QC1")
        process.terminate()
        assert 130 == process.wait(PATIENCE)


def test_a_guest_that_nobody_debugs_runs_as_ever() -> None:
    """-gdb alone holds nothing."""
    done = run("run", "hello", "-gdb", "tcp::0")
    assert (33, True) == (done.returncode, "Hello from ring 0" in done.stdout)


def test_a_port_for_gdb_that_is_taken_is_a_sentence() -> None:
    """Before the guest runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run("run", "hello", "-gdb", f"tcp::{port}")
    assert (2, "") == (done.returncode, done.stdout)
    sentence = f"Cannot listen for gdb on 127.0.0.1:{port}: Address already in use. Give -gdb tcp::PORT a free port."
    assert f"hvemu: {sentence}\n" == done.stderr
