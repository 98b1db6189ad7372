"""Guest-physical memory: what devices, loaders and the VMM read and write.

Reads outside RAM give ones, writes outside RAM are dropped, as on a bus that nobody answers. A write tells the
listener, so that translated code of that frame is forgotten. The p2m of a VM, which machine frame holds which
guest-physical page, is one extent: it does not start at machine address 0, where the hypervisor keeps its own pages.
"""

import struct
from collections.abc import Callable

from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GuestPhysicalMemory:
    """RAM from guest-physical 0 to ``size``; all of ``machine`` from machine address ``base`` on unless told."""

    def __init__(self, machine: MachineMemory, base: int = 0, size: int | None = None) -> None:
        self.machine = machine
        self.base = base
        self.size = machine.size - base if size is None else size
        self.view = machine.view[base : base + self.size]
        self.host_address = machine.host_address + base
        """Where RAM lies in this process; for the engine's memory map only."""
        self.code_frames: set[int] = set()
        """Frames the CPU has translated code from; a write to one must be told to the engine."""
        self.forget_code: Callable[[], None] = lambda: None
        self.watched_frames: set[int] = set()
        """Frames whose writes by devices and the VMM ``on_watched_write`` must hear of, such as page tables."""
        self.on_watched_write: Callable[[int, int, int], None] = lambda frame, offset, length: None
        self.dirty_frames: set[int] | None = None
        """Where to note what devices and the VMM write; None while nobody logs."""

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes; what lies outside RAM reads as ones."""
        end = address + length
        if end <= self.size:
            return bytes(self.view[address:end])
        inside = bytes(self.view[address : self.size]) if address < self.size else b""
        return inside + b"\xff" * (length - len(inside))

    def write(self, address: int, data: bytes) -> None:
        """Store ``data``; what lies outside RAM is dropped."""
        end = address + len(data)
        if end > self.size:
            data = data[: max(0, self.size - address)]
            end = address + len(data)
            if not data:
                return
        self.view[address:end] = data
        code, watched, dirty = self.code_frames, self.watched_frames, self.dirty_frames
        if code or watched or dirty is not None:
            for frame in range(address >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1):
                if frame in code:
                    code.clear()
                    self.forget_code()
                if dirty is not None:
                    dirty.add(frame)
                if frame in watched:
                    start = max(address, frame << PAGE_SHIFT)
                    stop = min(end, (frame + 1) << PAGE_SHIFT)
                    self.on_watched_write(frame, start & (PAGE_SIZE - 1), stop - start)

    def machine_frame(self, frame: int) -> int:
        """The p2m: the machine frame behind a guest frame, which must be RAM."""
        return (self.base >> PAGE_SHIFT) + frame

    def clear(self) -> None:
        """All zeros, as after power-on."""
        self.machine.clear(self.base, self.size)

    def read_u32(self, address: int) -> int:
        """A little-endian doubleword; ones outside RAM."""
        if address + 4 <= self.size:
            return int(_U32.unpack_from(self.view, address)[0])
        return int.from_bytes(self.read(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """A little-endian quadword; ones outside RAM."""
        if address + 8 <= self.size:
            return int(_U64.unpack_from(self.view, address)[0])
        return int.from_bytes(self.read(address, 8), "little")

    descriptor = read_u64
    """A segment or gate descriptor; a name of its own for those who watch."""

    def set_bits_u32(self, address: int, bits: int) -> None:
        """Set bits of a doubleword in RAM; how the walker marks accessed and dirty."""
        if address + 4 <= self.size:
            _U32.pack_into(self.view, address, _U32.unpack_from(self.view, address)[0] | bits)
            if self.dirty_frames is not None:
                self.dirty_frames.add(address >> PAGE_SHIFT)
