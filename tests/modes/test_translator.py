"""The binary translator and its cache alone, without an engine. The oracle of what was emitted is another decoder."""

import random
import struct

import pytest

from hvemu.modes.translation_cache import TranslationCache
from hvemu.modes.translator import HINTS, HLT, UNIT_LENGTH, Context, Transition, Treatment, translate

iced = pytest.importorskip("iced_x86")

BASE = 0x10_0000
DISABLED = Context(interrupts=False, shadow=False, iopl=0, selector=0x10, base=0)
ENABLED = DISABLED._replace(interrupts=True)
SHADOW = ENABLED._replace(shadow=True)
CONSTANTS = {
    "cr0": 0x8001_0011, "cr0:16": 0x11, "cr2": 0x1234_5678, "cr3": 0x20_0000, "cr4": 0x90, "gdtr.limit": 0x1F,
    "gdtr.base": 0x0CAF_E123, "idtr.limit": 0x7FF, "idtr.base": 0xBEEF_0000, "ldtr": 0x68, "ldtr:16": 0x68, "tr": 0x60,
    "tr:16": 0x60,
}  # fmt: skip
REGISTERS = [getattr(iced.Register, name) for name in "EAX ECX EDX EBX ESP EBP ESI EDI".split()]
SEGMENTS = [iced.Register.NONE, *(getattr(iced.Register, name) for name in "ES CS SS DS FS GS".split())]
INLINE = [
    "e800010000", "ffd0", "ffd1", "ff10", "ff5504", "ff1424", "ff542408", "ffe0", "ffe1", "c3", "c21000", "c2f07f",
    "7510", "0f8c00010000", "e210", "e010", "e110", "e310", "eb10", "e900010000", "fa", "fb", "9c", "0f20c0", "0f20d1",
    "0f20da", "0f20e3", "8cc8", "668ccb", "8cd0", "8cd4", "668cd2", "8c0f", "8c4c2404", "0e", "16", "0f01e0",
    "660f01e1",
    "0f0127", "0f00c0", "660f00c1", "0f0007", "0f00c8", "660f00ca", "0f000f", "0f0107", "0f010c24", "0f014c2404",
]  # fmt: skip
"""Instructions that become a sequence of others, without POPFD and those that are called out."""
CALLED_OUT = [
    "f4", "0f06", "0f01f0", "0f0110", "0f0118", "0f00d0", "0f00d8", "0f0138", "0f09", "0f08", "0f32", "0f30", "0f35",
    "0f02c1", "0f03c1", "0f00e0", "0f00e8", "0fc7f0", "0fc7f8", "0fb208", "cf", "66cf", "cb", "ca0800",
    "ea000010001000", "9a000010001000", "ff28", "ff18", "ff20", "ff248578563412", "ffe4", "ffd4", "66c3", "66e80000",
    "66ffd0", "67ff17", "669c", "669d", "0f22c0", "0f21c0", "0f23c0", "8ed0", "17", "8c17", "660e", "6616", "678c0f",
    "660f0107", "670f0107", "670f0127",
]  # fmt: skip
IDENTICAL = [
    "90", "01d8", "f7f1", "a4", "f3ab", "8b442404", "cc", "cd80", "ce", "50", "1e", "06", "8cd8", "8ed8", "1f", "c9",
    "0fa2", "0f31", "ec", "ee", "6c", "0fb600", "f00fb10f", "d9c0", "0f6fc1", "0f0b", "c50f", "f30f1e fb",
]  # fmt: skip


def unit(code, context=DISABLED, *, eip=BASE, **settings):
    """Translate code that lies at EIP, with NOPs behind it for ever."""
    image = bytes.fromhex(code) if isinstance(code, str) else code
    start = (context.base + eip) & 0xFFFF_FFFF

    def fetch(linear, length):
        offset = linear - start
        return image[offset : offset + length].ljust(length, b"\x90")

    return translate(fetch, eip, context, CONSTANTS.__getitem__, **settings)


def decoded(code, ip=0, bits=32):
    """Instructions as the other decoder sees them."""
    return list(iced.Decoder(bits, bytes(code), ip=ip))


def decoded_of(cache, source):
    """What lies in the cache for the first instruction of a unit; the way to the lookup is 64-bit code."""
    item, sites = source.translation.items[0], [one.indirect for one in source.translation.callouts.values()]
    start, end = source.start + item.offset, source.start + item.offset + item.size
    middle = next((source.start + site.approach for site in sites if site), end)
    return [*decoded(cache.read(start, middle - start), start), *decoded(cache.read(middle, end - middle), middle, 64)]


