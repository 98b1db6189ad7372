"""Machine-code guests for ``hvemu bench``: a few tables laid out by hand, and a loop.

Each function returns a flat image for address ``BASE``; it ends by writing to the debug exit port.
"""

import struct
from typing import Final

from hvemu.vocabulary.paging import CR0_PG

BASE: Final = 0x0010_0000
_PAGE: Final = 0x1000
_HANDLER, _USER, _GDT, _TSS, _IDT = BASE + 0x200, BASE + 0x300, BASE + 0x400, BASE + 0x800, BASE + 0xA00
_USER_STACK, _STACK, _INNER_STACK = BASE + 0x5000, BASE + 0x6000, BASE + 0x7000
_BUFFER: Final = BASE + 0x10_0000
_DIRECTORIES: Final = BASE + 0x10_0000
_DATA: Final = 0x0080_0000
_DATA_PAGES: Final = 1024
_AREA: Final = 0x4000_0000
"""Where the pages to touch are mapped, by page tables of their own."""
_BUFFER_PAGES: Final = 16
_END: Final = "e6f4 f4"  # out 0F4h, al / hlt
_MASK: Final = "b0ff e621 e6a1"  # mov al, 0FFh / out 21h, al / out 0A1h, al: no interrupt comes, none waits


def _assemble(*pieces: str) -> bytes:
    return bytes.fromhex("".join(pieces))


def _word(value: int) -> str:
    return struct.pack("<I", value & 0xFFFF_FFFF).hex()


def _loop(count: int, body: bytes) -> bytes:
    """mov ecx, count / again: body / dec ecx / jnz again."""
    return _assemble("b9", _word(count)) + body + _assemble("49 0f85", _word(-len(body) - 7))


