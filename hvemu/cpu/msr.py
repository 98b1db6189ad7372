"""Model-specific registers: what RDMSR and WRMSR find. An unknown register is #GP, as SDM vol. 4 demands.

Called by the modes for RDMSR and WRMSR. Plain registers are storage; TSC, APIC_BASE, EFER and those of SYSENTER,
SYSCALL and SWAPGS call out; so do those that a hypervisor adds. Not emulated: machine check, performance counters,
microcode updates, debug store.
"""

from collections.abc import Callable
from typing import Final

from hvemu.vocabulary.machine_map import LAPIC_BASE
from hvemu.vocabulary.paging import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, canonical

TSC: Final = 0x10
APIC_BASE: Final = 0x1B
MTRRCAP: Final = 0xFE
SYSENTER_CS: Final = 0x174
SYSENTER_ESP: Final = 0x175
SYSENTER_EIP: Final = 0x176
MISC_ENABLE: Final = 0x1A0
PAT: Final = 0x277
MTRR_DEFAULT: Final = 0x2FF
EFER: Final = 0xC000_0080
STAR: Final = 0xC000_0081
LSTAR: Final = 0xC000_0082
CSTAR: Final = 0xC000_0083
SFMASK: Final = 0xC000_0084
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
KERNEL_GS_BASE: Final = 0xC000_0102
TSC_AUX: Final = 0xC000_0103

_PLAIN: Final = {
    0x17: 0,  # PLATFORM_ID
    0x3A: 1,  # FEATURE_CONTROL, locked
    0x8B: 0,  # BIOS_SIGN_ID
    0xCD: 0,  # FSB_FREQ
    MTRRCAP: 0x508,  # eight variable ranges, fixed ranges, write-combining
    0x119: 0,  # BBL_CR_CTL
    SYSENTER_CS: 0,
    SYSENTER_ESP: 0,
    SYSENTER_EIP: 0,
    0x179: 0,  # MCG_CAP: no banks
    0x17A: 0,
    0x198: 0,  # PERF_STATUS
    0x199: 0,
    0x19A: 0,
    0x19B: 0,
    0x19C: 0,
    MISC_ENABLE: 0x1,  # fast strings
    0x1D9: 0,  # DEBUGCTL
    0x250: 0x0606060606060606,
    0x258: 0x0606060606060606,
    0x259: 0,
    **{0x268 + index: 0x0505050505050505 for index in range(8)},
    **{0x200 + index: 0 for index in range(16)},
    PAT: 0x0007040600070406,
    MTRR_DEFAULT: 0xC06,
    0x2A: 0,  # EBL_CR_POWERON
    # AMD's (BKDG of family 10h): system and hardware configuration, memory tops, northbridge, interrupt pending,
    # configuration space in memory (off), VM_CR, no errata, caches and buses
    0xC001_0010: 0,
    0xC001_0015: 0,
    0xC001_001A: 0,
    0xC001_001D: 0,
    0xC001_001F: 0,
    0xC001_0055: 0,
    0xC001_0058: 0,
    0xC001_0114: 0,
    0xC001_0140: 0,
    0xC001_0141: 0,
    0xC001_1020: 0,
    0xC001_1021: 0,
    0xC001_1022: 0,
    0xC001_1023: 0,
    0xC001_1029: 0,
    0xC001_102A: 0,
    TSC_AUX: 0,
}
_OF_LONG_MODE: Final = frozenset({STAR, LSTAR, CSTAR, SFMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE})
_ADDRESSES: Final = frozenset({LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP})
_READ_ONLY: Final = frozenset({0x17, MTRRCAP, 0x179, 0x198, 0xCD})
_MEMORY_TYPES: Final = frozenset({0, 1, 4, 5, 6})
_U64: Final = (1 << 64) - 1
_PAT_TYPES: Final = frozenset({0, 1, 4, 5, 6, 7})


class MsrError(Exception):
    """The access is #GP(0) to the guest; never leaves the mode."""


class SyntheticRegisters:
    """MSRs that no CPU has, but a hypervisor offers to a guest that knows it; this class has none."""

    numbers: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        """Where all MSRs of the CPU are kept, these as well as far as they hold anything."""

    def reset_values(self) -> dict[int, int]:
        """What is kept, as after power-on."""
        return {}

    def read(self, index: int) -> int:
        """Value of one of ``numbers``; raises MsrError."""
        raise MsrError

    def write(self, index: int, value: int) -> None:
        """Write one of ``numbers``; raises MsrError."""
        raise MsrError

    def counter_written(self) -> None:
        """The guest has moved its time-stamp counter."""


