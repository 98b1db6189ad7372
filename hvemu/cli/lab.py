"""``hvemu lab NAME``: experiments that run guests in several ways and compare. Another lab is one line of ``LABS``."""

from importlib import import_module
from typing import NamedTuple

from hvemu.vocabulary.errors import ExitStatus, UserError


class Lab(NamedTuple):
    """What it shows, and the module with its ``main(arguments)``."""

    what: str
    module: str


LABS = {
    "nanobench": Lab("what single operations cost under each technique", "hvemu.labs.nanobench_text"),
    "port": Lab("what it takes to port a kernel to mode pv, in lines", "hvemu.labs.port"),
    "vmcb": Lab("the control block of AMD-V before and after an exit, field by field", "hvemu.cli.vmcb"),
    "walk": Lab("a page walk in two dimensions, reference by reference", "hvemu.cli.walk"),
    "disk": Lab("a mebibyte read through each adapter of disks: the exits of each", "hvemu.labs.disk_text"),
    "sensitive": Lab("the 18 sensitive instructions in each mode: what traps, what leaks", "hvemu.labs.sensitive"),
}


def main(arguments: list[str]) -> int:
    """Run one lab; without a name, list them. Raises UserError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hvemu lab NAME [options]\n\nlabs:")
        for name, lab in LABS.items():
            print(f"  {name:12} {lab.what}")
        return int(ExitStatus.POWER_OFF if arguments else ExitStatus.USAGE)
    if arguments[0] not in LABS:
        raise UserError(f"There is no lab '{arguments[0]}'", f"Labs are: {', '.join(LABS)}.")
    return int(import_module(LABS[arguments[0]].module).main(arguments[1:]))
