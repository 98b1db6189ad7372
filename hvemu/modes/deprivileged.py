"""The CPU that a guest kernel in ring 1 believes it has, over the one that it runs on.

Ring 0 is compressed into ring 1: descriptors, CS and SS are moved by one, and moved back for whoever asks. The
descriptor tables that the physical CPU reads are the hypervisor's; they lie above 4 GiB, where 32-bit code cannot
reach, and mirror the code and data segments of the guest's tables. IF, IOPL, the control registers and the table
registers exist only here. Instructions that read the physical ones silently, SGDT or PUSHF, see the difference; that
is what mode ``trap`` is there to show.
"""

import struct
from collections.abc import Callable
from typing import Final

from hvemu.cpu.segment_loads import NotEmulated
from hvemu.cpu.state import (
    ATTRIBUTE_ACCESSED,
    ATTRIBUTE_CODE,
    ATTRIBUTE_CONFORMING,
    ATTRIBUTE_DPL_SHIFT,
    ATTRIBUTE_LONG,
    ATTRIBUTE_PRESENT,
    ATTRIBUTE_S,
    CS,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_VM,
    SS,
    Segment,
    SystemTables,
    TableRegister,
)
from hvemu.engine import layout
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.shadow import ShadowPaging
from hvemu.memory.walk import PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_USER, PTE_WRITABLE, walk
from hvemu.modes.live_cpu import LegacyCpu
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.paging import (
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CR4_PKE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    PagingRegisters,
)

VMM_BASE: Final = 1 << 39
"""Linear address of the hypervisor's own pages: PML4 slot 1, out of reach for 32-bit code."""
VMM_FRAMES: Final = 35
LOOKUP_BASE: Final = VMM_BASE + (2 << 20)
"""Linear address of a second area of 2 MiB, for the lookup tables of translated code."""
_GDT, _LDT, _TASK, _IDT, _SCRATCH = 0, 16, 32, 33, 34  # pages from VMM_BASE
_TABLE_LIMIT: Final = 0xFFFF
TASK_SELECTOR: Final = 0xFFE0
LOOKUP_SELECTOR: Final = 0xFFD0
"""A 64-bit code segment of ring 1: from there the hypervisor's pages can be reached. For translated code alone."""
LDT_SELECTOR: Final = 0xFFF0
"""What STR and SLDT show: the hypervisor's slots, at the end of its GDT."""
_CR0_OF_GUEST: Final = CR0_MP | CR0_EM | CR0_TS
_CR0_FIXED: Final = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
_CR4_OF_GUEST: Final = CR4_OSFXSR | CR4_OSXMMEXCPT
_EFER: Final = EFER_LME | EFER_LMA | EFER_NXE
_DPL: Final = 3 << ATTRIBUTE_DPL_SHIFT
_DPL_1: Final = 1 << ATTRIBUTE_DPL_SHIFT
_QUAD = struct.Struct("<Q")
_CODE_64: Final = 0x00AF_BB00_0000_FFFF
_VIRTUAL_FLAGS: Final = FLAG_IF | FLAG_IOPL


class HypervisorPages:
    """The page tables and pages behind ``VMM_BASE``; implements what shadow paging needs of the physical CPU."""

    def __init__(self, vcpu: Vcpu, pool: FramePool) -> None:
        self._vcpu = vcpu
        self._view = pool.machine.view
        self.pdpt = pool.take()
        directory, self._table = pool.take(), pool.take()
        self._pool, self._directory = pool, directory
        _QUAD.pack_into(self._view, self.pdpt, directory | PTE_PRESENT | PTE_WRITABLE | PTE_USER)
        _QUAD.pack_into(self._view, directory, self._table | PTE_PRESENT | PTE_WRITABLE | PTE_USER)
        self.pages = [pool.take() for _ in range(VMM_FRAMES - 1)]
        bits = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_NX
        for index, page in enumerate(self.pages):
            _QUAD.pack_into(self._view, self._table + 8 * index, page | bits)

    def map_lookup(self, machine_address: int) -> None:
        """Map 2 MiB of machine memory at ``LOOKUP_BASE``, and make the code segment that can reach it."""
        table = self._pool.take()
        _QUAD.pack_into(self._view, self._directory + 8, table | PTE_PRESENT | PTE_WRITABLE | PTE_USER)
        bits = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_NX
        for index in range(512):
            _QUAD.pack_into(self._view, table + 8 * index, machine_address + index * PAGE_SIZE | bits)
        self.write(_GDT, LOOKUP_SELECTOR, _CODE_64)

    def write(self, page: int, offset: int, value: int) -> None:
        """A quadword of the pages that start at number ``page``."""
        _QUAD.pack_into(self._view, self.pages[page + (offset >> PAGE_SHIFT)] + (offset & (PAGE_SIZE - 1)), value)

    def read(self, page: int, offset: int) -> int:
        """A quadword of the pages that start at number ``page``."""
        at = self.pages[page + (offset >> PAGE_SHIFT)] + (offset & (PAGE_SIZE - 1))
        return int(_QUAD.unpack_from(self._view, at)[0])

    def flush_tlb(self) -> None:
        """Drop every cached translation of an address."""
        self._vcpu.flush_tlb()

    def forget_frame(self, address: int) -> None:
        """Drop translated code of a machine frame."""
        self.forget_range(address, PAGE_SIZE)

    def forget_range(self, address: int, size: int) -> None:
        """Drop translated code in a part of a machine frame, through a window that is executable for the moment."""
        entry, offset = self._table + 8 * _SCRATCH, address & (PAGE_SIZE - 1)
        # For user code too: the engine looks with the rights of what it is running
        _QUAD.pack_into(self._view, entry, address - offset | PTE_PRESENT | PTE_ACCESSED | PTE_USER)
        self._vcpu.forget_code_at(VMM_BASE + _SCRATCH * PAGE_SIZE + offset, size)
        _QUAD.pack_into(self._view, entry, 0)
        self._vcpu.flush_tlb()


