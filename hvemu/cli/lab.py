"""``hvemu lab NAME``: experiments that run guests in several ways and compare. Another lab is one line of ``LABS``."""

from importlib import import_module
from typing import NamedTuple

from hvemu.vocabulary.errors import ExitStatus, UserError


class Lab(NamedTuple):
    """What it shows, and the module with its ``main(arguments)``."""

    what: str
    module: str


LABS = {
    "port": Lab("what it takes to port a kernel to mode pv, in lines", "hvemu.labs.port"),
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
