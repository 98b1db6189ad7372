"""Delivery in long mode, against section 6.14 of the SDM's volume 3A, on a CPU without an engine."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.delivery import Escalated, Event, TripleFault, deliver
from hvemu.cpu.state import CS, ESP, FLAG_IF, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM, SS, Segment, TableRegister, VirtualCpu
from hvemu.cpu.state import segment_from_descriptor as loaded
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.paging import CR0_ET, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME

HIGH = 0xFFFF_FFFF_8000_0000
"""The first 2 MiB once more; what the CPU reads by itself is all up there."""
LEVEL4, LEVEL3, LEVEL3_HIGH, LEVEL2, LEVEL1 = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
GDT, IDT, TSS = 0x6000, 0x8000, 0xA000
STACKS = 0x1_1000, 0x1_2000, 0x1_3000
IST = 0x1_8000
HANDLERS = HIGH + 0x2_0000
HOME, TOP = HIGH + 0x4_5678, HIGH + 0x1_0FF8
CODE, DATA, USER_32, USER_DATA, USER_CODE, TASK, CONFORMING, ABSENT, CODE_32 = (
    0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30, 0x40, 0x48, 0x50,
)  # fmt: skip
DESCRIPTORS = {
    CODE: 0x00AF_9B00_0000_FFFF, DATA: 0x00CF_9300_0000_FFFF, USER_32: 0x00CF_FB00_0000_FFFF,
    USER_DATA: 0x00CF_F300_0000_FFFF, USER_CODE: 0x00AF_FB00_0000_FFFF, CONFORMING: 0x00AF_9F00_0000_FFFF,
    ABSENT: 0x00AF_1B00_0000_FFFF, CODE_32: 0x00CF_9B00_0000_FFFF,
}  # fmt: skip
DE, UD, DF, TS, NP, SSF, GP, PF = 0, 6, 8, 10, 11, 12, 13, 14


def gate(offset: int, selector: int = CODE, kind: int = 14, ring: int = 0, stack: int = 0, present: int = 1) -> bytes:
    """A gate of 16 bytes."""
    access = present << 7 | ring << 5 | kind
    return struct.pack("<HHBBHII", offset & 0xFFFF, selector, stack, access, offset >> 16 & 0xFFFF, offset >> 32, 0)


class Scene:
    """A CPU in long mode, in ``ring``; vector n leads to ``handler(n)`` in ring 0."""

    def __init__(self, ring: int = 0, *, compatible: bool = False) -> None:
        self.memory = GuestPhysicalMemory(MachineMemory(2 << 20))
        tables = (
            (LEVEL4, 0, LEVEL3), (LEVEL4, 511, LEVEL3_HIGH), (LEVEL3, 0, LEVEL2), (LEVEL3_HIGH, 510, LEVEL2),
            (LEVEL2, 0, LEVEL1), *((LEVEL1, page, page << 12) for page in range(512)),
        )  # fmt: skip
        for table, index, target in tables:
            self.memory.write(table + 8 * index, struct.pack("<Q", target | 7))
        for selector, value in DESCRIPTORS.items():
            self.memory.write(GDT + (selector & ~7), struct.pack("<Q", value))
        for vector in range(256):
            self.set_gate(vector, gate(self.handler(vector)))
        self.memory.write(TSS + 4, struct.pack("<3Q", *(HIGH + stack for stack in STACKS)))
        self.memory.write(TSS + 0x24, struct.pack("<7Q", *(HIGH + IST + 0x100 * number for number in range(7))))
        self.cpu = VirtualCpu(
            instruction_pointer=HOME,
            flags=0x246,
            cr0=CR0_PE | CR0_ET | CR0_PG | CR0_WP,
            cr3=LEVEL4,
            cr4=CR4_PAE,
            efer=EFER_LME | EFER_LMA,
            gdtr=TableRegister(HIGH + GDT, 0x57),
            idtr=TableRegister(HIGH + IDT, 0xFFF),
            tr=Segment(TASK, HIGH + TSS, 0x67, 0x8B00),
        )
        code = (USER_32 if compatible else USER_CODE) if ring else CODE
        stack = USER_DATA if ring else DATA
        self.cpu.segments = [loaded(stack, DESCRIPTORS[stack])] * 6
        self.cpu.segments[CS] = loaded(code, DESCRIPTORS[code])
        self.cpu.set_long_gpr(ESP, TOP)
        if compatible:
            self.cpu.instruction_pointer = 0x4_5678

    @staticmethod
    def handler(vector: int) -> int:
        """Where the handler of a vector begins."""
        return HANDLERS + 16 * vector

    def set_gate(self, vector: int, value: bytes) -> None:
        """Store a gate in the IDT."""
        self.memory.write(IDT + 16 * vector, value)

    def unmap(self, address: int) -> None:
        """Take a page away, above and below."""
        self.memory.write(LEVEL1 + 8 * (address >> 12 & 511), bytes(8))

    def frame(self, count: int = 5) -> tuple[int, ...]:
        """What lies on the stack, the lowest first."""
        return struct.unpack(f"<{count}Q", self.memory.read(self.cpu.long_gpr(ESP) & 0x1F_FFFF, 8 * count))

    def fails_with(self, event: Event, *expected: tuple[int, int]) -> None:
        """Delivering ``event`` ends in the handler of the last of ``expected``, having been through them all."""
        problem = deliver(self.cpu, self.memory, event)
        assert isinstance(problem, Escalated)
        assert list(expected) == [(step.vector, step.error_code) for step in problem.events[1:]]
        assert self.handler(expected[-1][0]) == self.cpu.eip()


@pytest.mark.parametrize("misalignment", range(16))
def test_from_ring_0_the_stack_is_aligned_and_ss_and_rsp_are_pushed(misalignment: int) -> None:
    """There is no other frame; SS stays what it is."""
    scene = Scene()
    scene.cpu.set_long_gpr(ESP, TOP - misalignment)
    before = scene.cpu.segment(SS)
    assert deliver(scene.cpu, scene.memory, Event(0x21, external=True)) is None
    assert (TOP - misalignment & ~0xF) - 40 == scene.cpu.long_gpr(ESP)
    assert (HOME, CODE, 0x246, TOP - misalignment, DATA) == scene.frame()
    assert (scene.handler(0x21), CODE, before) == (
        scene.cpu.eip(),
        scene.cpu.segment(CS).selector,
        scene.cpu.segment(SS),
    )
    assert scene.cpu.is_64_bit()


@pytest.mark.parametrize("compatible", [False, True])
def test_from_ring_3_the_stack_is_that_of_the_tss_and_ss_is_null(compatible: bool) -> None:
    """From 64-bit code and from compatibility mode, where half of RSP does not exist."""
    scene = Scene(3, compatible=compatible)
    code, home = (USER_32, 0x4_5678) if compatible else (USER_CODE, HOME)
    assert deliver(scene.cpu, scene.memory, Event(GP, 0x18)) is None
    assert HIGH + STACKS[0] - 48 == scene.cpu.long_gpr(ESP)
    pointer = TOP & 0xFFFF_FFFF if compatible else TOP
    assert (0x18, home, code, 0x246 | FLAG_RF, pointer, USER_DATA) == scene.frame(6)
    assert (Segment(0, 0, 0, 0), 0, True) == (scene.cpu.segment(SS), scene.cpu.cpl(), scene.cpu.is_64_bit())


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("number", range(1, 8))
def test_the_interrupt_stack_table(ring: int, number: int) -> None:
    """Its stack is taken from every ring, even if it is the present one."""
    scene = Scene(ring)
    scene.set_gate(DF, gate(scene.handler(DF), stack=number))
    assert deliver(scene.cpu, scene.memory, Event(DF, 0)) is None
    assert HIGH + IST + 0x100 * (number - 1) - 48 == scene.cpu.long_gpr(ESP)
    assert (0 if ring else DATA) == scene.cpu.segment(SS).selector


@pytest.mark.parametrize(("kind", "cleared"), [(14, FLAG_IF), (15, 0)])
def test_flags(kind: int, cleared: int) -> None:
    """An interrupt gate clears IF too; virtual-8086 mode does not exist."""
    scene = Scene()
    scene.set_gate(0x30, gate(scene.handler(0x30), kind=kind))
    scene.cpu.flags |= FLAG_TF | FLAG_NT | FLAG_VM
    assert deliver(scene.cpu, scene.memory, Event(0x30, software=True)) is None
    assert 0x246 & ~cleared == scene.cpu.eflags()
    assert 0x246 | FLAG_TF | FLAG_NT == scene.frame()[2]


def test_a_conforming_handler_stays_in_ring_3() -> None:
    """On the program's own stack, with its SS."""
    scene = Scene(3)
    scene.set_gate(0x30, gate(scene.handler(0x30), CONFORMING, ring=3))
    assert deliver(scene.cpu, scene.memory, Event(0x30, software=True)) is None
    assert (CONFORMING | 3, USER_DATA, 3) == (
        scene.cpu.segment(CS).selector, scene.cpu.segment(SS).selector, scene.cpu.cpl(),
    )  # fmt: skip
    assert (TOP & ~0xF) - 40 == scene.cpu.long_gpr(ESP)


