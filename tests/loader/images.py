"""Small bootable images, made field by field so that a test can make any field wrong."""

import struct
from pathlib import Path

from hvemu.cpu.state import VirtualCpu
from hvemu.loader.contract import BootRequest
from hvemu.loader.select import LOADERS, detect
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory

GUESTS = Path(__file__).parents[2] / "guests"
MULTIBOOT_MAGIC = 0x1BADB002


def ram(size: int = 4 << 20) -> GuestPhysicalMemory:
    """Zeroed guest memory."""
    return GuestPhysicalMemory(MachineMemory(size))


def boot(image: bytes, loader: str = "auto", memory: GuestPhysicalMemory | None = None, **more: object) -> VirtualCpu:
    """Load an image as the builder does; raises what the loader raises."""
    request = BootRequest(image=image, image_name="image", **more)  # type: ignore[arg-type]
    name = detect(image, "image") if loader == "auto" else loader
    return LOADERS[name](memory or ram(), request)


def multiboot_header(flags: int = 0, *addresses: int) -> bytes:
    """The header with a right checksum; ``addresses`` are header, load, load end, bss end and entry."""
    checksum = -(MULTIBOOT_MAGIC + flags) & 0xFFFF_FFFF
    return struct.pack(f"<III{len(addresses)}I", MULTIBOOT_MAGIC, flags, checksum, *addresses)


def elf(
    *segments: tuple[int, int, int, int, int],
    entry: int = 0x10_0000,
    multiboot: bytes | None = None,
    machine: int = 3,
    kind: int = 2,
    bits: int = 1,
    order: int = 1,
    rows: int | None = None,
    row_size: int = 32,
    table: int = 52,
    payload: bytes = bytes(range(256)) * 16,
) -> bytes:
    """An ELF32 file; a segment is (offset, virtual, physical, file size, memory size). The payload begins at 0x1000."""
    identification = b"\x7fELF" + bytes((bits, order, 1)) + bytes(9)
    count = len(segments) if rows is None else rows
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", identification, kind, machine, 1, entry, table, 0, 0, 52, row_size, count, 0, 0, 0
    )
    table_bytes = b"".join(struct.pack("<IIIIIIII", 1, *segment, 7, 0x1000) for segment in segments)
    magic = multiboot_header() if multiboot is None else multiboot
    front = (header + table_bytes).ljust(0x800, b"\0") + magic
    return front.ljust(0x1000, b"\0") + payload


def kernel_elf(**changes: object) -> bytes:
    """A multiboot ELF with code at 1 MiB and a page of zeros behind it."""
    return elf((0x1000, 0x10_0000, 0x10_0000, 0x1000, 0x2000), **changes)  # type: ignore[arg-type]


def bzimage(
    *,
    payload: bytes = b"\xf4" * 0x800,
    version: int = 0x020C,
    setup_sectors: int = 4,
    load_flags: int = 1,
    start: int = 0x10_0000,
    command_line_size: int = 255,
    highest_initrd: int = 0x7FFF_FFFF,
    initial_size: int = 0x1000,
    paragraphs: int | None = None,
    extended_flags: int = 0,
    jump: int = 0x66,
) -> bytes:
    """A Linux image: setup sectors with the header of the boot protocol, then the protected-mode kernel."""
    image = bytearray(((setup_sectors or 4) + 1) * 512)
    image[0x1F1] = setup_sectors
    struct.pack_into("<I", image, 0x1F4, len(payload) // 16 if paragraphs is None else paragraphs)
    struct.pack_into("<H", image, 0x1FA, 0xFFFF)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = bytes((0xEB, jump))
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = load_flags
    struct.pack_into("<I", image, 0x214, start)
    struct.pack_into("<I", image, 0x22C, highest_initrd)
    struct.pack_into("<H", image, 0x236, extended_flags)
    struct.pack_into("<I", image, 0x238, command_line_size)
    struct.pack_into("<I", image, 0x260, initial_size)
    return bytes(image) + payload


def boot_sector(code: bytes = b"\xf4", sectors: int = 8) -> bytes:
    """A disk whose sector 0 carries the signature and whose other sectors begin with their number."""
    disk = bytearray(512 * sectors)
    disk[: len(code)] = code
    disk[510:512] = b"\x55\xaa"
    for sector in range(1, sectors):
        struct.pack_into("<I", disk, 512 * sector, sector)
    return bytes(disk)
