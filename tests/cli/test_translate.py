"""``hvemu translate`` and ``--translation-log``: units side by side, before a guest runs and while it does."""

import io
import json
import os
import struct
from pathlib import Path

import pytest

from hvemu.cli import main
from hvemu.cli.translation_log import TranslationLog
from hvemu.labs.translating import translations
from hvemu.machine.configuration import MachineConfiguration
from hvemu.modes.translation_cache import Unit
from hvemu.modes.translation_text import WIDTH, emitted, totals, translation_lines
from hvemu.modes.translator import Context, Translation, Treatment, translate
from hvemu.testing.catalog import catalog
from hvemu.vocabulary.errors import UserError

from .guests import SPIN_ON_A_PORT, flat
from .process import Talk, start

Captured = pytest.CaptureFixture[str]
ELF_GUESTS = [name for name, guest in catalog().items() if guest.format == "multiboot" and name != "long_mode"]
FLAGS = bytes.fromhex("9c 58 74fc")  # pushf / pop eax / jz pop
FLAGS_TEXT = """\
unit 1: 0x00100000, IF = 0
guest code                                       emitted code (= identical, > inline, ! callout)
00100000 9c           pushfd                     > inline: the virtual IF and IOPL differ from the
                                                 | CPU's
                                                 | 000 9c                 pushfd
                                                 | 001 87 0c 24           xchg dword [esp], ecx
                                                 | 004 8d 89 00 fe ff ff  lea ecx, [ecx - 0x200]
                                                 | 00a 87 0c 24           xchg dword [esp], ecx
00100001 58           pop eax                    = identical: does the same in ring 1
                                                 | 00d 58                 pop eax
00100002 74 fc        je 0x100000                > inline: goes to the translation of its target
                                                 | 00e 0f 84 05 00 00 00  je 0x19 ; or exit 2
                                                 | 014 f4 cc cc cc cc     hlt ; exit 1
                                                 | 019 f4 cc cc cc cc     hlt ; exit 2
exits
  1  0x00100004, IF = 0, if it does not jump
  2  0x00100000, IF = 0, if it jumps
3 instructions: 1 identical, 2 inline, 0 callout; 4 bytes became 30
"""


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody types."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)


def words(folder: Path, code: bytes) -> list[str]:
    """Words that translate 32-bit code at 1 MiB."""
    return ["translate", *flat(folder, code)[1:]]


def text_of(folder: Path, code: bytes, capsys: Captured, *options: str) -> str:
    """What ``hvemu translate`` prints about code at 1 MiB."""
    assert 0 == main([*words(folder, code), *options])
    return capsys.readouterr().out


def unit_of(code: bytes, *, shadow: bool = False, stops: frozenset[int] = frozenset()) -> Translation:
    """One unit of code at address 0."""
    context = Context(False, shadow, 0, 0x10, 0)
    return translate(lambda at, length: code[at : at + length], 0, context, lambda _: 0, stops=stops)


def test_a_64_bit_kernel_is_refused() -> None:
    """By name; its first instructions are 32-bit code, but that is not what is asked."""
    with pytest.raises(UserError, match=r"long_mode\.elf is a 64-bit kernel, which mode bt does not translate"):
        translations(MachineConfiguration(str(catalog()["long_mode"].image)))


# ---------------------------------------------------------------------- one unit


def test_a_unit_is_shown_side_by_side(tmp_path: Path, capsys: Captured) -> None:
    """Guest code, what became of it, why, the exits, and the sum."""
    assert FLAGS_TEXT == text_of(tmp_path, FLAGS, capsys)


@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize("name", [name for name in ELF_GUESTS if name != "rubbish"])
def test_every_emitted_byte_is_shown_and_no_line_is_too_long(name: str, interrupts: bool) -> None:
    """For the first units of every guest."""
    configuration = MachineConfiguration(str(catalog()[name].image))
    found = translations(configuration, "main", units=50, interrupts=interrupts)
    for unit in found.units:
        shown = b"".join(row.code for item in unit.items for row in emitted(unit, item))
        assert unit.code[: len(shown)] == shown
        assert len(unit.code) - len(shown) in (0, 5)  # the exit to the next instruction is nobody's
        assert WIDTH >= max(map(len, translation_lines(unit, name=found.symbols.place)))