@pytest.mark.parametrize(
    ("value", "vector", "code"),
    [
        (gate(HANDLERS, kind=6), GP, 0x30 * 8 + 2),
        (gate(HANDLERS, kind=5), GP, 0x30 * 8 + 2),
        (gate(HANDLERS, kind=12), GP, 0x30 * 8 + 2),
        (gate(HANDLERS, ring=2), GP, 0x30 * 8 + 2),
        (gate(HANDLERS, ring=3, present=0), NP, 0x30 * 8 + 2),
        (gate(HANDLERS, 0, ring=3), GP, 0),
        (gate(HANDLERS, 0x58, ring=3), GP, 0x58),
        (gate(HANDLERS, 4, ring=3), GP, 4),
        (gate(HANDLERS, DATA, ring=3), GP, DATA),
        (gate(HANDLERS, CODE_32, ring=3), GP, CODE_32),
        (gate(HANDLERS, ABSENT, ring=3), NP, ABSENT),
        (gate(1 << 47, ring=3), GP, 0),
        (gate(1 << 63, ring=3), GP, 0),
    ],
)
def test_gates_that_lead_nowhere(value: bytes, vector: int, code: int) -> None:
    """Gates of 32 bits, task gates, handlers of 32 bits, addresses that are none."""
    scene = Scene(3)
    scene.cpu.ldtr = Segment(0, 0, 0, 0)
    scene.set_gate(0x30, value)
    scene.fails_with(Event(0x30, software=True, start=HOME - 2), (vector, code))
    assert HOME - 2 == scene.frame(6)[1]


