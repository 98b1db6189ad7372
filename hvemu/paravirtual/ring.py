"""The shared ring of split drivers: requests one way, responses the other, in the slots of one granted page.

Layout of ring.h: four free-running indices, from byte 64 on a power of two of slots. Each side asks the other to
notify it when an index passes its event index, so a busy ring needs no notifications. This is the back end's side:
whatever the page says, it reads at most one ring full, and a front end whose indices run away is cut off.
"""

import struct
from typing import Final

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.addresses import PAGE_SIZE

_HEADER: Final = 64
_REQUEST_PRODUCER, _REQUEST_EVENT, _RESPONSE_PRODUCER, _RESPONSE_EVENT = 0, 4, 8, 12
_U32: Final = struct.Struct("<I")
_MASK: Final = 0xFFFF_FFFF


class RingError(Exception):
    """The other side has broken the protocol; a sentence says how."""


class BackRing:
    """The back end's side of a ring at machine address ``page``, whose requests have ``slot`` bytes at most."""

    def __init__(self, memory: GuestPhysicalMemory, page: int, slot: int) -> None:
        if not 0 < slot <= PAGE_SIZE - _HEADER:
            raise ValueError(f"no ring has slots of {slot} bytes")
        self._memory, self._page, self._slot = memory, page, slot
        self.size = 1 << ((PAGE_SIZE - _HEADER) // slot).bit_length() - 1
        """Slots."""
        self._consumed = self._produced = 0

    def _get(self, offset: int) -> int:
        return self._memory.read_u32(self._page + offset)

    def _put(self, offset: int, value: int) -> None:
        self._memory.write(self._page + offset, _U32.pack(value & _MASK))

    def _address(self, index: int) -> int:
        return self._page + _HEADER + (index & self.size - 1) * self._slot

    def requests(self) -> list[bytes]:
        """The requests that are there, copied before anybody looks at them; raises RingError.

        Asks to be notified of the next one, and looks once more, so that none is missed.
        """
        found = []
        while True:
            producer = self._get(_REQUEST_PRODUCER)
            waiting = producer - self._consumed & _MASK
            if waiting > self.size - (self._consumed - self._produced):
                raise RingError(f"the request producer runs away: {waiting} requests in {self.size} slots")
            for _ in range(waiting):
                found.append(self._memory.read(self._address(self._consumed), self._slot))
                self._consumed += 1
            self._put(_REQUEST_EVENT, self._consumed + 1)
            if self._get(_REQUEST_PRODUCER) == self._consumed & _MASK:
                return found

    def respond(self, responses: list[bytes]) -> bool:
        """Put responses, one for each request taken; returns whether the front end wants to be notified."""
        before = self._produced
        for response in responses:
            if self._produced == self._consumed:
                raise ValueError("a response without a request")
            if len(response) > self._slot:
                raise ValueError(f"a response of {len(response)} bytes in slots of {self._slot}")
            self._memory.write(self._address(self._produced), response)
            self._produced += 1
        self._put(_RESPONSE_PRODUCER, self._produced)
        event = self._get(_RESPONSE_EVENT)
        return (self._produced - event & _MASK) < (self._produced - before & _MASK)


class ByteRing:
    """One direction of a stream: bytes at ``start`` of a page, ``size`` of them, and two indices.

    The hypervisor reads it (``take``) or writes it (``give``); the console and the store are made of two each.
    """

    def __init__(self, memory: GuestPhysicalMemory, start: int, size: int, consumer: int, producer: int) -> None:
        self._memory, self._start, self._size = memory, start, size
        self._consumer_at, self._producer_at = consumer, producer
        self._own = 0

    def _bytes(self, at: int, count: int) -> bytes:
        offset = at % self._size
        first = min(count, self._size - offset)
        head = self._memory.read(self._start + offset, first)
        return head + self._memory.read(self._start, count - first)

    def take(self) -> bytes:
        """All that the guest has put in; raises RingError."""
        producer = self._memory.read_u32(self._producer_at)
        waiting = producer - self._own & _MASK
        if waiting > self._size:
            raise RingError(f"the producer runs away: {waiting} bytes in a ring of {self._size}")
        data = self._bytes(self._own, waiting)
        self._own = producer
        self._memory.write(self._consumer_at, _U32.pack(producer))
        return data

    def give(self, data: bytes) -> int:
        """Put in as much as there is room for; returns how much. Raises RingError."""
        consumer = self._memory.read_u32(self._consumer_at)
        used = self._own - consumer & _MASK
        if used > self._size:
            raise RingError(f"the consumer runs away: {used} bytes in a ring of {self._size}")
        count = min(len(data), self._size - used)
        offset = self._own % self._size
        first = min(count, self._size - offset)
        self._memory.write(self._start + offset, data[:first])
        self._memory.write(self._start, data[first:count])
        self._own = self._own + count & _MASK
        self._memory.write(self._producer_at, _U32.pack(self._own))
        return count
