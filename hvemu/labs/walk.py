"""A page walk in two dimensions: what ``hvemu lab walk`` shows."""

from typing import NamedTuple

from hvemu.machine.machine import Machine
from hvemu.memory.walk import PTE_PRESENT, Path, walk
from hvemu.modes.svm import SvmMode
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.paging import CR4_PAE, EFER_LMA


class Reference(NamedTuple):
    """One access to memory. ``level`` 0 is no table; ``address`` is machine-physical."""

    whose: str
    level: int
    address: int
    value: int
    meaning: str


class TwoDimensional(NamedTuple):
    """A whole walk: its references, the levels of both tables, and where the byte lies.

    Without a machine address the walk ends at an absent nested entry: ``guest_physical`` is no RAM, which is how the
    hypervisor hears of a device.
    """

    references: list[Reference]
    guest_levels: int
    nested_levels: int
    guest_physical: int
    machine: int | None


def two_dimensional(machine: Machine, linear: int) -> TwoDimensional:
    """Walk as the CPU does, in a machine with nested paging; raises UserError where the guest maps nothing."""
    mode, memory = machine.mode, machine.memory
    assert isinstance(mode, SvmMode)
    registers = machine.registers().paging()
    if linear >> 32 and not registers.efer & EFER_LMA:
        raise UserError(f"32-bit code has no address {linear:#x}", "Give one below 4 GiB.")
    path: list[Path] = []
    physical = walk(memory, registers, linear, mark=False, path=path)
    if not isinstance(physical, int):
        raise UserError(f"The guest maps nothing at {linear:#x}", "Give another address, or another --position.")
    tables = path[0].tables if path else ()
    size = 8 if registers.cr4 & CR4_PAE else 4
    references = list[Reference]()

    def nested(address: int, what: str) -> int | None:
        steps = mode.nested.walk(address)
        if not steps[-1].entry & PTE_PRESENT and mode.nested.fault(address, write=False):
            steps = mode.nested.walk(address)  # not backed yet: the CPU would exit, and be helped like this
        for step in steps:
            references.append(Reference("nested", step.level, step.address, step.entry, f"of {what} {address:#x}"))
        return memory.base + address if steps[-1].entry & PTE_PRESENT else None

    for index, table in enumerate(tables):
        level = len(tables) - index + (path[0].large and 1)
        at = nested(table, "the guest's entry at")
        if at is None:
            return TwoDimensional(references, len(tables), mode.nested.levels, table, None)
        value = memory.read_u64(table) if size == 8 else memory.read_u32(table)
        references.append(Reference("guest", level, at, value, f"entry of level {level}, guest-physical {table:#x}"))
    at = nested(physical, "the address itself,")
    return TwoDimensional(references, len(tables), mode.nested.levels, physical, at)
