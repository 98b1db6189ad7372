"""What hypercalls need of the CPU, and how they reach the guest's memory."""

from collections.abc import Callable
from typing import Protocol

from hvemu.cpu.linear import LinearFault, read_linear, write_linear
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.paging import PagingRegisters
from hvemu.vocabulary.xen import Errno, HypercallError


class ParavirtualCpu(Protocol):
    """The virtual CPU, as hypercalls change it."""

    def set_trap(self, vector: int, flags: int, selector: int, address: int) -> None:
        """A row of the trap table; address 0 is none."""

    def clear_traps(self) -> None:
        """Forget the trap table."""

    def set_kernel_stack(self, selector: int, pointer: int) -> None:
        """Where events from user code begin to push."""

    def set_callback(self, selector: int, address: int) -> None:
        """The entry point for events."""

    def load_gdt(self, frames: list[int]) -> None:
        """Machine frames that hold the guest's part of the GDT."""

    def set_task_switched(self, on: bool) -> None:
        """CR0.TS."""

    def set_io_privilege(self, level: int) -> None:
        """The ring that may use ports."""

    def invalidate(self, linear: int) -> None:
        """INVLPG."""

    def return_from_event(self) -> None:
        """The iret hypercall; raises HypercallError when the frame cannot be read."""

    def block(self) -> None:
        """Wait for an event."""

    def shut_down(self, reason: int) -> None:
        """The guest ends itself."""


class GuestAccess:
    """The guest's linear memory, with the rights of its kernel; a fault is EFAULT."""

    def __init__(self, memory: GuestPhysicalMemory, registers: Callable[[], PagingRegisters]) -> None:
        self._memory, self._registers = memory, registers

    def read(self, linear: int, length: int) -> bytes:
        """``length`` bytes."""
        try:
            return read_linear(self._memory, self._registers(), linear, length)
        except LinearFault:
            raise HypercallError(Errno.EFAULT) from None

    def write(self, linear: int, data: bytes) -> None:
        """All of ``data``, or nothing."""
        try:
            write_linear(self._memory, self._registers(), linear, data)
        except LinearFault:
            raise HypercallError(Errno.EFAULT) from None
