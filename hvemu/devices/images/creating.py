"""New images, and copies of images. A file gets its name when it is whole, so an interrupted command leaves nothing."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.images.contract import SECTOR, Image, ImageFile
from hvemu.devices.images.host_file import HostFile, refuse_leftover, sync_folder
from hvemu.devices.images.opening import FOREIGN, Chain, is_vhd, open_vhd
from hvemu.devices.images.parents import Folders, linked, time_stamp
from hvemu.devices.images.raw import RawImage
from hvemu.devices.images.vhd_fixed import FixedVhd
from hvemu.devices.images.vhd_format import (
    BLOCK_SIZE,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    HEADER_SIZE,
    LARGEST_DISK,
    DynamicHeader,
    Footer,
)
from hvemu.devices.images.vhd_layout import first_block
from hvemu.vocabulary.errors import UserError

FORMATS: Final = ("raw", "vhd-fixed", "vhd")
"""What hvemu itself can make; "vhd" is dynamic."""
LARGEST_RAW: Final = 1 << 62
_CHUNK: Final = 1 << 20
_GRAIN: Final = 1 << 16
"""Zeros of this size are left out of copies."""


def create_image(path: str, size: int, format: str = "", *, block_size: int = BLOCK_SIZE, force: bool = False) -> None:
    """Make an image of zeros, ``size`` bytes large; raises UserError. Without ``format`` the name decides."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in FOREIGN:
        raise UserError(
            f"hvemu makes no images of the format {FOREIGN[suffix.lower()]}",
            f"Make {stem}.vhd, and convert that: hvemu disk convert {stem}.vhd {path}.",
        )
    vhd = is_vhd(path)
    format = format or ("vhd" if vhd else "raw")
    if vhd != (format != "raw"):
        raise UserError(
            f"'{path}' is not what an image of the format {format} is called",
            "The name of a VHD ends in .vhd, and no other does.",
        )
    largest = LARGEST_DISK if vhd else LARGEST_RAW
    if size % SECTOR or not 0 < size <= largest:
        raise UserError(
            f"A disk cannot have {size} bytes",
            f"Give a multiple of {SECTOR}B, from {SECTOR}B to {largest >> 30}G.",
        )
    with new_file(path, force=force) as file:
        try:
            if format == "raw":
                file.truncate(size)
            elif format == "vhd-fixed":
                make_fixed(file, size)
            else:
                make_dynamic(file, size, block_size=block_size)
        except OSError as error:
            raise UserError(
                f"Cannot make '{path}': {error.strerror}", "Give another place or a smaller size."
            ) from None


