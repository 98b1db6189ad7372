"""Mode bt on jumps, calls and returns: what they cost once they are known, and that they go where they must."""

import pytest

from tests.modes.small_kernel import GDT, PASS, STACK, Kernel, compare, identity, run_both, seen
from tests.modes.transfers import HOT


@pytest.mark.parametrize("name", HOT)
def test_a_hot_loop_enters_the_dispatcher_as_often_for_a_million_iterations_as_for_a_thousand(name):
    """Everything is chained, up to four targets of a transfer; and the result is that of the bare machine."""
    exits = []
    for count in (1_000, 1_000_000):
        _, kernel = run_both(f"b9${count:x} {HOT[name]}")
        exits.append(kernel.exits())
    assert exits[0] == exits[1]
    assert exits[0]["dispatch"] <= 15


MANY = "89ca 83e207 8b1495=t"
EIGHT = (
    "f0: 40 c3 f1: 05$11 c3 f2: 29c8 c3 f3: 31c8 c3 f4: 48 c3 f5: f7d0 c3 f6: 01d0 c3 f7: 87c3 c3"
    " t: =f0=f1=f2=f3=f4=f5=f6=f7"
)
SPREAD = {
    "returns": f"top: {'e8>f ' * 8} 49 0f85>top {PASS} f: 01c8 c3",
    "returns that release arguments": f"top: {'50 51 e8>f ' * 8} 49 0f85>top {PASS} f: 01c8 c20800",
    "returns far down": f"top: {'81ec$200 51 e8>f ' * 8} 49 0f85>top {PASS} f: 01c8 c20402",
    "a call through memory": f"top: 89ca 83e207 ff1495=t 49 75~top {PASS} {EIGHT}",
    "a call through a register": f"top: {MANY} ffd2 49 75~top {PASS} {EIGHT}",
    "a call through ECX": f"top: 51 83e107 8b0c8d=t ffd1 59 49 75~top {PASS} {EIGHT}",
    "a jump through a register": f"top: 68=back {MANY} ffe2 back: 49 75~top {PASS} {EIGHT}",
    "a jump through ECX": f"top: 51 68=back 83e107 8b0c8d=t ffe1 back: 59 49 75~top {PASS} {EIGHT}",
}
"""Transfers with more targets than there are hints."""
STACK_WITH_BASE = f"c605${GDT + 0x1C:x} 01 b8$18 8ed0 bc${STACK - 0x10000:x}"


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("paging", [False, True])
def test_a_transfer_with_many_targets_finds_them_in_the_cache(name, paging):
    """However often: what no hint knows is found in a table."""
    exits, settings = [], {"pages": identity()} if paging else {}
    for count in (1_000, 20_000):
        _, kernel = run_both(f"b9${count:x} {SPREAD[name]}", **settings)
        exits.append(kernel.exits())
    assert exits[0] == exits[1]
    assert exits[0]["dispatch"] <= 40


@pytest.mark.parametrize("name", SPREAD)
def test_a_transfer_with_many_targets_can_be_stopped_anywhere(name):
    """Everything is undone that a transfer did before it was found where to go."""
    text = f"b9$60 {SPREAD[name]}"
    native, other = Kernel("native", text), Kernel("bt", text)
    for kernel in (native, other):
        kernel.machine.run(300)
    for until in range(301, 1_000):
        assert native.machine.run(until) == other.machine.run(until)
        assert seen(native) == seen(other)
    compare(native, other)


@pytest.mark.parametrize("name", SPREAD)
def test_a_transfer_on_a_stack_with_a_base_goes_where_the_stack_says(name):
    """64-bit code would look elsewhere; what lies there are addresses of code as well."""
    lure = f"bf${STACK - 0x11000:x} b8=top b9$800 f3ab"
    run_both(f"{STACK_WITH_BASE} {lure} b9$400 {SPREAD[name]}")


@pytest.mark.parametrize("prepare", ["", STACK_WITH_BASE], ids=["flat", "with a base"])
@pytest.mark.parametrize("at", range(-7, 4))
def test_a_call_through_memory_at_the_stack_pointer_goes_where_it_read(at, prepare):
    """Where the return address goes, and what stands there before it does, may be a part of the operand."""
    slot = f"24{at & 0xFF:02x}"
    text = f"{prepare} be$40 b9$fedcba98 top: 89f2 83e207 8b1495=t 8954{slot} ff54{slot} 4e 75~top {PASS} {EIGHT}"
    _, kernel = run_both(text, limit=20_000)
    assert 33 == kernel.machine.stop.status
