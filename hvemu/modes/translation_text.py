"""A translation unit for people: guest code on the left, what became of it on the right, and why. And as plain values.

    00100025 fa           cli                        > inline: goes on in code for IF = 0
                                                     | 023 f4 cc cc cc cc     hlt ; exit 1

The mark between the sides is ``=`` for identical, ``>`` for inline and ``!`` for a callout; of identical instructions
in a row only the first says why. Emitted code is shown as it was when it was translated: no exit is chained, no hint is
used. Its addresses are offsets in the unit.
"""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from hvemu.cpu.decoder import MAXIMUM_LENGTH, decode
from hvemu.modes.translator import HINTS, UNIT_LENGTH, WAY_SIZE, Exit, Indirect, Item, Translation, Treatment

WIDTH: Final = 100
"""Columns that no line exceeds."""
_FILLER: Final = 0xCC
_CHAIN_ENTRY: Final = 8
_GUEST_BYTES, _GUEST_TEXT = 4, 26
_EMITTED_BYTES, _EMITTED_TEXT = 6, 26
_LEFT: Final = 8 + 1 + 3 * _GUEST_BYTES - 1 + 2 + _GUEST_TEXT
_RIGHT: Final = 3 + 1 + 3 * _EMITTED_BYTES - 1 + 2 + _EMITTED_TEXT
_MARKS: Final = {Treatment.IDENTICAL: "=", Treatment.INLINE: ">", Treatment.CALLOUT: "!"}
_LEGEND: Final = f"emitted code ({', '.join(f'{mark} {treatment}' for treatment, mark in _MARKS.items())})"
_CALLOUTS: Final = {"indirect": "callout: lookup", "breakpoint": "callout: breakpoint"}

Name = Callable[[int], str]
"""What is at a linear address, in a word; "" if nobody knows."""


class Emitted(NamedTuple):
    """One emitted instruction at ``offset`` in its unit, with the filler behind it. ``note``: what it is there for."""

    offset: int
    code: bytes
    text: str
    note: str


def nameless(_address: int) -> str:
    """Nobody knows what is there."""
    return ""


def emitted(translation: Translation, item: Item) -> list[Emitted]:
    """What was emitted for an instruction."""
    start, end = item.offset, item.offset + item.size
    if item.treatment is not Treatment.IDENTICAL:
        return _decoded(translation, start, end)
    callout = translation.callouts.get(start)
    own = start + 1 if callout is not None and callout.kind == "breakpoint" else start
    after = own + len(item.code)
    identical = Emitted(own, item.code, item.text, "")
    return [*_decoded(translation, start, own), identical, *_decoded(translation, after, end)]


def condition(translation: Translation, way: Exit) -> str:
    """When a unit is left by this exit; "" if always. ``way`` is one of its exits."""
    last = translation.items[-1]
    ways = [other for other in translation.exits if last.offset <= other.slot < last.offset + last.size]
    if way not in ways:
        return ""
    if last.treatment is Treatment.IDENTICAL:
        return "when the handler returns"
    if len(ways) == 1:
        return ""
    first, second = ways
    if first.transition != second.transition:
        return "if this IF is popped"
    return "if it jumps" if way is second else "if it does not jump"


def translation_lines(translation: Translation, title: str = "unit", name: Name = nameless) -> list[str]:
    """A unit as lines of at most ``WIDTH`` columns; it must have an instruction."""
    context = translation.context
    lines = [_heading(translation, title, name), f"{'guest code':{_LEFT}} {_LEGEND}"]
    said = ""
    for item in translation.items:
        why = f"{item.treatment}: {item.reason}"
        repeated = item.treatment is Treatment.IDENTICAL and why == said
        lines += _side_by_side(item, "" if repeated else why, emitted(translation, item))
        said = why
    last = translation.items[-1]
    if rest := _decoded(translation, last.offset + last.size, len(translation.code)):
        lines += _beside([], [_why_it_ends(translation), *_right(rest)], ">")
    lines.append("exits")
    for number, way in enumerate(translation.exits, 1):
        when = condition(translation, way)
        words = f"{_place(context.base, way.target, name)}, {_state(*way.transition)}{when and ', '}{when}"
        lines.append(f"  {number}  {words}")
    for site in _sites(translation):
        lines.append(
            f"  indirect, from {_place(context.base, site.eip, name)}: {HINTS} hints, a table, then the hypervisor"
        )
    if lines[-1] == "exits":
        lines[-1] = "exits: none but the callout" if last.treatment is Treatment.CALLOUT else "exits: none"
    return [*lines, totals_line(totals([translation]))]


