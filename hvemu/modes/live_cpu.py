"""What direct execution needs of the guest's registers beyond event delivery: a port with the interrupt state."""

from collections.abc import Callable
from typing import Protocol

from hvemu.cpu.state import CpuPort, TableRegister


class LegacyCpu:
    """Registers of a CPU that is not in long mode, for the guest; R8 to R15 do not exist."""

    gpr: Callable[[int], int]
    set_gpr: Callable[[int, int], None]

    def long_gpr(self, index: int) -> int:
        """A general register, whose upper half is zero."""
        return self.gpr(index) if index < 8 else 0

    def set_long_gpr(self, index: int, value: int) -> None:
        """Set the lower half of a general register."""
        self.set_gpr(index, value)

    def is_64_bit(self) -> bool:
        """Never."""
        return False


class LiveCpu(CpuPort, Protocol):
    """The guest's registers while it runs: the engine's own, or a hypervisor's view over them."""

    def linear_eip(self) -> int:
        """CS base plus EIP, modulo 2**32; in 64-bit code modulo 2**64."""

    def interrupts_enabled(self) -> bool:
        """EFLAGS.IF."""

    def interrupt_shadow(self) -> bool:
        """Whether STI or MOV SS inhibits interrupts for one instruction."""

    def set_interrupt_shadow(self, value: bool) -> None:
        """Set or clear the inhibition."""

    def cr2(self) -> int:
        """The address of the last page fault."""

    def gdt(self) -> TableRegister:
        """GDTR."""

    def idt(self) -> TableRegister:
        """IDTR."""
