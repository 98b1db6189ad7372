"""The CPU that a paravirtual guest runs on: the tables that the MMU and segment loads read, and what its registers are.

Little is pretended: the guest knows that it runs in ring 1. Only IF is not the CPU's own, but the event mask, and the
table registers are nobody's business but the hypervisor's.
"""

import struct
from collections.abc import Callable
from typing import Final

from hvemu.cpu.state import FLAG_IF, FLAG_IOPL, FLAG_NT, FLAG_VM, Segment, SystemTables, TableRegister
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.direct import DirectPaging
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.walk import PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_USER, PTE_WRITABLE
from hvemu.modes.deprivileged import LDT_SELECTOR, TASK_SELECTOR, VMM_BASE, HypervisorPages
from hvemu.modes.live_cpu import LegacyCpu
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.paging import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    PagingRegisters,
)

_GDT, _LDT, _TASK, _IDT = 0, 16, 32, 33  # pages from VMM_BASE, as HypervisorPages has them
_GUEST_GDT_PAGES: Final = xen.FIRST_RESERVED_GDT_ENTRY // 512
_SELECTORS: Final = 1 << 16
_CR0: Final = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
_CR4: Final = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
_EFER: Final = EFER_LME | EFER_LMA | EFER_NXE
_FLAT: Final = {
    xen.FLAT_RING1_CS: 0x00CF_BB00_0000_FFFF,
    xen.FLAT_RING1_DS: 0x00CF_B300_0000_FFFF,
    xen.FLAT_RING3_CS: 0x00CF_FB00_0000_FFFF,
    xen.FLAT_RING3_DS: 0x00CF_F300_0000_FFFF,
}
_ENTRY_BITS: Final = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_NX
_TABLE_BITS: Final = PTE_PRESENT | PTE_WRITABLE | PTE_USER | PTE_ACCESSED


class ParavirtualPages(HypervisorPages):
    """The hypervisor's pages, the four-level tables that lead to the guest's, and the frames of the guest's GDT."""

    def __init__(self, vcpu: Vcpu, pool: FramePool) -> None:
        super().__init__(vcpu, pool)
        self.root, self._upper = pool.take(), pool.take()
        self._own_gdt = self.pages[_GDT : _GDT + _GUEST_GDT_PAGES]
        struct.pack_into("<QQ", self._view, self.root, self._upper | _TABLE_BITS, self.pdpt | _TABLE_BITS)
        for selector, descriptor in _FLAT.items():
            self.write(_GDT, selector & 0xFFF8, descriptor)

    def load_tables(self) -> None:
        """Have the CPU look up selectors and vectors here."""
        base = VMM_BASE
        self._vcpu.set_tables(
            TableRegister(base + _GDT * PAGE_SIZE, _SELECTORS - 1),
            TableRegister(base + _IDT * PAGE_SIZE, PAGE_SIZE - 1),
            Segment(LDT_SELECTOR, base + _LDT * PAGE_SIZE, 0, 0x8200),
            Segment(TASK_SELECTOR, base + _TASK * PAGE_SIZE, 0x67, 0x8900),
        )

    def load_control(self, task_switched: int) -> None:
        """Have the CPU walk these tables; ``task_switched`` is CR0.TS, in its place, or 0."""
        self._vcpu.load_control(_CR0 | task_switched, self.root, _CR4, _EFER)

    def point(self, entries: list[int]) -> None:
        """The four entries of the guest's top table, which the MMU reads where 64-bit tables have rights as well."""
        values = [entry | PTE_WRITABLE | PTE_USER | PTE_ACCESSED if entry & PTE_PRESENT else 0 for entry in entries]
        struct.pack_into("<4Q", self._view, self._upper, *values)
        self.flush_tlb()

    def map_gdt(self, frames: list[int]) -> None:
        """Let the CPU read the guest's descriptors from its own frames."""
        for index, own in enumerate(self._own_gdt):
            page = frames[index] << PAGE_SHIFT if index < len(frames) else own
            self.pages[_GDT + index] = page
            struct.pack_into("<Q", self._view, self._table + 8 * (_GDT + index), page | _ENTRY_BITS)
        self.flush_tlb()

    def descriptor(self, selector: int) -> int:
        """What the CPU finds for a selector of the GDT."""
        return self.read(_GDT, selector & 0xFFF8)


class ParavirtualView(LegacyCpu):
    """The registers of a guest that knows where it runs; implements LiveCpu."""

    def __init__(self, vcpu: Vcpu, paging: DirectPaging) -> None:
        self._vcpu, self._paging = vcpu, paging
        self._registers = PagingRegisters(_CR0, 0, _CR4, EFER_NXE)
        self.masked: Callable[[], bool] = lambda: False
        """Whether events are held off: the guest's IF."""
        self.gpr, self.set_gpr = vcpu.gpr, vcpu.set_gpr
        self.eip, self.set_eip, self.linear_eip = vcpu.eip, vcpu.set_eip, vcpu.linear_eip
        self.interrupt_shadow, self.set_interrupt_shadow = vcpu.interrupt_shadow, vcpu.set_interrupt_shadow
        self.cpl, self.segment, self.set_segment = vcpu.cpl, vcpu.segment, vcpu.set_segment
        self.set_code_and_stack, self.cr2, self.set_cr2 = vcpu.set_code_and_stack, vcpu.cr2, vcpu.set_cr2

    def eflags(self) -> int:
        """EFLAGS, with IF for the event mask."""
        return self._vcpu.eflags() & ~(FLAG_IF | FLAG_IOPL) | (0 if self.masked() else FLAG_IF)

    def set_eflags(self, value: int) -> None:
        """Set EFLAGS; physically IF is always 1 and IOPL 0."""
        self._vcpu.set_eflags(value & ~(FLAG_IOPL | FLAG_VM | FLAG_NT) | FLAG_IF)

    def interrupts_enabled(self) -> bool:
        """Whether events are let through."""
        return not self.masked()

    def paging(self) -> PagingRegisters:
        """The guest's own tables, which are the MMU's."""
        if self._registers.cr3 != self._paging.base << PAGE_SHIFT:
            self._registers = PagingRegisters(_CR0, max(self._paging.base, 0) << PAGE_SHIFT, _CR4, EFER_NXE)
        return self._registers

    def gdt(self) -> TableRegister:
        """Where the descriptors are is the hypervisor's affair."""
        return TableRegister(0, 0)

    def idt(self) -> TableRegister:
        """There is a trap table in its place."""
        return TableRegister(0, 0)

    def system_tables(self) -> SystemTables:
        """None."""
        return SystemTables(0, 0, 0, 0, 0, 0, 0, 0)

    def ldt_segment(self) -> Segment:
        """None."""
        return Segment(0, 0, 0, 0)

    def task_segment(self) -> Segment:
        """None: the kernel's stack is told by a hypercall."""
        return Segment(0, 0, 0, 0)
