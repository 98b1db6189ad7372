"""Replaying a delivery that was done before: the same event into the same gate, from ring 3 to an inner ring.

A plan remembers every word of memory that ``deliver`` read (gate, descriptors, TSS, page tables) and what the register
file looked like. As long as all of it is unchanged, the outcome is too, except for the values pushed; so a system call
costs a comparison and a copy instead of a walk through the tables. Anything unusual is simply not remembered.
"""

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, NamedTuple

from hvemu.cpu.delivery import Escalated, Event, TripleFault, Unsupported, deliver, pushed_flags
from hvemu.cpu.state import CS, ESP, FLAG_IF, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM, SS
from hvemu.engine import layout
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.paging import EFER_LMA, LINEAR_MASK

_FIRST: Final = 4 * layout.WORD_HFLAGS
_LAST: Final = layout.BYTE_IDT + layout.SEGMENT_STRIDE
_CODE: Final = layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * CS
_STACK_END: Final = layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * (SS + 1)
_MOST: Final = 4096
_CR0, _CR3, _CR4, _EFER = layout.WORD_CR0, layout.QUAD_CR + 3, layout.WORD_CR4, 2 * layout.QUAD_EFER
_FRAMES: Final = {5: struct.Struct("<5I"), 6: struct.Struct("<6I")}
_LONG_FRAMES: Final = {5: struct.Struct("<5Q"), 6: struct.Struct("<6Q")}
_CLEARED: Final = FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM


class _Plan(NamedTuple):
    registers: bytes
    control: tuple[int, int, int, int]
    read: Callable[[Any], Any]
    expected: tuple[int, ...]
    frame_at: int
    frame: struct.Struct
    cs: int
    ss: int
    segments: bytes
    hflags: int
    esp: int
    eip: int
    kept: int
    mask: int


class DeliveryPlans:
    """The plans of one vCPU, at most one for each vector and kind of event."""

    def __init__(self, vcpu: Vcpu, memory: GuestPhysicalMemory) -> None:
        self._vcpu, self._memory = vcpu, memory
        self._state, self._words, self._quads = vcpu.state, vcpu.words, vcpu.quads
        self._plans: dict[tuple[int, bool, bool, bool], _Plan] = {}
        self._ram = memory.view.cast("I")

    def _control(self) -> tuple[int, int, int, int]:
        words = self._words
        return words[_CR0], self._quads[_CR3], words[_CR4], words[_EFER]

    def deliver(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        """What ``cpu.delivery.deliver`` does, by a plan if there is one."""
        vector, error_code, software, external, address, _ = event
        words, quads = self._words, self._quads
        if not words[layout.WORD_HFLAGS] & 3:
            return deliver(self._vcpu, self._memory, event)
        key = (vector, software, external, error_code is None)
        plan = self._plans.get(key)
        if (
            plan is None
            or self._state[_FIRST:_LAST].tobytes() != plan.registers
            or (words[_CR0], quads[_CR3], words[_CR4], words[_EFER]) != plan.control
            or plan.read(self._ram) != plan.expected
        ):
            return self._learn(key, event)
        if address is not None:
            self._vcpu.set_cr2(address)
        flags = self._vcpu.eflags()
        mask = plan.mask
        frame = quads[layout.QUAD_EIP] & mask, plan.cs, pushed_flags(event, flags), quads[ESP] & mask, plan.ss
        data = plan.frame.pack(*frame) if error_code is None else plan.frame.pack(error_code, *frame)
        self._memory.write(plan.frame_at, data)
        self._vcpu.set_eflags(flags & plan.kept)
        quads[ESP], quads[layout.QUAD_EIP] = plan.esp, plan.eip
        self._state[_CODE:_STACK_END] = plan.segments
        words[layout.WORD_HFLAGS] = plan.hflags
        return None

    def _learn(self, key: tuple[int, bool, bool, bool], event: Event) -> TripleFault | Unsupported | Escalated | None:
        """Deliver step by step, and remember how if the way was straight."""
        vcpu, state = self._vcpu, self._state
        before, control = state[_FIRST:_LAST].tobytes(), self._control()
        cs, ss = vcpu.segment(CS).selector, vcpu.segment(SS).selector
        flags = vcpu.eflags()
        whole = not control[3] & EFER_LMA or vcpu.is_64_bit()  # compatibility mode pushes half of RSP
        witness = _Witness(self._memory)
        problem = deliver(vcpu, witness, event)
        count = 5 if event.error_code is None else 6
        frame = (_LONG_FRAMES if control[3] & EFER_LMA else _FRAMES)[count]
        if (
            problem is None
            and witness.frames == [frame.size]
            and whole
            and not flags & FLAG_VM
            and len(self._plans) < _MOST
            and witness.gate_type() in (14, 15)
            and vcpu.cpl() < 3
        ):
            where = sorted(witness.words)
            self._plans[key] = _Plan(
                before,
                control,
                itemgetter(*(address >> 2 for address in where)),
                tuple(witness.words[address] for address in where),
                witness.frame_at,
                frame,
                cs,
                ss,
                state[_CODE:_STACK_END].tobytes(),
                self._words[layout.WORD_HFLAGS],
                vcpu.long_gpr(ESP),
                vcpu.eip(),
                ~_CLEARED if witness.gate_type() == 15 else ~(_CLEARED | FLAG_IF),
                LINEAR_MASK if frame in _LONG_FRAMES.values() else 0xFFFF_FFFF,
            )
        else:
            self._plans.pop(key, None)
        return problem


class _Witness(GuestPhysicalMemory):
    """Guest memory that remembers what was read; anything but aligned words in RAM makes the way crooked."""

    def __init__(self, memory: GuestPhysicalMemory) -> None:
        self._memory = memory
        self.size, self.view = memory.size, memory.view
        self.words: dict[int, int] = {}
        self.frames: list[int] = []
        self.frame_at = 0
        self._gate: int | None = None

    def gate_type(self) -> int:
        """The type of the gate, which is the first descriptor read."""
        return 0 if self._gate is None else (self._gate >> 40) & 0xF

    def _crooked(self) -> None:
        self.frames.append(0)

    def read(self, address: int, length: int) -> bytes:
        """Unaligned or odd reads are not remembered."""
        self._crooked()
        return self._memory.read(address, length)

    def read_u32(self, address: int) -> int:
        """A page table entry."""
        value = self._memory.read_u32(address)
        if address % 4 or address + 4 > self.size:
            self._crooked()
        else:
            self.words[address] = value
        return value

    def read_u64(self, address: int) -> int:
        """A descriptor or a PAE entry."""
        value = self._memory.read_u64(address)
        if address % 4 or address + 8 > self.size:
            self._crooked()
        else:
            self.words[address], self.words[address + 4] = value & 0xFFFF_FFFF, value >> 32
        return value

    def descriptor(self, address: int) -> int:
        """The first one is the gate."""
        value = self.read_u64(address)
        if self._gate is None:
            self._gate = value
        return value

    def set_bits_u32(self, address: int, bits: int) -> None:
        """Accessed and dirty bits change what was just read: remember the next time instead."""
        self._crooked()
        self._memory.set_bits_u32(address, bits)

    def write(self, address: int, data: bytes) -> None:
        """The frame."""
        self.frames.append(len(data))
        self.frame_at = address
        self._memory.write(address, data)
