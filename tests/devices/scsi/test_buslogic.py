"""The BT-958: its registers as a driver polls them, its commands, mailboxes and command control blocks."""

import json

import pytest

from hvemu.devices.bus import Bus as Space
from hvemu.devices.contract import DeviceState
from hvemu.devices.pci import PciHost
from hvemu.devices.scsi.bus import Target
from hvemu.devices.scsi.buslogic import DIAGNOSTIC_TIME, POLL_TIME, SERVICE_TIME, BusLogicFunction

from .adapter_desk import BOXES, CCB, COUNT, DATA, LIST, SENSE, TEST_UNIT_READY, AdapterDesk
from .desk import disk, one_target, read10, write10

UNCHECKED, DATA_IN, DATA_OUT, NO_DATA = range(4)
BLOCK = bytes(range(256)) * 2


@pytest.fixture
def desk() -> AdapterDesk:
    return AdapterDesk()


# Registers


def test_after_power_on_the_adapter_is_ready_and_wants_mailboxes(desk: AdapterDesk) -> None:
    """What a driver's probe looks at before it dares to write."""
    assert [0x30, 0, 0, 0x80] == [desk.adapter.read(offset, 1) for offset in range(4)]
    assert 0xFF == desk.adapter.read(0x10, 1)


@pytest.mark.parametrize(("bit", "attentions"), [(0x80, 1), (0x40, 0)])
def test_a_reset_shows_its_diagnostics_for_a_while(desk: AdapterDesk, bit: int, attentions: int) -> None:
    """A hard reset resets the bus too, so that the disk has a unit attention; a soft one does not."""
    desk.place()
    assert 0x10 == desk.status()
    desk.adapter.write(0, 1, bit)
    assert 0x80 == desk.status()
    desk.adapter.write(1, 1, 4)  # lost
    desk.clock.advance(DIAGNOSTIC_TIME - 1)
    assert 0x80 == desk.status()
    desk.clock.advance(1)
    assert 0x30 == desk.status()
    host, target, _ = desk.run(TEST_UNIT_READY)
    assert (0, 2 * attentions) == (host, target)


def test_a_reset_forgets_interrupts_and_announced_mailboxes(desk: AdapterDesk) -> None:
    """Nothing is left scheduled but its own end."""
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.adapter.write(1, 1, 0)
    desk.adapter.write(1, 1, 2)
    assert desk.irq.level
    desk.adapter.write(0, 1, 0x40)
    assert not desk.irq.level
    assert [DIAGNOSTIC_TIME] == desk.clock.pending()
    desk.clock.advance(DIAGNOSTIC_TIME)
    assert (0xEE, 0xEE) == desk.statuses()


def test_the_bus_reset_bit_resets_the_targets_and_nothing_else(desk: AdapterDesk) -> None:
    desk.place()
    desk.adapter.write(0, 1, 0x10)
    assert 0x10 == desk.status()
    assert (0, 2, 4) == desk.run(TEST_UNIT_READY)
    assert (6, 0x29, 2) == (desk.memory.data[SENSE + 2], *desk.memory.data[SENSE + 12 : SENSE + 14])


def test_a_command_ends_with_an_interrupt_that_is_reset(desk: AdapterDesk) -> None:
    """Level-triggered: the pin follows the register."""
    desk.adapter.write(1, 1, 0)
    assert 0x84 == desk.interrupt()
    assert desk.irq.level
    desk.acknowledge()
    assert 0 == desk.interrupt()
    assert not desk.irq.level


def test_disabled_interrupts_are_seen_in_the_register_only(desk: AdapterDesk) -> None:
    """Command 25h; enabling them lets out what is pending."""
    desk.inquire(0x25, b"\0")
    desk.irq.edges.clear()
    desk.adapter.write(1, 1, 0)
    assert 0x84 == desk.interrupt()
    assert not desk.irq.level
    for byte in b"\x25\1":
        desk.adapter.write(1, 1, byte)
    assert desk.irq.level


