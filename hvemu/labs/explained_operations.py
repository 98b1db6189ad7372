"""What ``hvemu lab nanobench --explain`` says of each operation. A test keeps it complete."""

import textwrap
from typing import Final, NamedTuple

from hvemu.labs.nanobench import ORDERINGS, Operation, words

_WIDTH: Final = 80


class ExplainedOperation(NamedTuple):
    """What a deprivileged kernel costs (``trap``), what translation makes of it, hardware, and a port."""

    trap: str
    translated: str
    hardware: str
    ported: str


_SAME: Final = "the same as natively"
EXPLAINED: Final = {
    "null": ExplainedOperation(_SAME, "the branch back is chained: nothing", _SAME, _SAME),
    "syscall": ExplainedOperation(
        "INT comes to the hypervisor, which reflects it; the kernel's IRET faults: two exits",
        "user code runs directly, so INT is reflected; IRET in the kernel is a callout",
        "the CPU goes through the guest's own IDT: no exit",
        "the hypervisor bounces INT to the kernel; IRET from ring 1 to ring 3 is the kernel's own",
    ),
    "in": ExplainedOperation(
        "a port is the hypervisor's: one exit",
        "left as it is, so it exits; VMware's translator emulated it in the cache",
        "a port is the hypervisor's: one exit, an expensive one",
        "one exit, on the few ports that a guest may use; drivers are ported instead",
    ),
    "cr0wr": ExplainedOperation(
        "MOV to CR0 faults in ring 1 and is emulated",
        "a callout: the mode of the CPU may change",
        "intercepted, because the guest must not turn off what the hypervisor needs",
        "does not exist: fpu_taskswitch is what is left of CR0",
    ),
    "callret": ExplainedOperation(
        _SAME,
        "RET compares its target with those seen before, then asks a table; nobody exits, but it is slower",
        _SAME,
        _SAME,
    ),
    "pgfault": ExplainedOperation(
        "#PF comes to the hypervisor, which walks the guest's tables and hands it on; IRET faults: two exits",
        "as in trap, with a callout for IRET",
        "none with nested paging; with shadow tables every #PF exits before the guest gets it",
        "the hypervisor bounces #PF with the address in a shared page; IRET is free",
    ),
    "divzero": ExplainedOperation(
        "#DE comes to the hypervisor, which reflects it; IRET faults: two exits",
        "as in trap, with a callout for IRET",
        "the CPU delivers it by itself",
        "the hypervisor bounces it",
    ),
    "ptemod": ExplainedOperation(
        "the table is write-protected: each store is a fault, decoded and emulated",
        "as in trap for the first four; then the store is translated to call the hypervisor, without a fault",
        "nothing with nested paging, for the tables are the guest's own; with shadow tables each store exits",
        "mmu_update takes a list: one hypercall for sixteen changes here",
    ),
    "ptemod-unsync": ExplainedOperation(
        "the first store opens the table; the shadow is brought up to date at the next flush",
        "as in trap: too few faults to be worth adapting to",
        "nothing with nested paging; with shadow tables as in trap",
        "the same as ptemod: tables are never writable",
    ),
    "clisti": ExplainedOperation(
        "both fault in ring 1: two exits",
        "IF is where the code is: CLI jumps to the translation for IF = 0, STI back",
        "the flag is the guest's own, interrupts are the VMCB's affair",
        "a byte in a shared page",
    ),
    "cpuid": ExplainedOperation(
        "does not trap in ring 1: answered in place of the CPU, as natively",
        "the same",
        "always intercepted: the guest must see the machine's features, not the host's",
        "the same as natively; Xen's kernels ask behind a prefix",
    ),
    "rdtsc": ExplainedOperation(
        "answered in place of the CPU, as natively",
        "the same",
        "the same; --intercept rdtsc makes it an exit",
        "the same",
    ),
    "hypercall": ExplainedOperation(
        "VMMCALL is #UD in ring 1, which the hypervisor looks at",
        "the same",
        "an intercept",
        "INT 82h, the cheapest way into the hypervisor",
    ),
    "switch": ExplainedOperation(
        "the system call, a load of CR3, a store to the TSS that may be traced",
        "as in trap, with callouts; and a store beside translated code, which is traced",
        "nothing more than natively with nested paging; a load of CR3 exits with shadow tables",
        "one multicall: stack_switch and the new base pointer",
    ),
    "fork": ExplainedOperation(
        "new tables are shadowed page by page, copy-on-write faults twice: hidden, then true",
        "as in trap, and the kernel stores a lot beside code that was translated",
        "nested faults for frames never used before; with shadow tables as in trap",
        "tables are announced, checked once and changed in batches",
    ),
}


def explained(operation: Operation) -> list[str]:
    """An operation in words, as ``hvemu explain`` has them."""
    text = EXPLAINED[operation.name]
    rows = {
        "what": operation.what,
        "trap": text.trap,
        "bt": text.translated,
        "svm": text.hardware,
        "pv": text.ported,
        "paper": "; ".join(
            f"{ordering.reported}: {words(ordering)}" for ordering in ORDERINGS if ordering.operation == operation.name
        ),
    }
    lines = [f"{operation.name}: operation of guest {operation.guest}"]
    for name, what in rows.items():
        if what:
            lines += textwrap.wrap(what, _WIDTH, initial_indent=f"  {name:6} ", subsequent_indent=" " * 9)
    return lines
