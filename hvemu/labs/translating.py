"""What mode ``bt`` makes of a kernel that does not run: translation units of an image, as it lies in memory at boot."""

from collections import deque
from dataclasses import replace
from typing import Final, NamedTuple

from hvemu.cpu.decoder import decode
from hvemu.cpu.state import ATTRIBUTE_BIG, CS, FLAG_IF, FLAG_IOPL, FLAT_CODE, VirtualCpu
from hvemu.loader.select import is_64_bit
from hvemu.loader.symbols import Symbols, read_symbols
from hvemu.machine.builder import build, read_images
from hvemu.machine.configuration import MachineConfiguration
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import walk
from hvemu.modes.translator import Context, Translation, translate
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.paging import CR0_PE

_IOPL_SHIFT: Final = 12


class Translations(NamedTuple):
    """Translation units in the order in which their exits lead from one to another, and the image's names."""

    units: list[Translation]
    symbols: Symbols


def translations(
    configuration: MachineConfiguration, at: int | str | None = None, *, units: int = 1, interrupts: bool | None = None
) -> Translations:
    """Translate what is at linear address ``at``, or at a symbol, or at the entry point, and what its direct exits
    lead to, breadth first, up to ``units`` units.

    ``interrupts``: for which IF; None is what the guest has at boot. Raises UserError for code of 16 bits, and where
    there is no code.
    """
    image = read_images(configuration)[0].image
    if is_64_bit(image):
        raise UserError(f"{configuration.image} is a 64-bit kernel, which mode bt does not translate", "Give another.")
    machine = build(replace(configuration, mode="native", mmu="", shadow="cached", audit=False))
    cpu, memory, symbols = machine.registers(), machine.memory, read_symbols(image)
    flat = cpu.cr0 & CR0_PE and cpu.segments[CS].attributes & ATTRIBUTE_BIG
    code = cpu.segments[CS] if flat else FLAT_CODE
    start = cpu.instruction_pointer
    if at is not None:
        start = (_resolve(at, symbols, configuration.image) - code.base) & 0xFFFF_FFFF
    elif not flat:
        raise UserError(
            f"{configuration.image} starts with 16-bit code, which mode bt runs untranslated",
            "Give the address of 32-bit code, as in --at 0x100000.",
        )
    enabled = bool(cpu.flags & FLAG_IF) if interrupts is None else interrupts
    context = Context(enabled, False, (cpu.flags & FLAG_IOPL) >> _IOPL_SHIFT, code.selector & 0xFFFC, code.base)
    found, waiting, seen = list[Translation](), deque([(start, context)]), {(start, context)}
    while waiting and len(found) < units:
        eip, here = waiting.popleft()
        unit = translate(lambda linear, length: _fetch(memory, cpu, linear, length), eip, here, _Constants(cpu))
        if unit.items:
            found.append(unit)
        for way in unit.exits:
            interrupts_there, shadow = way.transition
            then = (way.target, here._replace(interrupts=interrupts_there, shadow=shadow))
            if then not in seen:
                seen.add(then)
                waiting.append(then)
    if not found:
        linear = (code.base + start) & 0xFFFF_FFFF
        raise UserError(
            f"No code can be fetched at {linear:#010x}: the guest has {memory.size:#x} bytes of memory",
            "Give --at another address, or start with more --memory.",
        )
    return Translations(found, symbols)


def _resolve(at: int | str, symbols: Symbols, image: str) -> int:
    if isinstance(at, int):
        if not 0 <= at < 1 << 32:
            raise UserError(f"The address {at:#x} does not fit into 32 bits", "Give --at an address below 4 GiB.")
        return at
    address = symbols.address(at)
    if address is None:
        what = f"no symbol '{at}'" if len(symbols) else "no symbols"
        raise UserError(f"{image} has {what}", "Give --at an address, as in --at 0x100000.")
    return address


def _fetch(memory: GuestPhysicalMemory, cpu: VirtualCpu, linear: int, length: int) -> bytes:
    """Code bytes up to the end of what is mapped; nothing if an instruction is cut off there."""
    room = PAGE_SIZE - linear % PAGE_SIZE
    physical = walk(memory, cpu.paging(), linear, fetch=True, mark=False)
    if not isinstance(physical, int) or physical >= memory.size:
        return b""
    first = memory.read(physical, min(room, length))
    if length <= room or decode(first, 32) is not None:
        return first
    rest = _fetch(memory, cpu, (linear + room) & 0xFFFF_FFFF, length - room)
    return first + rest if rest else b""


class _Constants:
    """The virtual registers that translations hold, at boot."""

    def __init__(self, cpu: VirtualCpu) -> None:
        self._values = {
            "cr0": cpu.cr0, "cr2": cpu.cr2, "cr3": cpu.cr3, "cr4": cpu.cr4, "ldtr": cpu.ldtr.selector,
            "tr": cpu.tr.selector, "gdtr.base": cpu.gdtr.base, "gdtr.limit": cpu.gdtr.limit,
            "idtr.base": cpu.idtr.base, "idtr.limit": cpu.idtr.limit,
        }  # fmt: skip

    def __call__(self, name: str) -> int:
        """The value of one of binary_translation.CONSTANTS."""
        whole, _, half = name.partition(":")
        return self._values[whole] & (0xFFFF if half else 0xFFFF_FFFF)
