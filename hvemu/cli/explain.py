"""``hvemu explain KIND``: everything that the ledger names, in words. A test keeps it complete."""

from collections.abc import Callable
from difflib import get_close_matches
from enum import StrEnum
from typing import Final, NamedTuple

from hvemu.cli.explained_hypercalls import HYPERCALLS
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, ParavirtualEvent, TranslationEvent
from hvemu.vocabulary.paging import (
    ERROR_FETCH,
    ERROR_PRESENT,
    ERROR_RESERVED,
    ERROR_USER,
    ERROR_WRITE,
    error_words,
)
from hvemu.vocabulary.svm import EXIT_CODES, EXIT_EXCEPTION, INTERCEPTS, exit_name
from hvemu.vocabulary.xen import Hypercall


class Explanation(NamedTuple):
    """What it is, who causes it, where hvemu handles it, and what to read."""

    what: str
    who: str
    where: str
    source: str


_ERROR_CODE = "The detail is the error code: " + ", ".join(
    f"{bit} {error_words(bit).removeprefix('read, ')}"
    for bit in (ERROR_PRESENT, ERROR_WRITE, ERROR_USER, ERROR_RESERVED, ERROR_FETCH)
)
_SHADOWS = "Adams and Agesen, ASPLOS 2006, 2.4"
_TRANSLATION = "Adams and Agesen, ASPLOS 2006, 3"

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
        "hvemu/modes/direct_execution.py takes it from the engine, hvemu/devices/bus.py finds the chip.",
        "SDM vol. 3A, chapter 11",
    ),
    ExitKind.MMIO_WRITE: Explanation(
        "The guest wrote memory that is a device.",
        "A store to the local APIC (end of interrupt, timer, IPI), the I/O APIC or an address without RAM.",
        "hvemu/modes/direct_execution.py takes it from the engine, hvemu/devices/bus.py finds the chip.",
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
        "HLT in the idle loop. With interrupts disabled it sleeps for ever and the run ends with status 68."
        " In every mode it is counted here alone.",
        "hvemu/machine/machine.py lets virtual time skip to the next event.",
        "SDM vol. 2A, HLT",
    ),
    ExitKind.PRIVILEGED: Explanation(
        "The guest kernel, in ring 1, executed an instruction for ring 0: the CPU refused it, and it is emulated.",
        "CLI, STI, MOV to CR3, LGDT, INVLPG, RDMSR, IRET to user code. The detail is the mnemonic."
        " In mode bt only what user code may cause: a far call through a gate.",
        "hvemu/modes/trap.py takes the fault, hvemu/cpu/privileged.py does the instruction on the virtual registers,"
        " hvemu/cpu/segment_loads.py what loads segments.",
        "SDM vol. 3A, 5.9; Popek and Goldberg, CACM 17(7), 1974",
    ),
    ExitKind.REFLECTED_EXCEPTION: Explanation(
        "An exception that is the guest's own came to the hypervisor, which hands it on. The detail is the vector.",
        "#UD, #DE, single steps, #GP of user code; in mode native the same is the hardware assist 'exception'.",
        "hvemu/modes/trap.py decides whose it is, hvemu/cpu/delivery.py goes through the guest's IDT.",
        "SDM vol. 3A, chapter 6",
    ),
    ExitKind.REFLECTED_INTERRUPT: Explanation(
        "INT n, INT3 or INTO came to the hypervisor, which hands it on. The detail is the vector.",
        "System calls and breakpoints; in mode native the same is the hardware assist 'software_interrupt'.",
        "hvemu/modes/trap.py and hvemu/cpu/delivery.py, with the check of the gate's DPL.",
        "SDM vol. 3A, 6.12.1",
    ),
    ExitKind.TRUE_FAULT: Explanation(
        "A page fault that the guest's own tables explain: it gets #PF.",
        f"Demand paging, copy on write, stack growth, wild pointers of user programs. {_ERROR_CODE}, added up.",
        "hvemu/memory/shadow.py walks the guest's tables, hvemu/modes/shadowed.py has the fault delivered.",
        f"SDM vol. 3A, 4.7; {_SHADOWS}",
    ),
    ExitKind.HIDDEN_FAULT: Explanation(
        "A page fault of the shadow tables alone, filled in behind the guest's back.",
        "The first access to a page since its table was shadowed or flushed; the first store to a page, which makes it"
        f" dirty; code that is written, or data that is executed. {_ERROR_CODE}, added up.",
        "hvemu/memory/shadow.py fills the entry, hvemu/modes/shadowed.py lets the instruction try again.",
        _SHADOWS,
    ),
    ExitKind.TRACED_WRITE: Explanation(
        "A store to a page that the hypervisor watches, because what it keeps was derived from it."
        " The detail is the guest frame number.",
        "The guest changing its page tables, its GDT or LDT, or data that lies beside them; in mode bt also data beside"
        " code that was translated. A page of code that is written too often is given up and translated again.",
        "hvemu/memory/shadow.py watches the frame; hvemu/cpu/privileged.py does the store, if it is a MOV;"
        " else hvemu/modes/emulation.py opens the page for a single step.",
        "Adams and Agesen, ASPLOS 2006, 2.3",
    ),
    ExitKind.INTERCEPT: Explanation(
        "The CPU left the guest because the VMCB asks for it: a #VMEXIT. The detail is the exit code by its name.",
        "In mode svm: what the guest would otherwise see or change of the machine (CPUID, writes to CR0 and CR4, MSRs),"
        " and whatever --intercept names. HLT, I/O and page faults are counted under their own names.",
        "hvemu/modes/svm.py; hvemu lab vmcb shows the control block before and after.",
        "APM vol. 2, 15.9 and appendix C",
    ),
    ExitKind.NESTED_FAULT: Explanation(
        "A page fault of the nested tables, which the guest never sees. The detail is the error code.",
        "In mode svm: the first use of a frame of guest RAM; with dirty logging the first store to one, to which a walk"
        f" through a page table counts. {_ERROR_CODE}, added up; an address without RAM is a device's.",
        "hvemu/memory/nested.py fills the entry, hvemu/modes/svm.py lets the instruction try again.",
        "APM vol. 2, 15.25.6",
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
        "hvemu/modes/stretches.py ends the guest.",
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
        "hvemu/modes/direct_execution.py.",
        "SDM vol. 2B, SYSENTER",
    ),
    AssistKind.SYSCALL: Explanation(
        "SYSCALL entered ring 0 through its MSRs.",
        "Fast system calls of 64-bit code. The engine leaves the privilege switch out.",
        "hvemu/modes/direct_execution.py.",
        "SDM vol. 2B, SYSCALL; APM vol. 3",
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
        "hvemu/engine/block_clock.py in ring 0 and without a trace, else hvemu/modes/direct_execution.py.",
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
        "hvemu/cpu/debug_registers.py keeps them; breakpoints on instructions fire, those on data do not.",
        "SDM vol. 3B, 18.2",
    ),
    AssistKind.CONTROL_REGISTER: Explanation(
        "MOV to CR0 or CR4 with reserved or contradictory bits: #GP, which the engine would not raise.",
        "A kernel that sets bits this CPU does not have. The detail is the register.",
        "hvemu/modes/native.py notices it, hvemu/cpu/privileged.py refuses it.",
        "SDM vol. 2B, MOV to control registers",
    ),
    AssistKind.IO_PERMISSION: Explanation(
        "IN or OUT at CPL > IOPL and the TSS bitmap says no: #GP.",
        "User programs touching ports.",
        "hvemu/modes/direct_execution.py asks hvemu/cpu/io_permission.py.",
        "SDM vol. 1, 19.5",
    ),
    AssistKind.TASK_REGISTER: Explanation(
        "LTR with a null selector: #GP, which the engine would not raise.",
        "A kernel bug.",
        "hvemu/modes/native.py notices it, hvemu/cpu/privileged.py refuses it.",
        "SDM vol. 2A, LTR",
    ),
    AssistKind.RANDOM: Explanation(
        "RDRAND or RDSEED: #UD, because host entropy would make runs differ. CPUID does not show them.",
        "A program that does not look at CPUID.",
        "hvemu/modes/native.py notices it, hvemu/cpu/privileged.py refuses it.",
        "SDM vol. 1, 7.3.17",
    ),
    ExitKind.CALLOUT: Explanation(
        "Translated kernel code called the hypervisor to do an instruction: in its place stands a HLT, which faults in"
        " ring 1. The detail is the instruction.",
        "What has no short sequence of its own in the translation cache: JMP through memory, loads of control registers"
        " and of SS, IRET, LGDT; and stores that kept hitting page tables, which are 'mov', too.",
        "hvemu/modes/translator.py decides, binary_translation.py answers, hvemu/cpu/sensitive.py executes.",
        _TRANSLATION,
    ),
    ExitKind.DISPATCH: Explanation(
        "Translated code went where the cache could not follow: 'direct', an exit that was not chained yet; 'indirect',"
        " a return, jump or call to a target that no hint knew.",
        "Code that runs for the first time, and functions with more callers than a return has hints.",
        "hvemu/modes/binary_translation.py, which translates, chains and adds a hint.",
        _TRANSLATION,
    ),
    ExitKind.HYPERCALL: Explanation(
        "A paravirtual kernel asked for something by INT 82h. The detail is the hypercall, by name.",
        "A kernel ported to mode pv, in place of what would fault: page-table stores, CLI and STI, HLT, LGDT, IRET.",
        "hvemu/modes/paravirtual.py takes it, hvemu/paravirtual/hypercalls.py has the table;"
        " hvemu explain NAME tells what one does.",
        "Barham et al., SOSP 2003; Xen's public headers",
    ),
    ExitKind.VMCALL: Explanation(
        "The guest asked KVM for something by VMCALL or VMMCALL. The detail is the hypercall: EAX.",
        "A kernel that found KVM's leaves in CPUID (--hypervisor-leaves kvm); without these it is #UD. There is little"
        " to ask with one processor: vapic_poll_irq and kick_cpu do nothing, user code is refused, others are unknown.",
        "The engine raises #UD, hvemu/modes/direct_execution.py looks at it, hvemu/paravirtual/kvm.py answers.",
        "Linux, Documentation/virt/kvm/x86/hypercalls.rst",
    ),
    ExitKind.HYPERV_CALL: Explanation(
        "The guest called the hypercall page of Hyper-V, which executes VMCALL. The detail is the call code.",
        "A kernel that found Hyper-V's leaves in CPUID (--hypervisor-leaves hyperv) and enabled the page by an MSR."
        " No code is offered: every one is invalid.",
        "The engine raises #UD, hvemu/modes/direct_execution.py looks at it, hvemu/paravirtual/hyperv.py answers.",
        "TLFS, Hypercall interface",
    ),
    ParavirtualEvent.UPCALL: Explanation(
        "The guest was called up because events wait for it, which it had not masked.",
        "Its timer, its console, whatever is at the other end of an event channel.",
        "hvemu/paravirtual/event_channels.py decides, hvemu/modes/paravirtual.py pushes the frame.",
        "Barham et al. (2003), 3.2; event_channel.h",
    ),
    ParavirtualEvent.MULTICALL_ENTRY: Explanation(
        "A hypercall that came with others in one transition.",
        "A kernel that switches address space and stack together, or maps many pages.",
        "hvemu/paravirtual/hypercalls.py.",
        "xen.h, multicall_entry",
    ),
    ParavirtualEvent.TABLE_UPDATE: Explanation(
        "A page-table entry was checked and written on the guest's behalf.",
        "The kernel's own paging code: fork, page faults, exit. Many come in one hypercall.",
        "hvemu/memory/direct.py counts references and types, so that no table can be written by the guest.",
        "Barham et al. (2003), 3.3.3",
    ),
    TranslationEvent.UNIT: Explanation(
        "At most twelve instructions of the guest's kernel were translated into the cache.",
        "Every piece of kernel code the first time it runs with interrupts enabled, or disabled.",
        "hvemu/modes/translator.py; see it with: hvemu translate IMAGE.",
        _TRANSLATION,
    ),
    TranslationEvent.CHAIN: Explanation(
        "An exit of a unit was patched into a jump to another unit.",
        "The first time that control goes from one to the other.",
        "hvemu/modes/translation_cache.py.",
        _TRANSLATION,
    ),
    TranslationEvent.HINT: Explanation(
        "A return or an indirect transfer learned one more target, and compares with it in the cache from now on.",
        "RET, CALL and JMP through a register, CALL through memory.",
        "hvemu/modes/translation_cache.py.",
        _TRANSLATION,
    ),
    TranslationEvent.REMOVAL: Explanation(
        "A unit was dropped because the code it was made from was written, or is no longer at its address.",
        "Self-modifying code, a loader, DMA into code; a change of page tables.",
        "hvemu/modes/binary_translation.py; hvemu/memory/shadow.py watches the pages.",
        _TRANSLATION,
    ),
    TranslationEvent.FLUSH: Explanation(
        "The whole cache was emptied.",
        "Power-on; a full cache; a hole that moved; a change of breakpoints.",
        "hvemu/modes/binary_translation.py.",
        _TRANSLATION,
    ),
    TranslationEvent.ADAPTATION: Explanation(
        "A store that hit page tables again and again was retranslated to call the hypervisor instead of faulting.",
        "The kernel's own page-table code: innocent until proven guilty.",
        "hvemu/modes/binary_translation.py.",
        "Adams and Agesen (2006), 3.3",
    ),
    TranslationEvent.HOLE: Explanation(
        "The guest used addresses at which the translation cache lay, so that the cache had to go elsewhere.",
        "A guest that maps, or looks for, memory everywhere.",
        "hvemu/modes/binary_translation.py; hvemu/memory/shadow.py has the hole.",
        "README, map",
    ),
    TranslationEvent.DIRECT: Explanation(
        "Another technique took over or gave back: real mode runs as in mode native.",
        "A boot sector; a kernel that returns to real mode.",
        "hvemu/modes/handing_over.py.",
        "README, map",
    ),
    PagingEvent.FILL: Explanation(
        "An entry of a shadow page table was made from the guest's own.",
        "Every hidden fault ends in one.",
        "hvemu/memory/shadow.py.",
        _SHADOWS,
    ),
    PagingEvent.FLUSH: Explanation(
        "All shadow tables were dropped; they are filled again by hidden faults.",
        "A change of paging itself: PG or WP in CR0, PSE, PAE or PGE in CR4, NXE in EFER. With --shadow flush,"
        " every load of CR3.",
        "hvemu/memory/shadow.py.",
        f"SDM vol. 3A, 4.10.4; {_SHADOWS}",
    ),
    PagingEvent.EVICTION: Explanation(
        "A shadow table or an address space was dropped to make room, or all nested tables were.",
        "A guest with more page tables or address spaces than the hypervisor has frames for.",
        "hvemu/memory/shadow.py; hvemu/memory/frame_pool.py has the frames.",
        _SHADOWS,
    ),
    PagingEvent.UNSYNC: Explanation(
        "A guest page table became writable: until the guest flushes, its shadow may be as stale as a TLB may.",
        "A store to the last level of page tables, as in fork or mmap. Each further store is free.",
        "hvemu/memory/shadow.py.",
        "SDM vol. 3A, 4.10.4",
    ),
    PagingEvent.RESYNC: Explanation(
        "An unsync page table was write-protected again, and its shadow compared with it.",
        "A load of CR3; INVLPG only compares the entry of its page.",
        "hvemu/memory/shadow.py.",
        "SDM vol. 3A, 4.10.4",
    ),
    PagingEvent.UNSHADOW: Explanation(
        "A frame is no longer taken for a page table: what was derived from it is dropped.",
        "An upper table that is written again and again without being used: it has most likely become ordinary memory.",
        "hvemu/memory/shadow.py.",
        _SHADOWS,
    ),
    PagingEvent.NESTED_FILL: Explanation(
        "A frame of guest RAM got its entry in the nested page tables.",
        "The first access of any kind to its page: frames are backed when they are used.",
        "hvemu/memory/nested.py.",
        "APM vol. 2, 15.25",
    ),
    PagingEvent.NESTED_WRITE: Explanation(
        "A frame became writable in the nested page tables, and is noted as dirty.",
        "The first store to its page since dirty pages were asked for.",
        "hvemu/memory/nested.py.",
        "APM vol. 2, 15.25.6",
    ),
}