def test_a_command_is_complete_when_its_reply_was_read(desk: AdapterDesk) -> None:
    """Until then the adapter is not ready; another command is not heard, except for the mailboxes' announcement."""
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.adapter.write(1, 1, 4)
    assert (0x04, 0) == (desk.status(), desk.interrupt())
    desk.adapter.write(1, 1, 0x0B)
    desk.ring()
    assert 0x81 == desk.interrupt()
    assert b"AA50" == bytes(desk.adapter.read(1, 1) for _ in range(4))
    assert (0x10, 0x81) == (desk.status(), desk.interrupt())
    desk.acknowledge()
    assert 0x84 == desk.interrupt()  # it waited for its turn
    assert 0 == desk.adapter.read(1, 1)


def test_between_parameters_the_adapter_is_neither_ready_nor_busy(desk: AdapterDesk) -> None:
    desk.adapter.write(1, 1, 0x81)
    for byte in (4, 0, 0x10, 0):
        assert 0x20 == desk.status()
        desk.adapter.write(1, 1, byte)
    assert 0 == desk.interrupt()
    desk.adapter.write(1, 1, 0)
    assert (0x10, 0x84) == (desk.status(), desk.interrupt())


@pytest.mark.parametrize("opcode", [0x02, 0x03, 0x0C, 0x20, 0x22, 0x82, 0x83, 0x92, 0x97, 0x9A, 0xA7, 0xFF])
def test_what_is_not_a_command_is_refused(desk: AdapterDesk, opcode: int) -> None:
    """02h is one only when there are mailboxes. The refusal ends with the reset of its interrupt."""
    desk.command(opcode)
    assert (0x31, 0x84) == (desk.status(), desk.interrupt())
    assert [("command refused", opcode)] == [(event.what, event.detail) for event in desk.watcher.events]
    desk.acknowledge()
    assert 0x30 == desk.status()


@pytest.mark.parametrize(
    ("opcode", "parameters"),
    [(0x01, "00001000"), (0x81, "0000100000"), (0x05, "02"), (0x25, "02"), (0x8F, "02"), (0x96, "ff"), (0x95, "00")],
)
def test_parameters_that_mean_nothing_are_refused(desk: AdapterDesk, opcode: int, parameters: str) -> None:
    """No mailboxes, a flag that is neither, an ISA-compatible port."""
    desk.command(opcode, bytes.fromhex(parameters))
    assert (0x31, 0x84) == (desk.status(), desk.interrupt())


# Commands


@pytest.mark.parametrize(
    ("opcode", "parameters", "reply"),
    [
        (0x00, "", ""),
        (0x04, "", "41413530"),
        (0x06, "01000100", ""),
        (0x0A, "", "0500000000000000"),
        (0x0B, "", "000007"),
        (0x1F, "a5", "a5"),
        (0x21, "0400000000", ""),
        (0x21, "00", ""),
        (0x23, "", "0001000000000000"),
        (0x24, "", "0102"),
        (0x84, "", "37"),
        (0x85, "", "42"),
        (0x86, "", "06008300"),
        (0x8B, "05", "3935382000"),
        (0x8C, "10", "05000000000000000005000000000000"),
        (0x8D, "0e", "45000020000000000040" + "303742" + "1d"),
        (0x8D, "02", "4500"),
        (0x8D, "10", "45000020000000000040" + "303742" + "1d0000"),
        (0x8D, "00", ""),
        (0x95, "06", ""),
        (0x96, "01", ""),
    ],
)
def test_commands_reply(desk: AdapterDesk, opcode: int, parameters: str, reply: str) -> None:
    """Firmware 5.07B of model 958; targets 0 with units 0 and 2, and 9 with unit 0."""
    assert bytes.fromhex(reply) == desk.inquire(opcode, bytes.fromhex(parameters))


