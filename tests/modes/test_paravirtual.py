"""Mode pv on small ported kernels: hypercalls, events and traps on the engine, and what a kernel cannot do."""

import struct

import pytest

from hvemu.trace.events import Batched, Exited
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.exits import ExitKind
from hvemu.vocabulary.xen import Hypercall
from tests.modes.small_kernel import Kernel, assemble, identity
from tests.paravirtual.small_domain import CALL, DATA, OFFSET, PASS, SmallDomain, call, traps

TRAPS, REQUESTS, SCRATCH, USER, STACK = DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x8000
SELF = 0x7FF0
P, RW, US = 1, 2, 4
STOP = f"{call(Hypercall.SCHED_OP, 2, SCRATCH + 0xFF0)}"
"""Shutdown; the reason at SCRATCH + 0xFF0 is 0: power off."""
SET_TRAPS = call(Hypercall.SET_TRAP_TABLE, TRAPS)
HANDLER = f"handler: bf${SCRATCH:x} 89e6 b9$8 fcf3a5 {STOP}"
"""Keep eight words of the frame at SCRATCH, and end."""


def run(text, rows=(), data=None, **changes):
    """Run a kernel whose trap table has such rows to its end; returns the domain."""
    domain = SmallDomain(text, data=data, **changes)
    if rows:
        domain.write(TRAPS, traps(*rows, labels=domain.labels))
    domain.status = domain.run()
    return domain


def requests(*pairs):
    """Requests of mmu_update."""
    return b"".join(struct.pack("<QQ", pointer, value) for pointer, value in pairs)


def eax_to(address):
    """MOV [address], EAX."""
    return f"a3${address:x}"


def leaf(linear):
    """Machine address of the entry that the domain builder has made for a linear address below 2 MiB."""
    domain = SmallDomain("f4")
    return domain.mode.paging.leaf_address(linear)


# ---------------------------------------------------------------------- transitions


@pytest.mark.parametrize("count", [1, 64, 512])
def test_a_batch_of_page_table_updates_is_one_transition(count):
    """Against one fault for each store in mode trap, where every page table is traced."""
    at = leaf(SCRATCH)
    batch = requests(*[(at, (SCRATCH + OFFSET) | P | RW)] * count)
    domain = run(f"{call(Hypercall.MMU_UPDATE, USER, count, SCRATCH, SELF)} {STOP}", data={USER: batch})
    assert {"mmu_update": 1, "sched_op": 1} == domain.hypercalls()
    assert {"hypercall": 2} == domain.exits()
    assert count == domain.events()["page_table_update"]
    assert (count,) == domain.words(SCRATCH)
    kernel = Kernel(
        "trap", f"b9${count:x} top: a1$00201000 a3$00201000 49 75~top {PASS}", pages=identity(), shadow="trace"
    )
    assert kernel.machine.run(1_000_000) is not None
    assert count <= kernel.exits()["traced_write"]


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_multicall_is_one_transition(count):
    """Its entries have results of their own, and are counted and traced."""
    entry = struct.pack("<8I", Hypercall.XEN_VERSION, 0xDEAD, 0, 0, 0, 0, 0, 0)
    tracer, seen = Tracer(), []
    tracer.subscribe(seen.append)
    text = f"{call(Hypercall.MULTICALL, REQUESTS, count)} {eax_to(SCRATCH)} {STOP}"
    domain = run(text, data={REQUESTS: entry * count}, tracer=tracer)
    assert {"multicall": 1, "sched_op": 1} == domain.hypercalls()
    assert count == domain.events()["multicall_entry"]
    assert [("xen_version", 4 << 16 | 17)] * count == [(e.call, e.result) for e in seen if isinstance(e, Batched)]
    calls = [e for e in seen if isinstance(e, Exited) and e.kind is ExitKind.HYPERCALL]
    assert [(Hypercall.MULTICALL, count, 0), (Hypercall.SCHED_OP, 1, 0)] == [(e.detail, e.size, e.value) for e in calls]
    assert (4 << 16 | 17,) * count == domain.words(REQUESTS, 8 * count)[1::8]


