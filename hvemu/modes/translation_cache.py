"""The translation cache: where units lie, how they are chained, and what the guest's state is at each address.

The cache has two halves. In the second the guest has interrupts enabled, so that the clock can tell by the address when
a pending one may come. Nothing is written there by translated code: the hypervisor adds units, and patches exits when
their target becomes known or is forgotten. A unit lies within a page, because the CPU never runs on in one
block over the end of a page, and must not be stopped within a sequence.
"""

import mmap
import struct
from array import array
from collections.abc import Callable
from functools import cache
from typing import Final

from hvemu.modes.translator import (
    HINTS,
    HLT,
    WAY_SIZE,
    Callout,
    Context,
    Exit,
    Indirect,
    Point,
    Transition,
    Translation,
    adapted,
)
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import HostBug

_JMP: Final = b"\xe9"
_FILLER: Final = b"\xcc"
_CHAIN_ENTRY: Final = 8


_LOOKUP: Final = (
    bytes.fromhex("450fb7d0 4f8d1412 49bb")
    + bytes(8)
    + bytes.fromhex("4f8d1cd3 458b23 49f7d4 478d642001 4987cc e304 4987cc f4 4987cc 41ff6b08")
)
"""64-bit code that finds the unit for the address in R8D, and changes no flag:

movzx r10d,r8w / lea r10,[r10+r10] / mov r11,table / lea r11,[r11+r10*8] / mov r12d,[r11] / not r12
lea r12d,[r8+r12+1] / xchg rcx,r12 / jrcxz hit / xchg rcx,r12 / hlt / hit: xchg rcx,r12
jmp far [r11+8]
"""
_LOOKUP_TABLE: Final = _LOOKUP.index(b"\x49\xbb") + 2
LOOKUP_MISS, LOOKUP_HIT = (len(_LOOKUP) - size for size in (11, 7))
"""Where it takes ECX back after the comparison, in one case and the other."""
LOOKUP_SIZE: Final = 64
_ENTRY: Final = struct.Struct("<QII")
"""Guest EIP; EIP of its translation and CS."""
LOOKUP_TABLE_SIZE: Final = 1 << 20
_OFTEN: Final = 500


@cache
def _empty_table() -> bytes:
    """Entries that no address matches."""
    return b"".join(_ENTRY.pack(index ^ 1, 0, 0) for index in range(1 << 16))


class CacheFullError(Exception):
    """There is no room for a unit: flush, and translate it again. Never leaves the modes."""


class Unit:
    """A translation in the cache, at offset ``start``; ``valid`` until it is removed."""

    __slots__ = ("incoming", "key", "linear", "start", "translation", "valid")

    def __init__(self, translation: Translation, start: int, key: int) -> None:
        self.translation, self.start, self.key = translation, start, key
        self.linear = (translation.context.base + translation.eip) & 0xFFFF_FFFF
        self.incoming: list[tuple[Unit, Exit]] = []
        self.valid = True


