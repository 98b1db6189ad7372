"""What a guest gets that finds out under which hypervisor it runs: the same in every mode, at the same position."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.trace.events import Exited
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.exits import ExitKind
from hvemu.vocabulary.machine_map import LAPIC_BASE
from tests.modes.small_kernel import (
    DATA,
    LIMIT,
    STACK,
    TO_USER,
    USER,
    Kernel,
    compare,
    identity,
    run_both,
    word,
)

MODES = ("native", "trap", "bt")
CALLS = {"vmcall": "0f01c1", "vmmcall": "0f01d9"}
NO_SUCH_CALL = 0xFFFF_FC18
HALT = "f4"


def run_all(text: str, **settings: object) -> tuple[Kernel, Kernel, Kernel]:
    """Run in all three modes; what the guest can see must be equal."""
    native, translated = run_both(text, **settings)  # type: ignore[arg-type]
    trap = Kernel("trap", text, **settings)  # type: ignore[arg-type]
    assert trap.machine.run(LIMIT) is not None
    same(native, trap)
    return native, trap, translated


def same(native: Kernel, other: Kernel) -> None:
    """All is equal but for what mode trap has to add to its last sentence."""
    if other.machine.mode.name == "trap" and native.machine.stop is not None and other.machine.stop is not None:
        assert other.machine.stop.reason.startswith(native.machine.stop.reason.removesuffix("."))
        other.machine.stop = native.machine.stop
    compare(native, other)


def write_msr(index: int, low: int, high: int = 0) -> str:
    """MOV ECX,index / MOV EAX,low / MOV EDX,high / WRMSR."""
    return f"b9{word(index)} b8{word(low)} ba{word(high)} 0f30"


def registers(kernel: Kernel) -> dict[str, int]:
    """By name."""
    return kernel.machine.register_values()


# ---------------------------------------------------------------------- hypercalls


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("cpu", ["penryn", "epyc"])
def test_kvms_hypercalls_answer_in_eax_and_change_nothing_else(call: str, cpu: str) -> None:
    """Both instructions on any CPU; one exit each, counted by name."""
    asked = f"b801000000 {call} 50 b805000000 {call} 50 b877000000 {call} 50"
    arguments = {1: 11, 2: 12, 3: 13, 5: 15, 6: 16, 7: 17}
    for kernel in run_all(f"f9 {asked} {HALT}", hypervisor_leaves="kvm", cpu=cpu, registers=arguments):
        assert (0, 0, NO_SUCH_CALL) == struct.unpack("<III", kernel.machine.memory.read(STACK - 12, 12))[::-1]
        assert [*arguments.values()] == [kernel.machine.registers().gprs[number] for number in arguments]
        assert 3 == registers(kernel)["eflags"] & 0x8D5 | 2
        counts = kernel.machine.statistics()["exits_by_detail"]["vmcall"]
        assert {"vapic_poll_irq": 1, "kick_cpu": 1, "0x77": 1} == counts
        assert not {"callout", "privileged", "reflected_exception"} & set(kernel.exits())


@pytest.mark.parametrize("shown", ["none", "hvemu", "xen", "hyperv", "vmware"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_kvm_the_instructions_are_invalid(call: str, shown: str) -> None:
    """#UD at the instruction, in the kernel and in user code, as on a CPU without virtualization."""
    handler = {6: "8b0424 f4"}
    for kernel in run_all(f"90 {call} {HALT}", hypervisor_leaves=shown, handlers=handler):
        assert 0x10_0001 == registers(kernel)["eax"]
        assert not {"vmcall", "hyperv_call"} & set(kernel.exits())
    pages = identity()
    for page in range(USER, USER + 0x2000, 0x1000):
        pages[page] |= 4
    for kernel in run_all(TO_USER, hypervisor_leaves=shown, handlers=handler, pages=pages, data={USER: f"40 {call}"}):
        assert USER + 1 == registers(kernel)["eax"]


