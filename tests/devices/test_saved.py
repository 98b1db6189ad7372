"""States: what is refused, and that a refused state changes nothing."""

from dataclasses import replace
from typing import Any

import pytest

from hvemu.devices.cmos_rtc import CmosRtc
from hvemu.devices.contract import DeviceState
from hvemu.devices.deadline import Deadline
from hvemu.devices.debug_ports import PostPort
from hvemu.devices.uart16550 import Uart16550

from .fakes import FakeBackend, FakeCalls, FakeClock, FakeIrqLine


def a_uart() -> Uart16550:
    """A UART with some state."""
    return Uart16550(irq=FakeIrqLine(), clock=FakeClock(), backend=FakeBackend())


def test_a_state_of_another_device_is_refused() -> None:
    """By name, in both directions of the message."""
    with pytest.raises(ValueError, match="uart16550 version 1 cannot become post version 1"):
        a_uart().from_state(PostPort().state())


def test_a_state_of_another_version_is_refused() -> None:
    """There is no guessing."""
    uart = a_uart()
    with pytest.raises(ValueError, match="version 2"):
        uart.from_state(replace(uart.state(), version=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scratch", 256),
        ("scratch", -1),
        ("scratch", True),
        ("scratch", "5"),
        ("overrun", 1),
        ("receive_fifo", "00" * 17),
        ("receive_fifo", "zz"),
        ("queue", None),
        ("refill", "soon"),
        ("trigger_level", 0),
    ],
)
def test_a_wrong_field_is_refused_by_name_and_nothing_is_adopted(field: str, value: Any) -> None:
    """All or none."""
    uart = a_uart()
    good = uart.state()
    bad = DeviceState(good.device, good.version, {**good.fields, "divisor_latch": 77, field: value})
    with pytest.raises(ValueError, match=field):
        uart.from_state(bad)
    assert good == uart.state()


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory", "00" * 127), ("memory", "gg" * 128), ("memory", 5), ("fields", [0] * 7), ("fields", [256] * 8),
     ("fields", (0,) * 8), ("fields", ["1"] * 8)],
)  # fmt: skip
def test_wrong_bytes_and_lists_are_refused(field: str, value: Any) -> None:
    """Their length is part of what the chip is."""
    rtc = CmosRtc(clock=FakeClock(), irq8=FakeIrqLine(), start_time=0)
    good = rtc.state()
    with pytest.raises(ValueError, match=field):
        rtc.from_state(DeviceState(good.device, good.version, {**good.fields, field: value}))
    assert good == rtc.state()


def test_missing_and_unknown_fields_are_refused() -> None:
    """The fields must be exactly those of the version."""
    uart = a_uart()
    good = uart.state()
    fewer = {name: value for name, value in good.fields.items() if name != "scratch"}
    for fields in (fewer, {**good.fields, "extra": 1}):
        with pytest.raises(ValueError, match="exactly the fields"):
            uart.from_state(DeviceState(good.device, good.version, fields))


def test_a_state_does_not_change_with_the_chip() -> None:
    """It is a value."""
    uart = a_uart()
    uart.receive(b"before")
    state = uart.state()
    uart.read(0, 1)
    uart.receive(b"after")
    assert b"efore" == bytes.fromhex(state.fields["queue"])


def test_a_deadline_is_one_appointment() -> None:
    """Arming again forgets the first; a call that is made is over."""
    clock, calls = FakeClock(), FakeCalls()
    deadline = Deadline(clock, calls)
    deadline.arm(100)
    deadline.arm(200)
    assert ([200], 200) == (clock.pending(), deadline.at)
    clock.advance_to(300)
    assert ([()], None) == (calls.calls, deadline.at)
    deadline.arm(400)
    deadline.arm(None)
    assert [] == clock.pending()
