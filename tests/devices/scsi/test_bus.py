"""Targets and units that are there, and the answers for those that are not."""

import pytest

from hvemu.devices.scsi.bus import ScsiBus, Target
from hvemu.devices.scsi.contract import Command
from tests.devices.scsi.desk import JOE, SUE, cdrom, disk, good, key_and_code, wrong

INQUIRY, REPORT_LUNS, READY = "12 00 00 00 24 00", "A0" + " 00" * 8 + " FF 00 00", "00" * 6


def command(cdb: str, nexus: str = JOE) -> Command:
    """From hexadecimal."""
    return Command(bytes.fromhex(cdb), b"", nexus)


def bus() -> ScsiBus:
    """Target 3 with units 0 and 2, target 5 with unit 1."""
    found = ScsiBus({3: Target({0: disk(), 2: cdrom(None)})})
    found.attach(5, Target({1: disk()}))
    return found


def test_a_target_that_is_not_there_does_not_answer():
    """Selection times out."""
    assert bus().execute(4, 0, command(INQUIRY)) is None


def test_a_unit_that_is_not_there_is_answered_for():
    """Peripheral qualifier 011b, the list of units, sense data; nothing else."""
    there = bus()
    assert 0x7F == there.execute(3, 1, command(INQUIRY)).data_in[0]
    assert 0x00 == there.execute(3, 0, command(INQUIRY)).data_in[0]
    for cdb in (READY, "12 01 80 00 FF 00", "28" + " 00" * 9, "FF" * 16):
        answer = there.execute(5, 0, command(cdb))
        assert (2, (5, 0x2500)) == (answer.status, key_and_code(answer.sense))
    assert (5, 0x2500) == key_and_code(there.execute(5, 0, command("03 00 00 00 FF 00")).data_in)


def test_every_unit_lists_all_of_its_target():
    """REPORT LUNS, whoever is asked."""
    there = bus()
    expected = bytes.fromhex("00000010 00000000 0000000000000000 0002000000000000")
    assert [expected] * 3 == [there.execute(3, lun, command(REPORT_LUNS)).data_in for lun in (0, 1, 2)]
    assert bytes((0, 0, 0, 8)) == there.execute(5, 1, command(REPORT_LUNS)).data_in[:4]
    assert (5, 0x2400) == wrong(there.targets[3].units[0], "A0" + " 00" * 8 + " 08 00 00")


def test_resets_reach_what_they_name():
    """Everything, a target, a unit."""
    there = bus()
    units = there.targets[3].units[0], there.targets[3].units[2], there.targets[5].units[1]
    there.reset()
    assert [(6, 0x2902)] * 3 == [wrong(unit, READY) for unit in units]
    assert [True, False] == [there.reset_target(3), there.reset_target(4)]
    assert [(6, 0x2903), (6, 0x2903)] == [wrong(unit, READY) for unit in units[:2]]
    good(units[2], READY)
    assert [True, False, False] == [there.reset_unit(5, 1), there.reset_unit(5, 0), there.reset_unit(4, 0)]
    assert [(6, 0x2903)] * 2 == [wrong(units[2], READY, nexus=nexus) for nexus in (JOE, SUE)]


def test_the_state_of_a_bus_is_that_of_its_units():
    """All or nothing."""
    there, other = bus(), bus()
    good(there.targets[3].units[0], "16 00 00 00 00 00")
    states = there.states()
    other.from_states(states)
    assert states == other.states()
    broken = {**states, "3:0": other.targets[5].units[1].state(), "5:1": states["3:2"]}
    with pytest.raises(ValueError, match="cannot become"):
        other.from_states(broken)
    assert states == other.states()
    with pytest.raises(ValueError, match="the units of the bus are"):
        other.from_states({})


def test_nonsense_is_refused():
    """When a bus is built."""
    with pytest.raises(ValueError, match="no other target 3"):
        bus().attach(3, Target({0: disk()}))
    with pytest.raises(ValueError, match="units with numbers"):
        Target({})
