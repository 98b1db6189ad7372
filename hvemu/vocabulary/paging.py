"""The registers that decide how a linear address is translated, as one value, and what an access wants."""

from typing import Final, NamedTuple

CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_PKE: Final = 1 << 22
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_SVME: Final = 1 << 12
PHYSICAL_BITS: Final = 40
"""Of a physical address, on every CPU model of the engine; CPUID says so."""
LINEAR_BITS: Final = 48
LINEAR_MASK: Final = (1 << 64) - 1
_LOWER_HALF: Final = 1 << LINEAR_BITS - 1
_UPPER_HALF: Final = (1 << 64) - _LOWER_HALF

# Page-fault error code, SDM vol. 3A, figure 4-12
ERROR_PRESENT: Final = 1
ERROR_WRITE: Final = 2
ERROR_USER: Final = 4
ERROR_RESERVED: Final = 8
ERROR_FETCH: Final = 16
ERROR_KEY: Final = 32
_ERROR_WORDS: Final = ((ERROR_USER, "user"), (ERROR_PRESENT, "protection"), (ERROR_RESERVED, "reserved bit"))


def error_words(code: int) -> str:
    """A page-fault error code for people: ``write, user`` for 6. Without "protection" no page was present."""
    access = "fetch" if code & ERROR_FETCH else "write" if code & ERROR_WRITE else "read"
    return ", ".join([access, *(word for bit, word in _ERROR_WORDS if code & bit)])


def canonical(linear: int) -> bool:
    """Whether the bits that 4-level paging does not translate repeat the last that it does (SDM vol. 1, 3.3.7.1)."""
    return linear < _LOWER_HALF or linear >= _UPPER_HALF


class PagingRegisters(NamedTuple):
    """CR0, CR3, CR4 and EFER: all that ``walk`` needs besides memory."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    @property
    def enabled(self) -> bool:
        """Whether linear addresses are translated at all."""
        return bool(self.cr0 & CR0_PG)
