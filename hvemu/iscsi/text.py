"""Text keys and the negotiation of operational parameters.

Spec: RFC 7143 6 (text mode), 13 (keys). What we offer: one connection, error recovery level 0, one R2T at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hvemu.iscsi.pdu import ProtocolError

LONGEST_TEXT: Final = 64 << 10
"""Bytes of one negotiation, over all PDUs of a sequence."""
_LONGEST_KEY: Final = 63
_MOST_KEYS: Final = 128
LONGEST_RECEIVED_SEGMENT: Final = 256 << 10
_LARGEST: Final = (1 << 24) - 1
_LEAST: Final = 512

Keys = dict[str, str]


def parse_keys(data: bytes) -> Keys:
    """``key=value`` pairs, each ended by a zero byte; ProtocolError for anything else, and for the same key twice."""
    keys: Keys = {}
    for item in data.split(b"\0"):
        if not item:
            continue
        name, equals, value = item.partition(b"=")
        if not equals or not name or len(name) > _LONGEST_KEY or len(keys) >= _MOST_KEYS:
            raise ProtocolError("the text of a negotiation is not made of keys and values")
        try:
            key, text = name.decode("ascii"), value.decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("the text of a negotiation is not UTF-8") from None
        if key in keys:
            raise ProtocolError(f"the key {key} comes twice")
        keys[key] = text
    return keys


def pack_keys(keys: Mapping[str, str]) -> bytes:
    """The same the other way round."""
    return b"".join(f"{key}={value}\0".encode() for key, value in keys.items())


def parse_number(text: str, least: int, most: int) -> int | None:
    """A decimal or hexadecimal number in a range, else None."""
    try:
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text, 10) if text.isdecimal() else -1
    except ValueError:
        return None
    return value if least <= value <= most else None


@dataclass
class Parameters:
    """What a session has agreed on; the defaults are those of RFC 7143. Lengths in bytes."""

    header_digest: bool = False
    data_digest: bool = False
    initial_r2t: bool = True
    immediate_data: bool = True
    peer_segment: int = 8192
    """The longest data segment that the initiator takes."""
    max_burst: int = 262144
    first_burst: int = 65536


def _digest(field: str) -> Callable[[Parameters, str], str]:
    def choose(parameters: Parameters, value: str) -> str:
        for offered in value.split(","):
            if offered in ("None", "CRC32C"):
                setattr(parameters, field, offered == "CRC32C")
                return offered
        return "Reject"

    return choose


def _boolean(field: str, *, both: bool, ours: bool) -> Callable[[Parameters, str], str]:
    """``both``: the result is AND, else OR."""

    def choose(parameters: Parameters, value: str) -> str:
        if value not in ("Yes", "No"):
            return "Reject"
        result = (value == "Yes" and ours) if both else (value == "Yes" or ours)
        if field:
            setattr(parameters, field, result)
        return "Yes" if result else "No"

    return choose


def _minimum(field: str, least: int, most: int, ours: int) -> Callable[[Parameters, str], str]:
    def choose(parameters: Parameters, value: str) -> str:
        number = parse_number(value, least, most)
        if number is None:
            return "Reject"
        result = min(number, ours)
        if field:
            setattr(parameters, field, result)
        return str(result)

    return choose


def _at_least(ours: int) -> Callable[[Parameters, str], str]:
    def choose(parameters: Parameters, value: str) -> str:
        number = parse_number(value, 0, 3600)
        return "Reject" if number is None else str(max(number, ours))

    return choose


def _declared_segment(parameters: Parameters, value: str) -> str:
    number = parse_number(value, _LEAST, _LARGEST)
    if number is None:
        return "Reject"
    parameters.peer_segment = number
    return ""


def _nothing(parameters: Parameters, value: str) -> str:
    return ""


def _task_reporting(parameters: Parameters, value: str) -> str:
    return "RFC3720" if "RFC3720" in value.split(",") else "Reject"


_KEYS: Final[Mapping[str, Callable[[Parameters, str], str]]] = {
    "HeaderDigest": _digest("header_digest"),
    "DataDigest": _digest("data_digest"),
    "MaxConnections": _minimum("", 1, 65535, 1),
    "InitialR2T": _boolean("initial_r2t", both=False, ours=False),
    "ImmediateData": _boolean("immediate_data", both=True, ours=True),
    "MaxRecvDataSegmentLength": _declared_segment,
    "MaxBurstLength": _minimum("max_burst", _LEAST, _LARGEST, 1 << 20),
    "FirstBurstLength": _minimum("first_burst", _LEAST, _LARGEST, 64 << 10),
    "DefaultTime2Wait": _at_least(0),
    "DefaultTime2Retain": _minimum("", 0, 3600, 0),
    "MaxOutstandingR2T": _minimum("", 1, 65535, 1),
    "DataPDUInOrder": _boolean("", both=False, ours=True),
    "DataSequenceInOrder": _boolean("", both=False, ours=True),
    "ErrorRecoveryLevel": _minimum("", 0, 2, 0),
    "IFMarker": _boolean("", both=True, ours=False),
    "OFMarker": _boolean("", both=True, ours=False),
    "TaskReporting": _task_reporting,
    "iSCSIProtocolLevel": _minimum("", 0, 31, 1),
    "InitiatorAlias": _nothing,
    "InitiatorName": _nothing,
    "TargetName": _nothing,
    "SessionType": _nothing,
}


def negotiate(parameters: Parameters, offered: Mapping[str, str]) -> Keys:
    """Our answers to what was offered; ``parameters`` become the agreed values. ``X-`` and unknown: NotUnderstood."""
    answers: Keys = {}
    for key, value in offered.items():
        choose = _KEYS.get(key)
        answer = "NotUnderstood" if choose is None else choose(parameters, value)
        if choose is None and value in ("NotUnderstood", "Irrelevant", "Reject"):
            continue  # an answer to nothing we asked for is not answered
        if answer:
            answers[key] = answer
    return answers
