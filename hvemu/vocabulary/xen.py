"""The paravirtual interface, as far as hvemu offers it: numbers of the 32-bit PAE interface of Xen.

From the public headers xen.h, arch-x86/xen-x86_32.h, event_channel.h, grant_table.h, sched.h, memory.h, physdev.h and
errno.h, so that a reader can check them there.
"""

from enum import IntEnum
from typing import Final

HYPERCALL_VECTOR: Final = 0x82
DOMID_SELF: Final = 0x7FF0
DOMID_BACKEND: Final = 0
"""The domain that back ends live in."""
VERSION: Final = 4 << 16 | 17
"""Major and minor number, as xen_version answers."""


class Hypercall(IntEnum):
    """Numbers of hypercalls; what is not here is answered with ENOSYS."""

    SET_TRAP_TABLE = 0
    MMU_UPDATE = 1
    SET_GDT = 2
    STACK_SWITCH = 3
    SET_CALLBACKS = 4
    FPU_TASKSWITCH = 5
    UPDATE_DESCRIPTOR = 10
    MEMORY_OP = 12
    MULTICALL = 13
    UPDATE_VA_MAPPING = 14
    SET_TIMER_OP = 15
    XEN_VERSION = 17
    CONSOLE_IO = 18
    GRANT_TABLE_OP = 20
    VM_ASSIST = 21
    IRET = 23
    VCPU_OP = 24
    MMUEXT_OP = 26
    SCHED_OP = 29
    CALLBACK_OP = 30
    EVENT_CHANNEL_OP = 32
    PHYSDEV_OP = 33


_NAMES: Final = {int(call): call.name.lower() for call in Hypercall}


def hypercall_name(number: int) -> str:
    """``mmu_update`` for 1; a number for what is not offered."""
    return _NAMES.get(number, f"{number:#x}")


class Errno(IntEnum):
    """Errors of hypercalls, returned negated."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    E2BIG = 7
    ENOMEM = 12
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28
    ENOSYS = 38


class HypercallError(Exception):
    """A hypercall is refused; the guest gets the negated error number."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno


# Segments (xen-x86_32.h): the guest's own descriptors end where those of the hypervisor begin.
FIRST_RESERVED_GDT_ENTRY: Final = 14 * 512
FLAT_RING1_CS: Final = 0xE019
FLAT_RING1_DS: Final = 0xE021
FLAT_RING3_CS: Final = 0xE02B
FLAT_RING3_DS: Final = 0xE033

# Address space (xen-x86_32.h, PAE)
HYPERVISOR_START: Final = 0xF580_0000
MACHINE_TO_PHYSICAL: Final = 0xF580_0000

# mmu_update and mmuext_op (xen.h)
MMU_NORMAL, MMU_MACHPHYS, MMU_PRESERVE_AD = 0, 1, 2
MMUEXT_PIN_L1, MMUEXT_PIN_L2, MMUEXT_PIN_L3, MMUEXT_PIN_L4 = 0, 1, 2, 3
MMUEXT_UNPIN, MMUEXT_NEW_BASEPTR, MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_INVLPG_LOCAL = 4, 5, 6, 7
MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL = 8, 9, 10, 11
MMUEXT_FLUSH_CACHE, MMUEXT_SET_LDT = 12, 13
UVMF_MASK: Final = 3
UVMF_TLB_FLUSH, UVMF_INVLPG = 1, 2

# sched_op
SCHED_YIELD, SCHED_BLOCK, SCHED_SHUTDOWN, SCHED_POLL = 0, 1, 2, 3
SHUTDOWN_REASONS: Final = ("poweroff", "reboot", "suspend", "crash", "watchdog")

# event_channel_op
EVTCHN_BIND_INTERDOMAIN, EVTCHN_BIND_VIRQ, EVTCHN_BIND_PIRQ, EVTCHN_CLOSE, EVTCHN_SEND, EVTCHN_STATUS = range(6)
EVTCHN_ALLOC_UNBOUND, EVTCHN_BIND_IPI, EVTCHN_BIND_VCPU, EVTCHN_UNMASK, EVTCHN_RESET = range(6, 11)
VIRQ_TIMER, VIRQ_DEBUG, VIRQ_CONSOLE = 0, 1, 2
EVENT_CHANNELS: Final = 1024

# shared_info
VCPU_INFO_SIZE: Final = 64
UPCALL_PENDING, UPCALL_MASK, PENDING_SELECTOR, VCPU_CR2, VCPU_TIME = 0, 1, 4, 8, 32
EVENT_PENDING: Final = 32 * VCPU_INFO_SIZE
EVENT_MASK: Final = EVENT_PENDING + EVENT_CHANNELS // 8
WALL_CLOCK: Final = EVENT_MASK + EVENT_CHANNELS // 8
MAXIMUM_PFN: Final = WALL_CLOCK + 12

# memory_op
XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION, XENMEM_MAXIMUM_RAM_PAGE = 0, 1, 2
XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION, XENMEM_MACHPHYS_MFN_LIST, XENMEM_POPULATE_PHYSMAP = 3, 4, 5, 6
XENMEM_MEMORY_MAP, XENMEM_MACHPHYS_MAPPING = 9, 12

# grant_table_op and its status values
GNTTAB_MAP_GRANT_REF, GNTTAB_UNMAP_GRANT_REF, GNTTAB_SETUP_TABLE, GNTTAB_QUERY_SIZE = 0, 1, 2, 6
GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF = 0, -1, -2, -3
GNTST_PERMISSION_DENIED, GNTST_BAD_PAGE = -8, -9
GTF_TYPE_MASK, GTF_PERMIT_ACCESS, GTF_READONLY, GTF_READING, GTF_WRITING = 3, 1, 4, 8, 16

# xen_version, console_io, physdev_op, set_trap_table, vm_assist, vcpu_op
XENVER_VERSION, XENVER_EXTRAVERSION, XENVER_GET_FEATURES, XENVER_PAGESIZE = 0, 1, 6, 7
CONSOLE_WRITE, CONSOLE_READ = 0, 1
PHYSDEV_SET_IOPL: Final = 6
TRAP_DPL, TRAP_MASKS_EVENTS = 3, 4
VCPU_SET_PERIODIC_TIMER, VCPU_STOP_PERIODIC_TIMER, VCPU_SET_SINGLESHOT_TIMER = 6, 7, 8
VCPU_STOP_SINGLESHOT_TIMER: Final = 9

# start_info and ELF notes
START_INFO_MAGIC: Final = b"xen-3.0-x86_32p"
NOTE_ENTRY, NOTE_HYPERCALL_PAGE, NOTE_VIRT_BASE, NOTE_PADDR_OFFSET, NOTE_XEN_VERSION = 1, 2, 3, 4, 5
NOTE_GUEST_OS, NOTE_LOADER, NOTE_PAE_MODE = 6, 8, 9