def test_the_stubs_of_the_hypercall_page_can_be_called():
    """Where the kernel's note says."""
    page = DATA + 0x4000
    text = f"31db b8${page + 32 * 17:x} ffd0 {eax_to(SCRATCH)} {STOP}"
    domain = run(text, notes={2: struct.pack("<I", page)})
    assert (4 << 16 | 17,) == domain.words(SCRATCH)


def test_an_unknown_hypercall_is_enosys():
    """And changes no other register."""
    stores = " ".join(
        f"89{code}${SCRATCH + 4 * index:x}" for index, code in enumerate(("05", "1d", "0d", "15", "35", "3d"))
    )
    domain = run(f"{call(0xFFFF, 1, 2, 3, 4, 5)} {stores} {STOP}")
    assert (-38 & 0xFFFF_FFFF, 1, 2, 3, 4, 5) == domain.words(SCRATCH, 6)


# ---------------------------------------------------------------------- events

BIND = f"c705${SCRATCH + 0x100:x}$0 c705${SCRATCH + 0x104:x}$0 {call(Hypercall.EVENT_CHANNEL_OP, 1, SCRATCH + 0x100)}"
"""bind_virq(VIRQ_TIMER): the port is at SCRATCH + 0x108, and is 3 because console and store have 1 and 2."""
CALLBACKS = call(Hypercall.SET_CALLBACKS, 0xE019, "upcall", 0xE019, "upcall")
SHARED = SCRATCH + 0x4000
UNMASK_PORTS = f"c705${SHARED + 0x880:x}$0"
UPCALL = f"upcall: ff05${SCRATCH:x} {STOP}"


def map_shared():
    """update_va_mapping of the shared page at SHARED; its machine address is the same in every such machine."""
    page = SmallDomain("f4").domain.shared_info
    return call(Hypercall.UPDATE_VA_MAPPING, SHARED, page | P | RW, 0, 2)


def timer(nanoseconds):
    """set_timer_op."""
    return call(Hypercall.SET_TIMER_OP, nanoseconds, 0)


WAIT = "b9$20000 wait: 49 75~wait"
UNMASK_UPCALLS = f"c605${SHARED + 1:x} 00"


def test_an_event_calls_the_kernel_up():
    """Unmasked port, unmasked CPU; the pending bits are set, and further upcalls are held off."""
    begin = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_PORTS} {UNMASK_UPCALLS}"
    domain = run(f"{begin} {timer(50_000)} {WAIT} f4 {UPCALL}")
    assert (1,) == domain.words(SCRATCH)
    assert 1 == domain.events()["event_upcall"]
    assert (1, 1) == tuple(domain.read(SHARED, 2))
    assert (1,) == domain.words(SHARED + 4)
    assert (8,) == domain.words(SHARED + 0x800)


def test_an_event_on_a_masked_port_calls_nobody_and_unmasking_delivers_it():
    """The edge is not lost."""
    before = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_UPCALLS} {timer(50_000)} {WAIT}"
    domain = run(f"{before} {STOP} {UPCALL}")
    assert (0,) == domain.words(SCRATCH)
    assert "event_upcall" not in domain.events()
    assert (8,) == domain.words(SHARED + 0x800)
    unmask = call(Hypercall.EVENT_CHANNEL_OP, 9, SCRATCH + 0x108)
    domain = run(f"{before} {unmask} ff05${SCRATCH + 4:x} {STOP} {UPCALL}")
    assert (1, 0) == domain.words(SCRATCH, 2)


def test_an_event_that_came_while_upcalls_were_masked_waits_for_the_next_call():
    """Unmasking is a store, which nobody sees; the kernel looks at the pending byte and makes any hypercall."""
    before = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_PORTS} {timer(50_000)} {WAIT}"
    domain = run(f"{before} {UNMASK_UPCALLS} {WAIT.replace('wait', 'more')} {STOP} {UPCALL}")
    assert "event_upcall" not in domain.events()  # the next call is the last
    version = call(Hypercall.XEN_VERSION, 0)
    domain = run(f"{before} {UNMASK_UPCALLS} {version} ff05${SCRATCH + 4:x} {STOP} {UPCALL}")
    assert (1, 0) == domain.words(SCRATCH, 2)


