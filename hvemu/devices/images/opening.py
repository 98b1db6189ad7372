"""Opening images: what a file is, is told by its name; what it says is checked before it is believed.

The contents never decide what an image is, as a guest writes what it likes to the first sector of a raw image: a name
that ends in .vhd is a VHD, any other a raw image.
"""

import os
from collections.abc import Sequence
from typing import Final

from hvemu.devices.images.contract import Image, ImageFile
from hvemu.devices.images.host_file import HostFile
from hvemu.devices.images.parents import LONGEST_CHAIN, Folders, Parents, check_parent
from hvemu.devices.images.raw import RawImage
from hvemu.devices.images.vhd_dynamic import DynamicVhd
from hvemu.devices.images.vhd_fixed import FixedVhd
from hvemu.devices.images.vhd_format import DIFFERENCING, FIXED
from hvemu.devices.images.vhd_layout import Layout, examine
from hvemu.vocabulary.errors import UserError

FOREIGN: Final = {".qcow2": "qcow2", ".vmdk": "vmdk", ".vdi": "vdi", ".vhdx": "vhdx"}
"""Formats of others that ``hvemu disk convert`` knows, by the end of the name."""


def open_image(
    path: str, *, read_only: bool = False, parents_in: Sequence[str] = (), force_share: bool = False
) -> Image:
    """Open and lock an image with all that it builds on; raises UserError.

    Parents may lie in the image's folder, below it, or in one of ``parents_in``. ``force_share`` reads an image that
    somebody else may be writing, for its facts and not for its contents; its parents are locked all the same.
    """
    vhd = is_vhd(path)
    file = HostFile.open(path, read_only=read_only or force_share, lock=not force_share)
    try:
        if not vhd:
            return RawImage(file, read_only=read_only)
        return open_vhd(file, Chain(file, Folders(path, parents_in)), read_only=read_only)
    except OSError as error:
        file.close()
        raise UserError(f"Cannot read '{path}': {error.strerror}", f"Type: hvemu disk check {path}.") from None
    except BaseException:
        file.close()
        raise


def is_vhd(path: str) -> bool:
    """Whether a name is that of a VHD, else of a raw image; raises UserError for formats of others."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in FOREIGN and not os.path.lexists(path):
        raise UserError(f"Cannot open '{path}': No such file or directory", "Give the path of a disk image.")
    if suffix in FOREIGN:
        raise UserError(
            f"'{path}' is an image of the format {FOREIGN[suffix]}, by its name",
            f"Type: hvemu disk convert {path} {os.path.splitext(path)[0]}.vhd.",
        )
    return suffix == ".vhd"


def check_vhd_name(path: str) -> None:
    """Whether a file with this name can be a parent, whatever is in it; raises UserError."""
    if not is_vhd(path):
        raise UserError(
            f"'{path}' is no VHD, and a differencing VHD builds on one",
            f"Type: hvemu disk convert {path} {os.path.splitext(path)[0]}.vhd --format vhd-fixed.",
        )


def open_vhd(
    file: ImageFile, parents: Parents, *, read_only: bool, same_contents: bool = False
) -> FixedVhd | DynamicVhd:
    """The VHD in ``file``, which stays the caller's when this raises UserError or OSError.

    ``same_contents`` is for changes that leave what is read as it is: they keep the unique id.
    """
    layout = sound_layout(file)
    footer = layout.footer
    assert footer is not None
    if footer.disk_type == FIXED:
        return FixedVhd(file, footer, read_only=read_only, same_contents=same_contents)
    parent = parents.open(file, layout) if footer.disk_type == DIFFERENCING else None
    return DynamicVhd(file, layout, parent, read_only=read_only, same_contents=same_contents)


def sound_layout(file: ImageFile) -> Layout:
    """What ``file`` holds; raises UserError when it is damaged, and names the command to run."""
    layout = examine(file)
    for damage in layout.damages:
        if damage.loses:
            hint = f"Type: hvemu disk check {file.name}; it says what can be done."
        elif damage.repairable:
            hint = f"Type: hvemu disk check --repair {file.name}."
        else:
            hint = "Take it from a backup; if it is not a VHD, its name must not end in .vhd."
        raise UserError(f"'{file.name}' cannot be used: {damage.what}", hint)
    return layout


class Chain:
    """Opens one parent after the other, read-only; loops and chains that are too long are refused."""

    def __init__(self, top: ImageFile, folders: Folders) -> None:
        self.files = [top]
        self.folders = folders

    def open(self, file: ImageFile, layout: Layout) -> Image:
        """The parent of ``file`` with all its own; raises UserError and OSError."""
        assert layout.header is not None
        parent = self.open_named(self.folders.locate(file, layout.header))
        try:
            check_parent(file, layout, parent, parent.footer)
        except BaseException:
            parent.close()
            raise
        return parent

    def open_named(self, path: str) -> FixedVhd | DynamicVhd:
        """An image as the next in the chain, read-only; raises UserError and OSError."""
        names = [os.path.realpath(file.name) for file in self.files]
        if os.path.realpath(path) in names:
            raise UserError(
                f"'{path}' would build on itself",
                "Name an image that does not build on it; if you named none, take it from a backup.",
            )
        if len(self.files) >= LONGEST_CHAIN:
            raise UserError(
                f"'{names[0].removesuffix('.new')}' builds on more than {LONGEST_CHAIN - 1} images",
                "Type: hvemu disk commit, for some of them.",
            )
        check_vhd_name(path)
        file = HostFile.open(path, read_only=True)
        try:
            self.files.append(file)
            return open_vhd(file, self, read_only=True)
        except BaseException:
            file.close()
            raise
