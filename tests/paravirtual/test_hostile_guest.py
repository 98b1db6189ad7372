"""A hostile guest: every hypercall with any arguments, in any order, on a machine whose guest then still runs.

The guest never executes: its registers are set and INT 82h is what comes next, so every call goes through the engine.
After each, nothing of the hypervisor's has been written, no table is writable, and an error is one of the documented.
"""

import struct
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hvemu.memory.direct import FrameType, Owner
from hvemu.vocabulary.xen import Errno, Hypercall
from tests.paravirtual.small_domain import BASE, DATA, OFFSET, SmallDomain

TEXT = "top: cd82 eb~top"
SELF = 0x7FF0
ERRORS = {-errno & 0xFFFF_FFFF for errno in Errno}
SUCCESS_VALUES = 1 << 24
"""Results that are no errors are small: counts, versions."""
GUEST_FIRST, GUEST_FRAMES = OFFSET >> 12, 4096
CONSOLE = GUEST_FIRST + 0x146
"""The frame that the domain builder has taken for the console, as a test makes sure."""
CPU_CALLS = [Hypercall.STACK_SWITCH, Hypercall.SET_CALLBACKS, Hypercall.SET_TIMER_OP, Hypercall.IRET]
NUMBERS = [*Hypercall, 6, 7, 8, 9, 11, 16, 19, 22, 25, 27, 28, 31, 34, 48, 63, 0x7FFF_FFFF, 0xFFFF_FFFF]
frames = st.one_of(
    st.integers(GUEST_FIRST, GUEST_FIRST + 0x160),
    st.integers(0, GUEST_FIRST + GUEST_FRAMES + 2),
    st.integers(0, 0xFFFF_FFFF),
)
addresses = st.one_of(
    st.sampled_from([DATA, DATA + 0x1000, DATA + 0xFFC, DATA + 0xFFF, BASE, 0x14_0000, 0x14_7000, 0x14_9000, 0]),
    st.sampled_from([0xF580_0000, 0xFFFF_FFFC, 0xFFFF_FFFF, 0x8000_0000, 0x3FF_FFFC]),
    st.integers(0, 0xFFFF_FFFF),
)
small = st.integers(0, 40)
anything = st.one_of(addresses, small, frames, st.just(SELF), st.integers(0, 0xFFFF_FFFF))
arguments = st.tuples(anything, anything, anything, anything, anything)
flags = st.sampled_from([0, 1, 3, 5, 7, 0x21, 0x63, 0x81, 1 << 63 | 3, 1 << 52 | 1, 2, 6])
entries = st.builds(lambda frame, bits: (frame << 12 | bits) & 0xFFFF_FFFF_FFFF_FFFF, frames, flags)
GDT_SIZES = [0, 1, 512, 513, 7168, 7169, 1 << 31]
words = st.one_of(st.integers(0, 0xFFFF_FFFF), frames, addresses, small, st.just(SELF))


@cache
def machine_of_all() -> SmallDomain:
    """One machine for everybody, switched off and on again."""
    return SmallDomain(TEXT)


