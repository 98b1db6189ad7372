"""A paravirtual guest asks CPUID where it is, as any other."""

import pytest

from hvemu.vocabulary import xen
from tests.modes.small_kernel import PASS
from tests.paravirtual.small_domain import DATA, IOPL, SmallDomain

FOUND = DATA + 0x100

ASK = f"b8$40000000 0fa2 891d${FOUND:x} 890d${FOUND + 4:x} 8915${FOUND + 8:x} a3${FOUND + 12:x} b8$40000001 0fa2"
"""CPUID 40000000h to FOUND, then 40000001h."""


@pytest.mark.parametrize("changes", [{}, {"hypervisor_leaves": "xen"}])
def test_it_finds_xen_and_its_version(changes: dict[str, str]) -> None:
    """By default; the version is the one that the hypercall answers."""
    domain = SmallDomain(f"{ASK} a3${FOUND + 16:x} {IOPL} {PASS}", **changes)
    assert 33 == domain.run()
    assert b"XenVMMXenVMM" == domain.read(FOUND, 12)
    assert (0x4000_0002, xen.VERSION) == domain.words(FOUND + 12, 2)


def test_it_finds_nothing_where_nothing_is_to_be_shown() -> None:
    """Its ELF notes say enough."""
    domain = SmallDomain(f"{ASK} a3${FOUND + 16:x} {IOPL} {PASS}", hypervisor_leaves="none")
    assert 33 == domain.run()
    assert (0,) * 5 == domain.words(FOUND, 5)
