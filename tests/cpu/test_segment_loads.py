"""Loads of segment registers and far transfers, against volumes 2 and 3A of the SDM, without an engine."""

import struct

import pytest

from hvemu.cpu.delivery import Event, deliver
from hvemu.cpu.state import (
    CS,
    DS,
    EAX,
    ES,
    ESP,
    FLAG_AC,
    FLAG_CF,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    SS,
    Segment,
)

from .scene import (
    ABSENT_CODE,
    ABSENT_DATA,
    BEYOND,
    CODE,
    CODE0,
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
    LOCAL,
    NOWHERE,
    PAGE_TABLE,
    READ_ONLY,
    SMALL,
    STACKS,
    TASK,
    TSS,
    descriptor,
    gate,
)
from .stage import (
    ARITHMETIC,
    CALL_16,
    CALL_32,
    CONFORMING_CODE,
    EXECUTE_ONLY,
    FLAG_ID,
    FREE,
    GP,
    INWARD,
    LOCAL_CODE,
    NP,
    OPERAND,
    PF,
    RINGS,
    SSF,
    TASK_GATE,
    TS,
    TSS_AVAILABLE,
    TSS_BUSY,
    Stage,
    call_gate,
    far,
    system,
)

# ---------------------------------------------------------------------- loading segment registers


LOADS = {
    DS: ("8ed8", "1f", "c505"),
    ES: ("8ec0", "07", "c405"),
    FS: ("8ee0", "0fa1", "0fb405"),
    GS: ("8ee8", "0fa9", "0fb505"),
    SS: ("8ed0", "17", "0fb205"),
}
"""MOV from AX, POP, and the load of a far pointer into EAX."""


def attempt(stage: Stage, index: int, form: int, selector: int) -> str:
    """Prepare the load of a segment register in one of three forms; returns the instruction."""
    stage.cpu.set_gpr(EAX, 0xABCD_0000 | selector)
    stage.push(0xABCD_0000 | selector)
    stage.put(OPERAND, "IH", 0x1234_5678, selector)
    return LOADS[index][form] + ("00200100" if form == 2 else "")


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("index", LOADS)
def test_loading_a_data_segment(index: int, form: int) -> None:
    """Base, limit and attributes from the descriptor, which is marked accessed; the pointer's offset in EAX."""
    stage = Stage()
    stage.describe(FREE, descriptor(DATA, base=0x0123_4567, limit=0x12345))
    code = attempt(stage, index, form, FREE)
    pointer = stage.cpu.gpr(ESP)
    stage.done(code)
    assert Segment(FREE, 0x0123_4567, 0x1234_5FFF, 0x00C0_9300) == stage.cpu.segment(index)
    assert stage.accessed(FREE)
    assert pointer + (4 if form == 1 else 0) == stage.cpu.gpr(ESP)
    if form == 2:
        assert 0x1234_5678 == stage.cpu.gpr(EAX)
    assert (index == SS and form < 2) == stage.cpu.interrupt_shadow


def test_lss_holds_nothing_off() -> None:
    """It loads SS and ESP at once, so nothing has to be (SDM vol. 2A, LDS/LES/LFS/LGS/LSS)."""
    stage = Stage()
    stage.put(OPERAND, "IH", 0x1234_5678, DATA0)
    stage.cpu.interrupt_shadow = True
    stage.done("0fb225 00200100")  # lss esp, [12000h]
    assert (0x1234_5678, DATA0, False) == (stage.cpu.gpr(ESP), stage.selector(SS), stage.cpu.interrupt_shadow)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("index", [DS, ES, FS, GS])
@pytest.mark.parametrize("ring", [0, 3])
def test_a_null_selector_can_be_loaded(index: int, form: int, ring: int) -> None:
    """The register is unusable then, which is found out at the next access."""
    for null in range(4):
        stage = Stage(ring)
        stage.describe(0, descriptor(DATA, 3))
        stage.done(attempt(stage, index, form, null))
        assert Segment(null, 0, 0, 0) == stage.cpu.segment(index)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("selector", range(4))
