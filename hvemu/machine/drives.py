"""Drives of a machine: what ``--disk`` says, and the media that it names."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple

from hvemu.devices.contract import BlockBackend
from hvemu.devices.images import Image, open_image
from hvemu.devices.images.memory import MemoryMedium
from hvemu.devices.images.nonpersistent import NonpersistentMedium
from hvemu.loader.boot_device import CDROM, HARD_DISK
from hvemu.loader.contract import BootDevice
from hvemu.vocabulary.errors import UserError

ADAPTERS: Final = {"ide": 4, "buslogic": 15, "virtio-scsi": 64, "pv": 16}
"""Host bus adapters, and how many drives each can have."""
_BOOTED: Final = {"c": (False, HARD_DISK), "d": (True, CDROM)}
"""QEMU's letters for kinds of drives: whether they are CD-ROMs, and the number of their first."""
_FLAGS: Final = ("read-only", "nonpersistent", "cdrom")
_HINT: Final = "Write it as FILE[,adapter=ide|buslogic|virtio-scsi|pv][,read-only][,nonpersistent][,cdrom]."


class Drive(NamedTuple):
    """A drive before its medium is opened. An ``adapter`` that is not given is the mode's own choice."""

    path: str
    adapter: str = ""
    read_only: bool = False
    nonpersistent: bool = False
    """What is written is forgotten at the end of the run."""
    cdrom: bool = False


def parse_drive(text: str) -> Drive:
    """A drive from ``FILE,option,...``; a comma in the file's name is doubled. Raises UserError."""
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not path:
        raise UserError(f"The disk '{text}' names no file", _HINT)
    adapter, flags = "", dict.fromkeys(_FLAGS, False)
    names = [option.partition("=")[0] for option in options]
    if len(set(names)) < len(names):
        raise UserError(f"The disk '{text}' has an option twice", _HINT)
    for option in options:
        name, equals, value = option.partition("=")
        if name == "adapter" and value in ADAPTERS:
            adapter = value
        elif name in _FLAGS and not equals:
            flags[name] = True
        else:
            raise UserError(f"The disk '{text}' has an option '{option}' that nobody knows", _HINT)
    if flags["read-only"] and flags["nonpersistent"]:
        raise UserError(f"The disk '{text}' is read-only and nonpersistent at once", "Leave one of them out.")
    cdrom = flags["cdrom"] or path.lower().endswith(".iso")
    return Drive(path, adapter, flags["read-only"] or cdrom, flags["nonpersistent"], cdrom)


def own_adapter(mode: str) -> str:
    """Where a drive is whose adapter nobody has chosen."""
    return "pv" if mode == "pv" else "ide"


def escaped(path: str) -> str:
    """A file's name as ``--disk`` takes it: commas doubled."""
    return path.replace(",", ",,")


def check_drives(texts: tuple[str, ...], mode: str) -> tuple[Drive, ...]:
    """The drives of a configuration, each with its adapter; raises UserError."""
    drives = tuple(
        drive if drive.adapter else drive._replace(adapter=own_adapter(mode))
        for drive in (parse_drive(text) for text in texts)
    )
    for drive in drives:
        if (drive.adapter == "pv") != (mode == "pv"):
            hint = "Leave out adapter=." if mode == "pv" else "Use --mode pv with it, or another adapter."
            raise UserError(f"Mode {mode} has no adapter '{drive.adapter}'", hint)
    check_places(drives)
    return drives


def check_places(drives: Sequence[Drive]) -> None:
    """Whether each adapter has room for its drives; raises UserError. An IMAGE that is a disk takes a place too."""
    for adapter, most in ADAPTERS.items():
        if sum(drive.adapter == adapter for drive in drives) > most:
            raise UserError(
                f"The adapter {adapter} has {most} places for drives, and an IMAGE that is one needs a place too",
                "Give some to another adapter.",
            )


@dataclass
class AttachedDrive:
    """A drive with its medium."""

    drive: Drive
    medium: BlockBackend
    serial: str
    """A name that the guest finds it by again, of at most 20 letters and digits."""
    image: Image | None = None
    """The image that the medium lies in, or on; a disk in memory has none."""


def check_boot_order(order: str) -> None:
    """Raises UserError for anything but QEMU's letters of what there is, c and d, each once."""
    if not order or set(order) - set(_BOOTED) or len(set(order)) < len(order):
        hint = "Write c for hard disks and d for CD-ROMs, as in -boot dc."
        raise UserError(f"'{order}' is no order to boot in", hint)


def boot_devices(drives: Sequence[AttachedDrive], order: str = "") -> tuple[BootDevice, ...]:
    """As the BIOS numbers and tries them: unless told, hard disks first, as an installation's CD-ROM stays in."""
    return tuple(
        BootDevice(os.path.basename(each.drive.path), first + index, each.medium)
        for cdrom, first in (_BOOTED[letter] for letter in order or _BOOTED)
        for index, each in enumerate(each for each in drives if each.drive.cdrom == cdrom)
    )


class Media:
    """The open images of a machine. ``close`` flushes them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.drives: list[AttachedDrive] = []

    def attach(self, drive: Drive, *, parents_in: Sequence[str] = ()) -> None:
        """Open an image; raises UserError."""
        image = open_image(drive.path, read_only=drive.read_only or drive.nonpersistent, parents_in=parents_in)
        self._stack.callback(image.close)
        medium: BlockBackend = image
        if drive.nonpersistent and not drive.read_only:
            medium = own = NonpersistentMedium(image)
            self._stack.callback(own.close)
        self.drives.append(AttachedDrive(drive, medium, f"HVEMU{len(self.drives):05d}", image))

    def attach_memory(self, contents: bytes, drive: Drive, *, first: bool = False) -> AttachedDrive:
        """A drive that is forgotten at the end of the run, and whether it comes before the others. Raises UserError."""
        check_places([drive, *(each.drive for each in self.drives)])
        attached = AttachedDrive(drive, MemoryMedium(contents), f"HVEMU{len(self.drives):05d}")
        self.drives.insert(0 if first else len(self.drives), attached)
        return attached

    def close(self) -> None:
        """Flush and close all; harmless when done twice. Raises OSError when the host could not store something."""
        self._stack.close()
