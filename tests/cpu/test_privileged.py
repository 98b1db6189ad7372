"""The emulator of privileged instructions, against the SDM's volume 2, without an engine."""

import struct

import pytest

from hvemu.cpu.debug_registers import DR6_BD, DR6_FIXED, DR7_FIXED, DR7_GD
from hvemu.cpu.delivery import Event
from hvemu.cpu.msr import SYSENTER_CS, TSC
from hvemu.cpu.sensitive import KernelInstructions
from hvemu.cpu.state import (
    CS,
    DS,
    EAX,
    EBP,
    EBX,
    ECX,
    EDI,
    EDX,
    ES,
    ESI,
    ESP,
    FLAG_AC,
    FLAG_CF,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_RF,
    FS,
    GS,
    SEGMENT_NAMES,
    SS,
    Segment,
    TableRegister,
)
from hvemu.vocabulary.exits import MNEMONICS
from hvemu.vocabulary.outcomes import Halt
from hvemu.vocabulary.paging import CR0_CD, CR0_EM, CR0_ET, CR0_MP, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP

from .scene import (
    BEYOND,
    CODE,
    CODE0,
    CODE16,
    DATA,
    DATA0,
    GDT,
    HOME,
    HOME_FLAGS,
    LDT,
    NOWHERE,
    PAGE_TABLE,
    STACKS,
    descriptor,
)
from .stage import (
    DB,
    FREE,
    GP,
    LDT_TYPE,
    LOCAL_CODE,
    NP,
    OPERAND,
    TASK_GATE,
    TSS_AVAILABLE,
    UD,
    Stage,
    system,
)

# ---------------------------------------------------------------------- what all have in common


PRIVILEGED = {
    "hlt": "f4",
    "clts": "0f06",
    "lmsw ax": "0f01f0",
    "lgdt": "0f0115 00200100",
    "lidt": "0f011d 00200100",
    "lldt ax": "0f00d0",
    "ltr ax": "0f00d8",
    "invlpg": "0f013d 00200100",
    "wbinvd": "0f09",
    "invd": "0f08",
    "rdmsr": "0f32",
    "wrmsr": "0f30",
    "sysexit": "0f35",
    "mov eax, cr0": "0f20c0",
    "mov cr3, eax": "0f22d8",
    "mov eax, dr7": "0f21f8",
    "mov dr7, eax": "0f23f8",
}


@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("name", PRIVILEGED)
def test_only_ring_0_may(name: str, ring: int) -> None:
    """#GP(0) elsewhere, whatever IOPL is (SDM vol. 3A, 5.9)."""
    stage = Stage(ring)
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_IOPL)
    stage.describe(FREE, system(TSS_AVAILABLE, 3))
    stage.cpu.set_gpr(EAX, FREE)
    stage.refused(PRIVILEGED[name], GP, 0)


@pytest.mark.parametrize("mnemonic", [name for name in MNEMONICS if name != "breakpoint"])
def test_every_mnemonic_of_the_ledger_is_known(mnemonic: str) -> None:
    """The ledger counts by their numbers."""
    stage = Stage()
    parts = (stage.emulator._cpu, stage.emulator._memory, stage.emulator._msrs, stage.emulator._debug)
    kernel = KernelInstructions(*parts, lambda: (0, 0), lambda: (0, 0), lambda: Segment(0, 0, 0, 0))
    assert kernel.knows(stage.decode("fa")._replace(mnemonic=mnemonic))
    assert not kernel.knows(stage.decode("90"))


@pytest.mark.parametrize("code", ["fa", "0f06", "0f20c0", "0f09", "8ed8"])
def test_an_instruction_that_is_done_ends_rf_and_the_shadow(code: str) -> None:
    """EFLAGS.RF and the inhibition of interrupts are for one instruction."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, DATA0)
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_RF)
    stage.cpu.interrupt_shadow = True
    stage.done(code)
    assert (0, False) == (stage.cpu.eflags() & FLAG_RF, stage.cpu.interrupt_shadow)


def test_an_instruction_that_faults_changes_neither() -> None:
    """It has not been executed."""
    stage = Stage(3)
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_RF)
    stage.cpu.interrupt_shadow = True
    stage.refused("f4", GP, 0)


@pytest.mark.parametrize("code", ["8b05 00200100", "8ecb", "58", "8f05 00200100", "ffd0", "e800000000", "ff20", "eb00"])
def test_forms_that_load_no_selector_are_refused_as_the_cpu_did(code: str) -> None:
    """MOV from memory or to CS, POP, near CALL and JMP: what came here was a #GP of their own."""
    Stage(3).refused(code, GP, 0)