def test_setup_information_shows_what_was_set(desk: AdapterDesk) -> None:
    """Bus times, mailboxes by their low 24 bits, negotiated transfers."""
    for opcode, value in ((7, 11), (8, 5), (9, 3)):
        desk.inquire(opcode, bytes((value,)))
    desk.place(base=0x12345678, count=211)
    reply = desk.inquire(0x0D, bytes((34,)))
    assert bytes.fromhex("03030b05d3345678") == reply[:8]
    assert [0x8F, *[0] * 7] == list(reply[8:16])
    assert b"\0BDF\xff\x01" == reply[16:22]
    assert [0, 0x8F, *[0] * 6] == list(reply[22:30])
    assert b"\0\0\xff\x02" == reply[30:]
    assert bytes.fromhex("4500 0020 d3 78563412") == desk.inquire(0x8D, bytes((9,)))


def test_the_local_ram_has_the_autoscsi_data_and_can_be_written(desk: AdapterDesk) -> None:
    """Fetching ends without an interrupt; the offset wraps."""
    assert b"BT-958" == desk.command(0x91, bytes((64 + 3, 6)))
    assert (0x30, 0) == (desk.status(), desk.interrupt())
    data = desk.command(0x91, bytes((64, 64)))
    assert 7 == data[14]
    assert sum(data[:62]) == int.from_bytes(data[62:], "little")
    assert b"" == desk.command(0x91, bytes((64, 0)))
    desk.inquire(0x90, bytes((255, 2)) + b"xy")
    assert b"xy" == desk.command(0x91, bytes((255, 2)))
    desk.adapter.write(0, 1, 0x40)
    desk.clock.advance(DIAGNOSTIC_TIME)
    assert bytes(2) == desk.command(0x91, bytes((255, 2)))


@pytest.mark.parametrize("fill", [0x1A, 0x1C])
def test_the_buffer_goes_to_and_from_memory_after_a_while(desk: AdapterDesk, fill: int) -> None:
    """Never within the OUT of the last parameter; the command register is busy until then."""
    desk.memory.write(0x2000, BLOCK[:64])
    desk.inquire(fill, b"\0\x20\0")
    desk.adapter.write(1, 1, fill + 1)
    for byte in b"\0\x30\0":
        desk.adapter.write(1, 1, byte)
    assert 0x28 == desk.status()
    assert bytes(64) == desk.memory.read(0x3000, 64)
    desk.clock.advance(SERVICE_TIME)
    assert 0x84 == desk.interrupt()
    assert BLOCK[:64] == desk.memory.read(0x3000, 64)


def test_a_driver_finds_its_way_from_reset_to_mailboxes(desk: AdapterDesk) -> None:
    """The commands of Linux's driver in its order, each ending as that driver waits for it."""
    desk.adapter.write(0, 1, 0x80)
    desk.clock.advance(DIAGNOSTIC_TIME)
    lengths = [
        (0x86, b"", 4), (0x95, b"\6", 0), (0x91, b"\x6d\1", 1), (0x04, b"", 4), (0x8D, b"\x0e", 14), (0x0B, b"", 3),
        (0x0D, b"\x22", 34), (0x84, b"", 1), (0x8B, b"\5", 5), (0x85, b"", 1), (0x91, b"\x40\x40", 64),
        (0x81, b"\xd3\0\x10\0\0", 0), (0x8F, b"\1", 0), (0x96, b"\1", 0), (0x24, b"", 2), (0x8C, b"\x10", 16),
    ]  # fmt: skip
    assert [length for *_, length in lengths] == [len(desk.inquire(opcode, given)) for opcode, given, _ in lengths]
    assert (0x10, 0) == (desk.status(), desk.interrupt())


# PCI


