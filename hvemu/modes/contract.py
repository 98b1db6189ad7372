"""What the machine knows of a mode: enter, run to a position, interrupt, leave."""

from collections.abc import Callable
from typing import Protocol

from hvemu.cpu.state import VirtualCpu
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.outcomes import Halt, Stop


class ExecutionMode(Protocol):
    """One technique, holding one virtual CPU while it runs."""

    name: str
    breakpoints: frozenset[int]
    """Linear addresses at which ``run`` returns before the instruction."""

    @property
    def halted(self) -> bool:
        """HLT was executed and no interrupt has come since."""

    @property
    def at_breakpoint(self) -> bool:
        """Whether a breakpoint is why ``run`` returned."""

    def enter(self, cpu: VirtualCpu) -> None:
        """Take over the guest in this state; ``enter(leave())`` changes nothing that the guest can see."""

    def leave(self) -> VirtualCpu:
        """The guest's state at an instruction boundary."""

    def run(self, until: Position) -> Halt | Stop | None:
        """Run to the first instruction boundary at or after ``until``.

        Returns earlier with Halt or Stop, or with None when the machine should look again: an interrupt can be
        delivered, or an event has become due sooner.
        """

    def resume(self) -> None:
        """Somebody lets the guest go on: a breakpoint on the next instruction does not count."""

    def position(self) -> Position:
        """Guest code bytes retired; exact inside exit handlers too."""

    def can_interrupt(self) -> bool:
        """Whether an external interrupt can be delivered at this boundary."""

    def deliver_interrupt(self, vector: int) -> Stop | None:
        """Deliver an external interrupt."""

    def deliver_nmi(self) -> Stop | None:
        """Deliver a non-maskable interrupt."""

    def skip(self, amount: int) -> None:
        """Let ``amount`` bytes' worth of time pass without executing; HLT does."""

    def attend(self, *, urgent: bool = False) -> None:
        """A device wants the machine's attention at the next boundary; unless ``urgent``, when IF allows it."""

    def stop_soon(self, stop: Stop) -> None:
        """End the guest at the next boundary; for devices and for whoever watches from outside, from any thread."""

    def instructions(self) -> int | None:
        """Instructions retired since the start, where the machine counts them."""

    def limit_instructions(self, amount: int) -> None:
        """End the guest before it starts more than ``amount`` further instructions; ValueError without counting."""

    warn: Callable[[str], None]
    """Told what people should know while the guest runs; set by whoever shows it."""

    def remark(self) -> str:
        """What the technique has to say when the guest ended badly: a sentence, or nothing."""

    def dirty_pages(self) -> set[int]:
        """Guest frames written since the last call; all frames at the first."""
