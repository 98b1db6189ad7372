"""How a chip's registers become a DeviceState and come back, checked.

A chip lists its fields once, in ``layout``: attribute name and kind. The kinds know the plain value that JSON
can carry and refuse anything else, so that a damaged or hostile snapshot is a ValueError and never a chip that
raises later. Formats (JSON, streams) live elsewhere.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvemu.devices.contract import Device, DeviceState
from hvemu.devices.deadline import Deadline


class Kind(ABC):
    """What one field may hold. ``plain`` makes the saved value, ``parse`` checks it and gives the live one."""

    def plain(self, value: Any) -> Any:
        """The value as JSON can carry it."""
        return value

    @abstractmethod
    def parse(self, raw: Any) -> Any:
        """The live value, or ValueError."""


@dataclass(frozen=True)
class Number(Kind):
    """A whole number between ``minimum`` and ``maximum``, both included."""

    maximum: int
    minimum: int = 0

    def parse(self, raw: Any) -> int:
        """Refuse what is no int, or outside of the range."""
        if type(raw) is not int or not self.minimum <= raw <= self.maximum:
            raise ValueError(f"a number from {self.minimum} to {self.maximum} is needed, not {raw!r}")
        return raw


@dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    def parse(self, raw: Any) -> bool:
        """Refuse what is no bool."""
        if type(raw) is not bool:
            raise ValueError(f"True or False is needed, not {raw!r}")
        return raw


@dataclass(frozen=True)
class Numbers(Kind):
    """A list of exactly ``length`` numbers up to ``maximum``."""

    length: int
    maximum: int

    def plain(self, value: list[int]) -> list[int]:
        """A copy, so that the state does not change with the chip."""
        return list(value)

    def parse(self, raw: Any) -> list[int]:
        """Refuse another length, or a number out of range."""
        if not isinstance(raw, list) or len(raw) != self.length:
            raise ValueError(f"a list of {self.length} numbers is needed")
        number = Number(self.maximum)
        return [number.parse(item) for item in raw]


@dataclass(frozen=True)
class Octets(Kind):
    """A bytearray of exactly ``length`` bytes, saved as hexadecimal digits."""

    length: int

    def plain(self, value: bytearray) -> str:
        """The digits."""
        return value.hex()

    def parse(self, raw: Any) -> bytearray:
        """Refuse another length, or what are no digits."""
        if not isinstance(raw, str) or len(raw) != 2 * self.length:
            raise ValueError(f"{self.length} bytes in hexadecimal are needed")
        return bytearray.fromhex(raw)


@dataclass(frozen=True)
class Buffer(Kind):
    """A bytearray of at most ``limit`` bytes, saved as hexadecimal digits."""

    limit: int

    def plain(self, value: bytearray) -> str:
        """The digits."""
        return value.hex()

    def parse(self, raw: Any) -> bytearray:
        """Refuse more than the buffer may hold."""
        if not isinstance(raw, str) or len(raw) > 2 * self.limit:
            raise ValueError(f"at most {self.limit} bytes in hexadecimal are needed")
        return bytearray.fromhex(raw)


@dataclass(frozen=True)
class Queue(Kind):
    """A deque of at most ``limit`` bytes, saved as hexadecimal digits."""

    limit: int

    def plain(self, value: deque[int]) -> str:
        """The digits."""
        return bytes(value).hex()

    def parse(self, raw: Any) -> deque[int]:
        """Refuse more than the queue may hold."""
        if not isinstance(raw, str) or len(raw) > 2 * self.limit:
            raise ValueError(f"at most {self.limit} bytes in hexadecimal are needed")
        return deque(bytes.fromhex(raw))


@dataclass(frozen=True)
class Instant(Kind):
    """A point in virtual time or a number of ticks, or None for never."""

    def parse(self, raw: Any) -> int | None:
        """Refuse what is neither None nor an int."""
        if raw is not None and type(raw) is not int:
            raise ValueError(f"a time or None is needed, not {raw!r}")
        return raw


@dataclass(frozen=True)
class Due(Instant):
    """The time of a Deadline; loading it arms the Deadline again."""

    def plain(self, value: Deadline) -> int | None:
        """When it is due."""
        return value.at


Layout = Mapping[str, Kind]


def plain_fields(owner: object, layout: Layout) -> dict[str, Any]:
    """The attributes that ``layout`` names, as plain values."""
    return {name: kind.plain(getattr(owner, name)) for name, kind in layout.items()}


def parse_fields(layout: Layout, raw: Any, of: str) -> dict[str, Any]:
    """The live values of ``raw``; ValueError names the field that is missing, unknown or wrong."""
    if not isinstance(raw, Mapping) or set(raw) != set(layout):
        raise ValueError(f"the state of {of} must have exactly the fields {', '.join(layout)}")
    parsed: dict[str, Any] = {}
    for name, kind in layout.items():
        try:
            parsed[name] = kind.parse(raw[name])
        except ValueError as error:
            raise ValueError(f"the field {name} in the state of {of}: {error}") from error
    return parsed


def adopt_fields(owner: object, values: Mapping[str, Any]) -> None:
    """Give ``owner`` the parsed values; a Deadline is armed, anything else is assigned."""
    for name, value in values.items():
        current = getattr(owner, name)
        if isinstance(current, Deadline):
            current.arm(value)
        else:
            setattr(owner, name, value)


def fields_for(device: Device, state: DeviceState) -> Mapping[str, Any]:
    """The fields of ``state`` when it is one of ``device``'s, by name and version; else ValueError."""
    if state.device != device.name or state.version != device.version:
        raise ValueError(f"{device.name} version {device.version} cannot become {state.device} version {state.version}")
    return state.fields


class SavedDevice(Device):
    """A device whose whole state is the attributes in ``layout``."""

    layout: Layout = {}

    def state(self) -> DeviceState:
        """The attributes in ``layout``, as plain values."""
        return DeviceState(self.name, self.version, plain_fields(self, self.layout))

    def from_state(self, state: DeviceState) -> None:
        """Adopt the attributes all or none, then drive the lines to match."""
        adopt_fields(self, parse_fields(self.layout, fields_for(self, state), self.name))
        self.resume()

    def resume(self) -> None:
        """Drive the lines as the registers say. Chips without lines have nothing to do."""
