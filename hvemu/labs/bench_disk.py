"""``hvemu bench --disk``: how fast a guest reads and writes its disk through each host bus adapter, and QEMU's guest.

The guest disk moves a little and then much with otherwise the same command line, in requests of 4 KiB; the difference
tells MB/s and exits per MiB without start-up. QEMU's TCG runs the same guest with the same command line on the same
raw image, for the adapters it has. Figures are medians; every measurement has a fresh process.

Where the time went is told as by ``hvemu bench --boot``: by looks at the running thread. A callback of some
microseconds is over before it can be looked at, and counts as the engine.
"""

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from hvemu.labs.apart import apart
from hvemu.labs.bench_boot import Sampler
from hvemu.labs.disk import ADAPTERS, guest_of
from hvemu.vocabulary.errors import UserError

ROUNDS: Final = 3
REQUEST: Final = 4
"""KiB."""
MEBIBYTES: Final = {"ide": 1, "buslogic": 16, "virtio-scsi": 16, "pv": 16}
"""How much more the second run moves."""
QEMU_MEBIBYTES: Final = {"ide": 16, "virtio-scsi": 64}
PASSED: Final = 33
_FEW: Final = 64
"""KiB of the first run."""
_MIB: Final = 1 << 20
_SIZE: Final = 64 * _MIB
_MEMORY: Final = 16
_USAGE: Final = "Type: hvemu bench --disk [--json]."
_QEMU: Final = "qemu-system-i386"
_ATTACHED: Final = {
    "ide": ("-drive", "file={},format=raw,if=ide"),
    "virtio-scsi": (
        "-device", "virtio-scsi-pci,disable-modern=on",
        "-drive", "file={},format=raw,if=none,id=disk", "-device", "scsi-hd,drive=disk",
    ),
}  # fmt: skip
"""How QEMU is told of a disk; it has no BusLogic adapter."""


class Measured(NamedTuple):
    """One adapter, direction and pattern. Rates are MB/s; None where it was not measured."""

    adapter: str
    operation: str
    pattern: str
    rate: float | None
    exits: float
    """Per MiB."""
    samples: dict[str, int]
    """Looks at the running thread, by where it was."""
    qemu_rate: float | None = None

    @property
    def ratio(self) -> float | None:
        """Of QEMU's rate."""
        return self.rate / self.qemu_rate if self.rate and self.qemu_rate else None


def options_of(adapter: str, operation: str, pattern: str, kib: int) -> str:
    """The guest's command line: everything in one direction."""
    amounts = " ".join(f"{name}={kib if name == operation else 0}" for name in ("read", "write"))
    return f"adapter={adapter} {amounts} request={REQUEST} pattern={pattern}"


def run(adapter: str, options: str) -> dict[str, Any]:
    """One run in this process, on a fresh image: seconds, exits, samples."""
    from hvemu.machine.builder import build
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    with tempfile.TemporaryDirectory() as folder:
        disks = (f"{_image(folder).replace(',', ',,')},adapter={adapter}",)
        machine = build(guest_configuration(catalog()[guest_of(adapter)], disks=disks, append=options))
        started = time.perf_counter()
        with Sampler() as sampler:
            stop = machine.run()
        seconds = time.perf_counter() - started
        machine.close()
    _check(int(stop.status) if stop else -1, options)
    return {
        "seconds": seconds,
        "exits": sum(machine.statistics()["exits"].values()),
        "samples": dict(sampler.seen),
    }


