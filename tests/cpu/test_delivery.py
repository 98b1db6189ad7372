"""Delivery through the IDT, against chapter 6 of the SDM's volume 3A, on a CPU without an engine."""

import struct
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvemu.cpu.delivery import Escalated, Event, TripleFault, Unsupported, deliver
from hvemu.cpu.state import (
    CS,
    DS,
    ES,
    ESP,
    FLAG_AC,
    FLAG_CF,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    SS,
    Segment,
    TableRegister,
    VirtualCpu,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import walk
from hvemu.vocabulary.paging import CR0_ET, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, CR4_PSE

from .scene import (
    ABSENT_CODE,
    ABSENT_DATA,
    BEYOND,
    CODE,
    CODE0,
    CODE1,
    CODE2,
    CODE3,
    CODE16,
    CONFORMING,
    DATA,
    DATA0,
    DATA1,
    DATA2,
    DATA3,
    DATA16,
    GDT,
    HOME,
    HOME_FLAGS,
    IDT,
    LDT,
    LOCAL,
    NOWHERE,
    PAGE_DIRECTORY,
    PAGE_TABLE,
    READ_ONLY,
    SMALL,
    STACKS,
    TASK,
    TSS,
    Scene,
    descriptor,
    gate,
)

LOCAL_CODE = 4
DE, DB, UD, DF, TS, NP, SSF, GP, PF, AC = 0, 1, 6, 8, 10, 11, 12, 13, 14, 17
INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32, TASK_GATE = 6, 7, 14, 15, 5


def fails_with(scene: Scene, event: Event, *expected: tuple[int, int]) -> None:
    """Delivering ``event`` ends in the handler of the last of ``expected``, having been through them all."""
    problem = deliver(scene.cpu, scene.memory, event)
    assert isinstance(problem, Escalated)
    assert (event.vector, *(vector for vector, _ in expected)) == tuple(each.vector for each in problem.events)
    assert [code for _, code in expected] == [each.error_code for each in problem.events[1:]]
    assert scene.handler(expected[-1][0]) == scene.cpu.eip()
    assert expected[-1][1] == scene.frame(1)[0]


# ---------------------------------------------------------------------- gates


@pytest.mark.parametrize("kind", [INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32])
@pytest.mark.parametrize("error_code", [None, 0x1234])
def test_a_gate_of_the_same_ring(kind: int, error_code: int | None) -> None:
    """EFLAGS, CS and EIP on the same stack, the error code on top; EIP of a 16-bit gate has 16 bits."""
    scene = Scene()
    scene.set_gate(0x55, gate(CODE0, 0x12_3456, kind))
    assert deliver(scene.cpu, scene.memory, Event(0x55, error_code, external=True)) is None
    size = 4 if kind >= 14 else 2
    expected = ([] if error_code is None else [error_code]) + [HOME & (1 << 8 * size) - 1, CODE0, HOME_FLAGS]
    assert expected == scene.frame(len(expected), size)
    assert STACKS[0] - size * len(expected) == scene.cpu.gpr(ESP)
    assert 0x12_3456 & (1 << 8 * size) - 1 == scene.cpu.eip()
    assert (CODE0, DATA0) == (scene.selector(CS), scene.selector(SS))
    assert (0 if kind in (INTERRUPT_16, INTERRUPT_32) else FLAG_IF) == scene.cpu.eflags() & FLAG_IF


@pytest.mark.parametrize("kind", [INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32])
@pytest.mark.parametrize("error_code", [None, 0x1234])
@pytest.mark.parametrize(("outer", "inner"), [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1), (1, 0)])
def test_a_gate_into_an_inner_ring(kind: int, error_code: int | None, outer: int, inner: int) -> None:
    """The stack comes from the TSS, and the old one is pushed first."""
    scene = Scene(outer)
    code, data = ((CODE0, DATA0), (CODE1, DATA1), (CODE2, DATA2))[inner]
    old_cs, old_ss = scene.selector(CS), scene.selector(SS)
    scene.set_gate(0x55, gate(code, 0x4321, kind))
    assert deliver(scene.cpu, scene.memory, Event(0x55, error_code, external=True)) is None
    size = 4 if kind >= 14 else 2
    expected = ([] if error_code is None else [error_code]) + [HOME, old_cs, HOME_FLAGS, STACKS[outer], old_ss]
    assert [value & (1 << 8 * size) - 1 for value in expected] == scene.frame(len(expected), size)
    assert STACKS[inner] - size * len(expected) == scene.cpu.gpr(ESP)
    assert (code & ~3 | inner, data, inner) == (scene.selector(CS), scene.selector(SS), scene.cpu.cpl())
    assert 0x4321 == scene.cpu.eip()


def test_a_gate_of_ring_3_for_ring_3() -> None:
    """A non-conforming handler of the same ring stays on the user's stack."""
    scene = Scene(3)
    scene.set_gate(0x55, gate(CODE3, 0x4321))
    assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    assert [HOME, CODE3, HOME_FLAGS] == scene.frame(3)
    assert (CODE3, DATA3, 3) == (scene.selector(CS), scene.selector(SS), scene.cpu.cpl())


@pytest.mark.parametrize("ring", [0, 1, 2, 3])
def test_a_conforming_handler_runs_in_the_ring_of_its_caller(ring: int) -> None:
    """RPL of CS becomes CPL, and the stack stays."""
    scene = Scene(ring)
    before = scene.selector(SS)
    scene.set_gate(0x55, gate(CONFORMING, 0x4321))
    assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    assert (CONFORMING | ring, before, ring) == (scene.selector(CS), scene.selector(SS), scene.cpu.cpl())
    assert 3 == (STACKS[ring] - scene.cpu.gpr(ESP)) // 4


