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
from typing import Final

from hvemu.modes.translator import (
    HINTS,
    HLT,
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
        self._next = [0, self.enabled]
        self._total = [0, 0]

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
        if site.miss_restores:
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
        self._next = [0, self.enabled]
        self._total = [0, 0]

    def constants(self) -> list[str]:
        """Names of the virtual registers whose values translations hold."""
        return list(self._constants)

    def read(self, offset: int, length: int) -> bytes:
        """Emitted code."""
        return bytes(self._view[offset : offset + length])

    def used(self) -> int:
        """Bytes of the cache that hold units, or did since the last flush."""
        return self._next[0] + self._next[1] - self.enabled