def test_user_code_is_not_permitted_to_call() -> None:
    """EPERM, and the program goes on."""
    pages = identity()
    for page in range(USER, USER + 0x2000, 0x1000):
        pages[page] |= 4
    program = f"b801000000 {CALLS['vmcall']} 89c6 b877000000 {CALLS['vmmcall']} 0f0b"
    for kernel in run_all(TO_USER, hypervisor_leaves="kvm", pages=pages, data={USER: program}):
        assert (0xFFFF_FFFF, 0xFFFF_FFFF) == (registers(kernel)["eax"], registers(kernel)["esi"])
        assert 2 == kernel.exits()["vmcall"]


def test_prefixes_belong_to_the_instruction_and_lock_makes_it_invalid() -> None:
    """EIP and position go on behind all of it."""
    for kernel in run_all(f"b801000000 66{CALLS['vmcall']} f3{CALLS['vmmcall']} {HALT}", hypervisor_leaves="kvm"):
        assert (NO_SUCH_CALL, {"vapic_poll_irq": 1, "0x0": 1}) == (
            registers(kernel)["eax"],
            kernel.machine.statistics()["exits_by_detail"]["vmcall"],
        )
    for kernel in run_all(f"f0{CALLS['vmcall']} {HALT}", hypervisor_leaves="kvm", handlers={6: "b866000000 f4"}):
        assert 0x66 == registers(kernel)["eax"]


def test_a_hypercall_is_single_stepped_like_any_instruction() -> None:
    """#DB after each, EIP behind it, also when the call ends the shadow of STI."""
    step = "5b 895d00 83c504 53 cf"  # pop ebx / mov [ebp],ebx / add ebp,4 / push ebx / iret
    text = f"9c 810c2400010000 9d b801000000 {CALLS['vmcall']} fb {CALLS['vmmcall']} fa {HALT}"
    seen = []
    for kernel in run_all(text, hypervisor_leaves="kvm", handlers={1: step}, registers={5: DATA}):
        stops = struct.unpack("<6I", kernel.machine.memory.read(DATA, 24))
        seen.append([stop - 0x10_0000 for stop in stops])
    assert [[14, 17, 18, 21, 22, 0]] * 3 == [[stop if stop > 0 else 0 for stop in stops] for stops in seen]


@pytest.mark.parametrize("mode", ["native", "bt"])
def test_real_mode_may_call_too(mode: str, tmp_path: Path) -> None:
    """A boot sector, which mode bt hands over; the answer is its verdict."""
    sector = bytes.fromhex("66b805000000 bbffff 0f01c1 0410 e6f4".replace(" ", "")).ljust(510, b"\0") + b"\x55\xaa"
    path = tmp_path / "boot.img"
    path.write_bytes(sector)
    machine = build(
        MachineConfiguration(image=str(path), mode=mode, loader="disk", serial="none", hypervisor_leaves="kvm")
    )
    stop = machine.run(LIMIT)
    assert stop is not None
    assert 33 == stop.status
    assert {"kick_cpu": 1} == machine.statistics()["exits_by_detail"]["vmcall"]


def test_an_interrupt_that_waits_is_delivered_right_behind_the_call() -> None:
    """STI holds it off for the call; not for longer."""
    timer = "b034 e643 b000 e640 b001 e640 b0fe e621"  # every 215 us; the loop takes 393
    text = f"{timer} b9$8000 one: 49 75~one fb {CALLS['vmcall']} 46 46 {HALT}"
    for kernel in run_all(text, hypervisor_leaves="kvm", registers={0: 1}, handlers={8: "8b3c24 f4"}):
        assert 0 == registers(kernel)["esi"]
        assert kernel.labels["one"] + 3 + 1 + 3 == registers(kernel)["edi"]


CALL_OR_NOT = st.sampled_from([*CALLS.values(), "90", "40", "b801000000", "b902000000 e2fe", "fb", "fa", "0f31"])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(CALL_OR_NOT, min_size=1, max_size=25), st.lists(st.integers(1, 30), max_size=8))
def test_any_mixture_of_calls_and_other_instructions_is_the_same_in_all_modes(
    pieces: list[str], distances: list[int]
) -> None:
    """Also when the run is stopped anywhere on the way."""
    text = f"{' '.join(pieces)} fa {HALT}"
    kernels = [Kernel(mode, text, hypervisor_leaves="kvm", registers={1: 3}) for mode in MODES]
    for distance in distances:
        for kernel in kernels:
            kernel.machine.run(kernel.machine.mode.position() + distance)
        for kernel in kernels[1:]:
            same(kernels[0], kernel)
    for kernel in kernels:
        assert kernel.machine.run(LIMIT) is not None
    for kernel in kernels[1:]:
        same(kernels[0], kernel)


