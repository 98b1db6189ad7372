"""Words on the command line: what is accepted, what is refused, and that every refusal says what to do."""

import contextlib
import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cli import main
from hvemu.cli.options import parse, parser
from hvemu.cpu.hypervisor_leaves import BASE, HYPERVISOR_LEAVES
from hvemu.machine.configuration import CPU_MODELS, MachineConfiguration, from_toml, to_toml
from hvemu.testing.catalog import catalog
from hvemu.vocabulary.errors import UserError

HELLO = str(catalog()["hello"].image)
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True, scope="module")
def _somewhere_else(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Random words may name files; let them lie where nobody stumbles over them."""
    with contextlib.chdir(tmp_path_factory.mktemp("options")):
        yield


REFUSED = [
    ["run"],
    ["run", "no_such_guest"],
    ["run", "/no/such/file"],
    ["run", "/"],
    ["run", "hello", "hello"],
    ["run", "hello", "-kernel", "hello"],
    ["run", "hello", "--unheard-of"],
    ["run", "hello", "--memory", "many"],
    ["run", "hello", "--memory", "-1"],
    ["run", "hello", "--memory", "1T"],
    ["run", "hello", "--memory", "4G"],
    ["run", "hello", "--memory", "4097K"],
    ["run", "hello", "--memory", ""],
    ["run", "hello", "-m", "64,slots=2"],
    ["run", "hello", "--cpu", "8086"],
    ["run", "hello", "--cpu", "penryn,+vmx"],
    ["run", "hello", "--cpu", "penryn,-unheard"],
    ["run", "hello", "--mode", "telepathy"],
    ["run", "hello", "--hypervisor-leaves", "bhyve"],
    ["run", "hello", "--mode", "pv", "--hypervisor-leaves", "kvm"],
    ["run", "hello", "--loader", "grub"],
    ["run", "hello", "--load-address", "here"],
    ["run", "hello", "--load-address", "0x80000000"],
    ["run", "hello", "--max-instructions", "0"],
    ["run", "hello", "--max-instructions", "few"],
    ["run", "hello", "--timeout", "0"],
    ["run", "hello", "--timeout", "nan"],
    ["run", "hello", "--timeout", "soon"],
    ["run", "hello", "--rtc", "noon"],
    ["run", "hello", "--rtc", "1066-10-14"],
    ["run", "hello", "--smp", "2"],
    ["run", "hello", "--display", "gtk"],
    ["run", "hello", "--serial", "tcp:none"],
    ["run", "hello", "--serial", "tcp:70000"],
    ["run", "hello", "--serial", "/no/such/folder/file"],
    ["run", "hello", "--serial", "unix:/tmp/socket"],
    ["run", "hello", "--ledger", "/no/such/folder/file"],
    ["run", "hello", "-gdb", "stdio"],
    ["run", "hello", "-gdb", "tcp::70000"],
    ["run", "hello", "-gdb", "tcp:1234"],
    ["run", "hello", "-gdb", "tcp::\N{ARABIC-INDIC DIGIT ONE}"],
    ["run", "hello", "-gdb", "tcp:no such host:1"],
    ["run", "hello", "-s", "--clock", "host"],
    ["run", "hello", "--ledger", "/"],
    ["run", "hello", "--ledger", ""],
    ["run", "hello", "--ledger", "x" * 300],
    ["run", "hello", "--trace", "/no/such/folder/file"],
    ["run", "hello", "--trace", "x" * 300],
    ["run", "hello", "--append", "x" * 5000],
    ["run", "hello", "--append", "\udcff"],
    ["run", "hello", "--initrd", "/no/such/file"],
    ["run", "hello", "--module", ""],
    ["run", "--config", "/no/such/file"],
    ["list", "cats"],
    ["list", "guests", "cats"],
    ["explain", "everything"],
    ["demo", "no_such_guest"],
    ["guests", "hello"],
    ["lab", "no_such_lab"],
    ["lab", "sensitive", "sgdt"],
    ["lab", "sensitive", "--modes", "no_such_mode"],
    ["lab", "sensitive", "--json"],
    ["lab", "sensitive", "--json", "/no/such/folder/file"],
    ["run", "hello", "-hda", "a.img", "-hda", "b.img"],
    ["run", "hello", "-cdrom", "a.iso", "-cdrom", "b.iso"],
    *(
        ["run", "--disk", "a.img", "-boot", order]
        for order in ("", "a", "cn", "cc", "order=", "menu=on", "once=d", "c,d")
    ),
    ["run", "hello", "-boot", "d"],
    ["fly"],
    ["--fly"],
]
LACKING = ["-machine", "-M", "-incoming", "-audiodev", "-bios"]
USUAL_IN_QEMU = ["-icount", "-rtc", "-usb", "-nodefaults", "-global"]
REPLACED = {
    "-d": "--trace FILE", "-D": "--trace FILE", "-monitor": "Ctrl-A C", "-debugcon": "0xE9", "-device": "0xF4",
    "-fda": "IMAGE", "-drive": "--disk FILE", "-blockdev": "--disk FILE", "-enable-kvm": "--mode", "-accel": "--mode",
    "-net": "no network yet", "-nic": "no network yet", "-netdev": "no network yet", "-vnc": "--display text",
    "-vga": "--display text",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words)[:40])
def test_a_mistake_is_a_sentence_with_advice(words: list[str], capfd: Captured) -> None:
    """Status 2, one line, what is wrong and then what to do."""
    assert 2 == main(words)
    output, error = capfd.readouterr()
    assert "" == output
    lines = error.splitlines()
    assert 1 == len(lines)
    assert lines[0].startswith("hvemu: ")
    assert lines[0].endswith((".", "]"))
    assert ". " in lines[0], "a sentence about what is wrong, and one about what to do"


@pytest.mark.parametrize("option", [*LACKING, *USUAL_IN_QEMU])
def test_an_option_of_qemu_that_is_lacking_is_refused_by_name(option: str, capfd: Captured) -> None:
    """Never ignored: a run that looks like QEMU's and is not would be worse."""
    for words in ([option, "x", "-kernel", "hello"], ["-kernel", "hello", option]):
        assert 2 == main(words)
        error = capfd.readouterr().err
        assert option in error
        assert "See hvemu run --help" in error


@pytest.mark.parametrize("option", REPLACED)
def test_an_option_of_qemu_is_refused_with_what_there_is_instead(option: str, capfd: Captured) -> None:
    """By name, in one sentence, and what to do in another."""
    assert 2 == main(["-kernel", "hello", option, "x"])
    error = capfd.readouterr().err
    assert f"QEMU's option {option} is not supported by hvemu. " in error
    assert REPLACED[option] in error
    assert error.endswith(".\n")
    assert 1 == error.count("\n")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("-s", ("127.0.0.1", 1234)),
        ("-gdb tcp::3117", ("127.0.0.1", 3117)),
        ("-gdb tcp:0.0.0.0:1234,server=on,wait=off", ("0.0.0.0", 1234)),
        ("-s -gdb tcp:localhost:0", ("localhost", 0)),
        ("-gdb none", None),
        ("", None),
    ],
)
def test_where_gdb_may_connect_is_written_as_in_qemu(words: str, address: tuple[str, int] | None) -> None:
    """Only this host may, unless another address is given."""
    assert address == parse([HELLO, *words.split()])[0].gdb


