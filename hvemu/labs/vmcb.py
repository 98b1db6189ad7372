"""One exit of a guest in mode ``svm``, and its control block before and after: what ``hvemu lab vmcb`` shows."""

from typing import Final, NamedTuple

from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.modes.svm import SvmMode
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.svm import exit_name

LIMIT: Final = 50_000_000
"""Guest code bytes after which an exit that has not come will not come."""
Lines = list[tuple[str, str, str]]


class Shown(NamedTuple):
    """One exit: its code, where the guest was, which exit of its kind it is, and the block before and after."""

    code: int
    eip: int
    number: int
    before: Lines
    after: Lines
    intercepts: list[str]


def show(configuration: MachineConfiguration, code: int, number: int = 1) -> Shown:
    """Run to the ``number``-th exit with this code; raises UserError if the guest ends before it."""
    machine = build(configuration)
    mode = machine.mode
    assert isinstance(mode, SvmMode)
    mode.store_state()
    before, seen, found = mode.vmcb.lines(), 0, list[Shown]()

    def watch(handled: bool) -> None:
        nonlocal before, seen
        if found:
            return
        mode.store_state()
        if handled:
            before = mode.vmcb.lines()
        elif mode.last_exit[0] == code:
            seen += 1
            if seen == number:
                found.append(Shown(code, mode.vcpu.eip(), seen, before, mode.vmcb.lines(), mode.vmcb.intercepts()))
                machine.pause()

    mode.exit_seen = watch
    while not found and machine.stop is None and mode.position() < LIMIT:
        machine.run(LIMIT)
    if not found:
        statistics = machine.statistics()
        counts = {name.lower(): count for name, count in statistics["exits_by_detail"].get("intercept", {}).items()}
        counts |= {"hlt": statistics["exits"].get("hlt", 0), "npf": statistics["exits"].get("nested_fault", 0)}
        had = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        name = exit_name(code).lower().lstrip("#")
        what = f"only {seen} exits '{name}'" if seen else f"no exit '{name}'"
        raise UserError(f"The guest had {what}; it had {had}", "Choose one of these.")
    return found[0]
