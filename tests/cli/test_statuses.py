"""The process status and the sentence: what scripts and people get from a run."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hvemu.cli import main
from hvemu.testing.catalog import catalog

from . import guests
from .process import HVEMU, PATIENCE, environment, run

ENDS_AT_ONCE = [name for name, guest in catalog().items() if not guest.input and name not in ("loop_forever", "timers")]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody types: standard input is at its end, whatever pytest made of it."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)


def test_a_guest_that_talks_to_its_screen_alone_is_not_taken_for_mute(tmp_path: Path, capfd: Captured) -> None:
    """A boot loader without a serial console: the end says where to look; one with it says nothing of the kind."""
    # mov ax,0E41h / int 10h / jmp $
    path = tmp_path / "screen.img"
    path.write_bytes(bytes.fromhex("b8410ecd10ebfe").ljust(510, b"\0") + b"\x55\xaa")
    words = ["run", str(path), "--max-instructions", "1000"]
    hint = "its screen has text, its serial line said nothing. Try --display text."
    assert (124, True) == (main(words), hint in capfd.readouterr().err)
    assert (124, False) == (main([*words, "--display", "text"]), hint in capfd.readouterr().err)
    assert (124, False) == (main(["run", "loop_forever", *words[2:]]), hint in capfd.readouterr().err)


@pytest.mark.parametrize("name", ENDS_AT_ONCE)
def test_a_guest_of_the_catalogue_gives_its_status(name: str, capfd: Captured) -> None:
    """Passed, powered off, crashed, slept: each has a number of its own."""
    assert catalog()[name].expected_status == main(["run", name])
    console = capfd.readouterr().out.replace("\r\n", "\n")
    for line in catalog()[name].console:
        assert line in console


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jump_nowhere", "EIP 0xd0000000"),
        ("triple", "#UD, then #GP"),
        ("rubbish", "undecodable bytes ff ff ff ff"),
        ("halt_forever", "instruction 'hlt': halted for ever with interrupts disabled"),
    ],
)
def test_a_guest_that_ended_itself_is_told_where_and_why(name: str, words: str, capfd: Captured) -> None:
    """The sentence names EIP, instruction and cause."""
    main(["run", name])
    error = capfd.readouterr().err
    assert words in error
    assert re.fullmatch(r"hvemu: The guest ended at EIP 0x[0-9a-f]{8}, .*\.\n", error)


@pytest.mark.parametrize(("code", "status"), [(0x10, 33), (0x11, 35), (0x12, 37), (0x00, 1), (0x7F, 255), (0x80, 1)])
def test_the_verdict_is_shifted_and_made_odd_as_in_qemu(code: int, status: int, tmp_path: Path) -> None:
    """A guest writes c to port 0xF4; the process status is (c << 1) | 1, modulo 256."""
    assert status == main(guests.flat(tmp_path, bytes([0xB0, code, 0xE6, 0xF4, 0xF4])))


def test_a_guest_that_passes_says_nothing_of_ours(capfd: Captured) -> None:
    """Standard error is silent when all went well, and standard output is the guest's alone."""
    main(["run", "hello"])
    assert "" == capfd.readouterr().err


@pytest.mark.parametrize("amount", [1, 2, 3, 100, 1234, 5000])
def test_an_instruction_limit_is_exact(amount: int, tmp_path: Path) -> None:
    """Exactly N instructions are counted, none more, and the status is that of a limit."""
    ledger = tmp_path / "ledger.json"
    assert 124 == main(["run", "ring3", "--max-instructions", str(amount), "--ledger", str(ledger)])
    assert amount == json.loads(ledger.read_text())["instructions"]


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    """The guest ends with its own status, and its instructions are counted exactly."""
    ledger = tmp_path / "ledger.json"
    counts = []
    for words in (["--max-instructions", "99999999999999999999"], ["--count-instructions"]):
        assert 33 == main(["run", "hello", *words, "--ledger", str(ledger)])
        counts.append(json.loads(ledger.read_text())["instructions"])
    assert counts[0] == counts[1] > 1000


def test_a_time_limit_ends_a_loop(capfd: Captured) -> None:
    """Host seconds; the sentence says where the guest was."""
    assert 124 == main(["run", "loop_forever", "--timeout", "0.1"])
    assert "the time limit of 0.1 s was reached; the guest was at EIP 0x00100010" in capfd.readouterr().err


def test_a_time_limit_ends_a_guest_that_never_leaves_its_ports_alone(tmp_path: Path, capfd: Captured) -> None:
    """The limit holds although so many exits fit between two looks that they take seconds."""
    assert 124 == main([*guests.flat(tmp_path, guests.SPIN_ON_A_PORT), "--timeout", "0.2"])
    assert "the time limit of 0.2 s was reached" in capfd.readouterr().err


def test_a_guest_asleep_for_ever_does_not_wait_for_the_time_limit() -> None:
    """Nothing can wake it: 68 at once, not 124 in an hour."""
    assert 68 == main(["run", "halt_forever", "--timeout", "3600"])


