"""The commands beside ``run``: lists, explanations, the demonstration, the doctor."""

import json

import pytest

import hvemu
from hvemu.cli import main
from hvemu.machine.configuration import CPU_MODELS, SVM_CPU_MODELS
from hvemu.testing.catalog import catalog
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, ParavirtualEvent, TranslationEvent
from hvemu.vocabulary.svm import EXIT_CODES, INTERCEPTS

from .process import run

Captured = pytest.CaptureFixture[str]
FIRST = {
    "guests": list(catalog()),
    "cpus": list(CPU_MODELS),
    "exits": [str(kind) for kind in (*ExitKind, *AssistKind, *PagingEvent, *TranslationEvent, *ParavirtualEvent)],
}


@pytest.mark.parametrize("topic", ["guests", "devices", "cpus", "exits"])
def test_a_list_is_the_same_as_text_and_as_json(topic: str, capsys: Captured) -> None:
    """One row each, whichever side --json stands on."""
    assert 0 == main(["list", topic])
    text = capsys.readouterr().out.splitlines()
    assert 0 == main(["list", topic, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert 0 == main(["list", "--json", topic])
    assert rows == json.loads(capsys.readouterr().out)
    firsts = [next(iter(row.values())) for row in rows]
    assert firsts == [line.split()[0] for line in text]
    assert set(FIRST.get(topic, firsts)) == set(firsts)


def test_the_list_of_devices_names_the_chips_and_where_they_are(capsys: Captured) -> None:
    """The serial line is at port 0x3f8 and the local APIC in memory."""
    main(["list", "devices", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"device": "uart16550", "space": "port", "base": "0x3f8", "length": "0x8"} in rows
    assert {"device": "lapic", "space": "memory", "base": "0xfee00000", "length": "0x1000"} in rows
    adapters = {"ide-channel", "virtio-pci-registers", "buslogic-registers"}
    assert adapters < {row["device"] for row in rows if row["space"] == "port"}


def test_the_list_of_cpus_shows_which_have_long_mode(capsys: Captured) -> None:
    """All but the two that are 32-bit CPUs."""
    main(["list", "cpus", "--json"])
    for row in json.loads(capsys.readouterr().out):
        assert {"fpu", "tsc"} <= set(row["features"])
        assert ("lm" in row["features"]) is (row["cpu"] not in ("pentium3", "qemu32"))
        assert ("AMD-V" == row["mode_svm"]) is (row["cpu"] in SVM_CPU_MODELS)


@pytest.mark.parametrize("name", ["npf", *INTERCEPTS])
def test_every_exit_of_svm_is_explained(name: str, capsys: Captured) -> None:
    """However it is written; what the instructions are that the APM names by their effect."""
    assert 0 == main(["explain", f"VMEXIT_{name.upper()}"])
    said = capsys.readouterr().out
    assert f"{name}: exit {EXIT_CODES[name]:#x} of VMRUN in mode svm" in said
    assert ("  what   LTR.\n" in said) is (name == "tr_write")


def test_what_cannot_be_explained_says_where_all_is_listed(capsys: Captured) -> None:
    """Not a wall of names; and a name of several things is all of them."""
    assert 2 == main(["explain", "zzz"])
    assert "There is no 'zzz' to explain. Type: hvemu explain --help, which lists all." in capsys.readouterr().err
    assert 0 == main(["explain", "iret"])
    said = capsys.readouterr().out
    assert "iret: hypercall 23 of mode pv" in said
    assert "iret: exit 0x74 of VMRUN" in said


@pytest.mark.parametrize("kind", [*ExitKind, *AssistKind, *PagingEvent])
def test_every_kind_is_explained(kind: str, capsys: Captured) -> None:
    """What, who, where and what to read."""
    assert 0 == main(["explain", kind])
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [f"{kind}:", "what", "who", "where", "read"] == [line.split()[0] for line in lines]


@pytest.mark.parametrize("command", ["run", "demo", "list", "explain", "doctor", "bench", "lab"])
def test_help_has_status_zero(command: str, capsys: Captured) -> None:
    """And says how the command is used."""
    assert 0 == main([command, "--help"])
    assert "usage: hvemu " + command in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words: list[str], capsys: Captured) -> None:
    """Status 0; without any word at all it is the same text and status 2."""
    assert 0 == main(words)
    usage = capsys.readouterr().out
    for command in ("run", "demo", "list", "explain", "doctor", "bench", "lab", "guests"):
        assert f"\n  {command} " in usage
    assert 2 == main([])
    assert usage == capsys.readouterr().out


@pytest.mark.parametrize("words", [["list"], ["explain"], ["lab"]])
def test_a_command_without_its_word_says_what_there_is(words: list[str], capsys: Captured) -> None:
    """Status 2 and the choices."""
    assert 2 == main(words)
    assert capsys.readouterr().out.startswith(f"usage: hvemu {words[0]}")


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_that_of_the_package(word: str, capsys: Captured) -> None:
    """As ``hvemu.__version__``."""
    assert 0 == main([word])
    assert f"hvemu {hvemu.__version__}\n" == capsys.readouterr().out


@pytest.mark.parametrize("name", ["ring3", "keyboard", "realmode_boot", "triple", "wild_port"])
def test_the_demonstration_shows_console_and_ledger(name: str, capsys: Captured) -> None:
    """Keys are typed for the guest; a crash that is expected is no failure."""
    assert 0 == main(["demo", name])
    output = capsys.readouterr().out
    for line in catalog()[name].console:
        assert line in output
    for part in (
        "--- its serial console",
        "--- what hvemu, as the bare machine, saw",
        "exits:",
        "hardware assists",
        "Next: hvemu",
    ):
        assert part in output


def test_the_demonstration_needs_no_name(capsys: Captured) -> None:
    """``hvemu demo`` is the first command that people type."""
    assert 0 == main(["demo"])
    assert "Hello from ring 3" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--mode", "trap"], ["paging", "--mode=trap"]])
def test_the_demonstration_in_another_mode(words: list[str], capsys: Captured) -> None:
    """The ledger of mode trap has its own exits, faults in words, and what paging did."""
    assert 0 == main(["demo", *words])
    output = capsys.readouterr().out
    for part in (
        "PASS",
        "  privileged ",
        "  hidden_fault ",
        "write, user, protection: ",
        "paging:\n",
        "  shadow_fill ",
    ):
        assert part in output


@pytest.mark.parametrize("words", [["--mode"], ["--mode", "ring0"], ["--made", "trap"]])
def test_the_demonstration_refuses_other_words(words: list[str], capsys: Captured) -> None:
    """Status 2 and a sentence."""
    assert 2 == main(["demo", *words])
    assert capsys.readouterr().err.startswith("hvemu: ")


def test_the_demonstration_of_a_loop_ends(capsys: Captured) -> None:
    """After the time that the catalogue allows."""
    assert 0 == main(["demo", "loop_forever"])
    assert "ended: the time limit of 2 s was reached" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_finds_nothing_wrong(capsys: Captured) -> None:
    """Every probe of the engine is as hvemu needs it."""
    assert 0 == main(["doctor"])
    output = capsys.readouterr().out
    assert "WRONG" not in output
    assert "probes are as they should be" in output


def test_the_monitor_obeys_a_script() -> None:
    """Lines on standard input are the monitor's first."""
    done = run("run", "hello", "-S", stdin=b"info registers\nstep 2\nquit\n")
    assert 0 == done.returncode
    assert 2 == done.stdout.count("EIP=")
    done = run("run", "long_mode", "-S", stdin=b"step 14677\nmode\nquit\n")  # two beyond a HLT
    assert (0, True) == (done.returncode, "mode native" in done.stdout)
    done = run("run", "hello", "-S", stdin=b"info exits\ncont\n")
    assert 33 == done.returncode
    assert done.stdout.index("hardware assists: none") < done.stdout.index("Hello from ring 0")


def test_python_m_hvemu_is_hvemu() -> None:
    """Without the script that pip installs."""
    done = run("--version")
    assert (0, f"hvemu {hvemu.__version__}\n", "") == (done.returncode, done.stdout, done.stderr)
