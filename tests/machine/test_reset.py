"""A machine that is reset is as good as new."""

import pytest

from hvemu.machine.builder import build
from hvemu.machine.machine import Machine
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration


def machine_of(guest: str) -> Machine:
    """A small machine with a guest of the catalogue."""
    return build(guest_configuration(catalog()[guest], memory=8 << 20))


@pytest.mark.parametrize("guest", ["hello", "paging", "cpuid", "realmode_boot"])
def test_a_reset_leaves_nothing_of_the_guest(guest: str) -> None:
    """Memory and registers equal those of a machine that never ran."""
    fresh, used = machine_of(guest), machine_of(guest)
    used.run(200_000)
    used.memory.write(0x70_0000, b"left over")
    assert bytes(fresh.memory.view) != bytes(used.memory.view)
    used.reset()
    assert bytes(fresh.memory.view) == bytes(used.memory.view)
    assert fresh.registers() == used.registers()


def test_a_guest_says_the_same_after_a_reset() -> None:
    """Down to the last register."""
    machine = machine_of("hello")
    first = machine.run()
    registers = machine.registers()
    machine.stop = None
    machine.reset()
    assert first == machine.run()
    assert registers == machine.registers()
