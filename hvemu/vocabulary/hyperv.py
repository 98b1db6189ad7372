"""The interface of Hyper-V, as far as hvemu offers it (Hypervisor Top-Level Functional Specification, "TLFS")."""

from typing import Final

MSR_GUEST_OS_ID: Final = 0x4000_0000
MSR_HYPERCALL: Final = 0x4000_0001
MSR_VP_INDEX: Final = 0x4000_0002
MSR_TIME_REF_COUNT: Final = 0x4000_0020

ACCESS_REFERENCE_COUNTER: Final = 1 << 1
ACCESS_HYPERCALL_MSRS: Final = 1 << 5
ACCESS_VP_INDEX: Final = 1 << 6

HYPERCALL_ENABLED: Final = 1
HYPERCALL_LOCKED: Final = 2
"""Bits of MSR_HYPERCALL; the page's number is above bit 12."""
STATUS_INVALID_HYPERCALL_CODE: Final = 2
NEVER_NOTIFY: Final = 0xFFFF_FFFF
"""Number of attempts at a spinlock after which the hypervisor wants to know."""
