"""Mode bt on small kernels and guests: what is translated, when it exits, and that no guest can tell."""

import functools
import struct

import pytest

from hvemu.devices.contract import Device, DeviceState
from hvemu.machine import builder
from hvemu.memory.walk import walk
from hvemu.modes.binary_translation import BinaryTranslation
from hvemu.modes.translator import UNIT_LENGTH, Treatment
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from tests.modes.small_kernel import (
    BASE,
    DATA,
    DIRECTORY,
    LIMIT,
    PASS,
    STACK,
    TABLES,
    TO_USER,
    USER,
    Kernel,
    assemble,
    compare,
    identity,
    run_both,
    word,
)
from tests.modes.transfers import HOT

GUESTS = ["hello", "ring3", "preempt", "paging", "faults", "interrupts", "selfmod", "realmode_boot"]
HOLE = 0xFB00_0000
IS_PRIME = f"""
    68$%x e8>is_prime 83c404 {PASS}
    is_prime: bb$2 again: 3b5c2404 7d~prime 8b442404 31d2 f7f3 85d2 74~composite 43 eb~again
    composite: 31c0 c3
    prime: b8$1 c3
"""
"""for (i = 2; i < a; i++) if (a % i == 0) return 0; return 1"""


def logged(kernel):
    """Note every unit of a kernel from now on."""
    log = []
    kernel.translation.translated = log.append
    return log


def starts(log):
    """Addresses of the instructions in units."""
    return {item.eip for unit in log for item in unit.translation.items}


def bt_guest(name, prepare=lambda machine: None, **changes):
    """Run a guest of the catalogue in mode bt."""
    row = catalog()[name]
    return run_guest(
        guest_configuration(row, mode="bt", **changes),
        keys=row.input,
        keys_after=row.input_after,
        position=30_000_000,
        prepare=prepare,
    )


@functools.cache
def native_guest(name):
    """How a guest ends on the bare machine: console, status, position, screen, registers."""
    row = catalog()[name]
    result = run_guest(guest_configuration(row), keys=row.input, keys_after=row.input_after, position=30_000_000)
    return ending(result)


def ending(result):
    """What must be equal."""
    machine = result.machine
    return result.console, result.status, machine.mode.position(), machine.screen(), machine.registers()


# ---------------------------------------------------------------------- what is translated


@pytest.mark.parametrize(("number", "prime"), [(49, False), (47, True)])
def test_code_is_translated_only_when_it_is_executed(number, prime):
    """The one that returns 1 exists in the cache for a prime number only."""
    kernel = Kernel("bt", IS_PRIME % number)
    log = logged(kernel)
    assert 33 == kernel.machine.run(LIMIT).status
    eips = {unit.translation.eip for unit in log}
    assert prime is (kernel.labels["prime"] in eips)
    assert prime is (kernel.labels["composite"] not in eips)
    assert prime is (kernel.labels["prime"] in starts(log))


@pytest.mark.parametrize(
    "text",
    [
        IS_PRIME % 49,
        IS_PRIME % 47,
        f"b9$20 top: fa 9c fb 9d f6c101 75~odd 40 odd: e8>f ff15=t 49 75~top {PASS} f: ffe2 f90f0b t: =g g: 01c8 c3"
        .replace("ffe2 f90f0b", "ba=h ffe2 0f0b h: 43 c3"),
        f"b8$5 e3~on 0f0b on: 48 75~on e2~out 0f0b out: {PASS}",
    ],
    ids=["composite", "prime", "transfers", "loops"],
)  # fmt: skip
def test_the_translated_code_is_the_executed_code(text):
    """Step the guest on the bare machine: each unit begins at an executed address, and none is outside of the units."""
    native, kernel = Kernel("native", text), Kernel("bt", text)
    executed = set()
    while native.machine.stop is None:
        executed.add(native.machine.register_values()["eip"])
        native.machine.step()
    log = logged(kernel)
    kernel.machine.run(LIMIT)
    assert 33 == native.machine.stop.status == kernel.machine.stop.status
    assert {unit.translation.eip for unit in log} <= executed
    assert executed == starts(log) & executed
    last = native.machine.register_values()["eip"]
    assert all(eip >= last for eip in starts(log) - executed)  # only what stands behind the end of the guest


