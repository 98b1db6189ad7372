"""AMD-V on the engine: the host's side of VMRUN (APM vol. 2, chapter 15).

The engine's CPU has SVM. The hypervisor's own state is that of a 64-bit host, with page tables and a few instructions
in machine memory, that executes VMRUN; from then on the engine is in guest mode. Every #VMEXIT arrives in the
interrupt hook with the guest's registers still loaded: the engine leaves out the second half of it, storing the
guest's state and loading the host's. So an exit that is handled there goes on as if VMRUN had come next; what the
second half would have written to the VMCB is written when somebody wants to see it.
"""

import struct
from typing import Final

from hvemu.cpu.state import CS, Segment, TableRegister
from hvemu.engine import layout
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.frame_pool import FramePool
from hvemu.vocabulary.paging import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from hvemu.vocabulary.svm import EFER_SVME, EVENT_EXCEPTION, EVENT_INTERRUPT, EVENT_VALID, FIELDS

EXIT_BASE: Final = 0x100
"""What the interrupt hook adds to an exit code."""
_QUAD = struct.Struct("<Q")
_PRESENT_WRITABLE: Final = 3
_LARGE: Final = _PRESENT_WRITABLE | 0x80
_HF_GUEST: Final = 1 << 21
_HF2_NPT: Final = 1 << 6
_CODE: Final = Segment(0x10, 0, 0xFFFF_FFFF, 0x00AF9B00 & 0x00F0FF00)
_CODE_32: Final = Segment(0x10, 0, 0xFFFF_FFFF, 0x00C09B00)
_DATA: Final = Segment(0x18, 0, 0xFFFF_FFFF, 0x00C09300)
_NO_TABLE: Final = TableRegister(0, 0)
_NOTHING: Final = Segment(0, 0, 0xFFFF, 0x8200)
_TASK: Final = Segment(0, 0, 0xFFFF, 0x8900)
_EXIT_INFO_2: Final = FIELDS["EXITINFO2"].offset
_EVENT: Final = FIELDS["EVENTINJ"].offset
_STUB: Final = "b9800000c0 b8{efer} 31d2 0f30 eb00 b9170101c0 b8{save} 31d2 0f30 b8{vmcb} 0f01da 0f01d8"
"""mov ecx,EFER / mov eax,efer / xor edx,edx / wrmsr / jmp / mov ecx,VM_HSAVE_PA / mov eax,save / xor edx,edx / wrmsr
/ mov eax,vmcb / vmload / vmrun. The jump is there because the engine notices EFER.SVME with the next block only."""
_FOREVER: Final = 1 << 60


