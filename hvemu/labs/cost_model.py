"""The cost model: what the events that hvemu counts would cost on one declared machine, in its clock cycles.

Counts are facts; cycles are a model of them. The machine is the one of Adams and Agesen's nanobenchmarks, a Pentium 4
672 of 3.8 GHz, because the most is reported about it. Every constant says where it comes from: *reported* values are
quoted from reports of that paper and of the slides around it, not measured here; *derived* ones are computed from
those; *assumed* ones are ours, and only their order of magnitude means something. Not modelled, because nothing here
counts it: caches and TLB misses (which nested paging makes dearer), emulation inside the translation cache, and the
slow instructions of ring 0 where they execute without an exit; ``hvemu lab nanobench`` knows its loops and adds them.

Adams and Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006).
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, ParavirtualEvent, TranslationEvent

MACHINE: Final = "Pentium 4 672, 3.8 GHz; its AMD-V is taken to cost what its VT-x does"


class Constant(NamedTuple):
    """Cycles of one event. ``basis``: "reported", "derived" or "assumed"."""

    cycles: float
    basis: str
    source: str


_TABLE: Final = "nanobenchmarks of 2006"
_VT: Final = "VT-x costs beside the nanobenchmarks of 2006"

CONSTANTS: Final[dict[str, Constant]] = {
    "code_byte": Constant(1 / 3, "assumed", "one instruction a cycle, three bytes an instruction"),
    "exception": Constant(889, "reported", f"{_TABLE}: divzero, native; gate, handler and IRET"),
    "page_fault": Constant(1093, "reported", f"{_TABLE}: pgfault, native; the same with CR2"),
    "system_call": Constant(242, "reported", f"{_TABLE}: syscall, native; way in and way back"),
    "port": Constant(3209, "reported", f"{_TABLE}: in, native; a chip on a slow bus answers"),
    "device_memory": Constant(500, "assumed", "an uncached access to a chip nearby, as the local APIC"),
    "control_write": Constant(140, "reported", f"{_TABLE}: cr8wr, native; four times the 35 of the software VMM"),
    "slow_instruction": Constant(100, "assumed", "CPUID, RDTSC, MSRs: microcode, and the pipeline waits"),
    "trap_and_emulate": Constant(2030, "reported", "RDTSC by trap-and-emulate: fault, decode, emulate, return"),
    "emulation": Constant(1141, "derived", "trap_and_emulate without exception: decode and emulate"),
    "callout": Constant(1254, "reported", "RDTSC by callout-and-emulate"),
    "cache_emulation": Constant(35, "reported", f"{_TABLE}: cr8wr, software VMM; emulated in the translation cache"),
    "cache_lookup": Constant(40, "reported", f"{_TABLE}: callret, software VMM without native: 51 - 11"),
    "translation": Constant(3000, "assumed", "twelve instructions decoded and written anew"),
    "shadow_work": Constant(500, "assumed", "walk the guest's tables, write one entry of ours, flush one of the TLB"),
    "world_switch": Constant(5216, "derived", "VM entry, page-fault exit, three reads and two writes of the VMCB"),
    "vm_entry": Constant(2409, "reported", _VT),
    "vm_exit": Constant(1931, "reported", _VT),
    "vmcb_read": Constant(178, "reported", _VT),
    "vmcb_write": Constant(171, "reported", _VT),
    "hypercall": Constant(442, "derived", "system_call, and 200 (assumed) to find the function and check arguments"),
    "bounce": Constant(300, "assumed", "push a frame on the guest kernel's stack and go there"),
    "table_update": Constant(150, "assumed", "check one page-table entry, count its frame, write it"),
    "multicall_entry": Constant(50, "assumed", "one call of a batch: a table lookup"),
    "nothing": Constant(0, "derived", "part of another event"),
}
"""By name. Sums that are derived are checked by a test."""

_HARDWARE: Final[dict[AssistKind, str]] = {
    AssistKind.EXCEPTION: "exception",
    AssistKind.SOFTWARE_INTERRUPT: "system_call",
    AssistKind.EXTERNAL_INTERRUPT: "exception",
    AssistKind.NMI: "exception",
    AssistKind.SYSENTER: "system_call",
    AssistKind.SYSCALL: "system_call",
    AssistKind.CPUID: "slow_instruction",
    AssistKind.RDTSC: "slow_instruction",
    AssistKind.RDMSR: "slow_instruction",
    AssistKind.WRMSR: "slow_instruction",
    AssistKind.DEBUG_REGISTER: "slow_instruction",
    AssistKind.CONTROL_REGISTER: "nothing",
    AssistKind.IO_PERMISSION: "exception",
    AssistKind.TASK_REGISTER: "nothing",
    AssistKind.RANDOM: "nothing",
}
"""What the CPU does by itself, in every technique alike; the last of a kind are refusals, whose #GP is counted."""
_UNCOUNTED: Final = (ExitKind.UNCLAIMED_IO, ExitKind.UNCLAIMED_MMIO, ExitKind.TRIPLE_FAULT, ExitKind.ENGINE_ERROR)
"""Rows of the ledger that are no transition of their own: the access is counted as well, or the guest has ended."""

