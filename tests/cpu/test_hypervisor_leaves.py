"""Whose leaves CPUID has from 0x40000000 on, and that each promises what there is."""

import re
from pathlib import Path

import pytest

from hvemu.cpu.cpuid import CpuId, Leaves
from hvemu.cpu.hypervisor_leaves import BASE, HYPERVISOR_LEAVES
from hvemu.cpu.msr import SyntheticRegisters
from hvemu.paravirtual.hyperv import HyperV
from hvemu.paravirtual.kvm import Kvm
from hvemu.vocabulary import xen

BARE: Leaves = {(0, 0): (1, 0, 0, 0), (1, 0): (0, 0, 0, 0), (0x8000_0000, 0): (0x8000_0001, 0, 0, 0)}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "hypervisor_leaves.md"
SIGNATURES = {
    "hvemu": b"hvemuhvemuhv", "kvm": b"KVMKVMKVM\0\0\0", "xen": b"XenVMMXenVMM", "hyperv": b"Microsoft Hv",
    "vmware": b"VMwareVMware",
}  # fmt: skip
WORDS = {
    "kvm": (0x4B4D564B, 0x564B4D56, 0x4D), "xen": (0x566E6558, 0x65584D4D, 0x4D4D566E),
    "hyperv": (0x7263694D, 0x666F736F, 0x76482074), "vmware": (0x61774D56, 0x4D566572, 0x65726177),
}  # fmt: skip
HIGHEST = {"hvemu": 2, "kvm": 1, "xen": 2, "hyperv": 5, "vmware": 0x10}


def shown(interface: str) -> CpuId:
    """CPUID of a machine that shows an interface."""
    return CpuId(BARE, hypervisor=HYPERVISOR_LEAVES[interface])


@pytest.mark.parametrize("interface", SIGNATURES)
def test_a_hypervisor_is_announced_by_bit_31_and_its_signature(interface: str) -> None:
    """Twelve letters in EBX, ECX, EDX, and the highest leaf in EAX; beyond it are zeros."""
    cpuid = shown(interface)
    assert 1 == cpuid.query(1, 0)[2] >> 31
    highest, *letters = cpuid.query(BASE, 0)
    assert SIGNATURES[interface] == b"".join(word.to_bytes(4, "little") for word in letters)
    assert WORDS.get(interface, tuple(letters)) == tuple(letters)
    assert BASE + HIGHEST[interface] == highest
    assert (0, 0, 0, 0) == cpuid.query(highest + 1, 0) == cpuid.query(BASE + 0x100, 0)
    assert max(HYPERVISOR_LEAVES[interface])[0] == highest


def test_without_an_interface_nothing_gives_a_hypervisor_away() -> None:
    """No bit, no leaves."""
    cpuid = shown("none")
    assert 0 == cpuid.query(1, 0)[2] >> 31
    assert all((0, 0, 0, 0) == cpuid.query(BASE + leaf, 0) for leaf in range(0x120))
    assert CpuId(BARE).leaves == cpuid.leaves


@pytest.mark.parametrize("interface", SIGNATURES)
def test_the_rest_of_cpuid_is_the_same_for_all(interface: str) -> None:
    """Only bit 31 and the leaves of the hypervisor are added."""
    expected = dict(shown("none").leaves)
    eax, ebx, ecx, edx = expected[1, 0]
    expected[1, 0] = (eax, ebx, ecx | 1 << 31, edx)
    assert {**expected, **HYPERVISOR_LEAVES[interface]} == shown(interface).leaves


def test_hvemus_own_leaves_are_a_version_and_two_frequencies() -> None:
    """kHz of the TSC and of the APIC's bus."""
    cpuid = shown("hvemu")
    assert (1, 0, 0, 0) == cpuid.query(BASE + 1, 0)
    assert (1_000_000, 100_000, 0, 0) == cpuid.query(BASE + 2, 0)


def test_kvm_offers_two_clocks_a_stable_one_and_pv_eoi() -> None:
    """Bits 0, 3, 6 and 24, no hints."""
    assert (1 << 0 | 1 << 3 | 1 << 6 | 1 << 24, 0, 0, 0) == shown("kvm").query(BASE + 1, 0)


def test_xen_has_a_version_and_no_hypercall_pages() -> None:
    """The same version as the hypercall answers."""
    cpuid = shown("xen")
    assert (xen.VERSION, 0, 0, 0) == cpuid.query(BASE + 1, 0)
    assert (0, 0, 0, 0) == cpuid.query(BASE + 2, 0)


def test_hyperv_has_its_interface_and_privileges_for_what_there_is() -> None:
    """Reference counter, hypercall MSRs, VP index; one processor; spinlocks are never reported."""
    cpuid = shown("hyperv")
    assert b"Hv#1" == cpuid.query(BASE + 1, 0)[0].to_bytes(4, "little")
    assert (1 << 1 | 1 << 5 | 1 << 6, 0, 0, 0) == cpuid.query(BASE + 3, 0)
    assert (0, 0xFFFF_FFFF, 0, 0) == cpuid.query(BASE + 4, 0)
    assert (1, 1, 0, 0) == cpuid.query(BASE + 5, 0)


def test_vmware_has_frequencies_and_no_hypercall_instruction() -> None:
    """The backdoor is a port; the leaves between are empty."""
    cpuid = shown("vmware")
    assert (1_000_000, 100_000, 0, 0) == cpuid.query(BASE + 0x10, 0)
    assert all((0, 0, 0, 0) == cpuid.query(BASE + leaf, 0) for leaf in range(1, 0x10))


def test_the_page_about_the_leaves_has_every_interface_and_register() -> None:
    """Each signature, each leaf that is not empty, each MSR."""
    text = PAGE.read_text(encoding="utf-8")
    for interface, leaves in HYPERVISOR_LEAVES.items():
        section = re.search(rf"^## `{interface}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, interface
        for (leaf, _), values in leaves.items():
            assert not any(values) or f"`{leaf:#x}`" in section[1], (interface, hex(leaf))
    registers: tuple[type[SyntheticRegisters], ...] = (Kvm, HyperV)
    for number in frozenset().union(*(kind.numbers for kind in registers)):
        assert f"`{number:#x}`" in text, hex(number)
