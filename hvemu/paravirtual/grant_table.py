"""The grant table: which of its frames the guest lets a back end use, and how. Version 1 of grant_table.h.

Entry ``n`` is eight bytes on pages that the guest may write at any time, so it is read once, checked, and not believed
again. A frame that is mapped for writing is somebody's writable page for as long as it is.
"""

import struct
from typing import Final, NamedTuple

from hvemu.memory.direct import DirectPaging, FrameType
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual.contract import GuestAccess
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.xen import Errno, HypercallError

_ENTRY: Final = struct.Struct("<HHI")
_SETUP: Final = struct.Struct("<HHIhHI")
_SIZE: Final = struct.Struct("<HHIIh")
_MOST_OPERATIONS: Final = 1024


class Mapping(NamedTuple):
    """A granted frame, in use. ``address`` is its machine address."""

    reference: int
    address: int
    writable: bool


class GrantError(Exception):
    """A grant cannot be used; ``status`` is what the guest would be told (GNTST)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"grant status {status}")
        self.status = status


class GrantTable:
    """One guest's grants to back ends, on the frames at machine addresses ``pages``."""

    def __init__(self, memory: GuestPhysicalMemory, paging: DirectPaging, pages: list[int]) -> None:
        self._memory, self._paging, self._pages = memory, paging, pages
        self._mapped: dict[int, list[int]] = {}  # reference -> readers and writers

    def reset(self) -> None:
        """Nothing is in use."""
        self._mapped.clear()

    @property
    def references(self) -> int:
        """How many entries there are."""
        return len(self._pages) * PAGE_SIZE // _ENTRY.size

    def _at(self, reference: int) -> int:
        page, offset = divmod(reference * _ENTRY.size, PAGE_SIZE)
        return self._pages[page] + offset

    def map(self, reference: int, *, write: bool) -> Mapping:
        """Use a frame that the guest grants; raises GrantError."""
        if not 0 <= reference < self.references:
            raise GrantError(xen.GNTST_BAD_GNTREF)
        at = self._at(reference)
        flags, domain, frame = _ENTRY.unpack(self._memory.read(at, _ENTRY.size))
        if flags & xen.GTF_TYPE_MASK != xen.GTF_PERMIT_ACCESS or domain != xen.DOMID_BACKEND:
            raise GrantError(xen.GNTST_GENERAL_ERROR)
        if write and flags & xen.GTF_READONLY:
            raise GrantError(xen.GNTST_GENERAL_ERROR)
        if not self._paging.is_guests(frame):
            raise GrantError(xen.GNTST_BAD_PAGE)
        try:
            if write:
                self._paging.get_type(frame, FrameType.WRITABLE)
            self._paging.get(frame)
        except HypercallError:
            raise GrantError(xen.GNTST_BAD_PAGE) from None
        counts = self._mapped.setdefault(reference, [0, 0])
        counts[write] += 1
        self._mark(reference)
        return Mapping(reference, frame << PAGE_SHIFT, write)

    def unmap(self, mapping: Mapping) -> None:
        """Use it no longer."""
        frame = mapping.address >> PAGE_SHIFT
        if mapping.writable:
            self._paging.put_type(frame)
        self._paging.put(frame)
        self._mapped[mapping.reference][mapping.writable] -= 1
        self._mark(mapping.reference)

    def _mark(self, reference: int) -> None:
        """Show the guest whether an entry is in use."""
        at, (readers, writers) = self._at(reference), self._mapped[reference]
        flags = int.from_bytes(self._memory.read(at, 2), "little") & ~(xen.GTF_READING | xen.GTF_WRITING)
        if readers or writers:
            flags |= xen.GTF_READING
        if writers:
            flags |= xen.GTF_WRITING
        self._memory.write(at, struct.pack("<H", flags))

    # ------------------------------------------------------------------ grant_table_op

    def operate(self, command: int, argument: int, count: int, guest: GuestAccess) -> int:
        """``count`` structures at linear address ``argument``; each gets its status."""
        if count > _MOST_OPERATIONS:
            raise HypercallError(Errno.E2BIG)
        if command == xen.GNTTAB_SETUP_TABLE:
            for index in range(count):
                self._set_up(argument + index * _SETUP.size, guest)
        elif command == xen.GNTTAB_QUERY_SIZE:
            for index in range(count):
                self._query(argument + index * _SIZE.size, guest)
        elif command in (xen.GNTTAB_MAP_GRANT_REF, xen.GNTTAB_UNMAP_GRANT_REF):
            # Nobody grants this guest anything
            size, at, status = (32, 16, xen.GNTST_BAD_DOMAIN) if command == xen.GNTTAB_MAP_GRANT_REF else (
                24, 20, xen.GNTST_GENERAL_ERROR
            )  # fmt: skip
            for index in range(count):
                guest.read(argument + index * size, size)
                guest.write(argument + index * size + at, struct.pack("<h", status))
        else:
            raise HypercallError(Errno.ENOSYS)
        return 0

    def _set_up(self, at: int, guest: GuestAccess) -> None:
        domain, _, wanted, _, _, frames = _SETUP.unpack(guest.read(at, _SETUP.size))
        status = xen.GNTST_OKAY
        if domain != xen.DOMID_SELF:
            status = xen.GNTST_PERMISSION_DENIED
        elif wanted > len(self._pages):
            status = xen.GNTST_GENERAL_ERROR
        else:
            numbers = [address >> PAGE_SHIFT for address in self._pages[:wanted]]
            guest.write(frames, struct.pack(f"<{wanted}I", *numbers))
        guest.write(at + 8, struct.pack("<h", status))

    def _query(self, at: int, guest: GuestAccess) -> None:
        domain, *_ = _SIZE.unpack(guest.read(at, _SIZE.size))
        if domain != xen.DOMID_SELF:
            guest.write(at + 12, struct.pack("<h", xen.GNTST_PERMISSION_DENIED))
            return
        frames = len(self._pages)
        guest.write(at + 4, struct.pack("<IIh", frames, frames, xen.GNTST_OKAY))