def test_the_hidden_parts_come_from_the_descriptors() -> None:
    """Base, limit and attributes of CS and SS."""
    scene = Scene(3)
    code, data = descriptor(CODE, base=0x123456, limit=0xABCDE), descriptor(DATA, base=0x1000, limit=0x7F)
    scene.describe(CODE16, code)
    scene.describe(DATA16, data)
    scene.set_stack(0, DATA16, 0x8000)
    scene.set_gate(0x55, gate(CODE16, 0x4321))
    assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    assert segment_from_descriptor(CODE16, code) == scene.cpu.segment(CS)
    assert Segment(DATA16, 0x1000, 0x7FFFF, 0xC09200) == scene.cpu.segment(SS)
    assert [HOME, CODE3] == scene.frame(2)


def test_a_handler_may_be_described_in_the_ldt() -> None:
    """Within the LDT's limit."""
    scene = Scene()
    scene.set_gate(0x55, gate(4, 0x4321))
    assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    assert 4 == scene.selector(CS)
    scene.set_gate(0x55, gate(0xC, 0x4321))
    fails_with(scene, Event(0x55, external=True), (GP, 0xC + 1))


@pytest.mark.parametrize("kind", sorted(set(range(32)) - {TASK_GATE, INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32}))
def test_what_is_no_gate_is_a_general_protection_fault(kind: int) -> None:
    """All other types, system or not."""
    scene = Scene()
    scene.set_gate(0x55, gate(CODE0, 0x4321, kind))
    fails_with(scene, Event(0x55, external=True), (GP, 0x55 * 8 + 3))


def test_a_task_gate_is_said_to_be_unsupported() -> None:
    """In a sentence, with the CPU as it was."""
    scene = Scene()
    scene.set_gate(0x55, gate(TASK, 0, TASK_GATE))
    before = scene.snapshot()
    problem = deliver(scene.cpu, scene.memory, Event(0x55, external=True))
    assert Unsupported("vector 85 goes through a task gate, which hvemu does not emulate") == problem
    assert before == scene.snapshot()
    assert isinstance(deliver(scene.cpu, scene.memory, Event(0x55, software=True, start=HOME - 2)), Unsupported)
    assert HOME - 2 == scene.cpu.eip()


@pytest.mark.parametrize(
    ("vector", "limit", "inside"),
    [(0x55, 0x2AF, True), (0x55, 0x2AE, False), (0x55, 0x2A7, False), (255, 0x7FF, True), (255, 0x7FE, False)],
)
def test_the_limit_of_the_idt(vector: int, limit: int, inside: bool) -> None:
    """All eight bytes of a gate must be inside."""
    scene = Scene()
    scene.cpu.idtr = TableRegister(IDT, limit)
    if inside:
        assert deliver(scene.cpu, scene.memory, Event(vector, external=True)) is None
    else:
        fails_with(scene, Event(vector, external=True), (GP, vector * 8 + 3))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("selector", [CODE16, 4])
def test_the_limit_of_the_descriptor_tables(selector: int, inside: bool) -> None:
    """All eight bytes of the code segment's descriptor must be inside GDT or LDT."""
    scene = Scene()
    limit = (selector & ~7) + (7 if inside else 6)
    if selector & 4:
        scene.cpu.ldtr = Segment(LOCAL, LDT, limit, 0x8200)
    else:
        scene.cpu.gdtr = TableRegister(GDT, limit)
    scene.set_gate(0x55, gate(selector, 0x4321))
    if inside:
        assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    else:
        fails_with(scene, Event(0x55, external=True), (GP, selector + 1))


@pytest.mark.parametrize(("limit", "inside"), [(DATA2 + 5, True), (DATA2 + 4, False)])
def test_the_limit_of_the_gdt_for_the_stack(limit: int, inside: bool) -> None:
    """The same for the descriptor that the TSS names, as #TS."""
    scene = Scene(3)
    scene.set_gate(0x55, gate(CODE2, 0x4321))
    scene.cpu.gdtr = TableRegister(GDT, limit)
    if inside:
        assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
    else:
        fails_with(scene, Event(0x55, external=True), (TS, (DATA2 & ~3) + 1))


# ---------------------------------------------------------------------- flags


ALL_FLAGS = FLAG_TF | FLAG_IF | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_CF | 3 << 12 | 1 << 21 | 2


@pytest.mark.parametrize("kind", [INTERRUPT_32, TRAP_32])
def test_flags_that_delivery_clears(kind: int) -> None:
    """TF, NT, RF and VM, and IF through an interrupt gate; everything else stays."""
    scene = Scene()
    scene.cpu.set_eflags(ALL_FLAGS)
    scene.set_gate(0x55, gate(CODE0, 0x4321, kind))
    deliver(scene.cpu, scene.memory, Event(0x55, external=True))
    cleared = FLAG_TF | FLAG_NT | FLAG_RF | (FLAG_IF if kind == INTERRUPT_32 else 0)
    assert ALL_FLAGS & ~cleared == scene.cpu.eflags()
    assert ALL_FLAGS & ~FLAG_RF == scene.frame(3)[2]


