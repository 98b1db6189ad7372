"""``hvemu doctor``: what the engine does on this machine, probe by probe."""

import platform
import sys

from hvemu.vocabulary.errors import ExitStatus, HvemuError


def main(arguments: list[str]) -> int:
    """Run every probe; status 0 when all are as hvemu needs them."""
    if arguments:
        print("usage: hvemu doctor\n\nRuns every fact about the engine that hvemu builds on as an experiment.")
        return 0 if arguments[0] in ("-h", "--help") else int(ExitStatus.USAGE)
    from hvemu.engine import binding
    from hvemu.engine.block_clock import native_clock_supported
    from hvemu.engine.probes import PROBES

    print(f"Unicorn {binding.version()}, Python {platform.python_version()}, {platform.machine()} {sys.platform}")
    print(f"block clock: {'native machine code' if native_clock_supported() else 'Python callback (slower)'}")
    bad = 0
    for probe in PROBES:
        try:
            problem = probe.run()
        except HvemuError as error:
            problem = str(error)
        bad += problem is not None
        print(f"{'ok   ' if problem is None else 'WRONG'}  {probe.name:38} {problem or probe.used_for}")
    if bad:
        print(f"{bad} of {len(PROBES)} probes differ. Reinstall the engine with:")
        print("pip install --force-reinstall unicorn==2.1.4")
        return int(ExitStatus.DIFFERENT)
    print(f"all {len(PROBES)} probes are as they should be")
    return 0
