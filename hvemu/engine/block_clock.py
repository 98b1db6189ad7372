"""The block clock: counts guest code bytes natively and stops the engine before a block that exceeds the budget.

Used by the vCPU alone. A dozen bytes of machine code, called by the engine at every block, subtract the block's size
from a budget; when it turns negative they tail-call ``uc_emu_stop``, so the refused block does not run. In window mode
(``bias`` not 0) a block is also refused when EFLAGS.IF is set: that is how an interrupt window is found without
looking at every instruction. Hosts other than x86-64 System V use a Python callback with the same rules, twenty
times slower.
"""

import ctypes
import mmap
import platform
import sys

from hvemu.engine import binding

# block:  mov edx,edx / mov rax,rsi / sub rax,[rcx+128] / cmp rax,[rcx+136] / jb cache
#         mov rax,rsi / sub rax,[rcx+24] / cmp rax,[rcx+16] / jb inside
# charge: mov [rcx+16],rdx / mov [rcx+24],rsi / sub [rcx],rdx / js slow / ret
# inside: lea r8,[rax+rdx] / cmp r8,[rcx+16] / jae charge                                (see _restarted)
#         sub rax,[rcx+16] / sub [rcx],rax / jmp charge
# slow:   mov rax,[rcx+40] / test rax,rax / jz stop / add rax,[rcx] / js stop
#         mov rax,[rcx+32] / test dword [rax],0x200 / jnz stop / ret
# cache:  mov [rcx+16],rdx / mov [rcx+24],rsi / mov r8,[rcx+144] / add rdx,rax           (see translation_cache)
#         mov r9d,[r8+rdx*4] / sub r9d,[r8+rax*4] / sub [rcx],r9 / js late / ret
# late:   mov r8,[rcx+40] / test r8,r8 / jz stop / add r8,[rcx] / js stop / cmp rax,[rcx+152] / jae stop / ret
# stop:   mov rax,[rcx+32] / mov eax,[rax] / mov [rcx+48],rax
#         jmp [rcx+8]                        (uc_emu_stop; the engine's handle is still the first argument)
_BLOCK_CODE = bytes.fromhex(
    "89d24889f0482b8180000000483b818800000072494889f0482b4118483b4110720e48895110488971184829117814c3"
    "4c8d04104c3b411073e8482b4110482901ebdf488b41284885c0744a4803017845488b4120f700000200007539c34889"
    "5110488971184c8b81900000004801c2458b0c90452b0c804c29097801c34c8b41284d85c0740f4c0301780a483b8198"
    "0000007301c3488b41208b0048894130ff6108"
)
# RDTSC:  cmp qword [rsi+96],0 / jz python / mov r8,[rsi+64] / test byte [r8+176],2 / jnz python      (not in ring 3)
#         mov rax,[rsi+24] / add rax,[rsi+16] / mov rcx,[r8+216] / add rcx,[r8+128] / sub rax,rcx     (block end - EIP)
#         cmp rax,[rsi+16] / jbe tail / xor eax,eax / jmp have
# tail:   mov r9,rcx / sub r9,[rsi+128] / cmp r9,[rsi+136] / jae have                         (in a translation cache)
#         mov r10,[rsi+144] / add rax,r9 / mov eax,[r10+rax*4] / sub eax,[r10+r9*4]
# have:   mov rdx,[rsi+104] / add rdx,[rsi+56] / sub rdx,[rsi] / sub rdx,[rsi+40] / sub rdx,rax       (position)
#         imul rdx,[rsi+112] / add rdx,[rsi+72] / mov eax,edx / mov [r8],rax / shr rdx,32 / mov [r8+16],rdx
#         inc qword [rsi+80] / mov eax,1 / ret
# python: jmp [rsi+88]
_TSC_CODE = bytes.fromhex(
    "48837e60000f84880000004c8b464041f680b000000002757a488b461848034610498b88d80000004903888000000048"
    "29c8483b4610760431c0eb254989c94c2b8e800000004c3b8e8800000073124c8b96900000004c01c8418b0482432b04"
    "8a488b566848035638482b16482b56284829c2480faf56704803564889d049890048c1ea204989501048ff4650b80100"
    "0000c3ff6658"
)
# code:   mov rax,[rcx+32] / and dword [rax],~0xcd5      (the engine stores all flags there before a code hook; PUSHF
#                                                         would mix them into those it computes later)
#         mov rax,rsi / sub rax,[rcx+128] / cmp rax,[rcx+136] / jae count
#         add rax,[rcx+144] / movzx eax,byte [rax] / sub [rcx],rax / jmp check
# count:  sub qword [rcx],1
# check:  js stop / ret
# stop:   jmp [rcx+8]
_CODE_CODE = bytes.fromhex(
    "488b412081202af3ffff4889f0482b8180000000483b8188000000730f480381900000000fb600482901eb04488329017801c3ff6108"
)
_SPLIT_FLAGS = 0xCD5
WINDOW_BIAS = 1 << 62
_FOREVER = (1 << 61) - 1
_U64 = (1 << 64) - 1