class TranslationCache:
    """Units in ``view``, half of it for each state of IF. ``forget(offset, size)``: the CPU must not run what it has
    decoded there."""

    def __init__(self, view: memoryview, forget: Callable[[int, int], None]) -> None:
        self.size = len(view)
        self._lookup: memoryview | None = None
        self._lookup_selector = self._hole = 0
        self._lookup_for: tuple[int, int, int] | None = None
        self._preferred: tuple[int, int, int] | None = None
        self._strangers = 0
        self.enabled = self.size // 2
        """Offset from which on the guest has interrupts enabled."""
        self._view, self._forget = view, forget
        self.weights = memoryview(mmap.mmap(-1, 4 * self.size + 4)).cast("I")
        """Guest code bytes up to each byte, modulo 2**32; see the block clock."""
        self.starts = memoryview(mmap.mmap(-1, self.size))
        """1 where a guest instruction begins."""
        self.units: dict[int, Unit] = {}
        self.points: dict[int, tuple[Unit, Point]] = {}
        self.callouts: dict[int, tuple[Unit, Callout | Exit]] = {}
        self._contexts: dict[Context, int] = {}
        self._constants: dict[str, list[tuple[Unit, int, int]]] = {}
        self._next = [LOOKUP_SIZE, self.enabled + LOOKUP_SIZE]
        self._total = [0, 0]

    def use_lookup(self, tables: memoryview, linear: int, selector: int) -> None:
        """Let indirect transfers find their units by tables of LOOKUP_TABLE_SIZE, one for each half, at ``linear``.

        ``selector``: a 64-bit code segment, from which they can be reached.
        """
        self._lookup, self._lookup_linear, self._lookup_selector = tables, linear, selector

    def place(self, hole: int) -> None:
        """Where the cache is, as the guest's CPU sees it; for an empty cache."""
        self._hole = hole
        for half in range(2) if self._lookup is not None else ():
            code = bytearray(_LOOKUP)
            at = self._lookup_linear + half * LOOKUP_TABLE_SIZE
            code[_LOOKUP_TABLE : _LOOKUP_TABLE + 8] = at.to_bytes(8, "little")
            start = self.enabled * half
            self._view[start : start + len(code)] = code

    def in_lookup(self, offset: int) -> int:
        """The offset within the code of the lookup, or -1."""
        within = offset % self.enabled
        return within if within < LOOKUP_SIZE and self._lookup is not None else -1

    def _has_lookup(self, context: Context) -> bool:
        """The tables are for one code segment and one IOPL: those of the first unit, or of ``prefer``."""
        if self._lookup is None or context.shadow or not context.flat_stack:
            return False
        if self._lookup_for is None:
            self._lookup_for = context.selector, context.base, context.iopl
        return self._lookup_for == (context.selector, context.base, context.iopl)

    def prefer(self, context: Context) -> bool:
        """A transfer in this context has missed. Returns whether its code segment should have the lookup now, because
        another one has it and this one misses it often; the caller flushes."""
        if self._lookup is None or context.shadow or not context.flat_stack or self._has_lookup(context):
            return False
        self._strangers += 1
        if self._strangers < _OFTEN:
            return False
        self._strangers = 0
        self._preferred = context.selector, context.base, context.iopl
        return True

    def remember(self, unit: Unit) -> None:
        """Let the lookup find this unit."""
        context = unit.translation.context
        if self._lookup is not None and unit.valid and not unit.translation.repeats and self._has_lookup(context):
            eip, half = unit.translation.eip, int(context.interrupts)
            target = (self._hole + unit.start - context.base) & 0xFFFF_FFFF
            at = half * LOOKUP_TABLE_SIZE + (eip & 0xFFFF) * _ENTRY.size
            _ENTRY.pack_into(self._lookup, at, eip, target, context.selector | 1)

    def _forget_in_lookup(self, unit: Unit) -> None:
        if self._lookup is not None:
            eip, half = unit.translation.eip, int(unit.translation.context.interrupts)
            at = half * LOOKUP_TABLE_SIZE + (eip & 0xFFFF) * _ENTRY.size
            if _ENTRY.unpack_from(self._lookup, at)[0] == eip:
                _ENTRY.pack_into(self._lookup, at, eip & 0xFFFF ^ 1, 0, 0)

    # ------------------------------------------------------------------ finding

    def key(self, eip: int, context: Context) -> int:
        """What a unit is found by."""
        number = self._contexts.get(context)
        if number is None:
            number = self._contexts[context] = len(self._contexts)
        return eip | number << 32

    def find(self, eip: int, context: Context) -> Unit | None:
        """The unit that starts here in this context."""
        return self.units.get(self.key(eip, context))

    def point(self, offset: int) -> tuple[Unit, Point]:
        """What the guest's state is at an offset."""
        try:
            return self.points[offset]
        except KeyError:
            raise HostBug(f"translated code stopped at offset {offset:#x}, which is no point of any unit") from None

    # ------------------------------------------------------------------ adding

    def add(self, translation: Translation) -> Unit:
        """Put a unit into the cache; raises CacheFullError."""
        context, size = translation.context, len(translation.code)
        half = 1 if context.interrupts and not context.shadow else 0
        start, limit = self._next[half], (self.enabled, self.size)[half]
        if start % PAGE_SIZE + size > PAGE_SIZE:
            start = (start | (PAGE_SIZE - 1)) + 1
        if start + size > limit:
            raise CacheFullError
        self._next[half] = start + size
        self._view[start : start + size] = translation.code
        if self._has_lookup(context):
            self._call_lookup(translation, start, half)
        self._weigh(half, start, size, translation.weights)
        unit = Unit(translation, start, self.key(translation.eip, context))
        for at, length in translation.weights:
            if length:
                self.starts[start + at] = 1
        for at, point in translation.points.items():
            self.points[start + at] = unit, point
        for at, callout in translation.callouts.items():
            self.callouts[start + at] = unit, callout
        for way in translation.exits:
            self.callouts[start + way.slot] = unit, way
        for at, width, name in translation.constants:
            self._constants.setdefault(name, []).append((unit, start + at, width))
        self.units[unit.key] = unit
        return unit

    def _call_lookup(self, translation: Translation, start: int, half: int) -> None:
        """Where an indirect transfer would call the hypervisor, let it look in the table first."""
        for callout in translation.callouts.values():
            site = callout.indirect
            if site is not None:
                approach, landing = (self._hole + start + site.approach) & 0xFFFF_FFFF, start + site.landing
                far = b"\xea" + struct.pack("<IH", approach, self._lookup_selector | 1)
                self._view[start + site.slow : start + site.slow + len(far)] = far
                end = landing + WAY_SIZE
                self._view[end - 4 : end] = struct.pack("<i", self.enabled * half - end)

    def _weigh(self, half: int, start: int, size: int, weights: list[tuple[int, int]]) -> None:
        table, at, total = self.weights, start, self._total[half]
        for offset, length in weights:
            end = start + offset + 1
            table[at:end] = array("I", [total]) * (end - at)
            at, total = end, (total + length) & 0xFFFF_FFFF
        end = start + size + 1
        table[at:end] = array("I", [total]) * (end - at)
        self._total[half] = total

    # ------------------------------------------------------------------ chaining

    def chain(self, unit: Unit, way: Exit, target: Unit) -> None:
        """Let an exit of a unit go on to another unit by itself."""
        if not (unit.valid and target.valid) or target.translation.repeats:
            return
        slot = unit.start + way.slot
        if way.branch < 0:
            self._patch(slot, _JMP + struct.pack("<i", target.start - slot - 5))
        else:
            branch = unit.start + way.branch
            self._patch(branch + 2, struct.pack("<i", target.start - branch - 6), branch)
        target.incoming.append((unit, way))

    def _unchain(self, unit: Unit, way: Exit) -> None:
        slot = unit.start + way.slot
        if way.branch < 0:
            self._patch(slot, bytes([HLT]) + _FILLER * 4)
        else:
            branch = unit.start + way.branch
            self._patch(branch + 2, struct.pack("<i", slot - branch - 6), branch)

    def hint(self, unit: Unit, site: Indirect, target: Unit) -> bool:
        """Let an indirect transfer find this target by itself, if there is room for one more; returns whether."""
        number, value = len(site.targets), target.translation.eip
        if number == HINTS or not (unit.valid and target.valid) or value in site.targets:
            return False
        before = site.targets[-1] if number else 0
        site.targets.append(value)
        entry, hit = site.chain + number * _CHAIN_ENTRY, site.hits[number]
        code = site.hit(value)
        context = unit.translation.context
        way = Exit(hit + len(code), value, Transition(context.interrupts, shadow=False))
        charged = Point(site.eip, site.length, site.undo, value, site.register)
        for at in (hit, *([entry + _CHAIN_ENTRY] if number + 1 < HINTS else []), site.miss):
            self.points[unit.start + at] = unit, charged
        push = hit + len(code) - 5
        if site.undo == "register" and code[-5] == 0x68 and push > hit:
            self.points[unit.start + push] = unit, Point(site.eip, site.length)
        slot = unit.start + way.slot
        self.points[slot] = unit, Point(value, interrupts=context.interrupts, shadow=False)
        self.callouts[slot] = unit, way
        self._patch(unit.start + hit, code + bytes([HLT]) + _FILLER * 4)
        self._patch(unit.start + site.miss, b"\x8d\x89" + struct.pack("<I", value))
        compare = b"\x8d\x89" + struct.pack("<I", (before - value) & 0xFFFF_FFFF)
        self._patch(unit.start + entry, compare + b"\xe3" + bytes([hit - entry - _CHAIN_ENTRY]))
        self.chain(unit, way, target)
        return True

    def update(self, name: str, value: int) -> None:
        """A virtual register that translations hold as a constant has changed."""
        for unit, at, width in self._constants.get(name, ()):
            if unit.valid:
                self._patch(at, struct.pack("<I", value & 0xFFFF_FFFF)[:width])

    def trace(self, offset: int, length: int) -> None:
        """Call the tracer in place of the store at an offset, which keeps faulting."""
        unit, point = self.point(offset)
        self.callouts[offset] = unit, Callout("tracer", length)
        self._patch(offset, bytes([HLT]))
        items = unit.translation.items
        index = next(number for number, item in enumerate(items) if item.eip == point.eip)
        items[index] = adapted(items[index])

    def _patch(self, offset: int, code: bytes, start: int | None = None) -> None:
        self._view[offset : offset + len(code)] = code
        begin = offset if start is None else start
        self._forget(begin, offset + len(code) - begin)

    # ------------------------------------------------------------------ removing

    def remove(self, unit: Unit) -> None:
        """The guest's code is no longer what was translated."""
        if not unit.valid:
            return
        unit.valid = False
        self._forget_in_lookup(unit)
        if self.units.get(unit.key) is unit:
            del self.units[unit.key]
        for source, way in unit.incoming:
            self._unchain(source, way)
        unit.incoming.clear()

    def flush(self) -> None:
        """Forget every unit; the caller makes the CPU forget all code."""
        for unit in self.units.values():
            unit.valid = False
        for table in (self.units, self.points, self.callouts, self._constants, self._contexts):
            table.clear()
        for start, end in zip((0, self.enabled), self._next, strict=True):
            self.starts[start:end] = bytes(end - start)
        self._next = [LOOKUP_SIZE, self.enabled + LOOKUP_SIZE]
        self._total = [0, 0]
        self._lookup_for = self._preferred
        if self._lookup is not None:
            for half in range(2):
                self._lookup[half * LOOKUP_TABLE_SIZE : (half + 1) * LOOKUP_TABLE_SIZE] = _empty_table()

    def constants(self) -> list[str]:
        """Names of the virtual registers whose values translations hold."""
        return list(self._constants)

    def read(self, offset: int, length: int) -> bytes:
        """Emitted code."""
        return bytes(self._view[offset : offset + length])

    def used(self) -> int:
        """Bytes of the cache that hold units, or did since the last flush."""
        return self._next[0] + self._next[1] - self.enabled
