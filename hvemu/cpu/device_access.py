"""Instructions that move data between a register and memory, taken apart for whoever does the memory's part.

A hypervisor that emulates a device in memory gets the instruction and the address of the fault from the CPU, never the
data: it has to decode (APM vol. 2, 15.8.1 and 15.25.6). MOV, MOVZX and MOVSX are what drivers use; others are not known
here.
"""

from typing import Final, NamedTuple

from hvemu.cpu.decoder import Detailed, Operand
from hvemu.cpu.privileged import GENERAL_REGISTERS, register_value, set_register
from hvemu.cpu.state import CpuPort

_SIGNED: Final = frozenset({"movsx", "movsxd"})
_LOADS: Final = frozenset({"mov", "movzx", *_SIGNED})


class DeviceAccess(NamedTuple):
    """One access: ``memory`` is the operand; ``value`` is None for a load, which goes to ``register``."""

    memory: Operand
    value: int | None
    register: str = ""
    signed: bool = False


def device_access(cpu: CpuPort, instruction: Detailed) -> DeviceAccess | None:
    """What the instruction at EIP wants of memory, if it is a plain load or store of a general register."""
    if len(instruction.operands) != 2 or instruction.mnemonic not in _LOADS or instruction.repeated:
        return None
    target, source = instruction.operands
    if source.kind == "mem" and target.register in GENERAL_REGISTERS:
        return DeviceAccess(source, None, target.register, instruction.mnemonic in _SIGNED)
    if target.kind != "mem":
        return None
    mask = (1 << 8 * target.size) - 1
    if source.kind == "imm":
        return DeviceAccess(target, source.value & mask)
    if source.register in GENERAL_REGISTERS:
        return DeviceAccess(target, register_value(cpu, source.register) & mask)
    return None


def loaded(cpu: CpuPort, access: DeviceAccess, value: int) -> None:
    """Give the register of a load what the device answered, extended to its width."""
    bits = 8 * access.memory.size
    if access.signed and value >> bits - 1 & 1:
        value -= 1 << bits
    set_register(cpu, access.register, value)
