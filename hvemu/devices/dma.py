"""What devices that transfer by themselves share: a bound on one request, and lists of pieces of guest memory."""

from typing import Final

from hvemu.devices.contract import GuestMemory
from hvemu.vocabulary.addresses import GuestPhysical

LONGEST_REQUEST: Final = 32 << 20
"""Bytes that a device takes for one request, so that no guest makes the host copy without end."""


def gather(memory: GuestMemory, pieces: list[tuple[int, int]]) -> bytes:
    """The bytes of all pieces, in order."""
    return b"".join(memory.read(GuestPhysical(address), length) for address, length in pieces)


def scatter(memory: GuestMemory, pieces: list[tuple[int, int]], data: bytes) -> int:
    """Fill the pieces in order; returns how many bytes found room."""
    done = 0
    for address, length in pieces:
        if done >= len(data):
            break
        memory.write(GuestPhysical(address), data[done : done + length])
        done += min(length, len(data) - done)
    return done


def after(pieces: list[tuple[int, int]], offset: int) -> list[tuple[int, int]]:
    """The pieces without their first ``offset`` bytes."""
    rest = []
    for address, length in pieces:
        skipped = min(offset, length)
        offset -= skipped
        if length > skipped:
            rest.append((address + skipped, length - skipped))
    return rest