def first(code, ip=BASE):
    """The first of them."""
    return decoded(code, ip)[0]


def emitted(translation, item):
    """What was emitted for an item, decoded; fillers of slots and unused hits left out."""
    code = translation.code[item.offset : item.offset + item.size]
    return [one for one in decoded(code, item.offset) if one.mnemonic != iced.Mnemonic.INT3]


def memory_of(one):
    """The memory operand of a decoded instruction."""
    return (
        one.memory_base, one.memory_index, one.memory_index_scale, one.memory_displacement & 0xFFFF_FFFF,
        one.memory_segment,
    )  # fmt: skip


def forms():
    """Memory operands of every form: each base, index and size of displacement, some segments and scales."""
    rng = random.Random(12)
    for base in [iced.Register.NONE, *REGISTERS]:
        for index in [iced.Register.NONE, *(one for one in REGISTERS if one != iced.Register.ESP)]:
            for size, value in ((0, 0), (1, rng.randrange(-128, 128)), (4, rng.getrandbits(31)), (4, -4)):
                no_form_without = size == 0 and base in (iced.Register.NONE, iced.Register.EBP)
                if no_form_without or (size == 1 and base == iced.Register.NONE):
                    continue
                yield iced.MemoryOperand(
                    base, index, rng.choice([1, 2, 4, 8]) if index else 1, value, size, False, rng.choice(SEGMENTS)
                )


def encode(kind, *operands):
    """Machine code of an instruction with a memory operand."""
    create = {1: iced.Instruction.create_mem, 2: iced.Instruction.create_mem_reg}[len(operands)]
    encoder = iced.Encoder(32)
    encoder.encode(create(kind, *operands), BASE)
    return encoder.take_buffer()


def in_cache(*translations, size=0x4000):
    """A cache with these units."""
    cache = TranslationCache(memoryview(bytearray(size)), lambda offset, length: None)
    return cache, [cache.add(one) for one in translations]


# ---------------------------------------------------------------------- units


def test_a_unit_ends_after_twelve_instructions_or_with_the_first_transfer():
    """And goes on at the next instruction."""
    straight = unit("40" * 30)
    assert UNIT_LENGTH == 12 == len(straight.items)
    assert [(BASE + 12, -1)] == [(way.target, way.branch) for way in straight.exits]
    assert 3 == len(unit("40 40 c3 40 40").items)
    assert 12 == straight.length


def test_a_unit_in_an_interrupt_shadow_is_one_instruction_and_leaves_the_shadow():
    """Behind it a pending interrupt may come."""
    translation = unit("40 41 42", SHADOW)
    assert 1 == len(translation.items)
    assert [(BASE + 1, Transition(interrupts=True, shadow=False))] == [
        (way.target, way.transition) for way in translation.exits
    ]


@pytest.mark.parametrize(("code", "count"), [("40" * 12, 4), ("40 40 40 b8 00 00 00 00", 3)])
def test_a_unit_does_not_cross_into_another_page_except_by_its_only_instruction(code, count):
    """The page may be mapped elsewhere tomorrow."""
    eip = BASE + 0xFFC
    translation = unit(code, eip=eip)
    assert count == len(translation.items)
    assert eip + count == translation.exits[0].target
    assert 1 == len(unit("b800000000 40 40", eip=BASE + 0xFFD).items)


def test_only_instructions_that_are_on_the_way_are_fetched():
    """Nothing behind a transfer is looked at: it need not be code."""
    asked = []

    def fetch(linear, length):
        asked.append(linear)
        return bytes.fromhex("40 eb10")[linear - BASE :].ljust(length, b"\xff")

    translate(fetch, BASE, DISABLED, CONSTANTS.__getitem__)
    assert [BASE, BASE + 1] == asked


@pytest.mark.parametrize("code", IDENTICAL)
def test_what_does_the_same_in_ring_1_is_copied_byte_by_byte(code):
    """Item and emitted bytes are the guest's."""
    translation = unit(code)
    item = translation.items[0]
    raw = bytes.fromhex(code)
    assert (Treatment.IDENTICAL, raw) == (item.treatment, item.code)
    assert raw == translation.code[item.offset : item.offset + len(raw)]


