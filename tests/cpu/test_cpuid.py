"""What CPUID shows: the engine's leaves without what the machine does not have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cpu.cpuid import FEATURE_BITS, CpuId, Leaves
from hvemu.engine.cpuid_leaves import read_cpuid_leaves
from hvemu.engine.vcpu import Vcpu
from hvemu.machine.configuration import CPU_MODELS
from hvemu.vocabulary.paging import LINEAR_BITS, PHYSICAL_BITS

EVERYTHING: Leaves = {
    **{(leaf, 0): (0xFFFF_FFFF,) * 4 for leaf in range(0x17)},
    **{(4, subleaf): (0xFFFF_FFFF,) * 4 for subleaf in range(4)},
    **{(leaf, 0): (0xFFFF_FFFF,) * 4 for leaf in range(0x8000_0000, 0x8000_0020)},
    (0, 0): (0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    (0x8000_0000, 0): (0x8000_001F, 1, 2, 3),
}
HIDDEN = {
    "vmx": (1, 2, 5), "monitor": (1, 2, 3), "x2apic": (1, 2, 21), "tsc-deadline": (1, 2, 24), "xsave": (1, 2, 26),
    "osxsave": (1, 2, 27), "avx": (1, 2, 28), "f16c": (1, 2, 29), "rdrand": (1, 2, 30), "hypervisor": (1, 2, 31),
    "fma": (1, 2, 12), "pcid": (1, 2, 17), "dtes64": (1, 2, 2), "vme": (1, 3, 1), "mce": (1, 3, 7), "mca": (1, 3, 14),
    "htt": (1, 3, 28), "acpi": (1, 3, 22), "avx2": (7, 1, 5), "smep": (7, 1, 7), "rdseed": (7, 1, 18),
    "smap": (7, 1, 20), "fsgsbase": (7, 1, 0), "avx512f": (7, 1, 16), "sha": (7, 1, 29),
    "svm": (0x8000_0001, 2, 2), "xop": (0x8000_0001, 2, 11), "fma4": (0x8000_0001, 2, 16),
}  # fmt: skip


@pytest.mark.parametrize("feature", sorted(HIDDEN))
def test_what_the_machine_does_not_have_is_not_shown(feature: str) -> None:
    """Even if the engine had everything."""
    leaf, register, bit = HIDDEN[feature]
    assert 0 == CpuId(EVERYTHING).query(leaf, 0)[register] >> bit & 1


@pytest.mark.parametrize("feature", sorted(FEATURE_BITS))
def test_what_has_a_name_is_shown_and_can_be_taken_away(feature: str) -> None:
    """One bit at a time; everything else stays."""
    with_it, without = CpuId(EVERYTHING), CpuId(EVERYTHING, without=frozenset({feature}))
    assert (True, False) == (with_it.has(feature), without.has(feature))
    leaf, register, bit = FEATURE_BITS[feature]
    expected = {key: list(values) for key, values in with_it.leaves.items()}
    expected[leaf, 0][register] &= ~(1 << bit)
    assert {key: tuple(values) for key, values in expected.items()} == without.leaves
    assert set(FEATURE_BITS) - {feature} == set(without.features())


def test_the_local_apic_and_the_invariant_tsc_are_added() -> None:
    """Whatever the engine's model says, the machine has them."""
    bare: Leaves = {(0, 0): (1, 0, 0, 0), (1, 0): (0, 0, 0, 0), (0x8000_0000, 0): (0x8000_0001, 0, 0, 0)}
    cpuid = CpuId(bare)
    assert ["apic"] == cpuid.features()
    assert 1 << 8 == cpuid.query(0x8000_0007, 0)[3]
    assert 0x8000_0008 == cpuid.query(0x8000_0000, 0)[0]
    assert 36 | 32 << 8 == cpuid.query(0x8000_0008, 0)[0]


def test_there_is_one_processor() -> None:
    """One logical processor with APIC ID 0, and one core in the cache leaves; no topology leaf."""
    cpuid = CpuId(EVERYTHING)
    assert 1 << 16 == cpuid.query(1, 0)[1] & 0xFFFF_0000
    assert [0] * 4 == [cpuid.query(4, subleaf)[0] >> 14 for subleaf in range(4)]
    assert (0, 0, 0, 0) == cpuid.query(0xB, 0)
    assert 0 == cpuid.query(0x8000_0008, 0)[2]


