"""The back end of paravirtual SCSI: a front end that keeps to the protocol has a disk; one that cheats has nothing."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.scsi.bus import ScsiBus, Target
from hvemu.devices.scsi.disk import ScsiDisk
from hvemu.memory.direct import FrameType
from hvemu.paravirtual.event_channels import Channel, EventChannels
from hvemu.paravirtual.scsi_back import BACK, FRONT, SERVICE_TIME, SLOT, ScsiBackEnd
from hvemu.vocabulary import xen
from tests.devices.fakes import FakeClock
from tests.devices.scsi.desk import FakeMedium, key_and_code, read10, write10
from tests.paravirtual.small_domain import SmallDomain
from tests.paravirtual.test_grant_table import Granting
from tests.paravirtual.test_store import READ, WRITE, Guest

SHARED_INFO, RING, DATA, OTHER = 5, 20, 21, 22
RING_REF, DATA_REF, OTHER_REF, READ_ONLY_REF = 8, 9, 10, 11
OUT, IN, NONE = 1, 2, 3
QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)


class FrontEnd:
    """A guest's driver, and the back end with one disk as target 0."""

    def __init__(self):
        self.granting, self.guest, self.clock = Granting(), Guest(), FakeClock()
        self.memory, self.medium = self.granting.memory, FakeMedium(1 << 20)
        self.events = EventChannels(self.memory, SHARED_INFO << 12)
        self.warnings = []
        bus = ScsiBus({0: Target({0: ScsiDisk(self.medium, serial="S")})})
        self.back = ScsiBackEnd(bus, self.memory, self.granting.grants, self.events, self.guest.store, self.clock)
        self.back.warn = self.warnings.append
        self.back.announce()
        self.guest.store.changed = self.back.changed
        self.produced = self.consumed = 0
        self.port = self.events._open(Channel("unbound", xen.DOMID_BACKEND))
        for reference, frame in ((RING_REF, RING), (DATA_REF, DATA), (OTHER_REF, OTHER)):
            self.granting.grant(reference, frame)
        self.granting.grant(READ_ONLY_REF, OTHER, xen.GTF_PERMIT_ACCESS | xen.GTF_READONLY)

    def tell(self, name, value):
        """Write to the store as the guest does."""
        self.guest.ask(WRITE, f"{FRONT}/{name}\0{value}".encode())

    def asked(self, name):
        """What the store says."""
        return self.guest.ask(READ, f"{name}\0".encode())[-1][2]

    def connect(self, reference=RING_REF, port=None):
        """The handshake."""
        self.tell("ring-ref", reference)
        self.tell("event-channel", self.port if port is None else port)
        self.tell("state", 3)
        return self

    def push(self, request):
        """A request on the ring, and a notification."""
        at = (RING << 12) + 64 + self.produced % 16 * SLOT
        self.memory.write(at, request.ljust(SLOT, b"\0"))
        self.produced += 1
        self.memory.write(RING << 12, struct.pack("<I", self.produced & 0xFFFF_FFFF))
        self.memory.write((RING << 12) + 12, struct.pack("<I", self.consumed + 1))
        self.events.send(self.port)

    def answer(self):
        """Wait; sense data, result and residual of the next response."""
        self.clock.advance(SERVICE_TIME)
        assert self.memory.read_u32((RING << 12) + 8) == self.consumed + 1
        at = (RING << 12) + 64 + self.consumed % 16 * SLOT
        self.consumed += 1
        identifier, _, length, sense, result, residual = struct.unpack("<HBB96siI", self.memory.read(at, 108))
        assert 0x55AA == identifier
        return result, sense[:length], residual

    def command(self, cdb, direction=NONE, *segments, target=0, action=1, length=None):
        """One request from beginning to end."""
        self.push(request(cdb, direction, segments, target=target, action=action, length=length))
        return self.answer()

    def ready(self):
        """Connected, and told of power on."""
        self.connect().command(bytes(6))
        return self


def request(cdb, direction, segments, *, target=0, action=1, length=None):
    """As io/vscsiif.h lays it out."""
    head = struct.pack(
        "<HBB16sHHHHHBB",
        0x55AA, action, len(cdb) if length is None else length, cdb, 0, 0, target, 0, 0,
        direction, len(segments) & 0xFF,
    )  # fmt: skip
    return (head + b"".join(struct.pack("<IHH", *segment) for segment in segments))[:SLOT]


def test_the_two_ends_find_each_other_through_the_store():
    """The host says what there is and waits; the guest says where its ring is; the host is connected."""
    front = FrontEnd()
    assert (b"1", BACK.encode()) == (front.asked(f"{FRONT}/state"), front.asked(f"{FRONT}/backend"))
    assert (b"2", b"0:0:0:0") == (front.asked(f"{BACK}/state"), front.asked(f"{BACK}/vscsi-devs/dev-0/v-dev"))
    front.connect()
    assert b"4" == front.asked(f"{BACK}/state")
    assert FrameType.WRITABLE is front.granting.paging.type_of(RING)
    front.tell("state", 5)
    assert b"6" == front.asked(f"{BACK}/state")
    front.granting.paging.pin(RING, FrameType.L1)


