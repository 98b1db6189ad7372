"""Finding the parent of a differencing image: only where the user may expect it, and only as it was.

A path in an image is a stranger's word. It is followed into the folder of the image that the user named, or below, and
into folders that the user named besides; symbolic links are resolved before that is decided. A parent is opened
read-only, is a VHD of the same size, and has the unique id and the time of modification that its child noted
("Identification of the Parent Hard Disk Image", "Modification of Parent Hard Disk Image").
"""

import os
import uuid
from collections.abc import Sequence
from typing import Final, Protocol

from hvemu.devices.images.contract import SECTOR, Image, ImageFile
from hvemu.devices.images.vhd_format import YEAR_2000, DynamicHeader, Footer, ParentLocator
from hvemu.devices.images.vhd_layout import LONGEST_LOCATOR, Layout
from hvemu.vocabulary.errors import UserError

LONGEST_CHAIN: Final = 32
"""Images from the top to the base."""
_RELATIVE: Final = b"W2ru"
_ABSOLUTE: Final = b"W2ku"
_COMMITTING: Final = uuid.UUID("6f9e4b0c-7d0a-4c57-9c2e-5f4f0a3d7c11")
"""A name space of our own (RFC 4122, 4.3)."""


class Parents(Protocol):
    """Gives a differencing image its parent."""

    def open(self, file: ImageFile, layout: Layout) -> Image: ...


class Folders:
    """Where parents may lie. ``top`` is the path that the user named. Raises UserError for folders that are none."""

    def __init__(self, top: str, parents_in: Sequence[str] = ()) -> None:
        self._folders = [os.path.realpath(os.path.dirname(os.path.realpath(top)))]
        for folder in parents_in:
            if not os.path.isdir(folder):
                raise UserError(f"There is no folder '{folder}'", "Give --parents-in the folder of the parents.")
            self._folders.append(os.path.realpath(folder))

    def allows(self, path: str) -> bool:
        """Whether a path, all links resolved, lies in one of the folders."""
        return any(os.path.commonpath([folder, path]) == folder for folder in self._folders)

    def locate(self, file: ImageFile, header: DynamicHeader) -> str:
        """The path of the parent of ``file``, resolved; raises UserError."""
        candidates = _candidates(file, header)
        resolved = [path for path in map(os.path.realpath, candidates) if os.path.lexists(path)]
        for path in resolved:
            if self.allows(path):
                return path
        if resolved:
            raise UserError(
                f"'{file.name}' builds on '{resolved[0]}', which lies in another folder",
                f"If you trust the image, add --parents-in {os.path.dirname(resolved[0])}.",
            )
        if not candidates:
            raise UserError(f"'{file.name}' does not say on which image it builds", _rebase(file))
        raise UserError(f"'{file.name}' builds on '{candidates[0]}', which is not there", _rebase(file))


def check_parent(
    file: ImageFile, layout: Layout, parent: Image, parent_footer: Footer, *, committing: bool = False
) -> None:
    """Whether ``parent`` is what ``file`` was made from, unchanged; raises UserError."""
    header, footer = layout.header, layout.footer
    assert header is not None
    assert footer is not None
    if parent.size != footer.current_size:
        raise UserError(
            f"'{file.name}' has {footer.current_size} bytes and its parent '{parent.file.name}' {parent.size}",
            _rebase(file),
        )
    if parent_footer.unique_id == committed_id(header.parent_unique_id, footer.unique_id):
        if committing:
            return
        raise UserError(
            f"The commit of '{file.name}' was interrupted", f"Type: hvemu disk commit {file.name}; it goes on then."
        )
    noted = header.parent_time_stamp
    if parent_footer.unique_id != header.parent_unique_id or noted not in (0, time_stamp(parent.file.modified())):
        raise UserError(
            f"'{parent.file.name}' was changed after '{file.name}' had been made from it",
            "Take both from a backup; if you know that the contents are the same (a copy has a new time), type:"
            f" hvemu disk rebase --unsafe {file.name} {parent.file.name}.",
        )


def time_stamp(when: float) -> int:
    """A VHD's time stamp of a time in seconds since 1970."""
    return (int(when) - YEAR_2000) & 0xFFFFFFFF


def committed_id(parent_id: bytes, child_id: bytes) -> bytes:
    """The unique id of a parent into which a child is being committed: it tells nobody but that child whose it is."""
    return uuid.uuid5(_COMMITTING, (parent_id + child_id).hex()).bytes


def linked(
    header: DynamicHeader, child: str, parent: str, parent_footer: Footer, modified: float, offset: int
) -> tuple[DynamicHeader, bytes]:
    """The header that names ``parent``, and its locators' paths, which are to stand at ``offset``; raises UserError."""
    parent = os.path.realpath(parent)
    relative = os.path.relpath(parent, os.path.dirname(os.path.realpath(child)))
    paths = b""
    locators = []
    for code, path in ((_RELATIVE, os.path.join(".", relative)), (_ABSOLUTE, parent)):
        if "\\" in path or not path.isprintable():
            raise UserError(f"'{parent}' has characters that a VHD cannot note", "Give the image another name.")
        text = path.replace("/", "\\").encode("utf-16-le")
        if len(text) > LONGEST_LOCATOR:
            raise UserError(f"'{parent}' is too long a path for a VHD to note", "Move the image.")
        space = -(-len(text) // SECTOR)
        locators.append(ParentLocator(code, space, len(text), 0, offset + len(paths)))
        paths += text.ljust(space * SECTOR, b"\0")
    name = os.path.basename(parent)[:255].encode("utf-16-be").ljust(512, b"\0")
    linked_header = header._replace(
        parent_unique_id=parent_footer.unique_id, parent_time_stamp=time_stamp(modified), parent_name=name[:512]
    )
    return linked_header.with_locators(locators), paths


def _candidates(file: ImageFile, header: DynamicHeader) -> list[str]:
    """Paths that the image gives for its parent, the relative one first; paths of other platforms are left out."""
    folder = os.path.dirname(os.path.realpath(file.name))
    found = []
    for wanted in (_RELATIVE, _ABSOLUTE):
        for locator in header.parent_locators():
            if locator.code != wanted or not 0 < locator.length <= LONGEST_LOCATOR:
                continue
            text = file.read(locator.offset, locator.length).decode("utf-16-le", "replace").rstrip("\0")
            path = text.replace("\\", "/")
            if text and path.isprintable() and path.startswith("/") == (wanted == _ABSOLUTE):
                found.append(os.path.normpath(os.path.join(folder, path)))
    return found


def _rebase(file: ImageFile) -> str:
    return f"Put its parent there, or name the right one: hvemu disk rebase --unsafe {file.name} PARENT."