def test_the_function_has_the_registers_as_ports_and_in_memory(desk: AdapterDesk) -> None:
    """And the adapter reports the interrupt line that firmware chose."""
    ports, memory = Space("port"), Space("memory")
    host, function = PciHost(), BusLogicFunction(desk.adapter)
    host.connect(ports, memory)
    host.add(5, 0, function)
    assert (0x1040104B, 0x01000008) == (function.read(0, 4), function.read(8, 4))
    assert {0: (True, 4), 1: (False, 0x1000)} == function.bars()
    function.write(0x10, 4, 0xE000)
    function.write(0x14, 4, 0xFEB00000)
    function.write(0x3C, 1, 11)
    function.write(4, 2, 7)
    assert 0x80000030 == ports.read(0xE000, 4)
    assert 0x30 == memory.read(0xFEB00000, 1)
    assert bytes((0, 4, 7)) == desk.inquire(0x0B)
    assert 11 == desk.inquire(0x86)[1]
    state = function.state()
    function.reset()
    assert 0 == desk.inquire(0x86)[1]
    function.from_state(state)
    assert 11 == desk.inquire(0x86)[1]


# Mailboxes


def test_nothing_is_served_within_the_announcement(desk: AdapterDesk) -> None:
    """The outgoing mailbox is freed, the incoming one filled, the interrupt raised by one event."""
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.adapter.write(1, 1, 2)
    desk.clock.advance(SERVICE_TIME - 1)
    assert ((0xEE, 0xEE), 1, 0) == (desk.statuses(), desk.memory.data[BOXES + 7], desk.interrupt())
    desk.clock.advance(1)
    assert ((0, 0), 0, 0x81) == (desk.statuses(), desk.memory.data[BOXES + 7], desk.interrupt())
    assert (CCB, 0, 0, 1) == desk.incoming(0)
    assert desk.irq.level
    assert [] == desk.clock.pending()


def test_24_bit_mailboxes_have_the_code_first(desk: AdapterDesk) -> None:
    """And 24-bit blocks, big-endian, with sense data behind the CDB."""
    desk.place(wide=False)
    desk.medium.data[512:1024] = BLOCK
    desk.write_ccb24(read10(1, 1), direction=DATA_IN, length=512)
    desk.post24(0)
    desk.ring()
    assert (1, CCB) == desk.incoming24(0)
    assert 0 == desk.memory.data[BOXES]
    assert ((0, 0), BLOCK) == (desk.statuses(), desk.memory.read(DATA, 512))
    desk.write_ccb24(read10(1 << 20, 1), direction=DATA_IN, length=512, place=9 << 5 & 0xFF)
    desk.post24(1)
    desk.ring()
    assert (4, CCB) == desk.incoming24(1)
    assert (0x11, 0) == desk.statuses()  # target 1: three bits of 9
    desk.write_ccb24(read10(1 << 20, 1), direction=DATA_IN, length=512, place=2)
    desk.post24(2)
    desk.ring()
    assert (0, 2) == desk.statuses()
    sense = desk.memory.read(CCB + 18 + 10, 18)
    assert (5, 0x21) == (sense[2], sense[12])


def test_24_bit_blocks_have_three_bits_of_a_target(desk: AdapterDesk) -> None:
    desk.bus.attach(6, Target({1: disk()}))
    desk.place(wide=False)
    desk.write_ccb24(bytes((0x12, 0, 0, 0, 1, 0)), length=1, place=6 << 5 | 1)
    desk.memory.write(DATA, b"\xee")
    desk.post24(0)
    desk.ring()
    assert ((0, 0), 0) == (desk.statuses(), desk.memory.data[DATA])


def test_24_bit_lists_have_segments_of_six_bytes(desk: AdapterDesk) -> None:
    """Length and address, both big-endian; the residual has three bytes."""
    desk.place(wide=False)
    desk.medium.data[:512] = BLOCK
    desk.memory.write(DATA, b"\0\1\0" + b"\x03\0\0" + b"\0\2\0" + b"\x03\x80\0")
    desk.write_ccb24(read10(0, 1), opcode=4, direction=DATA_IN, length=12)
    desk.post24(0)
    desk.ring()
    assert (0x12, 0) == desk.statuses()
    assert BLOCK == desk.memory.read(0x30000, 256) + desk.memory.read(0x38000, 256)
    assert b"\0\1\0" == desk.memory.read(CCB + 4, 3)


