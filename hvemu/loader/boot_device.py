"""What a BIOS does last: it starts the first of its devices that can be booted from.

A hard disk's boot sector goes to 0000:7C00, a CD-ROM's boot image where its catalog says; both start in real mode with
the device's number in DL (BIOS Boot Specification 1.01, 6.5). They are read at every reset, as the guest may have
written them.
"""

from typing import Final

from hvemu.cpu.state import CS, EDX, ESP, REAL_MODE_CODE, VirtualCpu
from hvemu.loader.contract import BootDevice, BootRequest
from hvemu.loader.el_torito import SECTOR as CDROM_SECTOR
from hvemu.loader.el_torito import find_boot_image, is_cdrom_medium
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError

LOAD_ADDRESS: Final = 0x7C00
SECTOR: Final = 512
HARD_DISK: Final = 0x80
CDROM: Final = 0xE0
"""The numbers of the first hard disk and of the first CD-ROM in INT 13h."""


def is_bootable(image: bytes) -> bool:
    """Whether the first sector carries the boot signature."""
    return len(image) >= SECTOR and image[510:512] == b"\x55\xaa"


def load(memory: GuestPhysicalMemory, request: BootRequest) -> VirtualCpu:
    """Load the first program there is; raises UserError, which tells of the first device, when there is none."""
    mistakes = []
    for device in request.devices:
        try:
            return _start(memory, device)
        except UserError as error:
            mistakes.append(error)
    if len(mistakes) == 1:
        raise mistakes[0]
    what = "; ".join(str(mistake).removesuffix(mistake.hint).rstrip(". ") for mistake in mistakes)
    raise UserError(f"There is nothing to boot{': ' if what else ''}{what}", "Give an IMAGE or a --disk.")


def _start(memory: GuestPhysicalMemory, device: BootDevice) -> VirtualCpu:
    try:
        if device.number >= CDROM:
            image = find_boot_image(device.medium, device.name)
            address, program = image.segment << 4, device.medium.read(image.sector * CDROM_SECTOR, image.length)
        else:
            address, program = LOAD_ADDRESS, device.medium.read(0, min(SECTOR, device.medium.size))
            if not is_bootable(program) and is_cdrom_medium(device.medium):
                raise UserError(f"{device.name} is a CD-ROM image, and no hard disk", "Write it as FILE,cdrom.")
            if not is_bootable(program):
                raise UserError(f"{device.name} has no boot sector", "A bootable disk image ends sector 0 with 55 AA.")
    except OSError as error:
        raise UserError(f"{device.name} cannot be read: {error.strerror}", "Type: hvemu disk check, with it.") from None
    memory.write(address, program)
    cpu = VirtualCpu(instruction_pointer=address & 0xFFFF, flags=0x202)
    cpu.segments[CS] = REAL_MODE_CODE._replace(selector=address >> 16 << 12, base=address >> 16 << 16)
    cpu.set_gpr(EDX, device.number)
    cpu.set_gpr(ESP, LOAD_ADDRESS)
    return cpu