class DescriptorMirror:
    """One descriptor table of the hypervisor's that mirrors the guest's GDT or LDT, page by page.

    Code and data segments are mirrored, system segments and gates are not. One that the guest has never loaded
    (accessed bit 0) is mirrored as absent, so that its first load faults and the guest's own descriptor is marked.
    """

    def __init__(self, pages: HypervisorPages, page: int, paging: ShadowPaging, memory: GuestPhysicalMemory) -> None:
        self._pages, self._page, self._paging, self._memory = pages, page, paging, memory
        self._base = self._limit = 0
        self._last = LOOKUP_SELECTOR if page == _GDT else 1 << 16
        self._frames: dict[int, int] = {}  # linear page of the guest's table -> guest frame it is mirrored from
        self._installed: set[int] = set()
        self._user_code: dict[int, int] = {}  # offset -> descriptor, absent while the kernel runs
        self._user = False

    def load(self, base: int, limit: int, registers: PagingRegisters) -> None:
        """The guest has loaded a table: mirror what of it is mapped now. A limit of 0 is an empty table."""
        self.forget()
        self._base, self._limit = base, limit
        for page in range(base & ~(PAGE_SIZE - 1), base + limit if limit else 0, PAGE_SIZE):
            self._mirror_page(page & 0xFFFF_FFFF, registers)

    def mirror(self, selector: int, registers: PagingRegisters) -> None:
        """A selector has been loaded by us: let the CPU load it by itself from now on."""
        page = (self._base + (selector & 0xFFF8)) & 0xFFFF_F000
        if page not in self._frames:
            self._mirror_page(page, registers)

    def _mirror_page(self, page: int, registers: PagingRegisters) -> None:
        physical = walk(self._memory, registers, page, mark=False)
        if not isinstance(physical, int) or physical >= self._memory.size:
            return
        frame = physical >> PAGE_SHIFT
        self._frames[page] = frame
        self._paging.watch(frame, _Watcher(self, frame))
        self._install(page, 0, PAGE_SIZE)

    def _install(self, page: int, offset: int, length: int) -> None:
        """Copy the descriptors that lie in these bytes of a mirrored page, and wholly in the page."""
        skew = (page - self._base) & 0xFFFF_FFFF  # where the page starts in the table, modulo 4 GiB
        if skew & 1 << 31:
            skew -= 1 << 32
        for at in range((skew + offset) // 8 * 8, min(skew + offset + length, self._limit - 6, self._last), 8):
            if at < 0 or not skew <= at <= skew + PAGE_SIZE - 8:
                continue
            self._mirror_one(at, self._memory.read_u64((self._frames[page] << PAGE_SHIFT) + at - skew))

    def _mirror_one(self, at: int, descriptor: int) -> None:
        attributes = descriptor >> 32
        self._user_code.pop(at, None)
        if not attributes & ATTRIBUTE_S or attributes & _DPL == _DPL_1:
            if at in self._installed:
                self._installed.discard(at)
                self._pages.write(self._page, at, 0)
            return
        descriptor &= ~(ATTRIBUTE_LONG << 32)
        if not attributes & _DPL:
            descriptor |= _DPL_1 << 32
        if not attributes & ATTRIBUTE_ACCESSED:
            descriptor &= ~(ATTRIBUTE_PRESENT << 32)
        elif attributes & ATTRIBUTE_CODE and (attributes & _DPL == _DPL or attributes & ATTRIBUTE_CONFORMING):
            # Every way back to user code must fault in the kernel, because it restores the virtual IF. A conforming
            # segment is one too.
            self._user_code[at] = descriptor
            if not self._user:
                descriptor &= ~(ATTRIBUTE_PRESENT << 32)
        self._installed.add(at)
        self._pages.write(self._page, at, descriptor)

    def physical(self, selector: int) -> int | None:
        """The descriptor that the physical CPU finds."""
        offset = selector & 0xFFF8
        return self._pages.read(self._page, offset) if offset in self._installed else None

    def show_user_code(self, shown: bool) -> None:
        """User code segments are present while user code runs, absent while the kernel does."""
        self._user = shown
        for offset, descriptor in self._user_code.items():
            self._pages.write(self._page, offset, descriptor if shown else descriptor & ~(ATTRIBUTE_PRESENT << 32))

    def forget(self) -> None:
        """Nothing is mirrored."""
        for offset in self._installed:
            self._pages.write(self._page, offset, 0)
        self._installed.clear()
        self._frames.clear()
        self._user_code.clear()

    def check(self, registers: PagingRegisters) -> None:
        """The guest has changed its address space: forget what was found elsewhere than it now would be."""
        for page, frame in list(self._frames.items()):
            physical = walk(self._memory, registers, page, mark=False)
            if not isinstance(physical, int) or physical >> PAGE_SHIFT != frame:
                self._drop(page)
                self._mirror_page(page, registers)

    def written(self, frame: int, offset: int, length: int) -> None:
        """Somebody stored into a frame that descriptors are mirrored from; length 0: it is no longer watched."""
        for page, known in list(self._frames.items()):
            if known == frame:
                if length:
                    self._install(page, offset, length)
                else:
                    self._drop(page)

    def _drop(self, page: int) -> None:
        del self._frames[page]
        for at in [at for at in self._installed if (self._base + at) & 0xFFFF_F000 == page]:
            self._installed.discard(at)
            self._user_code.pop(at, None)
            self._pages.write(self._page, at, 0)


class _Watcher:
    """Tells a mirror about stores into one frame."""

    __slots__ = ("_frame", "_mirror")

    def __init__(self, mirror: DescriptorMirror, frame: int) -> None:
        self._mirror, self._frame = mirror, frame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Watcher) and (self._frame, self._mirror) == (other._frame, other._mirror)

    def __hash__(self) -> int:
        return hash(self._frame)

    def __call__(self, offset: int, length: int) -> None:
        self._mirror.written(self._frame, offset, length)