@pytest.mark.parametrize("code", ["0fc7f0", "0fc7f8"])
def test_rdrand_and_rdseed_do_not_exist(code: str) -> None:
    """As CPUID says."""
    Stage().refused(code, UD, None)


# ---------------------------------------------------------------------- flags and halting


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("iopl", range(4))
@pytest.mark.parametrize(("code", "before", "after"), [("fa", FLAG_IF, 0), ("fb", 0, FLAG_IF)])
def test_cli_and_sti_need_iopl(code: str, before: int, after: int, ring: int, iopl: int) -> None:
    """CPL > IOPL is #GP(0)."""
    stage = Stage(ring)
    others = 2 | FLAG_CF | FLAG_AC | iopl << 12
    stage.cpu.set_eflags(others | before)
    if ring > iopl:
        stage.refused(code, GP, 0)
    else:
        stage.done(code)
        assert others | after == stage.cpu.eflags()


@pytest.mark.parametrize("first", ["fb", "8ed0", "17"])
@pytest.mark.parametrize("second", ["fb", "8ed0", "17"])
def test_the_shadow_of_sti_and_loads_of_ss(first: str, second: str) -> None:
    """Interrupts are inhibited for one instruction; of two in a row only the first counts (SDM vol. 3A, 6.8.3)."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, DATA0)
    stage.push(DATA0, DATA0)
    stage.done(first)
    assert stage.cpu.interrupt_shadow
    stage.done(second)
    assert not stage.cpu.interrupt_shadow


def test_hlt_is_done() -> None:
    """EIP is behind it, where the next interrupt will return to."""
    stage = Stage()
    stage.cpu.interrupt_shadow = True
    assert Halt() == stage.do("f4")
    assert (HOME + 1, False) == (stage.cpu.eip(), stage.cpu.interrupt_shadow)


@pytest.mark.parametrize("code", ["0f09", "0f08"])
def test_caches_are_nobodys_business(code: str) -> None:
    """WBINVD and INVD do nothing that software can see."""
    stage = Stage()
    before = stage.without_marks()
    stage.done(code)
    assert before == stage.without_marks()


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("38", 0x1100),  # [eax]
        ("7cc8 08", 0x1100 + 8 * 0x20 + 8),  # [eax+ecx*8+8]
        ("78 f0", 0x1100 - 16),  # [eax-16]
        ("3c4d 10000000", 0x20 * 2 + 0x10),  # [ecx*2+10h]
        ("3d 00200100", OPERAND),  # [12000h]
        ("3f", 0xFFFF_F000),  # [edi]
        ("bf 00200000", 0x1000),  # [edi+2000h] wraps
        ("7d 04", 0x5_0000 + 0x304),  # [ebp+4] is in SS
        ("3c24", 0x5_0000 + STACKS[0]),  # [esp]
        ("3c28", 0x300 + 0x1100),  # [eax+ebp] is in DS, for its base is EAX
    ],
)
def test_linear_addresses(operand: str, expected: int) -> None:
    """Base, index, scale, displacement and default segment (SDM vol. 1, 3.7.5), seen through INVLPG."""
    stage = Stage()
    for register, value in ((EAX, 0x1100), (ECX, 0x20), (EBP, 0x300), (EDI, 0xFFFF_F000)):
        stage.cpu.set_gpr(register, value)
    stage.cpu.set_segment(SS, stage.cpu.segment(SS)._replace(base=0x5_0000))
    stage.done("0f01" + operand)
    assert [expected] == stage.controlled.invalidated


@pytest.mark.parametrize(
    ("prefix", "base"), [("64", 0x7000), ("65", 0x8000), ("36", 0), ("2e", 0), ("26", 0xFFFF_0000), ("3e", 0)]
)
def test_a_segment_override(prefix: str, base: int) -> None:
    """Its base is added, modulo 4 GiB."""
    stage = Stage()
    for index, value in ((FS, 0x7000), (GS, 0x8000), (ES, 0xFFFF_0000)):
        stage.cpu.set_segment(index, stage.cpu.segment(index)._replace(base=value))
    stage.done(prefix + "0f013d 00200100")
    assert [(base + OPERAND) & 0xFFFF_FFFF] == stage.controlled.invalidated


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("38", 0x8000 + 0x9000 & 0xFFFF),  # [bx+si]
        ("3a", 0x5_0000 + (0x300 + 0x9000)),  # [bp+si] is in SS
        ("7c fe", 0x8FFE),  # [si-2]
        ("3e 3412", 0x1234),  # [1234h]
        ("7e 02", 0x5_0000 + 0x302),  # [bp+2]
    ],
)
def test_16_bit_addresses(operand: str, expected: int) -> None:
    """Offsets wrap at 64 KiB; the upper halves of the registers do not matter."""
    stage = Stage()
    for register, value in ((EBX, 0xABCD_8000), (ESI, 0xABCD_9000), (EBP, 0xABCD_0300)):
        stage.cpu.set_gpr(register, value)
    stage.cpu.set_segment(SS, stage.cpu.segment(SS)._replace(base=0x5_0000))
    stage.done("67 0f01" + operand)
    assert [expected] == stage.controlled.invalidated


# ---------------------------------------------------------------------- control and debug registers, MSRs


@pytest.mark.parametrize("number", [0, 2, 3, 4])
@pytest.mark.parametrize("register", [EAX, EBX, ESP, EDI])
def test_reading_control_registers(number: int, register: int) -> None:
    """Into any general register."""
    stage = Stage()
    setattr(stage.cpu, f"cr{number}", 0x8000_0010 + number)
    stage.done(f"0f20{0xC0 | number << 3 | register:02x}")
    assert 0x8000_0010 + number == stage.cpu.gpr(register)


@pytest.mark.parametrize("value", [CR0_PE | CR0_ET, CR0_PE | CR0_ET | CR0_PG | CR0_WP | CR0_NE, CR0_PE | CR0_CD])
def test_writing_cr0(value: int) -> None:
    """ET is always one."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, value)
    stage.done("0f22c0")
    assert value | CR0_ET == stage.cpu.cr0


