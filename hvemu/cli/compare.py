"""``hvemu compare``: one guest under every technique that can run it, side by side."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from hvemu.cli.options import Parser, add_image_options, image_configuration, number, refuse_lacking, seconds
from hvemu.cli.result_files import check_own_files, check_spares_image, check_writable
from hvemu.labs.comparing import Work, as_data, compare, observe_apart
from hvemu.labs.comparison_plot import check_plotting, write_plot
from hvemu.labs.comparison_text import comparison_lines
from hvemu.labs.cost_model import cost_model_lines
from hvemu.labs.techniques import COMPARED, Technique, common_cpu, techniques, under
from hvemu.loader.select import is_64_bit
from hvemu.machine.configuration import SHADOWS, MachineConfiguration
from hvemu.testing.catalog import Guest, catalog
from hvemu.vocabulary.errors import ExitStatus, UserError


def main(arguments: list[str]) -> int:
    """Run the guest under each technique, print the comparison; status 74 if results differ. Raises UserError."""
    refuse_lacking(arguments)
    options = _parser().parse_args(arguments)
    if options.cost_model:
        print("\n".join(cost_model_lines()))
        return 0
    if options.plot:
        check_plotting()
    works = _works(options)
    results = [path for path in (options.json, options.plot) if path is not None]
    for path in results:
        check_writable(path)
        for work in works:
            check_spares_image(path, work.configuration)
    check_own_files(results)
    comparison = compare(works, observe_apart(works))
    print("\n".join(comparison_lines(comparison)))
    if options.json:
        _write_json(options.json, json.dumps(as_data(comparison), indent=1))
    if options.plot:
        write_plot(comparison, Path(options.plot))
    return int(ExitStatus.POWER_OFF if comparison.same else ExitStatus.DIFFERENT)


def _works(options: argparse.Namespace) -> list[Work]:
    """One for each technique; what cannot even be configured says so when it is its turn."""
    guest = catalog().get(options.image or "") if not _is_file(options.image) else None
    wanted = techniques(options.modes)
    if guest is not None and options.modes is None:
        wanted = [one for one in wanted if one.mode in guest.modes or (one.mode == "pv" and guest.paravirtual)]
    settings = {} if options.config else {"mode": "native"}
    configuration = image_configuration(options, "compare", **settings)
    named = options.cpu or (options.config and configuration.cpu != MachineConfiguration(image="").cpu)
    cpu = common_cpu(wanted, configuration.cpu if named else "")
    return [_work(options, guest, configuration, one, cpu) for one in wanted]


def _work(
    options: argparse.Namespace, guest: Guest | None, configuration: MachineConfiguration, one: Technique, cpu: str
) -> Work:
    ported = guest is not None and one.mode == "pv" and bool(guest.paravirtual)
    program = catalog()[guest.paravirtual] if guest is not None and ported else guest
    refusal = ""
    if program is not None and ported:
        configuration = replace(configuration, image=str(program.image))
    try:
        configuration = under(configuration, one, cpu, options.shadow or configuration.shadow)
    except UserError as error:
        if options.modes is not None:
            raise
        refusal = str(error)
    return Work(
        one,
        configuration,
        keys=program.input if program else "",
        keys_after=program.input_after if program else "",
        until=options.until,
        timeout=options.timeout,
        ported=ported,
        promised=program is not None and one.mode in program.modes and not refusal and _fits(program, configuration),
        refusal=refusal,
    )


def _fits(program: Guest, configuration: MachineConfiguration) -> bool:
    """The catalogue names modes; one that runs a 64-bit guest may still not do so with every paging technique."""
    return configuration.runs_long_mode or not is_64_bit(program.image.read_bytes())


def _is_file(image: str | None) -> bool:
    return image is not None and ("/" in image or Path(image).exists())


def _write_json(path: str, text: str) -> None:
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}", "Give --json another file.") from None


def _parser() -> Parser:
    result = Parser(
        prog="hvemu compare",
        allow_abbrev=False,
        description="Run one guest under every technique that can run it, on the same CPU model, and compare: exits by"
        " kind, world switches, modelled cycles, wall time, and whether the guest did the same. Status 74 if it"
        " did not.",
        epilog="A guest of the catalogue runs in the modes that it is written for; its port, if it has one, stands for"
        " it in mode pv. Any other image is tried in all, and what cannot run it says why. A fault that the"
        " guest misses is one of the hypervisor's tables, not of its own. docs/comparing.md tells more.",
    )
    add_image_options(result)
    add = result.add_argument
    add("--modes", metavar="LIST", help=f"techniques, with commas: MODE or MODE/MMU (default: {','.join(COMPARED)})")
    add("--shadow", choices=SHADOWS, help="variant of shadow paging, where there is any")
    add("--until", type=number, metavar="POSITION", help="end every run at this many guest code bytes")
    add("--timeout", type=seconds, metavar="S", help="end every run after S seconds of host time")
    add("--json", metavar="FILE", help="write the comparison as JSON (docs/comparing.md)")
    add("--plot", metavar="FILE", help="draw it as SVG; needs pip install 'hvemu[plot]'")
    add("--cost-model", action="store_true", help="print the cost model: cycles of each event, and their sources")
    return result