def test_what_is_written_is_read():
    """From one page, to two pieces of another; the port is raised, and no grant stays in use."""
    front = FrontEnd().ready()
    front.memory.write(DATA << 12, b"w" * 1024)
    assert (0, b"", 0) == front.command(write10(3, 2), OUT, (DATA_REF, 0, 1024))
    assert b"w" * 1024 == front.medium.data[3 * 512 : 5 * 512]
    assert (0, b"", 0) == front.command(read10(3, 2), IN, (OTHER_REF, 100, 24), (OTHER_REF, 200, 1000))
    assert b"w" * 24 == front.memory.read((OTHER << 12) + 100, 24)
    assert b"w" * 1000 + b"\0" == front.memory.read((OTHER << 12) + 200, 1001)
    assert front.memory.read_u32((SHARED_INFO << 12) + xen.EVENT_PENDING) & 1 << front.port
    assert xen.GTF_PERMIT_ACCESS == front.granting.flags(OTHER_REF)


def test_nothing_happens_within_the_notification():
    """The answer comes later, by an event."""
    front = FrontEnd().ready()
    front.push(request(bytes(6), NONE, ()))
    assert front.consumed == front.memory.read_u32((RING << 12) + 8)
    front.back.quiesce()
    assert front.consumed + 1 == front.memory.read_u32((RING << 12) + 8)


def test_what_was_notified_before_a_reboot_is_never_answered():
    """The ring was a page of another guest's."""
    domain = SmallDomain("there: ebfe", scratch_disk=1 << 16, reboot=True)
    machine, back, store = domain.machine, domain.domain.scsi, domain.domain.store
    frame = domain.domain.frames.stop - 1
    grant = struct.pack("<HHI", xen.GTF_PERMIT_ACCESS, xen.DOMID_BACKEND, frame)
    machine.memory.write(domain.domain.grants._at(RING_REF), grant)
    port = domain.domain.events._open(Channel("unbound", xen.DOMID_BACKEND))
    for name, value in (("ring-ref", RING_REF), ("event-channel", port), ("state", 3)):
        store.write(f"{FRONT}/{name}", b"%d" % value)
    back.changed(f"/local/domain/1/{FRONT}/state")
    machine.memory.write(frame << 12, struct.pack("<I", 1))
    domain.domain.events.send(port)
    machine.board.request_reset()
    machine.run(until=SERVICE_TIME)
    assert bytes(64) == machine.memory.read(frame << 12, 64)
    assert back is not domain.domain.scsi


def test_errors_and_residuals_are_told():
    """Autosense, what was not transferred, targets that are not there, resets."""
    front = FrontEnd().ready()
    result, sense, residual = front.command(read10(1 << 20, 1), IN, (DATA_REF, 0, 512))
    assert (2, (5, 0x2100), 512) == (result, key_and_code(sense), residual)
    assert (0, b"", 512) == front.command(read10(0, 1), IN, (DATA_REF, 0, 1024))
    assert (0x01 << 16, b"", 0) == front.command(bytes(6), target=9)
    assert (0x2002, b"", 0) == front.command(bytes(6), action=3)
    assert (2, (6, 0x2903)) == ((told := front.command(bytes(6)))[0], key_and_code(told[1]))
    assert (0x2002, b"", 0) == front.command(bytes(6), action=2)


@pytest.mark.parametrize(
    ("direction", "segments", "changes"),
    [
        (IN, [(READ_ONLY_REF, 0, 512)], {}),
        (IN, [(77, 0, 512)], {}),
        (IN, [(1 << 31, 0, 512)], {}),
        (IN, [(DATA_REF, 4000, 512)], {}),
        (IN, [(DATA_REF, 65535, 65535)], {}),
        (OUT, [(DATA_REF, 0, 16)] * 27, {}),
        (NONE, [], {"length": 17}),
        (NONE, [], {"action": 9}),
    ],
)
def test_what_is_not_granted_or_makes_no_sense_is_an_error(direction, segments, changes):
    """DID_ERROR; nothing is transferred and nothing stays in use."""
    front = FrontEnd().ready()
    assert (0x07 << 16, b"", 0) == front.command(read10(0, 1), direction, *segments, **changes)
    assert xen.GTF_PERMIT_ACCESS == front.granting.flags(DATA_REF)


@pytest.mark.parametrize(
    "values", [{"reference": "no"}, {"reference": 99}, {"port": 0}, {"port": "x"}, {"reference": -1}]
)
def test_a_ring_or_a_port_that_is_none_is_refused(values):
    """With a warning; the host goes on waiting."""
    front = FrontEnd().connect(**values)
    assert (1, b"2") == (len(front.warnings), front.asked(f"{BACK}/state"))
    front.granting.paging.pin(RING, FrameType.L1)


def test_a_ring_that_runs_away_is_cut_off():
    """And can be connected again."""
    front = FrontEnd().ready()
    front.memory.write(RING << 12, struct.pack("<I", 5000))
    front.events.send(front.port)
    front.clock.advance(SERVICE_TIME)
    assert (1, xen.GTF_PERMIT_ACCESS) == (len(front.warnings), front.granting.flags(RING_REF))


@QUICK
@given(st.lists(st.tuples(st.binary(max_size=SLOT), st.integers(0, 40)), max_size=12), st.binary(max_size=200))
def test_no_front_end_can_make_the_back_end_raise(requests, rubbish):
    """Any requests, any contents of the grant table; the medium checks what it is asked."""
    front = FrontEnd().ready()
    front.memory.write(4 << 12, rubbish)
    for content, jump in requests:
        front.push(struct.pack("<HB", 0x55AA, 1) + content[3:])
        if jump == 40:
            front.produced += 40
        if jump % 3 == 0:
            front.clock.advance(SERVICE_TIME)
    front.clock.advance(SERVICE_TIME)