class _Checked:
    """Looks at each unit when it is translated, and at those that are still valid when asked."""

    def __init__(self, machine):
        self.machine, self.translation = machine, machine.mode._translation
        self.translation.translated = self.note
        self.units, self.items = [], 0

    def note(self, unit):
        self.units.append(unit)
        self.check(unit)

    def check(self, unit):
        cache, guest = self.translation.cache, self.translation._guest
        context, items = unit.translation.context, unit.translation.items
        assert len(items) <= UNIT_LENGTH
        assert len(items) == 1 or not context.shadow
        for item in items:
            if item.treatment is not Treatment.IDENTICAL:
                continue
            self.items += 1
            memory = b""
            for at in range(len(item.code)):
                linear = (context.base + item.eip + at) & 0xFFFF_FFFF
                physical = walk(self.machine.memory, guest.paging(), linear, mark=False)
                memory += self.machine.memory.read(physical, 1)
            emitted = cache.read(unit.start + item.offset, len(item.code))
            assert item.code == emitted == memory, item


@pytest.mark.parametrize("name", GUESTS)
def test_identical_instructions_are_identical_in_the_cache_and_units_are_short(name):
    """For every unit of a guest's life: no more than 12 instructions, one in an interrupt shadow, copies are copies."""
    logs = []

    result = bt_guest(name, lambda machine: logs.append(_Checked(machine)))
    assert catalog()[name].expected_status == result.status
    (log,) = logs
    assert log.items > 50
    if machine_is_translated := result.machine.mode.current is log.translation:
        for unit in log.units:
            if unit.valid:
                log.check(unit)
    assert machine_is_translated or name == "realmode_boot"


def test_the_shadow_of_sti_is_one_instruction():
    """STI; NOP; NOP: the first NOP is a unit of its own."""
    kernel = Kernel("bt", f"fb 90 90 {PASS}")
    log = logged(kernel)
    kernel.machine.run(LIMIT)
    shadows = [unit.translation for unit in log if unit.translation.context.shadow]
    assert [(BASE + 1, 1)] == [(translation.eip, len(translation.items)) for translation in shadows]


def test_a_second_pass_over_the_same_code_translates_nothing():
    """A function that is called again, and a loop's further iterations."""
    text = f"b9$%x top: e8>f e8>f 49 75~top {PASS} f: 50 9c fa 9d 85c0 74~out 40 out: 58 c3"
    counts = []
    for passes in (2, 200):
        kernel = Kernel("bt", text % passes)
        log = logged(kernel)
        kernel.machine.run(LIMIT)
        counts.append(kernel.events()["translated_unit"])
        keys = [(unit.translation.eip, unit.translation.context) for unit in log]
        assert len(keys) == len(set(keys)) == counts[-1]
    assert counts[0] == counts[1]


def test_what_was_translated_stays_over_a_stop():
    """Run a function, stop, put EIP back by way of the guest itself: no more units."""
    kernel = Kernel("bt", "top: 40 e8>f ebf8 f: 41 9c 9d c3".replace("ebf8", "eb~top"))
    kernel.machine.run(200)
    before = kernel.events()["translated_unit"]
    for _ in range(20):
        kernel.machine.run(kernel.machine.mode.position() + 53)
    assert before == kernel.events()["translated_unit"]


# ---------------------------------------------------------------------- exits that do not happen

