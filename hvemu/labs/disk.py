"""``hvemu lab disk``: the same mebibyte read through each host bus adapter, and the exits that takes.

The guest disk reads one and then two mebibytes with otherwise the same command line; the difference of the two runs
is what a mebibyte costs, without start-up and checks. Counts are exact, and the same in every run; wall time is
measured in the same way, and told as a ratio to the first row.

Who moves the bytes: a CPU that executes IN moves each word through the hypervisor; a device that was given an address
writes guest memory itself.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from hvemu.labs.apart import apart
from hvemu.machine.configuration import MachineConfiguration
from hvemu.vocabulary.machine_map import IDE_PRIMARY

ADAPTERS: Final = ("ide", "buslogic", "virtio-scsi", "pv")
REQUESTS: Final = (64, 4)
"""KiB."""
FEWER, MORE = 1024, 2048
"""KiB that the two runs read: of as many digits, so that printing them takes the same."""
KINDS: Final = {
    "io_in": "port in",
    "io_out": "port out",
    "mmio_read": "MMIO",
    "mmio_write": "MMIO",
    "hlt": "HLT",
    "hypercall": "call",
}
"""Exits by what tables call them."""
_GUEST, _PORTED = "disk", "disk_pv"
_SIZE: Final = 4 << 20
_WORD: Final = 2
"""Bytes of an IDE data register."""
_MIB: Final = 1 << 20
_ENOUGH_SECONDS: Final = 0.15
_MOST_MEBIBYTES: Final = 512


class Measured(NamedTuple):
    """One mebibyte in requests of ``request`` KiB. ``seconds`` is None if not measured."""

    adapter: str
    request: int
    exits: dict[str, int]
    """By kind, without zeros."""
    interrupts: int
    moved_by_cpu: int
    """Bytes that went through the data register."""
    seconds: float | None = None

    @property
    def requests(self) -> int:
        """How many there were."""
        return (MORE - FEWER) // self.request

    @property
    def total(self) -> int:
        """Exits per MiB."""
        return sum(self.exits.values())

    @property
    def moved_by_device(self) -> int:
        """Bytes that the adapter wrote into guest memory."""
        return _MIB - self.moved_by_cpu

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {
            **self._asdict(),
            "requests": self.requests,
            "exits_per_mib": self.total,
            "exits_per_request": self.total / self.requests,
            "moved_by_device": self.moved_by_device,
        }


def guest_of(adapter: str) -> str:
    """The guest that drives an adapter."""
    return _PORTED if adapter == "pv" else _GUEST


def configuration_of(image: Path, adapter: str, mode: str, options: str) -> MachineConfiguration:
    """The guest with a disk that stays as it is; adapter ``pv`` is for the ported one, in its own mode."""
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    disks = (f"{str(image).replace(',', ',,')},adapter={adapter},nonpersistent",)
    guest = catalog()[guest_of(adapter)]
    mode = "pv" if adapter == "pv" else mode
    return guest_configuration(guest, mode=mode, disks=disks, append=f"adapter={adapter} {options}")


def empty_image(folder: str) -> Path:
    """A disk of zeros."""
    path = Path(folder, "disk.img")
    with path.open("wb") as file:
        file.truncate(_SIZE)
    return path


def measure(adapter: str, request: int, mode: str, *, rounds: int) -> Measured:
    """Count, and measure the wall time so many times. Raises what building a machine does."""
    with tempfile.TemporaryDirectory() as folder:
        image = empty_image(folder)
        first, second = (
            _statistics(configuration_of(image, adapter, mode, f"write=0 read={kib} request={request}"))
            for kib in (FEWER, MORE)
        )
    exits = _difference(first["exits"], second["exits"])
    words = _difference(_ports(first), _ports(second)).get(f"{IDE_PRIMARY:#x}", 0)
    interrupts = _difference(first["assists"], second["assists"]).get("external_interrupt", 0)
    interrupts += _difference(first["paravirtual"], second["paravirtual"]).get("event_upcall", 0)
    seconds = [apart(wall_seconds, adapter, request, mode) for _ in range(rounds)]
    return Measured(adapter, request, exits, interrupts, words * _WORD, statistics.median(seconds) if seconds else None)


def wall_seconds(adapter: str, request: int, mode: str) -> float:
    """Processor seconds of a mebibyte, in this process: of as many as it takes to see something."""
    with tempfile.TemporaryDirectory() as folder:
        image = empty_image(folder)
        base = _seconds(image, adapter, request, mode, FEWER)
        mebibytes = 1
        while True:
            took = _seconds(image, adapter, request, mode, FEWER + mebibytes * 1024) - base
            if took > _ENOUGH_SECONDS or mebibytes >= _MOST_MEBIBYTES:
                return max(0.0, took) / mebibytes
            mebibytes *= 8


def _seconds(image: Path, adapter: str, request: int, mode: str, kib: int) -> float:
    from hvemu.machine.builder import build

    machine = build(configuration_of(image, adapter, mode, f"write=0 read={kib} request={request}"))
    started = time.process_time()
    machine.run()
    took = time.process_time() - started
    machine.close()
    return took


def _statistics(configuration: MachineConfiguration) -> dict[str, Any]:
    from hvemu.testing.running import run_guest

    return run_guest(configuration).statistics


def _ports(statistics_of_run: dict[str, Any]) -> dict[str, int]:
    ports: dict[str, int] = statistics_of_run["exits_by_detail"].get("io_in", {})
    return ports


def _difference(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {name: count - first.get(name, 0) for name, count in second.items() if count != first.get(name, 0)}
