"""Third-party images for the slow tests, from Debian's packages; nothing of them is kept in the tree."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@functools.cache
def _prepare_lists():
    """Know i386 packages and have package lists; failures show when a package is asked for."""
    if os.geteuid() == 0:
        subprocess.run(["dpkg", "--add-architecture", "i386"], check=False)
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)


@functools.cache
def unpacked(package):
    """The folder with a package's files; skips the test, saying why, when the package cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"no apt-get and dpkg-deb here to take {package} from Debian")
    folder = Path(tempfile.gettempdir(), "hvemu-test-packages", package.replace(":", "-"))
    marker = folder / ".complete"
    if marker.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "download", "-qq", package]
    if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode:
        _prepare_lists()
        result = subprocess.run(download, cwd=folder, check=False, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"Debian's {package} cannot be downloaded: {result.stderr.strip().splitlines()[-1:]}")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        archive.unlink()
    marker.touch()
    return folder


def one_file(package, pattern):
    """The file of a package that matches; skips when there is none."""
    found = sorted(unpacked(package).glob(pattern))
    if not found:
        pytest.skip(f"Debian's {package} has no {pattern}")
    return found[0]


def kernel_package():
    """The package that linux-image-686 depends on today."""
    _prepare_lists()
    if shutil.which("apt-cache") is None:
        pytest.skip("no apt-cache here to find Debian's kernel for 686")
    text = subprocess.run(
        ["apt-cache", "depends", "linux-image-686:i386"], check=False, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in text.splitlines() if "Depends: linux-image-" in line]
    if not names:
        pytest.skip("apt-cache knows no linux-image-686:i386")
    return names[0]


def initramfs(files):
    """A newc cpio archive from (name, mode, data, device) rows (kernel documentation, initramfs buffer format)."""
    archive = b""
    for number, (name, mode, data, device) in enumerate([*files, ("TRAILER!!!", 0, b"", (0, 0))], 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return archive