def test_a_kernel_that_waits_wakes_up_when_its_timer_rings():
    """sched_op block, and the system time that the shared page tells; nothing is executed meanwhile."""
    begin = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_PORTS}"
    domain = run(f"{begin} {timer(3_000_000)} {call(Hypercall.SCHED_OP, 1, 0)} {STOP} {UPCALL}")
    assert (1,) == domain.words(SCRATCH)
    assert 3_000_000 <= domain.machine.clock.now() < 3_010_000
    assert "hlt" not in domain.exits()


def test_a_kernel_that_waits_for_nothing_is_halted_for_ever():
    """The sentence says so; status 68."""
    domain = SmallDomain(f"{CALLBACKS} {call(Hypercall.SCHED_OP, 1, 0)} {STOP} {UPCALL}")
    assert 68 == domain.run(1 << 50)


@pytest.mark.parametrize("at", [0, 1, 1_000, (1 << 64) - 1])
def test_a_timer_that_rings_at_once_late_or_never_does_no_harm(at):
    """0 cancels it, the past is now."""
    setting = call(Hypercall.SET_TIMER_OP, at & 0xFFFF_FFFF, at >> 32)
    begin = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_PORTS} {UNMASK_UPCALLS}"
    domain = run(f"{begin} {setting} {WAIT} {STOP} {UPCALL}")
    assert (int(at in (1, 1_000)),) == domain.words(SCRATCH)


# ---------------------------------------------------------------------- traps


def frame_of(vector, flags, text, **changes):
    """Eight words of the frame that a trap of this kernel pushes."""
    domain = run(f"{SET_TRAPS} {text} {HANDLER}", rows=[(vector, flags, "handler")], **changes)
    assert 0 == domain.status
    return domain, domain.words(SCRATCH, 8)


