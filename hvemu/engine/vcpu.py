"""The physical CPU: one Unicorn engine, its register file as plain memory, its memory map and its hooks.

Used by modes and benchmarks. It knows nothing of devices, guests or virtual time. Addresses given to ``map_*`` are
machine-physical. Every callback given to ``on_*`` runs inside the engine; an exception in one stops the engine and
is raised by ``run``.
"""

import ctypes
import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from unicorn import Uc, UcError

from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    ATTRIBUTE_LONG,
    ATTRIBUTE_MASK,
    CS,
    DS,
    ES,
    FLAG_DF,
    FLAG_VM,
    SS,
    Segment,
    SystemTables,
    TableRegister,
)
from hvemu.engine import binding, layout
from hvemu.engine.block_clock import BlockClock
from hvemu.vocabulary.paging import CR0_PE, CR0_PG, CR4_OSFXSR, EFER_LMA, EFER_LME, PagingRegisters

CPU_MODELS = {
    "conroe": "CONROE", "penryn": "PENRYN", "nehalem": "NEHALEM", "westmere": "WESTMERE",
    "sandybridge": "SANDYBRIDGE", "ivybridge": "IVYBRIDGE", "haswell": "HASWELL", "broadwell": "BROADWELL",
    "skylake-client": "SKYLAKE_CLIENT", "skylake-server": "SKYLAKE_SERVER", "opteron-g1": "OPTERON_G1",
    "opteron-g2": "OPTERON_G2", "opteron-g3": "OPTERON_G3", "opteron-g4": "OPTERON_G4", "opteron-g5": "OPTERON_G5",
    "epyc": "EPYC", "pentium3": "PENTIUM3", "core2duo": "CORE2DUO", "phenom": "PHENOM", "qemu32": "QEMU32",
}  # fmt: skip
"""Names as QEMU spells them, in lower case, to the engine's models."""

_BYTE_CS = layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * CS
_BYTE_SS = layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * SS
_WORD_SELECTOR_CS = _BYTE_CS // 4
_WORD_ATTRIBUTES_CS = _BYTE_CS // 4 + 5
_WORD_ATTRIBUTES_SS = _BYTE_SS // 4 + 5
_QUAD_BASE_CS = _BYTE_CS // 8 + 1
_QUAD_BASE_ES, _QUAD_BASE_SS, _QUAD_BASE_DS = (
    (layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * index) // 8 + 1 for index in (ES, SS, DS)
)
_QUAD_CR3 = layout.QUAD_CR + 3
_U64 = (1 << 64) - 1
_KNOWN = 65536
_NOT_SPLIT = ~(layout.ARITHMETIC_FLAGS | FLAG_DF) & 0xFFFF_FFFF
_HF_INHIBIT_IRQ = 1 << 3
_HF_KEPT = ~((3 << 0) | (1 << 4) | (1 << 5) | (1 << 6) | (1 << 7) | (7 << 9) | (3 << 14) | (1 << 22)) & 0xFFFF_FFFF
_ALIVE: WeakSet["Vcpu"] = WeakSet()
_MANY = 16
_most = [_MANY]
_MODEL_STATE = ("FPCW", 0x37F), ("FPSW", 0), ("FPTAG", 0xFFFF), ("MXCSR", 0x1F80)


class EngineError(Exception):
    """The engine ended a run with one of Unicorn's own errors; ``number`` and its text."""

    def __init__(self, number: int) -> None:
        super().__init__(str(UcError(number)))
        self.number = number

    def is_fetch(self) -> bool:
        """Whether the CPU tried to execute where there is no memory."""
        constants = binding.constants
        return self.number in (constants.UC_ERR_FETCH_PROT, constants.UC_ERR_FETCH_UNMAPPED)


