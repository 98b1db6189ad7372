"""Mode native on small flat programs: what hvemu does in place of the CPU, and when interrupts arrive."""

import pytest

from hvemu.cpu.state import EAX, EBX, VirtualCpu
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration

BASE = 0x10_0000


def flat(tmp_path, code, **changes):
    """A machine that starts at ``code`` in flat protected mode without an IDT."""
    path = tmp_path / "flat.bin"
    path.write_bytes(bytes.fromhex(code.replace(" ", "")))
    return build(MachineConfiguration(image=str(path), loader="flat", memory=4 << 20, serial="none", **changes))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("unknown MSR read", "b945230100 0f32"),
        ("unknown MSR written", "b945230100 0f30"),
        ("EFER reserved bits", "b9800000c0 b800020000 31d2 0f30"),
        ("CR4 reserved bit", "b800000080 0f22e0"),
        ("CR0 paging without protection", "b800000080 0f22c0"),
        ("LTR of a null selector", "31c0 0f00d8"),
    ],
)
def test_what_the_engine_would_let_pass_is_a_general_protection_fault(tmp_path, name, code):
    """Without an IDT it becomes a triple fault whose first fault is #GP."""
    stop = flat(tmp_path, code + " f4").run()
    assert 66 == stop.status, name
    assert "triple fault: #GP (error code 0x0)" in stop.reason


def test_random_number_instructions_are_invalid(tmp_path):
    """RDRAND would bring host entropy into the guest."""
    assert "triple fault: #UD" in flat(tmp_path, "0fc7f0 f4").run().reason


@pytest.mark.parametrize("value", ["00040000", "822ce47c", "ffffffff", "760e819b"])
def test_a_stop_after_cmpxchg8b_leaves_all_other_flags_alone(tmp_path, value):
    """The engine mixes a stale result into EFLAGS there; the direction flag is not to come from it either."""
    # mov esi,value / add ebx,esi / mov edi,200000h / cmpxchg8b [edi] / nop / stosb / inc ecx / hlt
    code = f"be{value} 01f3 bf00002000 0fc70f 90 aa 41 f4"
    ends = set()
    for distance in range(20):
        machine = flat(tmp_path, code)
        machine.run(distance)
        machine.run()
        cpu = machine.registers()
        ends.add((cpu.gprs[7], cpu.flags & 0x3F_7702))
    assert {(0x20_0001, 2)} == ends


def test_known_model_specific_registers_are_kept(tmp_path):
    """SYSENTER_ESP reads back what was written, in the first block of the run too."""
    machine = flat(tmp_path, "b975010000 b878563412 31d2 0f30 31c0 0f32 89c3 e6f4 f4")
    machine.run()
    assert 0x1234_5678 == machine.registers().gprs[EBX]
    assert {"0x175": 1} == machine.statistics()["assists_by_detail"]["rdmsr"]


def test_debug_registers_are_virtual(tmp_path):
    """DR7 with breakpoints set does not reach the engine; reserved bits read as fixed."""
    machine = flat(tmp_path, "b8ffffffff 0f23f8 31c0 0f21f8 89c3 e6f4 f4")
    machine.run()
    # General detect is set, so the read itself is #DB; without an IDT that ends the guest.
    assert 66 == machine.stop.status
    machine = flat(tmp_path, "b8ff000000 0f23f8 0f21fb e6f4 f4")
    machine.run()
    assert 0x4FF == machine.registers().gprs[EBX]


def test_rdtsc_is_four_nanoseconds_a_byte_natively_and_under_a_trace(tmp_path):
    """The native answer and the Python answer are the same number."""
    code = "90 90 0f31 89c3 90 0f31 e6f4 f4"
    plain, traced = flat(tmp_path, code), flat(tmp_path, code)
    traced.tracer.subscribe(lambda event: None)
    values = []
    for machine in (plain, traced):
        machine.run()
        cpu = machine.registers()
        values.append((cpu.gprs[EBX], cpu.gprs[EAX] - cpu.gprs[EBX]))
    assert [(8, 20), (8, 20)] == values
    assert 2 == plain.statistics()["assists"]["rdtsc"]


def test_flags_survive_a_port_access_that_raises_an_interrupt():
    """The state saved in the middle of a block is complete: the guest's own checks see every flag."""
    machine = build(guest_configuration(catalog()["interrupts"]))
    assert 33 == machine.run().status


def test_entering_what_was_left_changes_nothing():
    """``enter(leave())`` is invisible, FPU state included."""
    machine = build(guest_configuration(catalog()["paging"]))
    machine.run(60_000)
    before = machine.mode.leave()
    machine.mode.enter(before)
    assert before == machine.mode.leave()


def test_a_fresh_cpu_is_in_real_mode_at_the_reset_vector():
    """The default VirtualCpu is what a processor is after reset, privilege level 0."""
    cpu = VirtualCpu()
    assert (0xFFF0, 0, 2) == (cpu.eip(), cpu.cpl(), cpu.eflags())


def test_dirty_pages_are_all_at_first_and_then_those_written(tmp_path):
    """native compares RAM with the copy of the last call."""
    machine = flat(tmp_path, "c7050050200001000000 e6f4 f4")
    assert (4 << 20) // 4096 == len(machine.mode.dirty_pages())
    machine.run()
    assert {0x205} == machine.mode.dirty_pages()