PRIVILEGED = {
    "CLI": "fa", "STI": "fb", "HLT": "f4", "MOV to CR0": "0f22c0", "MOV to CR3": "0f22d8", "MOV from CR3": "0f20d8",
    "LGDT": "0f0115$00110000", "LIDT": "0f011d$00110000", "LTR": "0f00d8", "INVLPG": "0f013d$00110000", "CLTS": "0f06",
    "WRMSR": "0f30", "RDMSR": "0f32", "WBINVD": "0f09", "IN": "ec", "OUT": "ee", "SYSEXIT": "0f35",
    "MOV to DR7": "0f23f8", "a far jump to ring 0": "ea$00100000 08e0", "a far jump to 64-bit code": "ea$00100000 d0ff",
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_privileged_instruction_is_the_kernels_own_fault(name):
    """#GP at that instruction, in the kernel's handler; nothing is emulated."""
    domain, frame = frame_of(13, 0, f"here: {PRIVILEGED[name]}")
    assert domain.labels["here"] == frame[1]
    assert 0xE019 | 1 << 16 == frame[2]


def test_turning_on_long_mode_ends_the_guest_with_a_sentence():
    """Any other MSR, or NXE, is #GP to the kernel."""
    domain = run(f"{SET_TRAPS} b9$c0000080 b8$100 31d2 0f30 {HANDLER}", rows=[(13, 0, "handler")])
    assert 64 == domain.status
    words = "'wrmsr': the guest turns on long mode (EFER.LME), but mode pv runs no 64-bit code"
    assert words in domain.machine.stop.reason
    assert 0 == run(f"{SET_TRAPS} b9$c0000080 b8$800 31d2 0f30 {HANDLER}", rows=[(13, 0, "handler")]).status


def test_a_page_fault_tells_its_address_on_the_shared_page():
    """The error code is pushed; events are masked by a gate that asks for it."""
    domain, frame = frame_of(14, 4, f"{map_shared()} {UNMASK_UPCALLS} here: c705$deadb000$1")
    assert (2, domain.labels["here"], 0xE019) == frame[:3]
    assert (0xDEAD_B000,) == domain.words(SHARED + 8)
    assert 1 == domain.read(SHARED + 1, 1)[0]


@pytest.mark.parametrize("address", [0xF580_0000, 0xFFFF_F000, 0xFB00_0000])
def test_the_hypervisors_part_of_the_address_space_is_out_of_reach(address):
    """Without a table in slot 3 there is nothing at all."""
    _, frame = frame_of(14, 0, f"here: a1${address:x}")
    assert 0 == frame[0]


def test_a_store_to_the_kernels_own_page_table_faults():
    """The MMU itself refuses it: the mapping is read-only and ring 1 is no exception."""
    domain = SmallDomain("f4")
    at = struct.unpack("<I", domain.read(domain.machine.registers().gprs[6] + 60, 4))[0]
    for page in range(4):
        _, frame = frame_of(14, 0, f"here: c705${at + page * 4096:x}$1")
        assert 3 == frame[0]


def test_a_mapping_that_was_not_flushed_does_not_make_a_table_writable():
    """The page was written through it a moment ago."""
    at = leaf(USER)
    unmap = requests((at, 0))
    pin = struct.pack("<III", 0, (USER + OFFSET) >> 12, 0)
    text = (
        f"c705${USER:x}$0 {call(Hypercall.MMU_UPDATE, REQUESTS, 1, 0, SELF)} {eax_to(SCRATCH + 0x100)}"
        f" {call(Hypercall.MMUEXT_OP, REQUESTS + 0x100, 1, 0, SELF)} {eax_to(SCRATCH + 0x104)} here: c705${USER:x}$7"
    )
    domain, frame = frame_of(14, 0, text, data={REQUESTS: unmap, REQUESTS + 0x100: pin})
    assert (0, 0) == domain.words(SCRATCH + 0x100, 2)
    assert (2, domain.labels["here"]) == frame[:2]
    assert b"\0" * 8 == domain.machine.memory.read(USER + OFFSET, 8)


TO_USER = (
    f"{call(Hypercall.STACK_SWITCH, 0xE021, STACK)} 6833e00000 68${USER + 0xF00:x} 6802020000 682be00000 68${USER:x}"
)
IRET = "cf"
IRET_CALL = f"50 b8${int(Hypercall.IRET):x} {CALL}"


def in_user(code, vector, flags, back=IRET):
    """A trap from user code in ring 3."""
    mapping = call(Hypercall.UPDATE_VA_MAPPING, USER, (USER + OFFSET) | P | RW | US, 0, 2)
    return frame_of(vector, flags, f"{mapping} {TO_USER} {back}", data={USER: bytes.fromhex(code)})


@pytest.mark.parametrize("back", [IRET, IRET_CALL])
def test_user_code_calls_its_kernel(back):
    """By IRET or by the hypercall into ring 3, back by INT 80h, on the stack that stack_switch named."""
    domain, frame = in_user("cd80", 0x80, 3, back)
    mask = 0 if back is IRET_CALL else 1 << 16
    assert (USER + 2, 0xE02B | mask) == frame[:2]
    assert (USER + 0xF00, 0xE033) == frame[3:5]
    assert {"128": 1} == domain.machine.statistics()["exits_by_detail"]["reflected_interrupt"]


def test_user_code_calls_neither_the_hypervisor_nor_a_gate_of_the_kernels():
    """#GP with the vector in its error code, at the INT itself."""
    for vector in (0x82, 0x40):
        _, frame = in_user(f"cd{vector:02x}", 13, 0)
        assert (vector * 8 + 2, USER) == frame[:2]


def test_the_iret_hypercall_sets_the_event_mask():
    """From the IF of the flags it pops."""
    for flags, masked in ((0x202, 0), (2, 1)):
        text = f"{map_shared()} 68${flags:x} 6819e00000 68=there {IRET_CALL} f4 there: {STOP}"
        assert masked == run(text).read(SHARED + 1, 1)[0]


# ---------------------------------------------------------------------- how a guest ends


@pytest.mark.parametrize(("reason", "status"), [(0, 0), (1, 0), (2, 64), (3, 64), (4, 64)])
def test_a_guest_ends_itself_with_a_reason(reason, status):
    """Power off and reboot are clean; a crash is said to be one."""
    domain = run(f"c705${SCRATCH + 0xFF0:x}${reason:x} {STOP}")
    assert status == domain.status
    if reason == 3:
        assert "crash" in domain.machine.stop.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0f0b", "its trap table has no entry for vector 6"),
        (f"{SET_TRAPS} bc$00000000 0f0b handler: f4", "its kernel stack faults at 0xfffffff4"),
        (f"{SET_TRAPS} bcf8ffffff 0f0b handler: f4", "its kernel stack faults"),
        (f"bc$e0000000 b8$17 {CALL}", "the iret hypercall cannot return"),
        (f"6a00 6a00 6a00 {IRET_CALL}", "selector 0x0000 is no code segment"),
        (f"6a02 6821e00000 6a00 {IRET_CALL}", "selector 0xe021 is no code segment"),
        (f"6a02 6818e00000 6a00 {IRET_CALL}", "is of the wrong ring"),
    ],
)
def test_a_kernel_that_cannot_be_entered_ends_with_a_sentence(text, words):
    """EIP, instruction and cause."""
    domain = run(
        f"{text} {'' if 'handler' in text else 'handler:'}", rows=[(6, 0, "handler")] if "handler" in text else ()
    )
    assert 64 == domain.status
    assert words in domain.machine.stop.reason
    assert "at EIP 0x0010" in domain.machine.stop.reason


