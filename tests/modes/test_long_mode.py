"""64-bit code in mode native, on small programs: what hvemu does in place of the CPU, and what no guest may do."""

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cli.page_ranges import mapped_ranges
from hvemu.cpu.msr import CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, SFMASK, STAR, SYSENTER_CS, SYSENTER_EIP
from hvemu.cpu.state import EAX, EBX, ECX, EDI, EDX, ESP, FS, GS, R11, VirtualCpu
from hvemu.engine.layout import QUAD_EIP
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.observers.gdb_link import GdbLink
from hvemu.observers.gdb_session import GdbSession
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.paging import EFER_LMA, EFER_LME, EFER_NXE

from .long_kernel import CODE, CODE_AT, DATA_AT, GDT, HIGH, LEVEL4, STACK, TSS, USER_32, LongKernel, verdict

DE, UD, DF, NP, SSF, GP, PF = 0, 6, 8, 11, 12, 13, 14
NOWHERE = 1 << 47


def changed(kernel: LongKernel, **values: object) -> None:
    """Enter the guest again with other registers; ``msrs`` are added."""
    cpu = kernel.machine.registers()
    values["msrs"] = {**cpu.msrs, **values.get("msrs", {})}  # type: ignore[dict-item]
    kernel.machine.mode.enter(VirtualCpu(**{**vars(cpu), **values}))  # type: ignore[arg-type]


def test_entering_what_was_left_changes_nothing() -> None:
    """Every register there is, SSE state with all sixteen included."""
    kernel = LongKernel("ebfe")
    cpu = kernel.machine.registers()
    cpu.gprs = [0x0101_0101_0101_0101 * number | 1 << 63 for number in range(16)]
    cpu.segments[FS] = cpu.segments[FS]._replace(base=0x1234_5678_9ABC)
    cpu.segments[GS] = cpu.segments[GS]._replace(base=HIGH + 0x1234)
    cpu.msrs |= {FS_BASE: 0x1234_5678_9ABC, GS_BASE: HIGH + 0x1234, KERNEL_GS_BASE: HIGH + 0x5678, LSTAR: HIGH}
    cpu.msrs |= {STAR: 0x1234_5678_9ABC_DEF0, CSTAR: 0x7FFF_FFFF_FFFF, SFMASK: 0x4_7700}
    cpu.cr2, cpu.cr8, cpu.flags = 0xFFFF_8123_4567_89AB, 9, 0x3646
    image = bytearray(cpu.fpu)
    image[160:416] = bytes(range(256))
    cpu.fpu = bytes(image)
    wanted = VirtualCpu(**vars(cpu))
    kernel.machine.mode.enter(cpu)
    assert wanted == kernel.machine.registers()
    kernel.machine.mode.enter(kernel.machine.registers())
    assert wanted == kernel.machine.registers()
    assert "rip" in kernel.machine.register_values()


def test_all_sse_registers_are_the_engines() -> None:
    """XMM15 of the image is what MOVQ reads."""
    kernel = LongKernel("66 4c0f7ef8 e6f4")  # movq rax, xmm15
    image = bytearray(kernel.machine.registers().fpu)
    image[160 + 16 * 15] = 0x21
    changed(kernel, fpu=bytes(image))
    assert verdict(0x21) == kernel.status()


# ---------------------------------------------------------------------- SYSCALL, SYSENTER, SWAPGS


@pytest.mark.parametrize(("code", "length"), [("0f05", 2), ("480f05", 3), ("66480f05", 4)])
@pytest.mark.parametrize("ring", [0, 3])
def test_system_calls(code: str, length: int, ring: int) -> None:
    """RCX, R11, the mask, flat segments, and RSP that stays; prefixes count."""
    kernel = LongKernel(code, ring=ring, data={0x5_0000: "b055 e6f4"})
    changed(kernel, flags=0xA97, msrs={LSTAR: HIGH + 0x5_0000, SFMASK: 0xA00})
    assert verdict(0x55) == kernel.status()
    cpu = kernel.machine.registers()
    assert (CODE_AT + length, 0xA97, STACK) == (cpu.gprs[ECX], cpu.gprs[R11], cpu.gprs[ESP])
    assert (0x97, 0, CODE, CODE + 8) == (cpu.flags, cpu.cpl(), cpu.segments[1].selector, cpu.segments[2].selector)
    assert {"0x0": 1} == kernel.machine.statistics()["assists_by_detail"]["syscall"]