def run_in_qemu(program: str, adapter: str, options: str) -> float:
    """Seconds of the same under QEMU's TCG."""
    from hvemu.testing.catalog import catalog

    with tempfile.TemporaryDirectory() as folder:
        image = _image(folder).replace(",", ",,")
        command = [
            program, "-accel", "tcg", "-m", str(_MEMORY), "-display", "none", "-serial", "none", "-no-reboot",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(catalog()["disk"].image),
            "-append", options, *(word.format(image) for word in _ATTACHED[adapter]),
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        _check(done.returncode, options)
        return time.perf_counter() - started


def measure(
    adapter: str,
    operation: str,
    pattern: str,
    program: str | None,
    *,
    rounds: int = ROUNDS,
    mebibytes: int = 0,
    qemu_mebibytes: int = 0,
) -> Measured:
    """The medians; ``program`` is QEMU's, None leaves it out. Amounts of 0 are the usual ones. Raises UserError."""
    more = mebibytes or MEBIBYTES[adapter]
    seconds: list[float] = []
    theirs: list[float] = []
    exits = 0.0
    samples: Counter[str] = Counter()
    for _ in range(rounds):
        few, many = (
            apart(run, adapter, options_of(adapter, operation, pattern, kib)) for kib in (_FEW, _FEW + more * 1024)
        )
        seconds.append((many["seconds"] - few["seconds"]) / more)
        exits = (many["exits"] - few["exits"]) / more
        samples.update(many["samples"])
        if program is not None and adapter in _ATTACHED:
            amount = qemu_mebibytes or QEMU_MEBIBYTES[adapter]
            first, second = (
                run_in_qemu(program, adapter, options_of(adapter, operation, pattern, kib))
                for kib in (_FEW, _FEW + amount * 1024)
            )
            theirs.append((second - first) / amount)
    return Measured(adapter, operation, pattern, _rate(seconds), exits, dict(samples.most_common()), _rate(theirs))


def _rate(seconds_per_mebibyte: list[float]) -> float | None:
    median = statistics.median(seconds_per_mebibyte) if seconds_per_mebibyte else 0.0
    return _MIB / 1e6 / median if median > 0 else None


def _image(folder: str) -> str:
    path = Path(folder, "disk.img")
    with path.open("wb") as file:
        file.truncate(_SIZE)
    return str(path)


def _check(status: int, options: str) -> None:
    if status != PASSED:
        raise UserError(f"The guest failed with '{options}' (status {status})", "Try hvemu run disk.")


def main(arguments: list[str]) -> int:
    """Measure everything, print a line for each, or with ``--json`` the values."""
    if sorted(arguments) not in (["--disk"], ["--disk", "--json"]):
        raise UserError("The benchmark of disks has no other options", _USAGE)
    program = shutil.which(_QEMU)
    found = []
    for adapter in ADAPTERS:
        for operation in ("read", "write"):
            for pattern in ("sequential", "random"):
                found.append(measure(adapter, operation, pattern, program))
                if "--json" not in arguments:
                    print("\n".join(lines_of(found[-1], first=len(found) == 1)), flush=True)
    if "--json" in arguments:
        print(json.dumps([{**row._asdict(), "ratio": row.ratio} for row in found], indent=1))
    elif program is None:
        print(f"{_QEMU} is not installed: no ratios to it (Debian: apt-get install qemu-system-x86)")
    else:
        print("QEMU's TCG has no BusLogic adapter and no paravirtual one to compare with.")
    return 0


def lines_of(row: Measured, *, first: bool) -> list[str]:
    """A line of the table, and where the time went; before the first one, what the columns are."""
    lines = []
    if first:
        lines.append(f"requests of {REQUEST} KiB in mode native (pv: in mode pv); medians of {ROUNDS}")
        lines.append(f"{'':30}{'MB/s':>10}{'exits per MiB':>16}{'QEMU, MB/s':>12}{'of QEMU':>10}")

    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    lines.append(
        f"{row.adapter:12}{row.operation:6}{row.pattern:12}{cell(row.rate, 2):>10}{row.exits:>16,.0f}"
        f"{cell(row.qemu_rate, 1):>12}{cell(row.ratio, 4):>10}"
    )
    total = sum(row.samples.values()) or 1
    where = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in row.samples.items())
    return [*lines, f"{'':12}time: {where or 'too short to tell'}"]