class ModelSpecificRegisters:
    """The MSRs of one vCPU. ``read_tsc`` gives the counter before the guest's own offset."""

    def __init__(
        self,
        read_tsc: Callable[[], int],
        *,
        no_execute: bool,
        long_mode: bool = False,
        apic_enable: Callable[[bool], None] = lambda enabled: None,
        synthetic: SyntheticRegisters | None = None,
    ) -> None:
        self._read_tsc = read_tsc
        self._apic_enable = apic_enable
        self.long_mode = long_mode
        """Whether the CPU has it; without, the MSRs that came with it do not exist."""
        self._efer_allowed = (EFER_NXE if no_execute else 0) | (EFER_SCE | EFER_LME | EFER_LMA if long_mode else 0)
        self._synthetic = synthetic or SyntheticRegisters()
        self.values = self._synthetic.values = self.reset_values()
        """By number; under TSC is what to add to the clock, so that a CPU's state holds all there is to know."""
        self.changed: Callable[[int, int], None] = lambda index, value: None
        """Told of every write but those to what a hypervisor adds, so that the engine's own copies follow."""
        self.live: dict[int, Callable[[], int]] = {}
        """Registers that the CPU changes without WRMSR, such as the base of GS, and where their values are."""
        self.paging_enabled: Callable[[], bool] = lambda: False
        """CR0.PG, under which EFER.LME cannot change."""

    def reset_values(self) -> dict[int, int]:
        """Every register as after power-on."""
        enabled = LAPIC_BASE | 0x900  # and the bootstrap processor
        longer = dict.fromkeys(_OF_LONG_MODE, 0) if self.long_mode else {}
        return {**_PLAIN, TSC: 0, APIC_BASE: enabled, EFER: 0, **longer, **self._synthetic.reset_values()}

    def present_values(self) -> dict[int, int]:
        """Every register, by number, as it is now."""
        return {**self.values, **{index: read() for index, read in self.live.items() if index in self.values}}

    @property
    def tsc_offset(self) -> int:
        """What the guest's writes have moved the counter by, as a signed 64-bit number."""
        offset = self.values[TSC]
        return offset - (1 << 64) if offset >> 63 else offset

    def tsc(self) -> int:
        """The time-stamp counter as the guest reads it."""
        return (self._read_tsc() + self.values[TSC]) & _U64

    def read(self, index: int) -> int:
        """Value of an MSR; raises MsrError for one that does not exist."""
        if index == TSC:
            return self.tsc()
        if index in self._synthetic.numbers:
            return self._synthetic.read(index)
        try:
            value = self.values[index]
        except KeyError:
            raise MsrError from None
        return self.live[index]() if index in self.live else value

    def write(self, index: int, value: int) -> None:
        """Write an MSR; raises MsrError for one that does not exist, is read-only or would take a reserved bit."""
        if index == TSC:
            self.values[TSC] = (value - self._read_tsc()) & _U64
            self._synthetic.counter_written()
            self.changed(index, value)
            return
        if index in self._synthetic.numbers:
            self._synthetic.write(index, value)
            return
        if index not in self.values or index in _READ_ONLY or not self._legal(index, value):
            raise MsrError
        if index == APIC_BASE:
            self._apic_enable(bool(value & 0x800))
        elif index == EFER:
            value = value & ~EFER_LMA | self.read(EFER) & EFER_LMA  # LMA is the CPU's to set (SDM vol. 3A, 2.2.1)
        self.values[index] = value
        self.changed(index, value)

    def _legal(self, index: int, value: int) -> bool:
        if index == EFER:
            changed = value ^ self.read(EFER)
            return not value & ~self._efer_allowed and not (changed & EFER_LME and self.paging_enabled())
        if self.long_mode and index in _ADDRESSES:
            return canonical(value)
        if index == SFMASK:
            return value >> 32 == 0
        if index == APIC_BASE:
            return value & 0xFFFF_F000 == LAPIC_BASE and not value & ~(0xFFFF_F000 | 0x900) and bool(value & 0x100)
        if index == PAT:
            return all(byte in _PAT_TYPES for byte in value.to_bytes(8, "little"))
        if index == MTRR_DEFAULT:
            return not value & ~0xCFF and value & 0xFF in _MEMORY_TYPES
        if index in (0x250, 0x258, 0x259) or 0x268 <= index <= 0x26F:
            return all(byte in _MEMORY_TYPES for byte in value.to_bytes(8, "little"))
        if index in (SYSENTER_ESP, SYSENTER_EIP, SYSENTER_CS, TSC_AUX):
            return value >> 32 == 0
        return True