@pytest.mark.parametrize(
    ("event", "resume"),
    [
        *[(Event(vector), True) for vector in (0, 5, 6, 7, 16, 18, 19)],
        *[(Event(vector, 0), True) for vector in (TS, NP, SSF, GP, PF, AC)],
        *[(Event(vector), False) for vector in (DB, 2, 3, 4)],
        (Event(DF, 0), False),
        (Event(GP, software=True), False),
        (Event(GP, external=True), False),
        (Event(0x80, software=True), False),
    ],
    ids=lambda value: str(getattr(value, "vector", value)),
)
def test_the_resume_flag_is_pushed_for_faults(event: Event, resume: bool) -> None:
    """SDM vol. 3B, 17.3.1.1: so that the instruction can be started again."""
    scene = Scene()
    scene.cpu.set_gpr(ESP, STACKS[0])
    deliver(scene.cpu, scene.memory, event)
    pushed = scene.frame(4)[2 if event.error_code is None else 3]
    assert resume == bool(pushed & FLAG_RF)


# ---------------------------------------------------------------------- INT n


@pytest.mark.parametrize("cpl", [0, 1, 2, 3])
@pytest.mark.parametrize("dpl", [0, 1, 2, 3])
def test_the_gate_must_be_open_to_software(cpl: int, dpl: int) -> None:
    """INT n checks DPL against CPL; the error code names the gate without EXT."""
    scene = Scene(cpl)
    scene.set_gate(0x80, gate(CODE0, 0x4321, TRAP_32, dpl))
    event = Event(0x80, software=True, start=HOME - 2)
    if cpl <= dpl:
        assert deliver(scene.cpu, scene.memory, event) is None
        assert HOME == scene.frame(1)[0]
    else:
        fails_with(scene, event, (GP, 0x80 * 8 + 2))
        assert HOME - 2 == scene.frame(2)[1]


@pytest.mark.parametrize("event", [Event(0x80, external=True), Event(UD), Event(GP, 0), Event(2, external=True)])
def test_hardware_does_not_check_the_gate(event: Event) -> None:
    """Exceptions and interrupts pass any DPL."""
    scene = Scene(3)
    assert deliver(scene.cpu, scene.memory, event) is None
    assert scene.handler(event.vector) == scene.cpu.eip()


def test_a_failed_int_is_reported_at_the_instruction_itself() -> None:
    """The fault is INT's own: EIP of INT is what its handler sees, in every kind of failure."""
    for broken, code in (
        (gate(CODE0, 0x4321, ring=3, present=False), (NP, 0x80 * 8 + 2)),
        (gate(0, 0x4321, ring=3), (GP, 0)),
        (gate(ABSENT_CODE, 0x4321, ring=3), (NP, ABSENT_CODE)),
        (gate(BEYOND, 0x4321, ring=3), (GP, BEYOND)),
    ):
        scene = Scene(3)
        scene.set_gate(0x80, broken)
        fails_with(scene, Event(0x80, software=True, start=HOME - 2), code)
        assert [HOME - 2, CODE3] == scene.frame(3)[1:]


# ---------------------------------------------------------------------- bad gates, segments and stacks


@pytest.mark.parametrize(
    ("broken", "ring", "vector", "code"),
    [
        (gate(CODE0, 0x4321, present=False), 0, NP, 0x55 * 8 + 2),
        (gate(TASK, 0, TASK_GATE, present=False), 0, NP, 0x55 * 8 + 2),
        (gate(0, 0x4321), 0, GP, 0),
        (gate(3, 0x4321), 0, GP, 0),
        (gate(BEYOND, 0x4321), 0, GP, BEYOND),
        (gate(DATA0, 0x4321), 0, GP, DATA0),
        (gate(TASK, 0x4321), 0, GP, TASK),
        (gate(CODE3, 0x4321), 0, GP, CODE3 & ~3),
        (gate(CODE1, 0x4321), 0, GP, CODE1 & ~3),
        (gate(ABSENT_CODE, 0x4321), 0, NP, ABSENT_CODE),
    ],
    ids=[
        "gate absent", "task gate absent", "null selector", "null selector with RPL", "beyond the GDT", "data segment",
        "system segment", "outer ring", "next outer ring", "segment absent",
    ],
)  # fmt: skip
@pytest.mark.parametrize("external", [False, True])
def test_a_gate_that_leads_nowhere(broken: int, ring: int, vector: int, code: int, external: bool) -> None:
    """The error code names gate or segment, with EXT unless software asked."""
    scene = Scene(ring)
    scene.set_gate(0x55, broken)
    before = scene.snapshot()
    if external:
        fails_with(scene, Event(0x55, external=True), (vector, code + 1))
    else:
        fails_with(scene, Event(0x55, software=True, start=HOME), (vector, code))
    assert before[0].segments == scene.cpu.segments


@pytest.mark.parametrize(
    ("selector", "vector", "code"),
    [
        (0, TS, 0),
        (3, TS, 0),
        (BEYOND | 2, TS, BEYOND),
        (DATA1, TS, DATA1 & ~3),
        (DATA1 & ~3 | 2, TS, DATA1 & ~3),
        (DATA2 & ~3, TS, DATA2 & ~3),
        (DATA3 & ~3 | 2, TS, DATA3 & ~3),
        (CODE2, TS, CODE2 & ~3),
        (READ_ONLY, TS, READ_ONLY & ~3),
        (TASK | 2, TS, TASK),
        (ABSENT_DATA, SSF, ABSENT_DATA & ~3),
        (0xE, TS, 0xC),
    ],
    ids=[
        "null", "null with RPL", "beyond the GDT", "of ring 1", "RPL 2 but DPL 1", "RPL 0", "DPL 3", "code",
        "read-only", "system segment", "absent", "beyond the LDT",
    ],
)  # fmt: skip
@pytest.mark.parametrize("external", [False, True])
def test_a_bad_stack_in_the_tss(selector: int, vector: int, code: int, external: bool) -> None:
    """#TS for a wrong one, #SS for one that is not present."""
    scene = Scene(3)
    scene.set_gate(0x55, gate(CODE2, 0x4321, ring=3))
    scene.set_stack(2, selector, STACKS[2])
    if external:
        fails_with(scene, Event(0x55, external=True), (vector, code + 1))
    else:
        fails_with(scene, Event(0x55, software=True, start=HOME), (vector, code))


