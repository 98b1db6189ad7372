"""Where the engine keeps its registers, and the proof at start-up that it is the engine we know.

Unicorn's register functions cost two microseconds a register; its CPU state is plain memory, laid out as measured for
version 2.1.4. ``find_cpu_state`` locates that memory by a pattern of known values, without ever touching an
address that may not be readable, and ``calibrate`` refuses to go on when one known value is not where it
should be.
"""

import ctypes
import os
import struct
from typing import Any, Final

from hvemu.engine import binding
from hvemu.vocabulary.errors import HvemuError

KNOWN_VERSION: Final = "2.1.4"
STATE_SIZE: Final = 5568

# 64-bit indices into the CPU state
QUAD_EIP: Final = 16
QUAD_EFLAGS: Final = 17
QUAD_CC_DESTINATION: Final = 18
QUAD_CC_SOURCE: Final = 19
QUAD_CR: Final = 53
QUAD_EFER: Final = 74
QUAD_STAR: Final = 603
QUAD_KERNEL_GS_BASE: Final = 608
# 32-bit indices
WORD_EIP: Final = 32
WORD_EFLAGS: Final = 34
WORD_CC_SOURCE: Final = 38
WORD_CC_OPERATION: Final = 42
WORD_DIRECTION: Final = 43
WORD_HFLAGS: Final = 44
WORD_HFLAGS2: Final = 45
WORD_CR0: Final = 106
WORD_CR4: Final = 114
WORD_PKRU: Final = 1326
WORD_ERROR_CODE: Final = 1346
WORD_IS_SOFTWARE: Final = 1347
WORD_OLD_EXCEPTION: Final = 1374
HFLAG_LMA: Final = 1 << 14
HFLAG_CS64: Final = 1 << 15
# bytes
BYTE_SEGMENTS: Final = 184
BYTE_LDT: Final = 328
BYTE_TR: Final = 352
BYTE_GDT: Final = 376
BYTE_IDT: Final = 400
QUADS_OF_MSRS: Final = {
    0x174: 600, 0x175: 601, 0x176: 602, 0xC000_0081: 603, 0xC000_0082: 605, 0xC000_0083: 606, 0xC000_0084: 607,
    0xC000_0102: 608,
}  # fmt: skip
"""MSR index -> 64-bit index, for those that the engine's own instructions use."""
BYTE_INTERCEPT: Final = 5520
SEGMENT_FORMAT: Final = struct.Struct("<IxxxxQII")
SEGMENT_STRIDE: Final = 24
CC_OP_EFLAGS: Final = 1
ARITHMETIC_FLAGS: Final = 0x8D5

_SCAN: Final = 40_000


class UnknownEngineError(HvemuError):
    """The installed Unicorn is not the one that hvemu was measured on."""


def find_cpu_state(uc: Any) -> int:
    """The address of the engine's CPU state (``CPUX86State``); raises UnknownEngineError.

    Memory is probed through a pipe: write(2) refuses an address it cannot read instead of ending the process.
    """
    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    numbers = [getattr(binding.registers, f"UC_X86_REG_{name}") for name in names]
    values = [0x5A17_C0DE_0000_1000 + 0x0101 * index for index in range(8)]
    for number, value in zip(numbers, values, strict=True):
        uc.reg_write(number, value)
    pattern = struct.pack("<8Q", *values)
    try:
        with _MemoryProbe() as probe:
            seen = set()
            engine = probe.read(binding.handle_value(uc), 2048)
            for (pointer,) in struct.iter_unpack("<Q", engine[: len(engine) & ~7]):
                if pointer < 0x10000 or pointer >> 47 or pointer in seen:
                    continue
                seen.add(pointer)
                content, offset = probe.read(pointer, _SCAN), -1
                while (offset := content.find(pattern, offset + 1)) >= 0:
                    if _follows(uc, probe, pointer + offset, numbers[0], values[0]):
                        return int(pointer + offset)
    finally:
        for number in numbers:
            uc.reg_write(number, 0)
    raise UnknownEngineError(_advice("its CPU state was not found in memory"))


def _follows(uc: Any, probe: "_MemoryProbe", address: int, number: int, value: int) -> bool:
    """Whether the memory at ``address`` is the live register, not an old copy of the pattern."""
    uc.reg_write(number, value ^ 0xFF)
    found = probe.read(address, 8) == struct.pack("<Q", value ^ 0xFF)
    uc.reg_write(number, value)
    return found


def calibrate(uc: Any, state: memoryview) -> None:
    """Check known values against the layout above; raises UnknownEngineError with a sentence."""
    quads, words = state.cast("Q"), state.cast("I")
    registers = binding.registers
    for name, quad, value in (
        ("RIP", QUAD_EIP, 0x1122_3344),
        ("CR2", QUAD_CR + 2, 0x0BAD_F00D),
        ("CR3", QUAD_CR + 3, 0x0012_3000),
    ):
        number = getattr(registers, f"UC_X86_REG_{name}")
        before = uc.reg_read(number)
        uc.reg_write(number, value)
        if quads[quad] != value:
            raise UnknownEngineError(_advice(f"{name} is not where it should be"))
        uc.reg_write(number, before)
    for number, quad in ((0xC000_0081, QUAD_STAR), (0xC000_0102, QUAD_KERNEL_GS_BASE)):
        before = quads[quad]
        uc.reg_write(registers.UC_X86_REG_MSR, (number, 0x1234_5678_9ABC_DEF0))
        if quads[quad] != 0x1234_5678_9ABC_DEF0:
            raise UnknownEngineError(_advice(f"MSR {number:#x} is not where it should be"))
        quads[quad] = before
    uc.reg_write(registers.UC_X86_REG_GDTR, (0, 0x1234_5000, 0x678, 0))
    if SEGMENT_FORMAT.unpack_from(state, BYTE_GDT)[1:3] != (0x1234_5000, 0x678):
        raise UnknownEngineError(_advice("GDTR is not where it should be"))
    uc.reg_write(registers.UC_X86_REG_EFLAGS, 0x2 | 0x400 | 0x8D5)
    if words[WORD_CC_SOURCE] & ARITHMETIC_FLAGS != 0x8D5 or words[WORD_DIRECTION] != 0xFFFF_FFFF:
        raise UnknownEngineError(_advice("EFLAGS are not kept as expected"))
    words[WORD_CC_OPERATION] = CC_OP_EFLAGS
    words[WORD_CC_SOURCE] = 0x41
    words[WORD_DIRECTION] = 1
    if uc.reg_read(registers.UC_X86_REG_EFLAGS) & (ARITHMETIC_FLAGS | 0x400) != 0x41:
        raise UnknownEngineError(_advice("EFLAGS written to its state do not come back"))


def _advice(what: str) -> str:
    return (
        f"This Unicorn is not the engine hvemu knows: {what}. "
        f"Install the pinned version with: pip install unicorn=={KNOWN_VERSION}"
    )


class _MemoryProbe:
    """Reads memory of this process that may not be mapped."""

    def __enter__(self) -> "_MemoryProbe":
        self._read_end, self._write_end = os.pipe()
        self._library = ctypes.CDLL(None, use_errno=True)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read_end)
        os.close(self._write_end)

    def read(self, address: int, length: int) -> bytes:
        """As many bytes from ``address`` as are readable, at most ``length``."""
        pieces = []
        while length > 0:
            chunk = min(4096 - (address & 4095), length)
            done = self._library.write(self._write_end, ctypes.c_void_p(address), ctypes.c_size_t(chunk))
            if done <= 0:
                break
            pieces.append(os.read(self._read_end, done))
            address += done
            length -= done
        return b"".join(pieces)