def test_qemus_spelling_is_understood() -> None:
    """The options that exist in both mean the same."""
    words = "-m 48 -cpu Core2Duo,-sse3 -append x=1 -initrd i -serial none -display none -no-reboot -smp 1 -S"
    changed = words.replace(",-sse3", "")
    options, configuration = parse(["-kernel", HELLO, *changed.split()])
    assert MachineConfiguration(
        image=HELLO, memory=48 << 20, cpu="core2duo", append="x=1", initrd="i", serial="none"
    ) == configuration  # fmt: skip
    assert options.paused


def test_nographic_is_the_serial_line_on_the_terminal() -> None:
    """``-nographic`` leaves a serial line that was chosen where it is."""
    assert "stdio" == parse([HELLO, "-nographic"])[1].serial
    assert "none" == parse([HELLO, "-nographic", "-serial", "none"])[1].serial
    assert "stdio" == parse([HELLO, "-serial", "stdio", "-nographic"])[1].serial


def test_a_run_in_qemus_words_gives_the_guests_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hvemu -kernel IMAGE ...`` needs no command before it."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)
    words = "-append answer=1 -m 16 -nographic -no-reboot -cpu Penryn"
    assert 33 == main(["-kernel", HELLO, *words.split()])


def test_the_guest_gets_the_command_line(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    """--append replaces what the catalogue says."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)
    assert 33 == main(["run", "hello", "--append", "hello there"])
    assert 'command line: "hello there"' in capfd.readouterr().out


def test_a_guest_of_the_catalogue_brings_its_memory_and_words() -> None:
    """Options given beside it win."""
    guest = catalog()["hello"]
    configuration = parse(["hello"])[1]
    assert (guest.memory << 20, guest.command_line) == (configuration.memory, configuration.append)
    assert 32 << 20 == parse(["hello", "-m", "32"])[1].memory


def test_a_feature_can_be_taken_from_the_cpu() -> None:
    """``MODEL,-feature`` as in QEMU."""
    configuration = parse([HELLO, "--cpu", "penryn,-sep,-pae"])[1]
    assert ("penryn", ("sep", "pae")) == (configuration.cpu, configuration.cpu_without)


@pytest.mark.parametrize("model", CPU_MODELS)
def test_every_cpu_model_boots_a_guest(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the help offers can be had."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)
    assert 33 == main(["run", "hello", "--cpu", model, "--serial", "none"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("2000-01-01", 946_684_800), ("2000-01-01T00:00:01", 946_684_801), ("1700000000", 1_700_000_000)],
)
def test_the_time_of_power_on_can_be_written_two_ways(text: str, seconds: int) -> None:
    """UTC, or seconds since 1970."""
    assert seconds == parse([HELLO, "--rtc", text])[1].rtc


@pytest.mark.parametrize("interface", HYPERVISOR_LEAVES)
def test_a_guest_reports_the_hypervisor_that_it_is_shown(
    interface: str, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """By option; the lesson about CPUID prints the signature, and passes with each."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)
    assert 33 == main(["run", "cpuid", "--hypervisor-leaves", interface])
    output = capfd.readouterr().out
    if interface == "none":
        assert "no hypervisor says that it is here" in output
    else:
        letters = b"".join(word.to_bytes(4, "little") for word in HYPERVISOR_LEAVES[interface][BASE, 0][1:])
        assert f'hypervisor "{letters.rstrip(bytes(1)).decode()}"' in output


def test_print_config_is_read_back_by_config(tmp_path: Path, capfd: Captured) -> None:
    """What one run prints, another obeys."""
    words = ["ring3", "--append", 'a "quoted" \\ word\t', *"--memory 32M --strict --cpu core2duo,-sep --rtc 7".split()]
    assert 0 == main(["run", *words, "--print-config"])
    printed = capfd.readouterr().out
    path = tmp_path / "machine.toml"
    path.write_text(printed)
    assert parse(words)[1] == parse(["--config", str(path)])[1] == from_toml(printed)
    assert 0 == main(["run", "--config", str(path), "--print-config"])
    assert printed == capfd.readouterr().out
    assert {field.name for field in dataclasses.fields(MachineConfiguration)} == set(tomllib.loads(printed))


def test_options_win_over_the_configuration_file(tmp_path: Path) -> None:
    """A file is a starting point."""
    path = tmp_path / "machine.toml"
    lines = ['memory = "32M"', 'append = "from the file"', 'modules = ["a", "b c"]', "reboot = true"]
    path.write_text("\n".join([f'image = "{HELLO}"', *lines]))
    configuration = parse(["--config", str(path), "--append", "given here", "-no-reboot"])[1]
    assert "given here" == configuration.append
    assert (32 << 20, ("a", "b c"), False) == (configuration.memory, configuration.modules, configuration.reboot)


@pytest.mark.parametrize(
    "text",
    [
        "image =", "colour = 1", "image = 5", "image = 'x'\nmemory = 'much'", "image = 'x'\nstrict = 1", "memory = 5",
        "image = 'x'\nmodules = 'y'", "image = 'x'\nversion = 2", "image = 'x'\nrtc = true", "image = 'x'\ncpu = 'z80'",
        "",
    ],
)  # fmt: skip
def test_a_configuration_that_is_wrong_is_refused_with_advice(text: str, tmp_path: Path, capfd: Captured) -> None:
    """Unknown keys, wrong types, nothing to boot: status 2 and what to write."""
    path = tmp_path / "machine.toml"
    path.write_text(text)
    assert 2 == main(["run", "--config", str(path)])
    error = capfd.readouterr().err
    assert 1 == len(error.splitlines())
    assert error.rstrip().endswith(".")


@settings(deadline=None)
@given(
    append=st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=40),
    modules=st.lists(st.text("ab \"'\\\n\u00e9", max_size=5), max_size=3),
    memory=st.integers(257, 4096),
    strict=st.booleans(),
)
def test_every_configuration_survives_toml(append: str, modules: list[str], memory: int, strict: bool) -> None:
    """Whatever is in it: quotes, control characters, other alphabets."""
    wanted = MachineConfiguration(
        image="x", append=append, modules=tuple(modules), memory=memory * 4096, strict=strict, second_serial="none"
    )
    assert wanted == from_toml(to_toml(wanted))


