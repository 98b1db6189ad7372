"""PCI configuration: mechanism 1, the functions of the chipset, BARs, the reset control within."""

import pytest

from hvemu.devices.bus import Bus
from hvemu.devices.debug_ports import ResetControl
from hvemu.devices.pci import PciFunction, PciHost
from hvemu.devices.pci_chipset import HostBridge, IsaBridge, PowerManagement
from hvemu.vocabulary.addresses import Port

from .fakes import FakeCalls


class Card(PciFunction):
    """A network card with ports and memory."""

    name = "card"
    vendor_id = 0x1AF4
    device_id = 0x1000
    class_code = 0x020000
    interrupt_pin = 1

    def describe(self) -> None:
        self.declare_bar(0, 0x20, is_port=True)
        self.declare_bar(1, 0x1000, is_port=False)


class Desk:
    """A host with the chipset and a card, on a bus as the builder claims it."""

    def __init__(self) -> None:
        self.on_reset = FakeCalls()
        self.host = PciHost(reset_control=ResetControl(on_reset=self.on_reset))
        self.card = Card()
        self.host.add(0, 0, HostBridge())
        self.host.add(1, 0, IsaBridge())
        self.host.add(1, 3, PowerManagement(pm_base=Port(0x600)))
        self.host.add(3, 0, self.card)
        self.bus = Bus("port")
        self.bus.claim(0xCF8, 4, self.host.address)
        self.bus.claim(0xCFC, 4, self.host.data)

    def select(self, device: int, function: int, register: int, bus: int = 0) -> None:
        self.bus.write(0xCF8, 4, 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC)

    def get(self, device: int, function: int, register: int, size: int = 4) -> int:
        self.select(device, function, register)
        return self.bus.read(0xCFC + (register & 3), size)

    def put(self, device: int, function: int, register: int, size: int, value: int) -> None:
        self.select(device, function, register)
        self.bus.write(0xCFC + (register & 3), size, value)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_linux_finds_mechanism_1(desk: Desk) -> None:
    """The address register keeps 80000000h."""
    desk.bus.write(0xCF8, 4, 0x80000000)
    assert 0x80000000 == desk.bus.read(0xCF8, 4)


def test_the_chipset_is_where_guests_expect_it(desk: Desk) -> None:
    """Vendor and device, class and revision, header type."""
    assert [0x12378086, 0x70008086, 0x71138086] == [desk.get(*place, 0) for place in ((0, 0), (1, 0), (1, 3))]
    assert [0x06000002, 0x06010000, 0x06800003] == [desk.get(*place, 8) for place in ((0, 0), (1, 0), (1, 3))]
    assert (0x00, 0x80) == (desk.get(0, 0, 0x0E, 1), desk.get(1, 0, 0x0E, 1))


def test_power_management_tells_its_base_and_interrupt(desk: Desk) -> None:
    """Ports at 600h, enabled, IRQ 9."""
    read = desk.get(1, 3, 0x40), desk.get(1, 3, 0x80, 1), desk.get(1, 3, 0x3C, 1)
    assert (0x601, 1, 9) == read


@pytest.mark.parametrize(("device", "function", "bus"), [(2, 0, 0), (1, 1, 0), (0, 0, 1)])
def test_absent_functions_read_ones(desk: Desk, device: int, function: int, bus: int) -> None:
    """And swallow writes."""
    desk.select(device, function, 0, bus)
    desk.bus.write(0xCFC, 4, 0)
    assert 0xFFFFFFFF == desk.bus.read(0xCFC, 4)


def test_without_the_enable_bit_nothing_is_configured(desk: Desk) -> None:
    """The data port reads ones."""
    desk.bus.write(0xCF8, 4, 0)
    assert 0xFFFF == desk.bus.read(0xCFC, 2)


def test_parts_of_a_register(desk: Desk) -> None:
    """Bytes and words by the offset within the data port."""
    assert (0x10, 0x1000, 0x1A) == (desk.get(3, 0, 3, 1), desk.get(3, 0, 2, 2), desk.get(3, 0, 1, 1))