@pytest.mark.parametrize(("kind", "needed"), [(0x8B00, 25), (0x8900, 25), (0x8300, 13), (0x8100, 13)])
def test_the_limit_of_the_tss(kind: int, needed: int) -> None:
    """ESP and SS of the ring must be inside, for both sizes of TSS."""
    for limit, inside in ((needed, True), (needed - 1, False)):
        scene = Scene(3)
        scene.memory.write(TSS, bytes(104))
        if kind & 0x800:
            scene.set_stack(0, DATA0, STACKS[0])
            scene.set_stack(2, DATA2, STACKS[2])
        else:
            scene.memory.write(TSS + 2, struct.pack("<6H", STACKS[0], DATA0, 0, 0, STACKS[2], DATA2))
        scene.cpu.tr = Segment(TASK | 3, TSS, limit, kind)
        scene.set_gate(0x55, gate(CODE2, 0x4321))
        if inside:
            assert deliver(scene.cpu, scene.memory, Event(0x55, external=True)) is None
            assert (DATA2, STACKS[2] - 20) == (scene.selector(SS), scene.cpu.gpr(ESP))
        else:
            fails_with(scene, Event(0x55, external=True), (TS, TASK + 1))


def test_the_tss_is_read_no_further_than_it_must_be() -> None:
    """Six bytes; the page behind them need not exist."""
    scene = Scene(3, paging=True)
    scene.memory.write(0xFFFA, struct.pack("<IH", STACKS[0], DATA0))
    scene.cpu.tr = Segment(TASK, 0xFFFA - 4, 0x67, 0x8B00)
    scene.unmap(0x1_0000)
    assert deliver(scene.cpu, scene.memory, Event(UD)) is None
    assert DATA0 == scene.selector(SS)


# ---------------------------------------------------------------------- stacks


def test_a_16_bit_stack_keeps_the_upper_half_of_esp() -> None:
    """Only SP moves, and the frame lies at SP."""
    scene = Scene()
    scene.load(SS, DATA16)
    scene.cpu.set_gpr(ESP, 0xABCD_9000)
    assert deliver(scene.cpu, scene.memory, Event(UD)) is None
    assert (0xABCD_8FF4, [HOME, CODE0]) == (scene.cpu.gpr(ESP), scene.frame(2))


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("pointer", [0, 2, 4, 8])
def test_a_16_bit_stack_wraps_at_64_kib(pointer: int, paging: bool) -> None:
    """The words that do not fit go to the segment's end; nothing is written behind it."""
    scene = Scene(paging=paging)
    scene.describe(DATA16, descriptor(DATA, base=0x6_0000, flags=SMALL))
    scene.load(SS, DATA16)
    scene.cpu.set_gpr(ESP, pointer)
    assert deliver(scene.cpu, scene.memory, Event(UD)) is None
    segment = scene.memory.read(0x6_0000, 0x1_0000)
    top = (pointer - 12) & 0xFFFF
    assert top == scene.cpu.gpr(ESP)
    assert struct.pack("<III", HOME, CODE0, HOME_FLAGS | FLAG_RF) == (segment + segment)[top : top + 12]
    assert bytes(16) == scene.memory.read(0x7_0000, 16)


def test_a_wrapping_frame_is_written_whole_or_not_at_all() -> None:
    """The half that could be written is not, when the other half cannot be."""
    for missing in (0x6_0000, 0x6_F000):
        scene = Scene(paging=True)
        scene.describe(DATA16, descriptor(DATA, base=0x6_0000, flags=SMALL))
        scene.load(SS, DATA16)
        scene.cpu.set_gpr(ESP, 4)
        scene.unmap(missing)
        before = scene.without_marks()
        assert isinstance(deliver(scene.cpu, scene.memory, Event(0x55, external=True)), TripleFault)
        assert before == scene.without_marks()


def test_a_frame_across_two_pages() -> None:
    """Both are written, or neither."""
    for missing in (None, 0xA000, 0xB000):
        scene = Scene(3, paging=True)
        scene.set_stack(0, DATA0, 0xB008)
        if missing is not None:
            scene.unmap(missing)
        before = scene.without_marks()
        problem = deliver(scene.cpu, scene.memory, Event(0x55, external=True))
        if missing is None:
            assert problem is None
            assert [HOME, CODE3, HOME_FLAGS, STACKS[3], DATA3] == scene.frame(5)
        else:
            assert isinstance(problem, TripleFault)
            assert before == scene.without_marks()


def test_esp_wraps_at_4_gib() -> None:
    """As addresses do."""
    scene = Scene()
    scene.describe(DATA16, descriptor(DATA, base=0x10_0000))
    scene.load(SS, DATA16)
    scene.cpu.set_gpr(ESP, 4)
    assert deliver(scene.cpu, scene.memory, Event(UD)) is None
    assert 0xFFFF_FFF8 == scene.cpu.gpr(ESP)
    assert struct.pack("<III", HOME, CODE0, HOME_FLAGS | FLAG_RF) == scene.memory.read(0x10_0000 - 8, 12)


