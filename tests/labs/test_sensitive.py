"""``hvemu lab sensitive``: the guest natively against the manual, the comparison, and what mode ``trap`` must leak."""

import json

import pytest

from hvemu.cli import main
from hvemu.labs.sensitive import (
    RINGS,
    TEXTS,
    Observation,
    Row,
    Trap,
    as_data,
    observe,
    seen,
    table_lines,
    traps_between_marks,
    verdict,
)
from hvemu.machine.configuration import MODES
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.trace.events import Assisted, Exited
from hvemu.vocabulary.exits import AssistKind, ExitKind

LEAKY = ("sgdt", "sidt", "sldt", "smsw", "pushf", "popf", "mov", "push", "str", "lar", "lsl")
TABLES = {"sgdt": "limit=0x9f base=0x400000", "sidt": "limit=0x7ff base=0x401000", "sldt": "selector=0x70"}
SELECTORS = {"str": "selector=0x78", "smsw": "protected=1 numeric_error=0 paging=0 wp=0", "pushf": "if=0 iopl=0"}
THROUGH = "fs.word=0x5ee1a6e5 ss.word=0x5ee1a6e5"
REFUSED = "kernel.fault=13 kernel.code="
EXPECTED = {
    "kernel": {
        **TABLES,
        **SELECTORS,
        "popf": "interrupted=1",
        "lar": "kernel.zf=1 kernel.rights=0xc09b00 user.zf=1 user.rights=0xc0fb00 tss.zf=1 tss.rights=0x8b00"
        " ldt.zf=1 ldt.rights=0x8200",
        "lsl": "kernel.zf=1 kernel.limit=0xffffffff user.zf=1 user.limit=0xffffffff tss.zf=1 tss.limit=0x2068"
        " ldt.zf=1 ldt.limit=0x7",
        "verr": "kernel_code.zf=1 kernel_data.zf=1 user_code.zf=1 user_data.zf=1 tss.zf=0",
        "verw": "kernel_code.zf=0 kernel_data.zf=1 user_code.zf=0 user_data.zf=1 tss.zf=0",
        "pop": THROUGH,
        "push": "cs=0x8 ss=0x10 ds=0x10",
        "call": "arrived=1 cs=0x30 pushed_cs=0x8 returned=1",
        "jmp": "arrived=1 cs=0x30",
        "int": "arrived=1 cs=0x8 pushed_cs=0x8 returned=1",
        "ret": "arrived=1 cs=0x30",
        "mov": f"cs=0x8 ss=0x10 ds=0x10 {THROUGH}",
    },
    "user": {
        **TABLES,
        **SELECTORS,
        "popf": "interrupted=0",
        "lar": "kernel.zf=0 user.zf=1 user.rights=0xc0fb00 tss.zf=0 ldt.zf=0",
        "lsl": "kernel.zf=0 user.zf=1 user.limit=0xffffffff tss.zf=0 ldt.zf=0",
        "verr": "kernel_code.zf=0 kernel_data.zf=0 user_code.zf=1 user_data.zf=1 tss.zf=0",
        "verw": "kernel_code.zf=0 kernel_data.zf=0 user_code.zf=0 user_data.zf=1 tss.zf=0",
        "pop": f"{THROUGH} {REFUSED}0x40",
        "push": "cs=0x1b ss=0x23 ds=0x23",
        "call": "arrived=1 cs=0x3b pushed_cs=0x1b returned=1"
        f" gate.arrived=1 gate.cs=0x8 gate.pushed_cs=0x1b gate.returned=1 {REFUSED}0x8",
        "jmp": f"arrived=1 cs=0x3b {REFUSED}0x8",
        "int": f"arrived=1 cs=0x8 pushed_cs=0x1b returned=1 {REFUSED}0x48a",
        "ret": f"arrived=1 cs=0x3b {REFUSED}0x8",
        "mov": f"cs=0x1b ss=0x23 ds=0x23 {THROUGH} {REFUSED}0x40",
    },
}
"""What the SDM says: descriptors and tables as guests/15_sensitive/scene.c loads them, IF clear in both rings."""