@pytest.mark.parametrize("code", CALLED_OUT)
@pytest.mark.parametrize("context", [DISABLED, ENABLED])
def test_what_only_the_emulator_can_do_is_a_callout(code, context):
    """One HLT, with the guest's length."""
    translation = unit(code, context)
    item = translation.items[0]
    assert Treatment.CALLOUT is item.treatment, item
    assert (HLT, 1) == (translation.code[item.offset], item.size)
    assert ("instruction", len(bytes.fromhex(code))) == (translation.callouts[0].kind, translation.callouts[0].length)


@pytest.mark.parametrize("code", ["0fff", "ffff", "0f01ef", "0f01ee", "f00f0b40", "8ec8"])
def test_rubbish_raises_ud_where_the_guest_meets_it(code):
    """And so does what exists only for the hypervisor, as RDPKRU."""
    translation = unit(code)
    raises = translation.code[:2] == b"\x0f\x0b" or Treatment.IDENTICAL is translation.items[0].treatment
    assert raises, translation.items


def test_pushf_is_copied_only_where_the_cpu_pushes_what_the_guest_believes():
    """Ring 1 runs with IF = 1 and IOPL = 0; elsewhere the word on the stack is corrected by the difference."""
    assert Treatment.IDENTICAL is unit("9c", ENABLED).items[0].treatment
    for context, difference in ((DISABLED, -0x200), (ENABLED._replace(iopl=3), 0x3000)):
        translation = unit("9c", context)
        correction = next(
            one for one in emitted(translation, translation.items[0]) if one.mnemonic == iced.Mnemonic.LEA
        )
        assert difference & 0xFFFF_FFFF == correction.memory_displacement & 0xFFFF_FFFF


def test_cli_and_sti_lead_to_code_for_the_other_state_of_if():
    """CLI where it is clear already is nothing; an STI that follows an STI is in its shadow and makes none."""
    off, on = Transition(interrupts=False, shadow=False), Transition(interrupts=True, shadow=False)
    held_off = Transition(interrupts=True, shadow=True)
    assert "90" == unit("fa", DISABLED).code[:1].hex()
    assert (BASE + 1, off) == _way(unit("fa", ENABLED))
    assert (BASE + 1, held_off) == _way(unit("fb", DISABLED))
    assert (BASE + 1, on) == _way(unit("fb", SHADOW))


def _way(translation):
    way = translation.exits[0]
    return way.target, way.transition


def test_breakpoints_end_a_unit_and_begin_the_next_with_a_callout():
    """The callout charges nothing: the instruction itself comes after it."""
    stop = BASE + 2
    before = unit("40 40 41 42", stops=frozenset({stop}))
    assert (2, stop) == (len(before.items), before.exits[0].target)
    at = unit("41 42", eip=stop, stops=frozenset({stop}))
    assert ("breakpoint", 0) == (at.callouts[0].kind, at.callouts[0].length)
    assert bytes([HLT, 0x41]) == at.code[:2]
    assert (1, 1) == at.weights[0]


def test_a_store_that_is_traced_is_called_out():
    """Wherever it is in its unit."""
    translation = unit("40 8907 41", tracers=frozenset({BASE + 1}))
    assert ["identical", "callout", "identical"] == [item.treatment.value for item in translation.items][:3]
    assert "tracer" == translation.callouts[1].kind


# ---------------------------------------------------------------------- relocation


@pytest.mark.parametrize("seed", range(40))
def test_conditional_jumps_lead_to_the_same_two_places(seed):
    """Short and near forms of every condition, with prefixes, anywhere in memory, over its end as well."""
    rng = random.Random(seed)
    eip = rng.choice([BASE, 0x10, 0xFFFF_FFF0]) + rng.randrange(0, 8)
    condition = rng.randrange(16)
    short = struct.pack("<Bb", 0x70 | condition, rng.randrange(-128, 128))
    near = struct.pack("<BBi", 0x0F, 0x80 | condition, rng.randrange(-(1 << 31), 1 << 31))
    code = rng.choice([b"", b"", b"\x2e", b"\x3e"]) + rng.choice([short, near])
    translation = unit(code, eip=eip)
    mine, other = first(code, eip), first(translation.code, 0)
    assert mine.condition_code == other.condition_code
    stays, goes = translation.exits
    assert (stays.slot, goes.slot) == (other.next_ip, other.near_branch_target)
    assert (mine.next_ip & 0xFFFF_FFFF, mine.near_branch_target & 0xFFFF_FFFF) == (stays.target, goes.target)
    assert (-1, other.ip) == (stays.branch, goes.branch)


