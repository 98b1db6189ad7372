"""``hvemu lab disk``: the command, and its table for people, 80 columns wide."""

import json
import textwrap
from typing import Final

from hvemu.labs.disk import ADAPTERS, KINDS, REQUESTS, Measured, measure
from hvemu.vocabulary.errors import UserError

_MODES: Final = ("native", "trap", "bt", "svm")
_WIDTH: Final = 80
_WIDTHS: Final = (10, 9, 10, 9, 6, 6, 6, 8)
_USAGE: Final = "Type: hvemu lab disk [--mode MODE] [--counts] [--json]."
_ABOUT: Final = """\
usage: hvemu lab disk [--mode native|trap|bt|svm] [--counts] [--json]

The guest disk reads a mebibyte through each host bus adapter (and disk_pv, its
port to mode pv, through the paravirtual one, whatever MODE is), in requests of
64 KiB and of 4 KiB: exits by kind, per request and per mebibyte, interrupts,
and who moved the bytes. Counts are exact: the difference of a run that reads 2
MiB and one that reads 1 MiB. Wall time is measured, and told as a ratio to the
first row; --counts leaves it out.
"""
_WHY: Final = (
    "IDE as of 1984 has one register for data, and the CPU moves every word through it: in a virtual machine each "
    "word is an exit, and the size of a request changes little. A BusLogic adapter is told by one OUT that a mailbox "
    "in memory is full; the command and the data it finds there itself, and one IN and one OUT take its interrupt "
    "back. virtio was made for hypervisors: the ring takes one OUT to announce, and the one IN that asks why there "
    "was an interrupt also takes it back. pv is the same program, ported to mode pv: one hypercall notifies and one "
    "sleeps, and an event needs no interrupt controller. What these three have left is paid per request, not per "
    "byte: requests sixteen times as long make a sixteenth of the exits. Of those the two OUTs that end an interrupt "
    "at the 8259s are the same for all. This guest waits for each request before it makes the next; a driver that "
    "puts many into the mailboxes or the ring before it announces them pays once for all of them."
)


def main(arguments: list[str]) -> int:
    """Measure, print the table, or with ``--json`` its values; raises UserError."""
    mode, counts, as_json = _MODES[0], False, False
    given = iter(arguments)
    for word in given:
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            print(_ABOUT, end="")
            return 0
        if name == "--mode":
            mode = value if equals else next(given, "")
        elif word == "--counts":
            counts = True
        elif word == "--json":
            as_json = True
        else:
            raise UserError(f"hvemu lab disk does not know '{word}'", _USAGE)
    if mode not in _MODES:
        raise UserError(f"The lab cannot run in mode '{mode}'", f"Choose one of: {', '.join(_MODES)}.")
    rows = [measure(adapter, size, mode, rounds=0 if counts else 1) for size in REQUESTS for adapter in ADAPTERS]
    if as_json:
        print(json.dumps([row.as_data() for row in rows], indent=1))
    else:
        print("\n".join(lines_of(rows, mode)))
    return 0


def lines_of(rows: list[Measured], mode: str) -> list[str]:
    """The table, what else exits, and why."""
    kinds = list(dict.fromkeys(KINDS.values()))
    lines = [f"1 MiB read in mode {mode}", ""]
    lines += [
        f"{'':12}{'exits per':>16}{'of those, per MiB':>32}",
        _line("adapter", "request", "MiB", kinds, "other"),
    ]
    for size in dict.fromkeys(row.request for row in rows):
        lines.append(f"requests of {size} KiB")
        for row in rows:
            if row.request == size:
                found = {kind: sum(n for name, n in row.exits.items() if KINDS.get(name) == kind) for kind in kinds}
                cells = [f"{found[kind]:,}" for kind in kinds]
                other = row.total - sum(found.values())
                per_request = f"{row.total / row.requests:,.1f}"
                lines.append(_line(f" {row.adapter}", per_request, f"{row.total:,}", cells, f"{other:,}"))
    lines += ["", f"{'':12}{'interrupts':>11}{'bytes moved by':^28}{'wall time,':>15}"]
    lines.append(f"{'adapter':12}{'per MiB':>11}{'the CPU':>14}{'the device':>14}{'of the first':>15}")
    for size in dict.fromkeys(row.request for row in rows):
        lines.append(f"requests of {size} KiB")
        for row in rows:
            if row.request == size:
                bytes_moved = f"{row.moved_by_cpu:>14,}{row.moved_by_device:>14,}"
                lines.append(f" {row.adapter:11}{row.interrupts:>11,}{bytes_moved}{_ratio(row, rows[0]):>15}")
    return [*lines, "", *textwrap.wrap(_WHY, _WIDTH)]


def _ratio(row: Measured, first: Measured) -> str:
    if row.seconds is None or not first.seconds:
        return "-"
    return f"{row.seconds / first.seconds:.4f} x"


def _line(name: str, request: str, mebibyte: str, cells: list[str], other: str) -> str:
    columns = zip([request, mebibyte, *cells, other], _WIDTHS, strict=True)
    return f"{name:12}" + "".join(f"{cell:>{width}}" for cell, width in columns)