def test_code_written_by_a_device_is_seen(tmp_path):
    """GuestMemory.write forgets translated code of the frame."""
    machine = flat(tmp_path, "90 ebfd")
    machine.run(1_000)
    machine.memory.write(BASE, bytes.fromhex("90b007e6f4"))
    assert (7 << 1) | 1 == machine.run(100_000).status


def test_strict_ends_at_an_unclaimed_port(tmp_path):
    """The sentence names the port and the instruction."""
    stop = flat(tmp_path, "66ba3412 ec f4", strict=True).run()
    assert 64 == stop.status
    assert "read of unclaimed port 0x1234 under --strict" in stop.reason
    assert "'in al, dx'" in stop.reason


def test_instruction_counts_are_exact(tmp_path):
    """mov, five times (dec, jnz), out: twelve; what follows the last OUT in its block does not count."""
    machine = flat(tmp_path, "b905000000 49 75fd e6f4 f4", count_instructions=True)
    machine.run()
    assert 12 == machine.statistics()["instructions"]


def test_the_host_clock_runs_guests_too():
    """Timer ticks arrive by the host's time, one or several at once; nothing is said about positions."""
    machine = build(guest_configuration(catalog()["processes"], clock="host", append="work=sleep:3"))
    assert 33 == machine.run().status
    assert None is machine.statistics()["virtual_ns"]


def test_a_stop_in_the_middle_of_a_halt_keeps_the_guest_asleep():
    """A guest that waits for its timer goes on sleeping after a stop."""
    machine = build(guest_configuration(catalog()["halt_forever"]))
    machine.run(24_815)
    assert 68 == machine.run().status


def test_the_power_button_raises_an_acpi_event():
    """PM1a status shows it; the guest may obey or not."""
    machine = build(guest_configuration(catalog()["hello"]))
    machine.press_power_button()
    assert 1 << 8 == machine.ports.read(0x600, 2) & 1 << 8


def test_an_instruction_breakpoint_in_a_debug_register_fires_before_the_instruction(tmp_path):
    """DR6 says which; RF holds it off, as the handler's IRET would set it; without an IDT it is a triple fault."""
    # mov eax,BASE+18h / mov dr3,eax / mov eax,0C0h / mov dr7,eax / inc ebx ... inc ecx at BASE+18h
    code = "b818001000 0f23d8 b8c0000000 0f23f8 43 43 43 43 43 43 43 43 41 e6f4 f4"
    machine = flat(tmp_path, code)
    stop = machine.run()
    assert "triple fault: #DB" in stop.reason
    cpu = machine.registers()
    assert (BASE + 0x18, 8, 0) == (cpu.instruction_pointer, cpu.gprs[EBX], cpu.gprs[1])
    assert 8 == cpu.debug[6] & 0xF
    resumed = flat(tmp_path, code)
    resumed.run(resumed.mode.position() + 0x17)
    cpu = resumed.registers()
    cpu.flags |= 1 << 16
    resumed.mode.enter(cpu)
    resumed.run()
    assert (1, 0xC0 << 1 & 0xFF | 1) == (resumed.registers().gprs[1], resumed.stop.status)


def test_a_breakpoint_stops_before_its_instruction_and_not_again_when_the_guest_goes_on(tmp_path):
    """In the middle of a block and at its start; position and registers are those of the boundary."""
    machine = flat(tmp_path, "43 43 43 ebfb e6f4")  # again: inc ebx, three times / jmp again
    machine.breakpoints = frozenset({BASE + 1})
    for turn in range(4):
        assert None is machine.run(1000)
        assert machine.at_breakpoint
        assert (BASE + 1, 1 + 3 * turn) == (machine.registers().instruction_pointer, machine.registers().gprs[EBX])
        assert 1 + 5 * turn == machine.mode.position()
    machine.step()
    assert (BASE + 2, False) == (machine.registers().instruction_pointer, machine.at_breakpoint)
    machine.breakpoints = frozenset({BASE})
    machine.run(1000)
    assert (BASE, 20) == (machine.registers().instruction_pointer, machine.mode.position())
    machine.breakpoints = frozenset()
    machine.run(1000)
    assert (1000, False) == (machine.mode.position(), machine.at_breakpoint)


def test_pause_ends_the_run_at_a_boundary(tmp_path):
    """A callback may ask for it; the next run goes on."""
    machine = flat(tmp_path, "43 ebfd")
    machine.poll = lambda: machine.pause() if machine.mode.position() else None
    assert None is machine.run()
    here = machine.mode.position()
    machine.poll = None
    assert None is machine.run(here + 30)
    assert here + 30 == machine.mode.position()


@pytest.mark.parametrize("counting", [False, True])
def test_flags_of_an_intercepted_instruction_do_not_stick(tmp_path, counting):
    """The engine stores the flags for code hooks; a later PUSHF shows only what is so then."""
    # std / or eax,80000000h / mov cr4,ecx (intercepted) / cld / mov al,1 / add al,1 / pushf / pop ebx / out 0f4h,al
    code = "31c9 fd 0d00000080 0f22e1 fc b001 0401 9c 5b e6f4 f4"
    machine = flat(tmp_path, "bc00001f00" + code, count_instructions=counting)
    machine.run()
    assert 0x2 == machine.registers().gprs[EBX]