QUIET = {
    "CLI and STI": "fa fb",
    "CLI with work and STI": "fa 40 fb 40",
    "PUSHF and POPF": "9c fa 40 9d fb 9c 9d",
    "PUSHF where IF is clear": "9c 58 fa 9c 5a fb",
    "SMSW": "0f01e0 660f01e3 0f0125$00300000",
    "STR": "0f00c8 660f00cb 0f000d$00300000",
    "SLDT": "0f00c0 660f00c3 0f0005$00300000",
    "SGDT": "0f0105$00300000",
    "SIDT": "0f010d$00300000",
    "MOV from CS": "8cc8 668ccb 8c0d$00300000",
    "MOV from SS": "8cd0 668cd3",
    "MOV from DS": "8cd8 8c1d$00300000",
    "MOV from CR0": "0f20c0",
    "MOV from CR3": "0f20d8",
    "MOV from CR4": "0f20e0",
    "PUSH CS": "0e 58",
    "PUSH SS": "16 58",
}


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("paging", [False, True])
def test_what_a_kernel_asks_and_says_all_the_time_causes_no_exit(name, paging):
    """After the first iterations; and the guest sees what the bare machine shows."""
    exits = []
    for count in (1_000, 100_000):
        settings = {"pages": identity()} if paging else {}
        _, kernel = run_both(f"b9${count:x} top: {QUIET[name]} 49 0f85>top {PASS}", **settings)
        exits.append(kernel.exits())
    assert exits[0] == exits[1]
    assert "callout" not in exits[0]
    assert "privileged" not in exits[0]


def test_a_constant_in_a_translation_follows_the_register():
    """CR0.TS and CR2 change between two executions of the same code."""
    text = f"""
        b9$3 top: 0f20c0 a3$00300000 e8>f 0f20d0 0305$00300000 01c3 0f06 49 75~top 0f20c0 0c08 0f22c0 e8>f {PASS}
        f: 0f01e2 0f20c6 89d0 83f008 0f22d1 89c8 0f22d0 0f20d7 c3
    """.replace("0f22d1", "90")
    run_both(text)


# ---------------------------------------------------------------------- adaptation

ENTRY = TABLES + 0x1000
"""The page-table entry of 4 MiB."""
REWRITE = {
    "page table": f"a1$00401000 a1${ENTRY:x} be${ENTRY:x}"
    f" top: 89c8 c1e00c 25$0000f000 0d$00600063 8906 49 75~top {PASS}",
    "page directory": f"be${DIRECTORY + 8:x} a1$00800000 8b06"
    f" top: 89c8 83e001 c1e00c 05${TABLES + 0x3023:x} 8906 49 75~top {PASS}",
}


@pytest.mark.parametrize("name", REWRITE)
def test_a_loop_that_stores_page_table_entries_stops_faulting(name):
    """After a few traced writes the store is a callout; what the tables say at the end is what they must."""
    exits = []
    for count in (1_000, 10_000):
        _, kernel = run_both(f"b9${count:x} {REWRITE[name]}", pages=identity(), shadow="trace")
        exits.append(kernel.exits())
        assert 1 == kernel.events()["translation_adapted"]
        assert count * 9 // 10 < exits[-1]["callout"] <= count
    for kind in ("traced_write", "hidden_fault", "dispatch"):
        assert exits[0][kind] == exits[1][kind]


def test_a_loop_that_stores_entries_of_a_table_it_never_reads_stops_faulting():
    """The page of the table itself is then never mapped by the shadow tables."""
    text = REWRITE["page table"].replace(f" a1${ENTRY:x}", "")
    _, kernel = run_both(f"b9$3e8 {text}", pages=identity(), shadow="trace")
    assert kernel.exits()["traced_write"] < 10


def test_what_an_adapted_store_maps_is_what_the_guest_then_reads():
    """Each iteration maps another page and reads from it."""
    data = {0x40_0004 + 0x1000 * index: word(0x1111 * index) for index in range(16)}
    for flush in ("0f013d$00400000", "0f20d8 0f22d8"):
        text = f"be${ENTRY:x} top: 89c8 c1e00c 25$0000f000 0d$00400003 8906 {flush} 031d$00400004 49 75~top {PASS}"
        _, kernel = run_both(f"b9$3e8 {text}", pages=identity(), shadow="trace", data=data)
        assert 1 == kernel.events()["translation_adapted"]
        assert kernel.exits()["traced_write"] < 10


