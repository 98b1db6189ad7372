"""No image, whatever it says, does more than be refused by a sentence or give an I/O error."""

import errno
import functools
import itertools
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.devices.images import open_image
from hvemu.devices.images.changing import commit_image, rebase_image
from hvemu.devices.images.checking import check_vhd
from hvemu.devices.images.creating import create_image, snapshot_image
from hvemu.devices.images.describing import describe
from hvemu.devices.images.host_file import HostFile
from hvemu.devices.images.vhd_format import DynamicHeader, Footer
from hvemu.vocabulary.errors import UserError

SIZE = 5 * 4096 + 512
NAMES = ["fixed.vhd", "base.vhd", "child.vhd"]


def make(folder):
    """A small image of each kind, with data in them."""
    create_image(f"{folder}/fixed.vhd", SIZE, "vhd-fixed")
    create_image(f"{folder}/base.vhd", SIZE, "vhd", block_size=4096)
    write(f"{folder}/base.vhd", 4096, b"base" * 2048)
    snapshot_image(f"{folder}/base.vhd", f"{folder}/child.vhd", block_size=2048)
    write(f"{folder}/child.vhd", 0, b"kids" * 1024)


def write(path, offset, data):
    image = open_image(path)
    image.write(offset, data)
    image.close()


@functools.cache
def originals():
    """Their bytes by name."""
    with tempfile.TemporaryDirectory() as folder:
        make(folder)
        return {name: Path(folder, name).read_bytes() for name in NAMES}


def reckon(data):
    """Correct checksums of whatever structures are still recognisable, so that fields are read and not their damage."""
    data = bytearray(data)
    for at in (0, len(data) - 512):
        if data[at : at + 8] == b"conectix":
            offset = struct.unpack_from(">Q", data, at + 16)[0]
            data[at + 64 : at + 68] = struct.pack(
                ">I", ~(sum(data[at : at + 512]) - sum(data[at + 64 : at + 68])) & 2**32 - 1
            )
            if data[offset : offset + 8] == b"cxsparse" and offset + 1024 <= len(data):
                total = sum(data[offset : offset + 1024]) - sum(data[offset + 36 : offset + 40])
                data[offset + 36 : offset + 40] = struct.pack(">I", ~total & 2**32 - 1)
    return bytes(data)


def attempt(action):
    """Only the two errors that a device and a user can be told."""
    told = ""
    number = errno.EIO
    try:
        return action()
    except UserError as error:
        told = str(error)
    except OSError as error:
        number = error.errno
    assert told == "" or told.endswith(".")
    assert number in (errno.EIO, errno.EINVAL, errno.EROFS)
    return None


def use(path):
    """Everything a user and a guest can do to an image."""
    for read_only in (True, False):
        image = attempt(functools.partial(open_image, path, read_only=read_only))
        if image is not None:
            last = image.size - 512
            for offset in {0, min(4096, last), last}:
                attempt(functools.partial(image.read, offset, 512))
                attempt(functools.partial(image.extent, offset))
                attempt(functools.partial(image.write, offset, b"w" * 512))
                attempt(functools.partial(image.discard, offset, 512))
            attempt(image.flush)
            attempt(image.close)
    attempt(lambda: describe(path))
    file = HostFile.open(path, read_only=False)
    findings = attempt(lambda: check_vhd(file, repair=True))
    assert findings is not None
    assert all(not damage.repairable for damage in findings.damages)
    assert findings.damages == check_vhd(file).damages
    file.close()
    folder = os.path.dirname(path)
    attempt(lambda: rebase_image(path, f"{folder}/base.vhd"))
    attempt(lambda: commit_image(path))


OFFSETS = st.one_of(
    st.integers(0, 3000),
    st.sampled_from([16, 24, 40, 48, 60, 512 + 16, 512 + 24, 512 + 28, 512 + 32, 512 + 576, 512 + 584, 512 + 592]),
    st.integers(-600, -1),
    st.integers(0, 40_000),
)
VALUES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\1", b"\0\0\2\0", b"\x7f\xff\xff\xff", b"\0\0\0\0\0\0\2\0"]),
)