@pytest.mark.parametrize("value", [CR0_PG, CR0_PG | CR0_ET | CR0_NE, CR0_PE | CR0_NW])
def test_contradictions_in_cr0(value: int) -> None:
    """Paging without protection and not write-through with caching are #GP(0)."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, value)
    stage.refused("0f22c0", GP, 0)


def test_a_mode_that_cannot_be_emulated_ends_the_guest() -> None:
    """What the CPU port says becomes the reason; nothing has changed."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, CR0_ET)
    assert "real mode" == stage.unsupported("0f22c0")


@pytest.mark.parametrize("bit", range(32))
def test_writing_cr4(bit: int) -> None:
    """VME, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR and OSXMMEXCPT exist; a reserved bit is #GP(0)."""
    stage = Stage()
    stage.cpu.set_gpr(EBX, 1 << bit)
    if bit in (0, 2, 3, 4, 5, 6, 7, 8, 9, 10):
        stage.done("0f22e3")
        assert 1 << bit == stage.cpu.cr4
    else:
        stage.refused("0f22e3", GP, 0)


@pytest.mark.parametrize("number", [2, 3])
def test_writing_cr2_and_cr3(number: int) -> None:
    """Any value."""
    stage = Stage()
    stage.cpu.set_gpr(EDX, 0xDEAD_B000)
    stage.done(f"0f22{0xC2 | number << 3:02x}")
    assert 0xDEAD_B000 == getattr(stage.cpu, f"cr{number}")


@pytest.mark.parametrize("code", ["0f20c8", "0f22c8"])
def test_cr1_does_not_exist(code: str) -> None:
    """#UD."""
    Stage().refused(code, UD, None)


