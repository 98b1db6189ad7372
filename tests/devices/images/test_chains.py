"""Snapshots: what a chain promises, and what it refuses."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from hvemu.devices.images import open_image
from hvemu.devices.images.changing import commit_image, rebase_image
from hvemu.devices.images.checking import check_vhd
from hvemu.devices.images.creating import create_image, snapshot_image
from hvemu.devices.images.describing import describe
from hvemu.devices.images.host_file import HostFile
from hvemu.devices.images.parents import LONGEST_CHAIN
from hvemu.devices.images.vhd_dynamic import DynamicVhd
from hvemu.devices.images.vhd_format import BLOCK_SIZE, DynamicHeader
from hvemu.devices.images.vhd_layout import examine
from hvemu.vocabulary.errors import UserError

SIZE = 6 << 20


@pytest.fixture
def chain(tmp_path):
    """Paths of a base and its child, each with a megabyte of its own."""
    base, child = str(tmp_path / "base.vhd"), str(tmp_path / "child.vhd")
    create_image(base, SIZE)
    write(base, 0, b"b" * (1 << 20))
    snapshot_image(base, child)
    write(child, 1 << 19, b"c" * (1 << 20))
    return base, child


def write(path, offset, data):
    image = open_image(path)
    image.write(offset, data)
    image.close()


def read(path, offset, length):
    image = open_image(path, read_only=True)
    data = image.read(offset, length)
    image.close()
    return data


def test_a_child_reads_through_to_its_parent(chain):
    """Sector by sector; its writes stay in it."""
    base, child = chain
    assert b"b" * 512 + b"c" * 512 == read(child, (1 << 19) - 512, 1024)
    assert b"b" * 512 == read(base, 1 << 19, 512)


def test_what_is_alike_in_a_long_chain_costs_each_image_one_look_a_block(tmp_path, monkeypatch):
    """Not a look at every block for each block of the image above, which 32 images would never end."""
    paths = [str(tmp_path / f"{number}.vhd") for number in range(LONGEST_CHAIN)]
    blocks = 4
    create_image(paths[0], blocks * BLOCK_SIZE)
    for parent, child in pairwise(paths):
        snapshot_image(parent, child)
    image = open_image(paths[-1])
    looks, own_extent = [], DynamicVhd.own_extent

    def counted(self, offset):
        looks.append(offset)
        assert len(looks) <= blocks * LONGEST_CHAIN
        return own_extent(self, offset)

    monkeypatch.setattr(DynamicVhd, "own_extent", counted)
    assert (image.size, False) == image.extent(0)
    looks.clear()
    image.discard(0, image.size)
    assert not image.allocated_blocks()
    image.close()


def test_a_parent_is_locked_as_long_as_its_child_is_open(chain):
    """Against writing, not against reading; and one image has one writer."""
    base, child = chain
    image = open_image(child)
    open_image(base, read_only=True).close()
    for path in chain:
        with pytest.raises(UserError, match="is in use"):
            open_image(path)
    image.close()
    open_image(base).close()


@pytest.mark.parametrize("name", ["base.vhd", "link.vhd"])
def test_a_snapshot_never_takes_the_place_of_what_it_builds_on(chain, tmp_path, name):
    """Not even when it may overwrite files, and by whatever name."""
    base, child = chain
    os.symlink("base.vhd", tmp_path / "link.vhd")
    before = Path(base).read_bytes()
    with pytest.raises(UserError, match=f"builds on '.*{name}'"):
        snapshot_image(child, str(tmp_path / name), force=True)
    assert before == Path(base).read_bytes()
    assert ["base.vhd", "child.vhd", "link.vhd"] == sorted(os.listdir(tmp_path))
    assert b"b" * 512 == read(child, 0, 512)


@pytest.mark.parametrize("change", ["contents", "time"])
def test_a_parent_that_was_changed_is_refused(chain, change):
    """By hvemu, which the unique id tells at once, or by something else, which the time does; rebase helps."""
    base, child = chain
    if change == "contents":
        before = os.stat(base)
        write(base, 5 << 20, b"x" * 512)
        os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(base, (1_600_000_000, 1_600_000_000))
    with pytest.raises(UserError, match=rf"was changed after .* hvemu disk rebase --unsafe {child} {base}\."):
        open_image(child)
    rebase_image(child, base, unsafe=True)
    assert (b"x" if change == "contents" else b"\0") * 512 == read(child, 5 << 20, 512)


def test_opening_a_parent_without_writing_changes_nothing(chain):
    """Nor does a repair that leaves the contents."""
    base, child = chain
    open_image(base).close()
    with open(base, "r+b") as file:
        file.truncate(os.path.getsize(base) - 512)
    os.utime(base, (1_600_000_000, 1_600_000_000))
    rebase_hint = pytest.raises(UserError, match=f"hvemu disk check --repair {base}")
    with rebase_hint:
        open_image(child)
    file = HostFile.open(base, read_only=False)
    assert check_vhd(file, repair=True).sound
    file.close()
    assert 1_600_000_000 == os.path.getmtime(base)


def test_a_committed_child_is_empty_and_its_siblings_are_refused(chain, tmp_path):
    """Its own children still fit, as it reads what it read."""
    base, child = chain
    sibling, grandchild = str(tmp_path / "sibling.vhd"), str(tmp_path / "grandchild.vhd")
    snapshot_image(base, sibling)
    snapshot_image(child, grandchild)
    before = read(child, 0, SIZE)
    size = os.path.getsize(child)
    commit_image(child)
    assert [before] * 3 == [read(path, 0, SIZE) for path in (base, child, grandchild)]
    assert os.path.getsize(child) < size
    with pytest.raises(UserError, match="was changed"):
        open_image(sibling)


def test_nothing_is_committed_into_what_is_no_vhd_by_its_name(chain):
    """A guest that has a raw image may write there what looks like the parent of another image."""
    base, child = chain
    image = base.replace(".vhd", ".img")
    os.rename(base, image)
    before = Path(image).read_bytes()
    locators = [name.encode("utf-16-le") for name in ("\\base.vhd", "\\base.img")]
    Path(child).write_bytes(Path(child).read_bytes().replace(*locators))
    with pytest.raises(UserError, match="is no VHD"):
        commit_image(child)
    assert before == Path(image).read_bytes()


def test_rebase_keeps_what_is_read(chain, tmp_path):
    """Onto an empty image: everything is copied; children of the child still fit."""
    _, child = chain
    empty, grandchild = str(tmp_path / "empty.vhd"), str(tmp_path / "grandchild.vhd")
    create_image(empty, SIZE, "vhd-fixed")
    snapshot_image(child, grandchild)
    before = read(child, 0, SIZE)
    rebase_image(child, empty)
    os.unlink(chain[0])
    assert [before] * 2 == [read(path, 0, SIZE) for path in (child, grandchild)]
    for parent, sentence in ((child, "would build on itself"), (grandchild, "would build on itself|in use")):
        with pytest.raises(UserError, match=sentence):
            rebase_image(child, parent)


def test_a_folder_with_a_chain_can_be_moved(chain, tmp_path):
    """The relative path counts."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in chain:
        os.rename(path, elsewhere / os.path.basename(path))
    assert b"b" * 512 == read(str(elsewhere / "child.vhd"), 0, 512)


