"""Linux bzImage by the 32-bit boot protocol (Documentation/arch/x86/boot.rst): zero page, e820, command line, initrd.

memtest86+ boots the same way. 64-bit kernels are entered by the 32-bit protocol too, and go on to long mode by
themselves. Not used: the 16-bit setup code, the 64-bit entry, EFI handover, setup_data.
"""

import struct
from typing import Final

from hvemu.cpu.state import ESI, VirtualCpu
from hvemu.loader.contract import BootRequest, flat_protected_mode, memory_map
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE, HIGH_MEMORY

ZERO_PAGE: Final = 0x0009_0000
COMMAND_LINE: Final = 0x0009_2000
_MAGIC_OFFSET: Final = 0x202
_XLOADFLAGS: Final = 0x236
_E820_OFFSET: Final = 0x2D0
_HINT = "Give a Linux bzImage (vmlinuz) or another bootable image."


def is_bzimage(image: bytes) -> bool:
    """Whether the setup header is there."""
    return len(image) > 0x260 and image[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == b"HdrS"


def is_64_bit(image: bytes) -> bool:
    """Whether it is a kernel with a 64-bit entry, which therefore needs long mode."""
    version = struct.unpack_from("<H", image, 0x206)[0] if is_bzimage(image) else 0
    return version >= 0x020C and bool(image[_XLOADFLAGS] & 1)


def load(memory: GuestPhysicalMemory, request: BootRequest) -> VirtualCpu:
    """Load kernel, command line and initrd; raises UserError for an image that cannot be booted."""
    image, name = request.image, request.image_name
    if not is_bzimage(image):
        raise UserError(f"{name} is not a Linux kernel", _HINT)
    version = struct.unpack_from("<H", image, 0x206)[0]
    if version < 0x0202 or not image[0x211] & 1:
        raise UserError(f"{name} uses boot protocol {version >> 8}.{version & 0xFF:02}, loaded low", _HINT)
    setup_size = ((image[0x1F1] or 4) + 1) * 512
    kernel = image[setup_size:]
    if not kernel:
        raise UserError(f"{name} is truncated: nothing follows its setup code", _HINT)
    paragraphs = struct.unpack_from("<I", image, 0x1F4)[0]
    if version >= 0x0204 and len(kernel) < paragraphs * 16 - 15:
        raise UserError(f"{name} is truncated: {len(kernel)} of {paragraphs * 16} bytes", _HINT)
    header_end = min(0x202 + image[0x201], 0x290)
    start = struct.unpack_from("<I", image, 0x214)[0] or HIGH_MEMORY
    needed = struct.unpack_from("<I", image, 0x260)[0] if version >= 0x020A else len(kernel)
    if start < HIGH_MEMORY or start + max(len(kernel), min(needed, 1 << 31)) > memory.size:
        raise UserError(f"{name} needs {(start + max(needed, len(kernel))) >> 20} MiB", "Start with more --memory.")
    memory.write(start, kernel)

    page = bytearray(4096)
    page[0x1F1:header_end] = image[0x1F1:header_end]
    page[0x210] = 0xFF  # type_of_loader: undefined
    page[0x211] |= 0x80  # CAN_USE_HEAP
    struct.pack_into("<H", page, 0x224, 0xFE00)
    limit = struct.unpack_from("<I", image, 0x238)[0] if version >= 0x0206 else 255
    command_line = request.append.encode("utf-8", "replace")
    limit = min(limit, EBDA_BASE - COMMAND_LINE - 1)
    if len(command_line) > limit:
        raise UserError(f"The command line has {len(command_line)} bytes, {name} takes {limit}", "Shorten --append.")
    memory.write(COMMAND_LINE, command_line + b"\0")
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<II", page, 0x218, 0, 0)
    if request.initrd:
        highest = struct.unpack_from("<I", image, 0x22C)[0] if version >= 0x0203 else 0x37FF_FFFF
        at = (min(memory.size, highest + 1) - len(request.initrd)) & ~0xFFF
        if at < start + max(len(kernel), needed):
            raise UserError("The initrd does not fit into memory beside the kernel", "Start with more --memory.")
        memory.write(at, request.initrd)
        struct.pack_into("<II", page, 0x218, at, len(request.initrd))
    ranges = memory_map(memory.size)
    page[0x1E8] = len(ranges)
    for index, row in enumerate(ranges):
        struct.pack_into("<QQI", page, _E820_OFFSET + 20 * index, row.base, row.length, row.kind)
    # screen_info: 80x25 colour text on a VGA
    page[0x06], page[0x07], page[0x0E], page[0x0F] = 3, 80, 25, 1
    struct.pack_into("<H", page, 0x10, 16)
    extended = max(0, memory.size - HIGH_MEMORY) >> 10
    struct.pack_into("<H", page, 0x02, min(extended, 0xFFFF))
    struct.pack_into("<I", page, 0x1E0, extended)
    memory.write(ZERO_PAGE, bytes(page))
    cpu = flat_protected_mode(memory, start)
    cpu.set_gpr(ESI, ZERO_PAGE)
    return cpu
