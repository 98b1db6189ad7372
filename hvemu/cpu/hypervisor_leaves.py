"""Discovery by convention: the CPUID leaves by which a guest finds out under which hypervisor it runs.

Bit 31 of CPUID 1:ECX, which no CPU sets, says that there are leaves from 0x40000000 on; the first has the highest leaf
in EAX and a signature of twelve letters in EBX, ECX and EDX. Only what is implemented is offered;
docs/hypervisor_leaves.md has the map. Documents: Linux, Documentation/virt/kvm/x86/cpuid.rst; Xen, arch-x86/cpuid.h;
TLFS, "Feature and interface discovery"; VMware, "Mechanisms to determine if software is running in a VMware virtual
machine" (KB 1009458).
"""

from typing import Final

from hvemu.cpu.cpuid import Leaves
from hvemu.vocabulary import hyperv, kvm, xen
from hvemu.vocabulary.machine_map import LAPIC_BUS_HZ

BASE: Final = 0x4000_0000
TSC_HZ: Final = 1_000_000_000
"""The time-stamp counter counts nanoseconds."""
INTERFACE_VERSION: Final = 1
"""Of hvemu's own leaves."""
_FREQUENCIES: Final = (TSC_HZ // 1000, LAPIC_BUS_HZ // 1000, 0, 0)
"""kHz of the time-stamp counter and of the local APIC's bus, as VMware's leaf 0x10 has them."""


def _leaves(signature: bytes, *others: tuple[int, int, int, int]) -> Leaves:
    """``others`` follow the first leaf one by one."""
    letters = signature.ljust(12, b"\0")
    ebx, ecx, edx = (int.from_bytes(letters[at : at + 4], "little") for at in (0, 4, 8))
    first = (BASE + len(others), ebx, ecx, edx)
    return {(BASE + number, 0): values for number, values in enumerate((first, *others))}


_NOTHING: Final = (0, 0, 0, 0)
_KVM_FEATURES: Final = (
    kvm.FEATURE_CLOCKSOURCE | kvm.FEATURE_CLOCKSOURCE2 | kvm.FEATURE_PV_EOI | kvm.FEATURE_CLOCKSOURCE_STABLE
)
_HYPERV_PRIVILEGES: Final = hyperv.ACCESS_REFERENCE_COUNTER | hyperv.ACCESS_HYPERCALL_MSRS | hyperv.ACCESS_VP_INDEX

HYPERVISOR_LEAVES: Final[dict[str, Leaves]] = {
    "hvemu": _leaves(b"hvemuhvemuhv", (INTERFACE_VERSION, 0, 0, 0), _FREQUENCIES),
    "kvm": _leaves(b"KVMKVMKVM", (_KVM_FEATURES, 0, 0, 0)),
    # The hypercall page comes by an ELF note, in mode pv alone: no pages, no MSR
    "xen": _leaves(b"XenVMMXenVMM", (xen.VERSION, 0, 0, 0), _NOTHING),
    "hyperv": _leaves(
        b"Microsoft Hv",
        (int.from_bytes(b"Hv#1", "little"), 0, 0, 0),
        (0, INTERFACE_VERSION, 0, 0),  # build, version: hvemu's, not Microsoft's
        (_HYPERV_PRIVILEGES, 0, 0, 0),
        (0, hyperv.NEVER_NOTIFY, 0, 0),  # recommendations
        (1, 1, 0, 0),  # most virtual and logical processors
    ),
    "vmware": _leaves(b"VMwareVMware", *[_NOTHING] * 15, _FREQUENCIES),
    "none": {},
}
"""By the name of the interface."""
