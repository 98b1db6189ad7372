"""Third-party images for the slow tests, from Debian's packages; nothing of them is kept in the tree."""

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

INIT = b"""#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox uname -sm
echo "sum $(busybox expr 6000 \\* 7)"
busybox sha256sum /bin/busybox
busybox grep -c . /proc/interrupts
busybox cat /proc/interrupts
echo user programs are done
busybox reboot -f
"""
"""What the initial RAM disk does: work that shows, and a reboot."""


_FOLDER = Path(tempfile.gettempdir(), "hvemu-test-packages")
"""Shared by the processes that share the tests."""


@contextlib.contextmanager
def alone(what):
    """Only one process at a time does this."""
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / f".{what.replace(':', '-')}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _apt_get(*words, cwd=None):
    with alone("apt-get"):
        return subprocess.run(["apt-get", *words], cwd=cwd, check=False, capture_output=True, text=True)


@functools.cache
def _prepare_lists():
    """Know i386 packages and have package lists; failures show when a package is asked for."""
    if os.geteuid() == 0:
        subprocess.run(["dpkg", "--add-architecture", "i386"], check=False)
        _apt_get("update", "-qq")


@functools.cache
def _install(program, packages):
    """Why the program cannot be had, or nothing."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return f"{program} is not installed; apt-get install {' '.join(packages)}"
    result = _apt_get("install", "-qq", "-y", *packages)
    if result.returncode:
        _prepare_lists()
        result = _apt_get("install", "-qq", "-y", *packages)
    return "" if shutil.which(program) else f"{packages} cannot be installed: {result.stderr.strip()[-200:]}"


def need(program, *packages):
    """Install what a test needs; skips it, saying why, when that cannot be had."""
    if shutil.which(program) is None and (reason := _install(program, packages)):
        pytest.skip(reason)


@functools.cache
def unpacked(package):
    """The folder with a package's files; skips the test, saying why, when the package cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"no apt-get and dpkg-deb here to take {package} from Debian")
    folder = _FOLDER / package.replace(":", "-")
    with alone(package):
        if not (folder / ".complete").exists():
            _unpack(package, folder)
    return folder


def _unpack(package, folder):
    folder.mkdir(parents=True, exist_ok=True)
    if _apt_get("download", "-qq", package, cwd=folder).returncode:
        _prepare_lists()
        result = _apt_get("download", "-qq", package, cwd=folder)
        if result.returncode:
            pytest.skip(f"Debian's {package} cannot be downloaded: {result.stderr.strip().splitlines()[-1:]}")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        archive.unlink()
    (folder / ".complete").touch()


def one_file(package, pattern):
    """The file of a package that matches; skips when there is none."""
    found = sorted(unpacked(package).glob(pattern))
    if not found:
        pytest.skip(f"Debian's {package} has no {pattern}")
    return found[0]


def kernel_package(architecture="i386"):
    """The package that linux-image-686 depends on today, or linux-image-cloud-amd64."""
    _prepare_lists()
    name = "linux-image-686:i386" if architecture == "i386" else "linux-image-cloud-amd64:amd64"
    if shutil.which("apt-cache") is None:
        pytest.skip(f"no apt-cache here to find what {name} is")
    text = subprocess.run(["apt-cache", "depends", name], check=False, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in text.splitlines() if "Depends: linux-image-" in line]
    if not names:
        pytest.skip(f"apt-cache knows no {name}")
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


def linux(architecture="i386"):
    """Debian's kernel, an initial RAM disk whose busybox works and reboots, and that busybox."""
    kernel = one_file(kernel_package(architecture), "boot/vmlinuz-*")
    busybox = one_file(f"busybox-static:{architecture}", "bin/busybox").read_bytes()
    archive = initramfs(
        [
            ("bin", 0o40755, b"", (0, 0)),
            ("dev", 0o40755, b"", (0, 0)),
            ("proc", 0o40755, b"", (0, 0)),
            ("dev/console", 0o20600, b"", (5, 1)),
            ("bin/busybox", 0o100755, busybox, (0, 0)),
            ("init", 0o100755, INIT, (0, 0)),
        ]
    )
    path = kernel.parent / "initramfs-hvemu"
    with alone("initramfs"):
        if not path.exists() or path.read_bytes() != archive:
            path.write_bytes(archive)
    return kernel, path, busybox