def test_ss_is_never_null(form: int, selector: int) -> None:
    """#GP(0), whatever the first slot holds."""
    stage = Stage(selector)
    stage.describe(0, descriptor(DATA, selector))
    stage.refused(attempt(stage, SS, form, selector), GP, 0)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize(
    ("ring", "selector", "vector"),
    [
        (0, DATA3, None),
        (0, READ_ONLY, None),
        (0, CODE0, None),  # readable
        (0, CONFORMING, None),
        (3, CONFORMING | 3, None),  # whatever its DPL
        (3, CODE3, None),
        (3, DATA3 & ~3, None),
        (0, LOCAL_CODE, None),
        (0, DATA0 | 1, GP),  # RPL > DPL
        (1, DATA0, GP),  # CPL > DPL
        (3, DATA0 | 3, GP),
        (3, LOCAL_CODE | 3, GP),
        (3, CODE0, GP),
        (0, TASK, GP),
        (0, LOCAL, GP),
        (0, BEYOND, GP),
        (0, LOCAL_CODE + 8, GP),  # beyond the LDT
        (0, ABSENT_CODE, NP),
        (2, ABSENT_DATA, NP),
        (3, ABSENT_DATA, GP),  # privileges first
    ],
)
def test_what_data_segments_may_be(form: int, ring: int, selector: int, vector: int | None) -> None:
    """Data or readable code, CPL and RPL <= DPL unless it is conforming, present (SDM vol. 2B, MOV)."""
    stage = Stage(ring)
    code = attempt(stage, DS, form, selector)
    if vector is None:
        stage.done(code)
        assert (selector, True) == (stage.selector(DS), stage.accessed(selector))
    else:
        stage.refused(code, vector, selector & 0xFFFC)


@pytest.mark.parametrize("index", LOADS)
@pytest.mark.parametrize("kind", [EXECUTE_ONLY, EXECUTE_ONLY | 4])
def test_execute_only_code_holds_no_data(index: int, kind: int) -> None:
    """#GP(selector)."""
    stage = Stage()
    stage.describe(FREE, descriptor(kind))
    stage.refused(attempt(stage, index, 0, FREE), GP, FREE)


@pytest.mark.parametrize("index", LOADS)
def test_data_that_grows_down(index: int) -> None:
    """It can be loaded like other data; bit 10 makes code conforming, not data."""
    stage = Stage()
    stage.describe(FREE, descriptor(DATA | 4))
    stage.done(attempt(stage, index, 0, FREE))
    stage = Stage(3)
    stage.describe(FREE, descriptor(DATA | 4))
    stage.refused(attempt(stage, index, 0, FREE | 3), GP, FREE)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize(
    ("ring", "selector", "vector"),
    [
        (0, DATA0, None),
        (0, DATA16, None),
        (3, DATA3, None),
        (0, DATA0 | 3, GP),  # RPL
        (0, DATA3 & ~3, GP),  # DPL
        (0, DATA3, GP),
        (3, DATA3 & ~3, GP),
        (2, READ_ONLY, GP),
        (0, CODE0, GP),
        (0, LOCAL_CODE, GP),
        (0, TASK, GP),
        (0, BEYOND, GP),
        (2, ABSENT_DATA, SSF),
        (3, ABSENT_DATA, GP),
    ],
)
def test_what_ss_may_be(form: int, ring: int, selector: int, vector: int | None) -> None:
    """Writable data with RPL = DPL = CPL; absent is #SS (SDM vol. 2B, MOV)."""
    stage = Stage(ring)
    code = attempt(stage, SS, form, selector)
    if vector is None:
        stage.done(code)
        assert selector == stage.selector(SS)
    else:
        stage.refused(code, vector, selector & 0xFFFC)


@pytest.mark.parametrize(
    ("ring", "right", "works"), [(0, 5, True), (0, 1, True), (3, 5, True), (3, 1, False), (3, 0, False)]
)
def test_operands_are_read_with_the_rights_of_the_ring(ring: int, right: int, works: bool) -> None:
    """A user program's selector on a kernel page is a page fault, its descriptor table there is not."""
    stage = Stage(ring, paging=True)
    stage.put(PAGE_TABLE + 4 * (GDT >> 12), "I", GDT | 3)
    stage.put(PAGE_TABLE + 4 * (OPERAND >> 12), "I", OPERAND | right)
    stage.put(OPERAND, "H", DATA3)
    if works:
        stage.done("8e1d 00200100")  # mov ds, [12000h]
    else:
        stage.faults("8e1d 00200100", OPERAND, 4 | right & 1)


def test_a_descriptor_on_an_absent_page() -> None:
    """A supervisor's page fault, also for a user program."""
    stage = Stage(3, paging=True)
    stage.cpu.ldtr = Segment(LOCAL, NOWHERE, 0xFF, 0x8200)
    stage.cpu.set_gpr(EAX, 0xF | 7)
    stage.faults("8ed8", NOWHERE + 8, 0)


@pytest.mark.parametrize(("code", "size"), [("1f", 4), ("661f", 2), ("0fa1", 4), ("660fa1", 2)])
def test_pop_moves_esp_by_the_operand_size(code: str, size: int) -> None:
    """As many bytes are read, by the engine and so by us; the upper ones mean nothing."""
    stage = Stage(paging=True)
    stage.cpu.set_gpr(ESP, 0x1_0000 - size)
    stage.unmap(0x1_0000)
    stage.put(0x1_0000 - size, "H", DATA0)
    stage.done(code)
    assert 0x1_0000 == stage.cpu.gpr(ESP)
    stage.cpu.set_gpr(ESP, 0x1_0000 - size + 1)
    assert stage.do(code).vector == 14


