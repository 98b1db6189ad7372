"""The time as a hypervisor tells it in memory: a counter, what time it was then, and what a tick is worth.

KVM and Xen have the same structure, and with both the guest works out the time by itself. Documents: Linux,
arch/x86/include/asm/pvclock-abi.h, pvclock_vcpu_time_info; Xen, public/xen.h, vcpu_time_info.
"""

import struct
from typing import Final

_TIME: Final = struct.Struct("<IIQQIbBH")
"""Version, padding, counter, nanoseconds, multiplier, shift, flags, padding."""
_ONE_TO_ONE: Final = (1 << 31, 1)
"""Multiplier and shift where a tick of the counter is a nanosecond: ``ticks << 1`` times 2**31, divided by 2**32."""
_TSC_STABLE: Final = 1
"""Flag: the counter never stands still nor runs at another rate."""
SIZE: Final = _TIME.size
"""In bytes."""


def time_info(version: int, counter: int, nanoseconds: int) -> bytes:
    """The structure that says: when the time-stamp counter was ``counter``, the time was ``nanoseconds``."""
    return _TIME.pack(version, 0, counter, nanoseconds, *_ONE_TO_ONE, _TSC_STABLE, 0)
