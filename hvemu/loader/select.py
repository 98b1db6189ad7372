"""Which loader an image wants, by looking at it. A paravirtual kernel, "xen", is laid out by a domain builder."""

from collections.abc import Callable
from typing import Final

from hvemu.cpu.state import VirtualCpu
from hvemu.loader import boot_device, bzimage, el_torito, elf, flat, multiboot, xen_guest
from hvemu.loader.contract import BootRequest
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError

Loader = Callable[[GuestPhysicalMemory, BootRequest], VirtualCpu]

LOADERS: Final[dict[str, Loader]] = {
    "multiboot": multiboot.load,
    "bzimage": bzimage.load,
    "disk": boot_device.load,
    "flat": flat.load,
}

_UNPACK: Final = "Unpack it first."
_FOREIGN: Final = (
    (b"\x1f\x8b", "gzip-compressed", _UNPACK),
    (b"\xfd7zXZ\0", "xz-compressed", _UNPACK),
    (b"BZh", "bzip2-compressed", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", _UNPACK),
    (b"MZ", "a DOS, Windows or EFI program", "Known are multiboot ELF, Linux bzImage and disk images."),
    (b"QFI\xfb", "a qcow2 disk image", "Convert it with: qemu-img convert -O raw."),
)
"""What people mistake for a bootable image: its first bytes, what it is, and what to do."""


def is_64_bit(image: bytes) -> bool:
    """Whether the image says that it is for a CPU in long mode."""
    return elf.is_64_bit(image) or bzimage.is_64_bit(image)


def detect(image: bytes, name: str) -> str:
    """The loader's name; raises UserError for an image nobody can boot."""
    if not image:
        raise UserError(f"{name} is empty", "Give a bootable image; hvemu list guests shows some.")
    if bzimage.is_bzimage(image):
        return "bzimage"
    if multiboot.find_header(image) is not None:
        return "multiboot"
    if image[:4] == b"\x7fELF" and xen_guest.read_notes(image, name) is not None:
        return "xen"
    if image[:4] == b"\x7fELF":
        elf.load_segments(image, name)  # says what is wrong with it, if anything is
        raise UserError(
            f"{name} is an ELF file without a multiboot header",
            "Add one in its first 8 KiB, and check that the file is whole.",
        )
    if name.lower().endswith(".vhd"):
        raise UserError(f"{name} is a virtual hard disk, which is opened as a drive", f"Type: hvemu run --disk {name}.")
    if boot_device.is_bootable(image) or el_torito.is_cdrom(image):
        return "disk"
    for magic, what, hint in _FOREIGN:
        if image.startswith(magic):
            raise UserError(f"{name} is not bootable: it is {what}", hint)
    raise UserError(
        f"{name} is not bootable",
        "Known are multiboot ELF, Linux bzImage, disk and CD-ROM images; use --loader flat for raw code.",
    )
