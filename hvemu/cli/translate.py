"""``hvemu translate``: what binary translation makes of a guest's kernel, side by side, without running it."""

import json

from hvemu.cli.options import Parser, add_image_options, image_configuration, number, positive, refuse_lacking
from hvemu.labs.translating import translations
from hvemu.modes.translation_text import totals, totals_line, translation_as_dict, translation_lines


def main(arguments: list[str]) -> int:
    """Print translation units of an image; raises UserError."""
    refuse_lacking(arguments)
    options = _parser().parse_args(arguments)
    configuration = image_configuration(options, "translate")
    at = options.at
    if at is not None and at[:1].isdecimal():
        at = number(at)
    interrupts = None if options.interrupts is None else options.interrupts == "1"
    found = translations(configuration, at, units=options.units, interrupts=interrupts)
    units, name = found.units, found.symbols.place
    if options.json:
        rows = [translation_as_dict(unit, name) for unit in units]
        print(json.dumps({"image": configuration.image, "units": rows, "totals": totals(units)}, indent=1))
        return 0
    for index, unit in enumerate(units, 1):
        print("\n".join(translation_lines(unit, f"unit {index}", name)))
        if len(units) > 1:
            print()
    if len(units) > 1:
        print(f"{len(units)} units, {totals_line(totals(units))}")
    return 0


def _parser() -> Parser:
    result = Parser(
        prog="hvemu translate",
        allow_abbrev=False,
        description="Show how mode bt translates a guest's kernel: its code on the left, what is executed in its place"
        " on the right, and why. The guest does not run.",
        epilog="In the listing: addresses on the right are offsets in the unit; 74*cc is room of 74 bytes, not "
        "used yet; a hint compares with a target seen before; 'hlt ; exit 1' calls the hypervisor until "
        "the exit is chained; 'held off for one instruction' is the shadow of STI or MOV SS. The code is "
        "shown as it was translated, before exits are chained and hints are used.",
    )
    add_image_options(result)
    add = result.add_argument
    add(
        "--at",
        metavar="ADDRESS",
        help="a linear address, or a symbol of the image (main, main+0x12), instead of the entry point",
    )
    add("--units", type=positive, default=1, metavar="N", help="follow direct exits, breadth first, up to N units")
    add("--interrupts", choices=("0", "1"), help="translate for IF = 0 or IF = 1; the default is what IF is at boot")
    add("--json", action="store_true", help="the same as JSON")
    return result