@pytest.mark.parametrize("leaf", [5, 6, 9, 0xA, 0xB, 0xC, 0xD, 0xF, 0x10, 0x12, 0x14, 0x15, 0x16])
def test_leaves_that_would_promise_too_much_are_empty(leaf: int) -> None:
    """MONITOR, thermal sensors, counters, XSAVE, frequencies that virtual time does not have."""
    assert (0, 0, 0, 0) == CpuId(EVERYTHING).query(leaf, 0)


def test_which_leaf_answers() -> None:
    """Subleaves where they count; the highest basic leaf beyond it; zeros for extended and hypervisor leaves."""
    leaves = {(leaf, 0): (leaf, 0, 0, 0) for leaf in range(0x17)} | {(4, 1): (41, 0, 0, 0), (0, 0): (2, 1, 1, 1)}
    cpuid = CpuId({(1, 0): (1, 2, 3, 4), **{key: value for key, value in leaves.items() if key[0] <= 4}})
    assert 41 == cpuid.query(4, 1)[0]
    assert (0, 0, 0, 0) == cpuid.query(4, 2)
    assert cpuid.query(2, 0) == cpuid.query(2, 99)
    assert cpuid.query(2, 0) == cpuid.query(0x20, 0) == cpuid.query(0x3FFF_FFFF, 5)
    assert (0, 0, 0, 0) == cpuid.query(0x4000_0000, 0) == cpuid.query(0x8000_0100, 0) == cpuid.query(0xFFFF_FFFF, 0)


@settings(deadline=None)
@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF))
def test_every_question_has_an_answer(leaf: int, subleaf: int) -> None:
    """Four 32-bit values."""
    for leaves in (EVERYTHING, {(0, 0): (1, 0, 0, 0), (1, 0): (0, 0, 0, 0)}):
        assert all(0 <= value <= 0xFFFF_FFFF for value in CpuId(leaves).query(leaf, subleaf))


@pytest.mark.parametrize("model", CPU_MODELS)
def test_long_mode_is_shown_as_a_whole_or_not_at_all(model: str) -> None:
    """With SYSCALL, PAE and address sizes that the page walk honours; the 32-bit models have nothing of it."""
    cpuid = CpuId(read_cpuid_leaves(Vcpu(model)))
    assert cpuid.has("lm") is (model not in ("pentium3", "qemu32"))
    if cpuid.has("lm"):
        assert {"syscall", "pae", "msr", "pge", "fxsr", "sse2", "cmov"} <= set(cpuid.features())
        assert PHYSICAL_BITS | LINEAR_BITS << 8 == cpuid.query(0x8000_0008, 0)[0]
    assert cpuid.is_amd() is model.startswith(("opteron", "epyc", "phenom"))


@pytest.mark.parametrize("model", CPU_MODELS)
def test_the_engines_models(model: str) -> None:
    """Every model makes a table that answers and shows nothing that the machine lacks."""
    cpuid = CpuId(read_cpuid_leaves(Vcpu(model)))
    for leaf, register, bit in HIDDEN.values():
        assert 0 == (cpuid.query(leaf, 0)[register] >> bit & 1 if (leaf, 0) in cpuid.leaves else 0)
    assert {"fpu", "tsc", "msr", "cx8", "apic", "cmov"} <= set(cpuid.features())
    for leaf in (0, 1, 2, 4, 7, 0x16, 0x30, 0x8000_0000, 0x8000_0008, 0x8000_00FF):
        assert all(0 <= value <= 0xFFFF_FFFF for value in cpuid.query(leaf, 0))
    assert leaf_text(cpuid) in ("GenuineIntel", "AuthenticAMD")


def leaf_text(cpuid: CpuId) -> str:
    """The vendor."""
    _, ebx, ecx, edx = cpuid.query(0, 0)
    return b"".join(value.to_bytes(4, "little") for value in (ebx, edx, ecx)).decode()
