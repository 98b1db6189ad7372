"""``hvemu disk serve``: images as the units of one iSCSI target, until Ctrl-C or SIGTERM."""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import re
import signal
import sys
from typing import Final

from hvemu.cli.disk_images import add_parents_in
from hvemu.cli.options import Parser
from hvemu.devices.contract import BlockBackend
from hvemu.devices.images import open_image
from hvemu.devices.scsi.bus import Target
from hvemu.devices.scsi.cdrom import ScsiCdrom
from hvemu.devices.scsi.disk import ScsiDisk
from hvemu.devices.scsi.medium import MediumUnit
from hvemu.iscsi.chap import Credentials
from hvemu.iscsi.portal import Portal
from hvemu.iscsi.server import Server
from hvemu.vocabulary.errors import UserError

_DEFAULT_PORT: Final = 3260
_DEFAULT_NAME: Final = "iqn.2026-11.org.hvemu:disk"
_NAME: Final = re.compile(
    r"(iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:[a-z0-9.:_-]+)?|eui\.[0-9a-f]{16}|naa\.[0-9a-f]{16,32})", re.I
)
_MOST_IMAGES: Final = 64


def _parser() -> Parser:
    parser = Parser(
        prog="hvemu disk serve", description="Serve disk images as units of an iSCSI target.", allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a unit each, LUN 0 first; .iso files are CD-ROMs")
    parser.add_argument(
        "--listen",
        default=f"127.0.0.1:{_DEFAULT_PORT}",
        metavar="HOST:PORT",
        help=f"default 127.0.0.1:{_DEFAULT_PORT}; port 0 chooses one",
    )
    parser.add_argument("--iqn", default=_DEFAULT_NAME, metavar="NAME", help=f"default {_DEFAULT_NAME}")
    parser.add_argument("--chap", metavar="USER:SECRET", help="what an initiator must know; @FILE takes it from a file")
    parser.add_argument("--chap-mutual", metavar="USER:SECRET", help="what we know if an initiator asks; @FILE as well")
    parser.add_argument("--read-only", action="store_true", help="refuse to write")
    parser.add_argument(
        "--physical-block", type=int, choices=(512, 4096), default=512, help="bytes, as guests are told"
    )
    parser.add_argument("--removable", action="store_true", help="disks that can be ejected")
    parser.add_argument("--cdrom", action="store_true", help="every image is a CD-ROM, whatever its name")
    add_parents_in(parser)
    parser.add_argument("--verbose", action="store_true", help="say why connections end")
    return parser


def main(arguments: list[str]) -> int:
    """Serve until somebody ends it; returns the process status."""
    options = _parser().parse_args(arguments)
    host, port = _address(options.listen)
    credentials = _credentials(options.chap, options.chap_mutual)
    _check_exposure(host, credentials)
    if not _NAME.fullmatch(options.iqn):
        raise UserError(f"'{options.iqn}' is no iSCSI name", f"Give --iqn one such as {_DEFAULT_NAME}.")
    if len(options.images) > _MOST_IMAGES:
        raise UserError(f"A target has at most {_MOST_IMAGES} images", "Start another one for the others.")
    with contextlib.ExitStack() as stack:
        units = {}
        for lun, path in enumerate(options.images):
            compact = options.cdrom or path.lower().endswith(".iso")
            image = open_image(path, read_only=options.read_only or compact, parents_in=options.parents_in)
            stack.callback(image.close)
            units[lun] = _unit(
                image, path, compact=compact, removable=options.removable, physical=options.physical_block
            )
            stack.callback(_flush, units[lun], path)
        portal = Portal({options.iqn: Target(units)}, credentials=credentials)
        return asyncio.run(_serve(portal, host, port, options.iqn, len(units), options.verbose))


def _unit(image: BlockBackend, path: str, *, compact: bool, removable: bool, physical: int) -> MediumUnit:
    """The serial number follows from the file's place, so that an initiator finds its disk again."""
    serial = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16].upper()
    if compact:
        return ScsiCdrom(image, serial=serial)
    return ScsiDisk(image, serial=serial, removable=removable, physical_block_size=physical)


def _flush(unit: MediumUnit, path: str) -> None:
    if not unit.flush_at_end():
        print(f"hvemu: what was written last to '{path}' may be lost: the host could not store it.", file=sys.stderr)


def _address(text: str) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if not colon or not number.isdecimal() or int(number) > 65535:
        raise UserError(f"'{text}' is no address to listen at", "Give --listen HOST:PORT, as 127.0.0.1:3260.")
    return host.strip("[]") or "127.0.0.1", int(number)


def _credentials(chap: str | None, mutual: str | None) -> Credentials | None:
    if chap is None:
        if mutual is not None:
            raise UserError("Mutual authentication needs the initiator's first", "Give --chap USER:SECRET as well.")
        return None
    name, secret = _pair(chap, "--chap")
    own_name, own_secret = _pair(mutual, "--chap-mutual") if mutual is not None else ("", "")
    if own_secret == secret:
        raise UserError("The two secrets of mutual authentication are the same", "Give --chap-mutual another secret.")
    return Credentials(name, secret.encode(), own_name, own_secret.encode())


def _pair(text: str, option: str) -> tuple[str, str]:
    if text.startswith("@"):
        try:
            with open(text[1:], encoding="utf-8") as file:
                text = file.readline(4096).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read '{text[1:]}': {error}", f"Give {option} @FILE a line USER:SECRET.") from None
    name, colon, secret = text.partition(":")
    if not colon or not name or not 12 <= len(secret) <= 255:
        raise UserError(
            f"{option} needs a user and a secret of 12 to 255 characters", f"Give {option} USER:SECRET or @FILE."
        )
    return name, secret


def _check_exposure(host: str, credentials: Credentials | None) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and credentials is None:
        raise UserError(
            f"Listening at {host} would give the images to everybody who can reach it",
            "Give --chap USER:SECRET, or listen at 127.0.0.1.",
        )


async def _serve(portal: Portal, host: str, port: int, name: str, luns: int, verbose: bool) -> int:
    server = Server(portal, (lambda text: print(text, file=sys.stderr, flush=True)) if verbose else lambda text: None)
    try:
        number = await server.listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot listen at {host}:{port}: {reason}", "Give --listen another port, or 0.") from None
    place = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for what in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C is an exception there
            loop.add_signal_handler(what, ended.set)
    for lun in range(luns):
        print(f"iscsi://{place}/{name}/{lun}", flush=True)
    await ended.wait()
    await server.close()
    return 0
