"""What direct execution needs of the guest's registers beyond event delivery: a port with the interrupt state."""

from typing import Protocol

from hvemu.cpu.state import CpuPort, TableRegister


class LiveCpu(CpuPort, Protocol):
    """The guest's registers while it runs: the engine's own, or a hypervisor's view over them."""

    def linear_eip(self) -> int:
        """CS base plus EIP, modulo 2**32."""

    def interrupts_enabled(self) -> bool:
        """EFLAGS.IF."""

    def interrupt_shadow(self) -> bool:
        """Whether STI or MOV SS inhibits interrupts for one instruction."""

    def set_interrupt_shadow(self, value: bool) -> None:
        """Set or clear the inhibition."""

    def gdt(self) -> TableRegister:
        """GDTR."""

    def idt(self) -> TableRegister:
        """IDTR."""
