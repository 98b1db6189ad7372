"""``--audit``: proves, instruction by instruction, when a sensitive one has told a deprivileged guest something wrong.

The 18 mnemonics that Robin and Irvine (2000) found on the Pentium read or write privileged state without faulting.
Before each of them executes, what the CPU will answer from physical state is compared with what it would answer from
the state that the guest believes in. A difference is reported once for each place. Nothing is repaired.
"""

from collections.abc import Callable
from typing import Final

from hvemu.cpu.decoder import Detailed, Instruction, Operand
from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.privileged import effective_address, register_value
from hvemu.cpu.segment_loads import SegmentFault, load_descriptor
from hvemu.cpu.sensitive import has_limit, has_rights, is_readable, is_writable
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    CS,
    ESP,
    FLAG_IF,
    FLAG_IOPL,
    SEGMENT_NAMES,
    SS,
    Segment,
    segment_from_descriptor,
)
from hvemu.engine import layout
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.modes.deprivileged import DeprivilegedCpu

_MNEMONICS: Final = frozenset(
    "sgdt sidt sldt str smsw pushf pushfd popf popfd lar lsl verr verw iretd iret lcall call".split()
)
_SEGMENTS: Final = frozenset(SEGMENT_NAMES)


class Audit:
    """Compares what the CPU is about to answer with what it should; keeps the lies it found, in order."""

    def __init__(self, guest: DeprivilegedCpu, vcpu: Vcpu, memory: GuestPhysicalMemory) -> None:
        self._guest, self._vcpu, self._memory = guest, vcpu, memory
        self._sites: set[int] = set()
        self.findings: list[str] = []
        """A sentence for each place, in the order in which they were found."""
        self._table: dict[str, Callable[[Detailed], str | None]] = {
            "sgdt": self._gdt, "sidt": self._idt, "sldt": self._ldt, "str": self._task, "smsw": self._status,
            "pushf": self._push_flags, "pushfd": self._push_flags, "popf": self._pop_flags, "popfd": self._pop_flags,
            "lar": self._rights, "lsl": self._limit, "verr": self._readable, "verw": self._writable,
            "iret": self._return, "iretd": self._return, "lcall": self._far_call, "call": self._far_call,
            "mov": self._selector, "push": self._selector,
        }  # fmt: skip

    def summary(self) -> str:
        """What was found, for the sentence with which a guest ends."""
        if not self.findings:
            return "No sensitive instruction gave it a wrong answer."
        if len(self.findings) == 1:
            return f"It was fooled {self.findings[0]}."
        return (
            f"Sensitive instructions fooled it in {len(self.findings)} places, last {self.findings[-1]},"
            f" first {self.findings[0]}."
        )

    def concerns(self, mnemonic: str, operands: str) -> bool:
        """Whether an instruction is sensitive without being privileged."""
        if mnemonic in ("mov", "push"):
            return operands.rsplit(", ", maxsplit=1)[-1] in _SEGMENTS
        return mnemonic in _MNEMONICS and (mnemonic != "call" or "[" in operands)

    def examine(self, instruction: Instruction, detailed: Detailed) -> str | None:
        """The instruction at EIP is about to execute: a sentence if its result will be wrong, once for each place."""
        linear = self._vcpu.linear_eip()
        if linear in self._sites:
            return None
        try:
            lie = self._table[detailed.mnemonic](detailed)
        except (LinearFault, SegmentFault):
            return None  # it faults, which is no lie
        if lie is None:
            return None
        self._sites.add(linear)
        text = f"at EIP {self._vcpu.eip():#010x} '{instruction}' {lie}"
        self.findings.append(text)
        return text

    # ------------------------------------------------------------------ one check a mnemonic: None, or the lie

    def _gdt(self, _instruction: Detailed) -> str | None:
        return self._table_register(self._vcpu.gdt(), self._guest.gdt())

    def _idt(self, _instruction: Detailed) -> str | None:
        return self._table_register(self._vcpu.idt(), self._guest.idt())

    @staticmethod
    def _table_register(physical: tuple[int, int], virtual: tuple[int, int]) -> str | None:
        base = physical[0] & 0xFFFF_FFFF
        if (base, physical[1]) == virtual:
            return None
        return f"stores base {base:#x} limit {physical[1]:#x}; the guest loaded {virtual[0]:#x} and {virtual[1]:#x}"

    def _ldt(self, _instruction: Detailed) -> str | None:
        return _differ(self._vcpu.ldt_segment().selector, self._guest.ldt_segment().selector)

    def _task(self, _instruction: Detailed) -> str | None:
        return _differ(self._vcpu.task_segment().selector, self._guest.task_segment().selector)

    def _status(self, _instruction: Detailed) -> str | None:
        return _differ(self._vcpu.words[layout.WORD_CR0] & 0xFFFF, self._guest.control(0) & 0xFFFF)

    def _selector(self, instruction: Detailed) -> str | None:
        index = SEGMENT_NAMES.index(instruction.operands[-1].register)
        return _differ(self._guest.physical_segment(index).selector, self._guest.segment(index).selector)

    def _push_flags(self, _instruction: Detailed) -> str | None:
        return _flags(self._guest.physical_eflags(), self._guest.eflags(), "pushes", "the guest's is")

    def _pop_flags(self, instruction: Detailed) -> str | None:
        return self._ignored(self._stack(0, instruction.operand_size))

    def _return(self, instruction: Detailed) -> str | None:
        """IRET to ring 1 itself: it does not fault, and leaves IF alone."""
        size = instruction.operand_size
        if self._stack(1, size) & 3 != self._vcpu.cpl():
            return None
        return self._ignored(self._stack(2, size))

    def _ignored(self, popped: int) -> str | None:
        guest = self._guest
        mask = (FLAG_IF if guest.cpl() <= guest.eflags() >> 12 & 3 else 0) | (0 if guest.cpl() else FLAG_IOPL)
        return _flags(guest.eflags() & mask, popped & mask, "leaves", "the guest wants")

    def _far_call(self, instruction: Detailed) -> str | None:
        if len(instruction.operands) == 1 and not _is_far_indirect(instruction.code):
            return None
        lie = _differ(self._guest.physical_segment(CS).selector, self._guest.segment(CS).selector)
        return lie and f"pushes CS and so {lie}"

    def _rights(self, instruction: Detailed) -> str | None:
        return self._query(instruction, lambda segment: segment.attributes & 0xF0FF00, has_rights)

    def _limit(self, instruction: Detailed) -> str | None:
        return self._query(instruction, lambda segment: segment.limit, has_limit)

    def _readable(self, instruction: Detailed) -> str | None:
        return self._query(instruction, lambda segment: 0, is_readable)

    def _writable(self, instruction: Detailed) -> str | None:
        return self._query(instruction, lambda segment: 0, is_writable)

    def _query(
        self, instruction: Detailed, value: Callable[[Segment], int], valid: Callable[[Segment, int], bool]
    ) -> str | None:
        """LAR, LSL, VERR and VERW: what the guest's table says, against what the hypervisor's does."""
        selector = self._operand(instruction, instruction.operands[-1])
        answers = []
        both = (self._physical(selector), self._vcpu.cpl()), (self._virtual(selector), self._guest.cpl())
        for descriptor, cpl in both:
            segment = None if descriptor is None else segment_from_descriptor(selector, descriptor)
            known = segment is not None and bool(selector & 0xFFFC) and valid(segment, max(cpl, selector & 3))
            answers.append(value(segment) if known and segment is not None else None)
        physical, virtual = answers
        if physical == virtual:
            return None
        return f"answers {_answer(physical)} for selector {selector:#06x}; the guest's table says {_answer(virtual)}"

    def _virtual(self, selector: int) -> int | None:
        try:
            return load_descriptor(self._guest, self._memory, selector)[1]
        except (SegmentFault, LinearFault):
            return None

    def _physical(self, selector: int) -> int | None:
        mirror = self._guest.ldt_mirror if selector & 4 else self._guest.gdt_mirror
        return mirror.physical(selector)

    # ------------------------------------------------------------------ operands

    def _stack(self, number: int, size: int) -> int:
        stack, pointer = self._guest.segment(SS), self._guest.gpr(ESP)
        at = pointer + number * size
        address = stack.base + (at if stack.attributes & ATTRIBUTE_BIG else at & 0xFFFF)
        user = self._guest.cpl() == 3
        data = read_linear(self._memory, self._guest.paging(), address, size, user=user, mark=False)
        return int.from_bytes(data, "little")

    def _operand(self, instruction: Detailed, operand: Operand) -> int:
        if operand.kind == "reg":
            return register_value(self._guest, operand.register) & 0xFFFF
        address = effective_address(self._guest, instruction, operand)
        data = read_linear(self._memory, self._guest.paging(), address, 2, mark=False)
        return int.from_bytes(data, "little")


def _differ(physical: int, virtual: int) -> str | None:
    return None if physical == virtual else f"shows {physical:#x}; the guest's own is {virtual:#x}"


def _flags(physical: int, virtual: int, verb: str, belief: str) -> str | None:
    told = []
    if (physical ^ virtual) & FLAG_IF:
        told.append(f"{verb} IF={physical >> 9 & 1}, {belief} IF={virtual >> 9 & 1}")
    if (physical ^ virtual) & FLAG_IOPL:
        told.append(f"{verb} IOPL={physical >> 12 & 3}, {belief} IOPL={virtual >> 12 & 3}")
    return "; ".join(told) or None


def _answer(value: int | None) -> str:
    return "ZF=0" if value is None else f"{value:#x}"


def _is_far_indirect(code: bytes) -> bool:
    at = code.find(0xFF)
    return at >= 0 and code[at + 1] >> 3 & 7 == 3