class DeprivilegedCpu(LegacyCpu):
    """What the guest believes; implements LiveCpu and ControlledCpu over a Vcpu in compatibility mode."""

    def __init__(self, vcpu: Vcpu, memory: GuestPhysicalMemory, paging: ShadowPaging, pages: HypervisorPages) -> None:
        self._vcpu, self._paging, self._pages = vcpu, paging, pages
        self.gdt_mirror = DescriptorMirror(pages, _GDT, paging, memory)
        self.ldt_mirror = DescriptorMirror(pages, _LDT, paging, memory)
        self._flags = 0
        self._registers = PagingRegisters(0, 0, 0, 0)
        self._cr2 = 0
        self._gdt = self._idt = TableRegister(0, 0)
        self._ldt = self._task = Segment(0, 0, 0, 0)
        self._tables = SystemTables(0, 0, 0, 0, 0, 0, 0, 0)
        self._user = False
        self.changes = 0
        """Grows with every change of a register that only ring 0 can read."""
        self.crossed: Callable[[bool], None] = lambda user: None
        """Told when the CPU goes to user code, or back."""
        self.remapped: Callable[[], None] = lambda: None
        """Told when an address may no longer be where it was."""
        self.protects_keys = False
        """Whether protection keys are in force while the kernel runs."""
        self.gpr, self.set_gpr = vcpu.gpr, vcpu.set_gpr
        self.eip, self.set_eip, self.linear_eip = vcpu.eip, vcpu.set_eip, vcpu.linear_eip
        self.interrupt_shadow, self.set_interrupt_shadow = vcpu.interrupt_shadow, vcpu.set_interrupt_shadow

    def reset(self, registers: PagingRegisters, gdt: TableRegister, idt: TableRegister, ldt: Segment, task: Segment,
              cr2: int) -> None:  # fmt: skip
        """Take over a guest with these registers, in protected mode; raises NotEmulated."""
        self._require_protected_mode(registers.cr0)
        self._registers = registers
        self._gdt, self._idt, self._ldt, self._task, self._cr2 = gdt, idt, ldt, task, cr2
        self._note_tables()
        base = VMM_BASE
        self._vcpu.set_tables(
            TableRegister(base + _GDT * PAGE_SIZE, _TABLE_LIMIT),
            TableRegister(base + _IDT * PAGE_SIZE, PAGE_SIZE - 1),
            Segment(LDT_SELECTOR, base + _LDT * PAGE_SIZE, _TABLE_LIMIT, 0x8200),
            Segment(TASK_SELECTOR, base + _TASK * PAGE_SIZE, 0x67, 0x8900),
        )
        self._paging.load(registers)
        self._vcpu.load_control(self._physical_cr0(), self._paging.root, self._physical_cr4(), _EFER)
        self.gdt_mirror.load(*gdt, registers)
        self._load_ldt()

    # ------------------------------------------------------------------ flags

    def eflags(self) -> int:
        """EFLAGS with the guest's own IF and IOPL."""
        return self._vcpu.eflags() & ~_VIRTUAL_FLAGS | self._flags

    def set_eflags(self, value: int) -> None:
        """Set EFLAGS. Physically IF is always 1 and IOPL 0, so that CLI and STI fault."""
        self._flags = value & _VIRTUAL_FLAGS
        self._vcpu.set_eflags(value & ~(FLAG_IOPL | FLAG_VM) | FLAG_IF)

    def set_interrupts(self, enabled: bool) -> None:
        """Set the virtual IF alone."""
        self._flags = self._flags & ~FLAG_IF | (FLAG_IF if enabled else 0)

    def io_privilege(self) -> int:
        """The virtual IOPL."""
        return self._flags >> 12 & 3

    def physical_eflags(self) -> int:
        """EFLAGS as PUSHF shows them."""
        return self._vcpu.eflags()

    def interrupts_enabled(self) -> bool:
        """The virtual IF."""
        return bool(self._flags & FLAG_IF)

    # ------------------------------------------------------------------ segments

    def cpl(self) -> int:
        """The privilege level that the guest believes: 0 when it is 1."""
        ring = self._vcpu.cpl()
        return 0 if ring == 1 else ring

    def segment(self, index: int) -> Segment:
        """A segment register as the guest loaded it."""
        found = self._vcpu.segment(index)
        if found.attributes & (ATTRIBUTE_S | _DPL) == ATTRIBUTE_S | _DPL_1:
            return _raise(found, index)
        return found

    def physical_segment(self, index: int) -> Segment:
        """A segment register as MOV and PUSH show it."""
        return self._vcpu.segment(index)

    def set_segment(self, index: int, value: Segment) -> None:
        """Load a segment register, hidden part and all; raises NotEmulated for a CS of the guest's own ring 1."""
        if index == CS:
            _require_another_ring(value)
        self._vcpu.set_segment(index, _lower(value, index))
        if index == CS:
            self._crossed()
        self._mirror(value.selector)

    def set_code_and_stack(self, code: Segment, stack: Segment) -> None:
        """Load CS and SS together, as event delivery does; raises NotEmulated for ring 1."""
        _require_another_ring(code)
        self._vcpu.set_code_and_stack(_lower(code, CS), _lower(stack, SS))
        self._crossed()
        self._mirror(code.selector)
        self._mirror(stack.selector)

    def _mirror(self, selector: int) -> None:
        if selector & 0xFFFC:
            (self.ldt_mirror if selector & 4 else self.gdt_mirror).mirror(selector, self._registers)

    def _crossed(self) -> None:
        user = self._vcpu.cpl() == 3
        if user is not self._user:
            self._user = user
            self.gdt_mirror.show_user_code(user)
            self.ldt_mirror.show_user_code(user)
            self.crossed(user)

    # ------------------------------------------------------------------ system registers

    def _note_tables(self) -> None:
        self.changes += 1
        task = self._task
        self._tables = SystemTables(*self._gdt, *self._idt, task.base, task.limit, task.selector, task.attributes)

    def system_tables(self) -> SystemTables:
        """GDTR, IDTR and TR."""
        return self._tables

    def gdt(self) -> TableRegister:
        """GDTR."""
        return self._gdt

    def set_gdt(self, table: TableRegister) -> None:
        """LGDT."""
        self._gdt = table
        self._note_tables()
        self.gdt_mirror.load(*table, self._registers)

    def idt(self) -> TableRegister:
        """IDTR."""
        return self._idt

    def set_idt(self, table: TableRegister) -> None:
        """LIDT."""
        self._idt = table
        self._note_tables()

    def ldt_segment(self) -> Segment:
        """LDTR."""
        return self._ldt

    def set_ldt(self, segment: Segment) -> None:
        """LLDT."""
        self._ldt = segment
        self._load_ldt()

    def _load_ldt(self) -> None:
        self.changes += 1
        ldt = self._ldt
        self.ldt_mirror.load(ldt.base, ldt.limit if ldt.selector & 0xFFFC else 0, self._registers)

    def task_segment(self) -> Segment:
        """TR."""
        return self._task

    def set_task(self, segment: Segment) -> None:
        """LTR."""
        self._task = segment
        self._note_tables()

    # ------------------------------------------------------------------ control registers

    def paging(self) -> PagingRegisters:
        """What the page walker needs, of the guest's own tables."""
        return self._registers

    def cr2(self) -> int:
        """The address of the last page fault that was the guest's."""
        return self._cr2

    def set_cr2(self, value: int) -> None:
        """The faulting linear address."""
        self.changes += 1
        self._cr2 = value & 0xFFFF_FFFF

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        registers = self._registers
        return {0: registers.cr0, 2: self._cr2, 3: registers.cr3, 4: registers.cr4}[number]

    def set_control(self, number: int, value: int) -> None:
        """MOV to CR0, CR2, CR3 or CR4; raises NotEmulated when the guest leaves protected mode."""
        self.changes += 1
        if number == 2:
            self._cr2 = value
            return
        before = self._registers
        if number == 0:
            self._require_protected_mode(value)
            self._registers = before._replace(cr0=value)
        elif number == 3:
            self._registers = before._replace(cr3=value)
        else:
            self._registers = before._replace(cr4=value)
        words = self._vcpu.words
        words[layout.WORD_CR0], words[layout.WORD_CR4] = self._physical_cr0(), self._physical_cr4()
        self._vcpu.refresh_mode()
        translation = CR0_PG | CR0_WP if number == 0 else 0xFFFF_FFFF
        if number == 3 or (before.cr0 ^ self._registers.cr0 | before.cr4 ^ self._registers.cr4) & translation:
            self._load()

    def set_efer(self, value: int) -> None:
        """WRMSR to EFER: NXE decides what bit 63 of the guest's entries means."""
        self._registers = self._registers._replace(efer=value)
        self._load()

    def invalidate(self, linear: int) -> None:
        """INVLPG."""
        self._paging.invalidate(linear)
        self._check_mirrors()
        self.remapped()

    def _load(self) -> None:
        self._paging.load(self._registers)
        self._vcpu.quads[layout.QUAD_CR + 3] = self._paging.root
        self._check_mirrors()
        self.remapped()

    def _check_mirrors(self) -> None:
        self.gdt_mirror.check(self._registers)
        self.ldt_mirror.check(self._registers)

    def _physical_cr0(self) -> int:
        return _CR0_FIXED | self._registers.cr0 & _CR0_OF_GUEST

    def _physical_cr4(self) -> int:
        keys = CR4_PKE if self.protects_keys and not self._user else 0
        return CR4_PAE | keys | self._registers.cr4 & _CR4_OF_GUEST

    def show_keys(self) -> None:
        """Put protection keys in force, or out of it, as the privilege level wants."""
        self._vcpu.words[layout.WORD_CR4] = self._physical_cr4()

    @staticmethod
    def _require_protected_mode(cr0: int) -> None:
        if not cr0 & CR0_PE:
            raise NotEmulated(
                "mode trap cannot run real mode, because a CPU has no privilege levels there; use --mode native or bt"
            )


def _require_another_ring(code: Segment) -> None:
    if code.attributes & _DPL == _DPL_1:
        raise NotEmulated("the guest goes to ring 1, where mode trap already runs its kernel; use --mode native")


def _lower(segment: Segment, index: int) -> Segment:
    """Ring 0 becomes ring 1."""
    selector, base, limit, attributes = segment
    if attributes & (ATTRIBUTE_S | _DPL) == ATTRIBUTE_S:
        attributes |= _DPL_1
    if index in (CS, SS) and not selector & 3 and selector:
        selector |= 1
    return Segment(selector, base, limit, attributes & ~ATTRIBUTE_LONG)


def _raise(segment: Segment, index: int) -> Segment:
    """Ring 1 becomes ring 0 again."""
    selector, base, limit, attributes = segment
    if index in (CS, SS) and selector & 3 == 1:
        selector &= ~3
    return Segment(selector, base, limit, attributes & ~_DPL)
