"""What ``hvemu explain`` says of each hypercall of mode ``pv``. A test keeps it complete."""

from typing import Final, NamedTuple

from hvemu.vocabulary.xen import Hypercall


class ExplainedHypercall(NamedTuple):
    """What it does, its arguments in EBX, ECX, EDX, ESI, EDI, and the public header it is in."""

    what: str
    arguments: str
    header: str


HYPERCALLS: Final[dict[str, ExplainedHypercall]] = {
    call.name.lower(): ExplainedHypercall(*text)
    for call, text in {
        Hypercall.SET_TRAP_TABLE: (
            "Names the handlers of exceptions and of INT n: what LIDT is on a PC.",
            "rows of {vector, flags, CS, address}, ended by address 0",
            "xen.h",
        ),
        Hypercall.MMU_UPDATE: (
            "Writes page-table entries, each checked: the batch that replaces one fault for each store.",
            "requests of {machine address and command, value}; how many; where to say how many were done; DOMID_SELF",
            "xen.h",
        ),
        Hypercall.SET_GDT: (
            "Gives the frames of the descriptor table; each becomes a checked, read-only page: LGDT.",
            "machine frames; how many descriptors",
            "arch-x86/xen.h",
        ),
        Hypercall.STACK_SWITCH: ("Sets the kernel's stack for entries from user code: the TSS.", "SS; ESP", "xen.h"),
        Hypercall.SET_CALLBACKS: (
            "Says where the guest is called up for events, and for failures.",
            "CS and address for events; CS and address for failures",
            "arch-x86/xen-x86_32.h",
        ),
        Hypercall.FPU_TASKSWITCH: ("Sets or clears CR0.TS: CLTS.", "0 or 1", "xen.h"),
        Hypercall.UPDATE_DESCRIPTOR: (
            "Writes one descriptor of the table, checked.",
            "machine address, two words; descriptor, two words",
            "xen.h",
        ),
        Hypercall.MEMORY_OP: (
            "Gives frames back and takes them again: what a balloon does; and says how many there are.",
            "command; its structure",
            "memory.h",
        ),
        Hypercall.MULTICALL: (
            "Makes several hypercalls in one transition; each entry gets its own result.",
            "entries of {number, result, arguments}; how many",
            "xen.h",
        ),
        Hypercall.UPDATE_VA_MAPPING: (
            "Writes the page-table entry of a linear address, checked, and flushes as asked.",
            "linear address; entry, two words; flags",
            "xen.h",
        ),
        Hypercall.SET_TIMER_OP: (
            "Has VIRQ_TIMER raised when the system time reaches this value; 0 cancels it.",
            "nanoseconds, two words",
            "xen.h",
        ),
        Hypercall.XEN_VERSION: (
            "Asks for the version, and is the shortest call there is: events that wait are delivered at its end.",
            "command; its structure",
            "version.h",
        ),
        Hypercall.CONSOLE_IO: (
            "Writes to the hypervisor's own console, for a guest that has none yet: hvemu's debug console.",
            "0 to write, 1 to read; how many bytes; where they are",
            "xen.h",
        ),
        Hypercall.GRANT_TABLE_OP: (
            "Sets up the table by which the guest lets back ends use its frames.",
            "command; structures; how many",
            "grant_table.h",
        ),
        Hypercall.VM_ASSIST: ("Asks for emulation of what was not ported; none is offered.", "command; type", "xen.h"),
        Hypercall.IRET: (
            "Returns from an event or exception, and sets the event mask with it.",
            "none: EAX, EIP, CS, EFLAGS, ESP and SS are on the stack",
            "arch-x86/xen-x86_32.h",
        ),
        Hypercall.VCPU_OP: (
            "Sets or stops the one-shot timer of a virtual CPU.",
            "command; 0; its structure",
            "vcpu.h",
        ),
        Hypercall.MMUEXT_OP: (
            "Pins and unpins page tables, loads CR3, flushes the TLB: all of it checked, many at once.",
            "operations of {command, frame or address, count}; how many; where to say how many were done; DOMID_SELF",
            "xen.h",
        ),
        Hypercall.SCHED_OP: (
            "Gives up the CPU, waits for an event (HLT), or ends the machine with a reason.",
            "0 yield, 1 block, 2 shutdown; its structure",
            "sched.h",
        ),
        Hypercall.CALLBACK_OP: (
            "Says where the guest is called up, one entry point at a time.",
            "0; its structure",
            "callback.h",
        ),
        Hypercall.EVENT_CHANNEL_OP: (
            "Opens, closes, unmasks and notifies event channels: the interrupt controller.",
            "command; its structure",
            "event_channel.h",
        ),
        Hypercall.PHYSDEV_OP: (
            "Says from which ring on ports may be used; only those for tests can be.",
            "6; {ring}",
            "physdev.h",
        ),
    }.items()
}