def saw(text, **changes):
    """An observation written as on the guest's console."""
    return Observation(dict(word.split("=") for word in text.split()), **changes)


def judge(mnemonic, other, ring="kernel", mode="trap"):
    """The verdict against what is right."""
    return verdict(mode, mnemonic, ring, saw(EXPECTED[ring][mnemonic]), other)


def test_there_are_eighteen_sensitive_instructions_in_two_rings():
    """Every one has its texts and its expectation."""
    assert 18 == len(TEXTS)
    for ring in RINGS:
        assert set(TEXTS) == set(EXPECTED[ring])


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("mnemonic", TEXTS)
def test_natively_the_guest_sees_what_the_manual_says(mnemonic, ring):
    """And nothing traps, because there is no hypervisor."""
    observation = observe(mnemonic, ring, "native")
    assert ("", EXPECTED[ring][mnemonic].split()) == (
        observation.failed,
        [f"{name}={value}" for name, value in observation.saw.items()],
    )
    assert () == observation.traps
    assert observation.executed >= 1


def test_the_guest_refuses_an_instruction_that_it_does_not_know():
    """With status 35 and a line that says what it knows."""
    result = run_guest(guest_configuration(catalog()["sensitive"], append="sgdt attic"))
    assert 35 == result.status
    assert "FAIL the command line names an instruction and a ring" in result.console
    assert "popf user" in result.console


def test_what_the_guest_saw_is_in_the_lines_that_say_so():
    """Other lines are for people."""
    assert {"limit": "0x9f", "gate.cs": "0x8"} == seen("sgdt\nSAW limit=0x9f\nSAW gate.cs=0x8\nPASS it SAW x=1\n")


def out(eip, value):
    """A write to the port of the marks."""
    return Exited(0, ExitKind.IO_OUT, eip, 0x80, 1, value)


def other_exit(eip, detail):
    """An exit of some other kind."""
    return Exited(0, ExitKind.UNCLAIMED_IO, eip, detail, 1, 0)


def test_an_exit_between_the_marks_is_the_instructions():
    """The opening mark is two bytes long; an exit may be at the instruction or behind it."""
    trap = Trap("unclaimed_io", 13)
    at = [out(100, 0xA1), other_exit(102, 13), out(107, 0xA2)]
    behind = [out(200, 0xA1), other_exit(204, 13), out(300, 0xA2)]
    assert [trap, trap, None] == traps_between_marks([*at, *behind, out(400, 0xA1), out(405, 0xA2)])


@pytest.mark.parametrize(
    "event",
    [
        other_exit(107, 13),
        other_exit(5000, 14),
        Assisted(0, AssistKind.EXCEPTION, 102, 13, 0),
    ],
    ids=["the second mark traps", "the guest's fault handler traps", "hardware"],
)
def test_what_is_not_the_instructions_is_not_counted(event):
    """Nor what happens outside of the marks."""
    events = [other_exit(90, 1), out(100, 0xA1), event, out(107, 0xA2), other_exit(110, 1)]
    assert [None] == traps_between_marks(events)


@pytest.mark.parametrize(
    ("mnemonic", "other", "expected"),
    [
        ("sgdt", "limit=0xffff base=0x400000", "leaks the VMM's GDT limit 0xffff"),
        ("sgdt", "limit=0xf base=0x0", "leaks the VMM's GDT limit 0xf, the VMM's GDT base 0x0"),
        ("smsw", "protected=1 paging=1 wp=0", "leaks the physical CR0.PG (1)"),
        ("pushf", "if=1 iopl=0", "leaks the physical IF (1)"),
        ("popf", "interrupted=0", "leaks that IF is the VMM's: the change is dropped without a word"),
        ("push", "cs=0x9 ss=0x10 ds=0x10", "leaks ring 1 in the RPL of CS (0x9)"),
        ("verw", "kernel_code.zf=1 kernel_data.zf=1 user_code.zf=0 user_data.zf=1 tss.zf=0",
         "leaks kernel_code.zf=1 instead of 0"),
        ("jmp", "fault=13 code=0x8", "leaks a #GP"),
        ("jmp", "", "leaks: it saw nothing"),
    ],
)  # fmt: skip
def test_a_difference_is_a_leak_in_words(mnemonic, other, expected):
    """The words for what differs, or the plain values where there are none."""
    assert expected == judge(mnemonic, saw(other))


