"""The interface of KVM, as far as hvemu offers it: numbers of MSRs, features, hypercalls and errors.

From Linux: arch/x86/include/uapi/asm/kvm_para.h, include/uapi/linux/kvm_para.h, and Documentation/virt/kvm/x86 with
cpuid.rst, msr.rst and hypercalls.rst.
"""

from enum import IntEnum
from typing import Final

FEATURE_CLOCKSOURCE: Final = 1 << 0
FEATURE_CLOCKSOURCE2: Final = 1 << 3
FEATURE_PV_EOI: Final = 1 << 6
FEATURE_CLOCKSOURCE_STABLE: Final = 1 << 24

MSR_WALL_CLOCK_OLD: Final = 0x11
MSR_SYSTEM_TIME_OLD: Final = 0x12
MSR_WALL_CLOCK: Final = 0x4B56_4D00
MSR_SYSTEM_TIME: Final = 0x4B56_4D01
MSR_PV_EOI: Final = 0x4B56_4D04
ENABLED: Final = 1
"""Bit 0 of the MSRs of the system time and of PV EOI."""

EPERM: Final = 1
ENOSYS: Final = 1000
"""Errors of hypercalls, returned negated."""


class KvmCall(IntEnum):
    """Numbers of hypercalls; what is not here is answered with ENOSYS."""

    VAPIC_POLL_IRQ = 1
    KICK_CPU = 5


_NAMES: Final = {int(call): call.name.lower() for call in KvmCall}


def kvm_call_name(number: int) -> str:
    """``kick_cpu`` for 5; a number for what is not offered."""
    return _NAMES.get(number, f"{number:#x}")