@settings(max_examples=120)
@given(
    name=st.sampled_from(NAMES),
    changes=st.lists(st.tuples(OFFSETS, VALUES), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 30_000)),
    right=st.booleans(),
)
@example(name="base.vhd", changes=[(16, b"\xff" * 8)], cut=None, right=True)  # the header's place
@example(name="base.vhd", changes=[(512 + 28, b"\xff" * 4)], cut=None, right=True)  # entries of the table
@example(name="base.vhd", changes=[(512 + 32, b"\x80\0\0\0")], cut=None, right=True)  # the size of a block
@example(name="base.vhd", changes=[(512 + 16, b"\xff" * 6 + b"\0\0")], cut=None, right=True)  # the table's place
@example(name="base.vhd", changes=[(1536, bytes(8))], cut=None, right=True)  # blocks on the footer
@example(name="base.vhd", changes=[(1536, b"\0\0\0\x0b\0\0\0\x0b")], cut=None, right=True)  # on each other
@example(name="fixed.vhd", changes=[(-464, b"\x7f" * 8)], cut=None, right=True)  # a size that is not there
@example(name="child.vhd", changes=[(512 + 584, b"\xff" * 4)], cut=None, right=True)  # a path without end
def test_a_changed_image_is_refused_or_used(name, changes, cut, right):
    """Fields with right checksums and with wrong ones; no other file changes."""
    with tempfile.TemporaryDirectory() as folder:
        for other in NAMES:
            with open(f"{folder}/{other}", "wb") as file:
                file.write(originals()[other])
            os.utime(f"{folder}/{other}", (1_600_000_000, 1_600_000_000))
        data = bytearray(originals()[name])
        for offset, value in changes:
            at = offset if offset >= 0 else len(data) + offset
            data[at : at + len(value)] = value
        if cut is not None:
            del data[cut:]
        with open(f"{folder}/{name}", "wb") as file:
            file.write(reckon(data) if right and len(data) >= 512 else data)
        use(f"{folder}/{name}")
        others = set(NAMES) - {name} - ({"base.vhd"} if name == "child.vhd" else set())  # commit writes there
        for other in others:
            with open(f"{folder}/{other}", "rb") as file:
                assert originals()[other] == file.read()


def test_a_sparse_file_that_promises_everything_costs_little_memory(tmp_path):
    """A table of a quarter of a million blocks, all of them in one place."""
    path = tmp_path / "big.vhd"
    footer = Footer.make(3, 1 << 37, bytes(16), 0)
    header = DynamicHeader.make(1 << 37, 1 << 19, 1536)
    with path.open("wb") as file:
        file.write(footer.pack() + header.pack() + struct.pack(">I", 40_000_000) * header.most_entries)
        file.truncate(1 << 40)
        file.seek(-512, 2)
        file.write(footer.pack())
    tracemalloc.start()
    with pytest.raises(UserError, match="blocks of its table"):
        open_image(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def change_parent(path, text, code=b"W2ru"):
    """Let a child's first locator say ``text``."""
    data = bytearray(path.read_bytes())
    encoded = text.encode("utf-16-le", "surrogatepass")
    header = DynamicHeader.parse(bytes(data[512:1536]))
    locators = header.parent_locators()
    locators[0] = locators[0]._replace(code=code, length=len(encoded))
    at = locators[0].offset
    data[at : at + len(encoded)] = encoded
    data[512:1536] = header.with_locators(locators[:1]).pack()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("..\\secret.vhd", b"W2ru"),
        (".\\link\\secret.vhd", b"W2ru"),
        (".\\link.vhd", b"W2ru"),
        ("{outside}\\secret.vhd", b"W2ku"),
    ],
)
def test_no_parent_is_opened_outside_of_the_folder(tmp_path, text, code):
    """By dots, by links, or by its whole path; only when the user says so."""
    inside, outside = tmp_path / "inside", tmp_path
    inside.mkdir()
    create_image(str(outside / "secret.vhd"), SIZE, "vhd")
    (inside / "link").symlink_to(outside)
    (inside / "link.vhd").symlink_to(outside / "secret.vhd")
    snapshot_image(str(outside / "secret.vhd"), str(inside / "child.vhd"), parents_in=[str(outside)])
    change_parent(inside / "child.vhd", text.replace("{outside}", str(outside).replace("/", "\\")), code)
    with pytest.raises(UserError, match="lies in another folder"):
        open_image(str(inside / "child.vhd"))
    open_image(str(inside / "child.vhd"), parents_in=[str(outside)]).close()