def test_clts() -> None:
    """TS, and nothing else."""
    stage = Stage()
    stage.cpu.cr0 |= CR0_TS | CR0_MP | CR0_NE
    stage.done("0f06")
    assert CR0_PE | CR0_ET | CR0_MP | CR0_NE == stage.cpu.cr0


@pytest.mark.parametrize("code", ["0f01f0", "0f0135 00200100"])
@pytest.mark.parametrize("value", [0, CR0_MP, CR0_EM | CR0_TS, 0xF, 0xFFF0])
def test_lmsw(code: str, value: int) -> None:
    """PE, MP, EM and TS from a register or memory; PE cannot be cleared."""
    stage = Stage()
    stage.cpu.cr0 |= CR0_MP | CR0_NE | CR0_WP
    stage.cpu.set_gpr(EAX, 0xABCD_0000 | value)
    stage.put(OPERAND, "H", value)
    stage.done(code)
    assert CR0_ET | CR0_NE | CR0_WP | CR0_PE | value & 0xE == stage.cpu.cr0


def test_debug_registers() -> None:
    """Reserved bits read as they must; the mode is told of every write."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, 0xFFFF_FFFF)
    stage.done("0f23f8")  # mov dr7, eax
    stage.debug.values[7] &= ~DR7_GD
    assert 1 == stage.debug_changes
    stage.done("0f21fb")  # mov ebx, dr7
    assert 0xFFFF_07FF == stage.cpu.gpr(EBX)
    stage.cpu.set_gpr(EAX, 0)
    stage.done("0f23f0")  # mov dr6, eax
    stage.done("0f21f1")  # mov ecx, dr6
    assert (DR6_FIXED, 2) == (stage.cpu.gpr(ECX), stage.debug_changes)


@pytest.mark.parametrize("code", ["0f21e0", "0f21e8", "0f23e0", "0f23e8"])
def test_dr4_and_dr5(code: str) -> None:
    """Aliases of DR6 and DR7 without CR4.DE, with it #UD."""
    stage = Stage()
    stage.cpu.cr4 = 8
    stage.refused(code, UD, None)
    stage.cpu.cr4 = 0
    stage.cpu.set_gpr(EAX, 0)
    stage.done(code)
    assert (DR6_FIXED, DR7_FIXED) == tuple(stage.debug.values[6:])


@pytest.mark.parametrize("code", ["0f21c0", "0f23c0"])
def test_general_detect(code: str) -> None:
    """With DR7.GD the access is #DB, and DR6.BD says why; the handler may access them (SDM vol. 3B, 18.2.4)."""
    stage = Stage()
    stage.debug.values[7] |= DR7_GD
    assert Event(DB) == stage.do(code)
    assert (DR6_FIXED | DR6_BD, DR7_FIXED, 0) == (*stage.debug.values[6:], stage.debug_changes)
    stage.done(code)


def test_rdmsr_and_wrmsr() -> None:
    """EDX:EAX, by the number in ECX."""
    stage = Stage()
    stage.cpu.set_gpr(ECX, TSC)
    stage.done("0f32")
    assert (1, 0x2345_6789) == (stage.cpu.gpr(EDX), stage.cpu.gpr(EAX))
    stage.cpu.set_gpr(ECX, SYSENTER_CS)
    stage.cpu.set_gpr(EDX, 0)
    stage.cpu.set_gpr(EAX, 0x1234)
    stage.done("0f30")
    assert 0x1234 == stage.msrs.values[SYSENTER_CS]


@pytest.mark.parametrize(("code", "index"), [("0f32", 0x1234), ("0f30", 0x1234), ("0f30", SYSENTER_CS)])
def test_msrs_that_do_not_exist_or_values_they_do_not_take(code: str, index: int) -> None:
    """#GP(0)."""
    stage = Stage()
    stage.cpu.set_gpr(ECX, index)
    stage.cpu.set_gpr(EDX, 1)
    stage.refused(code, GP, 0)


# ---------------------------------------------------------------------- descriptor tables


