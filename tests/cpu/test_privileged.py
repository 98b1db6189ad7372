"""The emulator of privileged instructions and segment loads, against the SDM's volumes 2 and 3A, without an engine."""

import struct
from typing import Any

import pytest

from hvemu.cpu.debug_registers import DR6_BD, DR6_FIXED, DR7_FIXED, DR7_GD, DebugRegisters
from hvemu.cpu.decoder import decode_operands
from hvemu.cpu.delivery import Event, Unsupported, deliver
from hvemu.cpu.msr import SYSENTER_CS, TSC, ModelSpecificRegisters
from hvemu.cpu.privileged import PrivilegedInstructions
from hvemu.cpu.segment_loads import NotEmulated
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
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
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    SEGMENT_NAMES,
    SS,
    Segment,
    TableRegister,
    VirtualCpu,
)
from hvemu.vocabulary.exits import MNEMONICS
from hvemu.vocabulary.outcomes import Halt
from hvemu.vocabulary.paging import CR0_CD, CR0_EM, CR0_ET, CR0_MP, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP

from .scene import (
    ABSENT_CODE,
    ABSENT_DATA,
    BEYOND,
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
    LDT,
    LOCAL,
    NOWHERE,
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

DB, UD, TS, NP, SSF, GP, PF = 1, 6, 10, 11, 12, 13, 14
FREE = 0x88
"""A slot of the GDT for what a test needs."""
LOCAL_CODE = 4
OPERAND = 0x1_2000
"""Where memory operands are: 00 20 01 00 in the encodings below."""
EXECUTE_ONLY, CONFORMING_CODE = 0x18, 0x1E
CALL_16, CALL_32, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, LDT_TYPE = 4, 12, 5, 9, 11, 2
FLAG_ID = 1 << 21
ARITHMETIC = 0xCD5
RINGS = ((CODE0, DATA0), (CODE1, DATA1), (CODE2, DATA2), (CODE3, DATA3))
INWARD = [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1), (1, 0)]


class ControlledState:
    """A VirtualCpu with the registers that only privileged instructions reach; leaving protected mode is refused."""

    def __init__(self, state: VirtualCpu) -> None:
        self.state = state
        self.invalidated: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        return int(getattr(self.state, f"cr{number}"))

    def set_control(self, number: int, value: int) -> None:
        """CR0, CR2, CR3 or CR4."""
        if number == 0 and not value & CR0_PE:
            raise NotEmulated("real mode")
        setattr(self.state, f"cr{number}", value)

    def set_gdt(self, table: TableRegister) -> None:
        """LGDT."""
        self.state.gdtr = table

    def set_idt(self, table: TableRegister) -> None:
        """LIDT."""
        self.state.idtr = table

    def set_ldt(self, segment: Segment) -> None:
        """LLDT."""
        self.state.ldtr = segment

    def set_task(self, segment: Segment) -> None:
        """LTR."""
        self.state.tr = segment

    def invalidate(self, linear: int) -> None:
        """INVLPG."""
        self.invalidated.append(linear)

    def interrupt_shadow(self) -> bool:
        """The inhibition."""
        return self.state.interrupt_shadow

    def set_interrupt_shadow(self, value: bool) -> None:
        """The inhibition."""
        self.state.interrupt_shadow = value


class Stage(Scene):
    """A scene whose CPU stands at an instruction that it is refused."""

    def __init__(self, ring: int = 0, *, paging: bool = False) -> None:
        super().__init__(ring, paging=paging)
        self.controlled = ControlledState(self.cpu)
        self.msrs = ModelSpecificRegisters(lambda: 0x1_2345_6789, no_execute=True)
        self.debug = DebugRegisters()
        self.debug_changes = 0
        self.emulator = PrivilegedInstructions(self.controlled, self.memory, self.msrs, self.debug)
        self.emulator.debug_changed = self._count

    def _count(self) -> None:
        self.debug_changes += 1

    def decode(self, code: str) -> Any:
        """Machine code, as hexadecimal digits, of one instruction."""
        data = bytes.fromhex(code)
        found = decode_operands(data, 32 if self.cpu.segment(CS).attributes & ATTRIBUTE_BIG else 16)
        assert found is not None
        assert data == found.code
        return found

    def do(self, code: str) -> Any:
        """Emulate one instruction."""
        instruction = self.decode(code)
        assert self.emulator.knows(instruction)
        assert instruction.mnemonic in MNEMONICS
        return self.emulator.execute(instruction)

    def done(self, code: str) -> None:
        """Emulate an instruction that is done, and goes on behind itself."""
        before = self.cpu.eip()
        assert self.do(code) is None
        assert before + len(bytes.fromhex(code)) == self.cpu.eip()

    def goes(self, code: str, eip: int) -> None:
        """Emulate a transfer."""
        assert self.do(code) is None
        assert eip == self.cpu.eip()

    def refused(self, code: str, vector: int, error_code: int | None) -> None:
        """Emulate an instruction that faults and changes nothing."""
        before = self.snapshot()
        assert Event(vector, error_code) == self.do(code)
        assert before == self.snapshot()

    def faults(self, code: str, address: int, error_code: int) -> None:
        """Emulate an instruction that is a page fault and changes nothing."""
        before = self.snapshot()
        assert Event(PF, error_code, address=address) == self.do(code)
        assert before == self.snapshot()

    def unsupported(self, code: str) -> str:
        """Emulate an instruction that hvemu does not; returns why."""
        before = self.snapshot()
        result = self.do(code)
        assert isinstance(result, Unsupported)
        assert before == self.snapshot()
        return result.reason

    def put(self, address: int, text: str, *values: int) -> None:
        """Pack values into memory."""
        self.memory.write(address, struct.pack("<" + text, *values))

    def push(self, *values: int, size: int = 4) -> None:
        """Values on the stack, the first one on top."""
        top = self.cpu.gpr(ESP) - size * len(values)
        self.cpu.set_gpr(ESP, top)
        self.put(top, ("I" if size == 4 else "H") * len(values), *values)

    def where(self) -> tuple[int, int, int, int]:
        """CS, SS, ESP and CPL."""
        return self.selector(CS), self.selector(SS), self.cpu.gpr(ESP), self.cpu.cpl()

    def accessed(self, selector: int) -> bool:
        """The accessed bit of a descriptor in memory."""
        table = LDT if selector & 4 else GDT
        return bool(self.memory.read(table + (selector & 0xFFF8) + 5, 1)[0] & 1)


