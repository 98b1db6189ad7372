"""The device's side of a split virtqueue: descriptors, the available ring, the used ring.

All three lie in guest memory and hold whatever the guest wrote: a chain that loops, is too long or mixes its directions
and a ring whose index runs away are a VirtqueueError, after which a device needs a reset.
Spec: Virtual I/O Device (VIRTIO) 1.2, 2.7 "Split Virtqueues", with the legacy layout of 2.7.2.
"""

import struct
from typing import Final, NamedTuple

from hvemu.devices.contract import GuestMemory
from hvemu.devices.dma import LONGEST_REQUEST
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE, GuestPhysical

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT: Final = 1
LONGEST_CHAIN: Final = 1024
_DESCRIPTOR: Final = struct.Struct("<QIHH")


class VirtqueueError(Exception):
    """The driver has broken the protocol; a sentence says how."""


class Chain(NamedTuple):
    """A request: (address, length) pieces that the device may read, then those that it may write."""

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


class Virtqueue:
    """A queue of ``size`` descriptors, a power of two, at page frame ``frame``; 0 is no queue."""

    def __init__(self, memory: GuestMemory, size: int) -> None:
        self._memory, self.size = memory, size
        self.frame = 0
        self.seen = 0
        """The index of the available ring up to which requests were taken."""
        self.used = 0

    def place(self, frame: int) -> None:
        """Begin anew in the pages from ``frame`` on."""
        self.frame, self.seen, self.used = frame, 0, 0

    @property
    def _table(self) -> int:
        return self.frame << PAGE_SHIFT

    @property
    def _available(self) -> int:
        return self._table + 16 * self.size

    @property
    def _used(self) -> int:
        return (self._available + 6 + 2 * self.size + PAGE_SIZE - 1) & -PAGE_SIZE

    def take(self) -> list[Chain]:
        """The requests that have come since the last call, at most one ring full; raises VirtqueueError."""
        if not self.frame:
            return []
        index = self._u16(self._available + 2)
        waiting = index - self.seen & 0xFFFF
        if waiting > self.size:
            raise VirtqueueError(f"the available index runs away: {waiting} requests in {self.size} entries")
        chains = []
        for _ in range(waiting):
            head = self._u16(self._available + 4 + 2 * (self.seen % self.size))
            chains.append(self._chain(head))
            self.seen = self.seen + 1 & 0xFFFF
        return chains

    def wants_interrupt(self) -> bool:
        """Whether the driver asks to be told of used buffers."""
        return not self._u16(self._available) & AVAIL_NO_INTERRUPT

    def give_back(self, head: int, written: int) -> None:
        """The device is done with a chain and has written so many bytes."""
        slot = self._used + 4 + 8 * (self.used % self.size)
        self._memory.write(GuestPhysical(slot), struct.pack("<II", head, written))
        self.used = self.used + 1 & 0xFFFF
        self._memory.write(GuestPhysical(self._used + 2), struct.pack("<H", self.used))

    def _u16(self, address: int) -> int:
        return int.from_bytes(self._memory.read(GuestPhysical(address), 2), "little")

    def _chain(self, head: int) -> Chain:
        table, entries, index = self._table, self.size, head
        chain = Chain(head, [], [])
        indirect, total = False, 0
        for _ in range(LONGEST_CHAIN):
            if index >= entries:
                raise VirtqueueError(f"descriptor {index} does not exist: there are {entries}")
            raw = self._memory.read(GuestPhysical(table + 16 * index), 16)
            address, length, flags, following = _DESCRIPTOR.unpack(raw)
            if flags & DESC_INDIRECT:
                if indirect or flags & DESC_NEXT or not length or length % 16:
                    raise VirtqueueError("an indirect table is nested, is continued or has half a descriptor")
                table, entries, index, indirect = address, length // 16, 0, True
                continue
            total += length
            if total > LONGEST_REQUEST:
                raise VirtqueueError(f"a request is longer than {LONGEST_REQUEST} bytes")
            if flags & DESC_WRITE:
                chain.writable.append((address, length))
            elif chain.writable:
                raise VirtqueueError("a readable descriptor follows a writable one")
            else:
                chain.readable.append((address, length))
            if not flags & DESC_NEXT:
                return chain
            index = following
        raise VirtqueueError(f"a chain has more than {LONGEST_CHAIN} descriptors")