def test_an_adapted_store_that_stores_elsewhere_is_acquitted():
    """A function that fills page tables, and then ordinary memory: the callouts end."""
    text = (
        f"a1$00401000 a1${ENTRY:x} be${ENTRY:x} b9$32 e8>f be${DATA:x} b9$%x e8>f {PASS}"
        " f: b8$00600063 top: 8906 05$1000 25$0060ffff 49 75~top c3"
    )
    exits = []
    for count in (1_000, 10_000):
        _, kernel = run_both(text % count, pages=identity(), shadow="trace")
        exits.append(kernel.exits())
        assert 1 == kernel.events()["translation_adapted"]
    assert exits[0] == exits[1]
    assert 40 < exits[0]["callout"] < 50


def test_a_store_that_is_sometimes_to_a_table_does_not_go_back_and_forth_for_ever():
    """Table and ordinary memory by turns: after a few acquittals it is left alone."""
    text = f"be${ENTRY:x} a1$00401000 8b06 b8$00600063 top: 8906 81f6${ENTRY ^ DATA:x} 49 75~top {PASS}"
    events = []
    for count in (1_000, 4_000):
        _, kernel = run_both(f"b9${count:x} {text}", pages=identity(), shadow="trace")
        events.append(kernel.events())
    assert events[0] == events[1]
    assert events[0]["translation_adapted"] <= 5


# ---------------------------------------------------------------------- precise state

ABSENT, EDGE, READ_ONLY, ZEROS = 0x50_0000, 0x50_0000 - 2, 0x60_0000, 0x70_0000
GOOD = [DATA + 0x100 * index for index in range(1, 7)]
STACKED = "89e3 89f4 {} 89dc"
"""With ESI as the stack."""
BODIES = {
    "a load": "8b06",
    "a store": "8906",
    "an addition to memory": "40 0106 43",
    "a division": "31d2 b8$64 f736",
    "a push": STACKED.format("50"),
    "a pop": STACKED.format("58"),
    "a call": STACKED.format("e8>g"),
    "a call through a register": STACKED.format("b8=g ffd0"),
    "a call through ECX": "51 b9=g 89e3 89f4 ffd1 89dc 59",
    "a call through memory": "ff16",
    "a call through memory with a stack": STACKED.format("ff15=t"),
    "a jump through memory": "49 ff26",
    "a return": "89f4 49 c3",
    "a return that releases": "89f4 49 c20800",
    "PUSHF": STACKED.format("9c"),
    "POPF": STACKED.format("9d"),
    "PUSH CS": STACKED.format("0e"),
    "PUSH SS": STACKED.format("16"),
    "MOV from CS": "8c0e",
    "SGDT": "0f0106",
    "SIDT below": "0f014efe",
    "STR": "0f000e",
    "SMSW": "0f0126",
    "a load of DS": "8e1e",
    "LDS": "c53e",
    "IRET": "89f4 49 cf",
    "REP MOVS to it": "51 56 89f7 8d77f0 89f7 81ef$20 be$00310000 b9$40 f3a5 5e 59",
    "REP MOVS from it": "51 56 83ee20 bf$00310000 b9$40 f3a5 5e 59",
    "REP STOS": "51 8d7ee0 b9$20 f3ab 59",
    "LEAVE": "55 89e3 89f5 c9 89dc",
    "LAR": "0f020e",
    "INVLPG": "0f013e",
    "LMSW": "0f0136",
    "code": "ffd6",
    "a far jump": "49 ff2e",
    "INT": STACKED.format("cd20"),
}


BADLY = {"absent": ABSENT, "edge": EDGE, "read-only": READ_ONLY, "zeros": ZEROS}


