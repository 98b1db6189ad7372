"""Paravirtual kernels: an ELF file with Xen's notes, started as the domain builder starts it.

The guest gets its memory as pseudo-physical pages 0 to N-1, each on a machine frame; page tables that map them from
VIRT_BASE on, full of machine frames; the list of its frames; and start_info. See xen.h and elfnote.h.
"""

import struct
from typing import Final, NamedTuple

from hvemu.cpu.state import CS, ESI, ESP, Segment, VirtualCpu
from hvemu.loader import elf
from hvemu.loader.contract import BootRequest
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.paging import CR0_ET, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_NXE

_NUMBERS: Final = frozenset({xen.NOTE_ENTRY, xen.NOTE_HYPERCALL_PAGE, xen.NOTE_VIRT_BASE, xen.NOTE_PADDR_OFFSET})
_HINT: Final = "Build it as a 32-bit PAE kernel with Xen's ELF notes, as guests/17_processes is."
_READ_ONLY, _WRITABLE, _TABLE = 0x21, 0x23, 0x27
"""Present and accessed, as the domain builder's L1_PROT and L2_PROT are: leaves are the kernel's alone."""
_TABLE_SPAN: Final = 1 << 21
_SPARE: Final = 512 << 10
LONGEST_COMMAND_LINE: Final = 1023
"""Bytes, so that a zero follows in start_info."""
_ALIGNMENT: Final = 4 << 20
_START_INFO: Final = struct.Struct("<32sIIIIIIIIIIII1024sII")


class XenNotes(NamedTuple):
    """What a kernel says about itself."""

    entry: int
    hypercall_page: int | None
    base: int
    offset: int


class Layout(NamedTuple):
    """Where the domain builder has put things; pseudo-physical page numbers."""

    store: int
    console: int
    tables: range
    start_info: int
    hypercall_page: int | None
    """Linear address."""


def read_notes(image: bytes, name: str) -> XenNotes | None:
    """The notes of an ELF file, or None if it is no paravirtual kernel; raises UserError for a 64-bit or broken one."""
    found: dict[int, bytes] = {}
    for segment in elf.program_headers(image, name)[0]:
        if segment.kind != elf.NOTE:
            continue
        at, end = segment.offset, min(segment.offset + segment.file_size, len(image))
        while at + 12 <= end:
            name_size, size, number = struct.unpack_from("<III", image, at)
            start = at + 12 + (name_size + 3 & ~3)
            if image[at + 12 : at + 12 + name_size].rstrip(b"\0") == b"Xen":
                found[number] = image[start : start + size]  # may end beyond its segment, as GRUB's last one does
            at = start + (size + 3 & ~3)
    if not found:
        return None
    values = {number: int.from_bytes(found[number][:4], "little") for number in _NUMBERS if number in found}
    if xen.NOTE_ENTRY not in values:
        raise UserError(f"{name} has Xen's notes but no entry point", _HINT)
    if not found.get(xen.NOTE_PAE_MODE, b"").lower().startswith((b"yes", b"bimodal")):
        raise UserError(f"{name} has Xen's notes, but none that says PAE, which is all that hvemu offers", _HINT)
    return XenNotes(
        values[xen.NOTE_ENTRY],
        values.get(xen.NOTE_HYPERCALL_PAGE),
        values.get(xen.NOTE_VIRT_BASE, 0),
        values.get(xen.NOTE_PADDR_OFFSET, values.get(xen.NOTE_VIRT_BASE, 0)),
    )


def is_xen_guest(image: bytes, name: str) -> bool:
    """Whether this is an ELF file with Xen's notes."""
    return image[:4] == b"\x7fELF" and read_notes(image, name) is not None