def test_pop_on_a_16_bit_stack() -> None:
    """SP wraps, and the upper half of ESP stays."""
    stage = Stage()
    stage.describe(DATA16, descriptor(DATA, base=0x2_0000, flags=SMALL))
    stage.load(SS, DATA16)
    stage.cpu.set_gpr(ESP, 0xABCD_FFFE)
    stage.put(0x2_FFFE, "H", DATA0)
    stage.done("1f")
    assert (0xABCD_0002, DATA0) == (stage.cpu.gpr(ESP), stage.selector(DS))


def test_pop_ss_counts_in_the_old_stack() -> None:
    """ESP has been read before SS changes."""
    stage = Stage()
    stage.cpu.set_gpr(ESP, 0x1_FFFC)
    stage.put(0x1_FFFC, "I", DATA16)
    stage.done("17")
    assert (0x2_0000, DATA16) == (stage.cpu.gpr(ESP), stage.selector(SS))


def test_a_far_pointer_of_16_bits() -> None:
    """The selector follows the offset, and only AX is loaded."""
    stage = Stage()
    stage.put(OPERAND, "HH", 0x5678, DATA3)
    stage.cpu.set_gpr(EAX, 0xABCD_0000)
    stage.done("66c505 00200100")
    assert (0xABCD_5678, DATA3) == (stage.cpu.gpr(EAX), stage.selector(DS))


def test_a_far_pointer_is_loaded_whole_or_not_at_all() -> None:
    """A page fault at the selector changes nothing."""
    stage = Stage(paging=True)
    stage.unmap(OPERAND)
    stage.faults("c505" + struct.pack("<I", OPERAND - 4).hex(), OPERAND, 0)


# ---------------------------------------------------------------------- far jumps


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize(("size", "offset"), [(4, 0x12_3456), (2, 0x3456)])
def test_a_far_jump(ring: int, size: int, offset: int) -> None:
    """CS and EIP change, the privilege level does not; RPL may be lower than it."""
    stage = Stage(ring)
    code = RINGS[ring][0]
    before = stage.where()[1:]
    stage.goes(far("ea", code & ~3, offset, size), offset)
    assert (code, *before) == stage.where()
    assert stage.accessed(code)


@pytest.mark.parametrize(("prefix", "text", "offset"), [("", "IH", 0x12_3456), ("66", "HH", 0x3456)])
def test_a_far_jump_through_memory(prefix: str, text: str, offset: int) -> None:
    """m16:32 or m16:16."""
    stage = Stage()
    stage.put(OPERAND, text, offset, CODE16)
    stage.goes(prefix + "ff2d 00200100", offset)
    assert CODE16 == stage.selector(CS)


@pytest.mark.parametrize("ring", range(4))
def test_a_far_jump_to_conforming_code(ring: int) -> None:
    """It is entered in the ring of the caller."""
    stage = Stage(ring)
    stage.goes(far("ea", CONFORMING, 0x1234), 0x1234)
    assert (CONFORMING | ring, ring) == (stage.selector(CS), stage.cpu.cpl())


REFUSED_TRANSFERS = [
    (0, 0, GP),
    (0, 3, GP),
    (0, BEYOND, GP),
    (0, DATA0, GP),
    (0, LOCAL, GP),
    (0, TASK, GP),  # busy
    (0, CODE3, GP),  # DPL > CPL
    (3, CODE0 | 3, GP),  # DPL < CPL
    (0, CODE0 | 3, GP),  # RPL > CPL
    (0, LOCAL_CODE + 8, GP),
    (0, ABSENT_CODE, NP),
    (1, ABSENT_CODE, GP),  # privileges first
]


@pytest.mark.parametrize("opcode", ["ea", "9a"])
@pytest.mark.parametrize(("ring", "selector", "vector"), REFUSED_TRANSFERS)
def test_code_segments_that_cannot_be_gone_to(opcode: str, ring: int, selector: int, vector: int) -> None:
    """The error code is the selector without its RPL (SDM vol. 2A, JMP and CALL)."""
    stage = Stage(ring)
    stage.describe(0, descriptor(CODE))
    stage.refused(far(opcode, selector, 0x1234), vector, selector & 0xFFFC)


@pytest.mark.parametrize("opcode", ["ea", "9a"])
def test_conforming_code_of_an_outer_ring(opcode: str) -> None:
    """DPL > CPL is #GP there, too."""
    stage = Stage()
    stage.describe(FREE, descriptor(CONFORMING_CODE, 1))
    stage.refused(far(opcode, FREE, 0), GP, FREE)