@pytest.mark.parametrize("flags", [0x8D7, 0x202], ids=["set", "IF"])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        pytest.param(name, BADLY[bad], id=f"{name}, {bad}")
        for name in BODIES
        for bad in BADLY
        if (name, bad) != ("code", "edge")  # there the engine by itself names the start of its block for the fault
    ],
)
def test_a_fault_in_kernel_code_is_what_it_is_on_the_bare_machine(name, bad, flags):
    """EIP, error code, CR2, flags, registers and the whole memory as the handler finds them, after five good rounds."""
    text = f"b9$5 top: 8b348d=table {BODIES[name]} 49 r: 0f89>top {PASS} g: 40 c3 t: =g table: {word(bad)}"
    text += "".join(word(address) for address in GOOD)
    pages = identity()
    del pages[ABSENT]
    pages[READ_ONLY] &= ~2
    labels = assemble(text)[1]
    values = {"call": (labels["g"],), "LDS": (0x46, 0x18), "DS": (0x18,), "IRET": (labels["r"], 0x10, 0x46)}
    values |= {"return": (labels["r"],), "jump": (labels["r"], 0x10), "code": (0xC3,), "": (0x46, 0x18)}
    content = next(value for kind, value in values.items() if kind in name)
    data = {address: "".join(word(value) for value in content) for address in GOOD}
    run_both(text, pages=pages, flags=flags, data=data, limit=100_000)


@pytest.mark.parametrize("code", ["0f0b", "f7f1", "8ed9", "ce", "cc", "cd20", "cd21", "f1", "ffff", "0f20e8", "0f22e0"])
@pytest.mark.parametrize("flags", [0x2, 0xAD7, 0x102])
def test_an_exception_in_the_middle_of_a_unit_is_what_it_is_on_the_bare_machine(code, flags):
    """#UD, #DE, #GP, #OF, #BP, a vector without a gate; and single steps."""
    run_both(f"b8$ffffffff 40 41 31c9 40 b9$00 b5ff 31c9 05$80000000 {code} 40 41 {PASS}", flags=flags, limit=100_000)


@pytest.mark.parametrize("where", [0xFF0, 0xFF5, 0xFFA, 0xFFB, 0xFFC, 0xFFE, 0xFFF])
@pytest.mark.parametrize("absent", [False, True])
def test_code_that_goes_on_in_another_page_runs_or_faults_there(where, absent):
    """Straight code, an instruction across the edge, one that ends there."""
    pages = identity()
    if absent:
        del pages[0x40_1000]
    code = "40 b9$12345678 41 9c 58 05$11111111 42"
    settings = {"pages": pages, "data": {0x40_0000 + where: f"{code} {PASS}"}}
    text = f"b8$00400000 05${where:x} ffe0"
    if absent and where in (0xFFA, 0xFFF):  # where the engine by itself names the start of its block for the fault
        kernel = Kernel("bt", text, **settings)
        kernel.machine.run(LIMIT)
        cpu = kernel.machine.registers()
        assert (0, 0x40_1000) == struct.unpack("<2I", kernel.machine.memory.read(STACK - 16, 8))
        assert (0x40_1000, 0x40_0000 + where + 1) == (cpu.cr2, cpu.gprs[0])
    else:
        run_both(text, **settings)


def test_a_fault_is_repaired_by_the_guest_and_the_instruction_done_again():
    """Demand paging: the handler maps the page; calls, returns and POPF through fresh pages."""
    pages = identity()
    for page in range(0x40_0000, 0x60_0000, 0x1000):
        del pages[page]
    repair = f"51 89c1 c1e90c 25$fffff000 0c03 89048d${TABLES:x} 59 58 83c404 cf"
    fix = 0x10_8000
    text = f"""
        be$00400ffc b9$40
        top: 89f4 e8>f 83ec02 9c 9d 89f4 8d7efe 8917 ff15=t 89f4 b8=f ffd0 8d6604 bf$00300000 0f01460e 81c6$1000
        49 75~top {PASS} f: 42 c3 t: =f
    """
    run_both(
        text, pages=pages, handlers={14: f"e9{word(fix - 0x11_1000 - 16 * 14 - 5)}"}, data={fix: "50 0f20d0 " + repair}
    )


# ---------------------------------------------------------------------- code that changes


class _Poke(Device):
    """A port that, when written, does to the machine what a test wants: as a device would write memory."""

    name = "poke"
    widest_access = 4

    def __init__(self, act):
        self._act = act

    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        self._act(value)

    def reset(self):
        pass

    def state(self):
        return DeviceState(self.name, 1, {})

    def from_state(self, state):
        pass