def test_in_strict_mode_only_the_next_mailbox_is_looked_at(desk: AdapterDesk) -> None:
    """A command in the one after it waits for its turn."""
    desk.place()
    desk.inquire(0x8F, b"\1")
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(1)
    desk.ring()
    assert 0 == desk.interrupt()
    desk.post(0, CCB + 0x100)
    desk.write_ccb(TEST_UNIT_READY, at=CCB + 0x100)
    desk.ring()
    assert [CCB + 0x100, CCB] == [desk.incoming(index)[0] for index in range(2)]


def test_in_aggressive_mode_every_mailbox_is_found_beginning_with_the_next(desk: AdapterDesk) -> None:
    """Round robin: after the one that was served last, not from the first."""
    desk.place()
    for index in range(COUNT):
        desk.write_ccb(TEST_UNIT_READY, at=CCB + 0x100 * index)
    desk.post(1, CCB)
    desk.ring()
    assert CCB == desk.incoming(0)[0]
    for index, number in ((0, 3), (2, 1), (3, 2)):
        desk.post(index, CCB + 0x100 * number)
    desk.ring()
    assert [CCB + 0x100 * number for number in (1, 2, 3)] == [desk.incoming(index)[0] for index in (1, 2, 3)]


def test_a_full_incoming_mailbox_makes_the_adapter_wait(desk: AdapterDesk) -> None:
    """The command stays in its outgoing mailbox until the driver has made room."""
    desk.place(count=1)
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.ring()
    desk.ring()
    assert [] == desk.clock.pending()  # full, but there is nothing to report
    desk.post(0)
    desk.memory.write(CCB + 14, b"\xee\xee")
    desk.ring()
    desk.clock.advance(3 * POLL_TIME)
    assert ((0xEE, 0xEE), 1) == (desk.statuses(), desk.memory.data[BOXES + 7])
    desk.memory.write(BOXES + 8, bytes(8))
    desk.clock.advance(POLL_TIME)
    assert ((0, 0), (CCB, 0, 0, 1)) == (desk.statuses(), desk.incoming(0, 1))
    assert [] == desk.clock.pending()


def test_an_interrupt_that_comes_before_the_reset_of_another_is_not_lost(desk: AdapterDesk) -> None:
    """The driver reads the register, another command ends, the driver resets the interrupt: there is one more."""
    desk.place()
    for index in range(2):
        desk.write_ccb(TEST_UNIT_READY)
        desk.post(index)
        desk.ring()
    desk.acknowledge()
    assert 0x81 == desk.interrupt()
    assert desk.irq.level
    desk.acknowledge()
    assert 0 == desk.interrupt()


def test_the_interrupt_of_freed_outgoing_mailboxes_can_be_enabled(desk: AdapterDesk) -> None:
    """Command 05h, which ends without an interrupt."""
    desk.place()
    desk.command(0x05, b"\1")
    assert 0 == desk.interrupt()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.ring()
    assert 0x83 == desk.interrupt()


def test_an_abort_finds_nothing_because_every_command_has_ended(desk: AdapterDesk) -> None:
    """Completion code 3; the block is left as it was."""
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0, action=2)
    desk.ring()
    assert ((CCB, 0, 0, 3), (0xEE, 0xEE)) == (desk.incoming(0), desk.statuses())


def test_another_action_code_is_an_error(desk: AdapterDesk) -> None:
    """Host adapter status 15h."""
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0, action=7)
    desk.ring()
    assert ((CCB, 0x15, 0, 4), (0x15, 0)) == (desk.incoming(0), desk.statuses())


def test_mailboxes_outside_of_memory_are_waited_for_for_ever(desk: AdapterDesk) -> None:
    """Ones are there, which is no free mailbox."""
    desk.place(base=0xFFFF_FFF0, count=255)
    desk.ring()
    desk.clock.advance(10 * POLL_TIME)
    assert 0 == desk.interrupt()
    assert 1 == len(desk.clock.pending())