@pytest.mark.parametrize("opcode", ["ea", "9a"])
@pytest.mark.parametrize("kind", [TSS_AVAILABLE, 1, TASK_GATE])
def test_tasks(opcode: str, kind: int) -> None:
    """Privileges and presence are checked; the switch itself ends the guest with a sentence."""
    stage = Stage(3)
    stage.describe(FREE, system(kind, 2))
    stage.refused(far(opcode, FREE, 0), GP, FREE)  # DPL < CPL
    outer = Stage()
    outer.describe(FREE, system(kind, 2))
    outer.refused(far(opcode, FREE | 3, 0), GP, FREE)  # DPL < RPL
    stage.describe(FREE, system(kind, 3, present=False))
    stage.refused(far(opcode, FREE, 0), NP, FREE)
    stage.describe(FREE, system(kind, 3))
    assert "0x0088, a task" in stage.unsupported(far(opcode, FREE, 0))


@pytest.mark.parametrize(("kind", "eip"), [(CALL_16, 0x5678), (CALL_32, 0x1234_5678)])
@pytest.mark.parametrize("ring", range(4))
def test_a_jump_through_a_call_gate(ring: int, kind: int, eip: int) -> None:
    """Into code of the same ring; the offset given with the selector is ignored."""
    stage = Stage(ring)
    stage.describe(FREE, call_gate(RINGS[ring][0], 0x1234_5678, kind, parameters=5))
    before = stage.where()
    stage.goes(far("ea", FREE, 0x9999), eip)
    assert before == stage.where()


def test_a_jump_through_a_call_gate_into_conforming_code() -> None:
    """It stays in its ring."""
    stage = Stage(3)
    stage.describe(FREE, call_gate(CONFORMING, 0x4321))
    stage.goes(far("ea", FREE, 0), 0x4321)
    assert (CONFORMING | 3, 3) == (stage.selector(CS), stage.cpu.cpl())


def test_a_jump_does_not_go_inward() -> None:
    """#GP with the code selector, even if the segment is absent, too."""
    for code in (CODE0, ABSENT_CODE):
        stage = Stage(3)
        stage.describe(FREE, call_gate(code, 0x4321))
        stage.refused(far("ea", FREE, 0), GP, code)


@pytest.mark.parametrize("opcode", ["ea", "9a"])
@pytest.mark.parametrize(
    ("ring", "rpl", "value", "vector", "error_code"),
    [
        (3, 0, call_gate(CODE3, 0, ring=2), GP, FREE),  # DPL < CPL
        (0, 3, call_gate(CODE0, 0, ring=2), GP, FREE),  # DPL < RPL
        (0, 0, call_gate(CODE0, 0) & ~(1 << 47), NP, FREE),
        (0, 0, call_gate(0, 0), GP, 0),
        (0, 0, call_gate(1, 0), GP, 0),
        (0, 0, call_gate(3, 0), GP, 0),
        (0, 0, call_gate(BEYOND, 0), GP, BEYOND),
        (0, 0, call_gate(DATA0, 0), GP, DATA0),
        (0, 0, call_gate(FREE, 0), GP, FREE),  # a gate behind a gate
        (0, 0, call_gate(CODE3, 0), GP, CODE3 & ~3),  # outward
        (0, 0, call_gate(ABSENT_CODE, 0), NP, ABSENT_CODE),
        (0, 0, call_gate(LOCAL_CODE + 8, 0), GP, LOCAL_CODE + 8),
    ],
)
def test_call_gates_that_lead_nowhere(
    opcode: str, ring: int, rpl: int, value: int, vector: int, error_code: int
) -> None:
    """Faults of the gate name the gate, faults of the code segment the code segment (SDM vol. 2A, CALL)."""
    stage = Stage(ring)
    stage.describe(0, descriptor(CODE))
    stage.describe(FREE, value)
    stage.refused(far(opcode, FREE | rpl, 0), vector, error_code)


# ---------------------------------------------------------------------- far calls


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("size", [2, 4])
def test_a_far_call(ring: int, size: int) -> None:
    """CS and the address behind the instruction are pushed with the operand size."""
    stage = Stage(ring)
    code = RINGS[ring][0]
    stage.goes(far("9a", code, 0x3456, size), 0x3456)
    after = HOME + (7 if size == 4 else 6)
    assert [after & (1 << 8 * size) - 1, code] == stage.frame(2, size)
    assert STACKS[ring] - 2 * size == stage.cpu.gpr(ESP)


