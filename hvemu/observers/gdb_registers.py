"""The register file as gdb sees it: features of i386 and amd64 targets, converted from and to a VirtualCpu.

Values are little-endian bytes. Spec: Debugging with GDB, "i386 Features"; the FXSAVE image: SDM vol. 1, 10.5.1.
"""

from functools import cached_property
from typing import Final

from hvemu.cpu.state import CS, DS, ES, FLAG_VM, FS, GPR_NAMES, GS, LONG_GPR_NAMES, SEGMENT_NAMES, SS, VirtualCpu
from hvemu.vocabulary.paging import EFER_LMA, canonical

_SEGMENTS: Final = (CS, SS, DS, ES, FS, GS)
_BASES: Final = (FS, GS)
_X87: Final = (
    ("fctrl", 0, 2), ("fstat", 2, 2), ("ftag", 4, 1), ("fiseg", 12, 2),
    ("fioff", 8, 4), ("foseg", 20, 2), ("fooff", 16, 4), ("fop", 6, 2),
)  # fmt: skip
"""x87 registers with their offset and size in the FXSAVE image; gdb's are four bytes each."""
_FLAGS: Final = {
    "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11,
    "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
_WRITABLE_FLAGS: Final = 0x003F_7FD5 & ~FLAG_VM


class RegisterFile:
    """One of the two that gdb knows, with numbers as it counts: general registers, pointer, flags, selectors, x87.

    That of 64 bits ends with the bases of FS and GS, which a kernel keeps its own data behind.
    """

    def __init__(self, architecture: str, gprs: tuple[int, ...], width: int) -> None:
        """``gprs``: the order that gdb has them in; ``width``: bytes of each."""
        self.architecture = architecture
        self._gprs, self._width = gprs, width
        self._pointer = len(gprs)
        self._flags = self._pointer + 1
        self._selectors = self._flags + 1
        self._stack = self._selectors + len(_SEGMENTS)
        self._x87 = self._stack + 8
        self._bases = self._x87 + len(_X87)
        bases = len(_BASES) if width == 8 else 0
        self.sizes: Final = (
            *((width,) * (self._pointer + 1)), *((4,) * (1 + len(_SEGMENTS))), *((10,) * 8), *((4,) * len(_X87)),
            *((8,) * bases),
        )  # fmt: skip
        """Bytes of every register, by gdb's number."""

    @cached_property
    def description(self) -> bytes:
        """The target description, in XML."""
        wide = self._width == 8
        names = LONG_GPR_NAMES if wide else GPR_NAMES
        letter, integer = ("r", "int64") if wide else ("e", "int32")
        types = {f"{letter}{name}": "data_ptr" for name in ("sp", "bp")}
        registers = [(names[index], types.get(names[index], integer)) for index in self._gprs]
        registers += [(f"{letter}ip", "code_ptr"), ("eflags", "i386_eflags")]
        registers += [(SEGMENT_NAMES[index], "int32") for index in _SEGMENTS]
        registers += [(f"st{number}", "i387_ext") for number in range(8)]
        registers += [(name, 'int" group="float') for name, _, _ in _X87]
        rows = [
            f'<reg name="{name}" bitsize="{8 * size}" type="{kind}"/>'
            for (name, kind), size in zip(registers, self.sizes, strict=False)
        ]
        flags = "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS.items())
        bases = "".join(f'<reg name="{SEGMENT_NAMES[index]}_base" bitsize="64" type="int"/>\n' for index in _BASES)
        return (
            '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n'
            f'<target version="1.0">\n<architecture>{self.architecture}</architecture>\n'
            f'<feature name="org.gnu.gdb.i386.core">\n<flags id="i386_eflags" size="4">{flags}</flags>\n'
            + "\n".join(rows)
            + "\n</feature>\n"
            + (f'<feature name="org.gnu.gdb.i386.segments">\n{bases}</feature>\n' if wide else "")
            + "</target>\n"
        ).encode()

    def shows(self, cpu: VirtualCpu) -> bool:
        """Whether it has room for all that a CPU has: not that of 32 bits for one in long mode."""
        return self._width == 8 or not cpu.efer & EFER_LMA

    def read(self, cpu: VirtualCpu) -> list[bytes]:
        """Every register by gdb's number; empty where the CPU state has no value for it."""
        numbers = [cpu.gprs[index] for index in self._gprs] + [cpu.instruction_pointer, cpu.flags]
        numbers += [cpu.segments[index].selector for index in _SEGMENTS]
        values = [number.to_bytes(size, "little") for number, size in zip(numbers, self.sizes, strict=False)]
        if cpu.fpu:
            values += [cpu.fpu[32 + 16 * index : 42 + 16 * index] for index in range(8)]
            values += [cpu.fpu[at : at + size].ljust(4, b"\0") for _, at, size in _X87]
            values[self._x87 + 2] = _full_tags(cpu.fpu).to_bytes(4, "little")
        else:
            values += [b""] * 16
        if self._width == 8:
            values += [cpu.segments[index].base.to_bytes(8, "little") for index in _BASES]
        return values

    def write(self, cpu: VirtualCpu, number: int, data: bytes) -> None:
        """Change one register of ``cpu``.

        Raises ValueError for a number or size that there is not, for a value that the CPU cannot hold as it is, for
        an x87 register without x87 state, and for a selector: a debugger cannot load the descriptor that goes with it.
        EFLAGS.VM stays for the same reason, and bases of FS and GS unless they are the MSRs of long mode.
        """
        if number >= len(self.sizes) or len(data) != self.sizes[number]:
            raise ValueError(f"register {number} does not have {len(data)} bytes")
        if data == self.read(cpu)[number]:
            return
        value = int.from_bytes(data, "little")
        if number <= self._pointer and not cpu.efer & EFER_LMA and value >> 32:
            raise ValueError("the CPU is not in long mode")
        if number < self._pointer:
            cpu.gprs[self._gprs[number]] = value
        elif number in (self._pointer, *range(self._bases, len(self.sizes))) and not canonical(value):
            raise ValueError("not a canonical address")
        elif number >= self._bases:
            if not cpu.efer & EFER_LMA:
                raise ValueError("the base is that of a descriptor")
            index = _BASES[number - self._bases]
            cpu.segments[index] = cpu.segments[index]._replace(base=value)
        elif number == self._pointer:
            cpu.instruction_pointer, cpu.halted = value, False
        elif number == self._flags:
            cpu.flags = (cpu.flags & ~_WRITABLE_FLAGS) | (value & _WRITABLE_FLAGS)
        elif number < self._stack or not cpu.fpu:
            raise ValueError(f"register {number} cannot be written")
        elif number < self._x87:
            _patch(cpu, 32 + 16 * (number - self._stack), data)
        elif number == self._x87 + 2:
            _patch(cpu, 4, bytes([sum(1 << index for index in range(8) if value >> 2 * index & 3 != 3)]))
        else:
            _, at, size = _X87[number - self._x87]
            _patch(cpu, at, data[:size])


I386: Final = RegisterFile("i386", tuple(range(8)), 4)
AMD64: Final = RegisterFile("i386:x86-64", (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16)), 8)


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


def _patch(cpu: VirtualCpu, at: int, data: bytes) -> None:
    cpu.fpu = cpu.fpu[:at] + data + cpu.fpu[at + len(data) :]