@pytest.mark.parametrize(("code", "name"), [("15", "gdtr"), ("1d", "idtr")])
@pytest.mark.parametrize(("prefix", "base"), [("", 0x1234_5678), ("66", 0x0034_5678)])
def test_lgdt_and_lidt(code: str, name: str, prefix: str, base: int) -> None:
    """With a 16-bit operand the base has 24 bits."""
    stage = Stage()
    stage.put(OPERAND, "HI", 0x7FF, 0x1234_5678)
    stage.done(prefix + "0f01" + code + "00200100")
    assert TableRegister(base, 0x7FF) == getattr(stage.cpu, name)


def test_lgdt_in_a_16_bit_segment() -> None:
    """There 24 bits are the default."""
    stage = Stage()
    stage.load(CS, CODE16)
    stage.cpu.set_segment(DS, stage.cpu.segment(DS)._replace(base=0x1_0000))
    stage.put(OPERAND, "HI", 0x7FF, 0x1234_5678)
    stage.done("0f0116 0020")
    assert 0x0034_5678 == stage.cpu.gdtr.base
    stage.done("66 0f0116 0020")
    assert 0x1234_5678 == stage.cpu.gdtr.base


@pytest.mark.parametrize("code", ["0f0115", "0f011d", "0f0135", "0f0015", "0f001d"])
def test_an_operand_on_an_absent_page(code: str) -> None:
    """LGDT, LIDT, LMSW, LLDT and LTR are page faults then, as supervisor reads."""
    Stage(paging=True).faults(code + struct.pack("<I", NOWHERE).hex(), NOWHERE, 0)


def test_an_operand_across_two_pages() -> None:
    """The second one is the faulting address."""
    stage = Stage(paging=True)
    stage.unmap(OPERAND)
    stage.faults("0f0115" + struct.pack("<I", OPERAND - 4).hex(), OPERAND, 0)


@pytest.mark.parametrize("null", range(4))
def test_lldt_null(null: int) -> None:
    """There is no LDT then, whatever the first slot holds: every selector into it is #GP."""
    stage = Stage()
    stage.describe(0, system(TASK_GATE))
    stage.cpu.set_gpr(EAX, null)
    stage.done("0f00d0")
    assert null == stage.cpu.ldtr.selector
    stage.cpu.ldtr = stage.cpu.ldtr._replace(base=LDT, limit=0xFF)
    stage.cpu.set_gpr(EAX, LOCAL_CODE)
    stage.refused("8ed8", GP, LOCAL_CODE)


@pytest.mark.parametrize("code", ["0f00d0", "0f0015 00200100"])
def test_lldt(code: str) -> None:
    """From a register or memory; the descriptor is not marked."""
    stage = Stage()
    stage.describe(FREE, system(LDT_TYPE, 3, base=0x1234_5678, limit=0xFF))
    stage.cpu.set_gpr(EAX, FREE | 3)
    stage.put(OPERAND, "H", FREE | 3)
    before = stage.without_marks()
    stage.done(code)
    assert Segment(FREE | 3, 0x1234_5678, 0xFF, 0xE200) == stage.cpu.ldtr
    assert before == stage.without_marks()


@pytest.mark.parametrize("kind", range(32))
def test_lldt_takes_only_an_ldt(kind: int) -> None:
    """Type 2; #GP(selector) for others, #NP(selector) for an absent one."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, FREE)
    stage.describe(FREE, system(kind))
    if kind == LDT_TYPE:
        stage.done("0f00d0")
    else:
        stage.refused("0f00d0", GP, FREE)
    stage.describe(FREE, system(kind, present=False))
    stage.refused("0f00d0", NP if kind == LDT_TYPE else GP, FREE)


@pytest.mark.parametrize("kind", range(32))
def test_ltr_takes_only_an_available_tss(kind: int) -> None:
    """Types 1 and 9, which become busy in memory; #GP(selector) for others, #NP(selector) for an absent one."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, FREE)
    stage.describe(FREE, system(kind, base=0x1234_5678))
    if kind in (1, 9):
        stage.done("0f00d8")
        assert (FREE, 0x1234_5678, 0x67) == stage.cpu.tr[:3]
        assert system(kind | 2, base=0x1234_5678) == stage.memory.read_u64(GDT + FREE)
    else:
        stage.refused("0f00d8", GP, FREE)
    stage.describe(FREE, system(kind, present=False))
    stage.refused("0f00d8", NP if kind in (1, 9) else GP, FREE)