@pytest.mark.parametrize(("cpl", "writable", "works"), [(3, True, False), (0, True, True), (0, False, True)])
def test_the_stack_is_written_with_the_rights_of_the_new_ring(cpl: int, writable: bool, works: bool) -> None:
    """Ring 0 may write a supervisor page, and a read-only one without CR0.WP; ring 3 may not."""
    scene = Scene(cpl, paging=True)
    scene.set_gate(0x55, gate(CODE3 if cpl == 3 else CODE0, 0x4321))
    page = (STACKS[cpl] - 1) >> 12
    scene.memory.write(PAGE_TABLE + 4 * page, struct.pack("<I", page << 12 | 1 | (2 if writable else 0)))
    problem = deliver(scene.cpu, scene.memory, Event(0x55, external=True))
    if works:
        assert problem is None
    else:
        assert isinstance(problem, Escalated)
        assert (PF, 0b111, STACKS[3] - 12) == (problem.events[1].vector, problem.events[1].error_code, scene.cpu.cr2)


def test_write_protect_holds_for_ring_0() -> None:
    """With CR0.WP a read-only stack is a page fault, and then a double fault, and then the end."""
    scene = Scene(paging=True)
    scene.cpu.cr0 |= CR0_WP
    page = (STACKS[0] - 1) >> 12
    scene.memory.write(PAGE_TABLE + 4 * page, struct.pack("<I", page << 12 | 1))
    problem = deliver(scene.cpu, scene.memory, Event(0x55, external=True))
    assert isinstance(problem, TripleFault)
    assert [0x55, PF, PF, DF, PF] == [event.vector for event in problem.events]


# ---------------------------------------------------------------------- escalation, table 6-5


BENIGN = [
    *[Event(vector) for vector in (DB, 2, 3, 4, 5, UD, 7, 9, 16, 18, 19)],
    Event(AC, 0),
    Event(0x40, external=True),
    Event(GP, external=True),
    Event(2, external=True),
    Event(0x80, software=True, start=HOME),
    Event(DE, software=True, start=HOME),
    Event(PF, software=True, start=HOME),
]
CONTRIBUTORY = [Event(DE), Event(TS, 0), Event(NP, 0), Event(SSF, 0), Event(GP, 0)]
PAGE_FAULTS = [Event(PF, 2, address=0x1234_5678)]
BROKEN = {
    TS: (gate(CODE1, 0, ring=3), DATA2 & ~3),
    NP: (gate(CODE0, 0, ring=3, present=False), None),
    SSF: (gate(CODE2, 0, ring=3), ABSENT_DATA & ~3),
    GP: (gate(0, 0, ring=3), 0),
    PF: (gate(4, 0, ring=3), None),
}
"""Second fault -> a gate that causes it, and the selector that its error code names."""


def scene_for_escalation() -> Scene:
    """Ring 3 with paging; the stack of ring 1 is bad, that of ring 2 absent, and the LDT is on no page."""
    scene = Scene(3, paging=True)
    scene.set_stack(1, DATA2, STACKS[1])
    scene.set_stack(2, ABSENT_DATA, STACKS[2])
    scene.cpu.ldtr = Segment(4, NOWHERE, 0xFF, 0x8200)
    return scene


def code_of(second: int, event: Event) -> int:
    """The error code of the second fault."""
    external = 0 if event.software else 1
    if second == PF:
        return 0
    selector = BROKEN[second][1]
    return (event.vector * 8 + 2 if selector is None else selector) + external


def name(value: object) -> str:
    """What a case is called."""
    if isinstance(value, Event):
        return f"{'int' if value.software else 'irq' if value.external else 'exception'}{value.vector}"
    return str(value)


@pytest.mark.parametrize("second", sorted(BROKEN))
@pytest.mark.parametrize("event", BENIGN, ids=name)
def test_a_fault_while_delivering_something_benign_is_delivered_itself(event: Event, second: int) -> None:
    """First row of table 6-5. Interrupts and INT n are benign whatever their vector."""
    scene = scene_for_escalation()
    scene.set_gate(event.vector, BROKEN[second][0])
    if event.vector == second:  # the handler of the second fault is broken, too
        problem = deliver(scene.cpu, scene.memory, event)
        assert isinstance(problem, Escalated)
        assert [event.vector, second, second, DF] == [each.vector for each in problem.events]
        return
    fails_with(scene, event, (second, code_of(second, event)))
    assert (NOWHERE if second == PF else 0) == scene.cpu.cr2
    assert [HOME, CODE3, HOME_FLAGS | FLAG_RF, STACKS[3], DATA3] == scene.frame(6)[1:]


@pytest.mark.parametrize("second", [TS, NP, SSF, GP])
@pytest.mark.parametrize("event", CONTRIBUTORY, ids=name)
def test_two_contributory_exceptions_make_a_double_fault(event: Event, second: int) -> None:
    """Second row of table 6-5."""
    scene = scene_for_escalation()
    scene.set_gate(event.vector, BROKEN[second][0])
    fails_with(scene, event, (second, code_of(second, event)), (DF, 0))
    assert [0, HOME, CODE3, HOME_FLAGS, STACKS[3], DATA3] == scene.frame(6)


@pytest.mark.parametrize("event", CONTRIBUTORY, ids=name)
def test_a_page_fault_while_delivering_a_contributory_exception_is_delivered_itself(event: Event) -> None:
    """Second row of table 6-5, last column."""
    scene = scene_for_escalation()
    scene.set_gate(event.vector, BROKEN[PF][0])
    fails_with(scene, event, (PF, 0))
    assert NOWHERE == scene.cpu.cr2


@pytest.mark.parametrize("second", sorted(BROKEN))
@pytest.mark.parametrize("event", PAGE_FAULTS, ids=name)
def test_any_fault_while_delivering_a_page_fault_makes_a_double_fault(event: Event, second: int) -> None:
    """Third row of table 6-5; CR2 is of the last page fault, even though its handler is never called."""
    scene = scene_for_escalation()
    scene.set_gate(event.vector, BROKEN[second][0])
    fails_with(scene, event, (second, code_of(second, event)), (DF, 0))
    assert (NOWHERE if second == PF else 0x1234_5678) == scene.cpu.cr2