def test_a_pass_ends_when_it_has_copied_enough(desk: AdapterDesk) -> None:
    """Two requests of 20 MiB are not served by the same event as a third."""
    desk.place()
    for index in range(3):
        desk.write_ccb(TEST_UNIT_READY, at=CCB + 0x100 * index, length=20 << 20)
        desk.post(index, CCB + 0x100 * index)
    desk.ring()
    assert [1, 1, 0] == [desk.incoming(index)[3] for index in range(3)]
    desk.clock.advance(SERVICE_TIME)
    assert 1 == desk.incoming(2)[3]
    assert [] == desk.clock.pending()


# Command control blocks


def test_blocks_are_read_and_written(desk: AdapterDesk) -> None:
    desk.memory.write(DATA, BLOCK)
    assert (0, 0, 1) == desk.run(write10(3, 1), direction=DATA_OUT, length=512)
    assert BLOCK == desk.medium.data[3 * 512 : 4 * 512]
    assert (0, 0, 1) == desk.run(read10(3, 1), direction=DATA_IN, length=512, data=DATA + 0x1000)
    assert BLOCK == desk.memory.read(DATA + 0x1000, 512)
    assert 512 == desk.length_field()  # without a residual, the field stays


@pytest.mark.parametrize("opcode", [2, 4])
def test_lists_of_segments_gather_and_scatter(desk: AdapterDesk, opcode: int) -> None:
    """A length and an address each, little-endian; empty ones do no harm."""
    segments = ((100, DATA), (0, 0), (412, DATA + 0x1000), (512, DATA + 0x2000))
    raw = b"".join(length.to_bytes(4, "little") + address.to_bytes(4, "little") for length, address in segments)
    for length, address in segments:
        desk.memory.write(address, BLOCK[:length])
    desk.memory.write(LIST, raw)
    fields = {"opcode": opcode, "length": len(raw), "data": LIST}
    assert (0, 0, 1) == desk.run(write10(0, 2), direction=DATA_OUT, **fields)
    assert BLOCK[:100] + BLOCK[:412] + BLOCK == desk.medium.data[:1024]
    desk.medium.data[:1024] = BLOCK[::-1] * 2
    assert (0, 0, 1) == desk.run(read10(0, 2), direction=DATA_IN, **fields)
    assert BLOCK[::-1] * 2 == b"".join(desk.memory.read(address, length) for length, address in segments)
    assert (0 if opcode == 4 else len(raw)) == desk.length_field()


@pytest.mark.parametrize(
    ("cdb", "direction", "length", "host", "residual"),
    [
        (read10(0, 1), DATA_IN, 512, 0x00, 0),
        (read10(0, 1), DATA_IN, 1024, 0x12, 512),
        (read10(0, 2), DATA_IN, 512, 0x12, -512),
        (read10(0, 1), UNCHECKED, 1024, 0x00, 512),
        (read10(0, 1), DATA_OUT, 512, 0x14, 0),
        (read10(0, 1), NO_DATA, 0, 0x12, -512),
        (write10(0, 1), DATA_OUT, 512, 0x00, 0),
        (write10(0, 1), DATA_OUT, 1024, 0x12, 512),
        (write10(0, 2), DATA_OUT, 512, 0x12, -512),
        (write10(0, 1), UNCHECKED, 512, 0x00, 0),
        (write10(0, 1), DATA_IN, 512, 0x14, 0),
        (TEST_UNIT_READY, NO_DATA, 512, 0x00, 0),
        (TEST_UNIT_READY, DATA_IN, 512, 0x12, 512),
    ],
)
def test_the_length_is_compared_where_the_direction_says_so(
    desk: AdapterDesk, cdb: bytes, direction: int, length: int, host: int, residual: int
) -> None:
    """Status 12h for less and for more, 14h for the wrong direction; the residual is negative where room lacked."""
    code = 4 if host else 1
    assert (host, 0, code) == desk.run(cdb, opcode=3, direction=direction, length=length)
    assert residual == desk.length_field()
    assert (host, 0, code) == desk.run(cdb, direction=direction, length=length)
    assert length == desk.length_field()


