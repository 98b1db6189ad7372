"""The backdoor of VMware, as far as hvemu offers it (Linux: arch/x86/include/asm/vmware.h, kernel/cpu/vmware.c)."""

from typing import Final

BACKDOOR_PORT: Final = 0x5658
MAGIC: Final = 0x564D_5868
"""In EAX, "VMXh": the access is meant for the backdoor."""
GET_VERSION, GET_HZ = 10, 45
"""Commands, in CX."""
INTERFACE_VERSION: Final = 6
SERVER_PRODUCT: Final = 2
"""What GET_VERSION answers in EAX and ECX; the same numbers as QEMU's vmport."""