SELF_MODIFYING = {
    "the same unit": "b9$14 top: 880d=later 40 05 later: 00000000 49 75~top",
    "the next instruction": "b9$14 top: 880d=at 04 at: 00 49 75~top",
    "itself": "b9$14 top: c705=at 00000000 at: 49 0f85>top".replace(
        "c705=at 00000000 at:", "be=at at: 8d360f1f00 8806"
    ),
    "the next unit": "b9$14 top: 880d=at eb~on on: 04 at: 00 49 75~top",
    "the unit before": "b9$14 top: 04 at: 00 eb~on on: 880d=at 49 75~top",
    "a chained function": "b9$14 top: e8>f 880d=at 49 75~top eb~out f: 04 at: 00 c3 out:",
    "a hinted function": "b9$14 top: bb=f ffd3 880d=at 49 75~top eb~out f: 04 at: 00 c3 out:",
    "an alias": "b9$14 top: 880d=at2 04 at: 00 49 75~top",
    "by a push": "b9$14 top: 89e3 bc=end 51 89dc b8 at: 00000000 end: 01c2 49 75~top",
    "by a call": "b9$14 top: 89e3 bc=end e8>f f: 89dc b8 at: 00000000 end: 01c2 49 75~top",
    "by REP STOS": "b9$14 top: 51 88c8 bf=at b9$4 f3aa 59 b8 at: 00000000 01c2 49 75~top",
    "by SGDT": "b9$14 top: 0f0105=at b8 at: 00000000 ba0000 0000 01c2 49 75~top",
    "by PUSH CS": "b9$14 top: 89e3 bc=end 0e 89dc b8 at: 00000000 end: 01c2 49 75~top",
    "by XCHG": "b9$14 top: 89c8 8705=at b8 at: 00000000 01c2 49 75~top",
    "by a callout": "b9$14 top: 8c15=at b8 at: 00000000 01c2 49 75~top",
}


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("name", SELF_MODIFYING)
def test_code_that_the_kernel_stores_over_is_translated_again(name, paging):
    """Twenty changes in a loop, each executed: the sum is that of the bare machine."""
    text = SELF_MODIFYING[name]
    settings = {}
    if paging:
        pages = identity()
        pages[0x80_0000] = BASE | 3
        settings = {"pages": pages}
        if name == "an alias":
            at = Kernel("native", text.replace("at2", "at") + f" {PASS}").labels["at"]
            text = text.replace("=at2", f"${0x80_0000 + at - BASE:x}")
    run_both(text.replace("at2", "at") + f" {PASS}", **settings)


@pytest.mark.parametrize("paging", [False, True])
def test_code_that_a_device_writes_over_is_translated_again(paging):
    """Not through the CPU at all: in the middle of an OUT, the square of what was written."""
    kernel = Kernel(
        "bt",
        f"b9$14 66bae002 top: e8>f 89c8 ef 49 75~top {PASS} f: 81c3 at: 00000000 c3",
        pages=identity() if paging else None,
    )
    memory, at = kernel.machine.memory, kernel.labels["at"]
    port = _Poke(lambda value: memory.write(at, struct.pack("<I", value * value)))
    kernel.machine.ports.claim(0x2E0, 4, port)
    assert 33 == kernel.machine.run(LIMIT).status
    assert sum(number * number for number in range(2, 21)) == kernel.machine.register_values()["ebx"]


@pytest.mark.parametrize("paging", [False, True])
def test_code_that_is_written_over_while_the_guest_is_stopped_is_translated_again(paging):
    """As a debugger does it, at any instruction."""
    kernels = []
    for mode in ("native", "bt"):
        text = f"b9$14 top: e8>f 40 49 75~top {PASS} f: 81c3 at: 00000000 c3"
        kernel = Kernel(mode, text, pages=identity() if paging else None)
        for number in range(1, 30):
            kernel.machine.run(11 * number)
            kernel.machine.memory.write(kernel.labels["at"], struct.pack("<I", number * number))
        assert 33 == kernel.machine.run(LIMIT).status
        kernels.append(kernel)
    compare(*kernels)