@pytest.mark.parametrize("mode", MODES)
def test_the_trace_has_number_ring_and_answer(mode: str) -> None:
    """With the position before the instruction, and where the guest believes to be."""
    events: list[Exited] = []
    kernel = Kernel(mode, f"b877000000 {CALLS['vmcall']} {HALT}", hypervisor_leaves="kvm")
    kernel.machine.tracer.subscribe(lambda event: events.append(event) if isinstance(event, Exited) else None)
    kernel.machine.run(LIMIT)
    calls = [event for event in events if event.kind is ExitKind.VMCALL]
    assert [Exited(5, ExitKind.VMCALL, 0x10_0005, 0x77, 0, NO_SUCH_CALL)] == calls  # type: ignore[arg-type]


def test_counted_instructions_include_hypercalls() -> None:
    """Once each."""
    for mode in MODES:
        counts = set()
        for call in ("0f1f00", *CALLS.values()):
            kernel = Kernel(mode, f"40 {call} 90 {call} {HALT}", hypervisor_leaves="kvm", count_instructions=True)
            kernel.machine.run(LIMIT)
            counts.add(kernel.machine.mode.instructions())
        assert 1 == len(counts)


# ---------------------------------------------------------------------- KVM's clock and end of interrupt


def test_kvmclock_and_the_counter_agree_in_every_mode() -> None:
    """The page is filled with the time of the WRMSR; the guest's arithmetic gives the time of its RDTSC."""
    text = write_msr(0x4B564D01, DATA | 1) + write_msr(0x4B564D00, DATA + 0x100) + "b9$1000 one: 49 75~one 0f31 f4"
    for kernel in run_all(text, hypervisor_leaves="kvm", rtc=1_234_567_890):
        memory = kernel.machine.memory
        version, _, then, time, multiplier, shift, flags = struct.unpack("<IIQQIbB", memory.read(DATA, 30))
        assert (2, 15 * 4, 15 * 4, 1) == (version, then, time, flags)
        values = registers(kernel)
        counter = values["edx"] << 32 | values["eax"]
        now = ((counter - then << shift) * multiplier >> 32) + time
        assert (kernel.machine.mode.position() - 3) * 4 == now  # before RDTSC and HLT
        assert (2, 1_234_567_890, 0) == struct.unpack("<III", memory.read(DATA + 0x100, 12))


def test_moving_the_counter_moves_the_page() -> None:
    """WRMSR to the TSC; the time goes on."""
    text = write_msr(0x12, DATA | 1) + write_msr(0x10, 5, 1) + "0f31 f4"
    for kernel in run_all(text, hypervisor_leaves="kvm"):
        version, _, then, time = struct.unpack("<IIQQ", kernel.machine.memory.read(DATA, 24))
        assert (4, 1 << 32 | 5, (17 + 15) * 4) == (version, then, time)
        values = registers(kernel)
        assert (kernel.machine.mode.position() - 3) * 4 == (values["edx"] << 32 | values["eax"]) - then + time


def test_a_page_that_is_filled_over_the_next_instruction_is_what_executes() -> None:
    """The seconds of the wall clock are 40 40 40 f4: three times INC EAX, HLT."""
    for paged in (None, identity()):
        text = f"b9{word(0x4B564D00)} b8=where 31d2 eb00 where: 9090 0f30 90909090 90909090 fa f4"
        for kernel in run_all(text, hypervisor_leaves="kvm", rtc=0xF440_4040, pages=paged):
            assert kernel.labels["where"] + 8 == registers(kernel)["eip"]
            assert kernel.labels["where"] + 3 == registers(kernel)["eax"]


