"""``hvemu bench --boot``: one guest booted under every full mode, and where the time went."""

import pytest

from hvemu.cli import main
from hvemu.labs import bench_bochs, bench_boot
from hvemu.labs.bench_bochs import Booted
from hvemu.testing.catalog import catalog


@pytest.fixture
def files(tmp_path):
    """A small guest for a kernel, and something for an initial RAM disk."""
    module = tmp_path / "initrd"
    module.write_bytes(bytes(4096))
    return str(catalog()["compute"].image), str(module)


def test_one_boot_tells_its_seconds_exits_and_samples(files):
    """The samples are looks at this thread."""
    found = bench_boot.boot("svm/shadow", *files, "loops=20")
    assert (33, True) == (found["status"], found["seconds"] > 0)
    assert found["exits"]["io_out"]
    assert set(found["samples"]) <= {"the engine", "libraries", *(f"hvemu/{room}" for room in bench_boot._ROOMS)}


def test_all_are_booted_and_compared(files, capsys, monkeypatch):
    """With QEMU and Bochs, and without."""
    kernel, initrd = files
    monkeypatch.setattr(bench_boot, "qemu", lambda *_: 2.0)
    monkeypatch.setattr(bench_boot, "bochs", lambda *_: Booted(kernel=50.0, before=1.5))
    assert 0 == main(["bench", "--boot", kernel, "--initrd", initrd, "--append", "loops=1"])
    lines = capsys.readouterr().out.splitlines()
    assert "QEMU, TCG          2.0 s" == lines[0]
    words = "Bochs             50.0 s   25.00 of QEMU's  without its BIOS and boot loader, which took 1.5 s"
    assert words == lines.pop(1)
    shown = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert list(bench_boot.TECHNIQUES) == shown
    whose = ("of native's", "of QEMU's", "of Bochs'")
    assert all(word in line for line in lines[1:] if not line.startswith(" ") for word in whose)
    monkeypatch.undo()
    monkeypatch.setattr(bench_boot.shutil, "which", lambda name: None)
    monkeypatch.setattr(bench_bochs, "missing", lambda: ["bochs", "isolinux"])
    assert 0 == main(["bench", "--boot", kernel, "--initrd", initrd, "--append", "loops=1"])
    shown = capsys.readouterr().out
    assert "qemu-system-i386 is not installed" in shown
    assert "apt-get install bochs isolinux" in shown
    assert "of Bochs'" not in shown


def test_what_bochs_cannot_boot_is_said_and_the_others_go_on(files, monkeypatch):
    """This kernel is no bzImage, and Bochs itself is not even asked."""
    monkeypatch.setattr(bench_bochs, "missing", list)
    assert "no ratios to Bochs: " in bench_boot.bochs(*files, "")
    assert "is no bzImage" in bench_boot.bochs(*files, "")


@pytest.mark.parametrize("arguments", [["--boot"], ["--boot", "a"], ["--boot", "a", "--initrd", "b"]])
def test_what_is_missing_is_said(arguments, capsys):
    """With status 2, and how it is spelled."""
    assert 2 == main(["bench", *arguments])
    assert "Type: hvemu bench --boot KERNEL --initrd FILE" in capsys.readouterr().err


def test_a_guest_that_never_ends_does_not_hold_the_bench_for_ever(monkeypatch, tmp_path, capsys):
    """It is said under whom, and what to do."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(512))
    monkeypatch.setattr(bench_boot, "_LONGEST", 1)
    monkeypatch.setattr(bench_boot.shutil, "which", lambda name: None)
    monkeypatch.setattr(bench_bochs, "missing", lambda: ["bochs"])
    words = ["bench", "--boot", str(catalog()["loop_forever"].image), "--initrd", str(initrd)]
    assert 2 == main(words)
    said = capsys.readouterr().err
    assert "hvemu: The boot in mode native did not end within 1 s. Have its /init reboot or power off" in said
