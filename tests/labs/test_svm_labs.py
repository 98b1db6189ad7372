"""``hvemu lab vmcb`` and ``hvemu lab walk``: what they show is what the machine has."""

import json

import pytest

from hvemu.cli import vmcb as vmcb_command
from hvemu.cli import walk as walk_command
from hvemu.labs.vmcb import show
from hvemu.labs.walk import two_dimensional
from hvemu.machine.builder import build
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.svm import EXIT_CODES, FIELDS
from tests.memory.page_table_scripts import FORMATS, Script, play
from tests.memory.paging_guest import shared_guest


def fields(lines):
    """Values by name."""
    return {name: value for name, value, _ in lines}


@pytest.mark.parametrize("mmu", ["nested", "nested-2", "shadow"])
@pytest.mark.parametrize("number", [1, 5])
def test_the_block_is_shown_as_it_was_entered_and_as_it_was_left(mmu, number):
    """CPUID: the guest stands at it after the exit, and RAX is the leaf; nothing but the guest's own work changed."""
    shown = show(guest_configuration(catalog()["cpuid"], mode="svm", mmu=mmu), EXIT_CODES["cpuid"], number)
    before, after = fields(shown.before), fields(shown.after)
    assert set(FIELDS) < set(after)
    assert (f"{0x72:016x}", f"{shown.eip:016x}") == (after["EXITCODE"], after["RIP"])
    assert before["RIP"] != after["RIP"]
    changed = {name for name in after if before[name] != after[name]}
    assert "RIP" in changed
    assert not changed & {"N_CR3", "NP_ENABLE", "MSRPM_BASE_PA", "GUEST_ASID", "INTERCEPT_MISC1", "CR4", "EFER", "TR"}
    assert "CPUID" in shown.intercepts


def test_an_exit_that_is_asked_for_is_shown_too(capsys):
    """It is intercepted for the occasion."""
    assert 0 == vmcb_command.main(["paging", "--exit", "cr3_write", "--changed"])
    text = capsys.readouterr().out
    assert "#VMEXIT CR3_WRITE (0x13), number 1" in text
    assert "CR3_WRITE" in text.split("asked for:")[1]
    assert "*  578 RIP" in text
    assert "N_CR3" not in text


def test_a_page_fault_of_nested_paging_has_its_address(capsys):
    """EXITINFO1 is the error code, EXITINFO2 the guest-physical address."""
    assert 0 == vmcb_command.main(["hello", "--exit", "npf", "--json"])
    data = json.loads(capsys.readouterr().out)
    values = {field["field"]: int(field["after"].split()[0], 16) for field in data["fields"]}
    assert ("NPF", 0x400) == (data["exit"], values["EXITCODE"])
    assert values["EXITINFO1"] & 0x14 == 0x14
    assert values["EXITINFO2"] == data["eip"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--exit", "cpuidd"], "There is no exit 'cpuidd'. Names are such as cpuid"),
        (["hello", "--exit", "cpuid"], "The guest had no exit 'cpuid'; it had tr_write"),
        (["--number", "0"], "is not positive"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, sentence):
    """In a sentence."""
    with pytest.raises(UserError) as error:
        vmcb_command.main(arguments)
    assert sentence in str(error.value)


def test_the_debug_registers_of_a_vmcb_are_a_cpus_after_reset(capsys):
    """The guest's own are the hypervisor's to keep, as every MOV DR exits."""
    assert 0 == vmcb_command.main([])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {row[1]: row[2] for row in rows if len(row) > 2}
    assert ("00000000ffff0ff0", "0000000000000400") == (shown["DR6"], shown["DR7"])


# ---------------------------------------------------------------------- walks


def check(machine, linear):
    """The formula, and that every step leads to the next; returns the walk."""
    found = two_dimensional(machine, linear)
    guest, nested = found.guest_levels, found.nested_levels
    assert (guest + 1) * (nested + 1) - 1 == len(found.references)
    machine_view = machine.memory.machine.view
    assert [one.whose for one in found.references] == (["nested"] * nested + ["guest"]) * guest + ["nested"] * nested
    for one, then in zip(found.references, [*found.references[1:], None], strict=True):
        assert one.value & 0xFFFF_FFFF == int.from_bytes(machine_view[one.address : one.address + 4], "little")
        if one.whose == "nested":
            target = then.address if then is not None else found.machine
            assert one.value & 0xF_FFFF_FFFF_F000 == target & ~0xFFF
    return found


@pytest.mark.parametrize(("mmu", "count"), [("nested", 24), ("nested-2", 14)])
def test_four_levels_over_four_are_24_references(mmu, count):
    """Over two they are 14."""
    machine = build(guest_configuration(catalog()["long_mode"], mode="svm", mmu=mmu, cpu="opteron-g3"))
    machine.run(5_000_000)
    assert count == len(check(machine, 0x1234_5678_9000).references)


@pytest.mark.parametrize(("mmu", "count"), [("nested", 14), ("nested-2", 8)])
def test_two_levels_are_14_references_or_8(mmu, count):
    """Of a guest of 32 bits."""
    machine = build(guest_configuration(catalog()["paging"], mode="svm", mmu=mmu))
    machine.run(1_000_000)
    assert count == len(check(machine, machine.registers().instruction_pointer).references)


def test_three_levels_over_four_are_19_references():
    """PAE."""
    guest = shared_guest("nested")
    script = Script(FORMATS[2])
    script.access("read", 2 * (4 << 20))
    play(guest, script)
    assert 19 == len(check(guest.machine, guest.machine.registers().instruction_pointer).references)


def test_the_command_shows_the_count(capsys):
    """Without a guest it takes one in long mode."""
    assert 0 == walk_command.main([])
    assert "24 references = (4+1)(4+1)-1" in capsys.readouterr().out
    assert 0 == walk_command.main(["paging", "--json", "--position", "100000"])
    assert json.loads(capsys.readouterr().out)["nested_levels"] == 4
    with pytest.raises(UserError, match="maps nothing at 0x5"):
        walk_command.main(["paging", "--at", "0x50000000"])
    with pytest.raises(UserError, match="32-bit code has no address 0x100000000"):
        walk_command.main(["hello", "--at", "0x100000000"])


@pytest.mark.parametrize("mmu", ["nested", "nested-2"])
@pytest.mark.parametrize("address", [0xFEE0_0000, 0x200_0000, 0xFFFF_F000])
def test_a_walk_to_a_device_ends_at_an_absent_entry(mmu, address, capsys):
    """And to where nothing is; it is how the hypervisor hears of it."""
    assert 0 == walk_command.main(["hello", "--mmu", mmu, "--at", hex(address)])
    shown = capsys.readouterr().out
    assert f"linear {address:#x} leads to guest-physical {address:#x}, where there is no RAM" in shown
    rows = [line.split() for line in shown.splitlines() if " nested " in line and "entry" not in line.split()[0]]
    assert "0x0" == [row for row in rows if row[0].isdecimal()][-1][4]
