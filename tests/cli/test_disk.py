"""``hvemu disk``: what a user types and reads."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hvemu.cli import main
from hvemu.cli.disk import COMMANDS
from hvemu.devices.images import open_image

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.usefixtures("_here")


def disk(*words: str) -> int:
    return main(["disk", *words])


def write(path: str, data: bytes) -> None:
    image = open_image(path)
    image.write(0, data)
    image.close()


def test_the_commands_are_listed_and_each_has_help(capsys: Captured) -> None:
    """And what is none is refused by name."""
    assert 0 == disk("--help")
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in listed
        assert 0 == disk(name, "--help")
    assert 2 == disk()
    assert 2 == disk("destroy")
    assert "There is no command 'disk destroy'. Commands are: create" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["create", "a.img"], "The following arguments are required: SIZE. See hvemu disk create --help."),
        (["create", "a.img", "64"], "'64' is not the size of a disk. Write it with its unit, as 64M, 1.5G or 1024B."),
        (["create", "a.img", "1.5B"], "'1.5B' is not a whole number of bytes. Write it in bytes, as 1536B."),
        (["create", "a.img", "0M"], "A disk cannot have 0 bytes. Give a multiple of 512B, from 512B to"),
        (["create", "a.img", "1000B"], "A disk cannot have 1000 bytes. Give a multiple"),
        (
            ["create", "a.vhd", "3T"],
            "A disk cannot have 3298534883328 bytes. Give a multiple of 512B, from 512B to 2040G.",
        ),
        (["create", "a.img", "1M", "--format", "vhd"], "The name of a VHD ends in .vhd"),
        (["create", "a.vhd", "1M", "--format", "raw"], "The name of a VHD ends in .vhd"),
        (["create", "a.qcow2", "1M"], "hvemu makes no images of the format qcow2. Make a.vhd, and convert that"),
        (["create", "nowhere/a.img", "1M"], "There is no folder 'nowhere' for 'a.img'. Make it first."),
        (["info", "gone.qcow2"], "Cannot open 'gone.qcow2': No such file or directory. Give the path of a disk image."),
        (["info", "cut.iso"], "'cut.iso' has 700 bytes, and a disk has whole sectors of 512. It is not all there"),
        (["info", "bad.vhd", "--parents-in", "nowhere"], "There is no folder 'nowhere'. Give --parents-in"),
        (["create", "there.img", "1M"], "'there.img' exists already. Give another name, or --force to overwrite it."),
        (["info", "gone.img"], "Cannot open 'gone.img': No such file or directory. Give the path of a disk image."),
        (["info", "."], "'.' is not a regular file. Give the path of a disk image."),
        (["info", "odd.img"], "'odd.img' has 700 bytes, and a disk has whole sectors of 512. Type: truncate -s 1024"),
        (["info", "bad.vhd"], "'bad.vhd' cannot be used: it has no footer that is whole. Take it from a backup"),
        (["snapshot", "there.img", "b.vhd"], "convert there.img there.vhd --format vhd-fixed."),
        (["snapshot", "there.img", "b.img"], "Give it a name that ends in .vhd."),
        (["commit", "there.img"], "'there.img' builds on no other image. Give a snapshot"),
        (["rebase", "there.img", "b.vhd"], "'there.img' builds on no other image. Give a snapshot"),
        (["convert", "there.img", "there.img"], "'there.img' exists already."),
        (["convert", "there.img", "there.img", "--force"], "'there.img' is in use"),
    ],
)
def test_a_mistake_is_a_sentence(words: list[str], sentence: str, capsys: Captured) -> None:
    """Status 2; nothing is made and nothing is lost."""
    Path("there.img").write_bytes(b"t" * 512)
    for name in ("odd.img", "cut.iso"):
        Path(name).write_bytes(bytes(700))
    Path("bad.vhd").write_bytes(bytes(1024))
    assert 2 == disk(*words)
    assert sentence in capsys.readouterr().err
    assert ["bad.vhd", "cut.iso", "odd.img", "there.img"] == sorted(os.listdir())
    assert b"t" * 512 == Path("there.img").read_bytes()


def test_info_says_what_is_promised_and_what_is_taken(capsys: Captured) -> None:
    """For people and for programs, of a whole chain."""
    disk("create", "base.vhd", "1G")
    write("base.vhd", b"x" * 4096)
    disk("snapshot", "base.vhd", "top.vhd")
    capsys.readouterr()
    assert 0 == disk("info", "top.vhd")
    text = capsys.readouterr().out
    assert "promised   1073741824 bytes (1 GiB)" in text
    assert "builds on " in text
    assert "chain of 2: " in text
    assert 0 == disk("info", "top.vhd", "--json")
    data = json.loads(capsys.readouterr().out)
    assert 1 << 30 == data["virtual_size"]
    assert [("vhd differencing", 0), ("vhd", 2 << 20)] == [(one["format"], one["allocated"]) for one in data["images"]]
    assert data["stored"] < 1 << 20


def test_a_size_may_be_a_fraction_of_its_unit() -> None:
    """As people write them."""
    for size in ("1.5M", "1.5MiB", "1536K", "1572864B"):
        assert 0 == disk("create", "half.img", size, "--force")
        assert 3 << 19 == os.path.getsize("half.img")
    assert [2] * 2 == [main(["disk", "create", "b.img", size]) for size in ("1BiB", "1MB")]


def test_info_of_an_image_in_use_is_refused_unless_it_need_not_be_exact(capsys: Captured) -> None:
    """A guest that writes does not keep anybody from asking how full the host is."""
    disk("create", "base.vhd", "1G")
    disk("snapshot", "base.vhd", "top.vhd")
    with contextlib.closing(open_image("top.vhd")) as image:
        image.write(0, b"x" * 4096)
        assert 2 == main(["disk", "info", "top.vhd"])
        assert "hvemu disk info --force-share" in capsys.readouterr().err
        for flushed in (0, 2 << 20):
            assert 0 == disk("info", "top.vhd", "--json", "-U")
            assert flushed == json.loads(capsys.readouterr().out)["images"][0]["allocated"]
            image.flush()
        image.write(512, b"y" * 512)
        assert b"x" * 512 == image.read(0, 512)


def test_check_has_statuses(capsys: Captured) -> None:
    """0 when nothing is wrong or all was repaired, 74 when something is."""
    disk("create", "a.vhd", "8M")
    assert 0 == disk("check", "a.vhd")
    with open("a.vhd", "r+b") as file:
        file.truncate(os.path.getsize("a.vhd") - 512)
    assert 74 == disk("check", "a.vhd")
    assert "damaged: its footer is missing at the end; hvemu disk check --repair can" in capsys.readouterr().out
    assert 0 == disk("check", "a.vhd", "--repair")
    assert capsys.readouterr().out == "repaired: wrote the footer at the end\nno damage is left\n"
    assert 0 == disk("check", "a.vhd")
    assert capsys.readouterr().out == "no damage was found\n"


def test_check_says_when_a_repair_gives_contents_up(capsys: Captured) -> None:
    """Before it is asked for."""
    disk("create", "a.vhd", "8M")
    write("a.vhd", b"x" * (4 << 20))
    os.truncate("a.vhd", 3 << 20)
    assert 74 == disk("check", "a.vhd")
    assert "hvemu disk check --repair gives them up, with what is left of them: copy the file first" in (
        capsys.readouterr().out
    )
    assert 0 == disk("check", "a.vhd", "--repair")
    assert re.search(r"repaired: gave up 1 blocks: 1\n.*no damage is left\n", capsys.readouterr().out, re.DOTALL)


def test_check_finds_a_parent_that_was_changed(capsys: Captured) -> None:
    """Which only the user can put right."""
    disk("create", "a.vhd", "8M")
    disk("snapshot", "a.vhd", "b.vhd")
    write("a.vhd", b"x" * 512)
    assert 74 == disk("check", "b.vhd")
    assert "hvemu disk rebase --unsafe" in capsys.readouterr().out


def test_a_chain_from_beginning_to_end() -> None:
    """create, convert, snapshot, commit, rebase."""
    assert 0 == disk("create", "a.img", "5M")
    write("a.img", b"1" * 512)
    assert 0 == disk("convert", "a.img", "a.vhd", "--format", "vhd-fixed")
    assert 0 == disk("snapshot", "a.vhd", "b.vhd")
    write("b.vhd", b"2" * 512)
    assert 0 == disk("commit", "b.vhd")
    assert 0 == disk("convert", "a.vhd", "c.vhd")
    assert 0 == disk("rebase", "b.vhd", "c.vhd")
    assert 0 == disk("convert", "b.vhd", "a.img", "--force")
    assert b"2" * 512 + bytes((5 << 20) - 512) == Path("a.img").read_bytes()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed; apt-get install qemu-utils")
@pytest.mark.parametrize("suffix", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_images_of_others_go_through_qemu_img(suffix: str) -> None:
    """There and back again."""
    disk("create", "a.img", "3M")
    write("a.img", b"12345678" * 4096)
    contents = Path("a.img").read_bytes()
    assert 0 == disk("convert", "a.img", f"b.{suffix}")
    assert 2 == disk("convert", "a.img", f"b.{suffix}")
    assert 0 == disk("convert", f"b.{suffix}", "c.vhd")
    assert 0 == disk("convert", "c.vhd", "d.img")
    assert contents == Path("d.img").read_bytes()
    assert ["a.img", f"b.{suffix}", "c.vhd", "d.img"] == sorted(os.listdir())


def test_a_copy_does_not_overwrite_the_name_that_it_is_written_under(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Until it is whole; somebody's file may have that name. No qemu-img is started."""
    disk("create", "a.img", "1M")
    Path("b.qcow2.new").write_text("mine")
    monkeypatch.setenv("PATH", "")
    assert 2 == disk("convert", "a.img", "b.qcow2")
    assert "'b.qcow2.new' is there" in capsys.readouterr().err
    assert ("mine", ["a.img", "b.qcow2.new"]) == (Path("b.qcow2.new").read_text(), sorted(os.listdir()))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed; apt-get install qemu-utils")
