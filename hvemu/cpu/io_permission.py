"""IOPL and the TSS I/O permission bitmap (SDM vol. 1, 19.5): may this code touch this port?"""

from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.state import CpuPort
from hvemu.memory.guest_memory import GuestPhysicalMemory

_IO_MAP_BASE = 0x66


def io_permitted(cpu: CpuPort, memory: GuestPhysicalMemory, port: int, size: int) -> bool:
    """Whether the bitmap of the current TSS allows ``size`` ports from ``port``; ask when CPL > IOPL."""
    task = cpu.task_segment()
    if not task.attributes & 0x800 or task.limit < _IO_MAP_BASE + 1:
        return False
    paging = cpu.paging()
    try:
        base = int.from_bytes(read_linear(memory, paging, task.base + _IO_MAP_BASE, 2), "little")
        at = base + (port >> 3)
        if at + 1 > task.limit:
            return False
        bits = int.from_bytes(read_linear(memory, paging, task.base + at, 2), "little")
    except LinearFault:
        return False
    return not (bits >> (port & 7)) & ((1 << size) - 1)
