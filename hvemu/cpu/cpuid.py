"""CPUID as the guest sees it: the engine's leaves, minus what the machine does not have.

Masks only take away, except for the local APIC and the invariant TSC, which the machine adds, and for the leaves of a
hypervisor, where these are wanted. Not shown although an engine model has them: AVX and XSAVE (the engine decodes them
wrongly), RDRAND and RDSEED (host entropy would break determinism), x2APIC, MONITOR, SVM and VMX (no nested
virtualization), machine check, SMEP and SMAP. Long mode is shown in every mode, as everything else is; modes that
cannot run 64-bit code end a guest that enters it.
Bits: SDM vol. 2A, CPUID; APM vol. 3, appendix E.
"""

from hvemu.vocabulary.paging import LINEAR_BITS

Leaves = dict[tuple[int, int], tuple[int, int, int, int]]
"""(leaf, subleaf) -> EAX, EBX, ECX, EDX."""


def _bits(*positions: int) -> int:
    return sum(1 << position for position in positions)


HYPERVISOR_PRESENT = 1 << 31
"""In ECX of leaf 1: no CPU sets it, so that hypervisors can."""
_HIDDEN_1_ECX = _bits(2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 17, 18, 21, 24, 26, 27, 28, 29, 30, 31)
_HIDDEN_1_EDX = _bits(1, 7, 14, 18, 21, 22, 28, 29, 30, 31)
_SHOWN_7_EBX = _bits(9, 19)  # ERMS, ADX
_HIDDEN_80000001_EDX = _bits(7, 14, 25, 28)
_LONG_MODE_EDX = 1 << 29
_SYSCALL_EDX = 1 << 11
_SHOWN_80000001_ECX = _bits(0, 5, 6, 7, 8)  # LAHF in long mode, LZCNT, SSE4A, misaligned SSE, PREFETCHW
_EMPTY_LEAVES = frozenset({5, 6, 9, 0xA, 0xB, 0xC, 0xD, 0xF, 0x10, 0x12, 0x14, 0x15, 0x16})
_NOTHING = (0, 0, 0, 0)

_AMD = tuple(int.from_bytes(part, "little") for part in (b"Auth", b"cAMD", b"enti"))
"""The vendor in EBX, ECX and EDX of leaf 0."""

FEATURE_BITS = {
    "fpu": (1, 3, 0), "de": (1, 3, 2), "pse": (1, 3, 3), "tsc": (1, 3, 4), "msr": (1, 3, 5), "pae": (1, 3, 6),
    "cx8": (1, 3, 8), "apic": (1, 3, 9), "sep": (1, 3, 11), "mtrr": (1, 3, 12), "pge": (1, 3, 13),
    "cmov": (1, 3, 15), "pat": (1, 3, 16), "pse36": (1, 3, 17), "clflush": (1, 3, 19), "mmx": (1, 3, 23),
    "fxsr": (1, 3, 24), "sse": (1, 3, 25), "sse2": (1, 3, 26), "pni": (1, 2, 0), "pclmulqdq": (1, 2, 1),
    "ssse3": (1, 2, 9), "cx16": (1, 2, 13), "sse4.1": (1, 2, 19), "sse4.2": (1, 2, 20), "movbe": (1, 2, 22),
    "popcnt": (1, 2, 23), "aes": (1, 2, 25), "erms": (7, 1, 9), "adx": (7, 1, 19),
    "syscall": (0x8000_0001, 3, 11), "nx": (0x8000_0001, 3, 20), "pdpe1gb": (0x8000_0001, 3, 26),
    "lm": (0x8000_0001, 3, 29), "lahf-lm": (0x8000_0001, 2, 0), "rdtscp": (0x8000_0001, 3, 27),
    "sse4a": (0x8000_0001, 2, 6), "abm": (0x8000_0001, 2, 5), "3dnow": (0x8000_0001, 3, 31),
}  # fmt: skip
"""Feature name -> (leaf, register index in EAX EBX ECX EDX order, bit), for what hvemu can show."""