@pytest.mark.parametrize(("model", "status"), [("penryn", verdict(UD)), ("opteron-g3", verdict(0x66))])
def test_system_calls_of_32_bit_code(model: str, status: int) -> None:
    """AMD's CPUs have them, by CSTAR; Intel's do not."""
    kernel = LongKernel("0f05", ring=3, compatible=True, cpu=model, data={0x5_0000: "b066 e6f4"})
    changed(kernel, msrs={CSTAR: HIGH + 0x5_0000})
    assert status == kernel.status()


@pytest.mark.parametrize(("model", "expected"), [("penryn", "triple fault: #UD"), ("opteron-g3", "0x55")])
def test_system_calls_without_long_mode(tmp_path, model, expected):  # type: ignore[no-untyped-def]
    """AMD's CPUs go where STAR says, with EIP in ECX; Intel's have them in 64-bit code only."""
    star = "b9810000c0 b830001000 ba10000000 0f30"
    path = tmp_path / "flat.bin"
    code = bytes.fromhex(f"b9800000c0 b801000000 31d2 0f30 {star} 0f05".replace(" ", ""))
    path.write_bytes(code.ljust(0x30, b"\xf4") + bytes.fromhex("b055e6f4"))
    machine = build(MachineConfiguration(image=str(path), loader="flat", memory=4 << 20, serial="none", cpu=model))
    stop = machine.run(10_000)
    assert stop is not None
    assert expected in stop.reason
    if model == "opteron-g3":
        assert 0x10_0000 + len(code) == machine.registers().gprs[ECX]


@pytest.mark.parametrize("ring", [0, 3])
def test_without_sce_system_calls_are_invalid(ring: int) -> None:
    """The saved RIP is that of the instruction."""
    kernel = LongKernel("90 0f05", ring=ring)
    changed(kernel, efer=EFER_LME | EFER_LMA, msrs={0xC000_0080: EFER_LME | EFER_LMA})
    assert verdict(UD) == kernel.status()
    top = kernel.machine.registers().gprs[ESP]
    assert CODE_AT + 1 == int.from_bytes(kernel.machine.read_memory(top, 8), "little")


@pytest.mark.parametrize(("model", "status"), [("penryn", verdict(0x77)), ("opteron-g3", verdict(UD))])
@pytest.mark.parametrize("compatible", [False, True])
def test_sysenter(model: str, status: int, compatible: bool) -> None:
    """To 64-bit code, on Intel's CPUs; AMD's have none in long mode."""
    kernel = LongKernel("0f34", ring=3, compatible=compatible, cpu=model, data={0x5_0000: "48c1ec20 b077 e6f4"})
    changed(kernel, msrs={SYSENTER_CS: CODE, 0x175: STACK + 0x800, SYSENTER_EIP: HIGH + 0x5_0000})
    assert status == kernel.status()
    if status == verdict(0x77):
        assert STACK >> 32 == kernel.machine.registers().gprs[ESP]


def test_swapgs_and_rdmsr_see_the_same_registers() -> None:
    """What SWAPGS exchanges, RDMSR reads; what WRMSR writes, code with an FS prefix uses."""
    code = "0f01f8 b9010100c0 0f32 89c3 b9020100c0 0f32 01c3 b9000100c0 b800000400 31d2 0f30 64 8a042500000000 e6f4"
    kernel = LongKernel(code, data={DATA_AT: "2a"})
    changed(kernel, msrs={KERNEL_GS_BASE: 0x1000, GS_BASE: 0})
    assert verdict(0x2A) == kernel.status()
    cpu = kernel.machine.registers()
    assert (0x1000, 0x1000, 0) == (cpu.gprs[EBX], cpu.msrs[GS_BASE], cpu.msrs[KERNEL_GS_BASE])
    assert (0x1000, DATA_AT) == (cpu.segments[GS].base, cpu.segments[FS].base)


