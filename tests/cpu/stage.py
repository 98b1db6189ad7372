"""A scene whose CPU is given instructions to emulate, and says in one call what must have become of them."""

import struct
from typing import Any

from hvemu.cpu.debug_registers import DebugRegisters
from hvemu.cpu.decoder import decode_operands
from hvemu.cpu.delivery import Event, Unsupported
from hvemu.cpu.msr import ModelSpecificRegisters
from hvemu.cpu.privileged import PrivilegedInstructions
from hvemu.cpu.segment_loads import NotEmulated
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    CS,
    ESP,
    SS,
    Segment,
    TableRegister,
    VirtualCpu,
)
from hvemu.vocabulary.exits import MNEMONICS
from hvemu.vocabulary.paging import CR0_PE

from .scene import (
    CODE0,
    CODE1,
    CODE2,
    CODE3,
    DATA0,
    DATA1,
    DATA2,
    DATA3,
    GDT,
    LDT,
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

    def refused_but_marked(self, code: str, event: Event) -> None:
        """Emulate an instruction that faults when the descriptor of its target may have been marked accessed."""
        before = self.snapshot()[0]
        assert event == self.do(code)
        assert before == self.snapshot()[0]

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


def far(opcode: str, selector: int, offset: int, size: int = 4) -> str:
    """JMP (ea) or CALL (9a) with an immediate far pointer."""
    return ("" if size == 4 else "66") + opcode + struct.pack("<IH" if size == 4 else "<HH", offset, selector).hex()
