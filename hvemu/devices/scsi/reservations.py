"""Who may use a unit: RESERVE and RELEASE, and persistent reservations with their keys.

The unit calls it with names of I_T nexuses; nothing here knows commands or sense data beyond ``CheckCondition``.
Persistence through power loss is not offered (PTPL_C is 0). REGISTER AND MOVE, SPEC_I_PT and ALL_TG_PT are refused.
Spec: SPC-4 5.9 and 6.16, SPC-2 5.5.1, SBC-3 4.16 (which commands conflict).
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final

from hvemu.devices.scsi.operations import Access
from hvemu.devices.scsi.sense import ReservationConflict, illegal, invalid_cdb_field, invalid_parameter
from hvemu.vocabulary.scsi import AdditionalSense

MOST_REGISTRATIONS: Final = 64
KEY_LIMIT: Final = 1 << 64


class ReservationType(IntEnum):
    """The TYPE field."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


_ALL_REGISTRANTS: Final = frozenset(
    {ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS}
)
_REGISTRANTS: Final = _ALL_REGISTRANTS | {
    ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
}
_EXCLUSIVE_ACCESS: Final = frozenset(
    {
        ReservationType.EXCLUSIVE_ACCESS,
        ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    }
)
TYPE_MASK: Final = sum(1 << kind for kind in ReservationType)
"""Bit n for type n; REPORT CAPABILITIES spreads it over two bytes."""

Attention = Callable[[str, AdditionalSense], None]


