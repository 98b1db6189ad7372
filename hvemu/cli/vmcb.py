"""``hvemu lab vmcb``: the control block of AMD-V before and after one exit, field by field.

A guest runs in mode ``svm`` up to an exit. Before: what VMRUN has entered it with, that is the state after the exit
that came before. After: what this #VMEXIT stores. The exit is one of the APM's, by its name: cpuid, msr, cr0_write,
hlt, npf for a nested page fault, or any other, which is then asked for.
"""

import argparse
import json
import re
import textwrap
from typing import Final

from hvemu.cli.options import Parser, add_image_options, image_configuration, positive
from hvemu.labs.vmcb import show
from hvemu.machine.configuration import MMUS, MachineConfiguration
from hvemu.vocabulary.svm import EXIT_NESTED_PAGE_FAULT, exit_code, exit_name, offset_of

_WIDTH: Final = 100
_ABOUT: Final = (__doc__ or "").replace("``", "")


def _configuration(options: argparse.Namespace, code: int) -> MachineConfiguration:
    options.image, options.kernel = options.image or options.kernel or "cpuid", None
    more = () if code == EXIT_NESTED_PAGE_FAULT else (exit_name(code).lower().lstrip("#"),)
    return image_configuration(options, "lab vmcb", mode="svm", mmu=options.mmu, intercept=more, serial="none")


def _parser() -> Parser:
    result = Parser(prog="hvemu lab vmcb", allow_abbrev=False, description=_ABOUT)
    add_image_options(result)
    result.add_argument("--mmu", choices=MMUS["svm"], default="nested", help="paging technique (default: nested)")
    result.add_argument("--exit", metavar="NAME", default="cpuid", help="which (default: cpuid, of the guest cpuid)")
    result.add_argument("--number", type=positive, metavar="N", default=1, help="the N-th of its kind (default: 1)")
    result.add_argument("--changed", action="store_true", help="show only fields that the exit has changed")
    result.add_argument("--json", action="store_true", help="print values instead of a table")
    return result


def _shortened(names: list[str]) -> list[str]:
    """All debug registers in one word."""
    registers = [name for name in names if re.fullmatch(r"DR\d+_(READ|WRITE)", name)]
    if len(registers) < 32:
        return names
    return [name for name in names if name not in registers] + ["all reads and writes of DR0 to DR15"]


def main(arguments: list[str]) -> int:
    """Print the block. Raises UserError."""
    options = _parser().parse_args(arguments)
    code = exit_code(options.exit)
    shown = show(_configuration(options, code), code, options.number)
    if options.json:
        fields = [
            {"field": field, "offset": offset_of(field), "before": old, "after": new, "changed": old != new,
             "meaning": meaning}
            for (field, old, _), (_, new, meaning) in zip(shown.before, shown.after, strict=True)
            if old != new or not options.changed
        ]  # fmt: skip
        told = {"guest": options.image, "exit": exit_name(shown.code), "code": shown.code, "number": shown.number}
        print(json.dumps({**told, "eip": shown.eip, "fields": fields}, indent=1))
        return 0
    what = f"#VMEXIT {exit_name(shown.code)} ({shown.code:#x})"
    print(f"{options.image}: {what}, number {shown.number}, at {shown.eip:#010x}")
    asked = f"asked for: {', '.join(_shortened(shown.intercepts))}"
    print("\n".join(textwrap.wrap(asked, _WIDTH, subsequent_indent="  ")) + "\n")
    print(f"  {'at':>4} {'field':20} {'when VMRUN entered':26} {'after #VMEXIT':26} meaning")
    for (field, old, _), (_, new, meaning) in zip(shown.before, shown.after, strict=True):
        if old != new or not options.changed:
            mark, at = "*" if old != new else " ", offset_of(field)
            print(f"{mark} {at:>4x} {field:20} {old:26} {new if old != new else '=':26} {meaning}")
    return 0
