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


class Operand(NamedTuple):
    """One operand. ``register`` is a name for kind "reg"; base and scaled (the index) are names too, or empty."""

    kind: str
    size: int
    register: str = ""
    value: int = 0
    segment: str = ""
    base: str = ""
    scaled: str = ""
    scale: int = 1


class Detailed(NamedTuple):
    """An instruction for emulation: ``operand_size`` and ``address_size`` in bytes, prefixes applied."""

    code: bytes
    mnemonic: str
    operands: tuple[Operand, ...]
    operand_size: int
    address_size: int
    repeated: bool
    modrm_at: int = 0
    """Offset of the ModR/M byte, 0 if there is none."""
    displacement_at: int = 0
    displacement_size: int = 0


@lru_cache(maxsize=65536)
def decode_operands(code: bytes, bits: int) -> Detailed | None:
    """The first instruction of ``code`` with its operands, or None for rubbish. A displacement is in ``value``."""
    from capstone import x86

    engine = _detailed(bits)
    for found in engine.disasm(code, 0, 1):
        operands = []
        for operand in found.operands:
            name = found.reg_name
            if operand.type == x86.X86_OP_REG:
                operands.append(Operand("reg", operand.size, name(operand.reg)))
            elif operand.type == x86.X86_OP_IMM:
                operands.append(Operand("imm", operand.size, value=operand.imm))
            else:
                mem = operand.mem
                operands.append(
                    Operand(
                        "mem",
                        operand.size,
                        value=mem.disp,
                        segment=name(mem.segment) or "",
                        base=name(mem.base) or "",
                        scaled=name(mem.index) or "",
                        scale=mem.scale,
                    )
                )
        prefixes = bytes(found.prefix)
        wide = (bits != 16) != (prefixes[2] == 0x66)
        size = 8 if found.rex & 8 else 4 if wide else 2
        mnemonic = found.mnemonic.split()[-1]
        repeated = _repeats(bytes(found.bytes), bits)
        encoding = found.encoding
        return Detailed(
            bytes(found.bytes),
            mnemonic,
            tuple(operands),
            size,
            found.addr_size,
            repeated,
            encoding.modrm_offset,
            encoding.disp_offset,
            encoding.disp_size,
        )
    return None


_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_STRING_OPERATIONS = frozenset(b"\x6c\x6d\x6e\x6f\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf")


def _repeats(code: bytes, bits: int) -> bool:
    """Whether it is a string operation with F2 or F3; MOVS with F2 repeats too, which capstone does not say."""
    opcode = next(index for index, byte in enumerate(code) if byte not in _PREFIXES)
    if bits == 64 and code[opcode] & 0xF0 == 0x40 and opcode + 1 < len(code):
        opcode += 1  # REX
    return code[opcode] in _STRING_OPERATIONS and any(byte in (0xF2, 0xF3) for byte in code[:opcode])


@lru_cache(maxsize=4)
def _detailed(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.detail = True
    return engine


def describe(code: bytes, bits: int, address: int) -> str:
    """Text for a sentence: the instruction, or its bytes when it is rubbish."""
    found = decode(code, bits, address)
    if found is None:
        return f"undecodable bytes {code[:4].hex(' ')}" if code else "unreadable code"
    return f"'{found}'"


def signed_word(value: int) -> int:
    """The operand of RET as the engine takes it: with a sign, which no CPU does, but all modes must do the same."""
    value &= 0xFFFF
    return value - 0x1_0000 if value & 0x8000 else value