def test_the_ledger_says_how_the_run_went(tmp_path: Path) -> None:
    """The keys that graders use are there, and name what trapped."""
    ledger = tmp_path / "ledger.json"
    main(["run", "hello", "--ledger", str(ledger)])
    found: dict[str, Any] = json.loads(ledger.read_text())
    wanted = {"mode", "virtual_ns", "instructions", "wall_s", "guest_exit", "exits", "exits_by_detail", "assists"}
    assert set() == wanted - set(found)
    assert "native" == found["mode"]
    assert found["instructions"] is None
    assert found["virtual_ns"] == 4 * found["position"] > 0
    assert found["wall_s"] > 0
    assert {"status": 33, "reason": "the guest wrote 0x10 to the debug exit port"} == found["guest_exit"]
    assert 1 == found["exits_by_detail"]["io_out"]["0xf4"]
    assert {kind: sum(details.values()) for kind, details in found["exits_by_detail"].items()} == found["exits"]


def test_the_ledger_is_written_however_a_run_ends(tmp_path: Path) -> None:
    """A crash and a limit leave the same kind of ledger as success."""
    ledger = tmp_path / "ledger.json"
    for status, words in ((66, ["triple"]), (124, ["loop_forever", "--timeout", "0.05"]), (64, ["jump_nowhere"])):
        assert status == main(["run", *words, "--ledger", str(ledger)])
        assert status == json.loads(ledger.read_text())["guest_exit"]["status"]
        ledger.unlink()


def test_two_runs_write_the_same_ledger_but_for_the_hosts_time(tmp_path: Path) -> None:
    """Counts, position and verdict repeat exactly."""
    ledgers = []
    for name in ("one", "two"):
        main(["run", "preempt", "--ledger", str(tmp_path / name)])
        ledgers.append({**json.loads((tmp_path / name).read_text()), "wall_s": 0})
    assert ledgers[0] == ledgers[1]


def test_an_unclaimed_port_is_counted(tmp_path: Path) -> None:
    """Reading where nobody answers is harmless, and visible."""
    ledger = tmp_path / "ledger.json"
    assert 33 == main(["run", "wild_port", "--ledger", str(ledger)])
    assert "0x1234" in json.loads(ledger.read_text())["exits_by_detail"]["unclaimed_io"]


def test_strict_ends_a_guest_at_an_unclaimed_port(capfd: Captured) -> None:
    """The sentence names the port and the instruction."""
    assert 64 == main(["run", "wild_port", "--strict"])
    assert "'out dx, al': write to unclaimed port 0x1234 under --strict." in capfd.readouterr().err


def test_strict_lets_a_tidy_guest_pass() -> None:
    """A guest that touches only what is there does not notice."""
    assert 33 == main(["run", "hello", "--strict"])


def test_a_reset_ends_the_run_or_starts_the_guest_again(tmp_path: Path) -> None:
    """Without --reboot a reset is status 0; with it the guest runs until a limit."""
    words = guests.flat(tmp_path, bytes.fromhex("b0fe e664 f4"))  # mov al, 0FEh / out 64h, al / hlt
    ledger = tmp_path / "ledger.json"
    assert 0 == main([*words, "--ledger", str(ledger)])
    assert "the guest reset the machine" == json.loads(ledger.read_text())["guest_exit"]["reason"]
    assert 0 == main([*words, "-no-reboot"])
    assert 124 == main([*words, "--reboot", "--max-instructions", "50", "--ledger", str(ledger)])
    assert json.loads(ledger.read_text())["exits_by_detail"]["io_out"]["0x64"] > 5


def test_nothing_is_executed_behind_the_instruction_that_resets(tmp_path: Path) -> None:
    """A PC never comes to the instruction after the one that pulls the reset line."""
    words = guests.flat(tmp_path, bytes.fromhex("b0fe e664 b010 e6f4"))  # ... / mov al, 10h / out 0F4h, al
    assert 0 == main(words)


def test_python_m_hvemu_passes_arguments_and_status_on() -> None:
    """The module is the command."""
    done = run("run", "triple")
    assert 66 == done.returncode
    assert "three faults and out" in done.stdout


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    """``hvemu ... | head -1`` ends without a traceback and without Python's status 120."""
    command = f"({' '.join(HVEMU)} run interrupts 2>err; echo $? >status) | head -1"
    subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=PATIENCE
    )
    assert (tmp_path / "status").read_text().strip() in ("130", "33")
    assert "" == (tmp_path / "err").read_text()


@pytest.mark.parametrize("words", [["list", "guests"], ["run", "hello"], ["explain", "io_in"]])
def test_a_full_disk_under_standard_output_is_a_sentence(words: list[str]) -> None:
    """Status 2 and what to do, not a traceback."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*HVEMU, *words], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, env=environment(),
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert (2, b"hvemu: No space is left for the output. Give it another place.\n") == (done.returncode, done.stderr)


@pytest.mark.parametrize(("command", "status"), [("run hello", 130), ("list guests", 0)])
def test_when_nobody_reads_any_more_a_guest_has_not_ended_by_itself(command: str, status: int) -> None:
    """A list that was cut off is no failure."""
    with subprocess.Popen(
        [*HVEMU, *command.split()], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert status == process.wait(60)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    """Started without input or output, a guest runs to its verdict all the same."""
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(HVEMU)} run hello {closed}"], env=environment(), capture_output=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert (33, b"") == (done.returncode, done.stderr)