def test_what_zf_hides_is_not_a_difference_of_its_own():
    """Without a descriptor there are no rights."""
    text = EXPECTED["kernel"]["lar"].replace("tss.zf=1 tss.rights=0x8b00", "tss.zf=0")
    assert "leaks that the VMM's GDT has no such TSS" == judge("lar", saw(text))


def test_a_fault_that_should_be_there_is_missed():
    """A program that gets through the kernel's call gate, or into its segment."""
    text = EXPECTED["user"]["ret"].replace(f"{REFUSED}0x8", "kernel.arrived=1 kernel.cs=0x8")
    assert "leaks no #GP at kernel" == judge("ret", saw(text), ring="user")


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("mnemonic", TEXTS)
def test_what_is_equal_is_equal_because_of_something(mnemonic, ring):
    """It trapped, or there is a reason why it need not; outside of trap mode no reason is wanted."""
    same = EXPECTED[ring][mnemonic]
    trapped = saw(same, traps=(Trap("reflected_exception", 13),))
    assert judge(mnemonic, trapped, ring).startswith("traps here, because ")
    assert judge(mnemonic, saw(same), ring).startswith("equivalent, no trap: ")
    assert "equivalent" == judge(mnemonic, trapped, ring, mode="svm") == judge(mnemonic, saw(same), ring, mode="bt")


def test_a_leak_is_one_even_where_the_instruction_trapped():
    """MOV to a segment register may trap, and MOV from one leak."""
    text = EXPECTED["kernel"]["mov"].replace("cs=0x8", "cs=0x9")
    assert "leaks ring 1 in the RPL of CS (0x9)" == judge("mov", saw(text, traps=(Trap("reflected_exception", 13),)))


def test_a_guest_that_a_leak_killed_says_so():
    """Whatever it saw before."""
    assert "fails: triple fault" == judge("sgdt", saw("limit=0x9f base=0x400000", failed="triple fault"))


def fake_rows():
    """A table with everything in it: leaks, traps, reasons, a failure."""
    rows = []
    for ring in RINGS:
        for number, mnemonic in enumerate(TEXTS):
            native = saw(EXPECTED[ring][mnemonic], executed=5)
            trap = [
                saw(EXPECTED[ring][mnemonic].replace("=0x", "=0xffffff"), executed=5),
                saw(
                    EXPECTED[ring][mnemonic],
                    executed=5,
                    traps=(Trap("reflected_exception", 13), Trap("reflected_exception", 13)),
                ),
                saw(EXPECTED[ring][mnemonic]),
                saw("", failed="The guest ended at EIP 0x100000, instruction 'ud2': triple fault: #UD, #NP, #GP."),
            ][number % 4]
            rows.append(Row(mnemonic, ring, {"native": native, "trap": trap}))
    return rows


def test_the_table_fits_a_projector():
    """100 columns, the kernel's instructions first, each with what the guest saw, the trap and the verdict."""
    lines = table_lines(fake_rows())
    assert max(len(line) for line in lines) <= 100
    titles = [number for number, line in enumerate(lines) if line.startswith("In ")]
    assert 2 == len(titles)
    for title, end in zip(titles, (titles[1], len(lines)), strict=True):
        assert list(TEXTS) == [line.split()[0] for line in lines[title + 4 : end] if line[:1].strip()]
    text = "\n".join(lines)
    for part in (
        "leaks the VMM's GDT",
        "as native",
        "reflected_exception 13 2 of",
        "no trap",
        "fails: The guest ended",
    ):
        assert part in text


