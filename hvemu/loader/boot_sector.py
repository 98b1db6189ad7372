"""A disk image's boot sector, started in real mode at 0000:7C00 with DL = 80h, as a BIOS does."""

from hvemu.cpu.state import CS, EDX, ESP, REAL_MODE_CODE, VirtualCpu
from hvemu.loader.contract import BootRequest
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError

LOAD_ADDRESS = 0x7C00
SECTOR = 512


def is_bootable(image: bytes) -> bool:
    """Whether the first sector carries the boot signature."""
    return len(image) >= SECTOR and image[510:512] == b"\x55\xaa"


def load(memory: GuestPhysicalMemory, request: BootRequest) -> VirtualCpu:
    """Load the first sector; raises UserError for an image without a boot signature."""
    if not is_bootable(request.image):
        raise UserError(f"{request.image_name} has no boot sector", "A bootable disk image ends sector 0 with 55 AA.")
    memory.write(LOAD_ADDRESS, request.image[:SECTOR])
    cpu = VirtualCpu(instruction_pointer=LOAD_ADDRESS, flags=0x202)
    cpu.segments[CS] = REAL_MODE_CODE
    cpu.set_gpr(EDX, 0x80)
    cpu.set_gpr(ESP, LOAD_ADDRESS)
    return cpu