def system(kind: int, ring: int = 0, *, base: int = TSS, limit: int = 0x67, present: bool = True) -> int:
    """A system segment's descriptor."""
    return descriptor(kind, ring, base=base, limit=limit, flags=0, present=present)


def call_gate(selector: int, offset: int, kind: int = CALL_32, ring: int = 3, parameters: int = 0) -> int:
    """A call gate."""
    return gate(selector, offset, kind, ring) | parameters << 32


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
    stage.refused(PRIVILEGED[name], GP, 0)


@pytest.mark.parametrize("mnemonic", MNEMONICS)
def test_every_mnemonic_of_the_ledger_is_known(mnemonic: str) -> None:
    """The ledger counts by their numbers."""
    stage = Stage()
    assert stage.emulator.knows(stage.decode("fa")._replace(mnemonic=mnemonic))
    assert not stage.emulator.knows(stage.decode("90"))


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
    """There is no LDT then: every selector into it is #GP."""
    stage = Stage()
    stage.cpu.set_gpr(EAX, null)
    stage.done("0f00d0")
    assert null == stage.cpu.ldtr.selector
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
    """#GP(0)."""
    stage = Stage()
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
        stage.done(attempt(stage, index, form, null))
        assert Segment(null, 0, 0, 0) == stage.cpu.segment(index)


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("selector", range(4))
def test_ss_is_never_null(form: int, selector: int) -> None:
    """#GP(0)."""
    stage = Stage(selector)
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
    """Two bytes are read all the same."""
    stage = Stage(paging=True)
    stage.cpu.set_gpr(ESP, 0xFFFF - 1)
    stage.unmap(0x1_0000)
    stage.put(0xFFFE, "H", DATA0)
    stage.done(code)
    assert 0xFFFE + size == stage.cpu.gpr(ESP)


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


def far(opcode: str, selector: int, offset: int, size: int = 4) -> str:
    """JMP (ea) or CALL (9a) with an immediate far pointer."""
    return ("" if size == 4 else "66") + opcode + struct.pack("<IH" if size == 4 else "<HH", offset, selector).hex()


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
    Stage(ring).refused(far(opcode, selector, 0x1234), vector, selector & 0xFFFC)


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
    refused_unmarked(stage, far("9a", FREE, 0), Event(vector, error_code))


def refused_unmarked(stage: Stage, code: str, event: Event) -> None:
    """An instruction faults and leaves the CPU alone; the descriptor of its target may have been marked accessed."""
    before = stage.snapshot()[0]
    assert event == stage.do(code)
    assert before == stage.snapshot()[0]


def test_an_absent_inner_stack() -> None:
    """#SS with its selector."""
    stage = Stage(3)
    stage.describe(FREE, call_gate(CODE2, 0x4321))
    stage.set_stack(2, ABSENT_DATA, STACKS[2])
    refused_unmarked(stage, far("9a", FREE, 0), Event(SSF, ABSENT_DATA & ~3))


@pytest.mark.parametrize(("ring", "limit"), [(0, 8), (1, 16), (2, 24)])
def test_a_tss_too_short_for_the_stack(ring: int, limit: int) -> None:
    """#TS with the selector of the TSS."""
    for short, event in ((limit, Event(TS, TASK)), (limit + 1, None)):
        stage = Stage(3)
        stage.describe(FREE, call_gate(RINGS[ring][0], 0x4321))
        stage.cpu.tr = stage.cpu.tr._replace(limit=short)
        if event is not None:
            refused_unmarked(stage, far("9a", FREE, 0), event)
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
    refused_unmarked(stage, far("9a", CODE0, 0x1234), Event(PF, 2, address=0x9FFC))
    assert bytes(4) == stage.memory.read(0xA000, 4)


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
    refused_unmarked(stage, RETURNS[name], Event(vector, selector & 0xFFFC))


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
