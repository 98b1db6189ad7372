"""Multiboot 1 kernels: ELF32, ELF64 or the header's own address fields (Multiboot Specification 0.6.96).

Whatever the file, the kernel starts in 32-bit protected mode; from there one of 64 bits goes on by itself.

The guest gets EAX = 0x2BADB002 and EBX = information: memory sizes and map, command line, modules, loader name.
Not provided: video modes, ELF section table, APM and VBE.
"""

import struct
from typing import Final

from hvemu.cpu.state import EAX, EBX, VirtualCpu
from hvemu.loader import elf
from hvemu.loader.contract import BOOT_GDT_END, BootRequest, flat_protected_mode, memory_map
from hvemu.loader.elf import HINT
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE, HIGH_MEMORY

HEADER_MAGIC: Final = 0x1BADB002
LOADER_MAGIC: Final = 0x2BADB002
_SEARCH: Final = 8192
_INFORMATION: Final = 0x9000
_TEXT_END: Final = 0x9F000
_FLAG_ADDRESSES: Final = 1 << 16
_RESERVED: Final = (
    (0, BOOT_GDT_END, "firmware"),
    (_INFORMATION, _TEXT_END, "the loader's"),
    (EBDA_BASE, HIGH_MEMORY, "firmware"),
)
"""Where no kernel may lie: from, to, and whose memory it is."""
_ZEROS: Final = 1 << 20


def find_header(image: bytes) -> int | None:
    """Offset of a valid multiboot header in the first 8 KiB, or None."""
    for offset in range(0, min(len(image), _SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", image, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset
    return None


def load(memory: GuestPhysicalMemory, request: BootRequest) -> VirtualCpu:
    """Load the kernel and its modules; raises UserError for an image that cannot be booted."""
    image = request.image
    header = find_header(image)
    if header is None:
        raise UserError(f"{request.image_name} has no multiboot header", HINT)
    flags = struct.unpack_from("<I", image, header + 4)[0]
    if flags & 0xFFFF & ~0x7:
        raise UserError(f"{request.image_name} demands multiboot features {flags & 0xFFFF:#x}", HINT)
    if flags & _FLAG_ADDRESSES:
        entry, end = _load_by_addresses(memory, image, header, request.image_name)
    else:
        entry, end = _load_elf(memory, image, request.image_name)
    cpu = flat_protected_mode(memory, entry)
    cpu.set_gpr(EAX, LOADER_MAGIC)
    cpu.set_gpr(EBX, _information(memory, request, end))
    return cpu


def place(memory: GuestPhysicalMemory, address: int, data: bytes, zeros: int, name: str) -> None:
    """Store a piece of an image where it belongs; raises UserError when that is not free RAM."""
    end = address + len(data) + zeros
    if end > memory.size:
        raise UserError(f"{name} wants memory up to {end:#x}", f"Start with more than --memory {memory.size >> 20}M.")
    for start, stop, whose in _RESERVED:
        if address < stop and end > max(start, address):
            raise UserError(f"{name} wants to lie on {whose} memory at {address:#x}", "Link it at 1 MiB or above.")
    memory.write(address, data)
    for at in range(address + len(data), end, _ZEROS):
        memory.write(at, bytes(min(_ZEROS, end - at)))


def _load_by_addresses(memory: GuestPhysicalMemory, image: bytes, header: int, name: str) -> tuple[int, int]:
    if header + 32 > len(image):
        raise UserError(f"{name} ends inside its multiboot header", HINT)
    header_address, load, load_end, bss_end, entry = struct.unpack_from("<IIIII", image, header + 12)
    start = header - (header_address - load)
    length = (load_end - load) if load_end else len(image) - start
    if load > header_address or start < 0 or length < 0 or start + length > len(image):
        raise UserError(f"{name} has inconsistent multiboot addresses", HINT)
    zeros = max(0, bss_end - (load + length)) if bss_end else 0
    place(memory, load, image[start : start + length], zeros, name)
    return entry, load + length + zeros


def _load_elf(memory: GuestPhysicalMemory, image: bytes, name: str) -> tuple[int, int]:
    segments, entry = elf.load_segments(image, name, allow_64_bit=True)
    if sum(segment.memory_size for segment in segments) > memory.size:
        raise UserError(f"{name} has more to load than fits", f"Start with more than --memory {memory.size >> 20}M.")
    end = HIGH_MEMORY
    entry_physical = None
    for segment in segments:
        data = elf.content(segment, image, name)
        place(memory, segment.physical, data, segment.memory_size - segment.file_size, name)
        end = max(end, segment.physical + segment.memory_size)
        if segment.virtual <= entry < segment.virtual + segment.memory_size:
            entry_physical = entry - segment.virtual + segment.physical
    # A kernel linked high states a virtual entry; GRUB enters at the physical one (xv6 states it directly).
    inside = any(segment.physical <= entry < segment.physical + segment.memory_size for segment in segments)
    start = entry if inside or entry_physical is None else entry_physical
    if start >> 32:
        raise UserError(f"{name} starts at {start:#x}", "Give it an entry below 4 GiB, where 32-bit code can begin.")
    return start, end


def _information(memory: GuestPhysicalMemory, request: BootRequest, end: int) -> int:
    """Write the multiboot information structure (section 3.3) and load the modules behind the kernel."""
    text_at = _INFORMATION + 0x1000

    def text(value: str) -> int:
        nonlocal text_at
        data = value.encode("utf-8", "replace") + b"\0"
        if text_at + len(data) > _TEXT_END:
            raise UserError("The command lines are too long for low memory", "Shorten --append or --module names.")
        memory.write(text_at, data)
        at, text_at = text_at, text_at + len(data)
        return at

    modules = list(request.modules)
    if request.initrd:
        modules.append(("initrd", request.initrd))
    if len(modules) > 64:
        raise UserError(f"{len(modules)} modules are too many", "Give at most 64.")
    rows = b""
    for name, data in modules:
        start = (end + 0xFFF) & ~0xFFF
        if start + len(data) > memory.size:
            raise UserError(f"Module {name} does not fit into memory", "Start with more --memory.")
        memory.write(start, data)
        end = start + len(data)
        rows += struct.pack("<IIII", start, end, text(name), 0)
    modules_at = _INFORMATION + 0x200
    memory.write(modules_at, rows)
    ranges = b"".join(struct.pack("<IQQI", 20, row.base, row.length, row.kind) for row in memory_map(memory.size))
    map_at = _INFORMATION + 0x800
    memory.write(map_at, ranges)
    flags = (1 << 0) | (1 << 2) | (1 << 3) | (1 << 6) | (1 << 9)
    command_line = text(f"{request.image_name} {request.append}".strip())
    information = struct.pack(
        "<IIIIIII",
        flags,
        EBDA_BASE >> 10,
        max(0, memory.size - HIGH_MEMORY) >> 10,
        0,
        command_line,
        len(modules),
        modules_at,
    ).ljust(44, b"\0")
    information += struct.pack("<II", len(ranges), map_at).ljust(20, b"\0")
    information = information[:64] + struct.pack("<I", text("hvemu"))
    memory.write(_INFORMATION, information)
    return _INFORMATION