def test_the_limit_of_the_idt_counts_16_bytes_a_gate() -> None:
    """The last byte of a gate must be inside."""
    scene = Scene()
    scene.cpu.idtr = TableRegister(HIGH + IDT, 16 * 0x30 + 14)
    scene.fails_with(Event(0x30, external=True), (GP, 0x30 * 8 + 3))
    assert deliver(scene.cpu, scene.memory, Event(0x2F, external=True)) is None


def test_a_tss_that_ends_too_soon() -> None:
    """#TS with its selector; the IST lies farther back than RSP0."""
    scene = Scene(3)
    scene.set_gate(TS, gate(scene.handler(TS), CONFORMING))
    scene.cpu.tr = scene.cpu.tr._replace(limit=4 + 6)
    scene.fails_with(Event(0x30, external=True), (TS, TASK + 1))
    scene = Scene(3)
    scene.cpu.tr = scene.cpu.tr._replace(limit=0x24 + 6)
    scene.set_gate(0x30, gate(scene.handler(0x30), stack=1))
    scene.fails_with(Event(0x30, external=True), (TS, TASK + 1))
    assert deliver(scene.cpu, scene.memory, Event(0x31, external=True)) is None


@pytest.mark.parametrize("pointer", [1 << 47, 1 << 63, (1 << 47) + 16, 0xFFFF_8000_0000_0010])
def test_a_stack_that_is_not_canonical_is_ss(pointer: int) -> None:
    """From the TSS, or the present one; also where only the end of the frame is not."""
    scene = Scene(3)
    scene.memory.write(TSS + 4, struct.pack("<Q", pointer))
    scene.set_gate(SSF, gate(scene.handler(SSF), stack=1))
    scene.fails_with(Event(0x30, external=True), (SSF, 1))
    scene = Scene()
    scene.cpu.set_long_gpr(ESP, pointer + 16)
    scene.set_gate(SSF, gate(scene.handler(SSF), stack=1))
    scene.fails_with(Event(0x30, external=True), (SSF, 1))


