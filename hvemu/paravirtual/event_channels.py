"""Event channels: the interrupts of a paravirtual machine, 1,023 numbered lines on a page that both sides see.

An edge sets the port's pending bit; unless the port is masked, also its word's selector bit and the virtual CPU's
pending byte. The guest is called up when that byte is set and its mask byte is not, at the next return to the guest.
A device of the hypervisor's is at the other end of a channel as a function. See event_channel.h.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual.contract import GuestAccess
from hvemu.vocabulary import xen
from hvemu.vocabulary.xen import Errno, HypercallError

_VIRQS: Final = 24
_U32: Final = struct.Struct("<I")
_STATUS: Final = {"closed": 0, "unbound": 1, "interdomain": 2, "virq": 4, "ipi": 5}


class Channel(NamedTuple):
    """One port in use. ``notify`` is the other end, if that is the hypervisor's."""

    kind: str
    detail: int = 0
    notify: Callable[[], None] | None = None


class EventChannels:
    """The ports of one guest, on the shared page at machine address ``shared``."""

    def __init__(self, memory: GuestPhysicalMemory, shared: int) -> None:
        self._memory, self._shared = memory, shared
        self._channels: dict[int, Channel] = {}
        self._virqs: dict[int, int] = {}
        self.pending: Callable[[], None] = lambda: None
        """Told when an upcall has become due."""

    # ------------------------------------------------------------------ the shared page

    def _byte(self, offset: int) -> int:
        return self._memory.view[self._shared + offset]

    def upcall_due(self) -> bool:
        """Whether the guest is to be called up on the next return to it."""
        at = self._shared
        view = self._memory.view
        return bool(view[at + xen.UPCALL_PENDING]) and not view[at + xen.UPCALL_MASK]

    def masked(self) -> bool:
        """Whether the guest holds off upcalls."""
        return bool(self._byte(xen.UPCALL_MASK))

    def mask(self, held_off: bool) -> None:
        """Hold off upcalls, or no longer."""
        self._memory.write(self._shared + xen.UPCALL_MASK, bytes([held_off]))

    def _set_bit(self, offset: int, number: int, value: bool = True) -> bool:
        """Set or clear a bit of an array on the page; returns what it was."""
        at, bit = self._shared + offset + (number >> 5) * 4, 1 << (number & 31)
        before = self._memory.read_u32(at)
        self._memory.write(at, _U32.pack(before | bit if value else before & ~bit))
        return bool(before & bit)

    def is_masked(self, port: int) -> bool:
        """Whether a port is masked."""
        word = self._memory.read_u32(self._shared + xen.EVENT_MASK + (port >> 5) * 4)
        return bool(word >> (port & 31) & 1)

    def raise_port(self, port: int) -> None:
        """An edge on a port."""
        if not self._set_bit(xen.EVENT_PENDING, port) and not self.is_masked(port):
            self._mark(port)

    def _mark(self, port: int) -> None:
        if not self._set_bit(xen.PENDING_SELECTOR, port >> 5):
            self._memory.write(self._shared + xen.UPCALL_PENDING, b"\1")
            self.pending()

    def raise_virq(self, number: int) -> None:
        """A virtual interrupt, if the guest wants it."""
        port = self._virqs.get(number)
        if port is not None:
            self.raise_port(port)

    # ------------------------------------------------------------------ ports

    def reset(self) -> None:
        """No port is in use."""
        self._channels.clear()
        self._virqs.clear()

    def _free_port(self) -> int:
        for port in range(1, xen.EVENT_CHANNELS):
            if port not in self._channels:
                return port
        raise HypercallError(Errno.ENOSPC)

    def _in_use(self, port: int) -> Channel:
        found = self._channels.get(port)
        if found is None:
            raise HypercallError(Errno.EINVAL)
        return found

    def connect(self, notify: Callable[[], None]) -> tuple[int, Callable[[], None]]:
        """A channel to a device of the hypervisor's; ``notify`` hears of what the guest sends.

        Returns the port, and how the device raises it for as long as the guest does not close it.
        """
        channel = Channel("interdomain", 0, notify)
        port = self._open(channel)

        def raise_it() -> None:
            if self._channels.get(port) is channel:
                self.raise_port(port)

        return port, raise_it

    def bind(self, port: int, notify: Callable[[], None]) -> Callable[[], None]:
        """Take the other end of a port that the guest has allocated for a back end; returns how to raise it.

        Raises HypercallError where it has allocated none.
        """
        unbound = self._in_use(port)
        if unbound.kind != "unbound" or unbound.detail != xen.DOMID_BACKEND:
            raise HypercallError(Errno.EINVAL)
        channel = self._channels[port] = Channel("interdomain", 0, notify)

        def raise_it() -> None:
            if self._channels.get(port) is channel:
                self.raise_port(port)

        return raise_it

    def close(self, port: int) -> None:
        """No longer in use."""
        channel = self._in_use(port)
        if channel.kind == "virq":
            del self._virqs[channel.detail]
        elif channel.kind == "interdomain" and channel.detail:
            self._channels[channel.detail] = Channel("unbound", xen.DOMID_SELF)
        del self._channels[port]
        self._set_bit(xen.EVENT_PENDING, port, False)

    def send(self, port: int) -> None:
        """The guest notifies the other end."""
        channel = self._in_use(port)
        if channel.kind == "interdomain":
            if channel.notify is not None:
                channel.notify()
        elif channel.kind == "ipi":
            self.raise_port(port)
        elif channel.kind != "unbound":
            raise HypercallError(Errno.EINVAL)

    def unmask(self, port: int) -> None:
        """Unmask a port, and call up for what came meanwhile."""
        if port >= xen.EVENT_CHANNELS:
            raise HypercallError(Errno.EINVAL)
        self._set_bit(xen.EVENT_MASK, port, False)
        word = self._memory.read_u32(self._shared + xen.EVENT_PENDING + (port >> 5) * 4)
        if word >> (port & 31) & 1:
            self._mark(port)

    def _bind_virq(self, number: int) -> int:
        if number >= _VIRQS:
            raise HypercallError(Errno.EINVAL)
        if number in self._virqs:
            raise HypercallError(Errno.EEXIST)
        port = self._free_port()
        self._virqs[number] = port
        self._channels[port] = Channel("virq", number)
        return port

    def lines(self) -> list[str]:
        """The ports in use and their bits, for people."""
        due = "yes" if self.upcall_due() else "no, they are held off" if self._byte(xen.UPCALL_PENDING) else "no"
        rows = []
        for port, channel in sorted(self._channels.items()):
            word = self._memory.read_u32(self._shared + xen.EVENT_PENDING + (port >> 5) * 4)
            bits = f"pending={word >> (port & 31) & 1}  masked={int(self.is_masked(port))}"
            what = f"{channel.kind} {channel.detail}" if channel.kind in ("virq", "unbound") else channel.kind
            rows.append(f"port {port}: {bits}  {what}")
        return [*rows, f"upcalls are held off: {'yes' if self.masked() else 'no'}; one is due: {due}"]

    def operate(self, command: int, argument: int, guest: GuestAccess) -> int:
        """event_channel_op: a structure of each command's own at linear address ``argument``."""
        if command == xen.EVTCHN_SEND:
            self.send(_U32.unpack(guest.read(argument, 4))[0])
        elif command == xen.EVTCHN_UNMASK:
            self.unmask(_U32.unpack(guest.read(argument, 4))[0])
        elif command == xen.EVTCHN_CLOSE:
            self.close(_U32.unpack(guest.read(argument, 4))[0])
        elif command == xen.EVTCHN_BIND_VIRQ:
            number, cpu = struct.unpack("<II", guest.read(argument, 8))
            _require(cpu == 0, Errno.ENOENT)
            _answer(guest, argument + 8, self, lambda: self._bind_virq(number))
        elif command == xen.EVTCHN_BIND_IPI:
            _require(_U32.unpack(guest.read(argument, 4))[0] == 0, Errno.ENOENT)
            _answer(guest, argument + 4, self, lambda: self._open(Channel("ipi")))
        elif command == xen.EVTCHN_ALLOC_UNBOUND:
            domain, remote = struct.unpack("<HH", guest.read(argument, 4))
            _require(domain == xen.DOMID_SELF, Errno.EPERM)
            _answer(guest, argument + 4, self, lambda: self._open(Channel("unbound", remote)))
        elif command == xen.EVTCHN_BIND_INTERDOMAIN:
            remote, _, port = struct.unpack("<HHI", guest.read(argument, 8))
            _require(remote == xen.DOMID_SELF, Errno.ESRCH)
            _require(self._in_use(port).kind == "unbound", Errno.EINVAL)
            _answer(guest, argument + 8, self, lambda: self._loop_back(port))
        elif command == xen.EVTCHN_BIND_VCPU:
            port, cpu = struct.unpack("<II", guest.read(argument, 8))
            _require(cpu == 0, Errno.ENOENT)
            self._in_use(port)
        elif command == xen.EVTCHN_STATUS:
            self._status(argument, guest)
        elif command == xen.EVTCHN_RESET:
            _require(struct.unpack("<H", guest.read(argument, 2))[0] == xen.DOMID_SELF, Errno.EPERM)
            for port in [port for port, channel in self._channels.items() if channel.kind != "interdomain"]:
                self.close(port)
        else:
            raise HypercallError(Errno.ENOSYS)
        return 0

    def _open(self, channel: Channel) -> int:
        port = self._free_port()
        self._channels[port] = channel
        return port

    def _loop_back(self, remote: int) -> int:
        port = self._free_port()
        self._channels[port] = Channel("interdomain", remote, lambda: self.raise_port(remote))
        self._channels[remote] = Channel("interdomain", port, lambda: self.raise_port(port))
        return port

    def _status(self, argument: int, guest: GuestAccess) -> None:
        domain, _, port = struct.unpack("<HHI", guest.read(argument, 8))
        _require(domain == xen.DOMID_SELF, Errno.EPERM)
        _require(port < xen.EVENT_CHANNELS, Errno.EINVAL)
        channel = self._channels.get(port, Channel("closed"))
        detail = (0, channel.detail) if channel.kind == "interdomain" else (channel.detail, 0)
        guest.write(argument + 8, struct.pack("<4I", _STATUS[channel.kind], 0, *detail))


def _require(condition: bool, errno: Errno) -> None:
    if not condition:
        raise HypercallError(errno)


def _answer(guest: GuestAccess, at: int, channels: EventChannels, allocate: Callable[[], int]) -> None:
    """Allocate a port and tell the guest; if it cannot be told, there is none."""
    port = allocate()
    try:
        guest.write(at, _U32.pack(port))
    except HypercallError:
        channels.close(port)
        raise