def test_no_more_is_written_than_there_is_room_for(desk: AdapterDesk) -> None:
    desk.medium.data[:1024] = b"\xaa" * 1024
    desk.run(read10(0, 2), direction=DATA_IN, length=100)
    assert b"\xaa" * 100 + bytes(100) == desk.memory.read(DATA, 200)


@pytest.mark.parametrize("target", [1, 7, 15])
def test_who_is_not_there_is_not_selected(desk: AdapterDesk, target: int) -> None:
    """The adapter's own identifier among them; nothing was transferred."""
    assert (0x11, 0, 4) == desk.run(TEST_UNIT_READY, opcode=3, length=8, target=target)
    assert 8 == desk.length_field()


def test_a_target_with_the_identifier_of_the_adapter_is_never_reached(desk: AdapterDesk) -> None:
    """Nor is it listed."""
    desk.bus.attach(7, one_target())
    assert (0x11, 0, 4) == desk.run(TEST_UNIT_READY, target=7)
    assert (0x11, 0, 4) == desk.run(b"", opcode=0x81, target=7)
    assert (b"\1\2", 0) == (desk.inquire(0x24), desk.inquire(0x0A)[7])


@pytest.mark.parametrize(("length", "written"), [(0, 14), (1, 0), (2, 2), (8, 8), (18, 18), (255, 18)])
def test_sense_data_come_by_themselves(desk: AdapterDesk, length: int, written: int) -> None:
    """A length of 0 is 14 bytes, of 1 is none."""
    desk.memory.write(SENSE, b"\xee" * 256)
    cdb = read10(1 << 20, 1)
    assert (0, 2, 4) == desk.run(cdb, direction=DATA_IN, length=512, sense_length=length)
    sense = desk.memory.read(SENSE, 256)
    assert b"\xee" * (256 - written) == sense[written:]
    expected = bytes.fromhex("f0000500100000 0a 00000000 2100 00000000")
    assert expected[:written] == sense[: min(written, 18)]


def test_the_logical_unit_has_three_bits_until_the_format_is_extended(desk: AdapterDesk) -> None:
    """Bits 3 to 7 of its byte are tags then; tags change nothing."""
    inquiry = bytes((0x12, 0, 0, 0, 1, 0))
    units = []
    for extended, lun in ((0, 2), (0, 0xE2), (0, 0x0A), (1, 2), (1, 0x0A), (1, 0xC2)):
        desk.place()
        desk.inquire(0x96, bytes((extended,)))
        desk.run(inquiry, length=1, lun=lun)
        units.append(desk.memory.data[DATA])
    assert [0, 0, 0, 0, 0x7F, 0] == units


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({"opcode": 1}, 0x16),
        ({"opcode": 0xFF}, 0x16),
        ({"target": 16}, 0x1A),
        ({"target": 255}, 0x1A),
        ({"length": (32 << 20) + 1}, 0x1A),
        ({"length": 0xFFFF_FFFF}, 0x1A),
        ({"opcode": 2, "length": 9}, 0x1A),
        ({"opcode": 2, "length": 8 * 8193}, 0x1A),
        ({"opcode": 2, "length": 8, "data": 0xFFFF_FF00}, 0x1A),
        ({"opcode": 2, "length": 0}, 0x00),
    ],
)
def test_blocks_that_mean_nothing_are_refused(desk: AdapterDesk, fields: dict[str, int], host: int) -> None:
    """Outside of memory, a segment has 2**32 - 1 bytes."""
    assert (host, 0, 4 if host else 1) == desk.run(TEST_UNIT_READY, **fields)


@pytest.mark.parametrize("cdb", [b"", bytes(13)])
def test_a_cdb_has_1_to_12_bytes(desk: AdapterDesk, cdb: bytes) -> None:
    desk.place()
    desk.write_ccb(cdb[:12])
    desk.memory.data[CCB + 2] = len(cdb)
    desk.post(0)
    desk.ring()
    assert (0x1A, 0) == desk.statuses()


