"""What every loader gets and gives."""

import os
from dataclasses import dataclass
from typing import Final, NamedTuple

from hvemu.cpu.state import CS, FLAT_CODE, FLAT_DATA, TableRegister, VirtualCpu
from hvemu.devices.contract import BlockBackend
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import EBDA_BASE, HIGH_MEMORY, ROM_BASE
from hvemu.vocabulary.paging import CR0_ET, CR0_PE

BOOT_GDT: Final = 0x0000_0800
"""Where loaders put the descriptor table that flat segments refer to."""
BOOT_GDT_END: Final = BOOT_GDT + 4 * 8
MAXIMUM_IMAGE: Final = 2 << 30
E820_USABLE, E820_RESERVED = 1, 2


class MemoryRange(NamedTuple):
    """One row of the memory map: ``kind`` as in INT 15h E820."""

    base: int
    length: int
    kind: int


class BootDevice(NamedTuple):
    """A drive that a BIOS boots from, with its number in INT 13h."""

    name: str
    number: int
    medium: BlockBackend


@dataclass(frozen=True)
class BootRequest:
    """What the user wants booted."""

    image: bytes
    image_name: str
    append: str = ""
    initrd: bytes = b""
    modules: tuple[tuple[str, bytes], ...] = ()
    load_address: int = HIGH_MEMORY
    devices: tuple[BootDevice, ...] = ()
    """What a BIOS tries, in this order, where the image is no program but a disk."""


def memory_map(size: int) -> list[MemoryRange]:
    """The map that firmware reports for ``size`` bytes of RAM."""
    ranges = [
        MemoryRange(0, EBDA_BASE, E820_USABLE),
        MemoryRange(EBDA_BASE, 0xA0000 - EBDA_BASE, E820_RESERVED),
        MemoryRange(ROM_BASE, HIGH_MEMORY - ROM_BASE, E820_RESERVED),
    ]
    if size > HIGH_MEMORY:
        ranges.append(MemoryRange(HIGH_MEMORY, size - HIGH_MEMORY, E820_USABLE))
    return ranges


def read_file(path: str, what: str) -> bytes:
    """A file's bytes; raises UserError with a sentence for anything that is not a readable, sane file."""
    try:
        information = os.stat(path)
        if not os.path.isfile(path):
            raise UserError(f"The {what} {path} is not a regular file", "Give the path of an image file.")
        if information.st_size > MAXIMUM_IMAGE:
            raise UserError(f"The {what} {path} has {information.st_size} bytes", "Images up to 2 GiB can be loaded.")
        with open(path, "rb") as file:
            data = file.read(MAXIMUM_IMAGE + 1)
        if len(data) > MAXIMUM_IMAGE:
            raise UserError(f"The {what} {path} never ends", "Images up to 2 GiB can be loaded.")
        return data
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"Cannot read the {what} {path}: {reason}", "Check the path.") from None


def flat_protected_mode(memory: GuestPhysicalMemory, entry: int) -> VirtualCpu:
    """The state that the 32-bit boot protocols start with: paging off, flat segments, interrupts off."""
    gdt = b"".join(
        value.to_bytes(8, "little") for value in (0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    )  # selectors 0x10 code and 0x18 data, as Linux demands
    memory.write(BOOT_GDT, gdt)
    cpu = VirtualCpu(instruction_pointer=entry, cr0=CR0_PE | CR0_ET)
    cpu.segments = [FLAT_DATA] * 6
    cpu.segments[CS] = FLAT_CODE
    cpu.gdtr = TableRegister(BOOT_GDT, len(gdt) - 1)
    cpu.idtr = TableRegister(0, 0)
    return cpu