@pytest.mark.parametrize(
    ("code", "treatment", "reason", "text"),
    [
        ("0f22d8 cf", "callout", "reads or writes a virtual register", "hlt ; callout"),
        ("f4", "callout", "stops the CPU", "hlt ; callout"),
        ("0f20d8 cf", "inline", "the virtual register's value", "mov eax, 0 ; CR3"),
        ("0f00c8 cf", "inline", "the virtual register's value", "mov eax, 0 ; TR"),
        ("0e cf", "inline", "the guest's selector", "push 0x10"),
        ("fb", "inline", "goes on in code for IF = 1", "hlt ; exit 1"),
        ("fa cf", "inline", "interrupts are disabled already", "nop"),
        ("cc", "identical", "traps by itself", "int3"),
        ("ffff", "inline", "raises #UD", "ud2"),
        ("89d8 cf", "identical", "does the same in ring 1", "mov eax, ebx"),
    ],
)
def test_each_treatment_is_named_with_its_reason(
    code: str, treatment: str, reason: str, text: str, tmp_path: Path, capsys: Captured
) -> None:
    """The first instruction of a unit is all that matters here."""
    _, _, first, *lines = text_of(tmp_path, bytes.fromhex(code), capsys).splitlines()
    mark = {"identical": "=", "inline": ">", "callout": "!"}[treatment]
    assert f"{mark} {treatment}: {reason}" in first
    assert text == next(line for line in lines if "| 000" in line)[74:]


def test_of_identical_instructions_in_a_row_the_first_says_why(tmp_path: Path, capsys: Captured) -> None:
    """Another one between them makes the next one say it again."""
    text = text_of(tmp_path, bytes.fromhex("40 41 0e 42 43 cf"), capsys)
    assert 2 == text.count("= identical: does the same in ring 1")
    assert 4 == sum(line[49:50] == "=" for line in text.splitlines())


def test_a_return_shows_its_hints_and_the_lookup(tmp_path: Path, capsys: Captured) -> None:
    """None is used yet, and the room for them is counted, not printed."""
    text = text_of(tmp_path, b"\xc3", capsys)
    assert ["1", "2", "3", "4"] == [line.split("hint ")[1][0] for line in text.splitlines() if "unused" in line]
    assert "eb 1e 6*cc " in text
    assert "f4 74*cc           hlt ; callout: lookup" in text
    assert "44 8b 04 24        mov r8d, dword [rsp] ;" in text
    assert 1 == text.count("  indirect, from 0x00100000: 4 hints, a table, then the hypervisor\n")


@pytest.mark.parametrize(
    ("code", "exits"),
    [
        ("e9fb000000", ["1  0x00100100, IF = 0"]),
        ("e8fb000000", ["1  0x00100100, IF = 0"]),
        ("7500", ["1  0x00100002, IF = 0, if it does not jump", "2  0x00100002, IF = 0, if it jumps"]),
        ("e2fe", ["1  0x00100002, IF = 0, if it does not jump", "2  0x00100000, IF = 0, if it jumps"]),
        ("9d", ["1  0x00100001, IF = 1, if this IF is popped", "2  0x00100001, IF = 0, if this IF is popped"]),
        ("cd80", ["1  0x00100002, IF = 0, when the handler returns"]),
        ("fb", ["1  0x00100001, IF = 1, held off for one instruction"]),
        ("90" * 12, ["1  0x0010000c, IF = 0"]),
    ],
)
def test_each_exit_says_where_it_goes_and_when(code: str, exits: list[str], tmp_path: Path, capsys: Captured) -> None:
    """With the IF that is there."""
    text = text_of(tmp_path, bytes.fromhex(code), capsys)
    assert exits == [line.strip() for line in text.split("\nexits\n")[1].splitlines()[:-1]]