@pytest.mark.parametrize(("prefix", "text", "size"), [("", "IH", 4), ("66", "HH", 2)])
def test_a_far_call_through_memory(prefix: str, text: str, size: int) -> None:
    """m16:32 or m16:16."""
    stage = Stage()
    stage.put(OPERAND, text, 0x3456, CODE16)
    stage.goes(prefix + "ff1d 00200100", 0x3456)
    assert [HOME + 6 + len(prefix) // 2 & (1 << 8 * size) - 1, CODE0] == stage.frame(2, size)


@pytest.mark.parametrize(("kind", "size", "eip"), [(CALL_16, 2, 0x5678), (CALL_32, 4, 0x1234_5678)])
@pytest.mark.parametrize(("ring", "code"), [(0, CODE0), (3, CODE3), (3, CONFORMING), (0, CONFORMING)])
def test_a_call_through_a_gate_of_the_same_ring(ring: int, code: int, kind: int, size: int, eip: int) -> None:
    """The gate decides on the size of the frame; no parameters are copied."""
    stage = Stage(ring)
    old = stage.selector(CS)
    stage.describe(FREE, call_gate(code, 0x1234_5678, kind, parameters=3))
    stage.goes(far("9a", FREE, 0x9999), eip)
    assert [HOME + 7 & (1 << 8 * size) - 1, old] == stage.frame(2, size)
    assert (code & ~3 | ring, RINGS[ring][1], STACKS[ring] - 2 * size, ring) == stage.where()


@pytest.mark.parametrize(("kind", "size"), [(CALL_16, 2), (CALL_32, 4)])
@pytest.mark.parametrize("parameters", [0, 1, 2, 31])
@pytest.mark.parametrize(("outer", "inner"), INWARD)
def test_a_call_through_a_gate_to_an_inner_ring(outer: int, inner: int, parameters: int, kind: int, size: int) -> None:
    """The stack is that of the TSS; on it are the return address, the parameters in order, and the old stack."""
    stage = Stage(outer)
    arguments = [0x1111_0000 + number for number in range(parameters)]
    stage.push(*(value & (1 << 8 * size) - 1 for value in arguments), size=size)
    old_cs, old_ss, old_esp, _ = stage.where()
    code, data = RINGS[inner]
    stage.describe(FREE, call_gate(code, 0x4321, kind, parameters=parameters))
    stage.goes(far("9a", FREE, 0), 0x4321)
    expected = [HOME + 7, old_cs, *arguments, old_esp, old_ss]
    assert [value & (1 << 8 * size) - 1 for value in expected] == stage.frame(len(expected), size)
    assert (code & ~3 | inner, data, STACKS[inner] - size * len(expected), inner) == stage.where()


@pytest.mark.parametrize(
    ("selector", "vector", "error_code"),
    [
        (0, TS, 0),
        (BEYOND, TS, BEYOND),
        (DATA0 | 1, TS, DATA0),  # RPL
        (DATA3 & ~3, TS, DATA3 & ~3),  # DPL
        (CODE0, TS, CODE0),
        (FREE + 8, TS, FREE + 8),
    ],
)
def test_inner_stacks_that_cannot_be(selector: int, vector: int, error_code: int) -> None:
    """#TS with the stack's selector, without EXT, for it was the program's doing; before parameters are read."""
    stage = Stage(3, paging=True)
    stage.describe(FREE, call_gate(CODE0, 0x4321, parameters=1))
    stage.set_stack(0, selector, STACKS[0])
    stage.cpu.set_gpr(ESP, NOWHERE)
    stage.refused_but_marked(far("9a", FREE, 0), Event(vector, error_code))


def test_an_absent_inner_stack() -> None:
    """#SS with its selector."""
    stage = Stage(3)
    stage.describe(FREE, call_gate(CODE2, 0x4321))
    stage.set_stack(2, ABSENT_DATA, STACKS[2])
    stage.refused_but_marked(far("9a", FREE, 0), Event(SSF, ABSENT_DATA & ~3))


@pytest.mark.parametrize(("ring", "limit"), [(0, 8), (1, 16), (2, 24)])
def test_a_tss_too_short_for_the_stack(ring: int, limit: int) -> None:
    """#TS with the selector of the TSS."""
    for short, event in ((limit, Event(TS, TASK)), (limit + 1, None)):
        stage = Stage(3)
        stage.describe(FREE, call_gate(RINGS[ring][0], 0x4321))
        stage.cpu.tr = stage.cpu.tr._replace(limit=short)
        if event is not None:
            stage.refused_but_marked(far("9a", FREE, 0), event)
        else:
            stage.goes(far("9a", FREE, 0), 0x4321)


@pytest.mark.parametrize("where", ["from", "to", "tss"])
def test_page_faults_of_a_call_inward(where: str) -> None:
    """The old stack is read as its ring may, the new one written and the TSS read as the supervisor."""
    stage = Stage(3, paging=True)
    stage.describe(FREE, call_gate(CODE0, 0x4321, parameters=2))
    stage.cpu.set_gpr(ESP, 0xB008 - 4)
    stage.set_stack(0, DATA0, 0xA004)
    page = {"from": 0xB000, "to": 0x9000, "tss": TSS}[where]
    stage.unmap(page)
    address, code = {"from": (0xB004, 4), "to": (0x9FF8 + 4, 2), "tss": (TSS + 4, 0)}[where]
    event = stage.do(far("9a", FREE, 0))
    assert (PF, code, page) == (event.vector, event.error_code, event.address & ~0xFFF)
    if where != "to":
        assert address == event.address
    assert (CODE3, DATA3, 0xB004, 3, HOME) == (*stage.where(), stage.cpu.eip())


def test_a_call_writes_its_frame_whole_or_not_at_all() -> None:
    """Half of it would do, the other page is absent."""
    stage = Stage(paging=True)
    stage.cpu.set_gpr(ESP, 0xA004)
    stage.unmap(0x9000)
    stage.refused_but_marked(far("9a", CODE0, 0x1234), Event(PF, 2, address=0x9FFC))
    assert bytes(4) == stage.memory.read(0xA000, 4)


def test_a_call_writes_with_the_rights_of_its_ring() -> None:
    """A user program's stack on a kernel page is a page fault."""
    stage = Stage(3, paging=True)
    stage.put(PAGE_TABLE + 4 * (STACKS[3] - 1 >> 12), "I", STACKS[3] - 0x1000 | 3)
    stage.refused_but_marked(far("9a", CODE3, 0x1234), Event(PF, 7, address=STACKS[3] - 4))


@pytest.mark.parametrize(("size", "pointer"), [(2, 2), (4, 4), (4, 0), (2, 0)])
def test_a_call_on_a_16_bit_stack(size: int, pointer: int) -> None:
    """SP wraps between the pushes, and the upper half of ESP stays."""
    stage = Stage()
    stage.describe(DATA16, descriptor(DATA, base=0x2_0000, flags=SMALL))
    stage.load(SS, DATA16)
    stage.cpu.set_gpr(ESP, 0xABCD_0000 | pointer)
    stage.goes(far("9a", CODE0, 0x3456, size), 0x3456)
    segment = stage.memory.read(0x2_0000, 0x1_0000)
    top = (pointer - 2 * size) & 0xFFFF
    assert 0xABCD_0000 | top == stage.cpu.gpr(ESP)
    text, mask = ("<II", 0xFFFF_FFFF) if size == 4 else ("<HH", 0xFFFF)
    after = HOME + (7 if size == 4 else 6) & mask
    assert struct.pack(text, after, CODE0) == (segment + segment)[top : top + 2 * size]
    assert bytes(8) == stage.memory.read(0x3_0000, 8)


# ---------------------------------------------------------------------- far returns


@pytest.mark.parametrize("release", [0, 8])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("ring", range(4))
def test_a_far_return_to_the_same_ring(ring: int, size: int, release: int) -> None:
    """EIP and CS from the stack, and the parameters dropped; flags stay."""
    stage = Stage(ring)
    code = RINGS[ring][0]
    stage.push(0x3456, code, size=size)
    prefix = "" if size == 4 else "66"
    stage.goes(prefix + (f"ca{release:02x}00" if release else "cb"), 0x3456)
    assert (code, RINGS[ring][1], STACKS[ring] + release, ring) == stage.where()
    assert HOME_FLAGS == stage.cpu.eflags()


@pytest.mark.parametrize("release", [0, 8])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("outer", "inner"), INWARD)
def test_a_far_return_to_an_outer_ring(outer: int, inner: int, size: int, release: int) -> None:
    """Behind the parameters lie ESP and SS; the parameters are dropped from the outer stack, too."""
    stage = Stage(inner)
    code, data = RINGS[outer]
    stage.push(0x3456, code, *[0xEEEE] * (release // size), 0x7000, data, size=size)
    prefix = "" if size == 4 else "66"
    stage.goes(prefix + (f"ca{release:02x}00" if release else "cb"), 0x3456)
    assert (code, data, 0x7000 + release, outer) == stage.where()


RETURNS = {"retf": "cb", "iretd": "cf"}


def frame_of(name: str, selector: int, flags: int = HOME_FLAGS) -> list[int]:
    """What the return finds on the stack, up to the flags."""
    return [0x1234, selector] if name == "retf" else [0x1234, selector, flags]


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize(
    ("ring", "selector", "vector"),
    [
        (0, 0, GP),
        (0, 3, GP),
        (3, 0, GP),
        (3, CODE0, GP),  # RPL < CPL
        (2, CODE0 | 1, GP),
        (0, BEYOND, GP),
        (0, DATA0, GP),
        (0, TASK, GP),
        (0, CODE0 | 3, GP),  # DPL != RPL
        (0, CODE3 & ~3, GP),
        (0, LOCAL_CODE + 8, GP),
        (0, ABSENT_CODE, NP),
        (0, ABSENT_CODE | 1, GP),
    ],
)
def test_code_segments_that_cannot_be_returned_to(name: str, ring: int, selector: int, vector: int) -> None:
    """DPL = RPL >= CPL, present (SDM vol. 2, RET and IRET)."""
    stage = Stage(ring)
    stage.describe(0, descriptor(CODE, selector & 3))
    stage.push(*frame_of(name, selector), 0x7000, DATA3)
    stage.refused(RETURNS[name], vector, selector & 0xFFFC)


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("rpl", range(4))
def test_a_return_to_conforming_code(name: str, rpl: int) -> None:
    """Its DPL may be lower than the ring returned to, but not higher."""
    stage = Stage()
    stack = RINGS[rpl][1]
    stage.push(*frame_of(name, CONFORMING | rpl), 0x7000, stack)
    stage.goes(RETURNS[name], 0x1234)
    assert (CONFORMING | rpl, rpl) == (stage.selector(CS), stage.cpu.cpl())
    stage = Stage()
    stage.describe(FREE, descriptor(CONFORMING_CODE, 2))
    stage.push(*frame_of(name, FREE | 1), 0x7000, DATA1)
    stage.refused(RETURNS[name], GP, FREE)


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize(
    ("selector", "vector"),
    [
        (0, GP),
        (3, GP),
        (DATA3 & ~3, GP),  # RPL
        (DATA2 | 3, GP),  # DPL
        (DATA0 | 3, GP),
        (CODE3, GP),
        (BEYOND | 3, GP),
        (TASK | 3, GP),
        (FREE | 3, SSF),  # absent
    ],
)
def test_stacks_that_cannot_be_returned_to(name: str, selector: int, vector: int) -> None:
    """Writable data with RPL = DPL = the RPL of CS; absent is #SS."""
    stage = Stage()
    stage.describe(FREE, descriptor(DATA, 3, present=False))
    stage.push(*frame_of(name, CODE3), 0x7000, selector)
    stage.refused_but_marked(RETURNS[name], Event(vector, selector & 0xFFFC))


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("ring", [0, 3])
def test_a_return_from_an_absent_stack(name: str, ring: int) -> None:
    """A page fault with the rights of the ring; nothing has changed."""
    stage = Stage(ring, paging=True)
    stage.cpu.set_gpr(ESP, 0xA000 - 4)
    stage.unmap(0xA000)
    stage.faults(RETURNS[name], 0xA000, 4 if ring else 0)


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize(("outer", "inner"), INWARD)
def test_data_segments_of_inner_rings_are_taken_away(name: str, outer: int, inner: int) -> None:
    """Data and non-conforming code with DPL < the new CPL become null (SDM vol. 3A, 5.8.6)."""
    stage = Stage(inner)
    stage.load(DS, DATA0)
    stage.load(ES, RINGS[inner][0])
    stage.load(FS, CONFORMING)
    stage.load(GS, RINGS[outer][1])
    code, data = RINGS[outer]
    stage.push(*frame_of(name, code), 0x7000, data)
    stage.goes(RETURNS[name], 0x1234)
    gone = Segment(0, 0, 0, 0)
    assert (gone, gone) == (stage.cpu.segment(DS), stage.cpu.segment(ES))
    assert (CONFORMING, data) == (stage.selector(FS), stage.selector(GS))


@pytest.mark.parametrize("name", RETURNS)
def test_a_return_within_a_ring_takes_nothing_away(name: str) -> None:
    """Not even what the ring could not load."""
    stage = Stage(3)
    stage.load(DS, DATA0)
    stage.push(*frame_of(name, CODE3))
    stage.goes(RETURNS[name], 0x1234)
    assert DATA0 == stage.selector(DS)


@pytest.mark.parametrize("name", RETURNS)
def test_a_return_to_a_16_bit_stack(name: str) -> None:
    """Only SP is loaded: the upper half of ESP stays that of the kernel."""
    stage = Stage()
    stage.describe(FREE, descriptor(DATA, 3, flags=SMALL))
    stage.cpu.set_gpr(ESP, 0x3_9000)
    stage.push(*frame_of(name, CODE3), 0x1234_7000, FREE | 3)
    stage.goes(RETURNS[name], 0x1234)
    assert 0x3_7000 == stage.cpu.gpr(ESP)


# ---------------------------------------------------------------------- IRET


ALL_FLAGS = ARITHMETIC | FLAG_TF | FLAG_IF | FLAG_IOPL | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("iopl", range(4))
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rising", [False, True])
def test_which_flags_iret_loads(ring: int, iopl: int, size: int, rising: bool) -> None:
    """IOPL in ring 0 only, IF with CPL <= IOPL, RF, AC and ID with 32 bits (SDM vol. 2A, IRET)."""
    stage = Stage(ring)
    before = 2 | iopl << 12 if rising else (ALL_FLAGS & ~(FLAG_NT | FLAG_IOPL)) | 2 | iopl << 12
    popped = ALL_FLAGS if rising else 0
    stage.cpu.set_eflags(before)
    stage.push(0x1234, RINGS[ring][0], popped & (1 << 8 * size) - 1, size=size)
    stage.goes("cf" if size == 4 else "66cf", 0x1234)
    loaded = ARITHMETIC | FLAG_TF | FLAG_NT
    if size == 4:
        loaded |= FLAG_RF | FLAG_AC | FLAG_ID
    if ring == 0:
        loaded |= FLAG_IOPL
    if ring <= iopl:
        loaded |= FLAG_IF
    assert before & ~loaded | popped & loaded == stage.cpu.eflags()
    assert STACKS[ring] == stage.cpu.gpr(ESP)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("outer", "inner"), INWARD)
def test_iret_to_an_outer_ring(outer: int, inner: int, size: int) -> None:
    """ESP and SS come from the stack; what CPL allows is asked before."""
    stage = Stage(inner)
    code, data = RINGS[outer]
    stage.cpu.set_eflags(2)
    stage.push(0x3456, code, FLAG_IF | FLAG_IOPL | 2, 0x7000, data, size=size)
    stage.goes("cf" if size == 4 else "66cf", 0x3456)
    assert (code, data, 0x7000, outer) == stage.where()
    assert (FLAG_IF | FLAG_IOPL if inner == 0 else 0) == stage.cpu.eflags() & (FLAG_IF | FLAG_IOPL)
    assert stage.accessed(code)
    assert stage.accessed(data)


def test_iret_in_a_16_bit_segment() -> None:
    """16 bits are the default there."""
    stage = Stage()
    stage.load(CS, CODE16)
    stage.push(0x3456, CODE0, 2, size=2)
    stage.goes("cf", 0x3456)
    stage.load(CS, CODE16)
    stage.push(0x12_3456, CODE0, 2)
    stage.goes("66cf", 0x12_3456)


@pytest.mark.parametrize("kind", [14, 15])
@pytest.mark.parametrize("error_code", [None, 0x1234])
@pytest.mark.parametrize(("outer", "inner"), [*INWARD, (0, 0), (3, 3)])
def test_iret_undoes_a_delivery(outer: int, inner: int, error_code: int | None, kind: int) -> None:
    """Through 32-bit gates the interrupted program finds everything as it was."""
    stage = Stage(outer)
    stage.set_gate(0x55, gate(RINGS[inner][0], 0x4321, kind))
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_IOPL | FLAG_CF | FLAG_AC)
    before = stage.snapshot()[0]
    assert deliver(stage.cpu, stage.memory, Event(0x55, error_code, external=True)) is None
    if error_code is not None:
        stage.cpu.set_gpr(ESP, stage.cpu.gpr(ESP) + 4)
    stage.goes("cf", HOME)
    after = stage.snapshot()[0]
    for index in (CS, SS):  # their descriptors have been marked
        assert before.segments[index][:3] == after.segments[index][:3]
        after.segments[index] = before.segments[index]
    assert before == after