_GROUPS: dict[type[StrEnum], str] = {
    ExitKind: "exit",
    AssistKind: "hardware assist (never an exit)",
    PagingEvent: "paging event (neither exit nor assist)",
    TranslationEvent: "translation event (neither exit nor assist)",
    ParavirtualEvent: "paravirtual event (part of what exits were for)",
}


def main(arguments: list[str]) -> int:
    """Print explanations."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: hvemu explain KIND...\n\nkinds: {', '.join(EXPLANATIONS)}")
        print(f"\nhypercalls: {', '.join(HYPERCALLS)}")
        print(f"\nexits of mode svm: npf, {', '.join(INTERCEPTS)}")
        return 0 if arguments else 2
    texts = []
    for word in arguments:
        kind = word.lower().removeprefix("vmexit_").lstrip("#")
        found = [explain(kind) for names, explain in _KINDS if kind in names]
        if not found:
            near = get_close_matches(kind, [name for names, _ in _KINDS for name in names], 3)
            known = f"Did you mean {' or '.join(near)}?" if near else "Type: hvemu explain --help, which lists all."
            raise UserError(f"There is no '{word}' to explain", known)
        texts += found
    print("\n\n".join(texts))
    return 0


def _hypercall(kind: str) -> str:
    call = HYPERCALLS[kind]
    return (
        f"{kind}: hypercall {Hypercall[kind.upper()]:d} of mode pv\n  what   {call.what}\n  with   {call.arguments}\n"
        f"  where  hvemu/paravirtual/hypercalls.py\n  read   Xen's public/{call.header}"
    )


_SVM_EXITS: Final = {
    "npf": "The guest used a guest-physical address for which the nested page tables have no entry, or no right.",
    "msr": "RDMSR or WRMSR.",
    "swint": "INT n.",
    "icebp": "INT1, opcode F1h.",
    "shutdown": "A triple fault: the guest would shut its CPU down.",
    **{
        f"{register}_{access}": f"{instruction}."
        for register, instructions in (
            ("idtr", ("SIDT", "LIDT")),
            ("gdtr", ("SGDT", "LGDT")),
            ("ldtr", ("SLDT", "LLDT")),
            ("tr", ("STR", "LTR")),
        )
        for access, instruction in zip(("read", "write"), instructions, strict=True)
    },
}
"""What the names of the APM do not say."""


def _svm_exit(kind: str) -> str:
    code = EXIT_CODES[kind]
    if kind in _SVM_EXITS:
        what = _SVM_EXITS[kind]
    elif kind[:2] in ("cr", "dr"):
        register, _, access = kind.partition("_")
        what = f"The guest {'reads' if access == 'read' else 'writes'} {register.upper()}."
    elif EXIT_EXCEPTION <= code < EXIT_EXCEPTION + 32:
        what = f"The guest raises {exit_name(code)}, which has not been delivered yet."
    else:
        what = f"{kind.upper()}."
    who = f"Whoever asks with --intercept {kind}; docs/svm.md says what exits unasked."
    if kind == "npf":
        who = "A page's first use, a device, a store to a page whose dirtying is logged."
    return (
        f"{kind}: exit {code:#x} of VMRUN in mode svm, VMEXIT_{exit_name(code).lstrip('#')}\n  what   {what}\n"
        f"  who    {who}\n  where  hvemu/modes/svm.py\n  read   APM vol. 2, appendix C"
    )


def _kind(kind: str) -> str:
    text = EXPLANATIONS[kind]
    group = next(name for kinds, name in _GROUPS.items() if kind in tuple(kinds))
    return f"{kind}: {group}\n  what   {text.what}\n  who    {text.who}\n  where  {text.where}\n  read   {text.source}"


_KINDS: Final[tuple[tuple[tuple[str, ...], Callable[[str], str]], ...]] = (
    (tuple(map(str, EXPLANATIONS)), _kind),
    (tuple(HYPERCALLS), _hypercall),
    (("npf", *INTERCEPTS), _svm_exit),
)
"""What there is to explain, and who does; a name may mean several things."""
