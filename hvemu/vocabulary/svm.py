"""AMD-V in words: the fields of a VMCB, the exit codes, and what can be intercepted (APM vol. 2, appendices B and C).

No behaviour. Offsets are in bytes from the start of the VMCB, sizes in bytes.
"""

import re
from difflib import get_close_matches
from typing import Final, NamedTuple

from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.vectors import VECTOR_NAMES

VMCB_SIZE: Final = 0x1000
STATE_SAVE_AREA: Final = 0x400
"""Where the guest's registers begin; before it lies the control area."""

EFER_SVME: Final = 1 << 12
INTERRUPT_SHADOW: Final = 1
EVENT_VALID: Final = 1 << 31
EVENT_INTERRUPT: Final = 0 << 8
EVENT_EXCEPTION: Final = 3 << 8
"""Types of an event in EVENTINJ: 0 external interrupt, 2 NMI, 3 exception, 4 software interrupt."""


class Field(NamedTuple):
    """One field of the VMCB."""

    name: str
    offset: int
    size: int
    meaning: str


CONTROL_FIELDS: Final = (
    Field("INTERCEPT_CR_READ", 0x000, 2, "bit n: reading CRn exits"),
    Field("INTERCEPT_CR_WRITE", 0x002, 2, "bit n: writing CRn exits"),
    Field("INTERCEPT_DR_READ", 0x004, 2, "bit n: reading DRn exits"),
    Field("INTERCEPT_DR_WRITE", 0x006, 2, "bit n: writing DRn exits"),
    Field("INTERCEPT_EXCEPTIONS", 0x008, 4, "bit n: exception vector n exits"),
    Field("INTERCEPT_MISC1", 0x00C, 4, "instructions and events: INTR to SHUTDOWN"),
    Field("INTERCEPT_MISC2", 0x010, 4, "instructions: VMRUN to MWAIT"),
    Field("IOPM_BASE_PA", 0x040, 8, "machine address of the I/O permission map"),
    Field("MSRPM_BASE_PA", 0x048, 8, "machine address of the MSR permission map"),
    Field("TSC_OFFSET", 0x050, 8, "added to the counter that the guest reads"),
    Field("GUEST_ASID", 0x058, 4, "address space in the TLB; 0 is the host's"),
    Field("TLB_CONTROL", 0x05C, 1, "what VMRUN flushes"),
    Field("V_INTR", 0x060, 8, "virtual TPR and interrupt"),
    Field("INTERRUPT_SHADOW", 0x068, 8, "bit 0: STI or MOV SS inhibits interrupts for one instruction"),
    Field("EXITCODE", 0x070, 8, "why the guest exited"),
    Field("EXITINFO1", 0x078, 8, "more of it: an error code, read or write"),
    Field("EXITINFO2", 0x080, 8, "more of it: the address of a page fault"),
    Field("EXITINTINFO", 0x088, 8, "the event that was being delivered"),
    Field("NP_ENABLE", 0x090, 8, "bit 0: nested paging"),
    Field("EVENTINJ", 0x0A8, 8, "the event that VMRUN delivers first"),
    Field("N_CR3", 0x0B0, 8, "machine address of the nested page tables"),
)
"""The control area, as far as it is used."""

SEGMENT_NAMES: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "GDTR", "LDTR", "IDTR", "TR")
"""In the order of the state save area, 16 bytes each: selector, attributes, limit, base."""
SEGMENT_SIZE: Final = 16

STATE_FIELDS: Final = (
    Field("CPL", 0x4CB, 1, "current privilege level"),
    Field("EFER", 0x4D0, 8, "extended features; SVME must be set"),
    Field("CR4", 0x548, 8, "control register 4"),
    Field("CR3", 0x550, 8, "the guest's page tables, or the shadow's"),
    Field("CR0", 0x558, 8, "control register 0"),
    Field("DR7", 0x560, 8, "debug control"),
    Field("DR6", 0x568, 8, "debug status"),
    Field("RFLAGS", 0x570, 8, "flags"),
    Field("RIP", 0x578, 8, "instruction pointer"),
    Field("RSP", 0x5D8, 8, "stack pointer"),
    Field("RAX", 0x5F8, 8, "accumulator; of the general registers VMRUN loads it and RSP"),
    Field("STAR", 0x600, 8, "SYSCALL: selectors"),
    Field("LSTAR", 0x608, 8, "SYSCALL: entry from 64-bit code"),
    Field("CSTAR", 0x610, 8, "SYSCALL: entry from compatibility mode"),
    Field("SFMASK", 0x618, 8, "SYSCALL: flags to clear"),
    Field("KERNEL_GS_BASE", 0x620, 8, "what SWAPGS swaps in"),
    Field("SYSENTER_CS", 0x628, 8, "SYSENTER: code segment"),
    Field("SYSENTER_ESP", 0x630, 8, "SYSENTER: stack"),
    Field("SYSENTER_EIP", 0x638, 8, "SYSENTER: entry"),
    Field("CR2", 0x640, 8, "address of the last page fault"),
    Field("G_PAT", 0x668, 8, "page attribute table, with nested paging"),
)
"""The state save area without its segments."""

FIELDS: Final = {field.name: field for field in (*CONTROL_FIELDS, *STATE_FIELDS)}