@pytest.mark.parametrize(("code", "end"), [("cf", "exits: none but the callout"), ("ffff", "exits: none")])
def test_a_unit_without_exits_says_so(code: str, end: str, tmp_path: Path, capsys: Captured) -> None:
    """What goes on from here is up to the hypervisor, or to an exception."""
    assert end in text_of(tmp_path, bytes.fromhex(code), capsys).splitlines()


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        (unit_of(b"\x90" * 20), "a unit has 12 instructions at most"),
        (unit_of(b"\x90" * 20, shadow=True), "after one instruction interrupts can come"),
        (unit_of(b"\x90" * 20, stops=frozenset({2})), "the page ends here, or a breakpoint follows"),
    ],
    ids=["full", "shadow", "stop"],
)
def test_a_unit_that_goes_on_says_why_it_ends(unit: Translation, why: str) -> None:
    """Its last exit is nobody's."""
    assert any(line.endswith(f"> {why}") for line in translation_lines(unit))


def test_a_breakpoint_is_a_callout_of_its_own() -> None:
    """Before the instruction, even before one that is made of the same byte as filler."""
    unit = unit_of(b"\xcc", stops=frozenset({0}))
    rows = emitted(unit, unit.items[0])
    assert [("hlt", "callout: breakpoint"), ("int3", ""), ("hlt", "exit 1")] == [(row.text, row.note) for row in rows]
    assert [b"\xf4", b"\xcc", b"\xf4" + b"\xcc" * 4] == [row.code for row in rows]


# ---------------------------------------------------------------------- which units


def test_a_symbol_is_as_good_as_its_address(capsys: Captured) -> None:
    """In hexadecimal, in decimal, or by name; targets have names, too."""
    texts = []
    for at in ("main", "0x100010", str(0x100010)):
        assert 0 == main(["translate", "compute", "--at", at])
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("unit 1: 0x00100010 <main>, IF = 0\n")
    assert "\n  1  0x00100940 <command_line>, IF = 0\n" in texts[0]
    assert [texts[0]] * 3 == texts


def test_exits_are_followed_breadth_first(tmp_path: Path, capsys: Captured) -> None:
    """Both ways of a jump come before what follows them; no unit comes twice; the sum is that of all."""
    code = bytes.fromhex("7404 eb06 9090 eb00 90cf cf")
    # 0: je 6 / 2: jmp 10 / 4: nop nop / 6: jmp 8 / 8: nop iret / 10: iret
    text = text_of(tmp_path, code, capsys, "--units", "50")
    starts = [int(line.split(": ")[1][:10], 16) - 0x100000 for line in text.splitlines() if line.startswith("unit ")]
    assert [0, 2, 6, 10, 8] == starts
    assert text.endswith("\n5 units, 6 instructions: 1 identical, 3 inline, 2 callout; 9 bytes became 29\n")


def test_no_more_units_are_shown_than_wanted(tmp_path: Path, capsys: Captured) -> None:
    """One if nobody says, then without a sum of its own."""
    assert 1 == text_of(tmp_path, FLAGS, capsys).count("unit ")
    text = text_of(tmp_path, FLAGS, capsys, "--units", "2")
    assert ["unit 1", "unit 2"] == [line[:6] for line in text.splitlines() if line.startswith("unit ")]


def test_the_same_code_is_another_unit_for_another_if(tmp_path: Path, capsys: Captured) -> None:
    """CLI is nothing where interrupts are disabled, and a way to there where they are not."""
    cli_and_return = bytes.fromhex("fa ebfd")
    assert "interrupts are disabled already" in text_of(tmp_path, cli_and_return, capsys, "--interrupts", "0")
    text = text_of(tmp_path, cli_and_return, capsys, "--interrupts", "1", "--units", "9")
    headings = [line for line in text.splitlines() if line.startswith("unit ")]
    assert ["unit 1: 0x00100000, IF = 1", "unit 2: 0x00100001, IF = 0", "unit 3: 0x00100000, IF = 0"] == headings


