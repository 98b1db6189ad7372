"""Running a guest from Python: build, run, and get its console, its verdict and its ledger in one value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hvemu.devices.contract import NoBackend
from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine
from hvemu.testing.catalog import Guest
from hvemu.trace.tracer import Observer, Tracer
from hvemu.vocabulary.outcomes import Stop


class Recording:
    """A character backend that keeps what the guest wrote and types an answer when a line has appeared."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._awaited = b""
        self._then: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        """Keep the bytes."""
        self.data += data
        if self._awaited and self._awaited in self.data:
            self._awaited, then = b"", self._then
            then()

    def when(self, text: str, then: Callable[[], None]) -> None:
        """Call ``then`` once, as soon as ``text`` has been written."""
        self._awaited, self._then = text.encode(), then

    def text(self) -> str:
        """What was written, as text with newlines."""
        return self.data.decode("utf-8", "replace").replace("\r\n", "\n")


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    stop: Stop | None
    console: str
    statistics: dict[str, Any]
    machine: Machine

    @property
    def status(self) -> int | None:
        """The process status that ``hvemu run`` would give; None while the guest could go on."""
        return None if self.stop is None else int(self.stop.status)


def guest_configuration(guest: Guest, **changes: Any) -> MachineConfiguration:
    """The machine a catalogue guest wants."""
    settings: dict[str, Any] = {
        "image": str(guest.image),
        "name": guest.name,
        "mode": guest.modes[0],
        "memory": guest.memory << 20,
        "append": guest.command_line,
        "loader": "disk" if guest.format == "disk" else "auto",
        "serial": "none",
        "scratch_disk": 0 if changes.get("disks") else guest.disk << 20,
    }
    return MachineConfiguration(**settings | changes)


def run_guest(
    configuration: MachineConfiguration,
    *,
    keys: str = "",
    keys_after: str = "",
    position: int | None = None,
    observer: Observer | None = None,
    prepare: Callable[[Machine], None] | None = None,
) -> Result:
    """Run a guest to its end, or to ``position``; ``keys`` are typed at the start or after a console line."""
    recording = Recording()
    tracer = Tracer()
    if observer is not None:
        tracer.subscribe(observer)
    machine = build(configuration, backends=Backends(recording, NoBackend(), recording), tracer=tracer)
    if keys and keys_after:
        recording.when(keys_after, lambda: machine.type_text(keys))
    elif keys:
        machine.type_text(keys)
    if prepare is not None:
        prepare(machine)
    stop = machine.run() if position is None else machine.run(position)
    if stop is not None:
        machine.close()
    return Result(stop, recording.text(), machine.statistics(), machine)
