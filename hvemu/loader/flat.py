"""A flat binary, started in flat 32-bit protected mode at the address it is loaded to."""

from hvemu.cpu.state import VirtualCpu
from hvemu.loader.contract import BOOT_GDT, BOOT_GDT_END, BootRequest, flat_protected_mode
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.errors import UserError


def load(memory: GuestPhysicalMemory, request: BootRequest) -> VirtualCpu:
    """Load at ``request.load_address``; raises UserError when it does not fit."""
    if not request.image:
        raise UserError(f"{request.image_name} is empty", "Give a file with code in it.")
    if request.load_address + len(request.image) > memory.size:
        raise UserError(f"{request.image_name} does not fit into memory", "Start with more --memory.")
    if request.load_address < BOOT_GDT_END and request.load_address + len(request.image) > BOOT_GDT:
        raise UserError(
            f"{request.image_name} covers the descriptor table at {BOOT_GDT:#x} that it would start with",
            f"Choose a --load-address from {BOOT_GDT_END:#x}.",
        )
    memory.write(request.load_address, request.image)
    return flat_protected_mode(memory, request.load_address)