@pytest.mark.parametrize("at", [0x10_0800, USER + 0x900, 0x11_0F00, DATA], ids=["code", "handler", "idt", "data"])
@pytest.mark.parametrize("paged", [False, True])
def test_pages_of_the_hypervisor_may_lie_beside_anything(at: int, paged: bool) -> None:
    """Code that runs, the handler's own, tables: what is written there changes neither position nor outcome."""
    clock = write_msr(0x4B564D01, at + 0x20 | 1) + write_msr(0x4B564D00, at + 0x40) + write_msr(0x10, 0)
    pages = {**identity(), LAPIC_BASE: LAPIC_BASE | 0x13} if paged else None
    for kernel in ticking(f"{clock} {write_msr(0x4B564D04, at | 1)}", at, pages=pages):
        assert (6, 0) == (registers(kernel)["esi"], registers(kernel)["edi"])


@pytest.mark.parametrize("index", [0x11, 0x12, 0x4B564D00, 0x4B564D01, 0x4B564D04, 0x40000000, 0x40000020])
def test_registers_of_a_hypervisor_that_is_not_shown_fault(index: int) -> None:
    """#GP, reading and writing."""
    for code in (f"b9{word(index)} 0f32", write_msr(index, 0)):
        for kernel in run_all(f"{code} {HALT}", handlers={13: "b80d000000 f4"}):
            assert 13 == registers(kernel)["eax"]


TIMER = 0x20