class _Image:
    """Bytes by their address."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def put(self, address: int, data: bytes) -> None:
        """Place bytes, which may lie behind the end."""
        offset = address - BASE
        self._bytes += bytes(max(0, offset + len(data) - len(self._bytes)))
        self._bytes[offset : offset + len(data)] = data

    def build(self) -> bytes:
        """The whole image."""
        return bytes(self._bytes)


def nothing() -> bytes:
    """Ends at once."""
    return _assemble(_END)


def ports(count: int) -> bytes:
    """``count`` times OUT."""
    return _loop(count, _assemble("e680")) + _assemble(_END)  # out 80h, al


def identifications(count: int) -> bytes:
    """``count`` times CPUID, leaf 0."""
    # mov esi,ecx / xor eax,eax / cpuid / mov ecx,esi
    return _loop(count, _assemble("89ce 31c0 0fa2 89f1")) + _assemble(_END)


def system_calls(count: int) -> bytes:
    """``count`` times INT 80h from ring 3 and IRET back."""
    return _in_ring_3(_loop(count, _assemble("cd80")))


def user_arithmetic(count: int) -> bytes:
    """A loop of ring 3 that touches registers only."""
    return _in_ring_3(_arithmetic(count))


def kernel_arithmetic(count: int) -> bytes:
    """The same loop in ring 0."""
    return _assemble(_MASK) + _arithmetic(count) + _assemble(_END)


CALLS_PER_ROUND: Final = 5
"""Calls in a round of ``calls``, and as many returns."""


def calls(count: int) -> bytes:
    """``count`` rounds of nested calls; the innermost function has three callers."""
    # inner: add ebx, eax / ret;  middle: inc eax / call inner / ret
    # the loop: call middle / call middle / call inner / dec ecx / jnz
    inner = _assemble("01c3 c3")
    middle = _assemble("40 e8", _word(-len(inner) - 6), "c3")
    functions = inner + middle
    start = _assemble(_MASK, "bc", _word(_STACK), "b9", _word(count), "eb", bytes([len(functions)]).hex())
    at = -len(functions)  # of inner, from the first call
    body = b""
    for target in (at + len(inner), at + len(inner), at):
        body += _assemble("e8", _word(target - len(body) - 5))
    return start + functions + body + _assemble("49 0f85", _word(-len(body) - 7), _END)


def interrupt_flag(count: int) -> bytes:
    """``count`` times CLI and STI."""
    return _assemble(_MASK) + _loop(count, _assemble("fa fb")) + _assemble(_END)


def straight_line(count: int) -> bytes:
    """``count`` instructions of the kernel, each of which runs once."""
    return b"".join(_assemble("b8", _word(number)) for number in range(count)) + _assemble(_END)


def _arithmetic(count: int) -> bytes:
    body = _assemble(
        "8d0440 31d8 c1c005 01c3 0fafd8 29d0 6bd60d 01fa 31d7 d1ce",
        # lea eax,[eax+eax*2] / xor eax,ebx / rol eax,5 / add ebx,eax / imul ebx,eax / sub eax,edx / imul edx,esi,13
        # add edx,edi / xor edi,edx / ror esi,1
    )
    return _loop(count, body)


def user_stores(count: int) -> bytes:
    """Ring 3 fills a buffer ``count`` times."""
    return _in_ring_3(_stores(count))


def kernel_stores(count: int) -> bytes:
    """Ring 0 fills a buffer ``count`` times."""
    return _assemble(_MASK) + _stores(count) + _assemble(_END)


def _stores(count: int) -> bytes:
    """Eight MOV to memory in a row, over a buffer of several pages."""
    inner = _assemble("8907 894704 894708 89470c 894710 894714 894718 89471c 83c720 4a")  # ... add edi,32 / dec edx
    rounds = _BUFFER_PAGES * _PAGE // 32
    return _loop(
        count,
        _assemble("bf", _word(_BUFFER), "ba", _word(rounds), inner.hex(), "0f85", _word(-len(inner) - 6)),
    )


def privileged(count: int) -> bytes:
    """``count`` times CLI, MOV EAX, CR0 and STI: three privileged instructions."""
    return _assemble(_MASK) + _loop(count, _assemble("fa 0f20c0 fb")) + _assemble(_END)


def privileged_once(count: int) -> bytes:
    """``count`` times CLI, each at a place of its own: cli / mov eax, number."""
    return b"".join(_assemble("fab8", _word(number)) for number in range(count)) + _assemble(_END)


def touches(pages: int) -> bytes:
    """Turn paging on and store to ``pages`` pages, each for the first time."""
    image = _Image()
    _map(image, _DIRECTORIES, _DIRECTORIES + _PAGE, 0)
    for number in range((pages + 1023) // 1024):
        _map_area(image, _DIRECTORIES, number, _DIRECTORIES + (2 + number) * _PAGE)
    image.put(BASE, _turn_paging_on(_DIRECTORIES) + _touch(pages) + _assemble(_END))
    return image.build()


def touches_again(pages: int, rounds: int) -> bytes:
    """As ``touches``, but the same pages again and again after a load of CR3."""
    image = _Image()
    _map(image, _DIRECTORIES, _DIRECTORIES + _PAGE, 0)
    _map_area(image, _DIRECTORIES, 0, _DIRECTORIES + 2 * _PAGE)
    body = _assemble("0f22d8 51") + _touch(pages) + _assemble("59")  # mov cr3, eax / push ecx ... pop ecx
    image.put(
        BASE,
        _turn_paging_on(_DIRECTORIES) + _assemble("b8", _word(_DIRECTORIES)) + _loop(rounds, body) + _assemble(_END),
    )
    return image.build()


def switches(spaces: int, pages: int, rounds: int) -> bytes:
    """``rounds`` times through ``spaces`` address spaces: load CR3, store to ``pages`` pages of a table of its own."""
    image = _Image()
    shared = _DIRECTORIES + 2 * spaces * _PAGE
    body = b""
    for number in range(spaces):
        directory = _DIRECTORIES + 2 * number * _PAGE
        _map(image, directory, shared, 0)
        _map_area(image, directory, 0, directory + _PAGE)
        # mov eax, directory / mov cr3, eax / push ecx ... pop ecx
        body += _assemble("b8", _word(directory), "0f22d8 51") + _touch(pages) + _assemble("59")
    image.put(BASE, _turn_paging_on(_DIRECTORIES) + _loop(rounds, body) + _assemble(_END))
    return image.build()


def _touch(pages: int) -> bytes:
    """mov edi, area / and once for each page: mov [edi], ecx / add edi, 4096."""
    return _assemble("bf", _word(_AREA)) + _loop(pages, _assemble("890f 81c7", _word(_PAGE)))


def _map(image: _Image, directory: int, table: int, slot: int) -> None:
    """The first 4 MiB at their place, by a page table."""
    image.put(directory + 4 * slot, struct.pack("<I", table | 3))
    image.put(table, struct.pack("<1024I", *(number * _PAGE | 3 for number in range(1024))))


def _map_area(image: _Image, directory: int, number: int, table: int) -> None:
    """4 MiB of the area, number ``number``, on the pages for data."""
    image.put(directory + 4 * ((_AREA >> 22) + number), struct.pack("<I", table | 3))
    image.put(table, struct.pack("<1024I", *(_DATA + frame * _PAGE | 3 for frame in range(_DATA_PAGES))))


def _turn_paging_on(directory: int) -> bytes:
    return _assemble(
        "bc", _word(_STACK), "b8", _word(directory), "0f22d8",  # mov esp, ... / mov eax, directory / mov cr3, eax
        "0f20c0 0d", _word(CR0_PG), "0f22c0 eb00",  # mov eax, cr0 / or eax, PG / mov cr0, eax / jmp
    )  # fmt: skip


def _in_ring_3(code: bytes) -> bytes:
    """GDT, TSS and a gate for INT 80h that returns at once; then the code in ring 3, with IOPL 3 to end the run."""
    image = _Image()
    descriptors = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF)
    task = 0x67 | (_TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (_TSS >> 24) << 56
    image.put(_GDT, struct.pack("<6Q", *descriptors, task))
    image.put(_GDT + 0x40, struct.pack("<HI", 47, _GDT))
    gate = (_HANDLER & 0xFFFF) | 0x08 << 16 | 0xEF << 40 | (_HANDLER >> 16) << 48
    image.put(_IDT + 0x80 * 8, struct.pack("<Q", gate))
    image.put(_GDT + 0x48, struct.pack("<HI", 0x7FF, _IDT))
    image.put(_TSS + 4, struct.pack("<II", _INNER_STACK, 0x10))
    image.put(_TSS + 0x66, struct.pack("<H", 0x68))
    start = _assemble(
        _MASK,
        "0f0115", _word(_GDT + 0x40), "0f011d", _word(_GDT + 0x48),  # lgdt / lidt
        "66b810008ed08ed88ec0bc", _word(_STACK),  # mov ax,10h / mov ss,ax / mov ds,ax / mov es,ax / mov esp
        "66b828000f00d8",  # mov ax,28h / ltr ax
        "6a2368", _word(_USER_STACK), "68", _word(0x3002), "6a1b68", _word(_USER),  # SS, ESP, EFLAGS, CS, EIP
        "cf",  # iret to ring 3
    )  # fmt: skip
    image.put(BASE, start)
    image.put(_HANDLER, _assemble("cf"))
    image.put(_USER, code + _assemble("e6f4 ebfe"))
    return image.build()
