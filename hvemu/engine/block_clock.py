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
from typing import Any

from hvemu.engine import binding

# block:  mov edx,edx / mov [rcx+16],rdx / mov [rcx+24],rsi / sub [rcx],rdx / js slow / ret
# slow:   mov rax,[rcx+40] / test rax,rax / jz stop / add rax,[rcx] / js stop
#         mov rax,[rcx+32] / test dword [rax],0x200 / jnz stop / ret
# stop:   jmp [rcx+8]                        (uc_emu_stop; the engine's handle is still the first argument)
_BLOCK_CODE = bytes.fromhex(
    "89d2 48895110 48897118 482911 7801 c3 488b4128 4885c0 7412 480301 780d 488b4120 f70000020000 7501 c3 ff6108"
)
# code:   sub qword [rcx],1 / js stop / ret / stop: jmp [rcx+8]
_CODE_CODE = bytes.fromhex("48832901 7801 c3 ff6108")
WINDOW_BIAS = 1 << 62
_FOREVER = (1 << 61) - 1


def native_clock_supported() -> bool:
    """Whether this host runs the native callbacks: x86-64 with the System V calling convention."""
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "win32"


class _Cells(ctypes.Structure):
    _fields_ = (
        ("budget", ctypes.c_int64),
        ("stop_function", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("eflags_address", ctypes.c_uint64),
        ("bias", ctypes.c_uint64),
    )


class BlockClock:
    """Budget in guest code bytes for one engine. ``eflags_address`` is where the engine keeps EFLAGS.IF."""

    def __init__(self, handle: int, eflags_address: int, *, native: bool | None = None) -> None:
        self.native = native_clock_supported() if native is None else native
        self.cells: Any = _Cells()
        self._handle = handle
        stop = binding.callback_address(binding.library.uc_emu_stop)
        self.cells.stop_function = stop
        self.cells.eflags_address = eflags_address
        self._loaded = 0
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
            self._handle,
            binding.constants.UC_HOOK_BLOCK,
            self._callback_address,
            ctypes.addressof(self.cells),
            1,
            0,
        )

    def load(self, budget: int, *, window: bool = False) -> None:
        """Allow ``budget`` bytes from now on; in window mode also refuse a block that starts with IF set."""
        budget = min(budget, _FOREVER)
        self._loaded = budget
        cells = self.cells
        cells.size = 0
        cells.bias = WINDOW_BIAS if window else 0
        cells.budget = budget - WINDOW_BIAS if window else budget

    def open_window(self) -> None:
        """Switch a running budget to window mode."""
        cells = self.cells
        if not cells.bias:
            cells.bias = WINDOW_BIAS
            cells.budget -= WINDOW_BIAS

    def remaining(self) -> int:
        """Bytes left; negative once a block has been refused for want of budget."""
        cells = self.cells
        return int(cells.budget + cells.bias)

    def consumed(self) -> int:
        """Bytes charged since ``load``, the refused block included."""
        cells = self.cells
        return int(self._loaded - cells.budget - cells.bias)

    def shorten(self, amount: int) -> None:
        """Take ``amount`` bytes from the budget without charging them."""
        self.cells.budget -= amount
        self._loaded -= amount

    def refund(self, amount: int) -> None:
        """Give back bytes of a block that were charged but not executed."""
        self.cells.budget += amount

    def refuse_next(self) -> None:
        """Make the next block boundary the last, whatever the budget: the charge so far stays right."""
        left = self.remaining()
        self.cells.bias = 0
        self.cells.budget = -1
        self._loaded -= left + 1

    def _python_block(self, _engine: int, address: int, size: int, _data: int) -> None:
        cells = self.cells
        cells.size, cells.address = size, address
        cells.budget -= size
        if cells.budget >= 0 or (cells.bias and cells.budget + cells.bias >= 0 and not self._flags.value & 0x200):
            return
        binding.library.uc_emu_stop(ctypes.c_void_p(self._handle))


class InstructionCounter:
    """Counts instructions natively, on demand: a hook on every instruction, with a budget of its own."""

    def __init__(self, handle: int, *, native: bool | None = None) -> None:
        self.native = native_clock_supported() if native is None else native
        self.cells: Any = _Cells()
        self.cells.stop_function = binding.callback_address(binding.library.uc_emu_stop)
        self._handle = handle
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
        binding.add_hook(handle, binding.constants.UC_HOOK_CODE, address, ctypes.addressof(self.cells), 1, 0)
        self.load(_FOREVER)

    def load(self, budget: int) -> None:
        """Allow ``budget`` instructions; the next one is not started."""
        self.total = self.count()
        self._loaded = min(budget, _FOREVER)
        self.cells.budget = self._loaded

    def count(self) -> int:
        """Instructions started so far, those that faulted taken back."""
        return int(self.total + self._loaded - max(self.cells.budget, 0))

    def exhausted(self) -> bool:
        """Whether the budget refused an instruction."""
        return bool(self.cells.budget < 0)

    def take_back(self) -> None:
        """The instruction just started did not retire."""
        self.total -= 1

    def _python_code(self, _engine: int, _address: int, _size: int, _data: int) -> None:
        self.cells.budget -= 1
        if self.cells.budget < 0:
            binding.library.uc_emu_stop(ctypes.c_void_p(self._handle))