def test_bars_answer_sizing_and_keep_an_address(desk: Desk) -> None:
    """Ones written come back as the size mask with the kind of space."""
    desk.put(3, 0, 0x10, 4, 0xFFFFFFFF)
    desk.put(3, 0, 0x14, 4, 0xFFFFFFFF)
    desk.put(3, 0, 0x18, 4, 0xFFFFFFFF)
    assert [0xFFFFFFE1, 0xFFFFF000, 0] == [desk.get(3, 0, register) for register in (0x10, 0x14, 0x18)]
    desk.put(3, 0, 0x10, 4, 0xC000)
    desk.put(3, 0, 0x14, 4, 0xFEB00000)
    assert (0xC001, 0xC000, 0xFEB00000) == (desk.get(3, 0, 0x10), desk.card.bar(0), desk.card.bar(1))


def test_identity_cannot_be_written_and_the_command_register_can(desk: Desk) -> None:
    """Only its implemented bits."""
    desk.put(3, 0, 0x00, 4, 0)
    desk.put(3, 0, 0x04, 2, 0xFFFF)
    desk.put(3, 0, 0x3C, 2, 0x050B)
    assert (0x10001AF4, 0x0547, 0x010B) == (desk.get(3, 0, 0), desk.get(3, 0, 4, 2), desk.get(3, 0, 0x3C, 2))


def test_status_bits_are_cleared_by_ones(desk: Desk) -> None:
    """A zero leaves them."""
    desk.card.put(0x06, 2, 0x3000)
    desk.put(3, 0, 0x06, 2, 0x1000)
    assert 0x2000 == desk.get(3, 0, 6, 2)


def test_a_place_is_taken_once(desk: Desk) -> None:
    """Both functions are named; a place that does not exist is refused too."""
    with pytest.raises(ValueError, match=r"card cannot be 00:00.0: pci-host-bridge"):
        desk.host.add(0, 0, Card())
    with pytest.raises(ValueError, match="no place"):
        desk.host.add(32, 0, Card())


def test_a_bar_size_is_a_power_of_two() -> None:
    """Otherwise it could not be decoded."""
    with pytest.raises(ValueError, match="0x30 bytes"):
        Card().declare_bar(0, 0x30, is_port=True)


def test_cf9_reaches_the_reset_control(desk: Desk) -> None:
    """By bytes only: bit 2 rising resets. Wider writes belong to PCI."""
    desk.bus.write(0xCF9, 1, 0x02)
    desk.bus.write(0xCF9, 1, 0x06)
    assert ([()], 0x06) == (desk.on_reset.calls, desk.bus.read(0xCF9, 1))
    desk.bus.write(0xCF8, 4, 0x80000600)
    assert ([()], 0xFF) == (desk.on_reset.calls, desk.bus.read(0xCF8, 1))


def test_resetting_the_bus_unassigns_bars(desk: Desk) -> None:
    """RST# reaches every function."""
    desk.put(3, 0, 0x10, 4, 0xC000)
    desk.host.data.reset()
    assert 1 == desk.get(3, 0, 0x10)


def test_configuration_survives_the_state(desk: Desk) -> None:
    """A function's bytes and the selected address."""
    desk.put(3, 0, 0x10, 4, 0xC000)
    other = Desk()
    other.card.from_state(desk.card.state())
    other.host.address.from_state(desk.host.address.state())
    assert 0xC001 == other.bus.read(0xCFC, 4)


def test_a_function_hears_of_its_configuration() -> None:
    """The offset and size of what was written, after it was written."""
    heard = []

    class Listening(Card):
        def configuration_written(self, offset: int, size: int) -> None:
            heard.append((offset, size, self.bar(0)))

    Listening().write(0x10, 4, 0xC000)
    assert [(0x10, 4, 0xC000)] == heard


def test_neighbouring_registers_are_left_alone(desk: Desk) -> None:
    """A byte write changes a byte."""
    desk.put(3, 0, 0x14, 4, 0xFEB00000)
    desk.put(3, 0, 0x17, 1, 0xE0)
    assert (0xE0B00000, 1) == (desk.get(3, 0, 0x14), desk.get(3, 0, 0x10))


def test_the_address_register_keeps_only_its_bits(desk: Desk) -> None:
    """The reserved ones and the two lowest read zero."""
    desk.bus.write(0xCF8, 4, 0xFFFFFFFF)
    assert 0x80FFFFFC == desk.bus.read(0xCF8, 4)


def test_function_8_does_not_exist(desk: Desk) -> None:
    """A device has eight, 0 to 7."""
    with pytest.raises(ValueError, match="no place"):
        desk.host.add(3, 8, Card())