def native_clock_supported() -> bool:
    """Whether this host runs the native callbacks: x86-64 with the System V calling convention."""
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "win32"


(
    BUDGET, STOP_FUNCTION, SIZE, ADDRESS, EFLAGS_ADDRESS, BIAS, EFLAGS, LOADED, STATE_ADDRESS, TSC_OFFSET, TSC_COUNT,
    TSC_CALLBACK, TSC_NATIVE, RETIRED, TSC_SCALE, _, CACHE_BASE, CACHE_SIZE, CACHE_WEIGHTS, CACHE_ENABLED,
) = range(20)  # fmt: skip
"""Indices of the 64-bit cells that the machine code and Python share."""


def _cells() -> memoryview:
    cells = memoryview(bytearray(256)).cast("q")
    cells[STOP_FUNCTION] = binding.callback_address(binding.library.uc_emu_stop)
    return cells


def _address(cells: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(cells))


class BlockClock:
    """Budget in guest code bytes for one engine. ``eflags_address`` is where the engine keeps EFLAGS.IF."""

    def __init__(self, handle: int, eflags_address: int, *, native: bool | None = None) -> None:
        self.native = native_clock_supported() if native is None else native
        self.cells = _cells()
        self.installed = False
        """Whether the engine's blocks are charged at all."""
        self._handle = handle
        self.cells[EFLAGS_ADDRESS] = eflags_address
        self._flags = ctypes.c_uint32.from_address(eflags_address)
        self._weights = memoryview(b"").cast("I")
        self._cache_base = self._cache_size = 0
        if self.native:
            self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._code.write(_BLOCK_CODE)
            self._callback_address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        else:
            self._callback = binding.BLOCK_CALLBACK(self._python_block)
            self._callback_address = binding.callback_address(self._callback)

    def install(self) -> None:
        """Hook every block of the engine."""
        self.installed = True
        binding.add_hook(
            self._handle, binding.constants.UC_HOOK_BLOCK, self._callback_address, _address(self.cells), 1, 0
        )

    def answer_rdtsc(self, callback: object, state_address: int, scale: int) -> None:
        """Answer RDTSC in kernels natively with ``(position * scale) + offset``, where ``set_tsc`` allows it.

        ``callback`` answers everywhere else; ``state_address`` is the engine's CPU state.
        """
        address = binding.callback_address(callback)
        cells = self.cells
        cells[STATE_ADDRESS], cells[TSC_CALLBACK], cells[TSC_SCALE] = state_address, address, scale
        if self.native:
            self._tsc_code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._tsc_code.write(_TSC_CODE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._tsc_code))
        number = binding.registers.UC_X86_INS_RDTSC
        binding.add_hook(self._handle, binding.constants.UC_HOOK_INSN, address, _address(cells), 1, 0, number)

    def set_tsc(self, retired: int, offset: int, *, native: bool) -> None:
        """Before a run: the position it starts at, the counter's offset, and whether to answer natively."""
        cells = self.cells
        cells[RETIRED], cells[TSC_OFFSET], cells[TSC_NATIVE] = retired, offset, native

    def move_tsc(self, offset: int) -> None:
        """During a run: the counter's offset has changed."""
        self.cells[TSC_OFFSET] = offset

    def watch_cache(self, base: int, size: int, weights: memoryview, enabled: int) -> None:
        """Charge blocks of a translation cache, ``size`` bytes at linear address ``base``, by guest code bytes.

        ``weights`` has a 32-bit number for every byte of the cache, and one more: guest code bytes up to there. In
        window mode a block at offset ``enabled`` or beyond is refused: the guest has interrupts enabled there.
        """
        cells = self.cells
        self._weights, self._cache_base, self._cache_size = weights, base, size
        cells[CACHE_BASE], cells[CACHE_SIZE], cells[CACHE_ENABLED] = base, size, enabled
        cells[CACHE_WEIGHTS] = ctypes.addressof(ctypes.c_char.from_buffer(weights))

    def weight(self, start: int, end: int) -> int:
        """Guest code bytes between two linear addresses of one block."""
        at = start - self._cache_base
        if 0 <= at < self._cache_size:
            return (self._weights[end - self._cache_base] - self._weights[at]) & 0xFFFF_FFFF
        return end - start

    def take_tsc_count(self) -> int:
        """How many RDTSC were answered natively since the last call."""
        count, self.cells[TSC_COUNT] = self.cells[TSC_COUNT], 0
        return count

    def load(self, budget: int, *, window: bool = False) -> None:
        """Allow ``budget`` bytes from now on; in window mode also refuse a block that starts with IF set."""
        budget = min(budget, _FOREVER)
        cells = self.cells
        cells[LOADED] = budget
        cells[SIZE] = 0
        cells[BIAS] = WINDOW_BIAS if window else 0
        cells[BUDGET] = budget - WINDOW_BIAS if window else budget

    def open_window(self) -> None:
        """Switch a running budget to window mode."""
        cells = self.cells
        if not cells[BIAS]:
            cells[BIAS] = WINDOW_BIAS
            cells[BUDGET] -= WINDOW_BIAS

    def in_window_mode(self) -> bool:
        """Whether blocks that start with IF set are refused."""
        return self.cells[BIAS] != 0

    def remaining(self) -> int:
        """Bytes left; negative once a block has been refused for want of budget."""
        cells = self.cells
        return cells[BUDGET] + cells[BIAS]

    def consumed(self) -> int:
        """Bytes charged since ``load``, the refused block included."""
        cells = self.cells
        return cells[LOADED] - cells[BUDGET] - cells[BIAS]

    def block(self) -> tuple[int, int]:
        """Linear address and size of the block entered or refused last; size 0 if there was none since ``load``."""
        cells = self.cells
        return cells[ADDRESS] & _U64, cells[SIZE]

    def refused_eflags(self) -> int:
        """The engine's EFLAGS, without the arithmetic bits, where a block was refused."""
        return self.cells[EFLAGS]

    def shorten(self, amount: int) -> None:
        """Take ``amount`` bytes from the budget without charging them."""
        self.cells[BUDGET] -= amount
        self.cells[LOADED] -= amount

    def refund(self, amount: int) -> None:
        """Give back the last ``amount`` bytes of the current block, which were charged but not executed."""
        self.cells[BUDGET] += amount
        self.cells[SIZE] -= min(amount, self.cells[SIZE])

    def refuse_next(self) -> None:
        """Make the next block boundary the last, whatever the budget: the charge so far stays right."""
        left = self.remaining()
        self.cells[BIAS] = 0
        self.cells[BUDGET] = -1
        self.cells[LOADED] -= left + 1

    def _python_block(self, _engine: int, address: int, size: int, _data: int) -> None:
        cells = self.cells
        in_cache = 0 <= address - self._cache_base < self._cache_size
        last = cells[ADDRESS] & _U64
        if not in_cache and _restarted(last, cells[SIZE], address, size):
            cells[BUDGET] += last + cells[SIZE] - address
        cells[SIZE], cells[ADDRESS] = size, address - (address >> 63 << 64)  # the cells are signed
        budget = cells[BUDGET] = cells[BUDGET] - self.weight(address, address + size)
        enabled = address - self._cache_base >= cells[CACHE_ENABLED] if in_cache else bool(self._flags.value & 0x200)
        if budget >= 0 or (cells[BIAS] and budget + cells[BIAS] >= 0 and not enabled):
            return
        cells[EFLAGS] = self._flags.value
        binding.library.uc_emu_stop(ctypes.c_void_p(self._handle))


