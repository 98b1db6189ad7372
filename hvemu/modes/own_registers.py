"""A guest whose registers are the CPU's own: model-specific registers that the CPU's own instructions use.

For techniques in which the guest kernel runs in its own ring; a deprivileged one keeps all of them virtual.
"""

from hvemu.cpu.msr import (
    EFER,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
    TSC,
)
from hvemu.cpu.state import FS, GS
from hvemu.modes.direct_execution import DirectExecution

_SEGMENT_BASES = {FS_BASE: FS, GS_BASE: GS}
_FOR_THE_ENGINE = frozenset({SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, STAR})


class OwnRegisters(DirectExecution):
    """What RDMSR finds in the CPU, and WRMSR changes there."""

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask."""
        super().connect()
        msrs, vcpu = self._services.msrs, self.vcpu
        msrs.changed = self._msr_changed
        msrs.live = {
            EFER: self._efer,
            FS_BASE: lambda: vcpu.segment(FS).base,
            GS_BASE: lambda: vcpu.segment(GS).base,
            KERNEL_GS_BASE: vcpu.kernel_gs_base,
        }

    def _efer(self) -> int:
        """EFER as the guest has it."""
        return self.cpu.paging().efer

    def _set_efer(self, value: int) -> None:
        """The guest's EFER has changed."""
        raise NotImplementedError

    def _load_msrs(self, values: dict[int, int]) -> None:
        """Take over a guest's registers. The bases of FS and GS come with the segments, EFER with paging."""
        for index, value in values.items():
            self._msrs.values[index] = value
            if index not in _SEGMENT_BASES and index != EFER:
                self._msr_changed(index, value)

    def _msr_changed(self, index: int, value: int) -> None:
        if index == EFER:
            self._set_efer(value)
        elif index == TSC:
            self._clock.move_tsc(self._msrs.tsc_offset)
        elif index in _FOR_THE_ENGINE:
            self.vcpu.write_msr(index, value)
        elif index in _SEGMENT_BASES:
            self.vcpu.set_segment_base(_SEGMENT_BASES[index], value)
        elif index == KERNEL_GS_BASE:
            self.vcpu.set_kernel_gs_base(value)