@pytest.mark.parametrize("code", ["0f00d0", "0f00d8"])
@pytest.mark.parametrize("selector", [LOCAL_CODE, BEYOND, BEYOND | 3])
def test_selectors_of_system_segments(code: str, selector: int) -> None:
    """They lie in the GDT, within its limit."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, selector)
    stage.refused(code, GP, selector & 0xFFFC)


@pytest.mark.parametrize("null", range(4))
def test_ltr_null(null: int) -> None:
    """#GP(0), whatever the first slot holds."""
    stage = Stage()
    stage.describe(0, system(TSS_AVAILABLE))
    stage.cpu.set_gpr(EAX, null)
    stage.refused("0f00d8", GP, 0)


def test_ltr_with_a_write_protected_gdt() -> None:
    """Marking the TSS busy is a store like any other: with CR0.WP a page fault."""
    stage = Stage(paging=True)
    stage.describe(FREE, system(TSS_AVAILABLE))
    stage.cpu.cr0 |= CR0_WP
    stage.cpu.set_gpr(EAX, FREE)
    stage.put(PAGE_TABLE + 4 * (GDT >> 12), "I", GDT | 5)
    stage.faults("0f00d8", GDT + FREE + 5, 3)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("0f00d0", system(LDT_TYPE)),
        ("0f00d8", system(TSS_AVAILABLE)),
        ("8ed8", descriptor(DATA)),
        ("8ed0", descriptor(DATA)),
        ("ea 00000000 8800", descriptor(CODE)),
        ("9a 00000000 8800", descriptor(CODE)),
    ],
)
def test_the_limit_of_the_gdt(code: str, value: int) -> None:
    """All eight bytes of a descriptor lie within it; what is behind it is none."""
    stage = Stage()
    stage.describe(FREE, value)
    stage.cpu.set_gpr(EAX, FREE)
    stage.cpu.gdtr = TableRegister(GDT, FREE + 6)
    stage.refused(code, GP, FREE)
    stage.cpu.gdtr = TableRegister(GDT, FREE + 7)
    assert stage.do(code) is None


def test_the_limit_of_the_ldt() -> None:
    """Likewise."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, LOCAL_CODE)
    stage.cpu.ldtr = stage.cpu.ldtr._replace(limit=6)
    stage.refused("8ed8", GP, LOCAL_CODE)
    stage.cpu.ldtr = stage.cpu.ldtr._replace(limit=7)
    stage.done("8ed8")


OPERAND_LENGTHS = {"0f0135": 2, "0f0015": 2, "0f001d": 2, "8e1d": 2, "0f0115": 6, "c505": 6, "ff2d": 6, "ff1d": 6}


@pytest.mark.parametrize("code", OPERAND_LENGTHS)
def test_operands_are_not_longer_than_they_are(code: str) -> None:
    """The last byte may be the last of a page."""
    stage = Stage(paging=True)
    stage.unmap(OPERAND)
    length = OPERAND_LENGTHS[code]
    stage.describe(FREE, system(TSS_AVAILABLE if code == "0f001d" else LDT_TYPE))
    selector = {"8e1d": DATA0, "c505": DATA0, "ff2d": CODE0, "ff1d": CODE0}.get(code, FREE)
    stage.put(OPERAND - length, "H" if length == 2 else "IH", *[0] * (length // 6), selector)
    assert stage.do(code + struct.pack("<I", OPERAND - length).hex()) is None


# ---------------------------------------------------------------------- SYSEXIT


@pytest.mark.parametrize("selector", [0x08, 0x0B, 0xFFF0])
def test_sysexit(selector: int) -> None:
    """Flat segments of ring 3 behind the MSR's, whatever the GDT holds; ECX is ESP and EDX is EIP."""
    stage = Stage()
    stage.msrs.values[SYSENTER_CS] = selector
    stage.cpu.set_gpr(ECX, 0x1234_5678)
    stage.cpu.set_gpr(EDX, 0x8765_4321)
    stage.goes("0f35", 0x8765_4321)
    code, stack = (selector + 16) & 0xFFFF | 3, (selector + 24) & 0xFFFF | 3
    assert Segment(code, 0, 0xFFFF_FFFF, 0x00C0_FB00) == stage.cpu.segment(CS)
    assert Segment(stack, 0, 0xFFFF_FFFF, 0x00C0_F300) == stage.cpu.segment(SS)
    assert (0x1234_5678, 3, HOME_FLAGS) == (stage.cpu.gpr(ESP), stage.cpu.cpl(), stage.cpu.eflags())