@pytest.mark.parametrize(
    "text", [".\\pipe.vhd", ".\\folder.vhd", "C:\\base.vhd", ".\\\x1b[2J.vhd", "\ud800", ".\\a.img"]
)
def test_a_parent_that_is_no_image_is_refused(tmp_path, text):
    """A pipe that nobody writes holds nothing up."""
    create_image(str(tmp_path / "base.vhd"), SIZE, "vhd")
    snapshot_image(str(tmp_path / "base.vhd"), str(tmp_path / "child.vhd"))
    os.mkfifo(tmp_path / "pipe.vhd")
    (tmp_path / "folder.vhd").mkdir()
    (tmp_path / "a.img").write_bytes(bytes(SIZE))
    path = tmp_path / "child.vhd"
    change_parent(path, text)
    with pytest.raises(UserError) as refused:
        open_image(str(path))
    assert str(refused.value).isprintable()


def test_a_chain_that_bites_its_tail_is_refused(tmp_path):
    """The parent of the base is made its grandchild."""
    create_image(str(tmp_path / "base.vhd"), SIZE, "vhd")
    for one, two in itertools.pairwise(["base", "one", "two"]):
        snapshot_image(str(tmp_path / f"{one}.vhd"), str(tmp_path / f"{two}.vhd"))
    change_parent(tmp_path / "one.vhd", ".\\two.vhd")
    for read_only in (True, False):
        with pytest.raises(UserError, match="would build on itself"):
            open_image(str(tmp_path / "two.vhd"), read_only=read_only)


def test_a_chain_has_an_end(tmp_path):
    """After 32 images."""
    create_image(str(tmp_path / "0.vhd"), SIZE, "vhd")
    for number in range(1, 32):
        snapshot_image(str(tmp_path / f"{number - 1}.vhd"), str(tmp_path / f"{number}.vhd"))
    open_image(str(tmp_path / "31.vhd")).close()
    with pytest.raises(UserError, match="builds on more than 31 images"):
        snapshot_image(str(tmp_path / "31.vhd"), str(tmp_path / "32.vhd"))
    assert not (tmp_path / "32.vhd").exists()


def test_a_guest_cannot_make_a_raw_image_a_vhd(tmp_path):
    """The name decides, not the first sector."""
    create_image(str(tmp_path / "base.vhd"), SIZE, "vhd")
    snapshot_image(str(tmp_path / "base.vhd"), str(tmp_path / "child.vhd"))
    (tmp_path / "disk.img").write_bytes((tmp_path / "child.vhd").read_bytes())
    assert "raw" == open_image(str(tmp_path / "disk.img")).format


def test_a_guest_cannot_make_a_fixed_image_a_dynamic_one(tmp_path):
    """Whatever it writes to its first sectors is data, or the image is refused; nothing it names is opened."""
    path = str(tmp_path / "disk.vhd")
    create_image(path, 8192, "vhd-fixed")
    write(path, 0, Footer.make(4, 8192, bytes(16), 0).pack() + DynamicHeader.make(8192, 4096, 1536).pack())
    with pytest.raises(UserError, match="starts as one disk and ends as another"):
        open_image(path)