class DomainBuilder:
    """Lays out one guest in ``memory``, whose machine frames ``frames`` are its pages, in order."""

    def __init__(self, memory: GuestPhysicalMemory, frames: range, request: BootRequest) -> None:
        self._memory, self._frames, self._request = memory, frames, request
        notes = read_notes(request.image, request.image_name)
        if notes is None:
            raise UserError(f"{request.image_name} has no Xen notes", _HINT)
        self._notes = notes

    def build(self, shared_info: int, store_port: int, console_port: int) -> tuple[VirtualCpu, Layout]:
        """Place everything; ``shared_info`` is a machine address. Returns the CPU at its first instruction."""
        notes = self._notes
        end = self._place_kernel()
        modules = end
        end = self._place(end, self._request.initrd)
        list_at = end
        end = self._place(end, struct.pack(f"<{len(self._frames)}I", *self._frames))
        start_info, store, console = (end >> PAGE_SHIFT) + 0, (end >> PAGE_SHIFT) + 1, (end >> PAGE_SHIFT) + 2
        tables = console + 1
        count, mapped = self._table_count(tables)
        stack = tables + count
        if mapped > xen.HYPERVISOR_START:
            where = f"from {notes.base:#x} on there is not enough room below the hypervisor"
            raise UserError(f"{self._request.image_name} cannot be mapped: {where}", "Give it a lower VIRT_BASE.")
        if (stack + 1) << PAGE_SHIFT > len(self._frames) << PAGE_SHIFT:
            raise UserError(f"{self._request.image_name} does not fit into memory", "Start with more --memory.")
        layout = Layout(store, console, range(tables, tables + count), start_info, notes.hypercall_page)
        self._map(layout.tables, mapped)
        text = self._request.append.encode()[:LONGEST_COMMAND_LINE]
        initrd = self._request.initrd
        self._write(
            start_info << PAGE_SHIFT,
            _START_INFO.pack(
                xen.START_INFO_MAGIC,
                len(self._frames),
                shared_info,
                0,
                self._frames[store],
                store_port,
                self._frames[console],
                console_port,
                self._linear(tables),
                count,
                notes.base + list_at,
                notes.base + modules if initrd else 0,
                len(initrd),
                text,
                0,
                0,
            ),
        )
        cpu = VirtualCpu(
            instruction_pointer=notes.entry,
            flags=2,
            cr0=CR0_PE | CR0_ET | CR0_WP | CR0_PG,
            cr3=self._frames[tables] << PAGE_SHIFT,
            cr4=CR4_PAE,
            efer=EFER_NXE,
        )
        cpu.segments = [Segment(xen.FLAT_RING1_DS, 0, 0xFFFF_FFFF, 0x00CF_B300 & 0xF0_FF00)] * 6
        cpu.segments[CS] = Segment(xen.FLAT_RING1_CS, 0, 0xFFFF_FFFF, 0x00CF_BB00 & 0xF0_FF00)
        cpu.set_gpr(ESI, self._linear(start_info))
        cpu.set_gpr(ESP, self._linear(stack + 1))
        return cpu, layout

    def machine_address(self, linear: int) -> int:
        """Where an address of the kernel's image is; raises UserError."""
        page, offset = divmod(linear - self._notes.base, PAGE_SIZE)
        if not 0 <= page < len(self._frames):
            raise UserError(f"{self._request.image_name} wants its hypercall page outside memory", _HINT)
        return (self._frames[page] << PAGE_SHIFT) + offset

    def _linear(self, page: int) -> int:
        return self._notes.base + (page << PAGE_SHIFT)

    def _write(self, address: int, data: bytes) -> None:
        """At a pseudo-physical address."""
        while data:
            page, offset = divmod(address, PAGE_SIZE)
            part = data[: PAGE_SIZE - offset]
            self._memory.write((self._frames[page] << PAGE_SHIFT) + offset, part)
            address, data = address + len(part), data[len(part) :]

    def _place(self, address: int, data: bytes) -> int:
        end = address + len(data)
        if end > (len(self._frames) - 8) << PAGE_SHIFT:
            raise UserError(f"{self._request.image_name} does not fit into memory", "Start with more --memory.")
        self._write(address, data)
        return (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)

    def _place_kernel(self) -> int:
        end, name = 0, self._request.image_name
        for segment in elf.load_segments(self._request.image, name)[0]:
            address = segment.physical
            if address >= self._notes.offset:
                address -= self._notes.offset
            if address < 0 or address + segment.memory_size > len(self._frames) << PAGE_SHIFT:
                raise UserError(
                    f"{name} wants memory up to {address + segment.memory_size:#x}", "Start with more --memory."
                )
            data = elf.content(segment, self._request.image, name)
            end = max(end, self._place(address, data), address + segment.memory_size)
        return (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)

    def _table_count(self, tables: int) -> tuple[int, int]:
        """How many page tables map everything, themselves and the boot stack included; and up to where."""
        count = 4
        while True:
            end = self._linear(tables + count + 1) + _SPARE
            mapped = (end + _ALIGNMENT - 1) & ~(_ALIGNMENT - 1)
            pages = -(-mapped // _TABLE_SPAN) - self._notes.base // _TABLE_SPAN
            directories = len(range(self._notes.base >> 30, (mapped - 1 >> 30) + 1))
            wanted = 1 + directories + pages
            if wanted <= count:
                return count, mapped
            count = wanted

    def _map(self, tables: range, mapped: int) -> None:
        """The initial tables: all of memory from VIRT_BASE to ``mapped``, tables themselves read-only."""
        base, frames = self._notes.base, self._frames
        top, free = frames[tables[0]] << PAGE_SHIFT, iter(tables[1:])
        below: dict[int, int] = {}

        def table(at: int, flags: int) -> int:
            found = below.get(at)
            if found is None:
                found = below[at] = frames[next(free)] << PAGE_SHIFT
                self._memory.write(at, struct.pack("<Q", found | flags))
            return found

        for linear in range(base, mapped, PAGE_SIZE):
            page = (linear - base) >> PAGE_SHIFT
            if page >= len(frames):
                break
            directory = table(top + 8 * (linear >> 30), 1)
            leaf = table(directory + 8 * (linear >> 21 & 511), _TABLE)
            entry = frames[page] << PAGE_SHIFT | (_READ_ONLY if page in tables else _WRITABLE)
            self._memory.write(leaf + 8 * (linear >> 12 & 511), struct.pack("<Q", entry))