def totals(translations: Iterable[Translation]) -> dict[str, int]:
    """Instructions, guest and emitted bytes, and how many instructions were treated how."""
    units = list(translations)
    items = [item for unit in units for item in unit.items]
    return {
        "instructions": len(items),
        "guest_bytes": sum(unit.length for unit in units),
        "emitted_bytes": sum(len(unit.code) for unit in units),
        **{treatment.value: sum(item.treatment is treatment for item in items) for treatment in Treatment},
    }


def totals_line(numbers: dict[str, int]) -> str:
    """``totals`` as a line."""
    treatments = ", ".join(f"{numbers[treatment]} {treatment}" for treatment in Treatment)
    count, size = numbers["instructions"], numbers["guest_bytes"]
    return (
        f"{count} instruction{'s' * (count != 1)}: {treatments};"
        f" {size} byte{'s' * (size != 1)} became {numbers['emitted_bytes']}"
    )


def translation_as_dict(translation: Translation, name: Name = nameless) -> dict[str, Any]:
    """A unit as plain values, for JSON: addresses are linear, offsets from the unit's start, bytes in hexadecimal."""
    context = translation.context
    return {
        "address": _linear(context.base, translation.eip),
        "name": name(_linear(context.base, translation.eip)),
        "interrupts": context.interrupts,
        "shadow": context.shadow,
        "instructions": [
            {
                "address": _linear(context.base, item.eip),
                "code": item.code.hex(),
                "text": item.text,
                "treatment": item.treatment.value,
                "reason": item.reason,
                "emitted": [_row_as_dict(row) for row in emitted(translation, item)],
            }
            for item in translation.items
        ],
        "exits": [
            {
                "offset": way.slot,
                "target": _linear(context.base, way.target),
                "name": name(_linear(context.base, way.target)),
                "interrupts": way.transition.interrupts,
                "shadow": way.transition.shadow,
                "condition": condition(translation, way),
            }
            for way in translation.exits
        ],
        "indirect": [{"address": _linear(context.base, site.eip), "hints": HINTS} for site in _sites(translation)],
        "totals": totals([translation]),
    }


def _row_as_dict(row: Emitted) -> dict[str, Any]:
    return {"offset": row.offset, "code": row.code.hex(), "text": row.text, "note": row.note}


# ---------------------------------------------------------------------- emitted code


def _decoded(translation: Translation, start: int, end: int) -> list[Emitted]:
    """The emitted instructions between two offsets, each with the filler behind it."""
    code, notes, rows, at = bytes(translation.code), _notes(translation), [], start
    sites = _sites(translation)
    while at < end:
        bits = 64 if any(site.approach <= at < site.landing + WAY_SIZE for site in sites) else 32
        found = decode(code[at : min(end, at + MAXIMUM_LENGTH)], bits, at)
        after = at + (len(found.code) if found else 1)
        inside = [note for place, note in notes.items() if at <= place < after]
        while after < end and code[after] == _FILLER and after not in notes:
            after += 1
        rows.append(Emitted(at, code[at:after], str(found) if found else "(data)", ", ".join(inside)))
        at = after
    return rows