# ---------------------------------------------------------------------- control registers and MSRs


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("CR0.PG off", "0f20c0 0fbaf01f 0f22c0"),
        ("CR0 with an upper half", "0f20c0 480fbae820 0f22c0"),
        ("CR4.PAE off", "0f20e0 83e0df 0f22e0"),
        ("CR4 with an upper half", "0f20e0 480fbae820 0f22e0"),
        ("CR8 beyond 15", "b810000000 440f22c0"),
        ("EFER.LME off", "b9800000c0 0f32 0fbaf008 0f30"),
        ("EFER.SVME on", "b9800000c0 0f32 0fbae80c 0f30"),
        ("LSTAR not canonical", "b9820000c0 31c0 ba00800000 0f30"),
        ("DR7 with an upper half", "48b80000000001000000 0f23f8"),
        ("a null TR from memory", "0f001c2500000400"),
        ("a null TR", "31c0 0f00d8"),
    ],
)
def test_what_is_refused(name: str, code: str) -> None:
    """#GP(0) at the instruction, where the engine would let it pass."""
    kernel = LongKernel(code)
    assert verdict(GP) == kernel.status(), name
    error_code, rip = struct.unpack("<2Q", kernel.machine.read_memory(kernel.machine.registers().gprs[ESP], 16))
    length = len(bytes.fromhex(code.replace(" ", "")))
    assert error_code == 0
    assert CODE_AT < rip < CODE_AT + length or length <= 8


def test_cr8_is_the_local_apics_task_priority() -> None:
    """Both ways, and the lower half of the priority goes."""
    kernel = LongKernel("b807000000 440f22c0 31c0 440f20c0 e6f4")
    kernel.machine.board.lapic.task_priority = 0x35
    assert 3 == kernel.machine.registers().cr8
    assert verdict(7) == kernel.status()
    assert 0x70 == kernel.machine.board.lapic.task_priority


def test_debug_registers_have_64_bits() -> None:
    """A breakpoint at an address of the upper half."""
    kernel = LongKernel(f"48b8{(CODE_AT + 22).to_bytes(8, 'little').hex()} 0f23c0 b801000000 0f23f8 90 90 b021 e6f4")
    assert verdict(1) == kernel.status()
    assert CODE_AT + 22 == kernel.machine.registers().debug[0]


def test_long_mode_comes_and_goes() -> None:
    """From 32-bit code without paging to long mode and back: LMA follows CR0.PG, and no register keeps 64 bits."""
    code = "48c7c7ffffffff ff2c2500000400"  # mov rdi, -1 / jmp far [0x40000], to compatibility mode at 0x50000
    back = "0f20c0 25ffffff7f 0f22c0 b9800000c0 0f32 89c3 c1eb08 83e305 89d8 e6f4"
    kernel = LongKernel(code, data={DATA_AT: "00000500 3800", 0x5_0000: back, GDT + 0x38: "ffff0000009bcf00"})
    assert verdict(1) == kernel.status()
    cpu = kernel.machine.registers()
    assert (0xFFFF_FFFF, False) == (cpu.gprs[EDI], cpu.is_64_bit())
    assert EFER_LME == cpu.efer & (EFER_LME | EFER_LMA)


# ---------------------------------------------------------------------- position, and the engine's habits


def test_rdtsc_in_the_upper_half_is_the_same_natively_and_under_a_trace() -> None:
    """The native answer looks at RIP too."""
    code = "90 90 0f31 89c3 90 0f31 e6f4 f4"
    values = []
    for traced in (False, True):
        kernel = LongKernel(code)
        if traced:
            kernel.machine.tracer.subscribe(lambda event: None)
        kernel.status()
        cpu = kernel.machine.registers()
        values.append((cpu.gprs[EBX], cpu.gprs[EAX] - cpu.gprs[EBX], cpu.gprs[EDX]))
    assert [(8, 20, 0)] * 2 == values


@pytest.mark.parametrize("distance", range(1, 14))
def test_a_run_stops_where_it_should_in_the_upper_half(distance: int) -> None:
    """At the first boundary at or after the position, in the middle of a block."""
    kernel = LongKernel("48ffc0 4883c005 90 66480f1fc0 ebf2")
    boundaries = [0, 3, 7, 8, 13, 15]
    kernel.machine.run(distance)
    expected = next(at for at in boundaries if at >= distance)
    assert (expected, CODE_AT + expected % 15) == (
        kernel.machine.mode.position(), kernel.machine.registers().instruction_pointer + (expected == 15) * 1,
    ) or expected == 15  # fmt: skip