OPTIONS = sorted({string for action in parser()._actions for string in action.option_strings} - {"-h", "--help"})
VALUES = st.one_of(
    st.sampled_from("64M 0 -1 1e9 none pty: tcp: tcp:99999 penryn,-x - -- = native -s -d --hda".split()),
    st.text(max_size=8),
)
WORDS = st.lists(st.one_of(st.sampled_from(OPTIONS), VALUES), max_size=8)


@settings(deadline=None, max_examples=100)
@given(words=WORDS)
def test_no_words_at_all_make_a_traceback(words: list[str]) -> None:
    """An image that does not exist, and anything around it: a configuration or a UserError with advice."""
    complaint = ""
    try:
        parse(["/no/such/image", *words])
    except UserError as error:
        complaint = str(error)
    except SystemExit as stop:
        complaint = f"--help has status {stop.code}."
    assert complaint == "" or complaint.endswith((".", "]"))
    assert "status 1" not in complaint


@settings(deadline=None, max_examples=100)
@given(words=WORDS, command=st.sampled_from("run list explain demo doctor guests nonsense -kernel".split()))
def test_random_command_lines_are_answered(words: list[str], command: str) -> None:
    """Never status 1 or 70; what does not exist is booted, so that nothing runs."""
    extra = {"run": ["/no/such/image"], "-kernel": ["/no/such/image"]}.get(command, ["nonsense"])
    assert main([command, *extra, *words]) in (0, 2)