@pytest.mark.parametrize("third", sorted(BROKEN))
@pytest.mark.parametrize("event", [Event(DF, 0), *CONTRIBUTORY, *PAGE_FAULTS], ids=name)
def test_a_fault_while_delivering_a_double_fault_is_the_end(event: Event, third: int) -> None:
    """Shutdown: all faults are reported, and the CPU stands where it stood."""
    scene = scene_for_escalation()
    scene.set_gate(event.vector, BROKEN[GP][0])
    scene.set_gate(DF, BROKEN[third][0])
    before = scene.snapshot()
    problem = deliver(scene.cpu, scene.memory, event)
    between = [] if event.vector == DF else [GP, DF]
    assert isinstance(problem, TripleFault)
    assert [event.vector, *between, third] == [each.vector for each in problem.events]
    before[0].cr2 = scene.cpu.cr2
    assert before == scene.snapshot()
    assert (NOWHERE if third == PF else event.address or 0) == scene.cpu.cr2


def test_an_interrupt_with_the_number_of_the_double_fault_is_benign() -> None:
    """As when the PIC still has its vectors of real mode."""
    for event in (Event(DF, external=True), Event(DF, software=True, start=HOME)):
        scene = scene_for_escalation()
        scene.set_gate(DF, BROKEN[NP][0])
        fails_with(scene, event, (NP, code_of(NP, event)))


def test_a_long_chain() -> None:
    """An interrupt fails with #GP, that with #PF, and that with #NP, which makes a double fault."""
    scene = scene_for_escalation()
    scene.set_gate(0x40, BROKEN[GP][0])
    scene.set_gate(GP, BROKEN[PF][0])
    fails_with(scene, Event(0x40, external=True), (GP, 1), (PF, 0))
    scene = scene_for_escalation()
    scene.set_gate(0x40, BROKEN[GP][0])
    scene.set_gate(GP, BROKEN[PF][0])
    scene.set_gate(PF, BROKEN[NP][0])
    fails_with(scene, Event(0x40, external=True), (GP, 1), (PF, 0), (NP, PF * 8 + 3), (DF, 0))


def test_without_an_idt_everything_is_a_triple_fault() -> None:
    """As after LIDT with limit 0, a well-known way to reset."""
    scene = Scene()
    scene.cpu.idtr = TableRegister(0, 0)
    before = scene.snapshot()
    problem = deliver(scene.cpu, scene.memory, Event(3, software=True, start=HOME))
    assert (
        TripleFault((Event(3, software=True, start=HOME), Event(GP, 26), Event(GP, 107), Event(DF, 0), Event(GP, 67)))
        == problem
    )
    assert before == scene.snapshot()


@pytest.mark.parametrize("where", [IDT, GDT, TSS])
def test_tables_on_missing_pages(where: int) -> None:
    """Reading them is a supervisor read of the page that is missing."""
    scene = Scene(3, paging=True)
    scene.unmap(where)
    problem = deliver(scene.cpu, scene.memory, Event(0x55, external=True))
    assert isinstance(problem, TripleFault)
    assert [0x55, PF, PF, DF, PF] == [event.vector for event in problem.events]
    assert [0, 0, 0] == [problem.events[index].error_code for index in (1, 2, 4)]
    assert where == scene.cpu.cr2 & ~0xFFF


# ---------------------------------------------------------------------- virtual-8086 mode


V86_FLAGS = FLAG_VM | 3 << 12 | HOME_FLAGS


def virtual_8086() -> Scene:
    """A real-mode program under a protected-mode monitor."""
    scene = Scene()
    scene.cpu.set_eflags(V86_FLAGS)
    for index, selector in ((ES, 0x1111), (CS, 0x2222), (SS, 0x3333), (DS, 0x4444), (FS, 0x5555), (GS, 0x6666)):
        scene.cpu.set_segment(index, Segment(selector, selector << 4, 0xFFFF, 0xF300))
    scene.cpu.set_gpr(ESP, 0xFF00)
    return scene


@pytest.mark.parametrize("error_code", [None, 0x77])
@pytest.mark.parametrize("kind", [INTERRUPT_32, TRAP_32, INTERRUPT_16])
def test_leaving_virtual_8086_mode(kind: int, error_code: int | None) -> None:
    """The data segments are pushed first and become null; VM is in the image only."""
    scene = virtual_8086()
    scene.set_gate(GP, gate(CODE0, 0x4321, kind))
    assert deliver(scene.cpu, scene.memory, Event(GP, error_code)) is None
    flags = V86_FLAGS | FLAG_RF
    expected = [HOME, 0x2222, flags, 0xFF00, 0x3333, 0x1111, 0x4444, 0x5555, 0x6666]
    expected = expected if error_code is None else [error_code, *expected]
    size = 4 if kind >= 14 else 2
    assert [value & (1 << 8 * size) - 1 for value in expected] == scene.frame(len(expected), size)
    assert [Segment(0, 0, 0, 0)] * 4 == [scene.cpu.segment(index) for index in (ES, DS, FS, GS)]
    assert (CODE0, DATA0, 0) == (scene.selector(CS), scene.selector(SS), scene.cpu.cpl())
    assert V86_FLAGS & ~FLAG_VM & ~(0 if kind == TRAP_32 else FLAG_IF) == scene.cpu.eflags()


