"""Two techniques for one guest: what the one cannot run is handed over to the other, openly.

Binary translation begins where protected mode with 32-bit code does. Real mode, and the few instructions between
setting CR0.PE and the jump to 32-bit code, run as in mode ``native``, on a CPU of their own over the same memory; a
guest that goes back to real mode is handed back. Every change of hands is a row of the ledger.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from hvemu.cpu.state import ATTRIBUTE_BIG, ATTRIBUTE_DPL_SHIFT, CS, FLAG_VM, SS, Segment, VirtualCpu
from hvemu.modes.binary_translation import BinaryTranslation
from hvemu.modes.native import NativeMode
from hvemu.modes.reflection import refuse_long_mode
from hvemu.modes.translation_cache import Unit
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.outcomes import Halt, Stop
from hvemu.vocabulary.paging import CR0_PE

_ON_THE_WAY: Final = 10_000
"""Most instructions looked at one by one between CR0.PE and 32-bit code; then the guest is left where it is."""


class HandingOver:
    """Implements ExecutionMode over binary translation and, once it is needed, ``native``."""

    name = "bt"

    def __init__(self, translation: BinaryTranslation, start: Callable[[], NativeMode]) -> None:
        self._translation, self._start = translation, start
        self._native: NativeMode | None = None
        self.current: BinaryTranslation | NativeMode = translation
        translation.hands_over = True
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        """Whatever else there is to know is known by the technique that runs."""
        return getattr(self.current, name)

    def enter(self, cpu: VirtualCpu) -> None:
        """Take over the guest in this state, with the technique that it needs."""
        self._steps = 0
        if cpu.cr0 & CR0_PE and _is_translated(cpu.segments[CS], cpu.segments[SS]):
            self._take(self._translation, cpu)
        else:
            self._take(self._real(), cpu)

    def leave(self) -> VirtualCpu:
        """The guest's state at an instruction boundary."""
        return self.current.leave()

    def _real(self) -> NativeMode:
        if self._native is None:
            self._native = self._start()
            self._native.watches_protection = True
            self._native.refuse_long_mode = partial(refuse_long_mode, self.name)
            self._native.warn = self._translation.warn
            self._native.breakpoints = self._translation.breakpoints
        return self._native

    def _take(self, mode: BinaryTranslation | NativeMode, cpu: VirtualCpu) -> None:
        before, self.current = self.current, mode
        mode.connect()
        mode.enter(cpu)
        if mode is not before:
            mode.take_over_from(before)
            self._translation.note_change_of_hands()

    def _change_hands(self) -> bool:
        """Look whether the guest is where the other technique belongs; returns whether it has been handed over."""
        mode = self.current
        if mode is self._translation:
            if not self._translation.wants_to_hand_over:
                return False
            self._translation.wants_to_hand_over = False
            self._steps = 0
            self._take(self._real(), mode.leave())
            return True
        if not mode.cpu.paging().cr0 & CR0_PE:
            self._steps = 0
            return False
        if not _is_translated(mode.cpu.segment(CS), mode.cpu.segment(SS)) or mode.cpu.eflags() & FLAG_VM:
            return False
        self._take(self._translation, mode.leave())
        return True

    def run(self, until: Position) -> Halt | Stop | None:
        """Run to the first instruction boundary at or after ``until``; see the contract."""
        while True:
            goal, mode = until, self.current
            if mode is self._native and mode.cpu.paging().cr0 & CR0_PE and self._steps < _ON_THE_WAY:
                self._steps += 1
                goal = min(until, Position(mode.position() + 1))
            outcome = mode.run(goal)
            if outcome is not None or mode.at_breakpoint:
                return outcome
            if not self._change_hands() and (goal == until or mode.position() >= until):
                return None

    # ------------------------------------------------------------------ the rest of ExecutionMode

    @property
    def halted(self) -> bool:
        """HLT was executed and no interrupt has come since."""
        return self.current.halted

    @property
    def at_breakpoint(self) -> bool:
        """Whether a breakpoint is why ``run`` returned."""
        return self.current.at_breakpoint

    @property
    def breakpoints(self) -> frozenset[int]:
        """Linear addresses at which ``run`` returns before the instruction."""
        return self.current.breakpoints

    @breakpoints.setter
    def breakpoints(self, addresses: frozenset[int]) -> None:
        self._translation.breakpoints = addresses
        if self._native is not None:
            self._native.breakpoints = addresses

    @property
    def warn(self) -> Callable[[str], None]:
        """Told what people should know while the guest runs."""
        return self.current.warn

    @warn.setter
    def warn(self, warn: Callable[[str], None]) -> None:
        self._translation.warn = warn
        if self._native is not None:
            self._native.warn = warn

    @property
    def translated(self) -> Callable[[Unit], None] | None:
        """Told of every unit of kernel code when it has been translated."""
        return self._translation.translated

    @translated.setter
    def translated(self, translated: Callable[[Unit], None] | None) -> None:
        self._translation.translated = translated

    def position(self) -> Position:
        """Guest code bytes retired."""
        return self.current.position()

    def shorten(self, until: Position) -> None:
        """An event has become due earlier than the position given to ``run``."""
        self.current.shorten(until)

    def attend(self, *, urgent: bool = False) -> None:
        """A device wants the machine's attention."""
        self.current.attend(urgent=urgent)

    def stop_soon(self, stop: Stop) -> None:
        """End the guest at the next boundary."""
        self.current.stop_soon(stop)

    def resume(self) -> None:
        """Somebody lets the guest go on: a breakpoint on the next instruction does not count."""
        self.current.resume()

    def can_interrupt(self) -> bool:
        """Whether an external interrupt can be delivered at this boundary."""
        return self.current.can_interrupt()

    def deliver_interrupt(self, vector: int) -> Stop | None:
        """Deliver an external interrupt."""
        return self.current.deliver_interrupt(vector)

    def deliver_nmi(self) -> Stop | None:
        """Deliver a non-maskable interrupt."""
        return self.current.deliver_nmi()

    def skip(self, amount: int) -> None:
        """Let time pass without executing."""
        self.current.skip(amount)

    def instructions(self) -> int | None:
        """Instructions retired since the start, where the machine counts them."""
        return self.current.instructions()

    def limit_instructions(self, amount: int) -> None:
        """End the guest before it starts more than ``amount`` further instructions."""
        self.current.limit_instructions(amount)

    def remark(self) -> str:
        """What the technique has to say when the guest ended badly."""
        return self.current.remark()

    def dirty_pages(self) -> set[int]:
        """Guest frames written since the last call; all frames at the first."""
        return self.current.dirty_pages()

    def sentence(self, cause: str) -> str:
        """A sentence for people: EIP, instruction and cause."""
        return self.current.sentence(cause)


def _is_translated(code: Segment, stack: Segment) -> bool:
    """Whether binary translation takes this: user code, which runs directly, or 32-bit code with a 32-bit stack."""
    user = code.attributes >> ATTRIBUTE_DPL_SHIFT & 3 == 3
    return user or bool(code.attributes & stack.attributes & ATTRIBUTE_BIG)