def test_without_a_stack_it_is_a_double_fault_and_cr2_tells() -> None:
    """#UD, then #PF at its first push, then #PF again; #DF has a stack."""
    scene = Scene()
    scene.set_gate(DF, gate(scene.handler(DF), stack=1))
    scene.cpu.set_long_gpr(ESP, 0x7000_0000_0000)
    scene.fails_with(Event(UD), (PF, 2), (PF, 2), (DF, 0))
    assert 0x6FFF_FFFF_FFF8 == scene.cpu.cr2
    assert 0x7000_0000_0000 == scene.frame(6)[4]


def test_a_frame_over_two_pages_faults_where_the_cpu_would() -> None:
    """The pushes go down: the upper page faults first, and nothing is written."""
    for absent, address in ((0x1_1000, HIGH + 0x1_1010 - 8), (0x1_0000, HIGH + 0x1_1000 - 8)):
        scene = Scene(3)
        scene.memory.write(TSS + 4, struct.pack("<Q", HIGH + 0x1_1010))
        scene.set_gate(PF, gate(scene.handler(PF), stack=1))
        scene.unmap(absent)
        scene.fails_with(Event(0x30, external=True), (PF, 2))
        assert address == scene.cpu.cr2
        assert bytes(0x1000) == scene.memory.read(0x1_0800, 0x1000)


def test_nowhere_at_all_is_a_triple_fault() -> None:
    """Tables at addresses that are none: #GP, #DF, and the end."""
    scene = Scene()
    scene.cpu.idtr = TableRegister(1 << 47, 0xFFF)
    assert isinstance(deliver(scene.cpu, scene.memory, Event(UD)), TripleFault)


quads = st.integers(0, (1 << 64) - 1)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_guest_can_make_delivery_fail_otherwise(data: st.DataObject) -> None:
    """Random gates, tables, stacks and registers: a handler, or a triple fault."""
    scene = Scene(data.draw(st.sampled_from((0, 3))), compatible=data.draw(st.booleans()))
    cpu = scene.cpu
    for vector in (3, DF, TS, NP, SSF, GP, PF):
        if data.draw(st.booleans()):
            scene.set_gate(vector, data.draw(st.binary(min_size=16, max_size=16)))
    if data.draw(st.booleans()):
        cpu.gdtr = TableRegister(data.draw(quads), data.draw(st.integers(0, 0xFFFF)))
    if data.draw(st.booleans()):
        cpu.tr = Segment(data.draw(st.integers(0, 0xFFFF)), data.draw(quads), data.draw(st.integers(0, 0xFFFF)), 0x8B00)
    scene.memory.write(TSS, data.draw(st.binary(max_size=0x68)))
    cpu.set_long_gpr(ESP, data.draw(st.one_of(quads, st.integers(HIGH, HIGH + (2 << 20)))))
    cpu.cr3 = data.draw(st.one_of(st.just(LEVEL4), st.just(LEVEL4), quads))
    problem = deliver(cpu, scene.memory, Event(3, software=data.draw(st.booleans())))
    assert problem is None or isinstance(problem, (Escalated, TripleFault))
    assert all(0 <= value < 1 << 64 for value in (*cpu.gprs, cpu.eip(), cpu.cr2))