@pytest.mark.parametrize("opcode", [0xE0, 0xE1, 0xE2, 0xE3])
@pytest.mark.parametrize("prefix", ["", "67"])
def test_loops_and_jecxz_lead_to_the_same_two_places(opcode, prefix):
    """There is no long form: they jump over a jump. The size of the counter is kept."""
    for distance in (-128, -1, 0, 5, 127):
        code = bytes.fromhex(prefix) + struct.pack("<Bb", opcode, distance)
        translation = unit(code)
        mine, other = first(code), first(translation.code, 0)
        assert mine.code == other.code
        stays, goes = translation.exits
        assert (stays.slot, goes.slot) == (other.next_ip, other.near_branch_target)
        assert (mine.next_ip, mine.near_branch_target) == (stays.target, goes.target)


@pytest.mark.parametrize("code", ["eb00", "eb80", "e900000080", "e9ffffff7f", "e800000080", "e8fbffffff", "3eeb10"])
def test_jumps_and_calls_lead_to_the_same_place_and_calls_push_the_guests_address(code):
    """The return address is that of the guest's code, not of the cache."""
    translation = unit(code)
    mine = first(bytes.fromhex(code))
    assert [mine.near_branch_target & 0xFFFF_FFFF] == [way.target for way in translation.exits]
    if mine.mnemonic == iced.Mnemonic.CALL:
        push = first(translation.code, 0)
        assert (iced.Mnemonic.PUSH, mine.next_ip) == (push.mnemonic, push.immediate32)
        assert push.len == translation.exits[0].slot


def test_a_call_through_memory_reads_the_same_operand():
    """PUSH computes an operand relative to ESP before it moves ESP, as CALL does."""
    count = 0
    for form in forms():
        code = encode(iced.Code.CALL_RM32, form)
        translation = unit(code)
        push, exchange, *_ = emitted(translation, translation.items[0])
        assert iced.Code.PUSH_RM32 == push.code, code.hex()
        assert memory_of(first(code)) == memory_of(push), code.hex()
        assert (iced.Code.XCHG_RM32_R32, iced.Register.ESP) == (exchange.code, exchange.memory_base), code.hex()
        count += 1
    assert count > 200


def test_a_call_through_an_absolute_address_reads_the_same_address():
    """The short form without SIB, with each segment."""
    for prefix in ("", "26", "2e", "36", "3e", "64", "65"):
        code = bytes.fromhex(prefix + "ff1578563412")
        push = emitted(unit(code), unit(code).items[0])[0]
        assert memory_of(first(code)) == memory_of(push)


@pytest.mark.parametrize(
    ("name", "stores"),
    [
        ("MOV_R32M16_SREG", [(0, 2, 0x10)]),
        ("MOV_RM16_SREG", [(0, 2, 0x10)]),
        ("SMSW_R32M16", [(0, 2, 0x11)]),
        ("SLDT_R32M16", [(0, 2, 0x68)]),
        ("STR_RM16", [(0, 2, 0x60)]),
        ("SGDT_M1632", [(0, 2, 0x1F), (2, 4, 0x0CAF_E123)]),
        ("SIDT_M1632", [(0, 2, 0x7FF), (2, 4, 0xBEEF_0000)]),
    ],
)
def test_sensitive_registers_are_stored_to_the_same_operand(name, stores):
    """Selectors, CR0 and tables, to every form of memory."""
    for form in forms():
        extra = (iced.Register.CS,) if name.startswith("MOV") else ()
        machine_code = encode(getattr(iced.Code, name), form, *extra)
        translation = unit(machine_code)
        base, index, scale, displacement, segment = memory_of(first(machine_code))
        ours = emitted(translation, translation.items[0])
        assert len(stores) == len(ours), machine_code.hex()
        for one, (offset, size, value) in zip(ours, stores, strict=True):
            assert iced.Mnemonic.MOV == one.mnemonic
            there = (base, index, scale, (displacement + offset) & 0xFFFF_FFFF, segment)
            assert there == memory_of(one), machine_code.hex()
            assert (size, value) == (iced.MemorySizeExt.size(one.memory_size), one.immediate(1) & 0xFFFF_FFFF)


def test_constants_are_where_the_unit_says_they_are():
    """Each patch place holds the value of the virtual register that it is named after."""
    for code in ("0f20c0", "0f20d1", "0f20da", "0f20e3", "0f01e0", "660f01e0", "0f0127", "0f00c0", "660f00c0", "0f00c8",
                 "0f0107", "0f010c24", "0f0007", "0f000f"):  # fmt: skip
        translation = unit(code)
        assert translation.constants
        for at, size, name in translation.constants:
            assert struct.pack("<I", CONSTANTS[name])[:size] == translation.code[at : at + size], code


