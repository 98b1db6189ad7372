"""DR0-DR7 as storage with the reserved bits of SDM vol. 3B, 18.2; MOV to and from them is emulated.

Kept out of the engine, whose own breakpoints can end the process. Breakpoints on instructions are matched here, by
linear address; those on data and I/O are kept but do not fire.
"""

from typing import Final

from hvemu.cpu.state import FLAG_RF

DR6_FIXED: Final = 0xFFFF_0FF0
DR6_WRITABLE: Final = 0x0000_E00F
DR7_FIXED: Final = 0x0000_0400
DR7_WRITABLE: Final = 0xFFFF_23FF
DR6_BD: Final = 1 << 13
DR6_BS: Final = 1 << 14
DR7_GD: Final = 1 << 13


class DebugRegisterFault(Exception):
    """The access is an exception to the guest: its vector."""

    def __init__(self, vector: int) -> None:
        super().__init__(vector)
        self.vector = vector


class DebugRegisters:
    """The eight registers; 4 and 5 are aliases of 6 and 7 unless CR4.DE is set."""

    def __init__(self) -> None:
        self.values = [0, 0, 0, 0, 0, 0, DR6_FIXED, DR7_FIXED]

    def _index(self, number: int, debugging_extensions: bool) -> int:
        if number in (4, 5):
            if debugging_extensions:
                raise DebugRegisterFault(6)
            number += 2
        if self.values[7] & DR7_GD:
            self.values[6] |= DR6_BD
            self.values[7] &= ~DR7_GD
            raise DebugRegisterFault(1)
        return number

    def read(self, number: int, debugging_extensions: bool) -> int:
        """MOV from a debug register; raises DebugRegisterFault."""
        return self.values[self._index(number, debugging_extensions)]

    def write(self, number: int, value: int, debugging_extensions: bool) -> None:
        """MOV to a debug register; raises DebugRegisterFault."""
        index = self._index(number, debugging_extensions)
        if index == 6:
            value = (value & DR6_WRITABLE) | DR6_FIXED
        elif index == 7:
            value = (value & DR7_WRITABLE) | DR7_FIXED
        self.values[index] = value

    def load(self, values: list[int]) -> None:
        """Set all eight at once, as a snapshot gives them."""
        self.values[:] = values

    def execution_breakpoints(self) -> frozenset[int]:
        """Linear addresses whose instruction is to raise #DB before it executes (R/W = 0, enabled)."""
        control = self.values[7]
        if not control & 0xFF:
            return frozenset()
        return frozenset(
            self.values[n] for n in range(4) if control >> (2 * n) & 3 and not control >> (16 + 4 * n) & 0xF
        )

    def watches(self, linear: int) -> bool:
        """Whether an instruction breakpoint is enabled at this address."""
        return bool(self.values[7] & 0xFF) and linear in self.execution_breakpoints()

    def hit(self, linear: int, flags: int) -> bool:
        """Record in DR6 which instruction breakpoints fire at this address; EFLAGS.RF holds them off."""
        if flags & FLAG_RF or not self.watches(linear):
            return False
        control = self.values[7]
        for n in range(4):
            if self.values[n] == linear and not control >> (16 + 4 * n) & 0xF and control >> (2 * n) & 3:
                self.values[6] |= 1 << n
        return True

    def single_stepped(self) -> None:
        """Record in DR6 that a trap flag caused #DB."""
        self.values[6] |= DR6_BS