class Reservations:
    """``attention`` establishes a unit attention for one nexus."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self.legacy_holder: str | None = None
        self.keys: dict[str, int] = {}
        self.kind: ReservationType | None = None
        self.holder: str | None = None
        """Of a type that is not all registrants'."""
        self.generation = 0

    def check(self, access: Access, nexus: str) -> None:
        """Raise ReservationConflict when another nexus' reservation forbids it."""
        if access is Access.FREE:
            return
        if access is Access.LEGACY:
            if self.keys:
                raise ReservationConflict
            return  # who may RESERVE and RELEASE is theirs to say
        if self.legacy_holder is not None and (self.legacy_holder != nexus or access is Access.PERSISTENT):
            raise ReservationConflict
        if self.kind is None or access in (Access.READINESS, Access.PERSISTENT) or self.holds(nexus):
            return
        if self.kind in _REGISTRANTS and nexus in self.keys:
            return
        if access is Access.WRITE or self.kind in _EXCLUSIVE_ACCESS:
            raise ReservationConflict

    def holds(self, nexus: str) -> bool:
        """Whether the nexus is a persistent reservation holder."""
        if self.kind in _ALL_REGISTRANTS:
            return nexus in self.keys
        return self.kind is not None and self.holder == nexus

    def reserve_legacy(self, nexus: str) -> None:
        """RESERVE."""
        if self.legacy_holder not in (None, nexus):
            raise ReservationConflict
        self.legacy_holder = nexus

    def release_legacy(self, nexus: str) -> None:
        """RELEASE; of somebody else's reservation it does nothing."""
        if self.legacy_holder == nexus:
            self.legacy_holder = None

    def register(self, nexus: str, key: int, new_key: int, *, ignore: bool) -> None:
        """REGISTER, and with ``ignore`` REGISTER AND IGNORE EXISTING KEY; a new key of 0 unregisters."""
        registered = self.keys.get(nexus)
        if not ignore and key != (registered or 0):
            raise ReservationConflict
        if new_key == 0:
            if registered is not None:
                self._unregister(nexus)
                self._count()
            return
        if registered is None and len(self.keys) >= MOST_REGISTRATIONS:
            raise illegal(AdditionalSense.INSUFFICIENT_REGISTRATION_RESOURCES)
        self.keys[nexus] = new_key
        self._count()

    def _unregister(self, nexus: str) -> None:
        held = self.holds(nexus)
        del self.keys[nexus]
        if held and (self.kind not in _ALL_REGISTRANTS or not self.keys):
            told = self.kind in _REGISTRANTS
            self.kind = self.holder = None
            if told:
                self._tell(self.keys, AdditionalSense.RESERVATIONS_RELEASED)

    def reserve(self, nexus: str, key: int, kind: ReservationType) -> None:
        """RESERVE of PERSISTENT RESERVE OUT."""
        self._check_key(nexus, key)
        if self.kind is None:
            self._hold(nexus, kind)
        elif not self.holds(nexus) or self.kind is not kind:
            raise ReservationConflict

    def release(self, nexus: str, key: int, kind: ReservationType) -> None:
        """RELEASE of PERSISTENT RESERVE OUT; of a reservation that the nexus does not hold it does nothing."""
        self._check_key(nexus, key)
        if not self.holds(nexus):
            return
        if self.kind is not kind:
            raise illegal(AdditionalSense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
        self.kind = self.holder = None
        if kind in _REGISTRANTS:
            self._tell(self.keys.keys() - {nexus}, AdditionalSense.RESERVATIONS_RELEASED)

    def clear(self, nexus: str, key: int) -> None:
        """CLEAR: no reservation and no keys."""
        self._check_key(nexus, key)
        self._tell(self.keys.keys() - {nexus}, AdditionalSense.RESERVATIONS_PREEMPTED)
        self.keys.clear()
        self.kind = self.holder = None
        self._count()

    def preempt(self, nexus: str, key: int, victim_key: int, kind: ReservationType) -> None:
        """PREEMPT: the registrations with ``victim_key`` go, and their reservation becomes ours."""
        self._check_key(nexus, key)
        old = self.kind
        if old in _ALL_REGISTRANTS:
            takes = victim_key == 0
            victims = set(self.keys) if takes else {name for name, each in self.keys.items() if each == victim_key}
        else:
            if victim_key == 0:
                raise invalid_parameter(8)
            takes = old is not None and self.holder is not None and self.keys.get(self.holder) == victim_key
            victims = {name for name, each in self.keys.items() if each == victim_key}
        if not victims:
            raise ReservationConflict
        victims.discard(nexus)
        for name in victims:
            del self.keys[name]
        self._tell(victims, AdditionalSense.REGISTRATIONS_PREEMPTED)
        if takes:
            self._hold(nexus, kind)
            if old in _REGISTRANTS and old is not kind:
                self._tell(self.keys.keys() - {nexus}, AdditionalSense.RESERVATIONS_RELEASED)
        self._count()

    def _check_key(self, nexus: str, key: int) -> None:
        if self.keys.get(nexus) != key:
            raise ReservationConflict

    def _hold(self, nexus: str, kind: ReservationType) -> None:
        self.kind, self.holder = kind, None if kind in _ALL_REGISTRANTS else nexus

    def _count(self) -> None:
        self.generation = (self.generation + 1) & 0xFFFFFFFF

    def _tell(self, nexuses: Iterable[str], code: AdditionalSense) -> None:
        for name in sorted(nexuses):
            self._attention(name, code)

    def forget_nexus(self, nexus: str) -> None:
        """The nexus is lost: RESERVE ends with it, keys do not."""
        self.release_legacy(nexus)

    def reset(self, *, power: bool) -> None:
        """Any reset ends RESERVE; only the loss of power ends what is persistent."""
        self.legacy_holder = None
        if power:
            self.keys.clear()
            self.kind = self.holder = None
            self.generation = 0

    def plain(self) -> dict[str, object]:
        """As JSON can carry it."""
        return {
            "legacy_holder": self.legacy_holder,
            "keys": dict(self.keys),
            "kind": None if self.kind is None else int(self.kind),
            "holder": self.holder,
            "generation": self.generation,
        }

    def adopt(self, raw: object) -> Callable[[], None]:
        """Check what ``plain`` gave; ValueError, or a function that adopts it."""
        if not isinstance(raw, dict) or raw.keys() != self.plain().keys():
            raise ValueError("reservations have legacy_holder, keys, kind, holder and generation")
        legacy, keys, kind = raw["legacy_holder"], raw["keys"], raw["kind"]
        holder, generation = raw["holder"], raw["generation"]
        if not isinstance(keys, dict) or len(keys) > MOST_REGISTRATIONS:
            raise ValueError(f"at most {MOST_REGISTRATIONS} registrations are needed")
        for name, key in keys.items():
            if not isinstance(name, str) or type(key) is not int or not 0 < key < KEY_LIMIT:
                raise ValueError("a registration is a name and a key of 64 bits that is not 0")
        if not (legacy is None or isinstance(legacy, str)) or type(generation) is not int or generation >> 32:
            raise ValueError("the holder of RESERVE is a name, the generation a number of 32 bits")
        parsed = None if kind is None else ReservationType(kind)
        if (holder is not None) != (parsed is not None and parsed not in _ALL_REGISTRANTS):
            raise ValueError("a reservation has a holder unless all registrants hold it")
        if (holder is not None and holder not in keys) or (parsed is not None and not keys):
            raise ValueError("the holder of a reservation is registered")

        def become() -> None:
            self.legacy_holder, self.keys, self.kind = legacy, dict(keys), parsed
            self.holder, self.generation = holder, generation

        return become


def reservation_type(scope_and_type: int) -> ReservationType:
    """The type in byte 2 of a CDB; only the scope of a whole logical unit exists."""
    if scope_and_type >> 4:
        raise invalid_cdb_field(2, 7)
    try:
        return ReservationType(scope_and_type & 0xF)
    except ValueError:
        raise invalid_cdb_field(2, 3) from None