# ---------------------------------------------------------------------- what must not change


def sequences():
    """Units that start with an inline sequence, in each context; indirect ones with all their hints in use."""
    for code in INLINE:
        for context in (DISABLED, ENABLED, SHADOW, ENABLED._replace(iopl=3)):
            translation = unit(code, context)
            if translation.items[0].treatment is not Treatment.INLINE:
                continue
            cache, (source,) = in_cache(translation)
            sites = {id(one.indirect): one.indirect for one in translation.callouts.values() if one.indirect}
            for site in sites.values():
                for number in range(HINTS):
                    eip = 0x20_0000 + 0x1111 * number
                    target = cache.add(unit("c3", context._replace(shadow=False), eip=eip))
                    assert cache.hint(source, site, target)
            yield code, context, cache, source


def test_every_inline_sequence_leaves_the_flags_alone():
    """Whatever the sequence, no instruction of it writes a flag; POPFD is meant to."""
    count = 0
    for code, _, cache, source in sequences():
        for one in decoded_of(cache, source):
            if one.mnemonic != iced.Mnemonic.INT3:
                assert not one.rflags_modified, (code, str(one))
                count += 1
    assert count > 500


def test_wherever_the_cpu_can_stop_in_a_sequence_the_guests_state_is_known():
    """At every HLT, at the start of every block, and where memory is first touched."""
    for code, context, cache, source in sequences():
        touched, starts = False, True
        for one in decoded_of(cache, source):
            if one.mnemonic == iced.Mnemonic.INT3:
                continue
            known = one.ip in cache.points
            what = (code, context, hex(one.ip - source.start), str(one))
            if one.mnemonic == iced.Mnemonic.HLT or starts:
                assert known, what
            memory = iced.OpKind.MEMORY in (one.op0_kind, one.op1_kind) and one.mnemonic != iced.Mnemonic.LEA
            again = touched and one.mnemonic == iced.Mnemonic.XCHG  # the word on the stack, which is there
            if (memory or one.is_stack_instruction) and not again:
                assert known, what
            touched = touched or one.is_stack_instruction or memory
            starts = one.flow_control != iced.FlowControl.NEXT


def test_a_selector_is_put_into_the_register_that_was_asked_for():
    """MOV from CS is a constant; MOV from SS takes the ring away, by LEA."""
    for register, name in enumerate(REGISTERS):
        translation = unit(bytes([0x8C, 0xC8 | register]))
        one = emitted(translation, translation.items[0])[0]
        assert (iced.Mnemonic.MOV, name, 0x10) == (one.mnemonic, one.op0_register, one.immediate32)
        translation = unit(bytes([0x8C, 0xD0 | register]))
        move, lea = emitted(translation, translation.items[0])
        assert name == move.op0_register == lea.op0_register == lea.memory_base
        assert 0xFFFF_FFFF == lea.memory_displacement & 0xFFFF_FFFF


def test_an_indirect_transfer_compares_with_its_hints_and_restores_what_it_missed():
    """The distances between hints and of the miss add up: LEA takes one target away and gives the one before back."""
    for code in ("c3", "ffd0", "ffe3", "ffd1", "ffe1", "ff10"):
        translation = unit(code)
        cache, (source,) = in_cache(translation)
        site = next(callout.indirect for callout in translation.callouts.values() if callout.indirect)
        targets = [0x20_0000, 0x10_0000, 0xFFFF_0000, 0x8000_0000]
        for number, eip in enumerate(targets, 1):
            assert cache.hint(source, site, cache.add(unit("c3", eip=eip)))
            start = source.start + site.chain
            chain = decoded(cache.read(start, site.miss + 6 - site.chain), start)
            total = 0
            for wanted in targets[:number]:
                while chain[0].mnemonic != iced.Mnemonic.LEA:
                    chain.pop(0)
                total = (total + chain.pop(0).memory_displacement) & 0xFFFF_FFFF
                assert -wanted & 0xFFFF_FFFF == total
                assert iced.Mnemonic.JECXZ == chain.pop(0).mnemonic
            back = decoded(cache.read(source.start + site.miss, 6))[0]
            assert 0 == (total + back.memory_displacement) & 0xFFFF_FFFF
        assert not cache.hint(source, site, cache.add(unit("c3", eip=0x55)))


# ---------------------------------------------------------------------- the cache


