"""The login phase of a connection: security, operational parameters, then full feature phase or a refusal.

Spec: RFC 7143 6.3 (login phase), 11.12 and 11.13 (PDUs, statuses).
"""

from enum import IntEnum
from typing import Final

from hvemu.devices.scsi.bus import Target
from hvemu.iscsi.chap import AuthenticationError, Chap
from hvemu.iscsi.pdu import Opcode, Pdu, ProtocolError
from hvemu.iscsi.portal import PORTAL_GROUP, Portal
from hvemu.iscsi.text import LONGEST_RECEIVED_SEGMENT, LONGEST_TEXT, Keys, Parameters, negotiate, pack_keys, parse_keys

LONGEST_LOGIN_SEGMENT: Final = 8192
_LONGEST_NAME: Final = 223
_MOST_REQUESTS: Final = 32
_SECURITY, _OPERATIONAL, _FULL_FEATURE = 0, 1, 3
_TRANSIT, _CONTINUE = 0x80, 0x40
_SECURITY_KEYS: Final = frozenset({"AuthMethod", "CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"})


class LoginStatus(IntEnum):
    """Class and detail."""

    SUCCESS = 0x0000
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    NOT_FOUND = 0x0203
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    OUT_OF_RESOURCES = 0x0302


class LoginRefused(Exception):
    """The login ends with this status, and the connection with it."""

    def __init__(self, status: LoginStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Login:
    """``request`` takes one login request and gives the header (without numbers) and data of the response."""

    def __init__(self, portal: Portal, parameters: Parameters) -> None:
        self._portal = portal
        self._parameters = parameters
        self._text = b""
        self.requests = 0
        """How many have been taken."""
        self._stage: int | None = None
        self._task_tag = 0
        self._declared = False
        self._chap: Chap | None = None
        self._authenticated = portal.credentials is None
        self.initiator = ""
        self.isid = bytes(6)
        self.discovery = False
        self.target: Target | None = None
        self.target_name = ""
        self.done = False

    @property
    def nexus(self) -> str:
        """The name of the initiator port (RFC 7143 3.1: name, "i", ISID)."""
        return f"{self.initiator},i,0x{self.isid.hex()}"

    def request(self, pdu: Pdu) -> tuple[int, bytes]:
        """Flags of the response and its data; LoginRefused, or ProtocolError for what deserves no answer."""
        if pdu.opcode != Opcode.LOGIN_REQUEST:
            raise LoginRefused(LoginStatus.INVALID_DURING_LOGIN, "only login requests are taken before the login")
        self.requests += 1
        current, following, transit = pdu.flags >> 2 & 3, pdu.flags & 3, bool(pdu.flags & _TRANSIT)
        self._check_header(pdu, current, following, transit)
        self._text += pdu.data
        if len(self._text) > LONGEST_TEXT or self.requests > _MOST_REQUESTS:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "the login is too long")
        if pdu.flags & _CONTINUE:
            return current << 2, b""
        try:
            keys = parse_keys(self._text)
        except ProtocolError as error:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, str(error)) from None
        self._text = b""
        if not self.initiator:
            self._introduce(keys)
        answers = self._security(keys) if current == _SECURITY else self._operational(keys)
        if not transit or (current == _SECURITY and not self._authenticated):
            return current << 2, pack_keys(answers)
        if following == _FULL_FEATURE:
            self.done = True
        self._stage = following
        return _TRANSIT | current << 2 | following, pack_keys(answers)

    def _check_header(self, pdu: Pdu, current: int, following: int, transit: bool) -> None:
        if pdu.header[3] > 0:
            raise LoginRefused(LoginStatus.UNSUPPORTED_VERSION, "only version 0 of the protocol is spoken")
        if self._stage is None:
            self._stage, self.isid, self._task_tag = current, pdu.header[8:14], pdu.task_tag
            handle = int.from_bytes(pdu.header[14:16], "big")
            if handle:
                known = self._portal.known(handle)
                status = LoginStatus.TOO_MANY_CONNECTIONS if known else LoginStatus.SESSION_DOES_NOT_EXIST
                raise LoginRefused(status, "a session has one connection")
        same = pdu.header[8:14] == self.isid and pdu.task_tag == self._task_tag
        if not same or current != self._stage or current not in (_SECURITY, _OPERATIONAL):
            raise LoginRefused(LoginStatus.INVALID_DURING_LOGIN, "a login request does not follow from the last one")
        if transit and (pdu.flags & _CONTINUE or following == 2 or following <= current):
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "a login request goes to a stage that cannot come next")

    def _introduce(self, keys: Keys) -> None:
        name = keys.get("InitiatorName", "")
        if not name:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "the initiator has no name")
        if len(name.encode()) > _LONGEST_NAME or not name.isprintable() or "," in name:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "the initiator's name is no iSCSI name")
        self.initiator = name
        kind = keys.get("SessionType", "Normal")
        if kind not in ("Normal", "Discovery"):
            raise LoginRefused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"there are no sessions of type {kind!r}")
        self.discovery = kind == "Discovery"
        if self.discovery:
            return
        if "TargetName" not in keys:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "the initiator names no target")
        self.target_name = keys["TargetName"]
        self.target = self._portal.targets.get(self.target_name)
        if self.target is None:
            raise LoginRefused(LoginStatus.NOT_FOUND, f"there is no target {self.target_name!r}")

    def _first_answers(self) -> Keys:
        """What the first response of a normal session says besides (RFC 7143 13.9)."""
        if self._declared:
            return {}
        self._declared = True
        return {} if self.discovery else {"TargetPortalGroupTag": str(PORTAL_GROUP)}

    def _security(self, keys: Keys) -> Keys:
        answers = self._first_answers()
        if self._chap is not None:
            try:
                answers |= self._chap.answer(keys)
            except AuthenticationError:
                raise LoginRefused(
                    LoginStatus.AUTHENTICATION_FAILURE, "the initiator does not know the secret"
                ) from None
            self._authenticated = self._chap.done
            return answers
        offered = keys.get("AuthMethod", "").split(",") if "AuthMethod" in keys else None
        if self._portal.credentials is None:
            if offered is not None and "None" not in offered:
                raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "the initiator insists on authentication")
            if offered is not None:
                answers["AuthMethod"] = "None"
        elif offered is not None:
            if "CHAP" not in offered:
                raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "the initiator does not offer CHAP")
            self._chap = Chap(self._portal.credentials, self._portal.random)
            answers["AuthMethod"] = "CHAP"
        others = {key: value for key, value in keys.items() if key not in _SECURITY_KEYS}
        return answers | negotiate(self._parameters, others)

    def _operational(self, keys: Keys) -> Keys:
        if not self._authenticated:
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "the initiator has left out authentication")
        first = not self._declared or "MaxRecvDataSegmentLength" in keys
        answers = self._first_answers()
        if first:
            answers["MaxRecvDataSegmentLength"] = str(LONGEST_RECEIVED_SEGMENT)
        return answers | negotiate(self._parameters, keys)
