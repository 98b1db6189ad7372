"""Why the guest stopped running by itself: the closed list of exit kinds and their qualifications.

Ledger, debugger and graders alike use these names; adding a kind is an API change. An *exit* is what a hypervisor
handles; a *hardware assist* (``AssistKind``) is what hvemu does in place of the CPU and is counted apart.
"""

from enum import StrEnum
from typing import NamedTuple

from hvemu.vocabulary.addresses import Position


class ExitKind(StrEnum):
    """Every reason for which control comes to the hypervisor."""

    IO_IN = "io_in"
    IO_OUT = "io_out"
    MMIO_READ = "mmio_read"
    MMIO_WRITE = "mmio_write"
    UNCLAIMED_IO = "unclaimed_io"
    UNCLAIMED_MMIO = "unclaimed_mmio"
    HLT = "hlt"
    TRIPLE_FAULT = "triple_fault"
    ENGINE_ERROR = "engine_error"


class AssistKind(StrEnum):
    """What hvemu does in place of the CPU because the engine leaves it out. Hardware to the guest, never an exit."""

    EXCEPTION = "exception"
    SOFTWARE_INTERRUPT = "software_interrupt"
    EXTERNAL_INTERRUPT = "external_interrupt"
    NMI = "nmi"
    SYSENTER = "sysenter"
    CPUID = "cpuid"
    RDTSC = "rdtsc"
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    DEBUG_REGISTER = "debug_register"
    CONTROL_REGISTER = "control_register"
    IO_PERMISSION = "io_permission"
    TASK_REGISTER = "task_register"
    RANDOM = "random"


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


Qualification = Io | Mmio


class Exit(NamedTuple):
    """One exit, as a value: what happened, where, and when."""

    kind: ExitKind
    qualification: Qualification
    eip: int
    code: bytes
    position: Position


VECTOR_NAMES = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 9: "coprocessor overrun",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip
"""SDM vol. 3A, table 6-1."""


def vector_name(vector: int) -> str:
    """``#GP`` for 13; ``vector 0x80`` for what has no name."""
    return VECTOR_NAMES.get(vector, f"vector {vector:#04x}")
