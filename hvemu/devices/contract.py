"""What a device may know: five ports, injected by the builder.

Every device subclasses ``Device`` and takes the ports it needs in its constructor. It must not know its own
address, the bus, the CPU, another device, or host time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from hvemu.vocabulary.addresses import GuestPhysical, Nanoseconds


class IrqLine(Protocol):
    """One interrupt output pin. A chip sets its level; routing and edges are the board's affair."""

    def set_level(self, asserted: bool) -> None: ...


class Timer(Protocol):
    """A scheduled call that can be taken back."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Virtual time in nanoseconds since power-on; never host time.

    ``schedule`` calls back once, at the first instruction boundary at or after ``at``. Inside the callback
    ``now()`` is exactly ``at``. A time in the past is due at once, but never before ``schedule`` has returned.
    """

    def now(self) -> Nanoseconds: ...

    def schedule(self, at: Nanoseconds, callback: Callable[[], None]) -> Timer: ...


class GuestMemory(Protocol):
    """Guest-physical memory as DMA sees it. Reads outside RAM give ones; writes outside RAM are dropped."""

    def read(self, address: GuestPhysical, length: int) -> bytes: ...

    def write(self, address: GuestPhysical, data: bytes) -> None: ...


class CharacterBackend(Protocol):
    """Where a serial port's bytes go. Input arrives by the device's ``receive``."""

    def write(self, data: bytes) -> None: ...


class BlockBackend(Protocol):
    """A medium of ``size`` bytes. Offsets and lengths are bytes, multiples of 512 and inside the medium.

    A write is acknowledged when it returns, and survives the death of the process when a later ``flush`` has
    returned. Every method may raise OSError, which a device reports to its guest as a medium error; ENOSPC says that
    thin provisioning has run out of space.
    """

    size: int
    read_only: bool

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None:
        """Deallocate: what was there reads as zeros, and its space is given back as far as the format can."""
        ...

    def extent(self, offset: int) -> tuple[int, bool]:
        """How many bytes from ``offset`` on are alike, at least 512, and whether they are allocated."""
        ...


class DeviceEvent(NamedTuple):
    """Something a watcher may want to know: which device, what happened, and a number or text."""

    device: str
    what: str
    detail: int | str


Watcher = Callable[[DeviceEvent], None]


def nobody_watches(event: DeviceEvent) -> None:
    """The default watcher."""


class NoIrq:
    """An interrupt pin that is not connected."""

    def set_level(self, asserted: bool) -> None:
        """Go nowhere."""


class NoBackend:
    """A character backend that swallows everything."""

    def write(self, data: bytes) -> None:
        """Drop the bytes."""


@dataclass(frozen=True)
class DeviceState:
    """A named, versioned value from which an equal device can be made. ``fields`` holds plain JSON-able values."""

    device: str
    version: int
    fields: Mapping[str, Any]


class Device(ABC):
    """A chip with registers.

    ``offset`` counts from the start of the register window that the builder gave it; ``size`` is 1, 2 or 4
    bytes and never larger than ``widest_access``: the bus splits wider accesses. Values are unsigned.
    Neither ``read`` nor ``write`` raises for anything a guest does.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    widest_access: ClassVar[int] = 1

    @abstractmethod
    def read(self, offset: int, size: int) -> int:
        """Read a register, with the side effects of the real chip."""

    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""

    @abstractmethod
    def reset(self) -> None:
        """The state after power-on; cancels what is scheduled and lowers the lines."""

    def quiesce(self) -> None:
        """Complete or re-queue what is in flight. Chips without transfers have nothing to do."""

    @abstractmethod
    def state(self) -> DeviceState:
        """The whole guest-visible state as a value."""

    @abstractmethod
    def from_state(self, state: DeviceState) -> None:
        """Become the device that ``state`` describes; raises ValueError when it is not one of ours."""