EXIT_EXCEPTION: Final = 0x40
EXIT_CPUID: Final = 0x72
EXIT_SWINT: Final = 0x75
EXIT_HLT: Final = 0x78
EXIT_INVLPG: Final = 0x79
EXIT_VMMCALL: Final = 0x81
EXIT_MSR: Final = 0x7C
EXIT_NESTED_PAGE_FAULT: Final = 0x400
"""As the APM numbers it. The engine reports its exit codes 0x100 higher in its interrupt hook."""

_MISC1 = (
    "INTR NMI SMI INIT VINTR CR0_SEL_WRITE IDTR_READ GDTR_READ LDTR_READ TR_READ IDTR_WRITE GDTR_WRITE LDTR_WRITE"
    " TR_WRITE RDTSC RDPMC PUSHF POPF CPUID RSM IRET SWINT INVD PAUSE HLT INVLPG INVLPGA IOIO MSR TASK_SWITCH"
    " FERR_FREEZE SHUTDOWN"
).split()
_MISC2 = "VMRUN VMMCALL VMLOAD VMSAVE STGI CLGI SKINIT RDTSCP ICEBP WBINVD MONITOR MWAIT MWAIT_CONDITIONAL".split()


def _codes() -> dict[int, str]:
    names = {}
    for number in range(16):
        names[number], names[0x10 + number] = f"CR{number}_READ", f"CR{number}_WRITE"
        names[0x20 + number], names[0x30 + number] = f"DR{number}_READ", f"DR{number}_WRITE"
    for vector in range(32):
        names[0x40 + vector] = VECTOR_NAMES.get(vector, f"EXCEPTION_{vector}")
    names |= {0x60 + bit: name for bit, name in enumerate(_MISC1)}
    names |= {0x80 + bit: name for bit, name in enumerate(_MISC2)}
    names[EXIT_NESTED_PAGE_FAULT] = "NPF"
    return names


EXIT_NAMES: Final = _codes()
"""Exit code -> name, without the APM's prefix VMEXIT_."""
EXIT_CODES: Final = {name.lower().lstrip("#"): code for code, name in EXIT_NAMES.items()}
"""Name as people type it, such as ``cpuid``, ``cr0_write`` or ``pf`` -> exit code."""


def offset_of(name: str) -> int:
    """Where a field or a segment register is in the VMCB."""
    if name in SEGMENT_NAMES:
        return STATE_SAVE_AREA + SEGMENT_NAMES.index(name) * SEGMENT_SIZE
    return FIELDS[name].offset


def exit_name(code: int) -> str:
    """``CPUID`` for 0x72; a number in hexadecimal for what has no name."""
    return EXIT_NAMES.get(code, f"{code:#x}")


_PLAIN: Final = (
    "rdtsc pushf popf cpuid iret swint pause hlt invlpg invlpga msr icebp wbinvd shutdown"
    " idtr_read gdtr_read ldtr_read tr_read idtr_write gdtr_write ldtr_write tr_write"
    " vmrun vmmcall vmload vmsave stgi clgi skinit"
).split()
INTERCEPTS: Final = (
    *(f"cr{number}_{what}" for number in (0, 3, 4, 8) for what in ("read", "write")),
    *(f"dr{number}_{what}" for number in range(8) for what in ("read", "write")),
    *(
        name
        for name, code in EXIT_CODES.items()
        if 0x40 <= code < 0x54 and name not in ("nmi", "mc") and len(name) == 2
    ),
    *_PLAIN,
)
"""Names of exits that can be asked for and that the engine has."""


def exit_code(name: str) -> int:
    """The code of an exit by its name, as people type it; raises UserError, also for one that never comes here."""
    plain = name.lower().removeprefix("vmexit_").lstrip("#")
    plain = (
        f"{plain}"
        if not re.fullmatch(r"excp\d+", plain)
        else EXIT_NAMES.get(0x40 + int(plain[4:]), plain).lower().lstrip("#")
    )
    if plain in INTERCEPTS or plain == "npf":
        return EXIT_CODES[plain]
    if plain in EXIT_CODES:
        raise UserError(
            f"The engine has no exit '{plain}'", _NEVER.get(plain, "See docs/svm.md for those that it has.")
        )
    near = get_close_matches(plain, INTERCEPTS, 3) or ["cpuid", "rdtsc", "cr3_write", "pf"]
    raise UserError(f"There is no exit '{name}'", f"Names are such as {', '.join(near)}; docs/svm.md has all of them.")


_NEVER: Final = {
    "ioio": "Ports exit in every mode; the ledger counts io_in and io_out.",
    "intr": "Interrupts come from the machine, between two runs; the ledger counts external_interrupt.",
    "invd": "It exits as wbinvd.",
}


def intercept_of(code: int) -> tuple[str, int]:
    """The VMCB field and the bit in it by which an exit code is asked for; KeyError for one that always exits."""
    group, bit = divmod(code, 0x10)
    if group < 4:
        return CONTROL_FIELDS[group].name, bit
    if code < 0x60:
        return "INTERCEPT_EXCEPTIONS", code - 0x40
    if code < 0xA0:
        return ("INTERCEPT_MISC1", code - 0x60) if code < 0x80 else ("INTERCEPT_MISC2", code - 0x80)
    raise KeyError(code)
