"""``hvemu explain KIND``: every exit and every hardware assist, in words. A test keeps it complete."""

from typing import NamedTuple

from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.exits import AssistKind, ExitKind


class Explanation(NamedTuple):
    """What it is, who causes it, where hvemu handles it, and what to read."""

    what: str
    who: str
    where: str
    source: str


EXPLANATIONS: dict[str, Explanation] = {
    ExitKind.IO_IN: Explanation(
        "The guest read a port.",
        "IN and INS: drivers polling or reading a chip's register. The detail is the port.",
        "hvemu/devices/bus.py finds the chip; the value goes back into AL, AX or EAX.",
        "SDM vol. 1, chapter 19",
    ),
    ExitKind.IO_OUT: Explanation(
        "The guest wrote a port.",
        "OUT and OUTS: drivers commanding a chip, the console writing a character. The detail is the port.",
        "hvemu/devices/bus.py finds the chip; an interrupt it raises arrives at the next instruction.",
        "SDM vol. 1, chapter 19",
    ),
    ExitKind.MMIO_READ: Explanation(
        "The guest read memory that is a device.",
        "A load from the local APIC, the I/O APIC or an address without RAM. The detail is guest-physical.",
        "hvemu/modes/native.py takes it from the engine, hvemu/devices/bus.py finds the chip.",
        "SDM vol. 3A, chapter 11",
    ),
    ExitKind.MMIO_WRITE: Explanation(
        "The guest wrote memory that is a device.",
        "A store to the local APIC (end of interrupt, timer, IPI), the I/O APIC or an address without RAM.",
        "hvemu/modes/native.py takes it from the engine, hvemu/devices/bus.py finds the chip.",
        "SDM vol. 3A, chapter 11",
    ),
    ExitKind.UNCLAIMED_IO: Explanation(
        "No chip answers at this port; a read gives all ones.",
        "Operating systems probing for hardware that is not there, or a wrong address in a driver.",
        "hvemu/devices/bus.py; with --strict it ends the guest.",
        "hvemu list devices shows who answers where",
    ),
    ExitKind.UNCLAIMED_MMIO: Explanation(
        "Neither RAM nor a device is at this guest-physical address; a read gives all ones.",
        "A wild pointer, a page table entry with a wrong frame, or probing.",
        "hvemu/devices/bus.py; with --strict it ends the guest.",
        "hvemu list devices shows who answers where",
    ),
    ExitKind.HLT: Explanation(
        "The guest has nothing to do until the next interrupt.",
        "HLT in the idle loop. With interrupts disabled it sleeps for ever and the run ends with status 68.",
        "hvemu/machine/machine.py lets virtual time skip to the next event.",
        "SDM vol. 2A, HLT",
    ),
    ExitKind.TRIPLE_FAULT: Explanation(
        "A fault while delivering #DF: a real CPU shuts down. The run ends with status 66 and all the faults.",
        "Usually a missing or wrong IDT, GDT, TSS or stack in the guest.",
        "hvemu/cpu/delivery.py escalates as the SDM's table 6-5 says.",
        "SDM vol. 3A, 6.15, interrupt 8",
    ),
    ExitKind.ENGINE_ERROR: Explanation(
        "The engine cannot go on, for example because the guest jumped to an address without memory.",
        "A wild jump or return. The sentence at the end of the run names EIP and cause; status 64.",
        "hvemu/modes/native.py ends the guest.",
        "docs/engine.md",
    ),
    AssistKind.EXCEPTION: Explanation(
        "A fault or trap was delivered through the guest's IDT. The detail is the vector.",
        "Page faults of demand paging, #GP of user code, #UD, #NM of lazy FPU switching, single steps.",
        "hvemu/cpu/delivery.py: gate, ring switch through the TSS, frame, error code.",
        "SDM vol. 3A, chapter 6",
    ),
    AssistKind.SOFTWARE_INTERRUPT: Explanation(
        "INT n, INT3 or INTO was delivered through the guest's IDT. The detail is the vector.",
        "System calls (int 0x80), breakpoints, BIOS calls in real mode.",
        "hvemu/cpu/delivery.py, with the check of the gate's DPL.",
        "SDM vol. 3A, 6.12.1",
    ),
    AssistKind.EXTERNAL_INTERRUPT: Explanation(
        "A device's interrupt was delivered. The detail is the vector.",
        "Timer ticks, keys, characters on the serial line, through the 8259 pair or the APICs.",
        "hvemu/machine/machine.py acknowledges it, hvemu/cpu/delivery.py delivers it.",
        "SDM vol. 3A, 6.3.1",
    ),
    AssistKind.NMI: Explanation(
        "A non-maskable interrupt was delivered.",
        "The monitor's nmi command, or LINT1 of the local APIC.",
        "hvemu/machine/machine.py and hvemu/cpu/delivery.py.",
        "SDM vol. 3A, 6.7",
    ),
    AssistKind.SYSENTER: Explanation(
        "SYSENTER entered ring 0 through its MSRs.",
        "Fast system calls. The engine leaves the privilege switch out.",
        "hvemu/modes/native.py.",
        "SDM vol. 2B, SYSENTER",
    ),
    AssistKind.CPUID: Explanation(
        "CPUID was answered from the machine's table. The detail is the leaf.",
        "Kernels looking for features at boot.",
        "hvemu/cpu/cpuid.py masks what the machine does not have.",
        "SDM vol. 2A, CPUID",
    ),
    AssistKind.RDTSC: Explanation(
        "RDTSC or RDTSCP read the virtual time-stamp counter.",
        "Delay loops and timekeeping. Host time never leaks in: the counter follows from position.",
        "hvemu/modes/native.py and hvemu/cpu/msr.py.",
        "SDM vol. 3B, 17.17",
    ),
    AssistKind.RDMSR: Explanation(
        "RDMSR read a model-specific register; the detail is its number. An unknown one is #GP.",
        "Kernels at boot: APIC base, MTRRs, EFER.",
        "hvemu/cpu/msr.py.",
        "SDM vol. 4",
    ),
    AssistKind.WRMSR: Explanation(
        "WRMSR wrote a model-specific register; the detail is its number. Unknown or reserved is #GP.",
        "Kernels setting up SYSENTER, EFER, MTRRs.",
        "hvemu/cpu/msr.py.",
        "SDM vol. 4",
    ),
    AssistKind.DEBUG_REGISTER: Explanation(
        "A debug register was read or written; the detail is its number.",
        "Kernels clearing DR7 at boot, debuggers.",
        "hvemu/cpu/debug_registers.py keeps them; breakpoints in them do not fire.",
        "SDM vol. 3B, 18.2",
    ),
    AssistKind.CONTROL_REGISTER: Explanation(
        "MOV to CR0 or CR4 with reserved or contradictory bits: #GP, which the engine would not raise.",
        "A kernel that sets bits this CPU does not have. The detail is the register.",
        "hvemu/modes/native.py.",
        "SDM vol. 2B, MOV to control registers",
    ),
    AssistKind.IO_PERMISSION: Explanation(
        "IN or OUT at CPL > IOPL and the TSS bitmap says no: #GP.",
        "User programs touching ports.",
        "hvemu/cpu/io_permission.py.",
        "SDM vol. 1, 19.5",
    ),
    AssistKind.TASK_REGISTER: Explanation(
        "LTR with a null selector: #GP, which the engine would not raise.",
        "A kernel bug.",
        "hvemu/modes/native.py.",
        "SDM vol. 2A, LTR",
    ),
    AssistKind.RANDOM: Explanation(
        "RDRAND or RDSEED: #UD, because host entropy would make runs differ. CPUID does not show them.",
        "A program that does not look at CPUID.",
        "hvemu/modes/native.py.",
        "SDM vol. 1, 7.3.17",
    ),
}


def main(arguments: list[str]) -> int:
    """Print one explanation."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: hvemu explain KIND\n\nkinds: {', '.join(EXPLANATIONS)}")
        return 0 if arguments else 2
    kind = arguments[0]
    if kind not in EXPLANATIONS:
        raise UserError(f"There is no exit or assist '{kind}'", f"Kinds are: {', '.join(EXPLANATIONS)}.")
    text = EXPLANATIONS[kind]
    group = "exit" if kind in tuple(ExitKind) else "hardware assist (never an exit)"
    print(f"{kind}: {group}\n  what   {text.what}\n  who    {text.who}\n  where  {text.where}\n  read   {text.source}")
    return 0
