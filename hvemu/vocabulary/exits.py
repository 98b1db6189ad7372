"""Why the guest stopped running by itself: the closed list of exit kinds and their qualifications.

Ledger, debugger and graders alike use these names; adding a kind is an API change. An *exit* is what a hypervisor
handles; a *hardware assist* (``AssistKind``) is what hvemu does in place of the CPU and is counted apart.
"""

from enum import StrEnum
from typing import NamedTuple

from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.kvm import kvm_call_name
from hvemu.vocabulary.svm import exit_name
from hvemu.vocabulary.xen import hypercall_name


class ExitKind(StrEnum):
    """Every reason for which control comes to the hypervisor."""

    IO_IN = "io_in"
    IO_OUT = "io_out"
    MMIO_READ = "mmio_read"
    MMIO_WRITE = "mmio_write"
    UNCLAIMED_IO = "unclaimed_io"
    UNCLAIMED_MMIO = "unclaimed_mmio"
    HLT = "hlt"
    PRIVILEGED = "privileged"
    CALLOUT = "callout"
    DISPATCH = "dispatch"
    REFLECTED_EXCEPTION = "reflected_exception"
    REFLECTED_INTERRUPT = "reflected_interrupt"
    TRUE_FAULT = "true_fault"
    HIDDEN_FAULT = "hidden_fault"
    TRACED_WRITE = "traced_write"
    INTERCEPT = "intercept"
    NESTED_FAULT = "nested_fault"
    HYPERCALL = "hypercall"
    VMCALL = "vmcall"
    HYPERV_CALL = "hyperv_call"
    TRIPLE_FAULT = "triple_fault"
    ENGINE_ERROR = "engine_error"


class AssistKind(StrEnum):
    """What hvemu does in place of the CPU because the engine leaves it out. Hardware to the guest, never an exit."""

    EXCEPTION = "exception"
    SOFTWARE_INTERRUPT = "software_interrupt"
    EXTERNAL_INTERRUPT = "external_interrupt"
    NMI = "nmi"
    SYSENTER = "sysenter"
    SYSCALL = "syscall"
    CPUID = "cpuid"
    RDTSC = "rdtsc"
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    DEBUG_REGISTER = "debug_register"
    CONTROL_REGISTER = "control_register"
    IO_PERMISSION = "io_permission"
    TASK_REGISTER = "task_register"
    RANDOM = "random"


class PagingEvent(StrEnum):
    """What a paging technique did by itself: neither an exit nor an assist, but what its exits were for."""

    FILL = "shadow_fill"
    FLUSH = "shadow_flush"
    EVICTION = "shadow_eviction"
    UNSYNC = "shadow_unsync"
    RESYNC = "shadow_resync"
    UNSHADOW = "shadow_unshadow"
    NESTED_FILL = "nested_fill"
    NESTED_WRITE = "nested_write"


class TranslationEvent(StrEnum):
    """What the binary translator did by itself."""

    UNIT = "translated_unit"
    CHAIN = "translation_chained"
    HINT = "translation_hint"
    REMOVAL = "translation_removed"
    FLUSH = "translation_flush"
    ADAPTATION = "translation_adapted"
    HOLE = "translation_hole_moved"
    DIRECT = "translation_handed_over"


class ParavirtualEvent(StrEnum):
    """What the hypervisor did for a paravirtual guest, by the piece: what its hypercalls and events were about."""

    UPCALL = "event_upcall"
    MULTICALL_ENTRY = "multicall_entry"
    TABLE_UPDATE = "page_table_update"


class Io(NamedTuple):
    """Qualification of IO_IN and IO_OUT. ``size`` in bytes (1, 2, 4); ``value`` is 0 for reads."""

    port: int
    size: int
    value: int = 0


class Mmio(NamedTuple):
    """Qualification of MMIO_READ and MMIO_WRITE; ``address`` is guest-physical."""

    address: int
    size: int
    value: int = 0


class Call(NamedTuple):
    """Qualification of HYPERCALL. ``requests``: how many things it asks for; ``arguments``: EBX, ECX, EDX, ESI, EDI."""

    number: int
    requests: int
    arguments: tuple[int, int, int, int, int]


class VmCall(NamedTuple):
    """Qualification of VMCALL and HYPERV_CALL. ``ring``: who asks; ``arguments``: as the convention has them."""

    number: int
    ring: int
    arguments: tuple[int, ...]


Qualification = Io | Mmio | Call | VmCall


class Exit(NamedTuple):
    """One exit, as a value: what happened, where, and when."""

    kind: ExitKind
    qualification: Qualification
    eip: int
    code: bytes
    position: Position


MNEMONICS = tuple(
    "cli sti hlt clts lmsw lgdt lidt lldt ltr invlpg wbinvd invd rdmsr wrmsr iretd iret sysexit mov pop ljmp lcall jmp"
    " call retf lds les lfs lgs lss rdrand rdseed"
    " pushfd pushf popfd popf push sgdt sidt sldt str smsw lar lsl verr verw ret loop loope loopne jecxz jcxz"
    " jo jno jb jae je jne jbe ja js jns jp jnp jl jge jle jg breakpoint wbnoinvd".split()
)
"""Details of PRIVILEGED and CALLOUT, by their index; "mov" is to or from a control, debug or segment register, or a
store that is traced."""
DISPATCHES = ("direct", "indirect")
"""Details of DISPATCH, by their index: an exit that was not chained yet, a transfer whose target no hint knew."""

_BY_VECTOR = frozenset(
    {
        AssistKind.EXCEPTION,
        AssistKind.SOFTWARE_INTERRUPT,
        AssistKind.EXTERNAL_INTERRUPT,
        AssistKind.NMI,
        ExitKind.REFLECTED_EXCEPTION,
        ExitKind.REFLECTED_INTERRUPT,
    }
)


def detail_name(kind: ExitKind | AssistKind | ParavirtualEvent, detail: int) -> str:
    """A detail as the ledger shows it: a mnemonic, a hypercall, a vector in decimal, or a number in hexadecimal."""
    if kind in (ExitKind.PRIVILEGED, ExitKind.CALLOUT):
        return MNEMONICS[detail]
    if kind is ExitKind.DISPATCH:
        return DISPATCHES[detail]
    if kind in (ExitKind.HYPERCALL, ParavirtualEvent.MULTICALL_ENTRY):
        return hypercall_name(detail)
    if kind is ExitKind.INTERCEPT:
        return exit_name(detail)
    if kind is ExitKind.VMCALL:
        return kvm_call_name(detail)
    return str(detail) if kind in _BY_VECTOR else f"{detail:#x}"
