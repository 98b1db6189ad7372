"""Flushed means flushed: whatever part of the later writes arrives, in any combination of sectors."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.devices.images.changing import commit_files, copy_differences, write_header
from hvemu.devices.images.checking import check_vhd
from hvemu.devices.images.creating import make_differencing, make_dynamic, make_fixed
from hvemu.devices.images.opening import open_vhd
from hvemu.devices.images.parents import check_parent, linked
from hvemu.devices.images.vhd_layout import examine
from hvemu.vocabulary.errors import UserError

from .crash_file import CrashFile, PowerCut

BLOCK = 2048
SIZE = 7 * BLOCK + 1024
SECTORS = SIZE // 512


class Family:
    """Parents that are files in memory, by the name of their child."""

    def __init__(self, **parents):
        self.parents = parents

    def open(self, file, layout):
        parent = open_vhd(self.parents[file.name], self, read_only=True)
        check_parent(file, layout, parent, parent.footer)
        return parent


def contents(seed):
    """A disk, some of whose blocks are zeros, and some sectors of the others."""
    source = random.Random(seed)
    empty = [source.random() < 0.5 for _ in range(SIZE // BLOCK + 1)]
    sectors = (not empty[at * 512 // BLOCK] and source.random() < 0.7 for at in range(SECTORS))
    return b"".join(source.randbytes(512) if written else bytes(512) for written in sectors)


def base(seed, name="base.vhd"):
    """A durable dynamic image."""
    file = CrashFile(name)
    make_dynamic(file, SIZE, block_size=BLOCK)
    image = open_vhd(file, Family(), read_only=False)
    data = contents(seed)
    for sector in range(SECTORS):
        image.write(sector * 512, data[sector * 512 : sector * 512 + 512])
    image.flush()
    return file, data


def child_of(parent, name="child"):
    """A durable differencing image, empty."""
    file = CrashFile(name)
    footer = examine(parent).footer
    make_differencing(file, "/x/child.vhd", "/x/base.vhd", footer, parent.time, block_size=BLOCK)
    file.sync()
    return file


def made(kind, seed):
    """A file, its family, and what it reads as."""
    if kind == "differencing":
        parent, data = base(seed)
        return child_of(parent), Family(child=parent), data
    if kind == "fixed":
        file = CrashFile()
        make_fixed(file, SIZE)
    else:
        file, data = base(seed, "crash.vhd")
        return file, Family(), data
    file.sync()
    return file, Family(), bytes(SIZE)


OPERATION = st.tuples(
    st.sampled_from(["write", "write", "write", "discard", "flush", "zeros"]),
    st.integers(0, SECTORS - 1),
    st.integers(1, 9),
    st.integers(0, 255),
)


def recovered(file, family):
    """The image after a crash: as it is, or after the command that the refusal names."""
    try:
        return open_vhd(file, family, read_only=False)
    except UserError as error:
        hint = error.hint
    assert hint == f"Type: hvemu disk check --repair {file.name}."
    assert [] == check_vhd(file, repair=True).damages
    return open_vhd(file, family, read_only=False)


def run(image, operations, allowed):
    """Carry out operations; ``allowed`` has for each sector the contents that a crash may leave."""
    for kind, sector, wanted, byte in operations:
        count = min(wanted, SECTORS - sector)
        if kind == "flush":
            image.flush()
            for values in allowed:
                del values[:-1]
            continue
        data = bytes([byte if kind == "write" else 0]) * (512 * count)
        for values in allowed[sector : sector + count]:
            values.append(data[:512])
        if kind == "discard":
            image.discard(sector * 512, count * 512)
        else:
            image.write(sector * 512, data)


def verify(image, allowed):
    for sector, values in enumerate(allowed):
        assert image.read(sector * 512, 512) in values, sector


@pytest.mark.parametrize("kind", ["fixed", "dynamic", "differencing"])
@settings(max_examples=250)
@given(
    seed=st.integers(0, 7),
    operations=st.lists(OPERATION, min_size=1, max_size=25),
    fuse=st.integers(0, 120),
    luck=st.integers(0, 1 << 32).map(random.Random),
    more=st.lists(OPERATION, max_size=8),
)
def test_a_power_cut_leaves_what_was_flushed(kind, seed, operations, fuse, luck, more):
    """In the middle of any operation, repair included; and the image goes on being one."""
    file, family, data = made(kind, seed)
    allowed = [[data[at : at + 512]] for at in range(0, SIZE, 512)]
    file.fuse = fuse
    with contextlib.suppress(PowerCut):
        run(open_vhd(file, family, read_only=False), operations, allowed)
    odds = luck.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    file = file.after_power_cut(lambda: luck.random() < odds)
    file.fuse = luck.randrange(12)
    with contextlib.suppress(PowerCut):
        verify(recovered(file, family), allowed)
    file = file.after_power_cut(lambda: luck.random() < odds)
    image = recovered(file, family)
    verify(image, allowed)
    allowed = [[image.read(at, 512)] for at in range(0, SIZE, 512)]
    run(image, [*more, ("flush", 0, 0, 0)], allowed)
    file = file.after_power_cut(lambda: False)
    assert [] == examine(file).damages
    verify(open_vhd(file, family, read_only=True), allowed)


class Interrupted(Exception):
    """A commit of this image has begun."""


def reopened(file, family):
    """The image for reading, or Interrupted when it says that a commit is to be done again."""
    try:
        return open_vhd(file, family, read_only=True)
    except UserError as error:
        if "hvemu disk commit" in error.hint:
            raise Interrupted from None
        raise


@settings(max_examples=250)
@given(
    seed=st.integers(0, 3),
    operations=st.lists(OPERATION, max_size=12),
    fuse=st.integers(0, 150),
    luck=st.integers(0, 1 << 32).map(random.Random),
)
def test_a_commit_can_be_interrupted_anywhere(seed, operations, fuse, luck):
    """What the child reads as stays, in it or, when it is done again, in both."""
    parent, data = base(seed)
    child = child_of(parent)
    family = Family(child=parent)
    allowed = [[data[at : at + 512]] for at in range(0, SIZE, 512)]
    run(open_vhd(child, family, read_only=False), [*operations, ("flush", 0, 0, 0)], allowed)
    parent.fuse, child.fuse = fuse, luck.randrange(40)
    odds = luck.choice([0.0, 0.5, 1.0])
    with contextlib.suppress(PowerCut):
        commit_files(child, examine(child), parent, Family())
    parent, child = (file.after_power_cut(lambda: luck.random() < odds) for file in (parent, child))
    for file in (parent, child):
        if not check_vhd(file).sound:
            assert check_vhd(file, repair=True).sound
    family = Family(child=parent)
    with contextlib.suppress(Interrupted):
        verify(reopened(child, family), allowed)
    commit_files(child, examine(child), parent, Family())
    verify(open_vhd(child, family, read_only=True), allowed)
    verify(open_vhd(parent, Family(), read_only=True), allowed)
    assert 0 == open_vhd(child, family, read_only=True).allocated_blocks()


@settings(max_examples=250)
@given(
    seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    operations=st.lists(OPERATION, max_size=12),
    fuse=st.integers(0, 12) | st.integers(13, 150),
    luck=st.integers(0, 1 << 32).map(random.Random),
)
def test_a_rebase_can_be_interrupted_anywhere(seeds, operations, fuse, luck):
    """The child has the old parent or the new one, and reads the same."""
    old, data = base(seeds[0])
    new, _ = base(seeds[1], "new.vhd")
    child = child_of(old)
    allowed = [[data[at : at + 512]] for at in range(0, SIZE, 512)]
    run(open_vhd(child, Family(child=old), read_only=False), [*operations, ("flush", 0, 0, 0)], allowed)
    child.fuse = fuse if fuse > 12 else None
    with contextlib.suppress(PowerCut):
        image = open_vhd(child, Family(child=old), read_only=False, same_contents=True)
        copy_differences(image, image.parent, open_vhd(new, Family(), read_only=True))
        child.fuse = child.fuse or fuse  # up to 12: in the last step
        layout = examine(child)
        footer = examine(new).footer
        start = layout.end + 1024
        write_header(child, layout, *linked(layout.header, "/x/child.vhd", "/x/new.vhd", footer, new.time, start))
    odds = luck.choice([0.0, 0.5, 1.0])
    child = child.after_power_cut(lambda: luck.random() < odds)
    if not check_vhd(child).sound:
        assert check_vhd(child, repair=True).sound
    is_new = examine(child).header.parent_unique_id == examine(new).footer.unique_id
    verify(open_vhd(child, Family(child=new if is_new else old), read_only=True), allowed)