def test_json_says_the_same(tmp_path: Path, capsys: Captured) -> None:
    """Addresses as numbers, bytes in hexadecimal."""
    found = json.loads(text_of(tmp_path, FLAGS, capsys, "--json"))
    (unit,) = found["units"]
    assert 0x100000 == unit["address"]
    assert ["pushfd", "pop eax", "je 0x100000"] == [row["text"] for row in unit["instructions"]]
    assert ["inline", "identical", "inline"] == [row["treatment"] for row in unit["instructions"]]
    assert {"offset": 13, "code": "58", "text": "pop eax", "note": ""} == unit["instructions"][1]["emitted"][0]
    assert [0x100004, 0x100000] == [row["target"] for row in unit["exits"]]
    assert ["if it does not jump", "if it jumps"] == [row["condition"] for row in unit["exits"]]
    expected = {"instructions": 3, "guest_bytes": 4, "emitted_bytes": 30, "identical": 1, "inline": 2, "callout": 0}
    assert expected == found["totals"]


def test_a_python_program_gets_the_translations_themselves() -> None:
    """And the image's names."""
    found = translations(MachineConfiguration(str(catalog()["compute"].image)), "main", units=3)
    assert 3 == len(found.units)
    assert found.symbols.address("main") == found.units[0].eip
    assert totals(found.units)[Treatment.CALLOUT] == 0


def test_code_of_32_bits_in_a_disk_image_can_be_named(capsys: Captured) -> None:
    """As it will run once the guest is there."""
    assert 0 == main(["translate", "realmode_boot", "--at", "0x7c00"])
    assert capsys.readouterr().out.startswith("unit 1: 0x00007c00, IF = ")