def test_an_event_without_a_callback_ends_with_a_sentence():
    """The guest unmasked what it had no handler for."""
    domain = run(f"{map_shared()} {BIND} {UNMASK_PORTS} {UNMASK_UPCALLS} {timer(50_000)} {WAIT} {STOP}")
    assert "an event came before set_callbacks had said where to" in domain.machine.stop.reason


# ---------------------------------------------------------------------- descriptors, frames, console

OWN_CODE, BASED_DATA = 0x00CF_9B00_0000_FFFF, 0x0040_9300_0000_FFFF | (SCRATCH & 0xFF_FFFF) << 16


def test_a_kernel_uses_descriptors_of_its_own():
    """The CPU reads them from the guest's frame; ring 0 in them is ring 1."""
    gdt = struct.pack("<3Q", 0, OWN_CODE, BASED_DATA)
    frames = struct.pack("<I", (USER + OFFSET) >> 12)
    unmap = call(Hypercall.UPDATE_VA_MAPPING, USER, (USER + OFFSET) | P, 0, 2)
    load = call(Hypercall.SET_GDT, REQUESTS, 3)
    domain = run(
        f"{unmap} {load} {eax_to(SCRATCH + 0x100)} b8$11 8ed8 c705$00000000$1234 b8$e021 8ed8 8cc8 ea=there 0900"
        f" there: 2e8b0d$00000000 {STOP}".replace("2e8b0d$00000000", "90"),
        data={USER: gdt, REQUESTS: frames},
    )
    assert 0 == domain.status
    assert (0x1234,) == domain.words(SCRATCH)
    assert (0,) == domain.words(SCRATCH + 0x100)
    assert 1 == struct.unpack("<Q", domain.read(USER + 8, 8))[0] >> 45 & 3


