"""No guest can make a chip raise, answer out of range, or have a state that does not come back."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.acpi_pm import AcpiPm
from hvemu.devices.ata_disk import AtaDisk
from hvemu.devices.atapi import AtapiCdrom
from hvemu.devices.cmos_rtc import CmosRtc
from hvemu.devices.contract import Device, DeviceState
from hvemu.devices.debug_ports import DebugConsole, DebugExit, PostPort, ResetControl, SystemControlPortA
from hvemu.devices.eoi_flag import EoiFlag
from hvemu.devices.fw_cfg import FwCfg
from hvemu.devices.i8042 import I8042
from hvemu.devices.ide import IdeChannel
from hvemu.devices.ioapic import IoApic
from hvemu.devices.lapic import LocalApic
from hvemu.devices.pci import PciHost
from hvemu.devices.pci_chipset import HostBridge, IdeFunction, IsaBridge, PowerManagement
from hvemu.devices.pic8259 import Pic8259Pair
from hvemu.devices.pit8254 import Pit8254, SystemControlPortB
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.buslogic import BusLogic, BusLogicFunction
from hvemu.devices.scsi.cdrom import ScsiCdrom
from hvemu.devices.uart16550 import Uart16550
from hvemu.devices.vga_text import VgaText
from hvemu.vocabulary.addresses import GuestPhysical, Port

from .fakes import FakeBackend, FakeCalls, FakeClock, FakeIrqLine, FakeMemory
from .scsi.desk import FakeMedium


class Board:
    """All devices, on one clock, wired to each other where that makes them do more."""

    def __init__(self, now: int = 0) -> None:
        self.clock = clock = FakeClock(now)
        self.memory = FakeMemory()
        line, calls = FakeIrqLine, FakeCalls
        self.pair = Pic8259Pair(intr=line())
        self.lapic = LocalApic(
            clock=clock,
            intr=line(),
            acknowledge_external=self.pair.acknowledge,
            eoi_broadcast=self._end_of_interrupt,
            nmi=calls(),
            eoi_flag=EoiFlag(self.memory),
        )
        self.ioapic = IoApic(deliver=self.lapic.deliver)
        self.uart = Uart16550(irq=self.pair.line(4), clock=clock, backend=FakeBackend())
        self.pit = Pit8254(clock=clock, irq0=self.pair.line(0))
        self.keyboard = I8042(
            irq1=self.pair.line(1), irq12=self.pair.line(12), clock=clock, reset_line=calls(), a20=calls()
        )
        self.vga = VgaText(clock=clock)
        self.acpi = AcpiPm(clock=clock, irq9=self.pair.line(9), power_off=calls())
        self.pci = PciHost(reset_control=ResetControl(on_reset=calls()))
        self.pci.add(0, 0, HostBridge())
        self.pci.add(1, 0, IsaBridge())
        self.pci.add(1, 1, IdeFunction())
        self.pci.add(1, 3, PowerManagement(pm_base=Port(0x600)))
        self.disk_medium = FakeMedium(1 << 16)
        self.ide = IdeChannel(
            [AtaDisk(self.disk_medium, serial="HV1"), AtapiCdrom(ScsiCdrom(FakeMedium(1 << 16), serial="CD0"))],
            clock=clock,
            irq=self.pair.line(14),
        )
        self.adapter = BusLogic(ScsiBus(), memory=self.memory, clock=clock, irq=line())
        self.pci.add(2, 0, BusLogicFunction(self.adapter))
        self.devices: list[tuple[Device, int]] = [
            (self.uart, 8),
            (self.pair.master, 2),
            (self.pair.slave, 2),
            (self.pair.elcr, 2),
            (self.pit, 4),
            (SystemControlPortB(clock=clock, timer=self.pit), 1),
            (CmosRtc(clock=clock, irq8=self.pair.line(8), start_time=951_782_399), 2),
            (self.lapic, 0x1000),
            (self.ioapic, 0x1000),
            (self.keyboard.data, 1),
            (self.keyboard.command, 1),
            (self.vga, 0x30),
            (self.pci.address, 4),
            (self.pci.data, 4),
            *((function, 256) for function in self.pci.functions.values()),
            (PostPort(), 1),
            (DebugConsole(backend=FakeBackend()), 1),
            (DebugExit(on_exit=calls()), 4),
            (ResetControl(on_reset=calls()), 1),
            (SystemControlPortA(on_reset=calls(), a20=calls()), 1),
            (FwCfg(files={"etc/file": b"content"}), 2),
            (self.acpi, 12),
            (self.ide.command, 8),
            (self.ide.control, 1),
            (self.adapter, 4),
        ]

    def _end_of_interrupt(self, vector: int) -> None:
        self.ioapic.end_of_interrupt(vector)


DEVICES = range(len(Board().devices))
NAMES = [device.name for device, _ in Board().devices]

FREE_LINES = (3, 5, 6, 7, 10, 11, 13, 15)  # the others belong to devices, which drive them

ADDRESSES = st.one_of(
    st.integers(0, 15), st.integers(0, 0xFFF), st.integers(0, 0xFF).map(lambda number: number * 16), st.just(0x10)
)
VALUES = st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF), st.sampled_from((0, 0x80, 0xFF, 1 << 31)))
ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(("read", "write", "write", "write", "wait", "poke")),
        st.sampled_from(DEVICES),
        ADDRESSES,
        st.sampled_from((1, 2, 4)),
        VALUES,
    ),
    max_size=60,
)


def access(board: Board, step: tuple[str, int, int, int, int]) -> None:
    """One act of the guest, of time, or of the world outside."""
    what, number, offset, size, value = step
    device, window = board.devices[number]
    size = min(size, device.widest_access)
    if what == "read":
        read = device.read(offset % window, size)
        assert 0 <= read < 1 << 8 * size, f"{device.name} read {read:#x} at {offset % window:#x}"
    elif what == "write":
        device.write(offset % window, size, value & ((1 << 8 * size) - 1))
    elif what == "wait":
        board.clock.advance(value % 3_000_000)
    else:
        poke(board, offset, value)


def poke(board: Board, offset: int, value: int) -> None:
    """What does not come from the guest's reads and writes."""
    acts: tuple[Callable[[], object], ...] = (
        lambda: board.uart.receive(bytes((value & 0xFF,)) * (offset & 31)),
        lambda: board.keyboard.type_text("Hello, World!"),
        lambda: board.pair.set_irq(FREE_LINES[offset % 8], bool(value & 1)),
        board.pair.acknowledge,
        lambda: board.ioapic.set_irq(offset % 24, bool(value & 1)),
        lambda: board.lapic.set_lint0(bool(value & 1)),
        board.lapic.acknowledge,
        board.acpi.press_power_button,
        lambda: board.vga.screen(FakeMemory()),
        lambda: board.lapic.set_eoi_flag(value & 5),
        lambda: board.memory.write(GuestPhysical(value & 4), bytes([offset & 1])),
    )
    acts[value % len(acts)]()


