"""No driver can make the BT-958 raise, read without bound, answer out of range, or have a state that is lost."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.contract import DeviceState
from hvemu.devices.scsi.buslogic import BusLogic
from hvemu.devices.scsi.buslogic_commands import ROWS

from .adapter_desk import BOXES, CCB, DATA, LIST, AdapterDesk

ADDRESSES = st.one_of(
    st.sampled_from((0, BOXES, BOXES + 8, CCB, CCB + 18, LIST, DATA, (1 << 20) - 20, 1 << 20, 0xFFFF_FFF8)),
    st.integers(0, 0xFFFF_FFFF),
)
LENGTHS = st.one_of(
    st.sampled_from((0, 8, 512, 600, 8 * 8192, 8 * 8193, 32 << 20, 0xFFFF_FFFF)),
    st.integers(0, 64).map(lambda n: 8 * n),
)
CDBS = st.one_of(
    st.sampled_from(
        tuple(
            bytes.fromhex(cdb)
            for cdb in (
                "000000000000", "030000001200", "120000002400", "1a003f00ff00", "25000000000000000000",
                "28000000000000000100", "280000000000000fff00", "2a000000000000000100", "2a0000000000ffffff00",
                "a8000000000000ffffff0000", "55100000000000001800", "5f000000000000001800", "4d004f00000000020000",
            )
        )
    ),
    st.binary(max_size=12),
)  # fmt: skip
BLOCKS = st.tuples(
    st.just("block"),
    st.sampled_from((CCB, CCB + 0x40, BOXES + 4, (1 << 20) - 20)),
    CDBS,
    st.fixed_dictionaries(
        {
            "opcode": st.sampled_from((0, 2, 3, 4, 0x81, 1, 0xFF)),
            "direction": st.integers(0, 3),
            "length": LENGTHS,
            "data": ADDRESSES,
            "target": st.sampled_from((0, 9, 7, 3, 16, 255)),
            "lun": st.integers(0, 255),
            "sense_length": st.integers(0, 255),
        }
    ),
)
BOX = st.tuples(
    st.just("box"), st.integers(0, 3), st.one_of(st.just(CCB), ADDRESSES), st.sampled_from((0, 1, 1, 1, 2, 3, 255))
)
LISTS = st.tuples(st.just("list"), ADDRESSES, st.lists(st.tuples(LENGTHS, ADDRESSES), max_size=8))
PLACES = st.tuples(st.just("place"), st.booleans(), st.integers(0, 255), ADDRESSES)
ACTS = st.one_of(
    st.tuples(st.just("ring")),
    st.tuples(st.just("ring")),
    st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 255)),
    st.tuples(st.just("opcode"), st.sampled_from((0x1A, 0x1B, 0x21, 0x90, 0x91, 0x8D, 0x25, 0x8F, 0x96, 0x05, 0x95))),
    st.tuples(st.just("control"), st.sampled_from((0x20, 0x20, 0x20, 0x40, 0x80, 0x10))),
    st.tuples(st.just("wait"), st.sampled_from((1, 20_000, 1_000_000, 5_000_000))),
    st.tuples(st.just("bytes"), ADDRESSES, st.binary(max_size=64)),
    BLOCKS,
    BOX,
    LISTS,
    PLACES,
)


def act(desk: AdapterDesk, step: tuple[Any, ...]) -> None:
    """One thing that a driver, its memory or time does."""
    match step:
        case ("ring",):
            desk.ring()
        case ("write", offset, value):
            desk.adapter.write(offset, 1, value)
        case ("opcode", opcode):
            desk.adapter.write(1, 1, opcode)
        case ("control", value):
            desk.adapter.write(0, 1, value)
        case ("wait", nanoseconds):
            desk.clock.advance(nanoseconds)
        case ("bytes", address, data):
            desk.memory.write(address, data)
        case ("block", address, cdb, fields):
            desk.write_ccb(cdb, at=address, **fields)
        case ("box", index, address, action):
            desk.post(index, address, action)
        case ("list", address, segments):
            raw = b"".join(length.to_bytes(4, "little") + where.to_bytes(4, "little") for length, where in segments)
            desk.memory.write(address, raw)
        case ("place", wide, count, base):
            parameters = base.to_bytes(4, "little") if wide else (base & 0xFF_FFFF).to_bytes(3, "big")
            for byte in bytes((0x81 if wide else 0x01, count)) + parameters:
                desk.adapter.write(1, 1, byte)
    registers = [desk.adapter.read(offset, 1) for offset in (0, 2, 3, 4)]
    assert all(0 <= value <= 0xFF for value in registers)
    assert not registers[0] & 0x42
    assert not registers[1] & 0x70
    assert len(desk.clock.pending()) <= 2


def copied(desk: AdapterDesk) -> AdapterDesk:
    """Another desk in the same state."""
    other = AdapterDesk(desk.clock.now())
    other.memory.data[:] = desk.memory.data
    for target, there in desk.bus.targets.items():
        for lun, unit in there.units.items():
            other.bus.targets[target].units[lun].medium.data[:] = unit.medium.data
    other.bus.from_states(desk.bus.states())
    state = desk.adapter.state()
    other.adapter.from_state(DeviceState(state.device, state.version, json.loads(json.dumps(state.fields))))
    assert state == other.adapter.state()
    assert desk.clock.pending() == other.clock.pending()
    assert desk.irq.level == other.irq.level
    return other


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.booleans(), st.lists(ACTS, max_size=12), st.lists(ACTS, max_size=6))
def test_any_driver_is_survived_and_a_restored_adapter_goes_on_alike(
    wide: bool, before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]
) -> None:
    """Beginning with mailboxes, so that most of it gets to them."""
    desk = AdapterDesk()
    desk.place(wide=wide)
    for step in before:
        act(desk, step)
    other = copied(desk)
    for step in after:
        act(desk, step)
        act(other, step)
    assert desk.adapter.state() == other.adapter.state()
    assert desk.memory.data == other.memory.data
    assert desk.medium.data == other.medium.data


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.booleans(), st.binary(min_size=1, max_size=300), st.integers(0, 255))
def test_memory_full_of_anything_is_survived(wide: bool, pattern: bytes, count: int) -> None:
    """Mailboxes, blocks and lists all at once are the same bytes again and again."""
    desk = AdapterDesk()
    desk.memory.data[:] = (pattern * ((1 << 20) // len(pattern) + 1))[: 1 << 20]
    act(desk, ("place", wide, count, BOXES))
    for _ in range(3):
        act(desk, ("ring",))
        act(desk, ("control", 0x20))


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "interrupt": st.integers(0, 255), "pending": st.integers(0, 127), "invalid": st.booleans(),
            "resetting": st.booleans(), "opcode": st.one_of(st.integers(-1, 255), st.sampled_from(sorted(ROWS))),
            "parameters": st.one_of(st.just(b""), st.binary(max_size=257)),
            "reply": st.binary(max_size=255), "due": st.one_of(st.none(), st.integers(-10, 10**6)),
            "busy": st.one_of(st.none(), st.integers(-10, 10**6)),
        }
    ),
    st.fixed_dictionaries(
        {
            "count": st.integers(0, 255), "base": ADDRESSES, "wide": st.booleans(), "strict": st.booleans(),
            "outgoing": st.integers(0, 255), "incoming": st.integers(0, 255),
        }
    ),
    st.binary(max_size=300),
)  # fmt: skip
def test_a_state_of_anybodys_making_does_not_raise_later(
    fields: dict[str, Any], mailboxes: dict[str, Any], given_bytes: bytes
) -> None:
    """Fields that are valid each but not together."""
    desk = AdapterDesk()
    state = desk.adapter.state()
    fields = fields | {
        "parameters": fields["parameters"].hex(),
        "reply": fields["reply"].hex(),
        "firmware": state.fields["firmware"],
        "mailboxes": mailboxes,
    }
    desk.adapter.from_state(DeviceState(BusLogic.name, BusLogic.version, fields))
    desk.clock.advance(10**6)
    for byte in given_bytes:
        desk.adapter.write(1, 1, byte)
        assert 0 <= desk.adapter.read(1, 1) <= 0xFF
    desk.adapter.quiesce()
    assert desk.adapter.state().device == state.device