class Hostile:
    """A guest that makes one call after the other, and what must stay true."""

    def __init__(self) -> None:
        self.domain = machine_of_all()
        self.machine = self.domain.machine
        self.machine.stop = None
        self.machine.reset()
        self.own = self.unchanging()
        self.before = self.hypervisor()

    def unchanging(self) -> list[tuple[int, int]]:
        """Machine addresses that neither the guest nor a call may change: what lies below the guest's memory, without
        the shared pages and those that the hypervisor writes for the guest: copies of its tables and numbers."""
        domain, pages, owner = self.domain.domain, self.domain.mode._pages, self.domain.mode.paging.owner
        changing = {at >> 12 for at in (pages._upper, pages._table, *pages._own_gdt, *domain._translation_pages)}
        ranges, start = [], 0
        for frame in range(GUEST_FIRST + 1):
            if frame == GUEST_FIRST or frame in changing or owner[frame] == Owner.SHARED:
                ranges.append((start << 12, frame << 12))
                start = frame + 1
        return ranges

    def hypervisor(self) -> list[bytes]:
        """What is there."""
        return [bytes(self.machine.memory.view[start:end]) for start, end in self.own]

    def write(self, linear: int, content: bytes) -> None:
        """As the guest would, before it has changed its tables, where it still could."""
        frame, paging = linear + OFFSET >> 12, self.domain.mode.paging
        if paging.is_guests(frame) and paging.type_of(frame) in (FrameType.NONE, FrameType.WRITABLE):
            self.machine.memory.write(linear + OFFSET, content)

    def call(self, number: int, given: tuple[int, ...]) -> int:
        """One hypercall through the engine; returns EAX. 0 when the guest has ended or waits."""
        machine = self.machine
        cpu = machine.registers()
        for register, value in zip((0, 3, 1, 2, 6, 7), (number, *given), strict=True):
            cpu.gprs[register] = value & 0xFFFF_FFFF
        cpu.gprs[4] = 0x14_A000
        cpu.instruction_pointer = BASE
        cpu.segments[1] = cpu.segments[1]._replace(selector=0xE019)
        cpu.halted = False
        machine.mode.enter(cpu)
        machine.run(machine.mode.position() + 2)
        if machine.stop is not None:
            machine.stop = None
            return 0
        if number == Hypercall.IRET or machine.mode.halted:
            return 0
        return machine.registers().gprs[0]

    def check(self, result: int) -> None:
        """After a call."""
        assert result in ERRORS or result < SUCCESS_VALUES, hex(result)
        assert self.before == self.hypervisor()

    def nothing_is_writable_that_must_not_be(self) -> None:
        """Every writable leaf of every table leads to data of the guest's or to a shared page."""
        paging, memory = self.domain.mode.paging, self.machine.memory
        for frame in range(GUEST_FIRST, GUEST_FIRST + GUEST_FRAMES):
            if paging.type_of(frame) is not FrameType.L1:
                continue
            for (entry,) in struct.iter_unpack("<Q", memory.read(frame << 12, 4096)):
                if entry & 1:
                    target = (entry & 0xF_FFFF_FFFF_F000) >> 12
                    assert paging.owner[target] in (Owner.GUEST, Owner.SHARED)
                    if entry & 2:
                        assert paging.type_of(target) is FrameType.WRITABLE


