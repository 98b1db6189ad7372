"""Decoding x86 instructions, by capstone. Results are cached by their bytes; capstone is imported on first use."""

from functools import lru_cache
from typing import Any, NamedTuple

MAXIMUM_LENGTH = 15


class Instruction(NamedTuple):
    """One decoded instruction: its bytes, mnemonic and operands in Intel syntax."""

    code: bytes
    mnemonic: str
    operands: str

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip()


@lru_cache(maxsize=4)
def _capstone(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])


@lru_cache(maxsize=65536)
def decode(code: bytes, bits: int, address: int = 0) -> Instruction | None:
    """The first instruction of ``code`` as ``bits``-bit code, or None for rubbish."""
    for _, size, mnemonic, operands in _capstone(bits).disasm_lite(code, address, 1):
        return Instruction(bytes(code[:size]), mnemonic, operands)
    return None


@lru_cache(maxsize=4096)
def boundaries(code: bytes, bits: int) -> list[tuple[int, str, str]]:
    """Every instruction of a straight run of code: (offset of its start, mnemonic, operands)."""
    return [(at, mnemonic, operands) for at, _, mnemonic, operands in _capstone(bits).disasm_lite(code, 0)]


def describe(code: bytes, bits: int, address: int) -> str:
    """Text for a sentence: the instruction, or its bytes when it is rubbish."""
    found = decode(code, bits, address)
    if found is None:
        return f"undecodable bytes {code[:4].hex(' ')}" if code else "unreadable code"
    return f"'{found}'"