def test_thin_provisioning_is_reported(chain):
    """Each image and what it takes of the host; discarded blocks come back."""
    facts = describe(chain[1])
    assert [(SIZE, 2 << 20), (SIZE, 2 << 20)] == [(one.virtual_size, one.allocated) for one in facts]
    base = open_image(chain[0])
    stored = base.file.stored()
    base.discard(0, SIZE)
    base.flush()
    assert 0 == base.allocated_blocks()
    assert base.file.stored() <= stored - (1 << 20) + 8192
    base.close()


def test_the_footer_at_the_end_is_found_again(chain):
    """Cut off, overwritten, or followed by what was never used."""
    base = chain[0]
    contents = read(base, 0, SIZE)
    original = Path(base).read_bytes()
    for damaged in (
        original[:-512],
        original[:-512] + b"\1" * 512,
        original + b"\1" * 5000,
        b"\1" * 512 + original[512:],
    ):
        with open(base, "wb") as file:
            file.write(damaged)
        with pytest.raises(UserError, match=f"Type: hvemu disk check --repair {base}."):
            open_image(base)
        file = HostFile.open(base, read_only=False)
        assert not check_vhd(file).sound
        assert check_vhd(file, repair=True).sound
        assert [] == examine(file).damages
        file.close()
        assert contents == read(base, 0, SIZE)
        assert len(original) == os.path.getsize(base)


def test_a_damaged_table_is_given_up_where_it_cannot_be_true(chain):
    """The rest stays; and the child notices."""
    base, child = chain
    write_at(base, 1536 + 4, b"\0\0\0\1")
    file = HostFile.open(base, read_only=False)
    assert ["1 blocks of its table lie outside of it, on its metadata or on each other"] == [
        damage.what for damage in check_vhd(file).damages
    ]
    assert ["wrote the copy", "gave up 1 bl", "wrote the fo"] == [
        line[:12] if "copy" not in line else line[:14] for line in check_vhd(file, repair=True).repaired
    ]
    file.close()
    assert b"b" * (1 << 20) == read(base, 0, 1 << 20)
    with pytest.raises(UserError, match="was changed"):
        open_image(child)