def test_a_bus_device_reset_is_told_by_a_unit_attention(desk: AdapterDesk) -> None:
    """Of this target only; who is not there is not selected."""
    assert (0, 0, 1) == desk.run(b"", opcode=0x81)
    assert (0, 0, 1) == desk.run(TEST_UNIT_READY, target=9)
    assert (0, 2, 4) == desk.run(TEST_UNIT_READY)
    assert (0x29, 3) == tuple(desk.memory.data[SENSE + 12 : SENSE + 14])
    assert (0x11, 0, 4) == desk.run(b"", opcode=0x81, target=3)
    assert (0x11, 0, 4) == desk.run(b"", opcode=0x81, target=255)


def test_a_block_in_its_own_data_is_done_as_it_was_read(desk: AdapterDesk) -> None:
    """The statuses are written last."""
    desk.medium.data[:512] = b"\xaa" * 512
    assert (0, 0, 1) == desk.run(read10(0, 1), opcode=3, direction=DATA_IN, length=512, data=CCB)
    assert b"\xaa" * 4 + bytes(4) + b"\xaa" * 6 + bytes(2) + b"\xaa" * 8 == desk.memory.read(CCB, 24)


# State


def restored(desk: AdapterDesk) -> AdapterDesk:
    """Another desk that goes on from the state, which went through JSON."""
    other = AdapterDesk(desk.clock.now())
    other.memory.data[:] = desk.memory.data
    other.bus.from_states(desk.bus.states())
    state = desk.adapter.state()
    other.adapter.from_state(DeviceState(state.device, state.version, json.loads(json.dumps(state.fields))))
    assert state == other.adapter.state()
    return other


def test_an_announced_command_is_served_after_the_state_is_restored(desk: AdapterDesk) -> None:
    """With the mailboxes where they were, and strict."""
    desk.place()
    desk.inquire(0x8F, b"\1")
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.adapter.write(1, 1, 2)
    desk.clock.advance(SERVICE_TIME // 2)
    other = restored(desk)
    other.clock.advance(SERVICE_TIME // 2)
    assert ((CCB, 0, 0, 1), 0x81, True) == (other.incoming(0), other.interrupt(), other.irq.level)


def test_a_half_given_command_a_half_read_reply_and_a_reset_go_on(desk: AdapterDesk) -> None:
    desk.adapter.write(1, 1, 0x91)
    desk.adapter.write(1, 1, 67)
    desk = restored(desk)
    desk.adapter.write(1, 1, 6)
    assert b"BT-" == bytes(desk.adapter.read(1, 1) for _ in range(3))
    desk = restored(desk)
    assert b"958" == bytes(desk.adapter.read(1, 1) for _ in range(3))
    desk.adapter.write(0, 1, 0x80)
    desk = restored(desk)
    assert 0x80 == desk.status()
    desk.clock.advance(DIAGNOSTIC_TIME)
    assert 0x30 == desk.status()


def test_quiescing_serves_what_was_announced(desk: AdapterDesk) -> None:
    desk.place()
    desk.write_ccb(TEST_UNIT_READY)
    desk.post(0)
    desk.adapter.write(1, 1, 2)
    desk.adapter.quiesce()
    assert (0, 0) == desk.statuses()
    assert [] == desk.clock.pending()


def test_a_damaged_state_is_refused_as_a_whole(desk: AdapterDesk) -> None:
    """A part that is wrong leaves the adapter as it is."""
    desk.place()
    before = desk.adapter.state()
    for part, name, value in (("mailboxes", "count", 256), ("firmware", "ram", "00"), (None, "opcode", 256)):
        fields = json.loads(json.dumps(before.fields))
        (fields[part] if part else fields)[name] = value
        with pytest.raises(ValueError, match=name):
            desk.adapter.from_state(DeviceState(before.device, before.version, fields))
        assert before == desk.adapter.state()
