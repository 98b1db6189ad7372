"""Interception: instructions that have to be looked at before they execute, and breakpoints.

The engine announces every block it has translated. One that contains such an instruction is translated again with a
hook at that place; code that has none pays nothing.
"""

import re
from abc import abstractmethod
from typing import Final

from hvemu.cpu.decoder import MAXIMUM_LENGTH, Instruction, boundaries, decode
from hvemu.cpu.delivery import (
    DEBUG,
    Event,
)
from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.state import ATTRIBUTE_BIG, ESP, FLAG_RF, FLAG_VM, SS, VirtualCpu
from hvemu.engine import layout
from hvemu.memory.walk import walk
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.stretches import Services, Stretches
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.paging import EFER_LMA, LINEAR_MASK

_MOST_ENTRIES: Final = 1 << 16
_IRET: Final = b"\xcf"
_FIRST_LOOK: Final = 256
"""Bytes looked at where a run starts."""


class Interception(Stretches):
    """Hooks on single instructions; a mode says which, and what to do in their place."""

    _suspicious: re.Pattern[bytes]
    """What the bytes of an instruction to intercept look like; a first, quick look."""
    _outer_ring = 1
    """From this ring of the engine on, IRET must not go to virtual-8086 mode; the engine lets it go there from any."""

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        super().__init__(services, cpu)
        self._sites: set[int] = set()
        self._entries: set[tuple[int, int]] = set()  # where control has been moved to, and in which address space
        self._breakpoints: frozenset[int] = frozenset()
        self._resumed_at = (-1, 0)
        services.vcpu.on_translation(self._on_translation)

    def _on_translation(self, linear: int, size: int) -> None:
        """A block has been translated and is about to run: note its frame, look for instructions to intercept."""
        memory, paging = self.memory, self.cpu.paging()
        mask = LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
        physical = walk(memory, paging, linear & mask, mark=False)
        if not isinstance(physical, int):
            return
        memory.code_frames.add(physical >> PAGE_SHIFT)
        if (linear & (PAGE_SIZE - 1)) + size > PAGE_SIZE:
            code = self._code(linear, size)
            second = walk(memory, paging, (linear + size - 1) & mask, mark=False)
            if isinstance(second, int):
                memory.code_frames.add(second >> PAGE_SHIFT)
        else:
            code = bytes(memory.view[physical : physical + size])
        if self._looks_suspicious(code) and self._abandoned is None:
            self._intercept_sites(linear, size, code)

    def _look_at_first_block(self) -> None:
        """The engine does not announce the first block of a run: look at what it may be."""
        memory, linear = self.memory, self.vcpu.linear_eip()
        physical = walk(memory, self.cpu.paging(), linear, mark=False)
        if not isinstance(physical, int):
            return
        memory.code_frames.add(physical >> PAGE_SHIFT)
        code = memory.view[physical : min(physical + _FIRST_LOOK, (physical | (PAGE_SIZE - 1)) + 1)]
        if self._looks_suspicious(code) and self._hook_sites(linear, bytes(code)):
            self._forget_code_at(linear, len(code))

    def _look_at_entry(self) -> None:
        """Control has been moved inside a callback: the engine does not announce the block that comes next either."""
        here = self.vcpu.linear_eip(), self._quads[layout.QUAD_CR + 3]
        if here not in self._entries:
            if len(self._entries) == _MOST_ENTRIES:
                self._entries.clear()
            self._entries.add(here)
            self._look_at_first_block()

    def _looks_suspicious(self, code: bytes | memoryview) -> bool:
        return self._suspicious.search(code) is not None or (self._is_outside() and _IRET in bytes(code))

    def _is_outside(self) -> bool:
        """Whether IRET must not go to virtual-8086 mode: in an outer ring, and everywhere in long mode."""
        ring = self._words[layout.WORD_HFLAGS] & 3
        return ring >= self._outer_ring or bool(self.cpu.paging().efer & EFER_LMA)

    def _intercept_sites(self, linear: int, size: int, code: bytes) -> None:
        """A block that has just been translated contains such an instruction: translate it again, with a hook."""
        if self._hook_sites(linear, code):
            self._retranslate = linear, size
            self._stop_at_block_end()

    def _hook_sites(self, linear: int, code: bytes) -> bool:
        """Hook every instruction that may need to be intercepted; returns whether one was new."""
        fresh = False
        for at, mnemonic, operands in boundaries(code, self._bits()):
            wanted = self._is_intercepted(mnemonic, operands) or (mnemonic == "iretd" and self._is_outside())
            if wanted and self._hook_site(linear + at):
                fresh = True
        return fresh

    def _hook_site(self, linear: int) -> bool:
        """Hook the instruction at a linear address, which must be translated again; returns whether it was new."""
        if linear in self._sites:
            return False
        self._sites.add(linear)
        self.vcpu.on_execute(linear, self._on_site)
        return True

    def _on_site(self, linear: int) -> None:
        """Just before an instruction that may need to be intercepted."""
        if self._abandoned is not None:
            self.vcpu.stop()
            return
        if linear in self._breakpoints and (self.position(), linear) != self._resumed_at:
            self.at_breakpoint = True
            self._stop_now()
            return
        if self._debug.watches(linear) and not self.cpu.eflags() & FLAG_RF:
            self._intercept(linear)
            return
        instruction = self._instruction()
        if instruction is None:
            return
        wanted = self._is_intercepted(instruction.mnemonic, instruction.operands) and self._wants(instruction)
        if wanted or (instruction.mnemonic == "iretd" and self._is_outside() and self._pops_virtual_8086()):
            self._intercept(linear)

    def _pops_virtual_8086(self) -> bool:
        """Whether the EFLAGS that IRET is going to pop have VM set, which a CPU ignores outside of ring 0."""
        cpu = self.cpu
        stack, pointer = cpu.segment(SS), cpu.gpr(ESP) + 8
        if cpu.is_64_bit():
            pointer = cpu.long_gpr(ESP) + 8
        else:
            pointer = stack.base + (pointer if stack.attributes & ATTRIBUTE_BIG else pointer & 0xFFFF)
        try:
            flags = read_linear(self.memory, cpu.paging(), pointer, 4, mark=False)
        except LinearFault:
            return False
        return bool(int.from_bytes(flags, "little") & FLAG_VM)

    def _intercept(self, linear: int) -> None:
        self._intercept_at = linear
        self._stop_now()

    def _intercepted(self) -> None:
        """The engine stopped before an instruction that was to be intercepted."""
        if self._debug.hit(self.cpu.linear_eip(), self.cpu.eflags()):
            self._exception(Event(DEBUG))
            return
        instruction = self._instruction()
        assert instruction is not None
        self._emulate(instruction)

    def _instruction(self) -> Instruction | None:
        """The instruction at EIP."""
        return decode(self._code(self.vcpu.linear_eip(), MAXIMUM_LENGTH), self._bits())

    @abstractmethod
    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        """Whether such an instruction may have to be done in place of the CPU."""

    @abstractmethod
    def _wants(self, instruction: Instruction) -> bool:
        """Whether this one has to be, in the present state of the guest."""

    @abstractmethod
    def _emulate(self, instruction: Instruction) -> None:
        """Do the instruction at EIP in place of the CPU."""

    # ------------------------------------------------------------------ breakpoints

    def _load_debug(self, values: list[int]) -> None:
        self._debug.load(values)
        self._hook_addresses(self._debug.execution_breakpoints())

    def _load_rest(self, cpu: VirtualCpu) -> None:
        """The end of ``enter``: what is the same in every technique."""
        vcpu = self.vcpu
        for index, value in enumerate(cpu.gprs):
            vcpu.set_long_gpr(index, value)
        self._quads[layout.QUAD_EIP] = cpu.instruction_pointer
        vcpu.write_fpu(cpu.fpu)
        self._load_debug(cpu.debug)
        if cpu.cr8 != self._task_priority.read_priority():
            self._task_priority.write_priority(cpu.cr8)
        self._nmi_blocked = cpu.nmi_blocked
        self.halted = cpu.halted
        vcpu.clear_exception()
        vcpu.set_interrupt_shadow(cpu.interrupt_shadow)
        vcpu.forget_code()

    @property
    def breakpoints(self) -> frozenset[int]:
        """Linear addresses at which ``run`` returns before the instruction."""
        return self._breakpoints

    @breakpoints.setter
    def breakpoints(self, addresses: frozenset[int]) -> None:
        self._breakpoints = addresses
        self._hook_addresses(addresses)

    def resume(self) -> None:
        """A run begins: a breakpoint on the next instruction does not count."""
        self.at_breakpoint = False
        self._resumed_at = self.position(), self.vcpu.linear_eip()

    def _hook_addresses(self, addresses: frozenset[int]) -> None:
        fresh = [address for address in addresses if self._hook_site(address)]
        if fresh:
            self.vcpu.forget_code()

    @abstractmethod
    def _exception(self, event: Event) -> None:
        """The CPU raised an exception."""
