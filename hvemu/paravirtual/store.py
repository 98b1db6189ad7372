"""XenStore: a small tree of names and values by which a guest and its host agree on things, such as a balloon's target.

The wire protocol of io/xs_wire.h over two byte rings on a page of the guest's. Names that do not begin with a slash
are the domain's own. Of transactions there is the form alone: one guest, answered one message at a time.
"""

import struct
from collections.abc import Callable
from typing import Final

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual.ring import ByteRing, RingError

_RING: Final = 1024
_HEADER: Final = struct.Struct("<4I")
_DIRECTORY, _READ, _GET_PERMISSIONS, _WATCH, _UNWATCH, _TRANSACTION_START, _TRANSACTION_END = range(1, 8)
_GET_DOMAIN_PATH, _WRITE, _MKDIR, _RM, _SET_PERMISSIONS, _WATCH_EVENT, _ERROR = 10, 11, 12, 13, 14, 15, 16
_LONGEST: Final = 4096
_MOST_NODES: Final = 1000
_LONGEST_VALUE: Final = 2048
_LONGEST_NAME: Final = 2048
_MOST_WATCHES: Final = 128
_MOST_WAITING: Final = 1 << 18
"""Bytes of answers that wait for a guest that does not take them."""
HOME: Final = "/local/domain/1"
"""Where the names of the guest are."""


class _Failed(Exception):
    """A request is answered with an error, by its name."""


class Store:
    """The hypervisor's end. ``notify`` raises the guest's port; ``changed`` hears of what the guest writes."""

    def __init__(self, memory: GuestPhysicalMemory, page: int) -> None:
        at = page + 2 * _RING
        self._requests = ByteRing(memory, page, _RING, at, at + 4)
        self._responses = ByteRing(memory, page + _RING, _RING, at + 8, at + 12)
        self._received, self._waiting = b"", b""
        self._broken = False
        self._nodes: dict[str, bytes] = {}
        self._watches: dict[tuple[str, str], None] = {}
        self._transactions = 0
        self.notify: Callable[[], None] = lambda: None
        self.changed: Callable[[str], None] = lambda name: None
        self.warn: Callable[[str], None] = lambda text: None

    def read(self, name: str) -> bytes | None:
        """A value, or None."""
        return self._nodes.get(_path(name))

    def write(self, name: str, value: bytes) -> None:
        """The host writes; who watches is told."""
        path = _path(name)
        self._nodes[path] = value
        self._fire(path)
        self._answer()

    def notified(self) -> None:
        """The guest has put in requests, or taken answers."""
        if self._broken:
            return
        try:
            self._received += self._requests.take()
            while len(self._received) >= _HEADER.size:
                kind, number, transaction, length = _HEADER.unpack_from(self._received)
                if length > _LONGEST:
                    raise RingError(f"a message of {length} bytes")
                if len(self._received) < _HEADER.size + length:
                    break
                payload = self._received[_HEADER.size : _HEADER.size + length]
                self._received = self._received[_HEADER.size + length :]
                self._request(kind, number, transaction, payload)
        except RingError as problem:
            self._cut_off(problem)
        self._answer()

    def _cut_off(self, problem: RingError) -> None:
        self._broken = True
        self.warn(f"the guest's store is cut off: {problem}")

    def _send(self, kind: int, number: int, transaction: int, payload: bytes) -> None:
        if len(self._waiting) > _MOST_WAITING:
            raise RingError("nobody takes the answers")
        self._waiting += _HEADER.pack(kind, number, transaction, len(payload)) + payload

    def _answer(self) -> None:
        if self._broken or not self._waiting:
            return
        try:
            count = self._responses.give(self._waiting)
        except RingError as problem:
            self._cut_off(problem)
            return
        self._waiting = self._waiting[count:]
        if count:
            self.notify()

    def _request(self, kind: int, number: int, transaction: int, payload: bytes) -> None:
        try:
            answer = self._carry_out(kind, payload)
        except _Failed as failure:
            self._send(_ERROR, number, transaction, str(failure).encode() + b"\0")
            return
        self._send(kind, number, transaction, answer)
        if kind == _WATCH:
            path, token = payload.split(b"\0")[:2]
            self._send(_WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")
        elif kind in (_WRITE, _MKDIR, _RM):
            name = _path(_text(payload.split(b"\0")[0]))
            self._fire(name)
            self.changed(name)

    def _fire(self, path: str) -> None:
        for name, token in self._watches:
            watched = _path(name)
            if path == watched or path.startswith(watched + "/"):
                shown = path if name.startswith("/") else path.removeprefix(HOME + "/")
                try:
                    self._send(_WATCH_EVENT, 0, 0, f"{shown}\0{token}\0".encode())
                except RingError as problem:
                    self._cut_off(problem)
                    return

    def _carry_out(self, kind: int, payload: bytes) -> bytes:
        first, separator, rest = payload.partition(b"\0")
        if kind == _TRANSACTION_START:
            self._transactions = self._transactions % 0xFFFF_FFFF + 1
            return b"%d\0" % self._transactions
        if kind == _TRANSACTION_END:
            return b"OK\0"
        if kind == _GET_DOMAIN_PATH:
            return HOME.encode() + b"\0"
        if not separator:
            raise _Failed("EINVAL")
        name = _text(first)
        path = _path(name)
        if kind == _READ:
            if path not in self._nodes:
                raise _Failed("ENOENT")
            return self._nodes[path]
        if kind == _DIRECTORY:
            return self._children(path)
        if kind == _GET_PERMISSIONS:
            return b"b1\0"
        if kind == _SET_PERMISSIONS:
            return b"OK\0"
        if kind in (_WRITE, _MKDIR):
            self._put(path, rest if kind == _WRITE else self._nodes.get(path, b""))
            return b"OK\0"
        if kind == _RM:
            for known in [node for node in self._nodes if node == path or node.startswith(path + "/")]:
                del self._nodes[known]
            return b"OK\0"
        if kind in (_WATCH, _UNWATCH):
            return self._watch(kind, name, _text(rest.partition(b"\0")[0]))
        raise _Failed("ENOSYS")

    def _children(self, path: str) -> bytes:
        below = path.rstrip("/") + "/"
        names = {node[len(below) :].split("/")[0] for node in self._nodes if node.startswith(below)}
        if not names and path not in self._nodes:
            raise _Failed("ENOENT")
        answer = "".join(f"{name}\0" for name in sorted(names)).encode()
        if len(answer) > _LONGEST:
            raise _Failed("E2BIG")
        return answer

    def _put(self, path: str, value: bytes) -> None:
        if not path.startswith(HOME + "/"):
            raise _Failed("EACCES")
        if len(value) > _LONGEST_VALUE:
            raise _Failed("ENOSPC")
        if path not in self._nodes and len(self._nodes) >= _MOST_NODES:
            raise _Failed("EQUOTA")
        self._nodes[path] = value

    def _watch(self, kind: int, name: str, token: str) -> bytes:
        if kind == _UNWATCH:
            if self._watches.pop((name, token), 0) == 0:
                raise _Failed("ENOENT")
            return b"OK\0"
        if (name, token) in self._watches:
            raise _Failed("EEXIST")
        if len(self._watches) >= _MOST_WATCHES:
            raise _Failed("EQUOTA")
        self._watches[name, token] = None
        return b"OK\0"


def _text(name: bytes) -> str:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise _Failed("EINVAL") from None


def _path(name: str) -> str:
    path = name if name.startswith("/") else f"{HOME}/{name}"
    if len(path) > _LONGEST_NAME or "//" in path or not name or (path.endswith("/") and path != "/"):
        raise _Failed("EINVAL")
    return path