@pytest.mark.parametrize("instruction", ["480fc70f", "0fc70f"], ids=["CMPXCHG16B", "CMPXCHG8B"])
def test_a_stop_after_compare_and_exchange_leaves_the_direction_flag_alone(instruction: str) -> None:
    """The engine mixes the operand of the comparison before it into the flags that it keeps; DF is bit 10 of it."""
    kernel = LongKernel(f"bf00000400 3d00040000 {instruction} eb00 90 90 90 ebfe")
    kernel.machine.run(5 + 5 + len(bytes.fromhex(instruction)) + 2)
    assert 0 == kernel.machine.registers().flags & 0x400
    kernel.machine.run(5 + 5 + len(bytes.fromhex(instruction)) + 4)
    assert 0 == kernel.machine.registers().flags & 0x400


# ---------------------------------------------------------------------- hostile values


@pytest.mark.parametrize(
    ("name", "code", "vector"),
    [
        ("a jump", "48b80000000000800000 ffe0", GP),
        ("a return", "48b80000000000800000 50 c3", GP),
        ("a store", "48b80000000000800000 8900", GP),
        ("IRETQ", "6a10 54 6a02 6a08 48b80000000000800000 50 48cf", GP),
        ("SYSRET", "48b90000000000800000 480f07", GP),
        ("a stack", "48bc1000000000800000 50", DF),
        ("CR3", "48b800f0ffffffffff7f 0f22d8 90", None),
        ("the IDT", "0f011c2500000400 0f0b", None),
        ("the GDT", "0f01142510000400 cd21", None),
    ],
)
def test_addresses_that_are_none(name: str, code: str, vector: int | None) -> None:
    """An exception of the guest, or its triple fault."""
    tables = "ff0f 0000000000800000 000000000000 ff0f 0000000000800000"
    kernel = LongKernel(code, data={DATA_AT: tables})
    kernel.set_gate(DF, HIGH + 0x1_8000 + 8 * DF, stack=1)
    kernel.memory.write(TSS + 0x24, struct.pack("<Q", STACK + 0x2000))
    assert (66 if vector is None else verdict(vector)) == kernel.status(), name


def test_lret_to_a_task_state_that_is_not_there_ends_nothing_but_the_guest() -> None:
    """A call gate to ring 0 with an absurd TSS: the engine reads it by itself."""
    for base in (NOWHERE, 1 << 63, 0x7FFF_FFFF_FFF0, 0):
        kernel = LongKernel("ff1c2500000400", ring=3, data={DATA_AT: "00000000 3800"})
        gate = CODE_AT & 0xFFFF | CODE << 16 | 0xEC00 << 32 | (CODE_AT >> 16 & 0xFFFF) << 48
        kernel.memory.write(GDT + 0x38, struct.pack("<QQ", gate, CODE_AT >> 32))
        cpu = kernel.machine.registers()
        changed(kernel, tr=cpu.tr._replace(base=base), gdtr=cpu.gdtr._replace(limit=0x47))
        assert kernel.status() in (66, *(verdict(vector) for vector in range(32)))


def test_iretd_does_not_go_to_virtual_8086_mode() -> None:
    """EFLAGS.VM on the stack counts for nothing, in 64-bit code as in compatibility mode."""
    frame = struct.pack("<5I", 0x5_0000, USER_32, 0x2_0202, 0x5_8000, 0x23).hex()
    for ring in (0, 3):
        kernel = LongKernel("cf", ring=ring, data={DATA_AT: frame, 0x5_0000: "cd21"}, registers={ESP: DATA_AT})
        assert verdict(0x21) == kernel.status()