def test_images_of_others_that_name_other_files_are_refused(capsys: Captured) -> None:
    """A backing file, an external data file, a descriptor with extents."""
    Path("secret.img").write_bytes(b"s" * 65536)
    make = ["qemu-img", "create", "-f", "qcow2"]
    subprocess.run([*make, "-F", "raw", "-b", "secret.img", "a.qcow2"], check=True, capture_output=True)
    subprocess.run(
        [*make, "-o", "data_file=data.img,data_file_raw=on", "b.qcow2", "64K"], check=True, capture_output=True
    )
    Path("c.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 128 FLAT "secret.img" 0\n'
    )
    for path in ("a.qcow2", "b.qcow2", "c.vmdk"):
        assert 2 == disk("convert", path, "out.img")
        assert f"'{path}' refers to other files. If you trust it, make it one file" in capsys.readouterr().err
    assert not os.path.exists("out.img")


def test_without_qemu_img_its_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """And nothing is left behind."""
    disk("create", "a.img", "1M")
    monkeypatch.setenv("PATH", "")
    assert 2 == disk("convert", "a.img", "a.qcow2")
    assert (
        "qemu-img is not installed, which converts images of others. Type: apt-get install" in capsys.readouterr().err
    )
    assert ["a.img"] == os.listdir()
