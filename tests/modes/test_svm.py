"""Mode svm: what the VMCB holds, what exits, who delivers interrupts, and how guest frames are backed."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import CS, FLAT_CODE, FLAT_DATA, Segment, TableRegister, VirtualCpu
from hvemu.machine.builder import build
from hvemu.machine.configuration import SVM_CPU_MODELS, MachineConfiguration
from hvemu.memory.walk import PTE_NX
from hvemu.modes.svm import SvmMode
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.addresses import PAGE_SHIFT
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.paging import CR0_ET, CR0_PE
from hvemu.vocabulary.svm import EXIT_CODES, FIELDS, INTERCEPTS, exit_code, intercept_of
from tests.modes.test_native import flat
from tests.techniques import SVM
from tests.techniques import settings as settings_of

CPU = SVM_CPU_MODELS[0]
techniques = pytest.mark.parametrize("technique", SVM)
QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def machine_of(technique="svm", **changes):
    """One with a guest that has not begun."""
    return build(guest_configuration(catalog()["hello"], **settings_of(technique), **changes))


# ---------------------------------------------------------------------- the control block


def words(bits):
    """Numbers of so many bits, round ones among them."""
    return st.one_of(st.integers(0, (1 << bits) - 1), st.sampled_from((0, 1, 1 << bits - 1, (1 << bits) - 1)))


segments = st.builds(
    lambda selector, base, limit, data: Segment(selector & ~3, base, limit, FLAT_DATA.attributes if data else 0x009300),
    words(16), words(32), words(32), st.booleans(),
)  # fmt: skip
states = st.builds(
    VirtualCpu,
    gprs=st.lists(words(32), min_size=8, max_size=8).map(lambda low: low + [0] * 8),
    instruction_pointer=words(32),
    flags=st.sampled_from((2, 0x202, 0xA02, 0x10002, 0x3202, 0x40ED7)),
    segments=st.lists(segments, min_size=6, max_size=6).map(lambda found: [found[0], FLAT_CODE, FLAT_DATA, *found[3:]]),
    gdtr=st.builds(TableRegister, words(32), words(16)),
    idtr=st.builds(TableRegister, words(32), words(16)),
    ldtr=st.builds(lambda selector, base: Segment(selector, base, 0xFFFF, 0x8200), words(16), words(32)),
    tr=st.builds(lambda selector, base: Segment(selector, base, 0x67, 0x8900), words(16), words(32)),
    cr0=st.sampled_from((CR0_PE | CR0_ET, CR0_PE | CR0_ET | 0x8, CR0_PE | CR0_ET | 0x1_0020)),
    cr2=words(32),
    cr3=words(32).map(lambda value: value & ~0xFFF),
    cr4=st.sampled_from((0, 0x10, 0x20, 0x600)),
    interrupt_shadow=st.booleans(),
)


@cache
def shared(technique):
    """A machine that tests use one after the other."""
    return machine_of(technique)


@techniques
@QUICK
@given(cpu=states)
def test_a_guest_is_as_vmrun_was_told_to_enter_it(technique, cpu):
    """enter(leave(x)) is x, through the VMCB and the engine's own VMRUN."""
    mode = shared(technique).mode
    cpu.msrs = mode.leave().msrs
    mode.enter(cpu)
    once = mode.leave()
    mode.enter(once)
    again = mode.leave()
    for field in ("gprs", "instruction_pointer", "flags", "gdtr", "idtr", "ldtr", "tr", "cr0", "cr2", "cr3", "cr4",
                  "segments", "interrupt_shadow"):  # fmt: skip
        assert (field, getattr(cpu, field)) == (field, getattr(once, field))
    assert vars(once) == vars(again)


