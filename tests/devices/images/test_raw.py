"""A raw image: bytes, holes, and a file that changes under it."""

from pathlib import Path

import pytest

from hvemu.devices.images import host_file, open_image
from hvemu.devices.images.creating import create_image
from hvemu.vocabulary.errors import UserError

A = b"A" * 4096


@pytest.fixture
def image(tmp_path):
    """A sparse megabyte."""
    path = tmp_path / "raw.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    opened = open_image(str(path))
    yield opened
    opened.close()


def test_what_is_written_is_read_and_in_the_file(image, tmp_path):
    """At its offset."""
    image.write(8192, A)
    image.flush()
    assert A == image.read(8192, 4096) == (tmp_path / "raw.img").read_bytes()[8192:12288]
    assert 1 << 20 == image.size == (tmp_path / "raw.img").stat().st_size


def test_what_is_discarded_reads_as_zeros(image):
    """Aligned to the host's blocks or not."""
    image.write(0, A * 4)
    image.discard(512, 8192)
    assert A[:512] + bytes(8192) + A * 2 == (image.read(0, 16384))[: 512 + 8192] + A * 2
    assert A[:512] == image.read(512 + 8192, 512)


def test_extents_cover_the_image(image):
    """Allocated or not, in whole sectors, up to the end."""
    image.write(65536, A)
    position, allocated = 0, 0
    while position < image.size:
        length, there = image.extent(position)
        assert length >= 512
        assert length % 512 == 0
        allocated += length if there else 0
        position += length
    assert (image.size, True) == (position, 4096 <= allocated)


def test_what_was_never_written_is_not_allocated(image):
    """Up to where something is."""
    assert (1 << 20, False) == image.extent(0)
    image.write(65536, A)
    length, allocated = image.extent(0)
    assert (False, True) == (allocated, length <= 65536)


def test_a_part_of_a_sector_is_refused(tmp_path):
    """The size is in whole ones."""
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(1000))
    with pytest.raises(UserError, match="truncate -s 1024"):
        open_image(str(path), read_only=True)


def test_what_was_opened_for_reading_is_not_written(tmp_path):
    """By anybody."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    opened = open_image(str(path), read_only=True)
    with pytest.raises(OSError, match="write-protected"):
        opened.write(0, bytes(512))
    opened.close()


@pytest.mark.parametrize("name", ["a.img", "a.vhd"])
def test_after_a_flush_that_failed_nothing_is_taken_any_more(tmp_path, monkeypatch, name):
    """The host may have dropped anything; who goes on writing would believe that it is there."""
    path = str(tmp_path / name)
    create_image(path, 1 << 20, "raw" if name == "a.img" else "vhd-fixed")
    image = open_image(path)
    image.write(0, A)

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as host:
        host.setattr(host_file, "_data_sync", broken)
        with pytest.raises(OSError, match="Input"):
            image.flush()
    for action in (lambda: image.write(0, A), lambda: image.discard(0, 4096), image.flush, image.close):
        with pytest.raises(OSError, match="has lost writes"):
            action()
    assert A == Path(path).read_bytes()[:4096]


def test_a_file_that_shrinks_is_an_error(image, tmp_path):
    """Not a short read."""
    with (tmp_path / "raw.img").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(OSError, match="too early"):
        image.read(4096, 512)
