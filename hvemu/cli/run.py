"""``hvemu run``: one machine on this terminal."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from hvemu.cli.console import Console, TerminalConsole, input_lines, open_console
from hvemu.cli.ending import Ending
from hvemu.cli.options import parse
from hvemu.cli.result_files import check_own_files, check_spares_image, check_writable
from hvemu.cli.translation_log import open_translation_log
from hvemu.loader.contract import read_file
from hvemu.loader.symbols import read_symbols
from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration, to_toml
from hvemu.machine.machine import Machine
from hvemu.modes.handing_over import HandingOver
from hvemu.observers.gdb_stub import GdbStub
from hvemu.trace.tracer import JsonLines, Tracer
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.machine_map import COM1_BASE
from hvemu.vocabulary.outcomes import Stop

if TYPE_CHECKING:
    from hvemu.cli.monitor import Monitor

_REFRESH = 0.2


def main(arguments: list[str]) -> int:
    """Run a guest as the options say; returns the process status."""
    options, configuration = parse(arguments)
    if options.print_config:
        print(to_toml(configuration), end="")
        return 0
    with contextlib.ExitStack() as stack:
        tracer = Tracer()
        results = [path for path in (options.ledger, options.trace, options.translation_log) if path is not None]
        for path in results:
            check_writable(path)
            check_spares_image(path, configuration)
        check_own_files(results)
        if options.trace:
            tracer.subscribe(JsonLines(stack.enter_context(_trace_file(options.trace, tracer))))
        on_screen = configuration.display == "text" and configuration.serial == "none"
        console = TerminalConsole() if on_screen else open_console(configuration.serial)
        stack.callback(console.close)
        second = open_console(configuration.second_serial) if configuration.second_serial != "none" else Console()
        stack.callback(second.close)
        line = Console() if on_screen else console
        machine = build(configuration, backends=Backends(line, second, line), tracer=tracer)
        stack.callback(_close_disks, machine, tracer)
        if options.translation_log:
            assert isinstance(machine.mode, HandingOver)
            symbols = read_symbols(read_file(configuration.image, "image") if configuration.image else b"")
            log = open_translation_log(options.translation_log, tracer.failures, symbols)
            machine.mode.translated = stack.enter_context(log)
        console.receive = _keyboard(machine) if on_screen else machine.send_serial
        if console.announcement:
            print(console.announcement, file=sys.stderr, flush=True)
        stub = _gdb_stub(machine, options.gdb, options.paused)
        if stub is not None:
            stack.callback(stub.close)
        machine.mode.warn = lambda text: print(f"hvemu: {text}", file=sys.stderr)
        _run(machine, configuration, console, stub, options.timeout, options.max_instructions, options.paused)
        stop = machine.stop
        if options.ledger:
            _write_ledger(options.ledger, machine)
    for failure in tracer.failures:
        print(f"hvemu: {failure}", file=sys.stderr)
    if configuration.display == "text":
        _show_screen(machine, final=True)
    assert stop is not None
    if configuration.audit and stop.status not in _SAID:
        print(f"hvemu: audit: {machine.mode.remark()}", file=sys.stderr)
    if stop.status in _SAID:
        print(f"hvemu: {stop.reason}", file=sys.stderr)
        if configuration.display != "text" and _only_screen(machine):
            print("hvemu: its screen has text, its serial line said nothing. Try --display text.", file=sys.stderr)
    return int(stop.status)


_SAID = frozenset(
    {ExitStatus.GUEST_ENDED, ExitStatus.TRIPLE_FAULT, ExitStatus.HALTED, ExitStatus.LIMIT, ExitStatus.INTERRUPTED}
)


def _only_screen(machine: Machine) -> bool:
    """Whether a guest has talked to its screen alone."""
    written = machine.statistics()["exits_by_detail"].get("io_out", {})
    return machine.channels is None and f"{COM1_BASE:#x}" not in written and any(map(str.strip, machine.screen()))


def _close_disks(machine: Machine, tracer: Tracer) -> None:
    """Flush what the guest has written; that the host could not keep it is a failure to report."""
    try:
        machine.close()
    except OSError as error:
        tracer.failures.append(f"what the guest wrote last to a disk may be lost: {error.strerror or error}")


def _keyboard(machine: Machine) -> Callable[[bytes], None]:
    """With the text screen on the terminal, what is typed goes to the guest's keyboard."""

    def press(data: bytes) -> None:
        for character in data.decode("utf-8", "replace").replace("\r", "\n").replace("\x7f", "\b"):
            with contextlib.suppress(ValueError):  # no key types this character
                machine.type_text(character)

    return press