@techniques
def test_the_control_block_holds_what_the_guest_has(technique):
    """Before an exit is looked at, the half of #VMEXIT that the engine leaves out has been done."""
    machine = machine_of(technique)
    machine.run(20_000)
    mode, cpu = machine.mode, machine.registers()
    mode.store_state()
    vmcb = mode.vmcb
    assert (cpu.instruction_pointer, cpu.gprs[4], cpu.gprs[0]) == tuple(map(vmcb.read, ("RIP", "RSP", "RAX")))
    assert (cpu.flags, 0) == (vmcb.read("RFLAGS"), vmcb.read("CPL"))
    assert cpu.segments[CS] == vmcb.segment("CS")
    assert cpu.gdtr.base == vmcb.segment("GDTR").base
    assert vmcb.read("EFER") & 1 << 12
    assert (technique != "svm/shadow") == bool(vmcb.read("NP_ENABLE"))
    assert vmcb.read("GUEST_ASID")


def test_fields_lie_where_the_manual_has_them():
    """APM vol. 2, tables B-1 and B-2; nothing overlaps."""
    assert (0x70, 0x90, 0xB0, 0x578, 0x640) == tuple(
        FIELDS[name].offset for name in ("EXITCODE", "NP_ENABLE", "N_CR3", "RIP", "CR2")
    )
    taken = sorted((field.offset, field.offset + field.size) for field in FIELDS.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))


@pytest.mark.parametrize(("name", "field", "bit"), [
    ("cr3_write", "INTERCEPT_CR_WRITE", 3), ("pf", "INTERCEPT_EXCEPTIONS", 14), ("cpuid", "INTERCEPT_MISC1", 18),
    ("vmmcall", "INTERCEPT_MISC2", 1), ("dr7_read", "INTERCEPT_DR_READ", 7),
])  # fmt: skip
def test_an_exit_is_asked_for_by_its_bit(name, field, bit):
    """As the APM numbers them."""
    assert (field, bit) == intercept_of(EXIT_CODES[name])


# ---------------------------------------------------------------------- what exits


def exits(tmp_path, code, *intercept, **changes):
    """By the name of their exit codes."""
    machine = flat(tmp_path, code + " f4", mode="svm", intercept=intercept, **changes)
    machine.run()
    return machine, machine.statistics()["exits_by_detail"].get("intercept", {})


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("0fa2", "CPUID"), ("b980000000 b9800000c0 0f32", "MSR"), ("0f20c0 0f22c0", "CR0_WRITE"), ("0f06", "CR0_WRITE"),
        ("0f20e0 0f22e0", "CR4_WRITE"), ("0f21f8", "DR7_READ"), ("0f23c0", "DR0_WRITE"),
    ],
)  # fmt: skip
def test_what_the_guest_would_otherwise_see_or_change_exits_once(tmp_path, code, name):
    """Whatever else is asked for."""
    assert {name: 1} == exits(tmp_path, code)[1]


@pytest.mark.parametrize("code", ["fb fa", "9c 9d", "0f31", "0f20d8 0f22d8", "0f0138", "90"])
def test_what_is_the_guests_own_does_not_exit(tmp_path, code):
    """Interrupt flag, flags, clock, CR3, INVLPG."""
    assert {} == exits(tmp_path, code)[1]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("0f31", "rdtsc"), ("0f22d8", "cr3_write"), ("0f20d8", "cr3_read"), ("0f20c0", "cr0_read"),
        ("0f0138", "invlpg"), ("9c 59", "pushf"), ("6a02 9d", "popf"), ("0f09", "wbinvd"), ("0f0100", "gdtr_read"),
        ("0f0108", "idtr_read"), ("f390", "pause"), ("0f00c1", "ldtr_read"), ("0f00c9", "tr_read"),
        ("31c0 0f00d0", "ldtr_write"), ("0f20e1", "cr4_read"), ("0f011500301000", "gdtr_write"),
        ("0f011d00301000", "idtr_write"),
    ],
)  # fmt: skip
def test_anything_can_be_made_to_exit(tmp_path, code, name):
    """Once, and the guest goes on as if it had not."""
    code = "bc00002000 b800003000 " + code  # a stack, and an address
    machine, counts = exits(tmp_path, code, name)
    plain, nothing = exits(tmp_path, code)
    assert ({name.upper(): 1}, {}) == (counts, nothing)
    one, other = vars(machine.registers()), vars(plain.registers())
    assert one == other
    assert machine.mode.position() == plain.mode.position()


