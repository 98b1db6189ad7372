"""Mode trap on small programs and guests of the catalogue: what traps, is emulated, leaks, and what is said of it."""

import struct

import pytest

from hvemu.cpu.state import CS, EAX, EBX, SS, VirtualCpu
from hvemu.machine.builder import build
from hvemu.machine.configuration import SVM_CPU_MODELS, MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import UserError
from tests.modes.small_kernel import HANDLERS, STACK, TO_USER, USER, Kernel, identity
from tests.techniques import SVM, settings

BASE = 0x10_0000


def flat(tmp_path, code, **changes):
    """A machine of mode trap that starts at ``code`` in flat protected mode without an IDT."""
    path = tmp_path / "flat.bin"
    path.write_bytes(bytes.fromhex(code.replace(" ", "")))
    settings = {"loader": "flat", "memory": 4 << 20, "serial": "none", "mode": "trap", **changes}
    return build(MachineConfiguration(image=str(path), **settings))


def test_the_kernel_runs_at_ring_1_and_believes_it_is_in_ring_0(tmp_path):
    """The engine's CS has RPL 1; what the debugger shows has RPL 0."""
    machine = flat(tmp_path, "8cc8 89c3 e6f4")  # mov eax,cs / mov ebx,eax / out 0f4h,al
    machine.run()
    assert 0x11 == machine.registers().gprs[EBX]
    assert (0x10, 0x18) == tuple(machine.registers().segments[index].selector for index in (CS, SS))
    assert 1 == machine.mode.vcpu.cpl()


@pytest.mark.parametrize(
    ("mnemonic", "code"),
    [
        ("cli", "fa"),
        ("mov", "0f20c0"),
        ("mov", "0f21f8"),
        ("lgdt", "0f0115 00001000"),
        ("lidt", "0f011d 00001000"),
        ("invlpg", "0f0138"),
        ("wbinvd", "0f09"),
        ("clts", "0f06"),
        ("rdmsr", "b9 10000000 0f32"),
        ("lldt", "31c0 0f00d0"),
    ],
)
def test_every_privileged_instruction_traps_once_and_is_emulated(tmp_path, mnemonic, code):
    """A real #GP, one exit, and the guest goes on behind it; the position is that of native."""
    positions = []
    for mode in ("native", "trap"):
        machine = flat(tmp_path, code + " 90 b010 e6f4", mode=mode)
        assert 33 == machine.run().status
        positions.append(machine.mode.position())
    assert {mnemonic: 1} == machine.statistics()["exits_by_detail"]["privileged"]
    assert positions[0] == positions[1]


def test_a_privileged_instruction_of_user_code_is_its_own_fault():
    """CLI at ring 3 is reflected to the guest kernel, which says so itself."""
    result = run_guest(guest_configuration(catalog()["ring3"], mode="trap"))
    assert "PASS cli is refused" in result.console
    assert result.statistics["exits_by_detail"]["reflected_exception"]["13"] > 0


def test_guest_memory_is_not_where_the_guest_believes_it_is(tmp_path):
    """A frame of the guest lies elsewhere in machine memory; the hypervisor's own pages lie at the bottom."""
    machine = flat(tmp_path, "c70500003000 78563412 b010 e6f4")  # mov dword [300000h],12345678h
    machine.run()
    memory = machine.memory
    assert 0x1234_5678 == memory.read_u32(0x30_0000)
    frame = memory.machine_frame(0x300)
    assert 0x300 != frame
    assert (0x1234_5678,) == struct.unpack_from("<I", memory.machine.view, frame << 12)


def test_real_mode_is_refused_before_and_while_it_is_entered(tmp_path):
    """A boot sector with status 2 and advice; a guest that clears CR0.PE with a sentence."""
    with pytest.raises(UserError, match=r"cannot run real mode.*Use --mode native"):
        build(guest_configuration(catalog()["realmode_boot"], mode="trap"))
    stop = flat(tmp_path, "0f20c0 24fe 0f22c0").run()
    assert 64 == stop.status
    assert "'mov cr0, eax': mode trap cannot run real mode" in stop.reason