def _notes(translation: Translation) -> dict[int, str]:
    """What there is to say about places in emitted code, by their offsets."""
    notes = {at: name.partition(":")[0].upper() for at, _, name in translation.constants}
    for at, callout in translation.callouts.items():
        notes[at] = _CALLOUTS.get(callout.kind, "callout")
    for number, way in enumerate(translation.exits, 1):
        notes[way.slot] = f"exit {number}"
        if way.branch >= 0:
            notes[way.branch] = f"or exit {number}"
    for site in _sites(translation):
        notes[site.approach], notes[site.landing] = "64-bit code", "to the table"
        for number in range(HINTS):
            notes[site.chain + number * _CHAIN_ENTRY] = f"hint {number + 1}, unused"
    return notes


def _sites(translation: Translation) -> list[Indirect]:
    """The lookups of a unit, one for each indirect transfer."""
    found: list[Indirect] = []
    for callout in translation.callouts.values():
        if callout.indirect is not None and callout.indirect not in found:
            found.append(callout.indirect)
    return found


# ---------------------------------------------------------------------- columns


def _side_by_side(item: Item, why: str, rows: list[Emitted]) -> list[str]:
    left = _columns(f"{item.eip:08x}", item.code.hex(" "), 3 * _GUEST_BYTES - 1, item.text, _GUEST_TEXT)
    return _beside(left, [*textwrap.wrap(why, _RIGHT), *_right(rows)], _MARKS[item.treatment])


def _why_it_ends(translation: Translation) -> str:
    """Why a unit ends although its last instruction goes on to the next."""
    if translation.context.shadow:
        return "after one instruction interrupts can come"
    if len(translation.items) == UNIT_LENGTH:
        return f"a unit has {UNIT_LENGTH} instructions at most"
    return "the page ends here, or a breakpoint follows"


def _right(rows: list[Emitted]) -> list[str]:
    lines = []
    for row in rows:
        text = f"{row.text} ; {row.note}" if row.note else row.text
        lines += _columns(f"{row.offset:03x}", _bytes(row.code), 3 * _EMITTED_BYTES - 1, text, _EMITTED_TEXT)
    return lines


def _bytes(code: bytes) -> str:
    """Bytes in hexadecimal; long filler is counted."""
    filler = len(code) - len(code.rstrip(bytes([_FILLER])))
    if len(code) <= _EMITTED_BYTES or filler < 2:
        return code.hex(" ")
    return f"{code[:-filler].hex(' ')} {filler}*{_FILLER:02x}"


def _columns(address: str, code: str, code_width: int, text: str, text_width: int) -> list[str]:
    """An address, bytes and an instruction, wrapped each for itself."""
    codes = textwrap.wrap(code, code_width)
    texts = textwrap.wrap(text.replace(" ptr ", " "), text_width) or [""]
    lines = []
    for index in range(max(len(codes), len(texts))):
        first = address if not index else " " * len(address)
        bytes_here = codes[index] if index < len(codes) else ""
        lines.append(f"{first} {bytes_here:{code_width}}  {texts[index] if index < len(texts) else ''}".rstrip())
    return lines


def _beside(left: list[str], right: list[str], mark: str) -> list[str]:
    count = max(len(left), len(right))
    left, right = left + [""] * (count - len(left)), right + [""] * (count - len(right))
    return [
        f"{one:{_LEFT}} {'|' if index else mark} {other}".rstrip()
        for index, (one, other) in enumerate(zip(left, right, strict=True))
    ]


def _heading(translation: Translation, title: str, name: Name) -> str:
    context = translation.context
    place = _place(context.base, translation.eip, name)
    base = f", CS base {context.base:#x}" if context.base else ""
    privilege = f", IOPL = {context.iopl}" if context.iopl else ""
    return f"{title}: {place}, {_state(context.interrupts, context.shadow)}{privilege}{base}"


def _state(interrupts: bool, shadow: bool) -> str:
    return f"IF = {int(interrupts)}{', held off for one instruction' if shadow else ''}"


def _place(base: int, eip: int, name: Name) -> str:
    linear = _linear(base, eip)
    known = name(linear)
    return f"{linear:#010x}{' <' + known + '>' if known else ''}"


def _linear(base: int, eip: int) -> int:
    return (base + eip) & 0xFFFF_FFFF