def test_frames_are_given_back_and_taken_again():
    """memory_op, as a balloon uses it; a frame that is still mapped is not given back."""
    frame, at = (USER + OFFSET) >> 12, leaf(USER)
    reservation = struct.pack("<IIIIHH", REQUESTS + 0x80, 1, 0, 0, SELF, 0)
    text = (
        f"{call(Hypercall.MEMORY_OP, 1, REQUESTS)} {eax_to(SCRATCH)}"
        f" {call(Hypercall.MMU_UPDATE, REQUESTS + 0x100, 1, 0, SELF)}"
        f" {call(Hypercall.MEMORY_OP, 1, REQUESTS)} {eax_to(SCRATCH + 4)}"
        f" {call(Hypercall.MEMORY_OP, 3, REQUESTS + 16)} {eax_to(SCRATCH + 8)} {call(Hypercall.MEMORY_OP, 1, REQUESTS)}"
        f" {eax_to(SCRATCH + 12)} c705${REQUESTS + 0x80:x}$77 {call(Hypercall.MEMORY_OP, 6, REQUESTS)}"
        f" {eax_to(SCRATCH + 16)} {call(Hypercall.MEMORY_OP, 6, REQUESTS)} {eax_to(SCRATCH + 20)} {STOP}"
    )
    domain = run(
        text,
        data={REQUESTS: reservation, REQUESTS + 0x80: struct.pack("<I", frame), REQUESTS + 0x100: requests((at, 0))},
    )
    total = len(domain.domain.frames)
    assert (0, 1, total - 1, 0, 1, 0) == domain.words(SCRATCH, 6)
    assert (frame,) == domain.words(REQUESTS + 0x80)
    assert 0x77 == domain.mode.paging.machine_to_physical[frame]


def test_the_console_is_a_ring():
    """What the guest puts in comes out; what is typed goes in, and raises the port."""
    info = SmallDomain("f4")
    at = info.machine.registers().gprs[6] + 0x2000
    text = (
        f"c705${at + 1024:x}$0a6968 c705${at + 0xC0C:x}$3 c705${SCRATCH:x}$1"
        f" {call(Hypercall.EVENT_CHANNEL_OP, 4, SCRATCH)} wait: 833d${at + 0xC04:x} 02 75~wait {STOP}"
    )
    domain = SmallDomain(text)
    assert domain.machine.run(2_000) is None
    assert b"hi\n" == domain.console.data
    domain.machine.send_serial(b"ok")
    assert 0 == domain.run()
    assert b"ok" == domain.read(at, 2)
    assert (3, 3) == domain.words(at + 0xC08, 2)


def test_the_table_of_machine_frames_is_read_only():
    """In the hypervisor's part of the address space, once there is a table in slot 3."""
    info = SmallDomain("f4")
    top = info.mode.paging.base
    table = (USER + OFFSET) >> 12
    unmap = call(Hypercall.UPDATE_VA_MAPPING, USER, (USER + OFFSET) | P, 0, 2)
    hang = requests(((top << 12) + 24, table << 12 | P))
    update = call(Hypercall.MMU_UPDATE, REQUESTS, 1, 0, SELF)
    text = f"{unmap} {update} a1${0xF580_0000 + 4 * (table + 1):x} {eax_to(SCRATCH + 0x100)}"
    domain, frame = frame_of(14, 0, f"{text} here: c705$f5800000$1", data={REQUESTS: hang})
    assert ((USER >> 12) + 1,) == domain.words(SCRATCH + 0x100)
    assert (3, domain.labels["here"]) == frame[:2]