def test_leaving_and_entering_changes_nothing(tmp_path):
    """enter(leave(x)) is x, with interrupts off and on, at ring 0 and ring 3."""
    machine = build(guest_configuration(catalog()["ring3"], mode="trap"))
    for _ in range(60):
        if machine.run(machine.mode.position() + 997) is not None:
            break
        cpu = machine.registers()
        machine.mode.enter(cpu)
        assert cpu == machine.registers()
    assert 33 == machine.run().status


def test_a_dirty_log_names_the_frames_that_were_written(tmp_path):
    """By write protection: all at first, then exactly those stored to, by the guest or by a device."""
    # mov [200000h],eax ; mov [205000h],eax ; mov eax,[206000h] ; jmp $
    machine = flat(tmp_path, "a300002000 a300502000 a100602000 ebfe")
    assert set(range(1024)) == machine.mode.dirty_pages()
    machine.run(machine.mode.position() + 40)
    machine.memory.write(0x20_7FFE, b"1234")
    assert {0x200, 0x205, 0x207, 0x208} == machine.mode.dirty_pages()
    assert set() == machine.mode.dirty_pages()


def test_the_audit_names_each_lie_once_and_no_truth():
    """The guest asks all 18 instructions; VERR, VERW, JMP, RET and INT tell the truth at ring 1."""
    result = run_guest(guest_configuration(catalog()["sensitive"], mode="trap", audit=True))
    findings = result.machine.mode.audit.findings
    told = {finding.split("'")[1].split()[0] for finding in findings}
    assert {"sgdt", "sidt", "sldt", "str", "smsw", "pushfd", "popfd", "lar", "lsl", "mov", "push"} <= told
    assert {"call", "lcall"} & told
    assert not {"verr", "verw", "ljmp", "retf", "int"} & told
    assert len(findings) == len(set(findings))
    plain = run_guest(guest_configuration(catalog()["sensitive"], mode="trap"))
    assert plain.console == result.console


def test_a_guest_that_ends_badly_is_told_about_the_audit(tmp_path):
    """And with it, which instruction lied."""
    code = "bc00001f00 fa 9c 58 a900020000 7402 0f0b f4"  # cli / pushfd / pop / test IF / jz +2 / ud2 / hlt
    assert "With --audit, mode trap names" in flat(tmp_path, code).run().reason
    stop = flat(tmp_path, code, audit=True).run()
    assert stop.reason.endswith("It was fooled at EIP 0x00100006 'pushfd' pushes IF=1, the guest's is IF=0.")
    assert "#UD" in stop.reason
    assert 68 == flat(tmp_path, code, mode="native").run().status


def test_a_state_with_every_register_survives(tmp_path):
    """enter() of a made-up ring 3 state shows the same registers again."""
    machine = flat(tmp_path, "ebfe")
    cpu = machine.registers()
    gprs = [index * 0x1111_1111 for index in range(8)] + [0] * 8
    wanted = VirtualCpu(**{**vars(cpu), "gprs": gprs, "flags": 0x3202, "cr2": 5})
    machine.mode.enter(wanted)
    assert wanted == machine.registers()
    assert 0 == machine.registers().gprs[EAX]


def test_a_device_is_read_once_even_if_the_store_of_the_same_instruction_faults(tmp_path):
    """MOVSD from the local APIC to a page that is not in the shadow tables yet."""
    # mov esi,0FEE00030h / mov edi,200000h / cld / movsd / push dword [0FEE00030h] / mov al,10h / out 0f4h,al
    code = "bc00001f00 be3000e0fe bf00002000 fc a5 ff353000e0fe b010 e6f4"
    for mode in ("native", "trap"):
        machine = flat(tmp_path, code, mode=mode)
        assert 33 == machine.run().status
        assert {"0xfee00030": 2} == machine.statistics()["exits_by_detail"]["mmio_read"]
        version = machine.memory.read_u32(0x20_0000)
        assert 0 != version == machine.memory.read_u32(0x1F_0000 - 4)