@contextlib.contextmanager
def new_file(path: str, *, force: bool = False) -> Iterator[HostFile]:
    """A file that is called ``path`` when the block ends without an exception, and gone otherwise; raises UserError."""
    if os.path.lexists(path):
        if not force:
            raise UserError(f"'{path}' exists already", "Give another name, or --force to overwrite it.")
        HostFile.open(path, read_only=False).close()  # nobody uses it
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise UserError(f"There is no folder '{folder}' for '{os.path.basename(path)}'", "Make it first.")
    working = f"{path}.new"
    refuse_leftover(working)
    file = HostFile.create(working)
    try:
        yield file
        file.sync()
        os.replace(working, path)
        sync_folder(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(working)
        raise
    finally:
        file.close()


def make_fixed(file: ImageFile, size: int) -> FixedVhd:
    """A fixed VHD of zeros in an empty file, for writing; raises OSError."""
    footer = Footer.make(FIXED, size, uuid.uuid4().bytes, time_stamp(time.time()))
    file.write(size, footer.pack())
    return FixedVhd(file, footer, read_only=False, same_contents=True)


def make_dynamic(file: ImageFile, size: int, *, block_size: int = BLOCK_SIZE) -> None:
    """A dynamic VHD of zeros in an empty file; raises OSError."""
    footer = Footer.make(DYNAMIC, size, uuid.uuid4().bytes, time_stamp(time.time()))
    _write_empty(file, footer, DynamicHeader.make(size, block_size, SECTOR + HEADER_SIZE), b"")


def make_differencing(
    file: ImageFile, name: str, parent: str, parent_footer: Footer, modified: float, *, block_size: int = BLOCK_SIZE
) -> None:
    """A VHD called ``name`` in an empty file, all of which is its parent's still; raises UserError and OSError."""
    size = parent_footer.current_size
    footer = Footer.make(DIFFERENCING, size, uuid.uuid4().bytes, time_stamp(time.time()))
    start = SECTOR + HEADER_SIZE
    header, paths = linked(DynamicHeader.make(size, block_size, start), name, parent, parent_footer, modified, start)
    _write_empty(file, footer, header._replace(table_offset=start + len(paths)), paths)


def snapshot_image(
    path: str, child: str, *, parents_in: Sequence[str] = (), block_size: int = BLOCK_SIZE, force: bool = False
) -> None:
    """Make ``child`` the new top of a chain: it reads as ``path`` does, and takes all writes; raises UserError."""
    if not is_vhd(child):
        raise UserError(f"'{child}' is to be a differencing VHD", "Give it a name that ends in .vhd.")
    if os.path.realpath(path) == os.path.realpath(child):
        raise UserError(f"'{path}' cannot build on itself", "Give the snapshot another name.")
    folders = Folders(child, parents_in)
    if not folders.allows(os.path.realpath(path)):
        raise UserError(
            f"'{path}' is not in the folder of '{child}', nor below", "Put both into one folder, or give --parents-in."
        )
    with new_file(child, force=force) as file:
        chain = Chain(file, folders)
        with contextlib.closing(chain.open_named(path)) as parent:
            if os.path.realpath(child) in map(os.path.realpath, (each.name for each in chain.files)):
                raise UserError(f"'{path}' builds on '{child}'", "Give the snapshot another name.")
            make_differencing(file, child, path, parent.footer, parent.file.modified(), block_size=block_size)


def copy_image(source: BlockBackend, path: str, format: str, *, force: bool = False) -> None:
    """Write all that ``source`` reads as to a new image; raises UserError, and OSError when ``source`` does."""
    if is_vhd(path) != (format != "raw"):
        raise UserError(f"'{path}' is not what an image of the format {format} is called", "A VHD's name ends in .vhd.")
    if format != "raw" and source.size > LARGEST_DISK:
        raise UserError(f"A VHD cannot have {source.size} bytes", "Use --format raw.")
    with new_file(path, force=force) as file:
        destination = _MAKERS[format](file, source.size)
        copy_contents(source, destination)
        destination.flush()


def copy_contents(source: BlockBackend, destination: BlockBackend) -> None:
    """Into a destination of zeros, from which zeros are left out; raises OSError."""
    for offset, length in allocated_parts(source):
        data = source.read(offset, length)
        for start in range(0, length, _GRAIN):
            grain = data[start : start + _GRAIN]
            if grain.count(0) != len(grain):
                destination.write(offset + start, grain)


def allocated_parts(source: BlockBackend) -> Iterator[tuple[int, int]]:
    """Offset and length, at most 1 MiB, of what may be other than zeros."""
    offset = 0
    while offset < source.size:
        length, allocated = source.extent(offset)
        length = min(length, source.size - offset)
        if allocated:
            length = min(length, _CHUNK)
            yield offset, length
        offset += length


def _write_empty(file: ImageFile, footer: Footer, header: DynamicHeader, paths: bytes) -> None:
    packed = footer.pack()
    file.write(0, packed + header.pack() + paths)
    end = first_block(header)
    for start in range(header.table_offset, end, _CHUNK):
        file.write(start, b"\xff" * min(_CHUNK, end - start))
    file.write(end, packed)


def _new_raw(file: ImageFile, size: int) -> Image:
    file.truncate(size)
    return RawImage(file, read_only=False)


def _new_dynamic(file: ImageFile, size: int) -> Image:
    make_dynamic(file, size)
    return open_vhd(file, _NO_PARENTS, read_only=False, same_contents=True)


class _NoParents:
    def open(self, file: ImageFile, layout: object) -> Image:
        raise UserError(f"'{file.name}' has a parent", "This is a new image, which has none.")


_NO_PARENTS: Final = _NoParents()
_MAKERS: Final[dict[str, Callable[[ImageFile, int], Image]]] = {
    "raw": _new_raw,
    "vhd-fixed": make_fixed,
    "vhd": _new_dynamic,
}