@pytest.mark.parametrize("selector", [CONFORMING, CODE3, CODE1, CODE2])
def test_virtual_8086_mode_is_left_for_ring_0_only(selector: int) -> None:
    """#GP with the selector of the handler, before its stack is looked at."""
    scene = virtual_8086()
    scene.set_gate(0x55, gate(selector, 0x4321))
    scene.set_stack(1, 0, 0)
    scene.set_stack(2, 0, 0)
    fails_with(scene, Event(0x55, external=True), (GP, (selector & ~3) + 1))


# ---------------------------------------------------------------------- real mode


def real_mode() -> Scene:
    """Code at 1000:8765 with a stack at 2000:0100; vector n leads to F000:(n * 4)."""
    scene = Scene()
    scene.cpu.cr0 = CR0_ET
    scene.cpu.idtr = TableRegister(0, 0x3FF)
    scene.cpu.set_segment(CS, Segment(0x1000, 0x1_0000, 0xFFFF, 0x9B00))
    scene.cpu.set_segment(SS, Segment(0x2000, 0x2_0000, 0xFFFF, 0x9300))
    scene.cpu.set_gpr(ESP, 0xABCD_0100)
    scene.cpu.set_eip(0x8765)
    for vector in range(256):
        scene.memory.write(4 * vector, struct.pack("<HH", 4 * vector, 0xF000))
    return scene


@pytest.mark.parametrize(
    "event",
    [Event(8, external=True), Event(0x10, software=True), Event(UD), Event(GP, 0x1234), Event(2, external=True)],
)
def test_real_mode_takes_vectors_from_the_table(event: Event) -> None:
    """Three words, never an error code; IF, TF, RF and AC are cleared, the upper half of ESP stays."""
    scene = real_mode()
    scene.cpu.set_eflags(ALL_FLAGS)
    assert deliver(scene.cpu, scene.memory, event) is None
    assert Segment(0xF000, 0xF_0000, 0xFFFF, 0x9B00) == scene.cpu.segment(CS)
    assert (4 * event.vector, 0xABCD_00FA) == (scene.cpu.eip(), scene.cpu.gpr(ESP))
    assert [0x8765, 0x1000, ALL_FLAGS & 0xFFFF] == scene.frame(3, 2)
    assert ALL_FLAGS & ~(FLAG_IF | FLAG_TF | FLAG_RF | FLAG_AC) == scene.cpu.eflags()


@pytest.mark.parametrize("pointer", [0, 1, 2, 3, 4, 5])
def test_the_stack_of_real_mode_wraps(pointer: int) -> None:
    """Within its 64 KiB, even where it is odd."""
    scene = real_mode()
    scene.cpu.set_gpr(ESP, pointer)
    assert deliver(scene.cpu, scene.memory, Event(0x10, software=True)) is None
    segment = scene.memory.read(0x2_0000, 0x1_0000)
    top = (pointer - 6) & 0xFFFF
    assert struct.pack("<HHH", 0x8765, 0x1000, HOME_FLAGS) == (segment + segment)[top : top + 6]
    assert (top, bytes(8)) == (scene.cpu.gpr(ESP), scene.memory.read(0x3_0000, 8))


def test_the_limit_of_the_vector_table() -> None:
    """Beyond it is #GP, and a table that holds not even that is the end."""
    scene = real_mode()
    scene.cpu.idtr = TableRegister(0, 0x203)
    assert deliver(scene.cpu, scene.memory, Event(0x80, external=True)) is None
    scene = real_mode()
    scene.cpu.idtr = TableRegister(0, 0x202)
    event = Event(0x80, software=True, start=0x8763)
    assert isinstance(deliver(scene.cpu, scene.memory, event), Escalated)
    assert (4 * GP, [0x8763, 0x1000]) == (scene.cpu.eip(), scene.frame(2, 2))
    scene = real_mode()
    scene.cpu.idtr = TableRegister(0, 0x1F)
    before = scene.snapshot()
    problem = deliver(scene.cpu, scene.memory, Event(0x80, external=True))
    assert isinstance(problem, TripleFault)
    assert [0x80, GP, GP, DF, GP] == [each.vector for each in problem.events]
    assert before == scene.snapshot()


def test_the_vector_table_may_lie_elsewhere() -> None:
    """LIDT works in real mode, too."""
    scene = real_mode()
    scene.cpu.idtr = TableRegister(0x1_2340, 0x3FF)
    scene.memory.write(0x1_2340 + 4 * 0x10, struct.pack("<HH", 0x55, 0x66))
    deliver(scene.cpu, scene.memory, Event(0x10, software=True))
    assert (0x66, 0x55) == (scene.selector(CS), scene.cpu.eip())


# ---------------------------------------------------------------------- any guest


words = st.integers(0, 0xFFFF_FFFF)
near = st.one_of(st.integers(0, 0x3F_FFFF), st.sampled_from((0, 0x1000, 0xFFF8, 0xFFFC, 0x3F_FFFC, 0xFFFF_FFF8)), words)
events = st.builds(
    Event,
    st.one_of(st.integers(0, 255), st.sampled_from((DF, GP, PF, 3, 0x80))),
    st.one_of(st.none(), st.integers(0, 0xFFFF)),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), words),
    st.one_of(st.none(), words),
)
selectors = st.one_of(
    st.sampled_from((CODE0, CODE1, CODE2, CODE3, CONFORMING, CODE16, LOCAL_CODE)), st.integers(0, 0xFFFF)
)
stack_selectors = st.one_of(st.sampled_from((DATA0, DATA1, DATA2, DATA16)), st.integers(0, 0xFFFF))
quads = st.integers(0, (1 << 64) - 1)
mostly = st.sampled_from((True, True, True, False))
gates = st.one_of(
    st.builds(gate, selectors, words, st.sampled_from((6, 7, 14, 15, 5)), st.integers(0, 3), present=mostly), quads
)
descriptors = st.one_of(
    st.builds(
        descriptor,
        st.sampled_from((CODE, DATA, CODE | 4, 0x10, 0x0B, 0x02)),
        st.integers(0, 3),
        base=st.one_of(st.just(0), near),
        limit=st.integers(0, 0xFFFFF),
        flags=st.integers(0, 15),
        present=mostly,
    ),
    quads,
)
limits = st.sampled_from((0xFFFF, 0x7FF, 0x8F, 0x67, 0x17, 0))