def _gdb_stub(machine: Machine, address: tuple[str, int] | None, holding: bool) -> GdbStub | None:
    """The open port for gdb, announced; None without -s and -gdb."""
    from hvemu.cli.monitor import for_gdb

    if address is None:
        return None
    if machine.configuration.clock == "host":
        raise UserError("gdb cannot step a guest that follows the host's clock", "Leave out --clock host.")
    stub = GdbStub(machine, *address, holding=holding, monitor=for_gdb(machine))
    print(stub.announcement, file=sys.stderr, flush=True)
    return stub


@contextlib.contextmanager
def _trace_file(path: str, tracer: Tracer) -> Iterator[IO[str]]:
    """The open trace; that it could not be written to its end is a failure to report, not an end of the run."""
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below, where a full disk is found out
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}", "Give --trace another file.") from None
    try:
        yield file
    finally:
        try:
            file.close()
        except OSError as error:
            if not tracer.failures:
                tracer.failures.append(f"the trace {path} is not complete: {error.strerror}")


def _write_ledger(path: str, machine: Machine) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(machine.statistics(), file, indent=1)
            file.write("\n")
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}", "Give --ledger another file.") from None


def _run(
    machine: Machine,
    configuration: MachineConfiguration,
    console: Console,
    stub: GdbStub | None,
    timeout: float | None,
    max_instructions: int | None,
    paused: bool,
) -> None:
    from hvemu.cli.monitor import Monitor

    ending = Ending(machine, timeout)
    wants_monitor = paused and stub is None
    screen_due = 0.0

    def open_monitor() -> None:
        nonlocal wants_monitor
        wants_monitor = True
        machine.mode.attend()

    def end(reason: str, status: ExitStatus) -> None:
        machine.stop = machine.stop or Stop(status, reason)

    def poll() -> None:
        nonlocal wants_monitor, screen_due
        if ending.patient and not wants_monitor:  # else what stands on standard input is for the monitor
            console.poll()
        if stub is not None:
            stub.poll()
        now = time.monotonic()
        if configuration.display == "text" and now >= screen_due and sys.stdout.isatty():
            screen_due = now + _REFRESH
            _show_screen(machine)
        if wants_monitor and machine.stop is None:
            wants_monitor = False
            ending.patient = False
            _monitor(Monitor(machine), console)
            ending.patient = True
        if machine.stop is not None:  # decided here, while the loop is about to run the guest once more
            machine.mode.stop_soon(machine.stop)

    def idle(seconds: float) -> bool:
        """Input cannot wake a guest that sleeps with interrupts disabled; nobody need wait for it."""
        if not ending.patient:
            return True  # a step of the monitor's, for which input is; time passes as fast as it can
        return machine.mode.can_interrupt() and console.wait(seconds)

    console.on_quit = lambda: end("ended by Ctrl-A X", ExitStatus.POWER_OFF)
    console.on_monitor = open_monitor
    machine.poll = poll
    if console.readable() or paused:
        machine.idle = idle
    if max_instructions is not None:
        machine.mode.limit_instructions(max_instructions)
    raw = console.raw() if isinstance(console, TerminalConsole) else contextlib.nullcontext()
    with raw, ending:
        try:
            while machine.stop is None:
                if stub is not None:
                    stub.advance()
                else:
                    machine.run()
        except KeyboardInterrupt:
            machine.stop = Stop(ExitStatus.INTERRUPTED, f"interrupted; {machine.where()}")


def _monitor(monitor: "Monitor", console: Console) -> None:
    interactive = isinstance(console, TerminalConsole) and console.interactive
    if not interactive:
        monitor.interact([] if sys.stdin is None else input_lines())
        return
    import termios

    raw = termios.tcgetattr(0)
    cooked = termios.tcgetattr(0)
    cooked[0] |= termios.ICRNL
    cooked[3] |= termios.ICANON | termios.ECHO | termios.NOFLSH  # Ctrl-C leaves the line that a read was promised
    termios.tcsetattr(0, termios.TCSANOW, cooked)
    print("\nThe guest is paused; 'help' lists the commands, 'cont' lets it go on.")
    try:
        monitor.interact(input_lines())
    except KeyboardInterrupt:
        termios.tcflush(0, termios.TCIFLUSH)  # half a command is not for the shell
        raise
    finally:
        termios.tcsetattr(0, termios.TCSANOW, raw)


def _show_screen(machine: Machine, *, final: bool = False) -> None:
    rows = [row.rstrip() for row in machine.screen()]
    if sys.stdout.isatty() and not final:
        sys.stdout.write("\x1b[H" + "".join(f"{row}\x1b[K\r\n" for row in rows))
        sys.stdout.flush()
    elif final and not sys.stdout.isatty():
        while rows and not rows[-1]:
            rows.pop()
        print("\n".join(rows))
