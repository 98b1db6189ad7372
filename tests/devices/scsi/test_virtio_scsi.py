"""virtio-scsi at its registers and rings, without a CPU: what a driver finds, and what a hostile one cannot do."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.bus import Bus as AddressSpace
from hvemu.devices.contract import DeviceState
from hvemu.devices.pci import PciHost
from hvemu.devices.scsi.bus import ScsiBus, Target
from hvemu.devices.scsi.disk import ScsiDisk
from hvemu.devices.scsi.virtio_scsi import CLASS_CODE, DEVICE_ID, SUBSYSTEM, VirtioScsi
from hvemu.devices.virtio_pci import ISR_CONFIGURATION, NEEDS_RESET, SERVICE_TIME, VirtioPci, VirtioPciFunction
from tests.devices.fakes import FakeClock, FakeIrqLine
from tests.devices.scsi.desk import FakeMedium, key_and_code, read10, write10
from tests.loader.images import ram

RAM = 1 << 20
SIZE = 128
RINGS = (0x1_0000, 0x1_4000, 0x1_8000)
REQUEST, RESPONSE, DATA, TABLE = 0x4_0000, 0x4_1000, 0x5_0000, 0x4_2000
NEXT, WRITE, INDIRECT = 1, 2, 4
QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def lun(target, unit=0):
    """The field of a request."""
    return bytes((1, target, 0x40 | unit >> 8, unit & 0xFF)) + bytes(4)


class Desk:
    """An adapter with a disk as target 0, and the least that a driver does."""

    def __init__(self):
        self.clock, self.medium, self.memory = FakeClock(), FakeMedium(1 << 20), ram(RAM)
        self.line = FakeIrqLine(self.clock)
        self.bus = ScsiBus({0: Target({0: ScsiDisk(self.medium, serial="S")})})
        self.device = VirtioPci(VirtioScsi(self.bus, self.memory), memory=self.memory, clock=self.clock, irq=self.line)
        for number, base in enumerate(RINGS):
            self.device.write(0x0E, 2, number)
            self.device.write(0x08, 4, base >> 12)
        self.device.write(0x12, 1, 7)
        self.filled = [0, 0, 0]

    def used(self, queue):
        """Index and last element of the used ring."""
        base = RINGS[queue] + 0x1000
        index = int.from_bytes(self.memory.read(base + 2, 2), "little")
        return index, struct.unpack("<II", self.memory.read(base + 4 + 8 * ((index - 1) % SIZE), 8))

    def describe(self, queue, pieces, at=None):
        """Descriptors from number 0 on: (address, length, flags); the last one ends the chain."""
        base = RINGS[queue] if at is None else at
        for index, (address, length, flags) in enumerate(pieces):
            more = 0 if index == len(pieces) - 1 else NEXT
            self.memory.write(base + 16 * index, struct.pack("<QIHH", address, length, flags | more, index + 1))

    def offer(self, queue, head=0):
        """Make a chain available and notify."""
        base = RINGS[queue] + 16 * SIZE
        self.memory.write(base + 4 + 2 * (self.filled[queue] % SIZE), struct.pack("<H", head))
        self.filled[queue] += 1
        self.memory.write(base + 2, struct.pack("<H", self.filled[queue] & 0xFFFF))
        self.device.write(0x10, 2, queue)

    def command(self, cdb, data_out=b"", data_in=0, target=0, unit=0):
        """Send one and wait; (status, response, residual, sense, data)."""
        header = lun(target, unit) + struct.pack("<QBBB", 77, 0, 0, 0) + cdb.ljust(32, b"\0")
        self.memory.write(REQUEST, header)
        self.memory.write(DATA, data_out + bytes(data_in))
        pieces = [(REQUEST, len(header), 0)]
        pieces += [(DATA, len(data_out), 0)] if data_out else []
        pieces += [(RESPONSE, 108, WRITE)]
        pieces += [(DATA, data_in, WRITE)] if data_in else []
        self.describe(2, pieces)
        self.offer(2)
        self.clock.advance(SERVICE_TIME)
        length, residual, _, status, response = struct.unpack("<IIHBB", self.memory.read(RESPONSE, 12))
        return status, response, residual, self.memory.read(RESPONSE + 12, length), self.memory.read(DATA, data_in)

    def ready(self):
        """The unit attention of power on is taken."""
        self.command(bytes(6))
        return self


def test_a_driver_finds_a_transitional_scsi_device():
    """By its identifiers, and its registers where BAR 0 says, which firmware has assigned."""
    desk = Desk()
    host, ports = PciHost(), AddressSpace("port")
    host.connect(ports, AddressSpace("memory"))
    function = VirtioPciFunction(desk.device, device_id=DEVICE_ID, subsystem=SUBSYSTEM, class_code=CLASS_CODE)
    host.add(3, 0, function)
    host.assign(0xC000, 0xF800_0000, {3: 10})
    assert (0x1004_1AF4, 0x0008_1AF4, 10) == (function.read(0, 4), function.read(0x2C, 4), function.read(0x3C, 1))
    base = function.bar(0)
    assert (0xC000, 128) == (base, ports.read(base + 0x0C, 2))
    function.write(0x10, 4, 0xD001)
    assert (128, 0xFFFF) == (ports.read(0xD00C, 2), ports.read(base + 0x0C, 2))
    function.write(0x04, 2, 0)
    assert 0xFFFF == ports.read(0xD00C, 2)


def test_a_command_takes_its_time_and_interrupts_once():
    """Nothing happens within the notification; reading the ISR status acknowledges."""
    desk = Desk().ready()
    desk.device.read(0x13, 1)
    desk.line.edges.clear()
    before = desk.clock.now()
    assert (0, 0, 0, b"") == desk.command(bytes(6))[:4]
    assert [before + SERVICE_TIME] == desk.line.edges
    assert (1, 0, False) == (desk.device.read(0x13, 1), desk.device.read(0x13, 1), desk.line.level)


def test_a_driver_that_polls_is_not_interrupted():
    """It says so in the available ring."""
    desk = Desk()
    desk.memory.write(RINGS[2] + 16 * SIZE, b"\1\0")
    desk.command(bytes(6))
    assert (False, 1) == (desk.line.level, desk.used(2)[0])


def test_what_is_written_is_read():
    """512 bytes at block 9; the used ring says how many bytes the device wrote."""
    desk = Desk().ready()
    assert (0, 0, 0) == desk.command(write10(9, 1), data_out=b"w" * 512)[:3]
    assert b"w" * 512 == desk.medium.data[9 * 512 : 10 * 512]
    assert (0, 0, 0, b"", b"w" * 512) == desk.command(read10(9, 1), data_in=512)
    assert (0, 108 + 512) == desk.used(2)[1]


def test_residuals_say_what_was_not_transferred():
    """A buffer that is too long on either way; one that is too short is filled."""
    desk = Desk().ready()
    assert (0, 0, 512) == desk.command(read10(0, 1), data_in=1024)[:3]
    assert (0, 0, 512) == desk.command(write10(0, 1), data_out=bytes(1024))[:3]
    assert (0, 0, 0) == desk.command(read10(0, 2), data_in=512)[:3]


def test_an_error_comes_with_its_sense_data():
    """Autosense: LOGICAL BLOCK ADDRESS OUT OF RANGE."""
    desk = Desk().ready()
    status, response, _, sense, _ = desk.command(read10(1 << 20, 1), data_in=512)
    assert (2, 0, (5, 0x2100)) == (status, response, key_and_code(sense))


def test_targets_and_units_that_are_not_there():
    """BAD TARGET for the one; its target answers for the other."""
    desk = Desk().ready()
    assert 3 == desk.command(bytes(6), target=9)[1]
    status, response, _, sense, _ = desk.command(bytes(6), unit=5)
    assert (2, 0, (5, 0x2500)) == (status, response, key_and_code(sense))


def test_an_indirect_table_is_a_chain():
    """And the buffers may be in any pieces."""
    desk = Desk().ready()
    header = lun(0) + bytes(11) + read10(0, 2).ljust(32, b"\0")
    desk.memory.write(REQUEST, header)
    desk.medium.data[:1024] = bytes(range(256)) * 4
    pieces = [(REQUEST, 20, 0), (REQUEST + 20, 31, 0), (RESPONSE, 100, WRITE), (RESPONSE + 100, 8, WRITE)]
    pieces += [(DATA + 128 * index, 128, WRITE) for index in range(8)]
    desk.describe(2, pieces, at=TABLE)
    desk.memory.write(RINGS[2], struct.pack("<QIHH", TABLE, 16 * len(pieces), INDIRECT, 0))
    desk.offer(2)
    desk.clock.advance(SERVICE_TIME)
    assert bytes(range(256)) * 4 == desk.memory.read(DATA, 1024)


@pytest.mark.parametrize(
    ("subtype", "target", "unit", "response"),
    [
        (5, 0, 0, 0), (4, 0, 0, 0), (0, 0, 0, 0), (9, 0, 0, 11),
        (5, 200, 0, 3), (4, 200, 0, 3), (0, 200, 0, 3), (5, 0, 9, 12), (0, 0, 9, 12), (4, 0, 9, 0),
    ],
)  # fmt: skip
def test_task_management(subtype, target, unit, response):
    """There is never a task to abort; a reset is one, and the unit says so. Who is not there is not reset."""
    desk = Desk().ready()
    desk.memory.write(REQUEST, struct.pack("<II", 0, subtype) + lun(target, unit) + bytes(8))
    desk.describe(0, [(REQUEST, 24, 0), (RESPONSE, 1, WRITE)])
    desk.offer(0)
    desk.clock.advance(SERVICE_TIME)
    assert bytes((response,)) == desk.memory.read(RESPONSE, 1)
    status, _, _, sense, _ = desk.command(bytes(6))
    assert ((2, (6, 0x2903)) if (subtype in (4, 5) and not response) else (0, None)) == (
        status, key_and_code(sense) if sense else None
    )  # fmt: skip


def test_buffers_for_events_are_kept():
    """Nothing ever happens that would fill one."""
    desk = Desk()
    desk.describe(1, [(DATA, 16, WRITE)])
    desk.offer(1)
    desk.clock.advance(SERVICE_TIME)
    assert (0, False) == (desk.used(1)[0], desk.line.level)


def broken(name, desk):
    """Ways to break the protocol."""
    if name == "a loop":
        desk.describe(2, [(REQUEST, 1, 0)])
        desk.memory.write(RINGS[2], struct.pack("<QIHH", REQUEST, 1, NEXT, 0))
    elif name == "a descriptor that does not exist":
        desk.memory.write(RINGS[2], struct.pack("<QIHH", REQUEST, 1, NEXT, 500))
    elif name == "a length that overflows":
        desk.describe(2, [(REQUEST, 51, 0), (RESPONSE, 0xFFFF_FFFF, WRITE)])
    elif name == "readable after writable":
        desk.describe(2, [(RESPONSE, 108, WRITE), (REQUEST, 51, 0)])
    elif name == "a short request":
        desk.describe(2, [(REQUEST, 50, 0), (RESPONSE, 108, WRITE)])
    elif name == "a nested table":
        desk.memory.write(TABLE, struct.pack("<QIHH", TABLE, 16, INDIRECT, 0))
        desk.memory.write(RINGS[2], struct.pack("<QIHH", TABLE, 16, INDIRECT, 0))
    elif name == "an index that runs away":
        desk.filled[2] = 5000
    elif name == "a ring outside of RAM":
        desk.device.write(0x0E, 2, 2)
        desk.device.write(0x08, 4, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    "name",
    [
        "a loop", "a descriptor that does not exist", "a length that overflows", "readable after writable",
        "a short request", "a nested table", "an index that runs away", "a ring outside of RAM",
    ],
)  # fmt: skip
def test_a_driver_that_breaks_the_protocol_has_to_reset(name):
    """DEVICE_NEEDS_RESET, an interrupt, and nothing more until a reset; then all is well."""
    desk = Desk().ready()
    broken(name, desk)
    desk.offer(2)
    desk.clock.advance(SERVICE_TIME)
    assert desk.device.read(0x12, 1) & NEEDS_RESET
    assert desk.line.level
    assert ISR_CONFIGURATION & desk.device.read(0x13, 1)
    desk.offer(2)
    assert [] == desk.clock.pending()
    desk.device.write(0x12, 1, 0)
    assert 0 == desk.device.read(0x12, 1)


def test_a_state_in_the_middle_of_a_request_goes_on_elsewhere():
    """Notified, not yet served; through JSON, with the memory."""
    desk = Desk().ready()
    desk.memory.write(REQUEST, lun(0) + bytes(11) + read10(0, 1).ljust(32, b"\0"))
    desk.describe(2, [(REQUEST, 51, 0), (RESPONSE, 108, WRITE), (DATA, 512, WRITE)])
    desk.offer(2)
    state = json.loads(json.dumps(desk.device.state().fields))
    other = Desk().ready()
    other.memory.write(0, desk.memory.read(0, RAM))
    other.clock.advance(desk.clock.now() - other.clock.now())
    other.device.from_state(DeviceState(desk.device.name, 1, state))
    for each in (desk, other):
        each.device.quiesce()
        assert (0, 620) == each.used(2)[1]
    assert desk.device.state() == other.device.state()


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x200),
    st.sampled_from([REQUEST, RESPONSE, DATA, TABLE, RAM - 4, *RINGS]),
)
descriptors = st.tuples(words, st.one_of(st.integers(0, 2048), st.integers(0, (1 << 32) - 1)), st.integers(0, 7))
steps = st.one_of(
    st.tuples(st.just("register"), st.integers(0, 63), st.sampled_from((1, 2, 4)), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just("read"), st.integers(0, 63), st.sampled_from((1, 2, 4)), st.just(0)),
    st.tuples(st.just("chain"), st.integers(0, 2), st.lists(descriptors, min_size=1, max_size=6), st.integers(0, 130)),
    st.tuples(st.just("memory"), words, st.binary(max_size=40), st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.just(0), st.just(0)),
)


@QUICK
@given(st.lists(steps, max_size=25), st.binary(min_size=51, max_size=51))
def test_no_driver_can_make_the_adapter_raise_or_leave_ram(acts, request):
    """Any registers, rings, descriptors and requests; the medium checks what it is asked."""
    desk = Desk().ready()
    desk.memory.write(REQUEST, lun(0) + request[8:])
    for what, first, second, third in acts:
        if what == "register":
            desk.device.write(first, second, third & ((1 << 8 * second) - 1))
        elif what == "read":
            assert 0 <= desk.device.read(first, second) < 1 << 8 * second
        elif what == "chain":
            desk.describe(first, second)
            desk.offer(first, third)
        elif what == "memory":
            desk.memory.write(first, second)
        else:
            desk.clock.advance(SERVICE_TIME)
    desk.clock.advance(SERVICE_TIME)
    state = desk.device.state()
    other = Desk()
    other.device.from_state(DeviceState(state.device, state.version, json.loads(json.dumps(dict(state.fields)))))
    assert state == other.device.state()
