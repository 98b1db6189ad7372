"""The mailboxes of BusLogic MultiMaster adapters: an array of outgoing ones, then as many incoming ones, in RAM.

An entry has an address and a code: in the 24-bit kind the code in byte 0 and a big-endian address behind it, in the
32-bit kind a little-endian address in bytes 0 to 3, the statuses in bytes 4 and 5 and the code in byte 7.
In strict round robin mode only the next outgoing mailbox is looked at; else all are, beginning with the next.
Spec: Linux's drivers/scsi/BusLogic.h, "Outgoing Mailbox" and "Incoming Mailbox"; AHA-1540C/1542C Technical Reference.
"""

from typing import Final, NamedTuple

from hvemu.devices.contract import GuestMemory
from hvemu.devices.saved import Flag, Number
from hvemu.devices.scsi.buslogic_ccb import Ending
from hvemu.vocabulary.addresses import GuestPhysical

FREE, START, ABORT = 0, 1, 2
"""Action codes of outgoing mailboxes."""
COMPLETED, ABORTED, NOT_FOUND, COMPLETED_WITH_ERROR = 1, 2, 3, 4
"""Completion codes of incoming mailboxes."""
MOST: Final = 255


class Outgoing(NamedTuple):
    """Which mailbox, its action code and the address of a command control block."""

    number: int
    action: int
    ccb: int


class Mailboxes:
    """``count`` of each kind from the guest-physical address ``base`` on; a count of 0 is none."""

    layout = {
        "count": Number(MOST), "base": Number(0xFFFF_FFFF), "wide": Flag(), "strict": Flag(),
        "outgoing": Number(MOST), "incoming": Number(MOST),
    }  # fmt: skip

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """No mailboxes, and aggressive mode."""
        self.strict = False
        self.place(0, 0, wide=False)

    def place(self, count: int, base: int, *, wide: bool) -> None:
        """Begin anew with the first of each kind; ``wide`` is the 32-bit kind."""
        self.count, self.base, self.wide = count, base, wide
        self.outgoing = self.incoming = 0

    @property
    def _size(self) -> int:
        return 8 if self.wide else 4

    @property
    def _code(self) -> int:
        """Where in an entry the code is."""
        return 7 if self.wide else 0

    def next(self) -> Outgoing | None:
        """The next outgoing mailbox that is in use; None where there is none."""
        if not self.count:
            return None
        size, start = self._size, self.outgoing % self.count
        seen = 1 if self.strict else self.count
        raw = self._memory.read(GuestPhysical(self.base), self.count * size)
        codes = raw[self._code :: size]
        waiting = (codes[start:] + codes[:start])[:seen].lstrip(bytes((FREE,)))
        if not waiting:
            return None
        index = (start + seen - len(waiting)) % self.count
        entry = raw[index * size : (index + 1) * size]
        address = int.from_bytes(entry[:4], "little") if self.wide else int.from_bytes(entry[1:4], "big")
        return Outgoing(index, waiting[0], address)

    def free(self, index: int) -> None:
        """Give an outgoing mailbox back; the one after it is the next."""
        self.outgoing = (index + 1) % self.count
        self._memory.write(GuestPhysical(self.base + index * self._size + self._code), bytes((FREE,)))

    @property
    def _incoming_entry(self) -> int:
        return self.base + self._size * (self.count + self.incoming % max(1, self.count))

    def can_report(self) -> bool:
        """Whether the driver has emptied the next incoming mailbox."""
        return self._memory.read(GuestPhysical(self._incoming_entry + self._code), 1) == bytes((FREE,))

    def report(self, ccb: int, ending: Ending, code: int) -> None:
        """Fill the next incoming mailbox."""
        if self.wide:
            entry = ccb.to_bytes(4, "little") + bytes((ending.host_status, ending.target_status, 0, code))
        else:
            entry = bytes((code,)) + ccb.to_bytes(3, "big")
        self._memory.write(GuestPhysical(self._incoming_entry), entry)
        self.incoming = (self.incoming + 1) % max(1, self.count)
