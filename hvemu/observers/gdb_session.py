"""What a connected gdb may ask of a guest that is held: one packet in, one reply out.

Addresses are linear, but gdb is shown EIP, so that the two agree only while CS has base 0. There are no watchpoints
yet. gdb is told once which registers there are: those of 64 bits for a 64-bit kernel, and for a guest that is in long
mode when gdb asks. Spec: Debugging with GDB, appendix E (Remote Protocol).
"""

import re
from binascii import unhexlify
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Final, Literal

from hvemu.cpu.state import VirtualCpu
from hvemu.machine.machine import Machine
from hvemu.memory.walk import walk
from hvemu.observers.gdb_link import PACKET_SIZE, GdbLink
from hvemu.observers.gdb_registers import AMD64, I386, RegisterFile
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.outcomes import Stop
from hvemu.vocabulary.paging import EFER_LMA, LINEAR_MASK, canonical

TRAPPED: Final = b"S05"
"""The stop reply after a step, a breakpoint, and when gdb connects."""
_OK: Final = b"OK"
_MAXIMUM_BYTES: Final = PACKET_SIZE // 2
_MOST_SAID: Final = 1 << 16
_MAXIMUM_BREAKPOINTS: Final = 1000
_SOFTWARE, _HARDWARE = b"0", b"1"
_REGISTERS: Final = frozenset({b"g", b"G", b"p", b"P"})
_LONG_MODE: Final = b"E.the guest has gone to long mode: disconnect, and connect again for the registers of 64 bits"
_NAME: Final = re.compile(rb"[qQv][A-Za-z]*\??|.", re.DOTALL)


class GdbSession:
    """The conversation with one client."""

    def __init__(self, machine: Machine, link: GdbLink, *, monitor: Callable[[str], str] | None = None) -> None:
        self._machine, self.link, self._monitor = machine, link, monitor
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
            b"qRcmd": self._obey_monitor,
            b"QStartNoAckMode": self._stop_acknowledging,
        }

    @cached_property
    def _registers(self) -> RegisterFile:
        machine = self._machine
        return AMD64 if machine.is_64_bit_kernel or machine.registers().efer & EFER_LMA else I386

    def breakpoint_reply(self) -> bytes:
        """The stop reply at a breakpoint, with its kind if gdb wants to know."""
        if not self._explains:
            return TRAPPED
        cpu = self._machine.registers()
        return b"T05swbreak:;" if (_SOFTWARE, cpu.linear_ip()) in self._points else b"T05hwbreak:;"

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to the contents of one packet; None when it comes later, as the guest stops, or never."""
        match = _NAME.match(packet)
        handler = self._commands.get(match.group()) if match else None
        if match is None or handler is None:
            return b""
        if match.group() in _REGISTERS and not self._registers.shows(self._machine.registers()):
            return _LONG_MODE
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
        end, description = offset + length, self._registers.description
        return (b"m" if end < len(description) else b"l") + description[offset:end]

    def _obey_monitor(self, rest: bytes) -> bytes:
        """What the monitor says goes before the answer, in pieces that fit."""
        if self._monitor is None or not rest.startswith(b","):
            return b""
        said = self._monitor(unhexlify(rest[1:]).decode("utf-8", "replace")).encode()
        if len(said) > _MOST_SAID:
            said = said[:_MOST_SAID] + b"\n... and more\n"
        for start in range(0, len(said), _MAXIMUM_BYTES - 1):
            self.link.send(b"O" + said[start : start + _MAXIMUM_BYTES - 1].hex().encode())
        return _OK

    def _stop_acknowledging(self, _: bytes) -> bytes:
        self.link.acknowledging = False
        return _OK

    def _read_registers(self, _: bytes) -> bytes:
        registers = self._registers
        values = zip(registers.read(self._machine.registers()), registers.sizes, strict=True)
        return b"".join(_hex(value, size) for value, size in values)

    def _read_register(self, rest: bytes) -> bytes:
        number, registers = _number(rest), self._registers
        if number >= len(registers.sizes):
            raise ValueError(f"there is no register {number}")
        return _hex(registers.read(self._machine.registers())[number], registers.sizes[number])

    def _write_registers(self, rest: bytes) -> bytes:
        data, registers = unhexlify(rest), self._registers
        if len(data) != sum(registers.sizes):
            raise ValueError("the registers have another size")
        cpu, at = self._machine.registers(), 0
        for number, size in enumerate(registers.sizes):
            registers.write(cpu, number, data[at : at + size])
            at += size
        return self._enter(cpu)

    def _write_register(self, rest: bytes) -> bytes:
        number, value = rest.split(b"=")
        cpu = self._machine.registers()
        self._registers.write(cpu, _number(number), unhexlify(value))
        return self._enter(cpu)

    def _enter(self, cpu: VirtualCpu) -> bytes:
        self._machine.mode.enter(cpu)
        return _OK

    def _read_memory(self, rest: bytes) -> bytes:
        """As much as is mapped: gdb asks again where a short answer ended."""
        address, length = self._range(rest)
        data = b""
        for at, size in _pages(address, min(length, _MAXIMUM_BYTES), self._last()):
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
        address, length = self._range(where)
        if length != len(data):
            raise ValueError("the length is not that of the data")
        machine, pieces = self._machine, []
        paging = machine.registers().paging()
        for at, size in _pages(address, length, self._last()):
            physical = walk(machine.memory, paging, at, mark=False)
            if not isinstance(physical, int) or physical + size > machine.memory.size:
                raise ValueError(f"there is no memory at {at:#010x}")
            pieces.append((physical, size))
        taken = 0
        for physical, size in pieces:
            machine.memory.write(physical, data[taken : taken + size])
            taken += size
        return _OK

    def _last(self) -> int:
        """The last linear address that there is now."""
        return LINEAR_MASK if self._machine.registers().efer & EFER_LMA else 0xFFFF_FFFF

    def _address(self, text: bytes) -> int:
        """A linear address; raises ValueError. A breakpoint may be for later, when the guest is in long mode."""
        address = _number(text, 16 if self._registers is AMD64 else 8)
        if not canonical(address):
            raise ValueError("not a canonical address")
        return address

    def _range(self, text: bytes) -> tuple[int, int]:
        address, length = text.split(b",")
        return self._address(address), _number(length)

    def _resume(self, address: bytes, *, stepping: bool) -> None:
        if address:
            cpu = self._machine.registers()
            cpu.instruction_pointer = self._address(address)
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
        change((kind, self._address(address)))
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


def _number(text: bytes, digits: int = 8) -> int:
    """Up to so many hexadecimal digits and nothing else; raises ValueError."""
    if len(text) > digits or not re.fullmatch(rb"[0-9A-Fa-f]+", text):
        raise ValueError("not a number in hexadecimal")
    return int(text, 16)


def _hex(value: bytes, size: int) -> bytes:
    return value.hex().encode() or b"xx" * size


def _pages(linear: int, length: int, last: int) -> Iterator[tuple[int, int]]:
    """The piece of each page in a linear range, which wraps around after the last address."""
    while length > 0:
        size = min(length, PAGE_SIZE - linear % PAGE_SIZE)
        yield linear, size
        linear, length = (linear + size) & last, length - size
