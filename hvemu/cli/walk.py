"""``hvemu lab walk``: how the MMU translates one address of a guest under nested paging, step by step.

The guest's tables hold guest-physical addresses, so that each of its g levels costs a walk of n nested levels and the
guest's entry itself; then the address that comes out is translated. That is (g+1)(n+1)-1 references to memory: 24 for
four levels over four, against 4 for either alone. A large page saves the levels that it does not need.
"""

import argparse
import json
from typing import Final

from hvemu.cli.options import Parser, add_image_options, image_configuration, number, positive
from hvemu.labs.walk import two_dimensional
from hvemu.machine.builder import build
from hvemu.vocabulary.paging import CR0_PG, CR4_PAE, EFER_LMA

_ABOUT: Final = (__doc__ or "").replace("``", "")
_LIMIT: Final = 5_000_000
_FOUR_LEVELS: Final = 0x1234_5678_9000
"""An address that the guest long_mode maps with a small page."""


def _parser() -> Parser:
    result = Parser(prog="hvemu lab walk", allow_abbrev=False, description=_ABOUT)
    add_image_options(result)
    result.add_argument("--mmu", choices=("nested", "nested-2"), default="nested", help="four nested levels, or two")
    result.add_argument(
        "--at",
        type=number,
        metavar="ADDRESS",
        help="linear address (default: where the guest is; without IMAGE, one with four levels)",
    )
    result.add_argument(
        "--position", type=positive, metavar="N", help="run the guest for N code bytes (default: to its end)"
    )
    result.add_argument("--json", action="store_true", help="print values instead of a table")
    return result


def main(arguments: list[str]) -> int:
    """Print the walk. Raises UserError."""
    options: argparse.Namespace = _parser().parse_args(arguments)
    if not (options.image or options.kernel):
        options.image = "long_mode"
        options.at = _FOUR_LEVELS if options.at is None else options.at
    options.image, options.kernel = options.image or options.kernel, None
    machine = build(image_configuration(options, "lab walk", mode="svm", mmu=options.mmu, serial="none"))
    machine.run(options.position or _LIMIT)
    cpu = machine.registers()
    linear = cpu.linear_ip() if options.at is None else options.at
    found = two_dimensional(machine, linear)
    if options.json:
        print(json.dumps({**found._asdict(), "references": [one._asdict() for one in found.references]}, indent=1))
        return 0
    levels = "4 levels" if cpu.efer & EFER_LMA else "PAE" if cpu.cr4 & CR4_PAE else "2 levels"
    paging = levels if cpu.cr0 & CR0_PG else "off"
    print(f"{options.image}, position {machine.mode.position()}: CR3 {cpu.cr3:#x}, guest paging {paging}\n")
    print(f"{'':>4} {'table':7} {'level':>5}  {'machine address':>16} {'entry':>18}")
    for count, one in enumerate(found.references, 1):
        print(f"{count:>4} {one.whose:7} {one.level:>5}  {one.address:>#16x} {one.value:>#18x}  {one.meaning}")
    guest, nested = found.guest_levels, found.nested_levels
    if found.machine is None:
        print(
            f"\nlinear {linear:#x} leads to guest-physical {found.guest_physical:#x}, where there is no RAM: the nested"
        )
        print(
            "entry is absent, so each access is a nested page fault, which the hypervisor answers as the device there."
        )
        return 0
    print(f"\nlinear {linear:#x} is guest-physical {found.guest_physical:#x}, machine {found.machine:#x}")
    alone = f"; the guest's tables alone would take {guest}" if guest else ""
    print(f"{len(found.references)} references = ({guest}+1)({nested}+1)-1{alone}")
    return 0
