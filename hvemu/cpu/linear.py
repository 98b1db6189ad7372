"""Reading and writing at linear addresses on behalf of the CPU, with the page faults the CPU would have."""

import struct

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import NOT_CANONICAL, PageFault, walk
from hvemu.vocabulary.paging import CR0_PG, EFER_LMA, LINEAR_MASK, PagingRegisters

_U64 = struct.Struct("<Q")


class LinearFault(Exception):
    """A linear access that the guest's tables forbid; becomes #PF, never leaves the CPU room."""

    def __init__(self, fault: PageFault) -> None:
        super().__init__(fault)
        self.fault = fault

    @property
    def canonical(self) -> bool:
        """Whether it is #PF; otherwise the address is not canonical, which is #GP(0) or #SS(0)."""
        return self.fault.error_code != NOT_CANONICAL


def read_linear(
    memory: GuestPhysicalMemory,
    paging: PagingRegisters,
    linear: int,
    length: int,
    *,
    user: bool = False,
    fetch: bool = False,
    mark: bool = True,
) -> bytes:
    """``length`` bytes at a linear address that wraps at 4 GiB, or at 2**64 in long mode; raises LinearFault."""
    linear &= LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
    first = 0x1000 - (linear & 0xFFF)
    physical = walk(memory, paging, linear, user=user, fetch=fetch, mark=mark)
    if not isinstance(physical, int):
        raise LinearFault(physical)
    if length <= first:
        return memory.read(physical, length)
    rest = read_linear(memory, paging, linear + first, length - first, user=user, fetch=fetch, mark=mark)
    return memory.read(physical, first) + rest


def read_linear_u64(memory: GuestPhysicalMemory, paging: PagingRegisters, linear: int) -> int:
    """A descriptor at a linear address, read with supervisor rights; raises LinearFault."""
    linear &= LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
    if linear & 0xFFF > 0xFF8:
        return int(_U64.unpack(read_linear(memory, paging, linear, 8))[0])
    physical = walk(memory, paging, linear) if paging.cr0 & CR0_PG else linear
    if not isinstance(physical, int):
        raise LinearFault(physical)
    return memory.descriptor(physical)


def write_linear(
    memory: GuestPhysicalMemory, paging: PagingRegisters, linear: int, data: bytes, *, user: bool = False
) -> None:
    """Store at a linear address; nothing is written when any part faults. Raises LinearFault."""
    linear &= LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
    first = 0x1000 - (linear & 0xFFF)
    physical = walk(memory, paging, linear, write=True, user=user)
    if not isinstance(physical, int):
        raise LinearFault(physical)
    if len(data) <= first:
        memory.write(physical, data)
        return
    write_linear(memory, paging, linear + first, data[first:], user=user)
    memory.write(physical, data[:first])


def probe_write(memory: GuestPhysicalMemory, paging: PagingRegisters, linear: int, length: int, *, user: bool) -> None:
    """Raise LinearFault when a store of ``length`` bytes would fault."""
    mask = LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
    for address in {linear & mask, (linear + length - 1) & mask}:
        physical = walk(memory, paging, address, write=True, user=user, mark=False)
        if not isinstance(physical, int):
            raise LinearFault(physical)