def ticking(prepare: str, flag: int, **settings: object) -> tuple[Kernel, Kernel, Kernel]:
    """Six ticks of the local APIC's timer, each ended by BTR on the flag or else by the register.

    ESI counts the ticks, EDI the writes to the register; EAX is what is in service at the end.
    """
    local, handler = LAPIC_BASE, USER + 0x800
    body = f"0fba35${flag:x} 00 72~told 47 c705${local + 0xB0:x}$0 told: 46 cf"
    text = (
        f"{prepare} c705${local + 0xF0:x}$1ff c705${local + 0x320:x}$200{TIMER:02x} c705${local + 0x3E0:x}$b"
        f" c705${local + 0x380:x}$400 fb one: 83fe06 72~one fa a1${local + 0x120:x} f4"
    )
    return run_all(
        text,
        hypervisor_leaves="kvm",
        registers={6: 0, 7: 0},
        handlers={TIMER: f"68${handler:x} c3"},
        data={handler: body},
        **settings,
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_ticks_of_the_local_timer_are_ended_in_memory(enabled: bool) -> None:
    """The handler tests and clears the flag, and writes the register where it was clear; all modes do the same."""
    for kernel in ticking(write_msr(0x4B564D04, DATA | int(enabled)), DATA):
        values = registers(kernel)
        assert (6, 0 if enabled else 6, 0) == (values["esi"], values["edi"], values["eax"])
        assert 0 == kernel.machine.memory.read_u32(DATA)


# ---------------------------------------------------------------------- Hyper-V


def test_hyperv_knows_no_hypercall() -> None:
    """A CALL into the page that the guest has named: status 2 in EDX:EAX."""
    page = DATA + 0x4000
    text = (
        f"{write_msr(0x40000000, 1)} {write_msr(0x40000001, page | 1)}"
        f" b8$1005c ba$10 bd${page:x} ffd5 89c6 89d7 b9$40000020 0f32 f4"
    )
    for kernel in run_all(text, hypervisor_leaves="hyperv"):
        values = registers(kernel)
        assert (2, 0) == (values["esi"], values["edi"])
        assert {"0x5c": 1} == kernel.machine.statistics()["exits_by_detail"]["hyperv_call"]
        assert (kernel.machine.mode.position() - 3) * 4 // 100 == values["eax"]


def test_hypervs_page_is_for_the_kernel() -> None:
    """#UD in user code, and after the page was disabled."""
    pages = identity()
    for page in range(USER, USER + 0x2000, 0x1000):
        pages[page] |= 4
    enable = write_msr(0x40000000, 1) + write_msr(0x40000001, DATA | 1)
    handler = {6: "8b0424 f4"}
    settings = {"hypervisor_leaves": "hyperv", "handlers": handler}
    for kernel in run_all(f"{enable} {TO_USER}", pages=pages, data={USER: CALLS["vmcall"]}, **settings):
        assert USER == registers(kernel)["eax"]
    for kernel in run_all(f"{enable} {write_msr(0x40000000, 0)} bd${DATA:x} ffe5", **settings):
        assert DATA == registers(kernel)["eax"]


# ---------------------------------------------------------------------- VMware


def backdoor(command: int) -> str:
    """IN EAX,DX on the backdoor, with the magic number."""
    return f"b8$564d5868 b9{word(command)} 66ba5856 ed"


def test_the_backdoor_answers_in_several_registers() -> None:
    """GETVERSION and GETHZ; high bits of ECX are somebody else's."""
    for kernel in run_all(f"{backdoor(10)} 50 53 51 {backdoor(0x1000045 - 0x45 + 45)} f4", hypervisor_leaves="vmware"):
        assert (2, 0x564D5868, 6) == struct.unpack("<III", kernel.machine.memory.read(STACK - 12, 12))
        values = registers(kernel)
        assert (1_000_000_000, 0, 100_000_000) == (values["eax"], values["ebx"], values["ecx"])


@pytest.mark.parametrize("code", [backdoor(11), backdoor(0x20_0000), "b8$12345678 b9$a 66ba5856 ed"])
def test_the_backdoor_leaves_registers_alone_for_what_it_does_not_know(code: str) -> None:
    """An unknown command, or no magic number."""
    wanted = {3: 0xDEAD_BEEF, 5: 5, 6: 6, 7: 7}
    for kernel in run_all(f"{code} f4", hypervisor_leaves="vmware", registers=wanted):
        cpu = kernel.machine.registers()
        assert wanted == {number: cpu.gprs[number] for number in wanted}
        assert cpu.gprs[0] in (0x564D_5868, 0x1234_5678)


def test_without_vmware_nobody_answers_at_the_port() -> None:
    """Ones; also for the narrow accesses that mean nothing there."""
    for kernel in run_all(f"{backdoor(10)} f4"):
        assert (0xFFFF_FFFF, 10) == (registers(kernel)["eax"], registers(kernel)["ecx"])
    for kernel in run_all("b8$564d5868 b9$a 66ba5856 ec f4", hypervisor_leaves="vmware"):
        assert 0x564D_58FF == registers(kernel)["eax"]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 0xFFFF_FFFF), min_size=4, max_size=4),
    st.sampled_from(["ed", "ec", "66ed", "ef", "6d", "66ba5956 ed"]),
    st.booleans(),
)
def test_no_registers_at_the_backdoor_do_any_harm(values: list[int], access: str, magic: bool) -> None:
    """All modes do the same with them."""
    first, command, base, index = values
    given_registers = {0: 0x564D5868 if magic else first, 1: command & 0xFF, 3: base, 6: index, 7: DATA}
    run_all(f"66ba5856 {access} f4", hypervisor_leaves="vmware", registers=given_registers)


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("shown", ["hvemu", "kvm", "xen", "hyperv", "vmware"])
@pytest.mark.parametrize("name", ["cpuid", "preempt", "realmode_boot"])
def test_the_modes_stay_equal_with_every_choice(name: str, shown: str) -> None:
    """Console, status and position of a lesson."""
    guest = catalog()[name]
    results = [
        run_guest(guest_configuration(guest, mode=mode, hypervisor_leaves=shown), keys=guest.input)
        for mode in guest.modes
        if mode in MODES
    ]
    assert 33 == results[0].status
    first = results[0]
    for result in results[1:]:
        assert (first.console, first.status) == (result.console, result.status)
        assert first.machine.mode.position() == result.machine.mode.position()


def test_a_restart_forgets_what_the_guest_had_enabled() -> None:
    """Registers are zero and the flag is disabled."""
    kernel = Kernel(
        "native",
        write_msr(0x4B564D04, DATA | 1) + write_msr(0x4B564D01, DATA + 0x100 | 1) + HALT,
        hypervisor_leaves="kvm",
    )
    kernel.machine.run(LIMIT)
    assert DATA | 1 == kernel.machine.board.lapic.state().fields["eoi_flag"]["control"]
    kernel.machine.reset()
    assert 0 == kernel.machine.board.lapic.state().fields["eoi_flag"]["control"]
    assert 0 == kernel.machine.registers().msrs[0x4B564D01]


def test_a_machine_with_a_tracer_is_built_the_same() -> None:
    """The way of an exit is made before the modes."""
    machine = build(guest_configuration(catalog()["hello"], hypervisor_leaves="kvm"), tracer=Tracer())
    assert 1 == machine.cpuid.query(1, 0)[2] >> 31
