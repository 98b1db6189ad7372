"""``hvemu bench --boot KERNEL --initrd FILE``: one Linux, booted to its end in every full mode, in QEMU and in Bochs.

The initial RAM disk's /init has to reboot or power off when it is done. Every boot has a process of its own, one after
the other; hvemu's are on the same CPU model, those of QEMU's TCG and of Bochs on their own default. QEMU's time has its
firmware in it, some tenths of a second; Bochs' has neither BIOS nor boot loader (``hvemu.labs.bench_bochs``).

Where the time went is told by a look at the running thread a hundred times a second: in the engine, which runs the
guest and walks its tables, or in which room of hvemu. A callback of some microseconds is over before it can be looked
at, and counts as the engine: the exits, listed below it, tell how many there were.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from hvemu.labs import bench_bochs
from hvemu.machine.configuration import SVM_CPU_MODELS
from hvemu.vocabulary.errors import UserError

TECHNIQUES: Final = ("native", "bt", "svm", "svm/shadow")
APPEND: Final = "console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off"
_MEMORY: Final = 128
_USAGE: Final = "Type: hvemu bench --boot KERNEL --initrd FILE [--append TEXT]."
_LOOK: Final = 0.01
_LONGEST: Final = 3600.0
"""Seconds that a boot may take before it is taken for one that never ends."""
_ROOMS: Final = ("cli", "cpu", "devices", "dispatch", "engine", "machine", "memory", "modes", "trace")


class Sampler:
    """Looks at what a thread is doing, and counts."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._done = threading.Event()
        self._looker = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Sampler":
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._looker.join()

    def _look(self) -> None:
        while not self._done.wait(_LOOK):
            frame = sys._current_frames().get(self._thread)
            if frame is None:
                continue
            path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
            if (path.name, name) == ("vcpu.py", "run"):
                self.seen["the engine"] += 1
            else:
                room = path.parent.name
                self.seen[f"hvemu/{room}" if room in _ROOMS else "libraries"] += 1


def boot(technique: str, kernel: str, initrd: str, append: str) -> dict[str, Any]:
    """Boot once, in this process; seconds, exits, samples, and how the guest ended."""
    from hvemu.machine.builder import build
    from hvemu.machine.configuration import MachineConfiguration

    mode, _, mmu = technique.partition("/")
    machine = build(
        MachineConfiguration(
            image=kernel,
            initrd=initrd,
            append=append,
            memory=_MEMORY << 20,
            serial="none",
            mode=mode,
            mmu=mmu,
            cpu=SVM_CPU_MODELS[0],
        )
    )
    started = time.perf_counter()
    with Sampler() as sampler:
        stop = machine.run()
    exits = machine.statistics()["exits"]
    return {
        "seconds": time.perf_counter() - started,
        "status": int(stop.status) if stop else -1,
        "reason": stop.reason if stop else "",
        "position": machine.mode.position(),
        "exits": dict(sorted(exits.items(), key=lambda item: -item[1])[:5]),
        "samples": dict(sampler.seen.most_common()),
    }


def _boot_apart(technique: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "hvemu.labs.bench_boot", technique, *arguments]
    result = _run_to_its_end(command, f"in mode {technique}")
    if result.returncode:
        raise UserError(f"The boot in mode {technique} failed: {result.stderr.strip()[-300:]}", "Try hvemu run.")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _run_to_its_end(command: list[str], whose: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        hint = "Have its /init reboot or power off when it is done."
        raise UserError(f"The boot {whose} did not end within {_LONGEST:g} s", hint) from None


def qemu(kernel: str, initrd: str, append: str) -> float | None:
    """Seconds of the same boot under QEMU's TCG; None if it is not installed."""
    program = shutil.which("qemu-system-i386")
    if program is None:
        return None
    command = [program, "-accel", "tcg", "-m", str(_MEMORY), "-kernel", kernel, "-initrd", initrd, "-append", append]
    started = time.perf_counter()
    _run_to_its_end([*command, "-nographic", "-no-reboot"], "under QEMU")
    return time.perf_counter() - started


def bochs(kernel: str, initrd: str, append: str) -> bench_bochs.Booted | str:
    """The same boot under Bochs, or why there is none."""
    if packages := bench_bochs.missing():
        return f"not everything for Bochs is installed: no ratios to it (Debian: apt-get install {' '.join(packages)})"
    try:
        return bench_bochs.boot(kernel, initrd, append, _MEMORY)
    except UserError as error:
        return f"no ratios to Bochs: {error}"


def main(arguments: list[str]) -> int:
    """Boot under every technique, print seconds and ratios."""
    options = {"--append": APPEND} | dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) % 2 or set(options) != {"--boot", "--initrd", "--append"}:
        raise UserError("A boot needs a kernel and its initial RAM disk", _USAGE)
    given = options["--boot"], options["--initrd"], options["--append"]
    for name in given[:2]:
        if not Path(name).is_file():
            raise UserError(f"There is no file {name}", _USAGE)
    others = {}
    reference = qemu(*given)
    if reference is None:
        print("qemu-system-i386 is not installed: no ratios to it (Debian: apt-get install qemu-system-x86)")
    else:
        others["QEMU's"] = reference
        print(f"{'QEMU, TCG':14} {reference:7.1f} s")
    booted = bochs(*given)
    if isinstance(booted, str):
        print(booted)
    else:
        print(
            f"{'Bochs':14} {booted.kernel:7.1f} s{_ratios(booted.kernel, others)}"
            f"  without its BIOS and boot loader, which took {booted.before:.1f} s"
        )
        others["Bochs'"] = booted.kernel
    native = 0.0
    for technique in TECHNIQUES:
        found = _boot_apart(technique, *given)
        seconds = found["seconds"]
        native = native or seconds
        print(f"{technique:14} {seconds:7.1f} s {seconds / native:6.2f} of native's{_ratios(seconds, others)}")
        if found["status"]:
            print(f"{'':15} ended with status {found['status']}: {found['reason']}")
        total = sum(found["samples"].values()) or 1
        print(f"{'':15} time: {', '.join(f'{n} {100 * c / total:.0f} %' for n, c in found['samples'].items())}")
        print(f"{'':15} exits: {', '.join(f'{name} {count:,}' for name, count in found['exits'].items())}")
    return 0


def _ratios(seconds: float, others: dict[str, float]) -> str:
    return "".join(f"  {seconds / other:6.2f} of {whose}" for whose, other in others.items())


if __name__ == "__main__":
    print(json.dumps(boot(*sys.argv[1:5])))