def _restarted(address: int, size: int, next_address: int, next_size: int) -> bool:
    """Whether a block was left in its middle to start again there, because it stored into itself.

    The engine then runs the store alone; its block lies inside the one before and ends earlier. A jump back to one's
    own block, or into it, ends where that block ends.
    """
    return address <= next_address and next_address + next_size < address + size


class InstructionCounter:
    """Counts instructions natively, on demand: a hook on every instruction, with a budget of its own."""

    def __init__(self, handle: int, eflags_address: int, *, native: bool | None = None) -> None:
        self.native = native_clock_supported() if native is None else native
        self.cells = _cells()
        self._handle = handle
        self.cells[EFLAGS_ADDRESS] = eflags_address
        self._flags = ctypes.c_uint32.from_address(eflags_address)
        self._loaded = 0
        self._starts = memoryview(b"")
        self.total = 0
        """Instructions started before the last ``load``."""
        if self.native:
            self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._code.write(_CODE_CODE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        else:
            self._callback = binding.BLOCK_CALLBACK(self._python_code)
            address = binding.callback_address(self._callback)
        binding.add_hook(handle, binding.constants.UC_HOOK_CODE, address, _address(self.cells), 1, 0)
        self.load(_FOREVER)

    def watch_cache(self, base: int, size: int, starts: memoryview) -> None:
        """Count in a translation cache only where ``starts`` has a 1: where a guest instruction begins."""
        cells = self.cells
        self._starts = starts
        cells[CACHE_BASE], cells[CACHE_SIZE] = base, size
        cells[CACHE_WEIGHTS] = ctypes.addressof(ctypes.c_char.from_buffer(starts))

    def load(self, budget: int) -> None:
        """Allow ``budget`` instructions; the next one is not started."""
        self.total = self.count()
        self._loaded = min(budget, _FOREVER)
        self.cells[BUDGET] = self._loaded

    def go_on_from(self, other: "InstructionCounter") -> None:
        """Count what another one has counted, and allow what it still allows."""
        self.load(other.cells[BUDGET])
        self.total = other.count()

    def suspend(self) -> int:
        """Count nothing, whatever runs, until ``resume`` is given what this returns."""
        budget, self.cells[BUDGET] = self.cells[BUDGET], _FOREVER
        return int(budget)

    def resume(self, budget: int) -> None:
        """Go on counting."""
        self.cells[BUDGET] = budget

    def count(self) -> int:
        """Instructions started so far, those that faulted taken back."""
        return int(self.total + self._loaded - max(self.cells[BUDGET], 0))

    def exhausted(self) -> bool:
        """Whether the budget refused an instruction."""
        return self.cells[BUDGET] < 0

    def rewind(self, count: int) -> None:
        """What was started after ``count`` instructions did not happen."""
        self.cells[BUDGET] = max(self.cells[BUDGET], 0) + self.count() - count

    def take_back(self) -> None:
        """The instruction just started did not retire."""
        self.total -= 1

    def _python_code(self, _engine: int, address: int, _size: int, _data: int) -> None:
        self._flags.value &= ~_SPLIT_FLAGS
        at = address - self.cells[CACHE_BASE]
        self.cells[BUDGET] -= self._starts[at] if 0 <= at < self.cells[CACHE_SIZE] else 1
        if self.cells[BUDGET] < 0:
            binding.library.uc_emu_stop(ctypes.c_void_p(self._handle))