@settings(deadline=None, max_examples=50)
@given(words=st.lists(st.text(max_size=6), max_size=3))
def test_random_first_words_are_answered(words: list[str]) -> None:
    """Whatever stands where a command should."""
    assert main(["nonsense" + "".join(words[:1]), *words[1:]]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hello", "--mode", "pv"], "hello.elf is not a paravirtual kernel. Use --mode native, bt or svm."),
        (["processes_pv", "--mode", "trap"], "processes_pv.elf is a paravirtual kernel. Use --mode pv."),
        (
            ["hello", "--loader", "xen"],
            "is to be loaded as a paravirtual kernel. Leave --loader out, or use --mode pv.",
        ),
        (["processes_pv", "--loader", "flat"], "--loader flat is not for paravirtual kernels. Leave --loader out."),
        (["processes_pv", "--display", "text"], "has no screen. Leave out --display: its console is --serial."),
        (["processes_pv", "--cpu", "conroe,-pae"], "Mode pv needs a CPU with PAE. Leave -pae out of --cpu."),
        (["processes_pv", "--append", "x" * 1024], "command line ends after 1023 bytes. Shorten it."),
        (
            ["processes_pv", "--module", __file__],
            "A paravirtual kernel has no modules. Give it one file with --initrd.",
        ),
        (
            ["processes_pv", "--shadow", "flush"],
            "Mode pv has no shadow page tables. Use --shadow flush with --mode trap",
        ),
        (["processes_pv", "--audit"], "Mode pv does not look for lies of the kernel's. Use --audit with --mode trap."),
        (
            ["processes_pv", "--translation-log", "x"],
            "Mode pv translates nothing. Use --translation-log with --mode bt.",
        ),
    ],
)
def test_what_does_not_go_with_paravirtual_kernels_is_a_mistake(
    arguments: list[str], words: str, capsys: Captured
) -> None:
    """One sentence that ends with what to do, status 2."""
    assert 2 == main(["run", *arguments])
    assert words in capsys.readouterr().err