def test_the_data_is_the_table():
    """Everything survives JSON, the verdicts included."""
    rows = fake_rows()
    data = json.loads(json.dumps(as_data(rows)))
    assert 36 == len(data)
    assert data[1]["modes"]["trap"]["traps"] == 2 * [{"kind": "reflected_exception", "detail": 13}]
    for row, values in zip(rows, data, strict=True):
        assert (row.mnemonic, row.ring) == (values["mnemonic"], values["ring"])
        assert row.verdicts()["trap"] == values["modes"]["trap"]["verdict"]
        assert row.observations["native"].saw == values["modes"]["native"]["saw"]
        assert "" == values["modes"]["native"]["verdict"]


def test_the_lab_prints_a_table_and_writes_it_down(tmp_path, capsys):
    """Status 0, in every mode that there is."""
    path = tmp_path / "lab.json"
    assert 0 == main(["lab", "sensitive", "--modes", "native", "--json", str(path)])
    output = capsys.readouterr().out
    assert "sgdt    native  limit=0x9f base=0x400000" in output
    data = json.loads(path.read_text())
    assert (["native"], 36) == (data["modes"], len(data["rows"]))


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("mnemonic", TEXTS)
def test_under_svm_nothing_leaks_and_nothing_traps(mnemonic, ring):
    """In the kernel and in the program: that is what the CPU was changed for."""
    row = Row(mnemonic, ring, {mode: observe(mnemonic, ring, mode) for mode in ("native", "svm")})
    assert "equivalent" == row.verdicts()["svm"]
    assert () == row.observations["svm"].traps
    assert row.observations["native"].saw == row.observations["svm"].saw != {}


def test_the_labs_are_listed(capsys):
    """And each says how it is used."""
    assert 2 == main(["lab"])
    assert "\n  sensitive " in capsys.readouterr().out
    assert 0 == main(["lab", "sensitive", "--help"])
    assert capsys.readouterr().out.startswith("usage: hvemu lab sensitive")


@pytest.fixture(params=["trap"])
def deprivileging(request):
    """A mode that runs the guest's kernel in ring 1 and lets it execute what does not trap."""
    if request.param not in MODES:
        pytest.skip(f"this hvemu has no mode {request.param}")
    return request.param


@pytest.mark.parametrize("mnemonic", LEAKY)
def test_deprivileged_these_leak_in_the_kernel(deprivileging, mnemonic):
    """Popek and Goldberg's condition does not hold for them."""
    native, other = (observe(mnemonic, "kernel", mode) for mode in ("native", deprivileging))
    assert verdict(deprivileging, mnemonic, "kernel", native, other).startswith("leaks ")


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("mnemonic", TEXTS)
def test_deprivileged_every_run_ends_as_the_guest_wants(deprivileging, mnemonic, ring):
    """A leak misleads the guest; it does not kill it."""
    assert "" == observe(mnemonic, ring, deprivileging).failed


def test_deprivileged_the_red_pill_works(deprivileging):
    """The guest knows, and the verdict is PASS all the same."""
    result = run_guest(guest_configuration(catalog()["red_pill"], mode=deprivileging))
    assert 33 == result.status
    assert result.console.splitlines()[-1].startswith("deprivileged: ")


@pytest.mark.parametrize("mnemonic", TEXTS)
def test_binary_translation_closes_every_hole_of_the_kernel(mnemonic):
    """The kernel sees what the manual says, whatever the instruction."""
    native, translated = observe(mnemonic, "kernel", "native"), observe(mnemonic, "kernel", "bt")
    assert native.saw == translated.saw
    assert "equivalent" == verdict("bt", mnemonic, "kernel", native, translated)


@pytest.mark.parametrize("mnemonic", ["sgdt", "sidt", "sldt", "str", "smsw", "pushf"])
def test_user_code_runs_directly_and_sees_the_hypervisor_even_so(mnemonic):
    """The red pill: mode bt translates kernels only."""
    native, translated = observe(mnemonic, "user", "native"), observe(mnemonic, "user", "bt")
    assert verdict("bt", mnemonic, "user", native, translated).startswith("leaks ")