def restored(board: Board) -> Board:
    """Another board, from states that went through JSON."""
    other = Board(board.clock.now())
    other.memory.bytes = dict(board.memory.bytes)
    other.disk_medium.data[:] = board.disk_medium.data
    for (device, _), (copy, _) in zip(board.devices, other.devices, strict=True):
        state = device.state()
        fields = json.loads(json.dumps(state.fields))
        copy.from_state(DeviceState(state.device, state.version, fields))
    return other


def states(board: Board) -> list[DeviceState]:
    return [device.state() for device, _ in board.devices]


@settings(max_examples=300, deadline=None)
@given(ACCESSES)
def test_any_guest_is_survived_and_every_state_comes_back(steps: list[tuple[str, int, int, int, int]]) -> None:
    """Whatever was done, the restored board has the same states and the same appointments."""
    board = Board()
    for step in steps:
        access(board, step)
    other = restored(board)
    assert states(board) == states(other)
    assert board.clock.pending() == other.clock.pending()


@settings(max_examples=200, deadline=None)
@given(ACCESSES, ACCESSES)
def test_a_restored_board_behaves_as_the_one_it_came_from(
    before: list[tuple[str, int, int, int, int]], after: list[tuple[str, int, int, int, int]]
) -> None:
    """The same accesses afterwards lead to the same states."""
    board = Board()
    for step in before:
        access(board, step)
    other = restored(board)
    for step in after:
        access(board, step)
        access(other, step)
    assert states(board) == states(other)


@pytest.mark.parametrize("number", DEVICES, ids=NAMES)
def test_every_register_takes_every_byte(number: int) -> None:
    """Each offset of the window with each value, reading between; then reset, which leaves nothing scheduled."""
    board = Board()
    device, window = board.devices[number]
    step = 16 if window == 0x1000 else 1
    for offset in range(0, window, step):
        for value in range(256):
            device.write(offset, 1, value)
            device.write(offset, device.widest_access, value * 0x01010101 & ((1 << 8 * device.widest_access) - 1))
            for size in (1, device.widest_access):
                assert 0 <= device.read(offset, size) < 1 << 8 * size
    for each, _ in board.devices:
        each.reset()
    assert [] == board.clock.pending()
