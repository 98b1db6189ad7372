"""CHAP: the initiator proves that it knows a secret, and the target, if asked to, that it knows another.

Spec: RFC 7143 12.1.3, RFC 1994; algorithms 5 (MD5) and 7 (SHA-256, RFC 7143 errata and IANA's registry).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from hvemu.iscsi.text import parse_number

_ALGORITHMS: Final[Mapping[str, str]] = {"5": "md5", "7": "sha256"}
_CHALLENGE_LENGTH: Final = 32
_LONGEST_VALUE: Final = 1024


class Credentials(NamedTuple):
    """What the initiator must know; ``own_name`` and ``own_secret`` are ours for mutual authentication, or empty."""

    name: str
    secret: bytes
    own_name: str = ""
    own_secret: bytes = b""


class AuthenticationError(Exception):
    """The login fails with status 0201h."""


class Chap:
    """One exchange: ``answer`` takes the keys of a request and gives ours; then ``done``."""

    def __init__(self, credentials: Credentials, random: Callable[[int], bytes]) -> None:
        self._credentials = credentials
        self._random = random
        self._algorithm = ""
        self._identifier = 0
        self._challenge = b""
        self.done = False

    def answer(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Two steps: choose an algorithm and challenge; check the response."""
        if self.done:
            raise AuthenticationError
        if not self._challenge:
            return self._challenged(keys)
        return self._checked(keys)

    def _challenged(self, keys: Mapping[str, str]) -> dict[str, str]:
        offered = [item for item in keys.get("CHAP_A", "").split(",") if item in _ALGORITHMS]
        if not offered:
            raise AuthenticationError
        self._algorithm = _ALGORITHMS[offered[0]]
        self._identifier = self._random(1)[0]
        self._challenge = self._random(_CHALLENGE_LENGTH)
        challenge = "0x" + self._challenge.hex()
        return {"CHAP_A": offered[0], "CHAP_I": str(self._identifier), "CHAP_C": challenge}

    def _checked(self, keys: Mapping[str, str]) -> dict[str, str]:
        expected = self._digest(self._identifier, self._credentials.secret, self._challenge)
        given = _binary(keys.get("CHAP_R", ""))
        right = hmac.compare_digest(expected, given)
        if not hmac.compare_digest(keys.get("CHAP_N", "").encode(), self._credentials.name.encode()) or not right:
            raise AuthenticationError
        answers: dict[str, str] = {}
        if "CHAP_I" in keys or "CHAP_C" in keys:
            answers = self._own_proof(keys)
        self.done = True
        return answers

    def _own_proof(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Not for a challenge that is our own: that would let an initiator use us to answer us."""
        challenge, identifier = _binary(keys.get("CHAP_C", "")), parse_number(keys.get("CHAP_I", ""), 0, 255)
        if not self._credentials.own_secret or not challenge or challenge == self._challenge:
            raise AuthenticationError
        if identifier is None:
            raise AuthenticationError
        proof = self._digest(identifier, self._credentials.own_secret, challenge)
        return {"CHAP_N": self._credentials.own_name, "CHAP_R": "0x" + proof.hex()}

    def _digest(self, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        return hashlib.new(self._algorithm, bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()


def _binary(text: str) -> bytes:
    """A hexadecimal or base64 constant (RFC 7143 6.1); AuthenticationError when it is none, or too long."""
    try:
        if len(text) <= 2 * _LONGEST_VALUE + 2 and text[:2] in ("0x", "0X"):
            digits = text[2:]
            return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        if len(text) <= 2 * _LONGEST_VALUE + 2 and text[:2] in ("0b", "0B"):
            return base64.b64decode(text[2:], validate=True)
    except (ValueError, binascii.Error):
        pass
    raise AuthenticationError