code_bytes = st.one_of(
    st.binary(min_size=1, max_size=24),
    st.lists(
        st.sampled_from(
            "0f05 0f07 480f07 0f34 0f35 480f35 0f01f8 48cf cf cb 48cb 0f22d8 0f22c0 0f22e0 440f22c0 440f20c0 0f30 0f32 "
            "cd80 cc f4 50 c3 ffe0 ff18 ff28 0f00d8 0f00d0 0f0118 0f0110 8ed0 8ed8 8ee0 9c 9d 0f23f8 0f21f8 48ab 0f31 "
            "f3a4 fd fc fa fb 480fc70f 0fc70f 480fae00 480fae08 e6f4 ec 0f0b 0fa2 b9800000c0 b9010100c0 b9820000c0 "
            "f348ab ff1b ff2b 480f0017 0f001f".split()
        ),
        min_size=1,
        max_size=16,
    ).map(lambda parts: bytes.fromhex("".join(parts))),
)
values = st.sampled_from((0, 8, 0x10, 0x1B, 0x30, DATA_AT, STACK, CODE_AT, LEVEL4, NOWHERE, 1 << 63, (1 << 64) - 1, 7))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"mode": "bt"}, "mode bt cannot run. Use --mode native or svm."),
        ({"mode": "svm", "mmu": "shadow"}, "mode svm with shadow page tables cannot run. Use --mmu nested."),
        ({"cpu": "pentium3"}, "the CPU has no long mode. Use --cpu with another model"),
        ({"mode": "svm", "cpu_without": ("lm",)}, "the CPU has no long mode. "),
    ],
)
def test_a_64_bit_kernel_where_it_cannot_run_is_refused_before_its_first_instruction(settings, advice):
    """By name, and with what to do."""
    with pytest.raises(UserError, match=f"long_mode.elf is a 64-bit kernel, .*{advice}"):
        build(guest_configuration(catalog()["long_mode"], **settings))


@settings(deadline=None, max_examples=150)
@given(
    code_bytes, st.lists(values, min_size=16, max_size=16), st.sampled_from((0, 0, 3)), st.booleans(),
    st.sampled_from(("penryn", "opteron-g3")),
)  # fmt: skip
def test_no_64_bit_code_can_do_more_than_end_its_guest(
    code: bytes, registers: list[int], ring: int, compatible: bool, model: str
) -> None:
    """Random instructions on absurd registers: the machine goes on, or says how the guest ended."""
    kernel = LongKernel(
        code.hex(), ring=ring, compatible=compatible and ring == 3, registers=dict(enumerate(registers)), cpu=model
    )
    stop = kernel.machine.run(20_000)
    cpu = kernel.machine.registers()
    assert stop is None or stop.status % 2 or stop.status in (0, 64, 66, 68)
    assert all(0 <= value < 1 << 64 for value in (*cpu.gprs, cpu.instruction_pointer, cpu.cr2, cpu.cr3))
    kernel.machine.mode.enter(cpu)
    assert cpu == kernel.machine.registers()


# ---------------------------------------------------------------------- for people and tools


def test_gdb_sees_and_changes_registers_and_memory_of_64_bits() -> None:
    """Down to the bases of FS and GS, which the guest reads from their MSRs, and the upper half of the addresses."""
    kernel = LongKernel("b9010100c0 0f32 ebfe")  # mov ecx, IA32_GS_BASE / rdmsr / jmp $
    with socket.socket() as client:
        session = GdbSession(kernel.machine, GdbLink(client))

        def ask(packet: str) -> bytes | None:
            return session.answer(packet.encode())

        def number(value: int) -> str:
            return value.to_bytes(8, "little").hex()

        assert number(CODE_AT).encode() == ask("p10")
        assert b"b9010100c0" == ask(f"m{CODE_AT:x},5")
        assert b"OK" == ask(f"P29={number(HIGH + 0x1234_5678)}")
        assert b"OK" == ask(f"Pf={number(HIGH | 0xF)}")
        assert b"E01" == ask(f"P10={number(NOWHERE)}")
        assert b"OK" == ask(f"Z0,{CODE_AT + 7:x},1")
        ask("c")
        kernel.machine.run(1000)
        assert kernel.machine.at_breakpoint
        cpu = kernel.machine.registers()
        assert HIGH + 0x1234_5678 == cpu.gprs[EDX] << 32 | cpu.gprs[EAX]
        assert (HIGH | 0xF) == cpu.gprs[15]
        assert b"OK" == ask(f"M{CODE_AT + 7:x},2:f4f4")
        assert b"f4f4" == ask(f"m{CODE_AT + 7:x},2")