_Charges = dict[ExitKind, tuple[str, ...]]
_PORTS_AND_DEVICES: Final = (ExitKind.IO_IN, ExitKind.IO_OUT, ExitKind.MMIO_READ, ExitKind.MMIO_WRITE)
_DEPRIVILEGED: Final[_Charges] = {
    **dict.fromkeys(_PORTS_AND_DEVICES, ("trap_and_emulate",)),
    ExitKind.HLT: ("trap_and_emulate",),
    ExitKind.PRIVILEGED: ("trap_and_emulate",),
    ExitKind.REFLECTED_EXCEPTION: ("trap_and_emulate",),
    ExitKind.REFLECTED_INTERRUPT: ("trap_and_emulate",),
    ExitKind.TRUE_FAULT: ("trap_and_emulate", "shadow_work"),
    ExitKind.HIDDEN_FAULT: ("trap_and_emulate", "shadow_work"),
    ExitKind.TRACED_WRITE: ("trap_and_emulate", "shadow_work"),
    ExitKind.VMCALL: ("trap_and_emulate",),
    ExitKind.HYPERV_CALL: ("trap_and_emulate",),
}
EXITS: Final[dict[str, _Charges]] = {
    "native": {
        ExitKind.IO_IN: ("port",),
        ExitKind.IO_OUT: ("port",),
        ExitKind.MMIO_READ: ("device_memory",),
        ExitKind.MMIO_WRITE: ("device_memory",),
        ExitKind.HLT: ("nothing",),
        ExitKind.VMCALL: ("exception",),
        ExitKind.HYPERV_CALL: ("exception",),
    },
    "trap": _DEPRIVILEGED,
    "bt": {**_DEPRIVILEGED, ExitKind.CALLOUT: ("callout",), ExitKind.DISPATCH: ("callout",)},
    "svm": {
        **dict.fromkeys(_PORTS_AND_DEVICES, ("world_switch", "emulation")),
        ExitKind.HLT: ("world_switch",),
        ExitKind.INTERCEPT: ("world_switch", "emulation"),
        ExitKind.NESTED_FAULT: ("world_switch", "shadow_work"),
        ExitKind.TRUE_FAULT: ("world_switch", "shadow_work"),
        ExitKind.HIDDEN_FAULT: ("world_switch", "shadow_work"),
        ExitKind.TRACED_WRITE: ("world_switch", "emulation", "shadow_work"),
        ExitKind.VMCALL: ("world_switch", "emulation"),
        ExitKind.HYPERV_CALL: ("world_switch", "emulation"),
    },
    "pv": {
        **dict.fromkeys(_PORTS_AND_DEVICES, ("trap_and_emulate",)),
        ExitKind.HLT: ("nothing",),
        ExitKind.PRIVILEGED: ("trap_and_emulate",),
        ExitKind.HYPERCALL: ("hypercall",),
        ExitKind.REFLECTED_EXCEPTION: ("exception", "bounce"),
        ExitKind.REFLECTED_INTERRUPT: ("system_call", "bounce"),
        ExitKind.TRUE_FAULT: ("page_fault", "bounce"),
    },
}
"""Mode -> kind of exit -> the constants that one of them is charged with. Rows that are missing cannot happen."""
EVENTS: Final[dict[PagingEvent | TranslationEvent | ParavirtualEvent, str]] = {
    TranslationEvent.UNIT: "translation",
    ParavirtualEvent.UPCALL: "bounce",
    ParavirtualEvent.MULTICALL_ENTRY: "multicall_entry",
    ParavirtualEvent.TABLE_UPDATE: "table_update",
}
"""What the hypervisor does beyond its exits; the other events are part of the exits that they happen in."""
GUEST: Final = "guest code"
_EVENT_GROUPS: Final = ("paging", "translation", "paravirtual")