class SvmHost:
    """The hypervisor's CPU state and its VMCB, ``vmcb`` being its machine address.

    ``levels``: of nested page tables, which have the format of the host's own: 4, or 2 under a 32-bit host.
    """

    def __init__(self, vcpu: Vcpu, pool: FramePool, levels: int = 4) -> None:
        self._vcpu, self._view = vcpu, pool.machine.view
        self.levels = levels
        self.vmcb, self._save_area, self._stub = pool.take(), pool.take(), pool.take()
        self._cr3, self._cr4, self._efer = self._tables(pool)
        texts = {"efer": self._efer & ~EFER_LMA, "save": self._save_area, "vmcb": self.vmcb}
        code = bytes.fromhex(_STUB.format(**{k: v.to_bytes(4, "little").hex() for k, v in texts.items()}))
        self._view[self._stub : self._stub + len(code)] = code
        self._length = len(code)
        self.is_entering = False
        """Whether VMRUN is about to be executed: what the interrupt hook then hears of is none of the guest's doing."""
        self.interrupted: int | None = None
        """The vector that the interrupt hook reported during the last entry."""
        self.error_code = 0
        """The error code that came with it."""

    def _tables(self, pool: FramePool) -> tuple[int, int, int]:
        """The host's own page tables, identical below 1 GiB, where all of machine memory that it needs lies."""
        view = self._view
        if self.levels == 2:
            directory = pool.take()
            for index in range(256):
                struct.pack_into("<I", view, directory + 4 * index, index << 22 | _LARGE)
            return directory, CR4_PSE, EFER_SVME
        top, pointers, directory = pool.take(), pool.take(), pool.take()
        _QUAD.pack_into(view, top, pointers | _PRESENT_WRITABLE)
        _QUAD.pack_into(view, pointers, directory | _PRESENT_WRITABLE)
        for index in range(512):
            _QUAD.pack_into(view, directory + 8 * index, index << 21 | _LARGE)
        return top, CR4_PAE, EFER_SVME | EFER_LME | EFER_LMA | EFER_NXE

    def run(self) -> None:
        """VMRUN: the engine stands at the guest's first instruction, or where EVENTINJ has taken it.

        Not from inside a callback. General registers but RAX and RSP, the FPU and the interrupt shadow are not the
        VMCB's: set them afterwards.
        """
        vcpu, clock = self._vcpu, self._vcpu.clock
        words = vcpu.words
        words[layout.WORD_HFLAGS] &= ~_HF_GUEST & 0xFFFF_FFFF
        words[layout.WORD_HFLAGS2] &= ~_HF2_NPT & 0xFFFF_FFFF
        vcpu.set_tables(_NO_TABLE, _NO_TABLE, _NOTHING, _TASK)
        vcpu.set_eflags(2)
        code = _CODE if self.levels == 4 else _CODE_32
        for index in range(6):
            vcpu.set_segment(index, code if index == CS else _DATA)
        vcpu.load_control(CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG, self._cr3, self._cr4, self._efer)
        vcpu.set_eip(self._stub)
        self.interrupted, self.is_entering = None, True
        event = _QUAD.unpack_from(self._view, self.vmcb + _EVENT)[0]
        if not clock.installed:  # nothing else would stop the engine at the guest's first block
            assert not event
            _QUAD.pack_into(self._view, self.vmcb + _EVENT, EVENT_VALID | EVENT_EXCEPTION | 1)
        clock.load(self._length)
        try:
            vcpu.run()
        finally:
            self.is_entering = False
            clock.load(_FOREVER)
            _QUAD.pack_into(self._view, self.vmcb + _EVENT, 0)
            words[layout.WORD_HFLAGS] &= ~(1 << 3) & 0xFFFF_FFFF

    def heard(self, vector: int) -> None:
        """The interrupt hook has been called during an entry, with this vector."""
        self.interrupted, self.error_code = vector, self._vcpu.error_code()
        self._vcpu.stop()

    def inject_interrupt(self, vector: int) -> None:
        """Have the next VMRUN deliver an external interrupt."""
        _QUAD.pack_into(self._view, self.vmcb + _EVENT, EVENT_VALID | EVENT_INTERRUPT | vector)

    def fault_address(self) -> int:
        """EXITINFO2, which the engine writes for page faults: the guest-physical, or linear, address."""
        return int(_QUAD.unpack_from(self._view, self.vmcb + _EXIT_INFO_2)[0])

    def set_intercepts(self) -> None:
        """Have the intercepts in the VMCB in force, which the CPU has read at VMRUN, without another one."""
        view, at = self._view, self.vmcb
        self._vcpu.state[layout.BYTE_INTERCEPT : layout.BYTE_INTERCEPT + 8] = view[at + 0xC : at + 0x14]
        self._vcpu.state[layout.BYTE_INTERCEPT + 8 : layout.BYTE_INTERCEPT + 20] = view[at : at + 0xC]

    def forget_code(self, address: int, size: int) -> None:
        """Drop translations of code in a part of machine memory, whatever the guest's tables say of it."""
        words, vcpu = self._vcpu.words, self._vcpu
        kept = words[layout.WORD_CR0], words[layout.WORD_HFLAGS2]
        words[layout.WORD_CR0] &= ~CR0_PG & 0xFFFF_FFFF
        words[layout.WORD_HFLAGS2] &= ~_HF2_NPT & 0xFFFF_FFFF
        vcpu.flush_tlb()
        vcpu.forget_code_at(address, size)
        words[layout.WORD_CR0], words[layout.WORD_HFLAGS2] = kept
        vcpu.flush_tlb()
