"""Mode pv on small ported kernels: hypercalls, events and traps on the engine, and what a kernel cannot do."""

import struct

import pytest

from hvemu.trace.events import Batched, Exited
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.exits import ExitKind
from hvemu.vocabulary.xen import Hypercall
from tests.modes.small_kernel import Kernel, identity
from tests.paravirtual.small_domain import CALL, DATA, OFFSET, PASS, SmallDomain, call, traps

TRAPS, REQUESTS, SCRATCH, USER, STACK = DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x8000
SELF = 0x7FF0
P, RW, US = 1, 2, 4
STOP = f"{call(Hypercall.SCHED_OP, 2, SCRATCH + 0xFF0)}"
"""Shutdown; the reason at SCRATCH + 0xFF0 is 0: power off."""
SET_TRAPS = call(Hypercall.SET_TRAP_TABLE, TRAPS)
HANDLER = "handler: 60 bf$%x 8d742420 b9$8 fcf3a5 61" % SCRATCH
"""Keep eight words of the frame at SCRATCH."""


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
    domain = run(
        f"b8$ffff bb$1 b9$2 ba$3 be$4 bf$5 {CALL} 60 5f 5e 5d 58 {eax_to(SCRATCH)} 5b 5a 59 58 {eax_to(SCRATCH + 4)} {STOP}"
    )
    assert 0xFFFF_FFFF - 37 == domain.words(SCRATCH + 4)[0]


# ---------------------------------------------------------------------- events

BIND = f"c705${SCRATCH + 0x100:x}$0 c705${SCRATCH + 0x104:x}$0 {call(Hypercall.EVENT_CHANNEL_OP, 1, SCRATCH + 0x100)}"
"""bind_virq(VIRQ_TIMER): the port is at SCRATCH + 0x108, and is 3 because console and store have 1 and 2."""
CALLBACKS = call(Hypercall.SET_CALLBACKS, 0xE019, "upcall", 0xE019, "upcall")
SHARED = SCRATCH + 0x4000
MAP_SHARED = "%s"
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
    text = f"{map_shared()} {CALLBACKS} {BIND} c705${SHARED + 0x880:x}$0 {UNMASK_UPCALLS} {timer(50_000)} {WAIT} f4 {UPCALL}"
    domain = run(text)
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
    before = f"{map_shared()} {CALLBACKS} {BIND} c705${SHARED + 0x880:x}$0 {timer(50_000)} {WAIT}"
    domain = run(f"{before} {UNMASK_UPCALLS} {WAIT.replace('wait', 'more')} {STOP} {UPCALL}")
    assert "event_upcall" not in domain.events()  # the next call is the last
    version = call(Hypercall.XEN_VERSION, 0)
    domain = run(f"{before} {UNMASK_UPCALLS} {version} ff05${SCRATCH + 4:x} {STOP} {UPCALL}")
    assert (1, 0) == domain.words(SCRATCH, 2)
