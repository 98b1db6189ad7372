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

# block:  mov edx,edx / mov rax,rsi / sub rax,[rcx+24] / cmp rax,[rcx+16] / jb inside
# charge: mov [rcx+16],rdx / mov [rcx+24],rsi / sub [rcx],rdx / js slow / ret
# inside: lea r8,[rax+rdx] / cmp r8,[rcx+16] / jae charge                                (see _restarted)
#         sub rax,[rcx+16] / sub [rcx],rax / jmp charge
# slow:   mov rax,[rcx+40] / test rax,rax / jz stop / add rax,[rcx] / js stop
#         mov rax,[rcx+32] / test dword [rax],0x200 / jnz stop / ret
# stop:   mov rax,[rcx+32] / mov eax,[rax] / mov [rcx+48],rax
#         jmp [rcx+8]                        (uc_emu_stop; the engine's handle is still the first argument)
_BLOCK_CODE = bytes.fromhex(
    "89d24889f0482b4118483b4110720e48895110488971184829117814c34c8d04104c3b411073e8482b4110482901ebdf"
    "488b41284885c07412480301780d488b4120f700000200007501c3488b41208b0048894130ff6108"
)
# RDTSC:  cmp qword [rsi+96],0 / jz python / mov r8,[rsi+64] / test byte [r8+176],3 / jnz python       (only at CPL 0)
#         mov rax,[rsi+24] / add rax,[rsi+16] / mov ecx,[r8+216] / add ecx,[r8+128] / sub rax,rcx     (block end - EIP)
#         cmp rax,[rsi+16] / jbe tail / xor eax,eax
# tail:   mov rdx,[rsi+104] / add rdx,[rsi+56] / sub rdx,[rsi] / sub rdx,[rsi+40] / sub rdx,rax       (position)
#         imul rdx,[rsi+112] / add rdx,[rsi+72] / mov eax,edx / mov [r8],rax / shr rdx,32 / mov [r8+16],rdx
#         inc qword [rsi+80] / mov eax,1 / ret
# python: jmp [rsi+88]
_TSC_CODE = bytes.fromhex(
    "48837e600074614c8b464041f680b0000000037553488b461848034610418b88d8000000410388800000004829c8483b"
    "4610760231c0488b566848035638482b16482b56284829c2480faf56704803564889d049890048c1ea204989501048ff"
    "4650b801000000c3ff6658"
)
# code:   mov rax,[rcx+32] / and dword [rax],~0xcd5      (the engine stores all flags there before a code hook; PUSHF
#         sub qword [rcx],1 / js stop / ret                             would mix them into those it computes later)
# stop:   jmp [rcx+8]
_CODE_CODE = bytes.fromhex("488b4120 81202af3ffff 48832901 7801 c3 ff6108")
_SPLIT_FLAGS = 0xCD5
WINDOW_BIAS = 1 << 62
_FOREVER = (1 << 61) - 1


def native_clock_supported() -> bool:
    """Whether this host runs the native callbacks: x86-64 with the System V calling convention."""
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "win32"


(
    BUDGET, STOP_FUNCTION, SIZE, ADDRESS, EFLAGS_ADDRESS, BIAS, EFLAGS, LOADED, STATE_ADDRESS, TSC_OFFSET, TSC_COUNT,
    TSC_CALLBACK, TSC_NATIVE, RETIRED, TSC_SCALE,
) = range(15)  # fmt: skip
"""Indices of the 64-bit cells that the machine code and Python share."""


def _cells() -> memoryview:
    cells = memoryview(bytearray(128)).cast("q")
    cells[STOP_FUNCTION] = binding.callback_address(binding.library.uc_emu_stop)
    return cells


def _address(cells: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(cells))


class BlockClock:
    """Budget in guest code bytes for one engine. ``eflags_address`` is where the engine keeps EFLAGS.IF."""

    def __init__(self, handle: int, eflags_address: int, *, native: bool | None = None) -> None:
        self.native = native_clock_supported() if native is None else native
        self.cells = _cells()
        self._handle = handle
        self.cells[EFLAGS_ADDRESS] = eflags_address
        self._flags = ctypes.c_uint32.from_address(eflags_address)
        if self.native:
            self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._code.write(_BLOCK_CODE)
            self._callback_address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        else:
            self._callback = binding.BLOCK_CALLBACK(self._python_block)
            self._callback_address = binding.callback_address(self._callback)

    def install(self) -> None:
        """Hook every block of the engine."""
        binding.add_hook(
            self._handle, binding.constants.UC_HOOK_BLOCK, self._callback_address, _address(self.cells), 1, 0
        )

    def answer_rdtsc(self, callback: object, state_address: int, scale: int) -> None:
        """Answer RDTSC at CPL 0 natively with ``(position * scale) + offset``, where ``set_tsc`` allows it.

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
        return cells[ADDRESS], cells[SIZE]

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
        if _restarted(cells[ADDRESS], cells[SIZE], address, size):
            cells[BUDGET] += cells[ADDRESS] + cells[SIZE] - address
        cells[SIZE], cells[ADDRESS] = size, address
        budget = cells[BUDGET] = cells[BUDGET] - size
        if budget >= 0 or (cells[BIAS] and budget + cells[BIAS] >= 0 and not self._flags.value & 0x200):
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

    def load(self, budget: int) -> None:
        """Allow ``budget`` instructions; the next one is not started."""
        self.total = self.count()
        self._loaded = min(budget, _FOREVER)
        self.cells[BUDGET] = self._loaded

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

    def _python_code(self, _engine: int, _address: int, _size: int, _data: int) -> None:
        self._flags.value &= ~_SPLIT_FLAGS
        self.cells[BUDGET] -= 1
        if self.cells[BUDGET] < 0:
            binding.library.uc_emu_stop(ctypes.c_void_p(self._handle))
