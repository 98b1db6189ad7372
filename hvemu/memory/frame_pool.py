"""The hypervisor's own machine frames: a bounded pool, from which shadow tables and descriptor tables are taken."""

from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE

_ZEROS = bytes(PAGE_SIZE)


class FramePool:
    """Frames ``first`` to ``first + count - 1`` of machine memory."""

    def __init__(self, machine: MachineMemory, first: int, count: int) -> None:
        self.machine = machine
        self.count = count
        self._first = first
        self._free = list(range(first + count - 1, first - 1, -1))

    @property
    def available(self) -> int:
        """How many frames are free."""
        return len(self._free)

    def take(self) -> int:
        """The machine address of a zeroed frame; raises MemoryError when none is left."""
        if not self._free:
            raise MemoryError("the hypervisor's frame pool is exhausted")
        address = self._free.pop() << PAGE_SHIFT
        self.machine.view[address : address + PAGE_SIZE] = _ZEROS
        return address

    def give_back(self, address: int) -> None:
        """Return a frame by its machine address."""
        self._free.append(address >> PAGE_SHIFT)