def write_at(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_full_host_is_an_error_that_the_image_survives(tmp_path):
    """What was flushed stays, and writing goes on when there is space again."""
    path = str(tmp_path / "a.vhd")
    create_image(path, SIZE)
    image = open_image(path)
    image.write(0, b"1" * 512)
    image.flush()
    real, calls = image.file.write, []

    def full(offset, data):
        calls.append(offset)
        raise OSError(28, "No space left on device")

    image.file.write = full
    with pytest.raises(OSError, match="No space left"):
        image.write(4 << 20, b"2" * 512)
    image.file.write = real
    assert calls
    image.write(2 << 20, b"3" * 512)
    image.close()
    assert [b"1" * 512, b"3" * 512, bytes(512)] == [read(path, at << 20, 512) for at in (0, 2, 4)]


def test_a_flush_that_failed_is_never_followed_by_one_that_succeeds(tmp_path):
    """The kernel has dropped what it could not write."""
    path = str(tmp_path / "a.vhd")
    create_image(path, SIZE)
    image = open_image(path)
    image.write(0, b"1" * 512)
    real = image.file.sync

    def broken():
        raise OSError(5, "Input/output error")

    image.file.sync = broken
    with pytest.raises(OSError, match="Input"):
        image.flush()
    image.file.sync = real
    for action in (image.flush, lambda: image.write(0, bytes(512)), image.close):
        with pytest.raises(OSError, match="has lost writes"):
            action()


def test_few_changes_wait_for_a_flush_however_large_a_request_is(tmp_path):
    """One write to six thousand blocks, and a discard of them in a child, where each needs a bitmap."""
    base, child = str(tmp_path / "a.vhd"), str(tmp_path / "b.vhd")
    create_image(base, 3 << 20, block_size=512)
    write(base, 0, b"1" * (3 << 20))
    snapshot_image(base, child, block_size=512)
    image = open_image(child)
    flushes = []
    real = image.file.sync
    image.file.sync = lambda: flushes.append(real())
    image.discard(0, 3 << 20)
    assert len(flushes) >= 2 * (6144 * 2 // 1024 - 1)
    assert bytes(3 << 20) == image.read(0, 3 << 20)
    image.close()
    assert b"1" * (3 << 20) == read(base, 0, 3 << 20)


def test_entries_of_a_table_that_no_block_has_are_left_alone(tmp_path):
    """Programs that mean to resize an image make its table larger than it need be, and look at all of it."""
    path = str(tmp_path / "a.vhd")
    create_image(path, SIZE)
    with open(path, "r+b") as file:
        raw = file.read()
        header = DynamicHeader.parse(raw[512:1536])._replace(most_entries=1 << 16)
        file.seek(512)
        file.write(header.pack() + b"\xff" * (1 << 18) + raw[:512])
    write(path, 0, b"1" * 512)
    file = HostFile.open(path, read_only=False)
    assert not check_vhd(file, repair=True).repaired
    file.close()
    assert b"\xff" * ((1 << 18) - 4) == Path(path).read_bytes()[1536 + 4 : 1536 + (1 << 18)]
    assert b"1" * 512 == read(path, 0, 512)


def test_what_lies_behind_the_end_of_a_disk_never_comes_into_it(tmp_path):
    """The last block is larger than what is left of the disk; another program may have left something there."""
    path = str(tmp_path / "a.vhd")
    create_image(path, BLOCK_SIZE + 1024)
    write(path, BLOCK_SIZE, b"1" * 1024)
    with open(path, "r+b") as file:
        file.seek(-512 - (BLOCK_SIZE - 1024), os.SEEK_END)
        file.write(b"x" * (BLOCK_SIZE - 1024))
    image = open_image(path)
    image.discard(BLOCK_SIZE, 1024)
    image.flush()
    size = image.file.size()
    image.write(0, b"2" * 512)
    assert size == image.file.size()  # the place of the last block is that of the first now
    assert b"2" * 512 + bytes(BLOCK_SIZE + 512) == image.read(0, image.size)
    image.close()


def test_a_place_belongs_to_one_block_only(tmp_path):
    """A block that is discarded and written again before a flush keeps its place; one that is flushed gives it away."""
    path = str(tmp_path / "a.vhd")
    create_image(path, SIZE)
    image = open_image(path)
    image.write(0, b"1" * 512)
    image.flush()
    image.discard(0, 2 << 20)
    image.write(512, b"2" * 512)
    image.flush()
    image.write(2 << 20, b"3" * 512)
    size = image.file.size()
    image.discard(0, 2 << 20)
    image.flush()
    image.write(4 << 20, b"4" * 512)
    assert size == image.file.size()
    image.close()
    assert [bytes(512), b"3" * 512, b"4" * 512] == [read(path, at << 20, 512) for at in (0, 2, 4)]
    assert bytes(SIZE - (4 << 20) - 512) == read(path, (4 << 20) + 512, SIZE - (4 << 20) - 512)