@pytest.mark.parametrize("store", ["890d=k", "880d=k", "c705=k$12345678"])
def test_data_next_to_running_code_does_not_make_it_translated_again_and_again(store):
    """Twenty thousand stores into the page of the loop."""
    _, kernel = run_both(f"b9$4e20 top: {store} 49 0f85>top {PASS} 9090909090909090 k: 0000000000000000")
    assert kernel.events()["translated_unit"] < 50
    assert kernel.exits()["dispatch"] < 50


def test_a_counter_next_to_running_code_is_stepped_as_often_as_it_is_counted():
    """What the emulator does not know is stepped over; ten thousand times and more is no standstill."""
    _, kernel = run_both(f"b9$4e20 top: ff05=k 49 0f85>top {PASS} 9090909090909090 k: 0000000000000000")
    assert 20_000 == kernel.machine.memory.read_u32(kernel.labels["k"])
    assert kernel.events()["translated_unit"] < 50


def test_a_store_that_is_stepped_ten_thousand_times_is_no_standstill():
    """OR to a page-table entry faults twice each time; time goes on, so that is progress."""
    _, kernel = run_both(f"b9$2af8 top: 830d${TABLES + 0x400:x} 00 49 75~top {PASS}", pages=identity(), shadow="trace")
    assert 11_000 == kernel.exits()["traced_write"]


def test_a_counter_right_behind_code_does_not_make_it_translated_again_and_again():
    """Three bytes behind the last instruction."""
    _, kernel = run_both(f"b9$3e8 top: ff05=k 49 0f85>top {PASS} k: 00000000")
    assert kernel.events()["translated_unit"] < 50


def test_mixed_pages_of_code_that_store_into_each_other_make_progress():
    """Two pages, each with a function that counts in the other."""
    one, two = 0x40_0000, 0x40_1000
    _, kernel = run_both(
        f"b9$7d0 b8${one:x} ba${two:x} top: ffd0 ffd2 49 75~top {PASS}",
        pages=identity(),
        data={one: f"ff05${two + 0x100:x} c3", two: f"890d${one + 0x100:x} c3"},
    )
    assert kernel.events()["translated_unit"] < 100


# ---------------------------------------------------------------------- the hole


@pytest.mark.parametrize(
    "code", ["8b06", "8906", "0106", "ffe6", "ffd6", "89f4 50", "89f4 c3", "ff16", "b104 bf$00300000 f3a4", "8c0e"]
)
@pytest.mark.parametrize("offset", [0, 0x1234, 0x3F_FFFC, 0x20_0000, -2])
def test_where_the_cache_is_the_guest_faults_as_if_nothing_were_there(code, offset):
    """#PF with the guest's own error code, as on the bare machine; the cache is neither read nor written nor run."""
    _, kernel = run_both(f"be${HOLE + offset:x} 40 {code} {PASS}", pages=identity())
    assert HOLE == kernel.translation._hole
    assert "translation_hole_moved" not in kernel.events()
    assert 1 == kernel.exits()["true_fault"]


@pytest.mark.parametrize(
    "code", ["8b06", "8906", "0106", "ffd6", "89f4 50", "ff16", "8c0e", "f3a4", "89e3 89f4 58 89dc"]
)
def test_where_the_guest_maps_something_the_cache_is_elsewhere(code):
    """Its own data are there; the hole moves, and execution goes on."""
    pages = identity()
    pages[HOLE] = 0x40_0003
    _, kernel = run_both(
        f"be${HOLE + 0x10:x} b9$4 89f7 {code} 8b1e 40 {PASS}",
        pages=pages,
        data={0x40_0010: "c3901000", 0x10_90C3: "c3"},
    )
    assert HOLE != kernel.translation._hole
    assert kernel.events()["translation_hole_moved"] >= 1