def test_an_exit_may_be_called_as_the_manual_does():
    """By its name with the prefix, an exception by its mnemonic or its number."""
    assert (0x72, 0x4E, 0x4E, 0x4E) == tuple(map(exit_code, ("VMEXIT_CPUID", "pf", "#PF", "excp14")))


def test_docs_name_every_exit_that_can_be_asked_for():
    """docs/svm.md, with the debug registers in short."""
    text = (Path(__file__).parents[2] / "docs" / "svm.md").read_text(encoding="utf-8").replace("...", " ")
    missing = {name for name in INTERCEPTS if f" {name} " not in " ".join(text.split())}
    assert {name[:2] for name in missing} <= {"dr"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("npf", "Nested page faults exit unasked"), ("rdtscp", "The engine has no exit 'rdtscp'"),
        ("ioio", "Ports exit in every mode"), ("cpuidd", "Names are such as cpuid"), ("", "There is no exit ''"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(name, sentence):
    """With what there is instead."""
    with pytest.raises(UserError) as error:
        MachineConfiguration(image="kernel.elf", mode="svm", intercept=(name,))
    assert sentence in str(error.value)


@pytest.mark.parametrize("code", ["0f01d8", "0f01da", "0f01db", "0f01d9", "0f01dc", "0f01dd", "0f01de", "0f01df"])
def test_the_hypervisors_instructions_do_not_exist_in_the_guest(tmp_path, code):
    """VMRUN, VMLOAD, VMSAVE, VMMCALL, STGI, CLGI, SKINIT and INVLPGA: #UD, which nobody here takes."""
    machine, _ = exits(tmp_path, "b800000000 " + code)
    assert "triple fault: #UD" in machine.stop.reason


NAMES = sorted(INTERCEPTS)
TRACED = ("ring3", "faults", "preempt", "paging", "interrupts", "long_mode")


@cache
def ended(name, intercept=(), technique="svm"):
    """Everything a guest can have done."""
    guest = catalog()[name]
    result = run_guest(guest_configuration(guest, **settings_of(technique), intercept=intercept))
    return result.console, result.status, result.machine.mode.position(), vars(result.machine.registers())


@pytest.mark.parametrize("name", TRACED)
@settings(QUICK, max_examples=6)
@given(intercept=st.sets(st.sampled_from(NAMES), max_size=40))
def test_the_guest_does_not_notice_what_exits(name, intercept):
    """Any choice of intercepts: the same console, verdict, position and registers."""
    assert ended(name) == ended(name, tuple(sorted(intercept)))


@pytest.mark.parametrize("name", TRACED)
def test_the_guest_does_not_notice_that_everything_exits(name):
    """All at once."""
    assert ended(name) == ended(name, tuple(NAMES))


# ---------------------------------------------------------------------- events


@techniques
@pytest.mark.parametrize("name", ["preempt", "interrupts", "timers", "processes"])
def test_interrupts_are_delivered_by_the_cpu_itself(name, technique, monkeypatch):
    """By EVENTINJ, one VMRUN each; the common delivery would have come to the same."""
    found = []
    for injected in (True, False):
        count = [0]

        def counted(self, vector=None, original=SvmMode._enter_guest, count=count):
            delivered = original(self, vector)
            count[0] += delivered
            return delivered

        with monkeypatch.context() as patch:
            patch.setattr(SvmMode, "_enter_guest", counted)
            if not injected:
                patch.setattr(SvmMode, "_may_inject", lambda self, vector: False)
            result = run_guest(guest_configuration(catalog()[name], **settings_of(technique)))
        interrupts = sum(result.statistics["assists_by_detail"].get("external_interrupt", {}).values())
        assert interrupts
        assert count[0] == (interrupts if injected else 0)
        found.append((result.console, result.status, result.machine.mode.position(), vars(result.machine.registers())))
    assert found[0] == found[1]


# ---------------------------------------------------------------------- nested paging


@pytest.mark.parametrize("technique", ["svm", "svm/nested-2"])
def test_frames_are_backed_when_they_are_used_and_never_where_they_seem_to_be(technique):
    """One fault a frame; no entry is an identity, and none forbids execution."""
    result = run_guest(guest_configuration(catalog()["paging"], **settings_of(technique)))
    mode, memory = result.machine.mode, result.machine.memory
    nested = mode.nested
    fills = result.statistics["paging"]["nested_fill"]
    assert fills == len(nested._leaves) < memory.size >> PAGE_SHIFT
    assert fills == result.statistics["exits"]["nested_fault"]
    for frame in nested._leaves:
        steps = nested.walk(frame << PAGE_SHIFT)
        assert nested.levels == len(steps)
        assert memory.machine_frame(frame) << PAGE_SHIFT == steps[-1].entry & 0x000F_FFFF_FFFF_F000
        assert memory.machine_frame(frame) != frame
        assert not any(step.entry & PTE_NX for step in steps)


@pytest.mark.parametrize("technique", SVM)
def test_stores_are_noted_by_write_protection(tmp_path, technique):
    """All frames at first, then those that were written, by the guest or by a device."""
    path = tmp_path / "stores.bin"
    # again: mov [200000h],eax / mov eax,[201000h] / jmp again
    path.write_bytes(bytes.fromhex("a300002000 a100102000 ebf4".replace(" ", "")))
    machine = build(
        MachineConfiguration(image=str(path), loader="flat", memory=4 << 20, serial="none", **settings_of(technique))
    )
    machine.run(1_000)
    assert set(range(1024)) == machine.mode.dirty_pages()
    machine.run(2_000)
    machine.memory.write(0x30_0000, b"device")
    assert {0x200, 0x300} == machine.mode.dirty_pages()
    machine.run(3_000)
    assert {0x200} == machine.mode.dirty_pages()
    assert set() == machine.mode.dirty_pages()


def test_devices_everywhere_do_not_exhaust_the_hypervisor():
    """Each needs tables of its own; when there is no room for more, all of them are dropped and come again."""
    from hvemu.memory.frame_pool import FramePool
    from hvemu.memory.guest_memory import GuestPhysicalMemory
    from hvemu.memory.machine_memory import MachineMemory
    from hvemu.memory.nested import NestedPaging
    from hvemu.vocabulary.exits import PagingEvent

    memory = GuestPhysicalMemory(MachineMemory(1 << 20), 1 << 19)
    pool, noted, flushes = FramePool(memory.machine, 1, 20), [], []
    nested = NestedPaging(memory, pool, lambda: flushes.append(1), noted.append)
    for number in range(200):
        assert nested.fault(0x3000, write=True)
        nested.open((number + 1) << 20)
        assert nested.walk((number + 1) << 32)[-1].level == 1
        assert nested.walk((number + 1) << 32)[-1].entry & 1
        nested.close()
        assert not nested.walk((number + 1) << 32)[-1].entry & 1
    assert PagingEvent.EVICTION in noted
    assert len(nested._tables) + pool.available == 19
    assert len(flushes) >= 200


def test_a_host_without_the_feature_refuses_the_mode_by_name():
    """As a sentence that ends with what to do."""
    from hvemu.vocabulary.errors import UserError

    with pytest.raises(
        UserError, match=r"Mode svm needs a CPU with AMD-V, and penryn has none\. Use one of opteron-g3"
    ):
        machine_of(cpu="penryn")
