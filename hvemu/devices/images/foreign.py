"""Images of others, by way of ``qemu-img``; only such as refer to no other file.

A qcow2 may name a backing file and a VMDK its extents, and whoever made the image chose those names. So what is told by
the first bytes is refused before ``qemu-img`` opens the file, and what it reports is refused before it copies.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

from hvemu.devices.images.host_file import refuse_leftover
from hvemu.devices.images.opening import FOREIGN
from hvemu.vocabulary.errors import UserError

_QCOW2_EXTERNAL_DATA: Final = 1 << 2
"""An incompatible feature of qcow2 (QEMU, docs/interop/qcow2.txt)."""


def foreign_format(path: str) -> str:
    """What ``qemu-img`` calls the format that a name stands for, or nothing."""
    return FOREIGN.get(os.path.splitext(path)[1].lower(), "")


@contextlib.contextmanager
def as_raw(path: str, beside: str) -> Iterator[str]:
    """The contents of a foreign image as a raw file next to ``beside``, for as long as the block lasts."""
    with temporary_name(beside) as raw:
        format = foreign_format(path)
        _refuse_references(path, format)
        _qemu_img("convert", "-f", format, "-O", "raw", "--", _plain(path), _plain(raw))
        yield raw


def from_raw(raw: str, path: str) -> None:
    """Write a raw file to an image of the format that the name of ``path`` stands for; raises UserError."""
    working = f"{path}.new"
    refuse_leftover(working)
    try:
        _qemu_img("convert", "-f", "raw", "-O", foreign_format(path), "--", _plain(raw), _plain(working))
        os.replace(working, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(working)


@contextlib.contextmanager
def temporary_name(beside: str) -> Iterator[str]:
    """The name of a file that is not there, in the folder of ``beside``; removed afterwards. Raises UserError."""
    name = f"{beside}.raw-part"
    refuse_leftover(name)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _refuse_references(path: str, format: str) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"Cannot open '{path}': {error.strerror}", "Give the path of a disk image.") from None
    outside = False
    if format == "qcow2":
        external = int.from_bytes(start[72:80], "big") & _QCOW2_EXTERNAL_DATA
        outside = start[:4] == b"QFI\xfb" and (any(start[8:16]) or (start[7] >= 3 and external != 0))
    elif format == "vmdk":
        # A descriptor is text that names files; so is one that a sparse extent without a capacity holds
        outside = start[:4] != b"KDMV" or not any(start[12:20])
    if not outside:
        facts = json.loads(_qemu_img("info", "-f", format, "--output=json", "--", _plain(path)))
        outside = "backing-filename" in facts
    if outside:
        raise UserError(
            f"'{path}' refers to other files",
            f"If you trust it, make it one file yourself: qemu-img convert -f {format} -O raw {path} flat.img.",
        )


def _plain(path: str) -> str:
    """A path that ``qemu-img`` takes for a file, whatever colons it has."""
    return os.path.join(".", path)


def _qemu_img(*words: str) -> str:
    program = shutil.which("qemu-img")
    if program is None:
        raise UserError(
            "qemu-img is not installed, which converts images of others", "Type: apt-get install qemu-utils."
        )
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it did not say why"]
        raise UserError(f"qemu-img failed: {reason[0]}", "Give an image that it can read.")
    return done.stdout