class CpuId:
    """The table a CPUID instruction looks into."""

    def __init__(
        self, engine_leaves: Leaves, *, without: frozenset[str] = frozenset(), hypervisor: Leaves | None = None
    ) -> None:
        leaves = dict(engine_leaves)
        highest = leaves[0, 0][0]
        highest_extended = leaves.get((0x8000_0000, 0), _NOTHING)[0]
        for leaf, subleaf in list(leaves):
            if leaf in _EMPTY_LEAVES:
                leaves[leaf, subleaf] = _NOTHING
        eax, ebx, ecx, edx = leaves[1, 0]
        leaves[1, 0] = (eax, (ebx & 0xFF00) | (1 << 16), ecx & ~_HIDDEN_1_ECX, (edx & ~_HIDDEN_1_EDX) | 1 << 9)
        if (4, 0) in leaves:
            for key in [key for key in leaves if key[0] == 4]:
                cache = leaves[key]
                leaves[key] = (cache[0] & 0x3FFF, *cache[1:])
        if (7, 0) in leaves:
            leaves[7, 0] = (0, leaves[7, 0][1] & _SHOWN_7_EBX, 0, 0)
        if (0x8000_0001, 0) in leaves:
            eax, ebx, ecx, edx = leaves[0x8000_0001, 0]
            shown = (edx & ~_HIDDEN_80000001_EDX) & 0xFFFF_FFFF
            if not shown & _SYSCALL_EDX:  # qemu32, which is meant to be a 32-bit CPU
                shown &= ~_LONG_MODE_EDX
            leaves[0x8000_0001, 0] = (eax, ebx, ecx & _SHOWN_80000001_ECX, shown)
        for leaf in range(0x8000_0007, max(highest_extended, 0x8000_0008) + 1):
            address_sizes = leaves.get((leaf, 0), _NOTHING)[0]
            leaves[leaf, 0] = _NOTHING
            if leaf == 0x8000_0007:
                leaves[leaf, 0] = (0, 0, 0, 1 << 8)  # invariant TSC
            elif leaf == 0x8000_0008:
                long_mode = leaves.get((0x8000_0001, 0), _NOTHING)[3] & _LONG_MODE_EDX
                linear_bits = LINEAR_BITS << 8 if long_mode else 0
                leaves[leaf, 0] = ((address_sizes & 0xFF | linear_bits) or 36 | 32 << 8, 0, 0, 0)
        leaves[0x8000_0000, 0] = (max(highest_extended, 0x8000_0008), *leaves.get((0x8000_0000, 0), _NOTHING)[1:])
        for feature in without:
            leaf, register, bit = FEATURE_BITS[feature]
            if (leaf, 0) in leaves:
                values = list(leaves[leaf, 0])
                values[register] &= ~(1 << bit)
                leaves[leaf, 0] = (values[0], values[1], values[2], values[3])
        if hypervisor:
            eax, ebx, ecx, edx = leaves[1, 0]
            leaves[1, 0] = (eax, ebx, ecx | HYPERVISOR_PRESENT, edx)
            leaves.update(hypervisor)
        self.leaves = leaves
        self._highest_basic = highest

    def query(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX. A leaf beyond the highest gives the highest basic one, as on Intel's CPUs."""
        leaves = self.leaves
        found = leaves.get((leaf, subleaf))
        if found is not None:
            return found
        if (leaf, 0) in leaves:
            return _NOTHING if leaf in (4, 7) else leaves[leaf, 0]
        return leaves[self._highest_basic, 0] if leaf < 0x4000_0000 else _NOTHING

    def is_amd(self) -> bool:
        """Whether the CPU is AMD's: some instructions differ."""
        return self.leaves[0, 0][1:] == _AMD

    def has(self, feature: str) -> bool:
        """Whether the guest is shown a feature of FEATURE_BITS."""
        leaf, register, bit = FEATURE_BITS[feature]
        return bool(self.query(leaf, 0)[register] >> bit & 1) if (leaf, 0) in self.leaves else False

    def features(self) -> list[str]:
        """Names of all features shown."""
        return [name for name in FEATURE_BITS if self.has(name)]
