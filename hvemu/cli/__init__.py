"""The command line. ``main`` imports only what the command needs, so that ``hvemu --version`` is instant."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence

from hvemu import __version__
from hvemu.vocabulary.errors import ExitStatus, HvemuError, UserError

_USAGE = """\
usage: hvemu COMMAND [options]

commands:
  run IMAGE       boot a kernel or disk image and watch what traps
  demo            boot a small guest and show its output and its ledger
  list WHAT       list guests, devices, cpus or exits  [--json]
  translate IMAGE what binary translation makes of a kernel, side by side, without running it
  explain KIND    what a line of the ledger means, who causes it, where it is handled
  doctor          what the engine supports here, probe by probe
  compare IMAGE   one guest under every technique: exits, modelled cycles, wall time, and whether it did the same
  disk COMMAND    disk images: create, info, check, convert, snapshot, commit, rebase, serve (over iSCSI)
  bench           measure exits and compute against the bare engine, as ratios
  lab NAME        experiments that compare modes; without a name, a list of them
  guests          rebuild the guest images (needs pip install 'hvemu[build]')

'hvemu COMMAND --help' says more. 'hvemu --version' prints the version.
"""


def _run(arguments: list[str]) -> int:
    from hvemu.cli.run import main as run

    return run(arguments)


def _demo(arguments: list[str]) -> int:
    from hvemu.cli.demo import main as demo

    return demo(arguments)


def _list(arguments: list[str]) -> int:
    from hvemu.cli.listing import main as listing

    return listing(arguments)


def _explain(arguments: list[str]) -> int:
    from hvemu.cli.explain import main as explain

    return explain(arguments)


def _translate(arguments: list[str]) -> int:
    from hvemu.cli.translate import main as translate

    return translate(arguments)


def _doctor(arguments: list[str]) -> int:
    from hvemu.cli.doctor import main as doctor

    return doctor(arguments)


def _compare(arguments: list[str]) -> int:
    from hvemu.cli.compare import main as compare

    return compare(arguments)


def _bench(arguments: list[str]) -> int:
    from hvemu.labs.bench import main as bench

    return bench(arguments)


def _disk(arguments: list[str]) -> int:
    from hvemu.cli.disk import main as disk

    return disk(arguments)


def _lab(arguments: list[str]) -> int:
    from hvemu.cli.lab import main as lab

    return lab(arguments)


def _guests(arguments: list[str]) -> int:
    if arguments[:1] in (["--help"], ["-h"]):
        print("usage: hvemu guests\n\nRebuilds every guest image. Needs the extra: pip install 'hvemu[build]'.")
        return 0
    from hvemu.labs.build_guests import main as build

    if arguments:
        raise UserError(f"hvemu guests takes no argument, not '{arguments[0]}'", "Type: hvemu guests.")
    build()
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "demo": _demo,
    "list": _list,
    "explain": _explain,
    "translate": _translate,
    "doctor": _doctor,
    "compare": _compare,
    "disk": _disk,
    "bench": _bench,
    "lab": _lab,
    "guests": _guests,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process status; never raises, never returns Python's default 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _replace_closed_streams()
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except HvemuError as error:
        print(f"hvemu: {error}", file=sys.stderr)
        return int(error.status)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        # Whoever reads a list may stop when he has seen enough; a guest was stopped before its end
        return int(ExitStatus.INTERRUPTED if words[:1] == ["run"] else ExitStatus.POWER_OFF)
    except SystemExit as error:
        return int(error.code) if isinstance(error.code, int) else int(ExitStatus.USAGE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _discard_output()
            print("hvemu: No space is left for the output. Give it another place.", file=sys.stderr)
            return int(ExitStatus.USAGE)
        import traceback

        traceback.print_exc()
        print("hvemu: this is a bug in hvemu; please report it with the lines above.", file=sys.stderr)
        return int(ExitStatus.HOST_BUG)


def _replace_closed_streams() -> None:
    """A stream that was closed before we started (``>&-``) is nowhere, not an error."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _discard_output() -> None:
    """Nobody takes our output any more: what is still buffered goes nowhere, without a second complaint at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("--version", "-V"):
        print(f"hvemu {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(_USAGE, end="")
        return 0 if words else int(ExitStatus.USAGE)
    command = _COMMANDS.get(words[0])
    if command is None:
        if words[0].startswith("-"):
            return _run(words)  # QEMU's way: hvemu -kernel IMAGE ...
        raise UserError(f"There is no command '{words[0]}'", f"Commands are: {', '.join(_COMMANDS)}.")
    return command(words[1:])
