"""The register file as gdb sees it: the feature org.gnu.gdb.i386.core, converted from and to a VirtualCpu.

Values are little-endian bytes. Spec: Debugging with GDB, "i386 Features"; the FXSAVE image: SDM vol. 1, 10.5.1.
"""

from typing import Final

from hvemu.cpu.state import CS, DS, ES, FLAG_VM, FS, GPR_NAMES, GS, SEGMENT_NAMES, SS, VirtualCpu

_SEGMENTS: Final = (CS, SS, DS, ES, FS, GS)
_X87: Final = (
    ("fctrl", 0, 2), ("fstat", 2, 2), ("ftag", 4, 1), ("fiseg", 12, 2),
    ("fioff", 8, 4), ("foseg", 20, 2), ("fooff", 16, 4), ("fop", 6, 2),
)  # fmt: skip
"""x87 registers with their offset and size in the FXSAVE image; gdb's are four bytes each."""
_FTAG: Final = 26
_FLAGS: Final = {
    "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11,
    "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
_WRITABLE_FLAGS: Final = 0x003F_7FD5 & ~FLAG_VM
SIZES: Final = (4,) * 16 + (10,) * 8 + (4,) * 8
"""Bytes of every register, by gdb's number."""


def _description() -> bytes:
    names = [*GPR_NAMES, "eip", "eflags", *(SEGMENT_NAMES[index] for index in _SEGMENTS)]
    types = {"esp": "data_ptr", "ebp": "data_ptr", "eip": "code_ptr", "eflags": "i386_eflags"}
    flags = "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS.items())
    registers = [f'<reg name="{name}" bitsize="32" type="{types.get(name, "int32")}"/>' for name in names]
    registers += [f'<reg name="st{number}" bitsize="80" type="i387_ext"/>' for number in range(8)]
    registers += [f'<reg name="{name}" bitsize="32" type="int" group="float"/>' for name, _, _ in _X87]
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n'
        '<target version="1.0">\n<architecture>i386</architecture>\n<feature name="org.gnu.gdb.i386.core">\n'
        f'<flags id="i386_eflags" size="4">{flags}</flags>\n' + "\n".join(registers) + "\n</feature>\n</target>\n"
    ).encode()


TARGET_XML: Final = _description()


def read_registers(cpu: VirtualCpu) -> list[bytes]:
    """Every register by gdb's number; empty where the CPU state has no value for it."""
    words = [*cpu.gprs, cpu.instruction_pointer, cpu.flags, *(cpu.segments[index].selector for index in _SEGMENTS)]
    values = [word.to_bytes(4, "little") for word in words]
    if not cpu.fpu:
        return values + [b""] * 16
    values += [cpu.fpu[32 + 16 * index : 42 + 16 * index] for index in range(8)]
    values += [cpu.fpu[at : at + size].ljust(4, b"\0") for _, at, size in _X87]
    values[_FTAG] = _full_tags(cpu.fpu).to_bytes(4, "little")
    return values


def _full_tags(image: bytes) -> int:
    """The x87 tag word: FXSAVE keeps only whether a register is empty (SDM vol. 1, 10.5.1.1)."""
    tags, top = 0, image[3] >> 3 & 7
    for physical in range(8):
        at = 32 + 16 * ((physical - top) & 7)
        mantissa = int.from_bytes(image[at : at + 8], "little")
        exponent = int.from_bytes(image[at + 8 : at + 10], "little") & 0x7FFF
        if not image[4] >> physical & 1:
            tag = 3
        elif exponent == 0 and mantissa == 0:
            tag = 1
        else:
            tag = 0 if mantissa >> 63 and exponent != 0x7FFF else 2
        tags |= tag << 2 * physical
    return tags


def write_register(cpu: VirtualCpu, number: int, data: bytes) -> None:
    """Change one register of ``cpu``.

    Raises ValueError for a number or size that there is not, for an x87 register without x87 state, and for a
    selector: a debugger cannot load the descriptor that goes with it. EFLAGS.VM stays for the same reason.
    """
    if number >= len(SIZES) or len(data) != SIZES[number]:
        raise ValueError(f"register {number} does not have {len(data)} bytes")
    if data == read_registers(cpu)[number]:
        return
    value = int.from_bytes(data, "little")
    if number < 8:
        cpu.gprs[number] = value
    elif number == 8:
        cpu.instruction_pointer, cpu.halted = value, False
    elif number == 9:
        cpu.flags = (cpu.flags & ~_WRITABLE_FLAGS) | (value & _WRITABLE_FLAGS)
    elif number < 16 or not cpu.fpu:
        raise ValueError(f"register {number} cannot be written")
    elif number == _FTAG:
        _patch(cpu, 4, bytes([sum(1 << index for index in range(8) if value >> 2 * index & 3 != 3)]))
    elif number < 24:
        _patch(cpu, 32 + 16 * (number - 16), data)
    else:
        _, at, size = _X87[number - 24]
        _patch(cpu, at, data[:size])


def _patch(cpu: VirtualCpu, at: int, data: bytes) -> None:
    cpu.fpu = cpu.fpu[:at] + data + cpu.fpu[at + len(data) :]
