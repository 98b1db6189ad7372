"""A medium in its drive: bytes on a BlockBackend, the tray, and START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL.

Reads and writes are in logical blocks, inside the medium; what the backend raises becomes sense data here.
Spec: SBC-3 5.24 (START STOP UNIT), SPC-4 6.14 / SBC-3 5.13 (PREVENT ALLOW), SBC-3 4.7 and 4.18 (errors).
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.scsi.identity import Identity
from hvemu.devices.scsi.modes import ModePage
from hvemu.devices.scsi.operations import Access, Request, operation
from hvemu.devices.scsi.sense import CheckCondition, Sense, invalid_cdb_field
from hvemu.devices.scsi.unit import Unit, medium_removal_prevented, not_ready
from hvemu.vocabulary.scsi import AdditionalSense, Opcode, SenseKey

PIECE: Final = 1 << 20
"""Bytes that are in memory at once while a long stretch is written or compared."""
_MOST_PREVENTING: Final = 256


class MediumUnit(Unit):
    """``medium`` is None in an empty drive. Only a removable one has a tray that opens."""

    def __init__(
        self, medium: BlockBackend | None, identity: Identity, pages: tuple[ModePage, ...], *, block_size: int
    ) -> None:
        super().__init__(identity, pages)
        if block_size < 512 or block_size & block_size - 1:
            raise ValueError(f"blocks have a power of two of at least 512 bytes, not {block_size}")
        if medium is None and not identity.removable:
            raise ValueError("only a removable medium can be missing")
        self._inside = medium
        self.block_size = block_size
        self.tray_open = False
        self.stopped = False
        self._preventing: set[str] = set()
        self._known_blocks = self.blocks

    # The medium

    @property
    def medium(self) -> BlockBackend | None:
        """What can be read; None in an empty drive or with the tray open."""
        return None if self.tray_open else self._inside

    @property
    def loaded(self) -> BlockBackend:
        """The medium of a command that has been checked for one."""
        self.check_medium()
        assert self._inside is not None
        return self._inside

    @property
    def blocks(self) -> int:
        """Whole logical blocks on the medium."""
        return 0 if self._inside is None else self._inside.size // self.block_size

    @property
    def prevented(self) -> bool:
        """Whether somebody wants the medium to stay."""
        return bool(self._preventing)

    def check_medium(self) -> None:
        """NOT READY without a medium or when stopped."""
        if self.medium is None:
            code = AdditionalSense
            raise not_ready(code.MEDIUM_NOT_PRESENT_TRAY_OPEN if self.tray_open else code.MEDIUM_NOT_PRESENT)
        if self.stopped:
            raise not_ready(AdditionalSense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED)

    def capacity_changed(self) -> None:
        """The host has made the medium larger or smaller."""
        if self.blocks != self._known_blocks:
            self._known_blocks = self.blocks
            self.attention_of_others(None, AdditionalSense.CAPACITY_DATA_HAS_CHANGED)

    def insert(self, medium: BlockBackend | None) -> None:
        """The host puts a medium into the drive, or takes it away with None; the tray is closed then."""
        if not self.identity.removable:
            raise ValueError("the medium cannot be changed")
        self._inside, self.tray_open, self.stopped = medium, False, False
        self._known_blocks = self.blocks
        if medium is not None:
            self.attention_of_others(None, AdditionalSense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED)

    def read_blocks(self, address: int, count: int) -> bytes:
        """The blocks, or MEDIUM ERROR."""
        with medium_errors(address, AdditionalSense.UNRECOVERED_READ_ERROR):
            return self.loaded.read(address * self.block_size, count * self.block_size)

    def pieces(self, address: int, count: int) -> Iterator[tuple[int, int]]:
        """``count`` blocks from ``address`` on, as (address, count) of at most PIECE bytes."""
        step = max(1, PIECE // self.block_size)
        for start in range(address, address + count, step):
            yield start, min(step, address + count - start)

    def flush(self) -> None:
        """Everything written survives from now on."""
        if self._inside is not None and not self._inside.read_only:
            with medium_errors(None, AdditionalSense.WRITE_ERROR):
                self._inside.flush()

    def flush_at_end(self) -> bool:
        """The same for a host that ends: False when it could not be done."""
        try:
            self.flush()
        except CheckCondition:
            return False
        return True

    # The drive

    def start_stop(self, nexus: str, start: bool, load_or_eject: bool) -> None:
        """START STOP UNIT with a power condition of 0. Who closes the tray knows of it; the others are told."""
        if load_or_eject and self.identity.removable:
            if not start:
                if self.prevented:
                    raise medium_removal_prevented()
                self.flush()
                self.tray_open, self.stopped = True, False
            elif self.tray_open:
                self.tray_open = self.stopped = False
                if self._inside is not None:
                    self.attention_of_others(nexus, AdditionalSense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED)
            return
        if not start:
            self.flush()
        self.stopped = not start

    def prevent(self, nexus: str, wanted: bool) -> None:
        """PREVENT ALLOW MEDIUM REMOVAL."""
        if wanted and (nexus in self._preventing or len(self._preventing) < _MOST_PREVENTING):
            self._preventing.add(nexus)
        elif not wanted:
            self._preventing.discard(nexus)

    def reset(self, what: str) -> None:
        """The medium may be removed and is started again."""
        super().reset(what)
        self._preventing.clear()
        self.stopped = False

    def nexus_lost(self, initiator: str) -> None:
        """What it prevented is allowed again."""
        super().nexus_lost(initiator)
        self._preventing.discard(initiator)

    def plain_state(self) -> dict[str, Any]:
        """With the tray and who keeps it closed; the medium itself belongs to the host."""
        drive = {"tray_open": self.tray_open, "stopped": self.stopped, "preventing": sorted(self._preventing)}
        return super().plain_state() | drive

    def adopt_state(self, fields: Mapping[str, Any]) -> None:
        """Check all fields, then adopt them."""
        tray_open, stopped, preventing = fields["tray_open"], fields["stopped"], fields["preventing"]
        if type(tray_open) is not bool or type(stopped) is not bool or (tray_open and not self.identity.removable):
            raise ValueError("a tray is open or not, and only of a removable medium")
        if not isinstance(preventing, list) or not all(isinstance(nexus, str) for nexus in preventing):
            raise ValueError("who prevents the removal of a medium is a list of names")
        if len(preventing) > _MOST_PREVENTING:
            raise ValueError(f"at most {_MOST_PREVENTING} nexuses can prevent the removal of a medium")
        super().adopt_state(fields)
        self.tray_open, self.stopped, self._preventing = tray_open, stopped, set(preventing)


@contextmanager
def medium_errors(address: int | None, code: AdditionalSense) -> Iterator[None]:
    """OSError becomes MEDIUM ERROR with ``address`` as INFORMATION; no space left is DATA PROTECT (SBC-3 4.7.3.6)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = AdditionalSense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT
            raise CheckCondition(Sense(SenseKey.DATA_PROTECT, full, address)) from error
        raise CheckCondition(Sense(SenseKey.MEDIUM_ERROR, code, address)) from error


def _start_stop(unit: MediumUnit, request: Request) -> bytes:
    """Power conditions do not exist here; IMMED is at once anyway."""
    if request.cdb[4] >> 4:
        raise invalid_cdb_field(4, 7)
    unit.start_stop(request.initiator, bool(request.cdb[4] & 1), bool(request.cdb[4] & 2))
    return b""


def _start_stop_access(cdb: bytes) -> Access:
    return Access.FREE if cdb[4] & 0xF3 == 1 else Access.WRITE


def _prevent(unit: MediumUnit, request: Request) -> bytes:
    unit.prevent(request.initiator, bool(request.cdb[4] & 1))
    return b""


def _prevent_access(cdb: bytes) -> Access:
    return Access.WRITE if cdb[4] & 3 else Access.FREE


DRIVE_OPERATIONS: Final = (
    operation(Opcode.START_STOP_UNIT, "01 00 0F F7", Access.WRITE, _start_stop, access_of=_start_stop_access),
    operation(Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, "00 00 00 03", Access.WRITE, _prevent, access_of=_prevent_access),
)
