"""What a connected gdb may ask of a guest that is held: one packet in, one reply out.

Addresses are linear, but gdb is shown EIP, so that the two agree only while CS has base 0. There are no watchpoints
yet. Spec: Debugging with GDB, appendix E (Remote Protocol).
"""

import re
from binascii import unhexlify
from collections.abc import Callable, Iterator
from typing import Final, Literal

from hvemu.cpu.state import CS, VirtualCpu
from hvemu.machine.machine import Machine
from hvemu.memory.walk import walk
from hvemu.observers.gdb_link import PACKET_SIZE, GdbLink
from hvemu.observers.gdb_registers import SIZES, TARGET_XML, read_registers, write_register
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.outcomes import Stop

TRAPPED: Final = b"S05"
"""The stop reply after a step, a breakpoint, and when gdb connects."""
_OK: Final = b"OK"
_MAXIMUM_BYTES: Final = PACKET_SIZE // 2
_MAXIMUM_BREAKPOINTS: Final = 1000
_SOFTWARE, _HARDWARE = b"0", b"1"
_NAME: Final = re.compile(rb"[qQv][A-Za-z]*\??|.", re.DOTALL)


class GdbSession:
    """The conversation with one client."""

    def __init__(self, machine: Machine, link: GdbLink) -> None:
        self._machine, self.link = machine, link
        self.action: Literal["", "continue", "step", "detach"] = ""
        """How gdb let the guest go on; empty while it is held."""
        self._points: set[tuple[bytes, int]] = set()
        self._explains = False  # whether gdb wants to be told the kind of a breakpoint
        self._commands: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: TRAPPED,
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": self._read_memory,
            b"M": self._write_memory,
            b"X": self._write_binary,
            b"c": lambda rest: self._resume(rest, stepping=False),
            b"s": lambda rest: self._resume(rest, stepping=True),
            b"C": lambda rest: self._resume(rest.partition(b";")[2], stepping=False),
            b"S": lambda rest: self._resume(rest.partition(b";")[2], stepping=True),
            b"vCont": self._resume_threads,
            b"vCont?": lambda _: b"vCont;c;C;s;S",
            b"Z": lambda rest: self._change_point(rest, self._insert),
            b"z": lambda rest: self._change_point(rest, self._points.discard),
            b"H": lambda _: _OK,
            b"T": lambda rest: _OK if _number(rest) == 1 else b"E01",
            b"D": self._detach,
            b"k": self._kill,
            b"qSupported": self._supported,
            b"qXfer": self._transfer,
            b"qC": lambda _: b"QC1",
            b"qfThreadInfo": lambda _: b"m1",
            b"qsThreadInfo": lambda _: b"l",
            b"qAttached": lambda _: b"1",
            b"QStartNoAckMode": self._stop_acknowledging,
        }

    def breakpoint_reply(self) -> bytes:
        """The stop reply at a breakpoint, with its kind if gdb wants to know."""
        if not self._explains:
            return TRAPPED
        cpu = self._machine.registers()
        linear = (cpu.segments[CS].base + cpu.instruction_pointer) & 0xFFFF_FFFF
        return b"T05swbreak:;" if (_SOFTWARE, linear) in self._points else b"T05hwbreak:;"

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to the contents of one packet; None when it comes later, as the guest stops, or never."""
        match = _NAME.match(packet)
        handler = self._commands.get(match.group()) if match else None
        if match is None or handler is None:
            return b""
        try:
            return handler(packet[match.end() :])
        except ValueError:
            return b"E01"

    def _supported(self, rest: bytes) -> bytes:
        self._explains = b"swbreak+" in rest and b"hwbreak+" in rest
        return b"PacketSize=%x;qXfer:features:read+;swbreak+;hwbreak+;QStartNoAckMode+;vContSupported+" % PACKET_SIZE

    def _transfer(self, rest: bytes) -> bytes:
        what, _, piece = rest.rpartition(b":")
        if what != b":features:read:target.xml":
            return b""
        offset, length = map(_number, piece.split(b","))
        end = offset + length
        return (b"m" if end < len(TARGET_XML) else b"l") + TARGET_XML[offset:end]

    def _stop_acknowledging(self, _: bytes) -> bytes:
        self.link.acknowledging = False
        return _OK

    def _read_registers(self, _: bytes) -> bytes:
        values = zip(read_registers(self._machine.registers()), SIZES, strict=True)
        return b"".join(_hex(value, size) for value, size in values)

    def _read_register(self, rest: bytes) -> bytes:
        number = _number(rest)
        if number >= len(SIZES):
            raise ValueError(f"there is no register {number}")
        return _hex(read_registers(self._machine.registers())[number], SIZES[number])

    def _write_registers(self, rest: bytes) -> bytes:
        data = unhexlify(rest)
        if len(data) != sum(SIZES):
            raise ValueError("the registers have another size")
        cpu, at = self._machine.registers(), 0
        for number, size in enumerate(SIZES):
            write_register(cpu, number, data[at : at + size])
            at += size
        return self._enter(cpu)

    def _write_register(self, rest: bytes) -> bytes:
        number, value = rest.split(b"=")
        cpu = self._machine.registers()
        write_register(cpu, _number(number), unhexlify(value))
        return self._enter(cpu)

    def _enter(self, cpu: VirtualCpu) -> bytes:
        self._machine.mode.enter(cpu)
        return _OK

    def _read_memory(self, rest: bytes) -> bytes:
        """As much as is mapped: gdb asks again where a short answer ended."""
        address, length = map(_number, rest.split(b","))
        data = b""
        for at, size in _pages(address, min(length, _MAXIMUM_BYTES)):
            try:
                data += self._machine.read_memory(at, size)
            except ValueError:
                if not data:
                    raise
                break
        return data.hex().encode()

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, unhexlify(data))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(
            where, re.sub(rb"}(.)", lambda escaped: bytes([escaped[1][0] ^ 0x20]), data, flags=re.DOTALL)
        )

    def _store(self, where: bytes, data: bytes) -> bytes:
        """All or nothing; a page that the guest may only read is written all the same, as a debugger must."""
        address, length = map(_number, where.split(b","))
        if length != len(data):
            raise ValueError("the length is not that of the data")
        machine, pieces = self._machine, []
        paging = machine.registers().paging()
        for at, size in _pages(address, length):
            physical = walk(machine.memory, paging, at, mark=False)
            if not isinstance(physical, int) or physical + size > machine.memory.size:
                raise ValueError(f"there is no memory at {at:#010x}")
            pieces.append((physical, size))
        taken = 0
        for physical, size in pieces:
            machine.memory.write(physical, data[taken : taken + size])
            taken += size
        return _OK

    def _resume(self, address: bytes, *, stepping: bool) -> None:
        if address:
            cpu = self._machine.registers()
            cpu.instruction_pointer = _number(address)
            self._enter(cpu)
        points = frozenset(linear for _, linear in self._points)
        if points != self._machine.breakpoints:
            self._machine.breakpoints = points
        self.action = "step" if stepping else "continue"

    def _resume_threads(self, rest: bytes) -> None:
        """There is one thread, so that the first action is for it; signals do not exist here."""
        action = rest[1:2]
        if not rest.startswith(b";") or action not in (b"c", b"C", b"s", b"S"):
            raise ValueError("no such action")
        self._resume(b"", stepping=action in b"sS")

    def _change_point(self, rest: bytes, change: Callable[[tuple[bytes, int]], None]) -> bytes:
        kind, address, _ = rest.split(b",", 2)
        if kind not in (_SOFTWARE, _HARDWARE):
            return b""
        change((kind, _number(address)))
        return _OK

    def _insert(self, point: tuple[bytes, int]) -> None:
        if len(self._points) >= _MAXIMUM_BREAKPOINTS:
            raise ValueError("too many breakpoints")
        self._points.add(point)

    def _detach(self, _: bytes) -> bytes:
        self.action = "detach"
        return _OK

    def _kill(self, _: bytes) -> None:
        self._machine.stop = self._machine.stop or Stop(ExitStatus.POWER_OFF, "ended by gdb")


def _number(text: bytes) -> int:
    """Up to 32 bits in hexadecimal digits and nothing else; raises ValueError."""
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", text):
        raise ValueError("not a number in hexadecimal")
    return int(text, 16)


def _hex(value: bytes, size: int) -> bytes:
    return value.hex().encode() or b"xx" * size


def _pages(linear: int, length: int) -> Iterator[tuple[int, int]]:
    """The piece of each page in a linear range, which wraps around at 4 GiB."""
    while length > 0:
        size = min(length, PAGE_SIZE - linear % PAGE_SIZE)
        yield linear, size
        linear, length = (linear + size) & 0xFFFF_FFFF, length - size