@pytest.mark.parametrize("code", ["8b06", "8906", "ffe6", "ffd6", "89f4 50", "31c9 0f01ee", "31c9 31d2 0f01ef"])
@pytest.mark.parametrize("mapped", [False, True])
def test_user_code_does_not_see_the_cache(code, mapped):
    """It faults, or sees what the guest's kernel mapped there for it."""
    pages = {page: entry | 4 for page, entry in identity().items()}
    if mapped:
        pages[HOLE] = 0x40_0007
    run_both(TO_USER, pages=pages, data={USER: f"be${HOLE + 8:x} 40 {code} 41 cd20", 0x40_0008: "0f0b9090"})


def test_without_paging_the_hole_is_an_address_where_nothing_is():
    """Reads as on the bare machine, and what follows runs."""
    run_both(f"a1${HOLE:x} a3${HOLE + 0x1000:x} 40 8b1d${HOLE + 0x10_0000:x} {PASS}")


# ---------------------------------------------------------------------- a small cache


@pytest.mark.parametrize("size", [0x1_0000, 0x4000, 0x2000])
@pytest.mark.parametrize("name", GUESTS)
def test_a_tiny_cache_is_flushed_often_and_nobody_notices(name, size, monkeypatch):
    """Console, verdict, position, screen and registers are those of the bare machine."""
    monkeypatch.setattr(builder, "BinaryTranslation", functools.partial(BinaryTranslation, cache_size=size))
    result = bt_guest(name)
    assert native_guest(name) == ending(result)
    assert size == result.machine.mode._translation.cache.size


@pytest.mark.parametrize("name", [*HOT, *QUIET])
def test_a_cache_of_two_pages_does_what_a_large_one_does(name, monkeypatch):
    """Units are chained to units that are gone at the next flush."""
    monkeypatch.setattr(builder, "BinaryTranslation", functools.partial(BinaryTranslation, cache_size=0x2000))
    body = HOT.get(name) or f"top: {QUIET[name]} 49 0f85>top {PASS}"
    run_both(f"b9$64 {body}")


def test_a_kernel_that_is_larger_than_the_cache_flushes_it_again_and_again(monkeypatch):
    """Three hundred functions, five times, with CLI and STI in between; hints and chains lead to what was flushed."""
    monkeypatch.setattr(builder, "BinaryTranslation", functools.partial(BinaryTranslation, cache_size=0x2000))
    calls = "".join(f" e8>f{number} bb=f{number} ffd3" for number in range(300))
    functions = "".join(f" f{number}: 05$%x 9c fa 40 9d c3" % number for number in range(300))
    for flags in (2, 0x202):
        _, kernel = run_both(f"b9$5 top: {calls} 49 0f85>top {PASS} {functions}", flags=flags, pages=identity())
        assert kernel.events()["translation_flush"] > 100


# ---------------------------------------------------------------------- counting


INSTRUCTIONS = {
    "straight code": "40 42 43",
    "flags": "fa 9c 58 fb 9c 9d",
    "a call": "e8>f",
    "a call through a register": "b8=f ffd0",
    "sensitive registers": "0f01e0 0e 58 0f0105$00300000",
    "callouts": "0f06 0f20c0 0f22c0",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_are_counted_as_on_the_bare_machine(name):
    """However many were emitted for one."""
    text = f"b9$5 top: {INSTRUCTIONS[name]} 49 0f85>top {PASS} f: 40 c3"
    native, kernel = run_both(text, pages=identity(), count_instructions=True)
    assert native.machine.mode.instructions() == kernel.machine.mode.instructions()


def test_a_call_through_memory_that_faults_on_the_way_is_counted_once():
    """A hidden fault of its load, then again."""
    data = {0x60_0000: word(BASE + 6)}
    native, kernel = run_both(f"ff15$00600000 {PASS}", pages=identity(), count_instructions=True, data=data)
    assert native.machine.mode.instructions() == kernel.machine.mode.instructions()


def test_sgdt_across_a_page_is_counted_once():
    """A hidden fault of its second store, then again."""
    native, kernel = run_both(f"0f0105$00402ffe {PASS}", pages=identity(), count_instructions=True)
    assert native.machine.mode.instructions() == kernel.machine.mode.instructions()
