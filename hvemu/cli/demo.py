"""``hvemu demo``: boot a small guest, show what it printed and what trapped."""

import contextlib
import sys

from hvemu.cli.ending import Ending
from hvemu.cli.report import summary_lines
from hvemu.machine.machine import Machine
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import ExitStatus, UserError

_GUEST = "ring3"


def main(arguments: list[str]) -> int:
    """Run the demonstration; another guest may be named."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: hvemu demo [GUEST]\n\nBoots a guest of the catalogue and prints its console and its ledger.")
        return 0
    name = arguments[0] if arguments else _GUEST
    guest = catalog().get(name)
    if guest is None:
        raise UserError(f"There is no guest '{name}'", f"Guests are: {', '.join(catalog())}.")
    print(f"Guest '{guest.name}': {guest.title}\n{guest.lesson}\n\n--- its serial console")
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:

        def watch(machine: Machine) -> None:
            stack.enter_context(Ending(machine, guest.timeout))

        result = run_guest(guest_configuration(guest), keys=guest.input, keys_after=guest.input_after, prepare=watch)
    if result.status == ExitStatus.INTERRUPTED:
        return int(ExitStatus.INTERRUPTED)
    print(result.console.rstrip("\n"))
    print("--- what the hypervisor saw")
    print("\n".join(summary_lines(result.statistics)))
    print("\nNext: hvemu explain io_out, hvemu list guests, hvemu run hello")
    return int(ExitStatus.POWER_OFF if result.status == guest.expected_status else ExitStatus.DIFFERENT)