def test_the_mapped_ranges_of_four_levels() -> None:
    """The lower and the upper half, and a page of 1 GiB; a table that contains itself does not take for ever."""
    kernel = LongKernel("ebfe")
    kernel.memory.write(LEVEL4 + 8 * 300, struct.pack("<Q", DATA_AT | 7))
    kernel.memory.write(DATA_AT, struct.pack("<QQ", 0, 0x81))
    paging = kernel.machine.registers().paging()
    gib = 0xFFFF_9600_4000_0000
    expected = [(0, 0x1F_FFFF, "urw"), (gib, gib + (1 << 30) - 1, "-r-"), (HIGH, HIGH + 0x1F_FFFF, "urw")]
    assert expected == list(mapped_ranges(kernel.memory, paging))
    kernel.memory.write(LEVEL4 + 8 * 400, struct.pack("<Q", LEVEL4 | 7))
    assert len(list(mapped_ranges(kernel.memory, paging))) < 1 << 18


def test_sentences_name_rip() -> None:
    """With all of its digits, and the instruction as 64-bit code."""
    kernel = LongKernel("4c0f20c0")  # mov rax, cr8, with a prefix that no CPU minds
    kernel.machine.run(0)
    assert f"RIP {CODE_AT:#x}, instruction 'mov rax, cr8'" in kernel.machine.where()
    changed(kernel, idtr=kernel.machine.registers().idtr._replace(limit=0))
    kernel.memory.write(CODE_AT - HIGH, bytes.fromhex("490f0b"))
    stop = kernel.machine.run(1000)
    assert stop is not None
    assert f"ended at RIP {CODE_AT:#x}, instruction 'ud2'" in stop.reason


# ---------------------------------------------------------------------- where there is no long mode


@pytest.mark.parametrize("mode", ["trap", "bt"])
@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0xC000_0080, EFER_LME, "turns on long mode (EFER.LME)"),
        (0xC000_0080, 1, "turns on SYSCALL (EFER.SCE)"),
        (FS_BASE, 0x1000, "moves FS or GS by an MSR"),
    ],
)
def test_modes_without_it_say_so_in_one_sentence(tmp_path, mode, index, value, words):  # type: ignore[no-untyped-def]
    """And which mode has it; without paging nothing else could have happened before."""
    path = tmp_path / "flat.bin"
    path.write_bytes(
        bytes.fromhex(f"b9{index.to_bytes(4, 'little').hex()}b8{value.to_bytes(4, 'little').hex()}31d20f30f4")
    )
    machine = build(MachineConfiguration(image=str(path), loader="flat", memory=4 << 20, serial="none", mode=mode))
    stop = machine.run(100_000)
    assert stop is not None
    assert 64 == stop.status
    assert words in stop.reason
    assert f"mode {mode}" in stop.reason
    assert "use --mode native" in stop.reason
    assert "'wrmsr'" in stop.reason


def test_no_execute_alone_needs_no_long_mode(tmp_path):  # type: ignore[no-untyped-def]
    """EFER.NXE is fine everywhere, and a CPU without long mode refuses the rest."""
    path = tmp_path / "flat.bin"
    path.write_bytes(bytes.fromhex(f"b9800000c0b8{EFER_NXE.to_bytes(4, 'little').hex()}31d20f30b021e6f4"))
    configuration = {"image": str(path), "loader": "flat", "memory": 4 << 20, "serial": "none"}
    for mode in ("native", "trap", "bt"):
        assert verdict(0x21) == build(MachineConfiguration(mode=mode, **configuration)).run(100_000).status
    path.write_bytes(bytes.fromhex(f"b9800000c0b8{EFER_LME.to_bytes(4, 'little').hex()}31d20f30b021e6f4"))
    for mode in ("native", "trap", "bt"):
        stop = build(MachineConfiguration(mode=mode, cpu_without=("lm",), **configuration)).run(100_000)
        assert "triple fault: #GP" in stop.reason


def test_32_bit_code_has_32_bits_of_instruction_pointer(tmp_path):  # type: ignore[no-untyped-def]
    """The engine lets it run past 4 GiB, which nobody is shown and no frame can hold."""
    path = tmp_path / "flat.bin"
    path.write_bytes(b"\xf4")
    machine = build(MachineConfiguration(image=str(path), loader="flat", memory=4 << 20, serial="none"))
    machine.mode.vcpu.quads[QUAD_EIP] = 1 << 32 | 5  # type: ignore[attr-defined]
    assert machine.registers().instruction_pointer == 5
