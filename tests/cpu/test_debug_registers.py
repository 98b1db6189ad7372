"""DR0 to DR7: reserved bits, aliases, and the general-detect trap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvemu.cpu.debug_registers import DR6_BD, DR6_BS, DR7_GD, DebugRegisterFault, DebugRegisters

words = st.integers(0, 0xFFFF_FFFF)


def test_values_after_reset() -> None:
    """No address, no condition, nothing enabled."""
    registers = DebugRegisters()
    assert [0, 0, 0, 0, 0xFFFF_0FF0, 0x400] == [registers.read(number, False) for number in (0, 1, 2, 3, 6, 7)]


@given(words, words, words)
def test_reserved_bits_stay(address: int, status: int, control: int) -> None:
    """Addresses take everything; of DR6 and DR7 only what SDM vol. 3B, 18.2 names."""
    registers = DebugRegisters()
    for number in range(4):
        registers.write(number, address, True)
        assert address == registers.read(number, True)
    registers.write(6, status, True)
    assert status & 0xE00F | 0xFFFF_0FF0 == registers.read(6, True)
    registers.write(7, control & ~DR7_GD, True)
    assert control & 0xFFFF_03FF | 0x400 == registers.read(7, True)


def test_4_and_5_are_6_and_7() -> None:
    """Unless CR4.DE makes them undefined."""
    registers = DebugRegisters()
    registers.write(4, 0x1, False)
    registers.write(5, 0x55, False)
    assert (0xFFFF_0FF1, 0x455) == (registers.read(6, False), registers.read(7, True))
    assert (0xFFFF_0FF1, 0x455) == (registers.read(4, False), registers.read(5, False))
    for number in (4, 5):
        with pytest.raises(DebugRegisterFault) as fault:
            registers.read(number, True)
        assert 6 == fault.value.vector
        with pytest.raises(DebugRegisterFault):
            registers.write(number, 0, True)


@pytest.mark.parametrize("number", range(8))
def test_general_detect_traps_one_access(number: int) -> None:
    """#DB, BD in DR6, and GD is cleared so that the handler can look."""
    registers = DebugRegisters()
    registers.write(7, DR7_GD | 0xFF, False)
    with pytest.raises(DebugRegisterFault) as fault:
        registers.read(number, False)
    assert 1 == fault.value.vector
    assert DR6_BD == registers.read(6, False) & DR6_BD
    assert 0x4FF == registers.read(7, False)
    registers.write(7, DR7_GD, False)
    with pytest.raises(DebugRegisterFault):
        registers.write(number, 0, False)
    assert (0, 0x400) == (registers.read(0, False), registers.read(7, False))


def test_an_undefined_register_is_undefined_before_it_is_detected() -> None:
    """#UD, and GD stays armed."""
    registers = DebugRegisters()
    registers.write(7, DR7_GD, False)
    with pytest.raises(DebugRegisterFault) as fault:
        registers.read(4, True)
    assert 6 == fault.value.vector
    assert DR7_GD == registers.values[7] & DR7_GD


def test_single_steps_are_recorded() -> None:
    """BS is sticky until software clears it."""
    registers = DebugRegisters()
    registers.single_stepped()
    registers.single_stepped()
    assert 0xFFFF_0FF0 | DR6_BS == registers.read(6, False)
    registers.write(6, 0, False)
    assert 0xFFFF_0FF0 == registers.read(6, False)