def few(*strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A short list of changes."""
    return st.lists(st.tuples(*strategies), max_size=2)


@st.composite
def situations(draw: st.DrawFn, vector: int) -> Scene:
    """A scene in which a few things have been changed, most of them on the way of ``vector``."""
    mode = draw(st.sampled_from(("protected", "protected", "real", "virtual-8086")))
    scene = {"protected": Scene, "real": real_mode, "virtual-8086": virtual_8086}[mode]()
    cpu, memory = scene.cpu, scene.memory
    if mode == "protected":
        scene.enter(draw(st.integers(0, 3)))
    if mode != "real" and draw(st.booleans()):
        scene.map_pages()
        cpu.cr0 |= draw(st.sampled_from((0, CR0_WP)))
        cpu.cr4 = draw(st.sampled_from((0, 0, 0, CR4_PSE, CR4_PAE)))
        for page, entry in draw(few(st.sampled_from((1, 2, 3, 4, 8, 9, 10, 11)), words)):
            memory.write(PAGE_TABLE + 4 * page, struct.pack("<I", entry))
        cpu.cr3 = draw(st.sampled_from((PAGE_DIRECTORY, PAGE_DIRECTORY, PAGE_DIRECTORY, PAGE_TABLE, 0xFFFF_F000)))
    for at, value in draw(few(st.sampled_from((vector, DF, GP, PF, TS, NP)), gates)):
        scene.set_gate(at, value)
    for at, value in draw(few(st.integers(0, 0x12).map(lambda row: 8 * row), descriptors)):
        scene.describe(at, value)
    for ring, selector, pointer in draw(few(st.integers(0, 2), stack_selectors, near)):
        scene.set_stack(ring, selector, pointer)
    for index, value in draw(few(st.integers(0, 5), descriptors)):
        cpu.set_segment(index, segment_from_descriptor(draw(selectors), value))
    if draw(st.booleans()):
        cpu.set_gpr(ESP, draw(near))
    if draw(st.booleans()):
        cpu.set_eflags(draw(words) & ~FLAG_VM | cpu.eflags() & FLAG_VM)
    change = draw(st.sampled_from(("gdt", "idt", "ldt", "tr", "nothing", "nothing", "nothing")))
    if change == "gdt":
        cpu.gdtr = TableRegister(draw(st.sampled_from((GDT, 0xFFFF_FFF0))), draw(limits))
    elif change == "idt":
        cpu.idtr = TableRegister(draw(st.sampled_from((IDT, 0x3F_FFF0))), draw(limits))
    elif change == "ldt":
        cpu.ldtr = Segment(LOCAL, draw(st.sampled_from((LDT, 0x3F_FFFA))), draw(limits), 0x8200)
    elif change == "tr":
        base, kind = draw(st.sampled_from((TSS, 0x4FFC, 0x3F_FFFE))), draw(st.sampled_from((0x8B00, 0x8300)))
        cpu.tr = Segment(TASK, base, draw(limits), kind)
    return scene


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scene, Event]:
    """A situation, and what happens in it."""
    event = draw(events)
    return draw(situations(event.vector)), event


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_no_guest_can_make_delivery_raise_or_write_elsewhere(case: tuple[Scene, Event]) -> None:
    """Success writes one frame at the stack pointer; failure writes nothing and moves nothing but CR2 and EIP."""
    scene, event = case
    cpu, memory = scene.cpu, scene.memory
    before, image = deepcopy(cpu), bytes(memory.view)
    problem = deliver(cpu, memory, event)
    frame: set[int] = set()
    if isinstance(problem, TripleFault | Unsupported):
        before.cr2, before.instruction_pointer = cpu.cr2, cpu.instruction_pointer
        assert before == cpu
    else:
        frame = frame_of(cpu, memory)
        if cpu.cr0 & CR0_PE:
            assert 0 == cpu.eflags() & (FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM)
            assert cpu.cpl() == cpu.segment(CS).selector & 3
    for page in range(0, len(image), 0x1000):
        now = memory.read(page, 0x1000)
        if now == image[page : page + 0x1000]:
            continue
        for at in range(page, page + 0x1000, 4):
            difference = int.from_bytes(image[at : at + 4], "little") ^ memory.read_u32(at)
            written = {at + index for index in range(4) if difference >> 8 * index & 0xFF}
            assert written <= frame or (cpu.cr0 & CR0_PG and difference & ~0x60 == 0), hex(at)


def frame_of(cpu: VirtualCpu, memory: GuestPhysicalMemory) -> set[int]:
    """The physical addresses of the forty bytes from the stack pointer on, the longest frame there is."""
    stack = cpu.segment(SS)
    big = bool(stack.attributes & 0x40_0000) and bool(cpu.cr0 & CR0_PE)
    mask = 0xFFFF_FFFF if big else 0xFFFF
    addresses = set()
    for index in range(40):
        linear = (stack.base + ((cpu.gpr(ESP) + index) & mask)) & 0xFFFF_FFFF
        physical = walk(memory, cpu.paging(), linear, mark=False)
        if isinstance(physical, int):
            addresses.add(physical)
    return addresses
