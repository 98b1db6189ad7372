"""qemu-img reads what we write and writes what we read."""

import random
import subprocess

import pytest

from hvemu.devices.images import open_image
from hvemu.devices.images.creating import copy_image, create_image, snapshot_image
from tests.guests.packages import need

SIZES = [512, 1 << 20, (2 << 20) + 512, (7 << 20) + 1536, (33 << 20) - 512]
FORMATS = {"vhd": "dynamic", "vhd-fixed": "fixed"}


@pytest.fixture(scope="module")
def qemu_img():
    """A function that runs it; installs Debian's qemu-utils, or skips saying why."""
    need("qemu-img", "qemu-utils")

    def run(*words):
        done = subprocess.run(["qemu-img", *map(str, words)], check=False, capture_output=True, text=True)
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    return run


def scribble(path, seed):
    """Random writes and discards; what the disk reads as then."""
    source = random.Random(seed)
    image = open_image(str(path))
    size = image.size
    for _ in range(40):
        at = source.randrange(size // 512)
        count = min(source.choice([1, 2, 7, 64, 900]), size // 512 - at)
        if source.random() < 0.2:
            image.discard(at * 512, count * 512)
        else:
            image.write(at * 512, source.randbytes(512) * count)
    contents = image.read(0, size)
    image.close()
    return contents


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_qemu_img_reads_ours(qemu_img, tmp_path, format, size):
    """With its own size, not one of whole cylinders."""
    create_image(str(tmp_path / "a.vhd"), size, format)
    (tmp_path / "a.img").write_bytes(scribble(tmp_path / "a.vhd", size))
    assert f"({size} bytes)" in qemu_img("info", "-f", "vpc", tmp_path / "a.vhd")
    qemu_img("compare", "-f", "vpc", "-F", "raw", tmp_path / "a.vhd", tmp_path / "a.img")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_we_read_and_write_qemu_imgs(qemu_img, tmp_path, format, size):
    """And it reads its own image again after we have written to it."""
    contents = random.Random(size).randbytes(size // 4) + bytes(size - size // 4)
    (tmp_path / "a.img").write_bytes(contents)
    options = f"subformat={FORMATS[format]},force_size=on"
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", options, tmp_path / "a.img", tmp_path / "b.vhd")
    image = open_image(str(tmp_path / "b.vhd"), read_only=True)
    assert (format, contents) == (image.format, image.read(0, image.size))
    image.close()
    (tmp_path / "a.img").write_bytes(scribble(tmp_path / "b.vhd", size))
    qemu_img("compare", "-f", "vpc", "-F", "raw", tmp_path / "b.vhd", tmp_path / "a.img")


def test_a_size_of_whole_cylinders_is_read_too(qemu_img, tmp_path):
    """qemu-img rounds up unless it is told not to."""
    qemu_img("create", "-f", "vpc", tmp_path / "a.vhd", "10M")
    promised = int(qemu_img("info", "-f", "vpc", tmp_path / "a.vhd").split("(")[1].split()[0])
    image = open_image(str(tmp_path / "a.vhd"))
    assert promised == image.size > 10 << 20
    assert bytes(promised) == image.read(0, promised)
    image.close()


def test_qemu_img_reads_a_snapshot_that_was_made_one_image(qemu_img, tmp_path):
    """It has no differencing VHDs of its own."""
    create_image(str(tmp_path / "a.vhd"), 5 << 20)
    scribble(tmp_path / "a.vhd", 1)
    snapshot_image(str(tmp_path / "a.vhd"), str(tmp_path / "b.vhd"))
    (tmp_path / "b.img").write_bytes(scribble(tmp_path / "b.vhd", 2))
    image = open_image(str(tmp_path / "b.vhd"), read_only=True)
    copy_image(image, str(tmp_path / "c.vhd"), "vhd")
    image.close()
    qemu_img("compare", "-f", "vpc", "-F", "raw", tmp_path / "c.vhd", tmp_path / "b.img")
