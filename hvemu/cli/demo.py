"""``hvemu demo``: boot a small guest, show what it printed and what trapped."""

import contextlib
import sys

from hvemu.cli.ending import Ending
from hvemu.cli.report import summary_lines
from hvemu.machine.configuration import MODES
from hvemu.machine.machine import Machine
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import ExitStatus, UserError

_GUEST = "ring3"
_NEXT = {
    "native": "io_out, hvemu demo --mode trap",
    "trap": "hidden_fault",
    "bt": "callout, hvemu translate ring3",
    "svm": "intercept nested_fault, hvemu lab vmcb",
    "pv": "hypercall multicall page_table_update",
}
"""What to explain, and more, after a demonstration in a mode."""


def main(arguments: list[str]) -> int:
    """Run the demonstration; another guest and another mode may be named."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: hvemu demo [GUEST] [--mode MODE] [--mmu TECHNIQUE]\n\n"
            f"Boots a guest of the catalogue and prints its console and its ledger. Modes: {', '.join(MODES)}."
        )
        return 0
    name, chosen = _GUEST, {"--mode": "", "--mmu": ""}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in chosen:
            chosen[option] = value if equals else next(words, "")
            if not chosen[option]:
                raise UserError(f"{option} names nothing", "Write it as in: hvemu demo --mode svm --mmu shadow.")
        elif word.startswith("-"):
            raise UserError(f"hvemu demo does not know '{word}'", "Type: hvemu demo --help.")
        else:
            name = word
    guest = catalog().get(name)
    if guest is None:
        raise UserError(f"There is no guest '{name}'", f"Guests are: {', '.join(catalog())}.")
    configuration = guest_configuration(guest, mode=chosen["--mode"] or guest.modes[0], mmu=chosen["--mmu"])
    print(f"Guest '{guest.name}': {guest.title}\n{guest.lesson}\n\n--- its serial console")
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:

        def watch(machine: Machine) -> None:
            stack.enter_context(Ending(machine, guest.timeout))

        result = run_guest(configuration, keys=guest.input, keys_after=guest.input_after, prepare=watch)
    if result.status == ExitStatus.INTERRUPTED:
        return int(ExitStatus.INTERRUPTED)
    print(result.console.rstrip("\n"))
    print(f"--- what {'hvemu, as the bare machine,' if configuration.mode == 'native' else 'the hypervisor'} saw")
    print("\n".join(summary_lines(result.statistics)))
    print(f"\nNext: hvemu explain {_NEXT.get(configuration.mode, 'io_out')}, hvemu list guests, hvemu run hello")
    return int(ExitStatus.POWER_OFF if result.status == guest.expected_status else ExitStatus.DIFFERENT)
