"""The bits before each block of a VHD: the first sector is the highest bit of the first byte."""

from typing import Final

_FULL: Final = 0xFF


def run(bitmap: bytes | bytearray, start: int, stop: int) -> tuple[bool, int]:
    """The bit of sector ``start``, and the first sector up to ``stop`` whose bit differs."""
    bit = bool(bitmap[start >> 3] & 0x80 >> (start & 7))
    alike = _FULL if bit else 0
    at = start + 1
    while at < stop:
        if at & 7 == 0 and bitmap[at >> 3] == alike:
            # A whole block of the usual size is found alike by one comparison, not by 512
            rest = bytes(bitmap[at >> 3 : (stop + 7) >> 3])
            skipped = len(rest) - len(rest.lstrip(bytes([alike])))
            at += skipped * 8
        elif bool(bitmap[at >> 3] & 0x80 >> (at & 7)) == bit:
            at += 1
        else:
            return bit, at
    return bit, stop


def mark(bitmap: bytearray, start: int, stop: int) -> bool:
    """Set the bits from ``start`` up to ``stop``; whether any was clear."""
    if run(bitmap, start, stop) == (True, stop):
        return False
    while start < stop and start & 7:
        bitmap[start >> 3] |= 0x80 >> (start & 7)
        start += 1
    whole = max(0, stop - start) >> 3
    bitmap[start >> 3 : (start >> 3) + whole] = bytes([_FULL]) * whole
    for sector in range(start + whole * 8, stop):
        bitmap[sector >> 3] |= 0x80 >> (sector & 7)
    return True