def test_one_transition_is_not_for_ever():
    """Pinning and unpinning a table again and again is cut short, and the kernel is told how far it came."""
    many, at = 6_000, 0x20_0000
    pin, unpin = (struct.pack("<III", command, (USER + OFFSET) >> 12, 0) for command in (0, 4))
    unmap = call(Hypercall.UPDATE_VA_MAPPING, USER, 0, 0, 2)
    pins = call(Hypercall.MMUEXT_OP, at, many, SCRATCH, SELF)
    domain = run(f"{unmap} {pins} {eax_to(SCRATCH + 4)} {STOP}", data={at: (pin + unpin) * (many // 2)})
    done, result = domain.words(SCRATCH, 2)
    assert -7 & 0xFFFF_FFFF == result
    assert 4_000 < done < 4_200


def test_what_the_hypervisor_writes_into_running_code_is_executed():
    """The count of updates goes into the operand of a later instruction of the same page, again and again."""
    at = leaf(SCRATCH)
    text = (
        f"eb~begin patch: bb operand: 00000000 c3 begin: 31ff b9$40 top: 51 57 {call(1, REQUESTS, 3, 'operand', SELF)}"
    )
    text += f" 5f 59 e8>patch 01df c705=operand$0 49 0f85>top 893d${SCRATCH:x} {STOP}"
    domain = run(text, data={REQUESTS: requests(*[(at, (SCRATCH + OFFSET) | P | RW)] * 3)})
    assert (3 * 0x40,) == domain.words(SCRATCH)


def test_a_multicall_in_a_multicall_is_refused():
    """And iret, which could not come back."""
    for number in (Hypercall.MULTICALL, Hypercall.IRET):
        entry = struct.pack("<8I", number, 0, REQUESTS, 1, 0, 0, 0, 0)
        domain = run(f"{call(Hypercall.MULTICALL, REQUESTS, 1)} {STOP}", data={REQUESTS: entry})
        assert (-22 & 0xFFFF_FFFF,) == domain.words(REQUESTS + 4)


def test_leaving_and_entering_again_changes_nothing():
    """As in every mode."""
    text = f"{map_shared()} {UNMASK_UPCALLS} b9$100 top: 40 49 75~top {STOP}"
    domain = SmallDomain(text)
    domain.machine.run(300)
    before = domain.machine.registers()
    domain.mode.enter(domain.mode.leave())
    assert before == domain.machine.registers()
    assert 0 == domain.run()


def test_two_runs_are_the_same_event_by_event():
    """Position, exits and events."""
    begin = f"{map_shared()} {CALLBACKS} {BIND} {UNMASK_PORTS} {UNMASK_UPCALLS}"
    runs = []
    for stops in ((), range(100, 3_000, 7)):
        tracer, seen = Tracer(), []
        tracer.subscribe(seen.append)
        domain = SmallDomain(f"{begin} {timer(9_000)} {WAIT} f4 {UPCALL}", tracer=tracer)
        for stop in stops:
            domain.machine.run(stop)
        domain.run()
        runs.append((seen, domain.machine.mode.position()))
    assert runs[0] == runs[1]


def test_iret_ignores_the_flag_of_virtual_8086_mode():
    """Of user code and of the kernel: neither is in ring 0."""
    user = f"68$20202 682be00000 68${USER + 0x40:x} cf"
    mapping = call(Hypercall.UPDATE_VA_MAPPING, USER, (USER + OFFSET) | P | RW | US, 0, 2)
    code = assemble(user, USER)[0].ljust(0x40, b"\x90") + b"\xcd\x80"
    _, frame = frame_of(0x80, 3, f"{mapping} {TO_USER} {IRET}", data={USER: code})
    assert USER + 0x42 == frame[0]
    domain = run(f"68$20202 6819e00000 68=there cf f4 there: 9c 58 {eax_to(SCRATCH)} {STOP}")
    assert 0 == domain.status
    assert not domain.words(SCRATCH)[0] & 1 << 17


def test_an_nmi_reaches_only_a_kernel_that_has_a_handler_for_it():
    """Others go on."""
    wait = "b9$2000 wait: 49 75~wait"
    domain = SmallDomain(f"{wait} {STOP}")
    domain.machine.run(1_000)
    domain.machine.board.nmi.raise_nmi()
    assert 0 == domain.run()
    domain = SmallDomain(f"{SET_TRAPS} {wait} c605${SCRATCH:x} 01 {STOP} {HANDLER}")
    domain.write(TRAPS, traps((2, 0, "handler"), labels=domain.labels))
    domain.machine.run(1_000)
    domain.machine.board.nmi.raise_nmi()
    assert 0 == domain.run()
    assert (0xE019 | 1 << 16,) == domain.words(SCRATCH + 4)