@pytest.mark.parametrize("selector", range(4))
def test_sysexit_without_its_msr(selector: int) -> None:
    """#GP(0)."""
    stage = Stage()
    stage.msrs.values[SYSENTER_CS] = selector
    stage.refused("0f35", GP, 0)


# ---------------------------------------------------------------------- stores to watched pages


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a3 00200100", "78563412"),  # mov [12000h], eax
        ("66a3 00200100", "7856"),
        ("a2 00200100", "78"),
        ("8825 00200100", "56"),  # ah
        ("880d 00200100", "99"),  # cl
        ("c605 00200100 7f", "7f"),
        ("c705 00200100 efbeadde", "efbeadde"),
        ("66c705 00200100 3412", "3412"),
        ("8907", "78563412"),  # [edi]
        ("64 8907", "78563412"),  # fs:[edi]
    ],
)
@pytest.mark.parametrize("ring", [0, 3])
def test_stores(code: str, expected: str, ring: int) -> None:
    """MOV to memory, and nothing beside it; who watches the frame is told."""
    stage = Stage(ring, paging=True)
    told: list[tuple[int, int, int]] = []
    stage.memory.watched_frames.add(OPERAND >> 12)
    stage.memory.on_watched_write = lambda *where: told.append(where)
    for register, value in ((EAX, 0x1234_5678), (ECX, 0x99), (EDI, OPERAND)):
        stage.cpu.set_gpr(register, value)
    stage.cpu.set_eflags(HOME_FLAGS | FLAG_RF)
    stage.cpu.interrupt_shadow = True
    instruction = stage.decode(code)
    assert stage.emulator.store(instruction)
    data = bytes.fromhex(expected)
    assert data + bytes(4) == stage.memory.read(OPERAND, len(data) + 4)
    assert [(OPERAND >> 12, 0, len(data))] == told
    assert (HOME + len(instruction.code), HOME_FLAGS, False) == (
        stage.cpu.eip(),
        stage.cpu.eflags(),
        stage.cpu.interrupt_shadow,
    )


@pytest.mark.parametrize(
    "code",
    [
        "8c1d 00200100",  # mov [12000h], ds
        "0105 00200100",  # add
        "ab",  # stosd
        "f3ab",
        "a5",  # movsd
        "8705 00200100",  # xchg
        "a1 00200100",  # mov eax, [12000h]
        "50",  # push eax
        "f0810d 00200100 01000000",  # lock or
    ],
)
def test_stores_that_are_left_to_the_cpu(code: str) -> None:
    """Strings, read-modify-write and stores of selectors; nothing has changed."""
    stage = Stage()
    before = stage.snapshot()
    assert not stage.emulator.store(stage.decode(code))
    assert before == stage.snapshot()


def test_a_store_that_faults_on_its_second_page() -> None:
    """It is left to the CPU, which will fault; nothing has been written."""
    stage = Stage(paging=True)
    stage.unmap(OPERAND)
    before = stage.snapshot()
    assert not stage.emulator.store(stage.decode("a3" + struct.pack("<I", OPERAND - 2).hex()))
    assert before == stage.snapshot()


def test_the_names_of_segments_are_those_of_the_decoder() -> None:
    """MOV from memory to each of them is known by its name."""
    for index, name in enumerate(SEGMENT_NAMES):
        if index != CS:
            assert name == Stage().decode(f"8e{5 | index << 3:02x} 00200100").operands[0].register