def cycles_of(names: tuple[str, ...]) -> float:
    """The sum of constants."""
    return sum(CONSTANTS[name].cycles for name in names)


def _twice(mode: str, statistics: Mapping[str, Any]) -> float:
    """Hypercalls by VMMCALL in mode svm: one #VMEXIT, in two rows of the ledger."""
    intercepts = statistics["exits_by_detail"].get(ExitKind.INTERCEPT, {})
    return float(intercepts.get("VMMCALL", 0)) if mode == "svm" and ExitKind.VMCALL in statistics["exits"] else 0.0


def exits_of(mode: str, statistics: Mapping[str, Any]) -> float:
    """How many exits there were: a row of the ledger that tells more of another's exits is none of its own."""
    total = sum(count for kind, count in statistics["exits"].items() if kind not in _UNCOUNTED)
    return float(total) - _twice(mode, statistics)


def transitions(mode: str, statistics: Mapping[str, Any]) -> float:
    """How often the CPU left the guest for the hypervisor and came back; none natively, where there is none."""
    return 0.0 if mode == "native" else exits_of(mode, statistics)


def modelled_cycles(mode: str, statistics: Mapping[str, Any], code_bytes: float) -> dict[str, float]:
    """Cycles by cause: the guest's own code, hardware assists and exits by their kinds, further events. No zeros."""
    parts = {GUEST: code_bytes * CONSTANTS["code_byte"].cycles}
    exits = EXITS[mode]
    for kind, count in statistics["exits"].items():
        own = 0 if kind in _UNCOUNTED else count * cycles_of(exits.get(ExitKind(kind), ("trap_and_emulate",)))
        parts[kind] = own
    if ExitKind.INTERCEPT in parts:
        parts[ExitKind.INTERCEPT.value] -= _twice(mode, statistics) * cycles_of(exits[ExitKind.INTERCEPT])
    for kind, count in statistics["assists"].items():
        faults = statistics["assists_by_detail"][kind].get("14", 0) if kind == AssistKind.EXCEPTION else 0
        own = CONSTANTS[_HARDWARE[AssistKind(kind)]].cycles
        parts[kind] = count * own + faults * (CONSTANTS["page_fault"].cycles - own)
    for event, name in EVENTS.items():
        count = sum(statistics[group].get(event, 0) for group in _EVENT_GROUPS)
        parts[event.value] = count * CONSTANTS[name].cycles
    return {cause: cycles for cause, cycles in parts.items() if cycles}


# ---------------------------------------------------------------------- for people


def charges() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every row of the model: mode ("all" for what the CPU does), kind, names of constants."""
    for assist, name in _HARDWARE.items():
        yield "all", assist.value, (name,)
    for mode, rows in EXITS.items():
        for kind, names in rows.items():
            yield mode, kind.value, names
    for event, name in EVENTS.items():
        yield ("bt" if isinstance(event, TranslationEvent) else "pv"), event.value, (name,)


def cost_model_lines(width: int = 80) -> list[str]:
    """The constants with their sources, and what is charged for what."""
    lines = [
        *textwrap.wrap(f"Modelled machine: {MACHINE}.", width),
        "",
        f"{'constant':17} {'cycles':>7}  {'basis':8}  source",
    ]
    for name, constant in CONSTANTS.items():
        cycles = f"{constant.cycles:.2f}" if 0 < constant.cycles < 1 else f"{constant.cycles:.0f}"
        first = f"{name:17} {cycles:>7}  {constant.basis:8}  "
        lines += textwrap.wrap(
            constant.source, width, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False
        )
    lines += ["", f"{'mode':7} {'event':20} {'cycles':>7}  charged with"]
    lines += [f"{mode:7} {kind:20} {cycles_of(names):>7.0f}  {' + '.join(names)}" for mode, kind, names in charges()]
    return lines