def test_a_guest_that_wants_ring_1_for_itself_ends_with_a_sentence(tmp_path):
    """Its kernel is there already, and the two could not be told apart."""
    # mov esp,1F0000h / lgdt [BASE+20h] / push 11h / push 1F0000h / push 9 / push 0 / retf
    code = "bc00001f00 0f01152000 1000 6a11 6800001f00 6a09 6a00 cb".replace(" ", "").ljust(0x20 * 2, "0")
    table = "1700 2800 1000 0000" + "0000000000000000" + "ffff000000bbcf00" + "ffff000000b3cf00"
    stop = flat(tmp_path, code + table).run()
    assert 64 == stop.status
    assert "the guest goes to ring 1" in stop.reason


@pytest.mark.parametrize("mode", ["trap", "bt"])
@pytest.mark.parametrize(("guest", "words"), [("preempt", "after 40 ticks both tasks"), ("keyboard", "PASS")])
def test_the_host_clock_works_without_the_block_clock(guest, words, mode):
    """Inexact in time, so that whether a task had its fair share depends on the host; but the guest gets to its end."""
    row = catalog()[guest]
    result = run_guest(guest_configuration(row, mode=mode, clock="host"), keys=row.input, keys_after=row.input_after)
    assert result.status & 1, result.console
    assert words in result.console


@pytest.mark.parametrize("mode", ["trap", "bt"])
def test_virtual_8086_mode_ends_the_guest_with_a_sentence(mode):
    """The engine would let IRET go there from ring 1; the next thing that happens there is the end."""
    segments = "6a00 6a00 6a00 6a00 6a00 68$00006000 68$00020002 6a00 68$00007000"
    kernel = Kernel(mode, f"bc$00170000 {segments} cf", data={0x7000: "b89090 0f0b"})
    kernel.machine.run(100_000)
    assert 64 == kernel.machine.stop.status
    assert "virtual-8086 mode, which does not exist" in kernel.machine.stop.reason
    assert "use --mode native" in kernel.machine.stop.reason


@pytest.mark.parametrize("mode", ["native", "trap", "bt"])
@pytest.mark.parametrize("paging", [False, True])
def test_iret_of_user_code_ignores_the_flag_of_virtual_8086_mode(mode, paging):
    """A CPU looks at it in ring 0 alone; the engine does in every ring."""
    user = "68$0002b000 68$00020202 6a23 68$00120040 cf"
    pages = {page: entry | 4 for page, entry in identity().items()} if paging else None
    kernel = Kernel(mode, TO_USER, data={USER: user, USER + 0x40: "b8$1234 0f0b"}, pages=pages)
    kernel.machine.run(100_000)
    cpu = kernel.machine.registers()
    assert (0x1234, HANDLERS + 16 * 6 + 1) == (cpu.gprs[0], cpu.instruction_pointer)
    frame = struct.unpack("<3I", kernel.machine.memory.read(STACK - 20, 12))
    assert (USER + 0x45, 0x23) == frame[:2]
    assert not frame[2] & 1 << 17


@pytest.mark.parametrize("mode", ["native", "trap", "bt"])
def test_a_handler_may_begin_with_an_instruction_that_is_looked_at(mode):
    """The engine does not announce the block that an event leads to."""
    kernel = Kernel(mode, "0f0b", handlers={6: "b9$12345678 0f32 f4", 13: "b8$77 f4"})
    kernel.machine.run(100_000)
    assert 0x77 == kernel.machine.registers().gprs[EAX]


@pytest.mark.parametrize("mode", ["native", "trap", "bt", *SVM])
def test_a_handler_that_faults_before_it_does_anything_ends_the_guest(mode):
    """No time passes, so that nothing could ever end it otherwise; every technique says the same of it."""
    technique = {"cpu": SVM_CPU_MODELS[0], **settings(mode)}
    kernel = Kernel(text="bc$f000000 0f0b", handlers={6: "0f0b"}, **technique)
    kernel.machine.run(100_000)
    assert 64 == kernel.machine.stop.status
    assert "#UD again and again" in kernel.machine.stop.reason
    assert kernel.machine.mode.position() < 100