class Vcpu:
    """One engine. Implements CpuPort on the live register file."""

    def __init__(self, model: str = "penryn", *, native_clock: bool | None = None) -> None:
        if (found := binding.version()) != layout.KNOWN_VERSION:
            raise layout.UnknownEngineError(
                f"Unicorn {found} is installed, but hvemu was measured on {layout.KNOWN_VERSION}. "
                f"Install it with: pip install unicorn=={layout.KNOWN_VERSION}"
            )
        _make_room(self)
        constants = binding.constants
        self._uc: Any = Uc(constants.UC_ARCH_X86, constants.UC_MODE_64)
        self._uc.ctl_set_cpu_model(getattr(binding.registers, f"UC_CPU_X86_{CPU_MODELS[model]}"))
        self.model = model
        self._handle = self.handle = binding.handle_value(self._uc)
        self._handle_argument = ctypes.c_void_p(self._handle)
        self._keep: list[Any] = []
        self._checks_all_stores = False
        self._mmio: list[tuple[int, int]] = []
        self._uc.ctl_exits_enabled(True)
        address = self._state_address = layout.find_cpu_state(self._uc)
        self._buffer = (ctypes.c_char * layout.STATE_SIZE).from_address(address)
        self.state = memoryview(self._buffer).cast("B")
        self.words = self.state.cast("I")
        self.quads = self.state.cast("Q")
        layout.calibrate(self._uc, self.state)
        self.eflags_address = address + 4 * layout.WORD_EFLAGS
        """Where the engine keeps EFLAGS, for machine code of ours."""
        self.clock = BlockClock(self._handle, self.eflags_address, native=native_clock)
        self._paging = PagingRegisters(0, 0, 0, 0)
        self._known_tables: dict[bytes, SystemTables] = {}
        self._known_segments: dict[bytes, Segment] = {}
        self.running = False
        """Whether the engine is running, which it is inside every callback."""
        self._failure: BaseException | None = None
        self._flags_value = ctypes.c_uint64()
        self._flags_argument = ctypes.byref(self._flags_value)
        self._start = binding.library.uc_emu_start
        self._stop = binding.library.uc_emu_stop
        self._reg_read = binding.library.uc_reg_read
        for name, value in _MODEL_STATE:
            self._uc.reg_write(getattr(binding.registers, f"UC_X86_REG_{name}"), value)
        self.quads[layout.QUAD_EFER] = 0  # the engine starts in long mode
        self.words[layout.WORD_OLD_EXCEPTION] = 0xFFFF_FFFF

    # ------------------------------------------------------------------ memory map

    def map_ram(self, base: int, size: int, host_address: int) -> None:
        """Map ``size`` bytes of this process at a machine-physical address, zero-copy."""
        self._uc.mem_map_ptr(base, size, binding.constants.UC_PROT_ALL, host_address)

    def unmap(self, base: int, size: int) -> None:
        """Take a range out of the memory map."""
        self._uc.mem_unmap(base, size)

    def map_mmio(
        self, base: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Send accesses of ``[base, base+size)`` to ``read(address, size)`` and ``write(address, size, value)``.

        The range has no access rights, so that the engine's protection hook runs first: that is what makes EIP and
        the flags exact inside the callbacks.
        """
        fail = self._fail

        def on_read(_engine: int, offset: int, width: int, _data: int) -> int:
            try:
                return read(base + offset, width)
            except BaseException as error:
                fail(error)
                return 0

        def on_write(_engine: int, offset: int, width: int, value: int, _data: int) -> None:
            try:
                write(base + offset, width, value)
            except BaseException as error:
                fail(error)

        reader, writer = binding.MMIO_READ_CALLBACK(on_read), binding.MMIO_WRITE_CALLBACK(on_write)
        self._keep += (reader, writer)
        error = binding.library.uc_mmio_map(
            self._handle_argument, ctypes.c_uint64(base), ctypes.c_uint64(size), reader, None, writer, None
        )
        if error:
            raise EngineError(error)
        self._uc.mem_protect(base, size, binding.constants.UC_PROT_NONE)
        self._mmio.append((base, size))

    def allow_mmio(self) -> None:
        """Let accesses to MMIO ranges through to their callbacks; call once, after mapping.

        The hooks are bounded: one over all addresses would keep every store in the engine on its slow path.
        """
        constants = binding.constants
        callback = binding.MEMORY_CALLBACK(lambda *_: True)
        for base, size in self._mmio:
            self._hook(
                constants.UC_HOOK_MEM_READ_PROT | constants.UC_HOOK_MEM_WRITE_PROT, callback, base, base + size - 1
            )

    def check_all_stores(self) -> None:
        """Have every store compared with translated code from now on, also through non-executable mappings; slow.

        The engine checks those only once for each entry of its TLB, unless a hook covers their page.
        """
        if not self._checks_all_stores:
            self._checks_all_stores = True
            self._hook(binding.constants.UC_HOOK_MEM_WRITE_PROT, binding.MEMORY_CALLBACK(lambda *_: True))
            self.forget_code()
            self.flush_tlb()

    # ------------------------------------------------------------------ hooks

    def _hook(self, kind: int, callback: Any, begin: int = 1, end: int = 0, *extra: int) -> None:
        self._keep.append(callback)
        binding.add_hook(self._handle, kind, binding.callback_address(callback), 0, begin, end, *extra)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.stop()

    def on_interrupt(self, callback: Callable[[int], None]) -> None:
        """Every exception and software interrupt, with its vector."""
        fail = self._fail

        def hook(_engine: int, vector: int, _data: int) -> None:
            try:
                callback(vector)
            except BaseException as error:
                fail(error)

        self._hook(binding.constants.UC_HOOK_INTR, binding.INTERRUPT_CALLBACK(hook))

    def on_invalid_instruction(self, callback: Callable[[], bool]) -> None:
        """#UD; return whether the guest goes on."""
        fail = self._fail

        def hook(_engine: int, _data: int) -> bool:
            try:
                return callback()
            except BaseException as error:
                fail(error)
                return False

        self._hook(binding.constants.UC_HOOK_INSN_INVALID, binding.INVALID_CALLBACK(hook))

    def on_port_in(self, callback: Callable[[int, int], int]) -> None:
        """IN and INS: ``callback(port, size)`` gives the value."""
        fail = self._fail

        def hook(_engine: int, port: int, size: int, _data: int) -> int:
            try:
                return callback(port, size)
            except BaseException as error:
                fail(error)
                return 0

        self._instruction_hook(binding.IN_CALLBACK(hook), binding.registers.UC_X86_INS_IN)

    def on_port_out(self, callback: Callable[[int, int, int], None]) -> None:
        """OUT and OUTS: ``callback(port, size, value)``."""
        fail = self._fail

        def hook(_engine: int, port: int, size: int, value: int, _data: int) -> None:
            try:
                callback(port, size, value)
            except BaseException as error:
                fail(error)

        self._instruction_hook(binding.OUT_CALLBACK(hook), binding.registers.UC_X86_INS_OUT)

    def on_instruction(self, name: str, callback: Callable[[], None]) -> None:
        """CPUID, RDTSC, RDTSCP (the callback sets the results, the engine skips its own), SYSENTER or SYSCALL.

        After the last two the engine adds the instruction's length to the instruction pointer.
        """
        self._instruction_hook(*self._instruction_callback(name, callback))

    def on_rdtsc(self, callback: Callable[[], None], scale: int) -> None:
        """RDTSC; the block clock answers natively as ``scale`` times position where it may."""
        hook, _ = self._instruction_callback("RDTSC", callback)
        self._keep.append(hook)
        self.clock.answer_rdtsc(hook, self._state_address, scale)

    def _instruction_callback(self, name: str, callback: Callable[[], None]) -> tuple[Any, int]:
        fail = self._fail
        number = getattr(binding.registers, f"UC_X86_INS_{name}")

        def hook(_engine: int, _data: int) -> int:
            try:
                callback()
            except BaseException as error:
                fail(error)
            return 1

        enters_kernel = name in ("SYSENTER", "SYSCALL")
        prototype: Any = binding.SYSENTER_CALLBACK if enters_kernel else binding.INSTRUCTION_CALLBACK
        return prototype(hook), number

    def _instruction_hook(self, callback: Any, instruction: int) -> None:
        self._hook(binding.constants.UC_HOOK_INSN, callback, 1, 0, instruction)

    def on_translation(self, callback: Callable[[int, int], None]) -> None:
        """Every newly translated block, before it runs: ``callback(linear address, size)``."""
        fail = self._fail

        def hook(_engine: int, current: Any, _previous: Any, _data: int) -> None:
            try:
                block = current[0]
                callback(block.pc, block.size)
            except BaseException as error:
                fail(error)

        self._hook(binding.constants.UC_HOOK_EDGE_GENERATED, binding.EDGE_CALLBACK(hook))

    def on_execute(self, linear: int, callback: Callable[[int], None]) -> None:
        """One instruction at a linear address, just before it executes. Flush its translation afterwards."""
        fail = self._fail

        words = self.words

        def hook(_engine: int, address: int, _size: int, _data: int) -> None:
            # The engine has stored all flags in EFLAGS for us, and would let PUSHF mix them into later ones
            words[layout.WORD_EFLAGS] &= _NOT_SPLIT
            try:
                callback(address)
            except BaseException as error:
                fail(error)

        self._hook(binding.constants.UC_HOOK_CODE, binding.BLOCK_CALLBACK(hook), linear, linear)

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run from EIP until something stops the engine; raises EngineError, or what a callback raised."""
        self._failure = None
        self.running = True
        error = self._start(
            self._handle_argument,
            ctypes.c_uint64(self.quads[layout.QUAD_EIP]),
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
            ctypes.c_size_t(0),
        )
        self.running = False
        if self._failure is not None:
            raise self._failure
        if error:
            raise EngineError(error)

    def stop(self) -> None:
        """Stop a run. From an IN, OUT or memory callback use the clock's ``refuse_next`` instead."""
        self._stop(self._handle_argument)

    def set_exits(self, addresses: list[int]) -> None:
        """Linear addresses at which freshly translated code stops before the instruction."""
        self._uc.ctl_set_exits(addresses)

    def forget_code(self) -> None:
        """Drop every translation."""
        self._uc.ctl_flush_tb()

    def forget_code_at(self, linear: int, size: int) -> None:
        """Drop the translations of ``[linear, linear+size)`` of the current address space.

        The engine translates the address as the CPU does, and would leave a page fault behind where there is none.
        """
        words, cr2 = self.words, self.quads[layout.QUAD_CR + 2]
        kept = words[layout.WORD_OLD_EXCEPTION], words[layout.WORD_ERROR_CODE], words[layout.WORD_IS_SOFTWARE]
        self._uc.ctl_remove_cache(linear, min(linear + size, _U64))
        words[layout.WORD_OLD_EXCEPTION], words[layout.WORD_ERROR_CODE], words[layout.WORD_IS_SOFTWARE] = kept
        self.quads[layout.QUAD_CR + 2] = cr2

    def flush_tlb(self) -> None:
        """Drop every cached address translation."""
        self._uc.ctl(binding.constants.UC_CTL_TLB_FLUSH, binding.constants.UC_CTL_IO_WRITE)

    def forget_exception(self) -> None:
        """The exception just reported has been dealt with; without this the next one would be a double fault."""
        words = self.words
        words[layout.WORD_OLD_EXCEPTION] = 0xFFFF_FFFF
        words[layout.WORD_IS_SOFTWARE] = 0

    def clear_exception(self) -> None:
        """Forget the exception, and end the interrupt shadow, because an event took the next instruction's place."""
        self.forget_exception()
        words = self.words
        if words[layout.WORD_HFLAGS] & _HF_INHIBIT_IRQ:
            words[layout.WORD_HFLAGS] &= ~_HF_INHIBIT_IRQ & 0xFFFF_FFFF

    # ------------------------------------------------------------------ registers (CpuPort)

    def gpr(self, index: int) -> int:
        """The lower half of a general register by its number in the encoding."""
        return self.words[index * 2]

    def set_gpr(self, index: int, value: int) -> None:
        """Set a general register, modulo 2**32: as 32-bit operations do, this clears the upper half."""
        self.quads[index] = value & 0xFFFF_FFFF

    def long_gpr(self, index: int) -> int:
        """All 64 bits of a general register."""
        return self.quads[index]

    def set_long_gpr(self, index: int, value: int) -> None:
        """Set a general register, modulo 2**64."""
        self.quads[index] = value & _U64

    def is_64_bit(self) -> bool:
        """Whether 64-bit code runs: long mode, and not its compatibility mode."""
        return bool(self.words[layout.WORD_HFLAGS] & layout.HFLAG_CS64)

    def eip(self) -> int:
        """The instruction pointer, RIP in 64-bit code; the engine does not wrap that of 32-bit code."""
        if self.words[layout.WORD_HFLAGS] & layout.HFLAG_CS64:
            return self.quads[layout.QUAD_EIP]
        return self.words[layout.WORD_EIP]

    def set_eip(self, value: int) -> None:
        """Set the instruction pointer, modulo 2**32 unless 64-bit code runs.

        Valid while stopped and inside an interrupt callback.
        """
        self.quads[layout.QUAD_EIP] = value & self.linear_mask()

    def linear_eip(self) -> int:
        """CS base plus EIP, modulo 2**32; in 64-bit code modulo 2**64."""
        return self.linear_of(self.quads[layout.QUAD_EIP])

    def linear_of(self, eip: int) -> int:
        """The linear address of code at an instruction pointer, in the present code segment."""
        return self.quads[_QUAD_BASE_CS] + eip & self.linear_mask()

    def linear_mask(self) -> int:
        """Where linear addresses of the present code wrap."""
        return _U64 if self.words[layout.WORD_HFLAGS] & layout.HFLAG_CS64 else 0xFFFF_FFFF

    def eflags(self) -> int:
        """EFLAGS with the arithmetic bits up to date.

        The engine computes CMPXCHG8B's flags from a stale operation, which leaves rubbish beyond the arithmetic bits.
        """
        words = self.words
        if words[layout.WORD_CC_OPERATION] == layout.CC_OP_EFLAGS:
            arithmetic = words[layout.WORD_CC_SOURCE]
        else:
            self._reg_read(self._handle_argument, binding.registers.UC_X86_REG_EFLAGS, self._flags_argument)
            arithmetic = self._flags_value.value
        return words[layout.WORD_EFLAGS] | arithmetic & layout.ARITHMETIC_FLAGS | words[layout.WORD_DIRECTION] & FLAG_DF

    def flags_spoiled(self) -> bool:
        """Whether a stop has mixed rubbish into EFLAGS.

        The engine computes the flags of CMPXCHG8B from a stale operation; when it stops before the next arithmetic
        instruction, it adds that value to EFLAGS, IF and all.
        """
        words = self.words
        return words[layout.WORD_CC_OPERATION] == layout.CC_OP_EFLAGS and bool(
            words[layout.WORD_CC_SOURCE] & ~layout.ARITHMETIC_FLAGS
        )

    def repair_flags(self, system_flags: int) -> None:
        """After a spoiled stop: arithmetic bits and DF from where the engine keeps them apart, others as given."""
        kept = layout.ARITHMETIC_FLAGS | FLAG_DF
        arithmetic = self.eflags() & layout.ARITHMETIC_FLAGS
        self.set_eflags(system_flags & ~kept | arithmetic | self.words[layout.WORD_DIRECTION] & FLAG_DF)

    def set_eflags(self, value: int) -> None:
        """Set EFLAGS; bit 1 is always one.

        The engine keeps the arithmetic bits and DF apart while it runs, and takes them from EFLAGS when it starts.
        """
        words = self.words
        words[layout.WORD_CC_OPERATION] = layout.CC_OP_EFLAGS
        self.quads[layout.QUAD_CC_SOURCE] = value & layout.ARITHMETIC_FLAGS
        words[layout.WORD_DIRECTION] = 0xFFFF_FFFF if value & FLAG_DF else 1
        if self.running:
            value &= ~(layout.ARITHMETIC_FLAGS | FLAG_DF)
        self.quads[layout.QUAD_EFLAGS] = value & 0xFFFF_FFFF | 2

    def interrupts_enabled(self) -> bool:
        """EFLAGS.IF, without computing the rest."""
        return bool(self.words[layout.WORD_EFLAGS] & 0x200)

    def cpl(self) -> int:
        """Current privilege level."""
        return self.words[layout.WORD_HFLAGS] & 3

    def interrupt_shadow(self) -> bool:
        """Whether STI or MOV SS inhibits interrupts for one instruction."""
        return bool(self.words[layout.WORD_HFLAGS] & _HF_INHIBIT_IRQ)

    def set_interrupt_shadow(self, value: bool) -> None:
        """Set or clear the inhibition."""
        words = self.words
        hflags = words[layout.WORD_HFLAGS] & ~_HF_INHIBIT_IRQ
        words[layout.WORD_HFLAGS] = hflags | (_HF_INHIBIT_IRQ if value else 0)

    def segment(self, index: int) -> Segment:
        """A segment register with its hidden part."""
        return self._segment_at(layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * index)

    def set_segment(self, index: int, value: Segment) -> None:
        """Load a segment register, hidden part and all; CS also sets the privilege level."""
        layout.SEGMENT_FORMAT.pack_into(self.state, layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * index, *value)
        if index <= DS:
            self.refresh_mode()

    def set_code_and_stack(self, code: Segment, stack: Segment) -> None:
        """Load CS and SS together, as event delivery does."""
        layout.SEGMENT_FORMAT.pack_into(self.state, _BYTE_CS, *code)
        layout.SEGMENT_FORMAT.pack_into(self.state, _BYTE_SS, *stack)
        self.refresh_mode()

    def _segment_at(self, offset: int) -> Segment:
        raw = self.state[offset : offset + layout.SEGMENT_STRIDE].tobytes()
        found = self._known_segments.get(raw)
        if found is None:
            selector, base, limit, attributes = layout.SEGMENT_FORMAT.unpack(raw)
            found = Segment(selector, base, limit, attributes & ATTRIBUTE_MASK)
            if len(self._known_segments) < _KNOWN:
                self._known_segments[raw] = found
        return found

    def refresh_mode(self) -> None:
        """Recompute the engine's mode bits after CR0, CR4, EFLAGS.VM, CS, SS, DS or ES were set here."""
        words, quads = self.words, self.quads
        cr0 = words[layout.WORD_CR0]
        code = words[_WORD_ATTRIBUTES_CS]
        hflags = words[layout.WORD_HFLAGS] & _HF_KEPT | (cr0 & 0xE) << 8
        if words[layout.WORD_CR4] & CR4_OSFXSR:
            hflags |= 1 << 22
        if code & ATTRIBUTE_BIG:
            hflags |= 1 << 4
        if words[_WORD_ATTRIBUTES_SS] & ATTRIBUTE_BIG:
            hflags |= 1 << 5
        if words[layout.QUAD_EFER * 2] & EFER_LMA:
            hflags |= layout.HFLAG_LMA
            if code & ATTRIBUTE_LONG:  # as in 32-bit code, and DS, ES and SS have no base
                words[layout.WORD_HFLAGS] = hflags | layout.HFLAG_CS64 | 1 << 4 | words[_WORD_SELECTOR_CS] & 3 | 1 << 7
                return
        if not cr0 & CR0_PE:
            hflags |= 1 << 6
        elif words[layout.WORD_EFLAGS] & FLAG_VM:
            hflags |= 3 | 1 << 6 | 1 << 7
        else:
            hflags |= words[_WORD_SELECTOR_CS] & 3 | 1 << 7
            if not code & ATTRIBUTE_BIG or quads[_QUAD_BASE_DS] | quads[_QUAD_BASE_ES] | quads[_QUAD_BASE_SS]:
                hflags |= 1 << 6
        words[layout.WORD_HFLAGS] = hflags

    def system_tables(self) -> SystemTables:
        """GDTR, IDTR and TR."""
        raw = self.state[layout.BYTE_TR : layout.BYTE_IDT + layout.SEGMENT_STRIDE].tobytes()
        found = self._known_tables.get(raw)
        if found is None:
            task_selector, task_base, task_limit, task_attributes = layout.SEGMENT_FORMAT.unpack_from(raw, 0)
            _, gdt_base, gdt_limit, _ = layout.SEGMENT_FORMAT.unpack_from(raw, layout.BYTE_GDT - layout.BYTE_TR)
            _, idt_base, idt_limit, _ = layout.SEGMENT_FORMAT.unpack_from(raw, layout.BYTE_IDT - layout.BYTE_TR)
            task = task_base, task_limit, task_selector, task_attributes & ATTRIBUTE_MASK
            found = SystemTables(gdt_base, gdt_limit, idt_base, idt_limit, *task)
            if len(self._known_tables) < _KNOWN:
                self._known_tables[raw] = found
        return found

    def gdt(self) -> TableRegister:
        """GDTR."""
        return self._table_at(layout.BYTE_GDT)

    def idt(self) -> TableRegister:
        """IDTR."""
        return self._table_at(layout.BYTE_IDT)

    def _table_at(self, offset: int) -> TableRegister:
        _, base, limit, _ = self._segment_at(offset)
        return TableRegister(base, limit)

    def set_tables(self, gdt: TableRegister, idt: TableRegister, ldt: Segment, task: Segment) -> None:
        """Load GDTR, IDTR, LDTR and TR."""
        self.set_gdt(gdt)
        self.set_idt(idt)
        self.set_ldt(ldt)
        self.set_task(task)

    def set_gdt(self, table: TableRegister) -> None:
        """LGDT."""
        layout.SEGMENT_FORMAT.pack_into(self.state, layout.BYTE_GDT, 0, table.base, table.limit, 0)

    def set_idt(self, table: TableRegister) -> None:
        """LIDT."""
        layout.SEGMENT_FORMAT.pack_into(self.state, layout.BYTE_IDT, 0, table.base, table.limit, 0)

    def set_ldt(self, segment: Segment) -> None:
        """LLDT."""
        layout.SEGMENT_FORMAT.pack_into(self.state, layout.BYTE_LDT, *segment)

    def set_task(self, segment: Segment) -> None:
        """LTR; of the available type, because the engine aborts on a busy one."""
        layout.SEGMENT_FORMAT.pack_into(
            self.state, layout.BYTE_TR, *segment._replace(attributes=segment.attributes & ~0x200)
        )

    def invalidate(self, linear: int) -> None:
        """INVLPG; the engine can only drop everything."""
        self.flush_tlb()

    def ldt_segment(self) -> Segment:
        """LDTR."""
        return self._segment_at(layout.BYTE_LDT)

    def task_segment(self) -> Segment:
        """TR."""
        return self._segment_at(layout.BYTE_TR)

    def paging(self) -> PagingRegisters:
        """What the page walker needs."""
        words = self.words
        now = (words[layout.WORD_CR0], self.quads[_QUAD_CR3], words[layout.WORD_CR4], words[layout.QUAD_EFER * 2])
        if now != self._paging:
            self._paging = PagingRegisters(*now)
        return self._paging

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        return int(self.quads[layout.QUAD_CR + number])

    def set_control(self, number: int, value: int) -> None:
        """Set one of them, and drop what depends on it; with EFER.LME, CR0.PG decides on long mode."""
        quads = self.quads
        quads[layout.QUAD_CR + number] = value & _U64
        efer = quads[layout.QUAD_EFER]
        if number == 0 and efer & EFER_LME and bool(efer & EFER_LMA) is not bool(value & CR0_PG):
            quads[layout.QUAD_EFER] = efer ^ EFER_LMA
            if efer & EFER_LMA:
                for index in (*range(8), layout.QUAD_EIP):  # undefined (SDM vol. 1, 3.4.1.1); here always zero
                    quads[index] &= 0xFFFF_FFFF
        if number != 2:
            ring = self.words[layout.WORD_HFLAGS] & 3  # the selector of real mode's CS does not say it
            self.refresh_mode()
            self.words[layout.WORD_HFLAGS] = self.words[layout.WORD_HFLAGS] & ~3 | ring
            self.flush_tlb()

    def load_control(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        """Load the control registers and drop what depends on them."""
        quads = self.quads
        quads[layout.QUAD_CR], quads[layout.QUAD_CR + 3], quads[layout.QUAD_CR + 4] = cr0, cr3, cr4
        quads[layout.QUAD_EFER] = efer
        self.refresh_mode()
        self.flush_tlb()

    def cr2(self) -> int:
        """The last page fault's linear address."""
        return self.quads[layout.QUAD_CR + 2]

    def set_cr2(self, value: int) -> None:
        """Set CR2."""
        self.quads[layout.QUAD_CR + 2] = value & _U64

    def error_code(self) -> int:
        """The error code of the exception being reported."""
        return self.words[layout.WORD_ERROR_CODE]

    def is_software_interrupt(self) -> bool:
        """Whether the vector being reported comes from INT n, INT3 or INTO."""
        return bool(self.words[layout.WORD_IS_SOFTWARE])

    def write_msr(self, index: int, value: int) -> None:
        """Give the engine an MSR that its own instructions use: those of SYSENTER and SYSCALL, and of SWAPGS.

        Not by the engine's function, which under SVM would exit from where there is no guest.
        """
        self.quads[layout.QUADS_OF_MSRS[index]] = value

    def kernel_gs_base(self) -> int:
        """What SWAPGS will exchange with the base of GS."""
        return self.quads[layout.QUAD_KERNEL_GS_BASE]

    def set_kernel_gs_base(self, value: int) -> None:
        """Set it."""
        self.quads[layout.QUAD_KERNEL_GS_BASE] = value

    def set_segment_base(self, index: int, value: int) -> None:
        """Move a segment: FS and GS, whose bases are MSRs."""
        self.quads[(layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * index) // 8 + 1] = value

    def save(self) -> bytearray:
        """The whole register file as an opaque value; for ``restore`` on this engine only."""
        return bytearray(self.state)

    def restore(self, saved: bytearray) -> None:
        """Put back, while stopped, what ``save`` gave."""
        self.state[:] = saved
        self.set_eflags(self.eflags())

    def read_fpu(self) -> bytes:
        """x87, MXCSR and XMM state as an FXSAVE image of 512 bytes (SDM vol. 1, 10.5.1)."""
        uc, names = self._uc, binding.registers
        image = bytearray(512)
        tags = uc.reg_read(names.UC_X86_REG_FPTAG)
        abridged = sum(1 << i for i in range(8) if (tags >> (2 * i)) & 3 != 3)
        image[0:2] = int(uc.reg_read(names.UC_X86_REG_FPCW)).to_bytes(2, "little")
        image[2:4] = int(uc.reg_read(names.UC_X86_REG_FPSW)).to_bytes(2, "little")
        image[4] = abridged
        top = uc.reg_read(names.UC_X86_REG_FPSW) >> 11
        image[24:28] = int(uc.reg_read(names.UC_X86_REG_MXCSR)).to_bytes(4, "little")
        for index in range(8):
            # The engine numbers the registers physically, the image from the top of the stack
            mantissa, exponent = uc.reg_read(names.UC_X86_REG_FP0 + (index + top & 7))
            image[32 + 16 * index : 42 + 16 * index] = mantissa.to_bytes(8, "little") + exponent.to_bytes(2, "little")
        for index in range(16):
            xmm = uc.reg_read(names.UC_X86_REG_XMM0 + index)
            image[160 + 16 * index : 176 + 16 * index] = xmm.to_bytes(16, "little")
        return bytes(image)

    def write_fpu(self, image: bytes) -> None:
        """Load an FXSAVE image; an empty one gives the reset state."""
        uc, names = self._uc, binding.registers
        if not image:
            for name, value in _MODEL_STATE:
                uc.reg_write(getattr(names, f"UC_X86_REG_{name}"), value)
            for index in range(8):
                uc.reg_write(names.UC_X86_REG_FP0 + index, (0, 0))
            for index in range(16):
                uc.reg_write(names.UC_X86_REG_XMM0 + index, 0)
            return
        tags = sum(0 if image[4] >> i & 1 else 3 << (2 * i) for i in range(8))
        uc.reg_write(names.UC_X86_REG_FPCW, int.from_bytes(image[0:2], "little"))
        uc.reg_write(names.UC_X86_REG_FPSW, int.from_bytes(image[2:4], "little"))
        uc.reg_write(names.UC_X86_REG_FPTAG, tags)
        uc.reg_write(names.UC_X86_REG_MXCSR, int.from_bytes(image[24:28], "little"))
        top = image[3] >> 3
        for index in range(8):
            at = 32 + 16 * index
            pair = (int.from_bytes(image[at : at + 8], "little"), int.from_bytes(image[at + 8 : at + 10], "little"))
            uc.reg_write(names.UC_X86_REG_FP0 + (index + top & 7), pair)
        for index in range(16):
            at = 160 + 16 * index
            uc.reg_write(names.UC_X86_REG_XMM0 + index, int.from_bytes(image[at : at + 16], "little"))


def _make_room(vcpu: Vcpu) -> None:
    """Engines are large and in a cycle with their callbacks: collect the dead ones before there are many."""
    if len(_ALIVE) >= _most[0]:
        gc.collect()
        _most[0] = max(_MANY, 2 * len(_ALIVE))
    _ALIVE.add(vcpu)
