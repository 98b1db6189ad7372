"""One paravirtual guest as its hypervisor knows it: its frames, its shared pages, its channels, its devices."""

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvemu.devices.contract import CharacterBackend, Clock
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.memory.direct import DirectPaging, Owner
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT
from hvemu.paravirtual.console import Console
from hvemu.paravirtual.contract import GuestAccess, ParavirtualCpu
from hvemu.paravirtual.event_channels import EventChannels
from hvemu.paravirtual.grant_table import GrantTable
from hvemu.paravirtual.hypercalls import Hypercalls
from hvemu.paravirtual.pvclock import time_info
from hvemu.paravirtual.scsi_back import ScsiBackEnd
from hvemu.paravirtual.store import Store
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.paging import PagingRegisters

_GRANT_FRAMES: Final = 4
_ENTRIES: Final = PAGE_SIZE // 8
_WORDS: Final = PAGE_SIZE // 4
_STUB: Final = 32


@dataclass(frozen=True)
class DomainServices:
    """What a domain is given by its host. ``wall_clock``: seconds since 1970 at power-on."""

    clock: Clock
    console: CharacterBackend
    debug_console: CharacterBackend
    name: str
    wall_clock: int
    power_off: Callable[[], None]
    reboot: Callable[[], None]
    drives: ScsiBus | None = None
    """What its paravirtual SCSI adapter leads to, if it has one."""


class Domain:
    """The guest on machine frames ``frames``; ``pool`` has the hypervisor's."""

    def __init__(
        self,
        memory: GuestPhysicalMemory,
        pool: FramePool,
        frames: range,
        cpu: ParavirtualCpu,
        registers: Callable[[], PagingRegisters],
        paging: DirectPaging,
        services: DomainServices,
    ) -> None:
        self.memory, self.frames, self.paging, self.services = memory, frames, paging, services
        self.shared_info = pool.take()
        self._grant_pages = [pool.take() for _ in range(_GRANT_FRAMES)]
        self._translation_pages = self._map_machine_to_physical(pool)
        guest = GuestAccess(memory, registers)
        self.events = EventChannels(memory, self.shared_info)
        self.grants = GrantTable(memory, paging, self._grant_pages)
        self.hypercalls = Hypercalls(
            cpu, guest, paging, self.events, self.grants, services.clock, services.debug_console.write
        )
        self.console: Console | None = None
        self.store: Store | None = None
        self.scsi: ScsiBackEnd | None = None
        self.store_port = self.console_port = 0
        self.warn: Callable[[str], None] = lambda text: None
        paging.told = self._tell

    def _map_machine_to_physical(self, pool: FramePool) -> list[int]:
        """The table from machine frames to the guest's, at the start of the hypervisor's part of the address space."""
        frames = self.paging.frames
        pages = [pool.take() for _ in range(-(-frames // _WORDS))]
        entries = []
        for start in range(0, len(pages), _ENTRIES):
            table = pool.take()
            bits = PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY | PTE_NX
            values = [page | bits for page in pages[start : start + _ENTRIES]]
            self.memory.write(table, struct.pack(f"<{len(values)}Q", *values))
            entries.append(table | PTE_PRESENT | PTE_ACCESSED)
        self.paging.top_entries = struct.pack(f"<{len(entries)}Q", *entries)
        return pages

    def _tell(self, frame: int, pfn: int) -> None:
        page, index = divmod(frame, _WORDS)
        self.memory.write(self._translation_pages[page] + 4 * index, struct.pack("<I", pfn))

    def power_on(self) -> None:
        """All frames are the guest's and empty; the shared pages say so, and what time it is."""
        paging, memory = self.paging, self.memory
        if self.scsi is not None:
            self.scsi.reset()
        paging.reset()
        self.events.reset()
        self.grants.reset()
        self.hypercalls.reset()
        paging.own(self.frames, Owner.GUEST)
        for page in (self.shared_info, *self._grant_pages):
            memory.write(page, bytes(PAGE_SIZE))
            paging.own(range(page >> PAGE_SHIFT, (page >> PAGE_SHIFT) + 1), Owner.SHARED)
        start = self.frames.start
        paging.machine_to_physical[start : self.frames.stop] = array("I", range(len(self.frames)))
        words = paging.machine_to_physical.tobytes()
        for index, page in enumerate(self._translation_pages):
            memory.write(page, words[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
        memory.write(self.shared_info + xen.EVENT_MASK, b"\xff" * (xen.EVENT_CHANNELS // 8))
        memory.write(self.shared_info + xen.UPCALL_MASK, b"\1")
        memory.write(self.shared_info + xen.VCPU_TIME, time_info(2, counter=0, nanoseconds=0))
        memory.write(self.shared_info + xen.WALL_CLOCK, struct.pack("<III", 2, self.services.wall_clock, 0))
        self.console_port, self._raise_console = self.events.connect(self._console_notified)
        self.store_port, self._raise_store = self.events.connect(self._store_notified)

    def attach(self, console_page: int, store_page: int, hypercall_page: int | None) -> None:
        """The domain builder has placed these, by their machine addresses."""
        self.store = Store(self.memory, store_page)
        self.store.notify = self._raise_store
        self.store.warn = lambda text: self.warn(text)
        self.store.write("domid", b"1")
        self.store.write("name", self.services.name.encode())
        if self.services.drives is not None:
            self.scsi = ScsiBackEnd(
                self.services.drives, self.memory, self.grants, self.events, self.store, self.services.clock
            )
            self.scsi.warn = lambda text: self.warn(text)
            self.scsi.announce()
            self.store.changed = self.scsi.changed
        self.console = Console(self.memory, console_page, self.services.console)
        self.console.notify = self._raise_console
        self.console.warn = lambda text: self.warn(text)
        if hypercall_page is not None:
            self.memory.write(hypercall_page, hypercall_stubs())

    def quiesce(self) -> None:
        """Complete what is in flight."""
        if self.scsi is not None:
            self.scsi.quiesce()

    def _console_notified(self) -> None:
        if self.console is not None:
            self.console.notified()

    def _store_notified(self) -> None:
        if self.store is not None:
            self.store.notified()

    def set_balloon(self, size: int) -> None:
        """Ask the guest to make do with so many bytes of memory, or to take back what it has given away."""
        if self.store is not None:
            self.store.write("memory/target", b"%d" % (size >> 10))

    def balloon_target(self) -> int:
        """What it was asked for last; all of its memory at first."""
        target = self.store.read("memory/target") if self.store is not None else None
        return len(self.frames) << PAGE_SHIFT if target is None else int(target) << 10

    def balloon(self) -> int:
        """How many bytes of memory the guest has now."""
        return self.paging.owner.count(Owner.GUEST) << PAGE_SHIFT

    def receive(self, data: bytes) -> None:
        """Bytes arrive at the guest's console."""
        if self.console is not None:
            self.console.receive(data)


def hypercall_stubs() -> bytes:
    """The page that guests call: MOV EAX, number; INT 82h; RET. That of iret pushes EAX first and never returns."""
    page = bytearray()
    for number in range(PAGE_SIZE // _STUB):
        if number == xen.Hypercall.IRET:
            stub = b"\x50\xb8" + struct.pack("<I", number) + bytes([0xCD, xen.HYPERCALL_VECTOR])
        else:
            stub = b"\xb8" + struct.pack("<I", number) + bytes([0xCD, xen.HYPERCALL_VECTOR, 0xC3])
        page += stub.ljust(_STUB, b"\xcc")
    return bytes(page)