@pytest.mark.parametrize("release", [0, 2])
@pytest.mark.parametrize(("outer", "inner"), INWARD)
def test_a_far_return_undoes_a_far_call(outer: int, inner: int, release: int) -> None:
    """Through a call gate with parameters, which are dropped from both stacks."""
    stage = Stage(outer)
    stage.describe(FREE, call_gate(RINGS[inner][0], 0x4321, parameters=release))
    before = stage.where()
    stage.cpu.set_gpr(ESP, before[2] - 4 * release)
    stage.goes(far("9a", FREE, 0), 0x4321)
    stage.goes(f"ca{4 * release:02x}00", HOME + 7)
    assert before == stage.where()


def test_virtual_8086_mode_is_not_there() -> None:
    """Ring 0 may ask for it; for others the bit is ignored."""
    stage = Stage()
    stage.push(0x1234, 0x1000, FLAG_VM | 2, 0x7000, 0x2000, 0, 0, 0, 0)
    assert "virtual-8086" in stage.unsupported("cf")
    stage = Stage(3)
    stage.push(0x1234, CODE3, FLAG_VM | 2)
    stage.goes("cf", 0x1234)
    assert not stage.cpu.eflags() & FLAG_VM
    stage = Stage()
    stage.push(0x1234, CODE0, 2, 2, size=2)
    stage.goes("66cf", 0x1234)


@pytest.mark.parametrize(
    ("link", "value", "vector"),
    [
        (LOCAL_CODE, None, TS),
        (BEYOND, None, TS),
        (CODE0, None, TS),
        (FREE, system(TSS_AVAILABLE), TS),
        (FREE, system(TSS_BUSY, present=False), NP),
        (FREE, system(TSS_BUSY, 0), None),
        (FREE | 3, system(TSS_BUSY, 0), None),
        (FREE, system(3, 0), None),
    ],
)
def test_iret_of_a_nested_task(link: int, value: int | None, vector: int | None) -> None:
    """With NT the TSS says where to: to a busy, present TSS of the GDT, which would be a task switch."""
    stage = Stage()
    if value is not None:
        stage.describe(FREE, value)
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_NT)
    stage.put(TSS, "H", link)
    stage.push(0x1234, CODE0, 2)
    if vector is None:
        assert "task switch" in stage.unsupported("cf")
    else:
        stage.refused("cf", vector, link & 0xFFFC)