def test_a_unit_is_found_only_in_the_context_it_was_translated_for():
    """IF, shadow, IOPL and CS are part of its name."""
    cache, (unit_,) = in_cache(unit("40", ENABLED))
    assert unit_ is cache.find(BASE, ENABLED)
    for other in (DISABLED, SHADOW, ENABLED._replace(iopl=1), ENABLED._replace(selector=8), ENABLED._replace(base=16)):
        assert cache.find(BASE, other) is None
    assert cache.find(BASE + 1, ENABLED) is None


def test_units_with_interrupts_enabled_lie_in_the_second_half_and_none_crosses_a_page():
    """The clock tells by the address whether an interrupt may come."""
    rng = random.Random(5)
    cache, _ = in_cache(size=0x20000)
    for number in range(300):
        context = rng.choice([DISABLED, ENABLED, SHADOW])
        added = cache.add(unit("40" * rng.randrange(1, 12) + "c3", context, eip=BASE + 64 * number))
        assert (context is ENABLED) is (added.start >= cache.enabled)
        assert added.start // 0x1000 == (added.start + len(added.translation.code) - 1) // 0x1000


def test_the_weights_of_a_unit_are_the_guests_bytes():
    """Between the starts of two items lies the length of the first, whatever was emitted for it."""
    translation = unit("40 9c 0f20c0 b801000000 0e 90 e800010000")
    cache, (added,) = in_cache(unit("41 c3"), translation)[0], [None]
    added = cache.find(BASE, DISABLED)
    starts = [added.start + item.offset for item in translation.items]
    ends = [*starts[1:], added.start + len(translation.code)]
    weights = [cache.weights[end] - cache.weights[start] for start, end in zip(starts, ends, strict=True)]
    assert [len(item.code) for item in translation.items] == weights
    assert starts == [at for at in range(added.start, ends[-1]) if cache.starts[at]]


@pytest.mark.parametrize("number", [0, 1])
def test_an_exit_is_a_jump_while_its_target_is_there_and_a_hlt_otherwise(number):
    """The branch of a conditional jump goes to the target itself."""
    source = unit("7510")
    cache, (from_, to) = in_cache(source, unit("c3", eip=0x20_0000))
    before = cache.read(from_.start, len(source.code))
    way = source.exits[number]
    cache.chain(from_, way, to)
    branch, slot = decoded(cache.read(from_.start, 11), from_.start)[:2]
    assert to.start == (slot, branch)[number].near_branch_target
    cache.remove(to)
    assert before == cache.read(from_.start, len(source.code))
    assert not to.valid
    assert cache.find(0x20_0000, DISABLED) is None
    cache.chain(from_, way, to)
    assert before == cache.read(from_.start, len(source.code))


def test_a_hint_whose_target_is_removed_comes_to_the_hypervisor():
    """The comparison stays, its jump is taken back."""
    source = unit("c3")
    cache, (from_, to) = in_cache(source, unit("40", eip=0x20_0000))
    site = next(iter(source.callouts.values())).indirect
    cache.hint(from_, site, to)
    hit = from_.start + site.hits[0]
    length = len(site.hit(0))
    assert to.start == decoded(cache.read(hit + length, 5), hit + length)[0].near_branch_target
    cache.remove(to)
    assert HLT == cache.read(hit + length, 1)[0]
    assert 0x20_0000 == cache.point(hit + length)[1].eip


def test_a_changed_register_is_patched_wherever_a_unit_holds_it():
    """And nowhere else."""
    one, two = unit("0f20d8 0f20c0"), unit("660f01e0 0f20da", eip=0x20_0000)
    cache, units = in_cache(one, two)
    before = [cache.read(added.start, len(added.translation.code)) for added in units]
    cache.update("cr3", 0xAABB_CCDD)
    after = [cache.read(added.start, len(added.translation.code)) for added in units]
    value = struct.pack("<I", CONSTANTS["cr3"])
    assert [code.replace(value, bytes.fromhex("ddccbbaa")) for code in before] == after
    assert before != after


def test_a_flush_forgets_everything_and_starts_again_at_the_beginning():
    """Units that somebody still holds are not valid."""
    cache, (added,) = in_cache(unit("9c"))
    before = in_cache()[0].used()
    assert before < cache.used()
    cache.flush()
    assert not added.valid
    assert (before, {}, {}, {}) == (cache.used(), cache.units, cache.points, cache.callouts)
    assert not any(cache.starts)
    assert added.start == cache.add(unit("40")).start
