"""What CPUID of a CPU model says, by asking the engine's own CPU once at start-up."""

import ctypes
import mmap

from hvemu.cpu.cpuid import Leaves
from hvemu.cpu.state import FLAT_CODE, FLAT_DATA
from hvemu.engine import layout
from hvemu.engine.vcpu import Vcpu
from hvemu.vocabulary.paging import CR0_ET, CR0_PE

_SCRATCH = 0xFFFF_F000
_CPUID_HLT = b"\x0f\xa2\xf4"
_WITH_SUBLEAVES = {4: 4, 7: 1}


def read_cpuid_leaves(vcpu: Vcpu) -> Leaves:
    """Every leaf of the engine's CPU model; call before hooks and MMIO are set up."""
    page = mmap.mmap(-1, 4096)
    anchor = ctypes.c_char.from_buffer(page)
    page[0:3] = _CPUID_HLT
    vcpu.map_ram(_SCRATCH, 4096, ctypes.addressof(anchor))
    saved = vcpu.save()
    for index in range(6):
        vcpu.set_segment(index, FLAT_CODE if index == 1 else FLAT_DATA)
    vcpu.quads[layout.QUAD_CR] = CR0_PE | CR0_ET
    vcpu.refresh_mode()

    def ask(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        vcpu.set_gpr(0, leaf)
        vcpu.set_gpr(1, subleaf)
        vcpu.set_eip(_SCRATCH)
        vcpu.run()
        return vcpu.gpr(0), vcpu.gpr(3), vcpu.gpr(1), vcpu.gpr(2)

    leaves: Leaves = {}
    for base in (0, 0x8000_0000):
        highest = ask(base, 0)[0]
        if highest & 0x8000_0000 != base:
            continue
        for leaf in range(base, min(highest, base + 0x20) + 1):
            for subleaf in range(_WITH_SUBLEAVES.get(leaf, 1)):
                leaves[leaf, subleaf] = ask(leaf, subleaf)
    vcpu.restore(saved)
    vcpu.unmap(_SCRATCH, 4096)
    return leaves