@pytest.mark.parametrize("number", NUMBERS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_arguments_of_a_hypercall_harm_the_hypervisor(number, data):
    """Each call with boundary and random arguments; structures it reads are random, too."""
    hostile = Hostile()
    for _ in range(3):
        hostile.write(DATA, data.draw(st.binary(min_size=0x80, max_size=0x80)))
        hostile.check(hostile.call(number, data.draw(arguments)))
    hostile.nothing_is_writable_that_must_not_be()


def test_the_attacks_know_where_the_console_is():
    """What these tests scribble on."""
    info = SmallDomain("f4")
    at = info.machine.registers().gprs[6]
    assert (CONSOLE,) == info.words(at + 52)


class AnyGuest(RuleBasedStateMachine):
    """Calls that mean something, in any order; a guest that knows what it attacks."""

    @initialize()
    def start(self):
        """A fresh machine."""
        self.hostile = Hostile()

    def put(self, *values):
        """Words at DATA."""
        self.hostile.write(DATA, struct.pack(f"<{len(values)}I", *(value & 0xFFFF_FFFF for value in values)))

    def call(self, number, *given):
        """With zeros for the rest."""
        self.hostile.check(self.hostile.call(number, (*given, *[0] * (5 - len(given)))))

    @rule(requests=st.lists(st.tuples(frames, st.integers(0, 511), st.integers(0, 3), entries), min_size=1, max_size=4))
    def mmu_update(self, requests):
        """Entries of any frame."""
        data = [(frame << 12 | index << 3 | command, entry) for frame, index, command, entry in requests]
        words_of = [part for pointer, entry in data for part in (pointer, pointer >> 32, entry, entry >> 32)]
        self.put(*words_of)
        self.call(Hypercall.MMU_UPDATE, DATA, len(requests), DATA + 0x800, SELF)

    @rule(linear=addresses, entry=entries, flag=st.integers(0, 3))
    def update_va_mapping(self, linear, entry, flag):
        """Of any address."""
        self.call(Hypercall.UPDATE_VA_MAPPING, linear, entry & 0xFFFF_FFFF, entry >> 32, flag)

    @rule(operations=st.lists(st.tuples(st.integers(0, 14), frames, small), min_size=1, max_size=4))
    def mmuext_op(self, operations):
        """Pins, unpins, base pointers."""
        self.put(*[part for operation in operations for part in operation])
        self.call(Hypercall.MMUEXT_OP, DATA, len(operations), 0, SELF)

    @rule(numbers=st.lists(frames, min_size=1, max_size=3), entries_wanted=st.sampled_from(GDT_SIZES))
    def set_gdt(self, numbers, entries_wanted):
        """Frames as descriptor tables."""
        self.put(*numbers)
        self.call(Hypercall.SET_GDT, DATA, entries_wanted)

    @rule(frame=frames, index=st.integers(0, 511), low=words, high=words)
    def update_descriptor(self, frame, index, low, high):
        """Anywhere."""
        address = frame << 12 | index << 3
        self.call(Hypercall.UPDATE_DESCRIPTOR, address, address >> 32, low, high)

    @rule(command=st.sampled_from([0, 1, 6]), numbers=st.lists(frames, min_size=1, max_size=4), count=st.integers(0, 6))
    def reservation(self, command, numbers, count):
        """Frames given back and taken."""
        self.put(DATA + 0x100, count, 0, 0, SELF)
        self.hostile.write(DATA + 0x100, struct.pack(f"<{len(numbers)}I", *numbers))
        self.call(Hypercall.MEMORY_OP, command, DATA)

    @rule(command=st.integers(0, 11), values=st.lists(words, min_size=4, max_size=4))
    def event_channel_op(self, command, values):
        """Ports and their ends."""
        self.put(*values)
        self.call(Hypercall.EVENT_CHANNEL_OP, command, DATA)

    @rule(command=st.integers(0, 7), values=st.lists(words, min_size=8, max_size=8), count=st.integers(0, 3))
    def grant_table_op(self, command, values, count):
        """The table and mappings."""
        self.put(*values)
        self.call(Hypercall.GRANT_TABLE_OP, command, DATA, count)

    @rule(rows=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), words, words), min_size=1, max_size=3))
    def set_trap_table(self, rows):
        """Handlers anywhere."""
        packed = b"".join(struct.pack("<BBHI", a, b, c & 0xFFFF, d) for a, b, c, d in rows)
        self.hostile.write(DATA, packed + bytes(8))
        self.call(Hypercall.SET_TRAP_TABLE, DATA)

    @rule(
        calls=st.lists(st.tuples(st.sampled_from([*Hypercall, 99]), words, words, words, words), min_size=1, max_size=3)
    )
    def multicall(self, calls):
        """Of anything, itself included."""
        self.put(*[part for number, *rest in calls for part in (number, 0, *rest, 0, 0)])
        self.call(Hypercall.MULTICALL, DATA, len(calls))

    @rule(number=st.sampled_from(CPU_CALLS), given_words=st.tuples(words, words, words, words))
    def cpu(self, number, given_words):
        """Stacks, entry points, times."""
        self.call(number, *given_words)

    @rule(content=st.binary(min_size=16, max_size=16), offset=st.sampled_from([0, 0x800, 0x880]))
    def scribble_on_shared_info(self, content, offset):
        """The guest may write there what it likes."""
        self.hostile.machine.memory.write(self.hostile.domain.domain.shared_info + offset, content)

    @rule(content=st.binary(min_size=16, max_size=16))
    def scribble_on_the_console(self, content):
        """Ring indices that run away."""
        domain = self.hostile.domain
        self.hostile.machine.memory.write((CONSOLE << 12) + 3072, content)
        domain.domain.receive(b"x" * 50)
        domain.domain.console.notified()

    @invariant()
    def no_table_is_writable(self):
        """Ever."""
        if hasattr(self, "hostile"):
            self.hostile.nothing_is_writable_that_must_not_be()


AnyGuest.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
test_no_order_of_hypercalls_harms_the_hypervisor = AnyGuest.TestCase


class ManyGuests(AnyGuest):
    """The same, longer."""


ManyGuests.TestCase.settings = settings(
    max_examples=600, stateful_step_count=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
test_no_longer_order_of_hypercalls_harms_the_hypervisor = pytest.mark.slow(ManyGuests.TestCase)
