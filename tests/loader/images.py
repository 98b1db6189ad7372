"""Small bootable images, made field by field so that a test can make any field wrong."""

import struct
from pathlib import Path

from hvemu.cpu.state import VirtualCpu
from hvemu.devices.images.memory import MemoryMedium
from hvemu.loader.boot_device import CDROM, HARD_DISK
from hvemu.loader.contract import BootDevice, BootRequest
from hvemu.loader.el_torito import is_cdrom
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
    name = detect(image, "image") if loader == "auto" else loader
    if name == "disk":
        number = CDROM if is_cdrom(image) else HARD_DISK
        more["devices"] = (BootDevice("image", number, MemoryMedium(image)),)
    request = BootRequest(image=image, image_name="image", **more)  # type: ignore[arg-type]
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


def elf64(
    *segments: tuple[int, int, int, int, int], entry: int = 0x10_0000, table: int = 64, multiboot: bytes | None = None
) -> bytes:
    """The same as ELF64, for x86-64."""
    identification = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identification, 2, 62, 1, entry, table, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    rows = b"".join(struct.pack("<IIQQQQQQ", 1, 7, *segment, 0x1000) for segment in segments)
    front = (header + rows).ljust(0x800, b"\0") + (multiboot_header() if multiboot is None else multiboot)
    return front.ljust(0x1000, b"\0") + bytes(range(256)) * 16


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


def cdrom(
    program: bytes = b"\xf4",
    *,
    record: bytes = b"\x00CD001\x01EL TORITO SPECIFICATION",
    catalog_at: int = 18,
    validation: bytes | None = None,
    initial: bytes | None = None,
    sectors: int = 24,
    **entry: int,
) -> bytes:
    """A CD-ROM with no files and, at sector 19, a program to boot; sectors from 20 on begin with their number.

    ``entry``: ``indicator``, ``media``, ``segment``, ``count`` and ``at`` of the initial entry.
    """
    image = bytearray(2048 * sectors)
    for sector in range(20, sectors):
        struct.pack_into("<I", image, 2048 * sector, sector)
    image[16 * 2048 : 16 * 2048 + 7] = b"\x01CD001\x01"
    image[17 * 2048 : 17 * 2048 + len(record)] = record
    struct.pack_into("<I", image, 17 * 2048 + 0x47, catalog_at)
    if validation is None:
        words = struct.pack("<BBH24sHBB", 1, 0, 0, b"a test", 0, 0x55, 0xAA)
        checksum = -sum(struct.unpack("<16H", words)) & 0xFFFF
        validation = words[:28] + checksum.to_bytes(2, "little") + words[30:]
    if initial is None:
        fields = {"indicator": 0x88, "media": 0, "segment": 0, "count": 4, "at": 19} | entry
        indicator, media, segment, count, at = fields.values()
        initial = struct.pack("<BBHBBHI", indicator, media, segment, 0, 0, count, at)
    image[18 * 2048 : 18 * 2048 + 32] = validation
    image[18 * 2048 + 32 : 18 * 2048 + 32 + len(initial)] = initial
    image[19 * 2048 : 19 * 2048 + len(program)] = program
    return bytes(image[: 2048 * sectors])


def boot_sector(code: bytes = b"\xf4", sectors: int = 8) -> bytes:
    """A disk whose sector 0 carries the signature and whose other sectors begin with their number."""
    disk = bytearray(512 * sectors)
    disk[: len(code)] = code
    disk[510:512] = b"\x55\xaa"
    for sector in range(1, sectors):
        struct.pack_into("<I", disk, 512 * sector, sector)
    return bytes(disk)