def test_the_options_of_run_that_say_what_is_loaded_work(tmp_path: Path, capsys: Captured) -> None:
    """The image lies elsewhere; memory ends earlier."""
    command = [*words(tmp_path, FLAGS), "--load-address", "0x200000"]
    assert 0 == main(command)
    assert capsys.readouterr().out.startswith("unit 1: 0x00200000, ")
    assert 2 == main([*command, "--at", "0x800000", "--memory", "4M"])
    assert "No code can be fetched at 0x00800000" in capsys.readouterr().err


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["realmode_boot"], "starts with 16-bit code, which mode bt runs untranslated. Give the address of"),
        (["hello", "--at", "0xf0000000"], "No code can be fetched at 0xf0000000: the guest has 0x1000000 bytes"),
        (["hello", "--at", "nowhere"], "has no symbol 'nowhere'. Give --at an address"),
        (["hello", "--at", "nowhere+1"], "has no symbol 'nowhere+1'. Give --at an address"),
        (["hello", "--at", "main+x"], "has no symbol 'main+x'. Give --at an address"),
        (["realmode_boot", "--at", "main"], "has no symbols. Give --at an address"),
        (["hello", "--at", "0x100000000"], "does not fit into 32 bits. Give --at"),
        (["hello", "--at", "0x"], "'0x' is not a number. Write it as"),
        (["hello", "--at", ""], "has no symbol ''. Give --at an address"),
        (["hello", "--units", "0"], "0 is not positive. Give"),
        (["hello", "--mode", "bt"], "Unrecognized arguments: --mode bt. See hvemu translate --help."),
        ([], "No image is given. Type: hvemu translate IMAGE"),
        (["/nowhere.elf"], "Cannot read the image /nowhere.elf"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(options: list[str], sentence: str, capsys: Captured) -> None:
    """Status 2, and nothing on standard output."""
    assert 2 == main(["translate", *options])
    output = capsys.readouterr()
    assert sentence in output.err
    assert ("", 1) == (output.out, output.err.count("\n"))


def test_an_instruction_that_memory_cuts_off_is_not_shown(tmp_path: Path, capsys: Captured) -> None:
    """The unit ends before it; alone it cannot be fetched."""
    code = b"\x90" * 6 + b"\xb8\x01"  # the last one has five bytes
    command = [*words(tmp_path, code), "--memory", "2M", "--load-address", "0x1ffff8"]
    assert 0 == main(command)
    text = capsys.readouterr().out
    assert "6 instructions: 6 identical" in text
    assert "the page ends here" in text
    assert 2 == main([*command, "--at", "0x1ffffe"])
    assert "No code can be fetched at 0x001ffffe" in capsys.readouterr().err


def test_help_shows_the_command_and_its_options(capsys: Captured) -> None:
    """In the list of commands and by itself."""
    main(["--help"])
    assert "\n  translate IMAGE " in capsys.readouterr().out
    assert 0 == main(["translate", "--help"])
    assert {"--at", "--units", "--interrupts", "--json", "--memory"} <= set(capsys.readouterr().out.split())


# ---------------------------------------------------------------------- --translation-log


def logged(path: Path) -> list[str]:
    """The units of a log."""
    return [unit for unit in path.read_text(encoding="utf-8").split("\n\n") if unit]


def test_the_log_has_every_unit_in_the_order_of_translation(tmp_path: Path) -> None:
    """As many as the ledger counts; the first is the entry point, in the format of ``hvemu translate``."""
    log, ledger = tmp_path / "log", tmp_path / "ledger"
    assert 33 == main(["run", "ring3", "--mode", "bt", "--translation-log", str(log), "--ledger", str(ledger)])
    units = logged(log)
    assert [f"unit {number}:" for number in range(1, len(units) + 1)] == [unit[: unit.index(":") + 1] for unit in units]
    assert len(units) == json.loads(ledger.read_text())["translation"]["translated_unit"]
    found = translations(MachineConfiguration(str(catalog()["ring3"].image)))
    assert "\n".join(translation_lines(found.units[0], "unit 1", found.symbols.place)) == units[0]
    assert "<_start>" in units[0]


def test_the_log_does_not_change_the_run(tmp_path: Path) -> None:
    """The ledger is that of a run nobody watches."""
    ledgers = []
    for options in ([], ["--translation-log", str(tmp_path / "log")]):
        assert 33 == main(["run", "interrupts", "--mode", "bt", "--ledger", str(tmp_path / "ledger"), *options])
        ledgers.append({**json.loads((tmp_path / "ledger").read_text()), "wall_s": 0})
    assert ledgers[0] == ledgers[1]


def test_what_is_translated_is_in_the_log_while_the_guest_still_runs(tmp_path: Path) -> None:
    """A guest that never ends has its units read by somebody else, then it is killed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # never at its end
    try:
        with start(*flat(tmp_path, SPIN_ON_A_PORT), "--mode", "bt", "--translation-log", str(pipe)) as process:
            text = Talk(reader).until("2 instructions: 1 identical, 1 inline, 0 callout; 4 bytes became 7\n\n")
            assert process.poll() is None
    finally:
        os.close(reader)
    assert text.startswith("unit 1: 0x00100000, IF = 0\n")


def test_a_guest_that_comes_from_real_mode_is_logged_from_its_32_bit_code_on(tmp_path: Path) -> None:
    """A boot sector that enters protected mode, takes a stack of 32 bits and passes."""
    clear = "31c0 8ed8 fa"  # xor eax, eax / mov ds, eax / cli
    switch = "0f0116407c 0f20c0 0c01 0f22c0 ea207c0800"  # lgdt [7C40h] / CR0.PE = 1 / jmp 8:7C20h
    kernel = "b810000000 8ed0 b010 e6f4 f4"  # mov eax, 10h / mov ss, eax / mov al, 10h / out 0F4h, al / hlt
    table = struct.pack("<HI2xQQQ", 23, 0x7C48, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    sector = bytes.fromhex(clear + switch).ljust(0x20, b"\0") + bytes.fromhex(kernel).ljust(0x20, b"\0") + table
    image = tmp_path / "boot.img"
    image.write_bytes(sector.ljust(510, b"\0") + b"\x55\xaa")
    log = tmp_path / "log"
    assert 33 == main(["run", str(image), "--loader", "disk", "--mode", "bt", "--translation-log", str(log)])
    first, second = logged(log)
    assert first.startswith("unit 1: 0x00007c27, IF = 0, held off for one instruction\n")
    assert second.startswith("unit 2: 0x00007c29, IF = 0\n")


@pytest.mark.parametrize("mode", ["native", "trap"])
def test_a_mode_that_does_not_translate_has_no_log(mode: str, tmp_path: Path, capsys: Captured) -> None:
    """One sentence, and no file."""
    log = tmp_path / "log"
    assert 2 == main(["run", "hello", "--mode", mode, "--translation-log", str(log)])
    expected = f"hvemu: Mode {mode} translates nothing. Use --translation-log with --mode bt.\n"
    assert expected == capsys.readouterr().err
    assert not log.exists()


def test_a_place_is_given_as_it_is_shown(capsys: Captured) -> None:
    """A name and a distance."""
    assert 0 == main(["translate", "compute", "--at", "main+0x3"])
    assert "<main+0x3>" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("name", ["nowhere/log", "", "."])
def test_a_log_that_cannot_be_written_is_a_mistake(
    name: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the guest runs."""
    monkeypatch.chdir(tmp_path)
    assert 2 == main(["run", "hello", "--mode", "bt", "--translation-log", name])
    output = capsys.readouterr()
    why = "it is a folder" if name == "." else "there is no such folder, or no right to write there"
    assert f"Cannot write '{name}': {why}. Give a path in a folder that exists." in output.err
    assert "" == output.out


def test_two_results_in_one_file_are_a_mistake(tmp_path: Path, capsys: Captured) -> None:
    """They would overwrite each other; by whatever name. A device takes both."""
    both = str(tmp_path / "both"), str(tmp_path / "." / "both")
    assert 2 == main(["run", "hello", "--mode", "bt", "--translation-log", both[0], "--ledger", both[1]])
    assert f"Two results go to '{both[0]}'. Give each a file of its own." in capsys.readouterr().err
    assert 33 == main(["run", "hello", "--mode", "bt", "--translation-log", "/dev/null", "--ledger", "/dev/null"])


@pytest.mark.parametrize("option", ["--translation-log", "--trace", "--ledger"])
@pytest.mark.parametrize("victim", ["image", "initrd", "module", "link"])
def test_a_result_is_not_written_over_what_is_booted(
    option: str, victim: str, tmp_path: Path, capsys: Captured
) -> None:
    """Neither over the image nor over what comes with it, whatever the way to it is called."""
    files = {name: tmp_path / name for name in ("image", "initrd", "module")}
    for file in files.values():
        file.write_bytes(catalog()["hello"].image.read_bytes())
    (tmp_path / "link").symlink_to(files["image"])
    inputs = ["--initrd", str(files["initrd"]), "--module", f"{files['module']} with words"]
    status = main(["run", str(files["image"]), "--mode", "bt", *inputs, option, str(tmp_path / victim)])
    assert 2 == status
    assert "is what the guest is made of. Give results a file of their own." in capsys.readouterr().err
    assert {catalog()["hello"].image.read_bytes()} == {file.read_bytes() for file in files.values()}


def test_a_log_that_no_longer_fits_is_reported_once_and_the_guest_goes_on(capfd: Captured) -> None:
    """The disk is full: the verdict stands."""
    assert 33 == main(["run", "hello", "--mode", "bt", "--translation-log", "/dev/full"])
    expected = "hvemu: the translation log /dev/full is not complete: No space left on device\n"
    assert expected == capfd.readouterr().err


class Jammed(io.StringIO):
    """A stream that fails at its first write only."""

    calls = 0

    def write(self, text: str) -> int:
        """Count, and fail."""
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("paper jam")
        return super().write(text)


def test_a_log_that_failed_once_is_left_alone() -> None:
    """Nothing comes out of it into the engine, and the stream is not asked again: a log has no gaps."""
    failures, stream = list[str](), Jammed()
    log = TranslationLog(stream, "on paper", failures)
    for _ in range(3):
        log(Unit(unit_of(b"\xc3"), 0, 0))
    assert (1, "") == (stream.calls, stream.getvalue())
    assert ["the translation log on paper is not complete: RuntimeError: paper jam"] == failures
