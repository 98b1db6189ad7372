"""Changes to chains of images: commit a child into its parent, give a child another parent.

Each step leaves the disk as it reads, so that it can be interrupted anywhere and done again. What keeps the contents
keeps the unique id and the time of modification too, so that images that build on it still fit.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from hvemu.devices.contract import BlockBackend
from hvemu.devices.images.contract import SECTOR, ImageFile
from hvemu.devices.images.host_file import HostFile
from hvemu.devices.images.opening import Chain, check_vhd_name, is_vhd, open_vhd, sound_layout
from hvemu.devices.images.parents import Folders, Parents, check_parent, committed_id, linked, time_stamp
from hvemu.devices.images.vhd_dynamic import DynamicVhd
from hvemu.devices.images.vhd_fixed import FixedVhd
from hvemu.devices.images.vhd_format import DIFFERENCING, HEADER_SIZE, DynamicHeader
from hvemu.devices.images.vhd_layout import Layout, examine
from hvemu.vocabulary.errors import UserError

_GRAIN: Final = 1 << 16


def commit_image(path: str, *, parents_in: Sequence[str] = ()) -> str:
    """Write all blocks of ``path`` into its parent and empty it; the path of the parent. Raises UserError and OSError.

    First the parent gets an id that only this child knows, then the data, then the child notes the new id. A commit
    that was interrupted is recognised by that id, and is done again from its beginning.
    """
    with contextlib.ExitStack() as stack:
        file, layout = _open_child(path, stack)
        folders = Folders(path, parents_in)
        parent_path = folders.locate(file, _header(layout))
        check_vhd_name(parent_path)
        parent_file = HostFile.open(parent_path, read_only=False)
        stack.callback(parent_file.close)
        chain = Chain(file, folders)
        chain.files.append(parent_file)
        modified = file.modified()
        commit_files(file, layout, parent_file, chain)
        file.restore_modified(modified)
    return parent_path


def commit_files(file: ImageFile, layout: Layout, parent_file: ImageFile, parents: Parents) -> None:
    """The same for files that are open for writing; ``parents`` opens the parents of the parent."""
    parent = open_vhd(parent_file, parents, read_only=False, same_contents=True)
    try:
        _commit(file, layout, parent)
    finally:
        if isinstance(parent, DynamicVhd) and parent.parent is not None:
            parent.parent.close()


def _commit(file: ImageFile, layout: Layout, parent: FixedVhd | DynamicVhd) -> None:
    header, footer = _header(layout), layout.footer
    assert footer is not None
    check_parent(file, layout, parent, parent.footer, committing=True)
    new_id = committed_id(header.parent_unique_id, footer.unique_id)
    if parent.footer.unique_id != new_id:
        parent.identify(new_id)
    child = DynamicVhd(file, layout, parent, read_only=False, same_contents=True)
    for offset, length in _own_parts(child):
        for start in range(offset, offset + length, _GRAIN):
            data = child.read(start, min(_GRAIN, offset + length - start))
            if data.count(0) == len(data):
                parent.discard(start, len(data))
            else:
                parent.write(start, data)
    parent.flush()
    write_header(
        file,
        layout,
        header._replace(parent_unique_id=new_id, parent_time_stamp=time_stamp(parent.file.modified())),
        b"",
    )
    child.empty()


def rebase_image(path: str, new_parent: str, *, unsafe: bool = False, parents_in: Sequence[str] = ()) -> None:
    """Let ``path`` build on another parent; raises UserError and OSError.

    What the parents differ in is copied into ``path`` first; with ``unsafe`` it is not, and the old one need not exist.
    """
    folders = Folders(path, parents_in)
    if not folders.allows(os.path.realpath(new_parent)):
        raise UserError(
            f"'{new_parent}' is not in the folder of '{path}', nor below",
            "Put both into one folder, or give --parents-in.",
        )
    with contextlib.ExitStack() as stack:
        file, layout = _open_child(path, stack)
        header, footer = _header(layout), layout.footer
        assert footer is not None
        modified = file.modified()
        parent = Chain(file, folders).open_named(new_parent)
        stack.callback(parent.close)
        if parent.size != footer.current_size:
            raise UserError(
                f"'{path}' has {footer.current_size} bytes and '{new_parent}' {parent.size}",
                "Give a parent of the same size.",
            )
        kept = not unsafe or parent.footer.unique_id == header.parent_unique_id
        if not unsafe:
            old = Chain(file, folders).open(file, layout)
            stack.callback(old.close)
            child = DynamicVhd(file, layout, old, read_only=False, same_contents=True)
            copy_differences(child, old, parent)
            layout = examine(file)
        start = layout.end + HEADER_SIZE
        linked_header, paths = linked(header, path, new_parent, parent.footer, parent.file.modified(), start)
        if not kept:
            assert layout.footer is not None
            layout.footer = layout.footer._replace(unique_id=uuid.uuid4().bytes)
        write_header(file, layout, linked_header, paths)
        if kept:
            file.restore_modified(modified)


def copy_differences(child: DynamicVhd, old: BlockBackend, new: BlockBackend) -> None:
    """Write into ``child``, durably, what it reads from ``old`` and would read otherwise from ``new``."""
    offset = 0
    while offset < child.size:
        length, own = child.own_extent(offset)
        length = min(length, _GRAIN)
        if not own:
            length = min(length, child.size - offset)
            before, after = old.read(offset, length), new.read(offset, length)
            if before != after:
                child.write(offset, before)
        offset += length
    child.flush()


def write_header(file: ImageFile, layout: Layout, header: DynamicHeader, paths: bytes) -> None:
    """Replace the header at once or not at all. ``paths`` is what its locators point to, behind the place of a new one.

    Its first sector may be written in place. When the second changes too, the header moves to the end of the file, and
    then the copy of the footer, which is one sector, is made to point to it.
    """
    footer = layout.footer
    assert footer is not None
    packed = header.pack()
    if not paths:
        file.write(footer.data_offset, packed[:SECTOR])
        file.sync()
        return
    end = layout.end + len(packed) + len(paths)
    file.truncate(layout.end)
    file.write(end, footer.pack())
    file.write(layout.end, packed + paths)
    file.sync()
    moved = footer._replace(data_offset=layout.end).pack()
    file.write(0, moved)
    file.sync()
    file.write(end, moved)
    file.sync()


def _open_child(path: str, stack: contextlib.ExitStack) -> tuple[HostFile, Layout]:
    if not is_vhd(path):
        raise UserError(f"'{path}' builds on no other image", "Give a snapshot, made by hvemu disk snapshot.")
    file = HostFile.open(path, read_only=False)
    stack.callback(file.close)
    layout = sound_layout(file)
    if layout.footer is None or layout.footer.disk_type != DIFFERENCING:
        raise UserError(f"'{path}' builds on no other image", "Give a snapshot, made by hvemu disk snapshot.")
    return file, layout


def _header(layout: Layout) -> DynamicHeader:
    assert layout.header is not None
    return layout.header


def _own_parts(child: DynamicVhd) -> Iterator[tuple[int, int]]:
    """Offset and length of all that lies in ``child`` itself."""
    offset = 0
    while offset < child.size:
        length, own = child.own_extent(offset)
        if own:
            yield offset, length
        offset += length
