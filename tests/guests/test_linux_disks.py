"""Real drivers on our adapters: Debian's kernel partitions a disk, keeps files on it, and finds them again."""

import hashlib
import io
import random
import re

import pytest

from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.running import run_guest
from tests.guests import linux_disks
from tests.guests.packages import kernel_package, one_file
from tests.techniques import settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LIMIT = 60_000_000_000


def boot(folder, disk, adapter, script, technique="native", **image):
    """The console of one boot with the disk at an adapter."""
    kernel = one_file(kernel_package(), "boot/vmlinuz-*")
    configuration = MachineConfiguration(
        image=str(kernel),
        initrd=str(linux_disks.image(folder, adapter, script, **image)),
        memory=128 << 20,
        append="console=ttyS0 panic=-1 quiet loglevel=4",
        serial="none",
        disks=(f"{disk},adapter={adapter}",),
        **settings(technique),
    )
    result = run_guest(configuration, position=LIMIT)
    assert 0 == result.status, (result.stop, result.console[-3000:])
    return result.console


@pytest.mark.parametrize("technique", ["native", "svm"])
@pytest.mark.parametrize("adapter", list(linux_disks.MODULES))
def test_linux_makes_a_file_system_and_finds_it_after_a_reboot(adapter, technique, tmp_path):
    """Partition, make, mount, copy, check, unmount; in another boot everything is there."""
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    first = boot(tmp_path, disk, adapter, linux_disks.FIRST, technique)
    assert "FAILED" not in first, first
    assert f"SIZE {(16 << 20) // 512}" in first, first
    assert re.search("UNMOUNTED.*SAME.*DONE", first, re.DOTALL), first
    second = boot(tmp_path, disk, adapter, linux_disks.SECOND, technique)
    assert re.search("FOUND.*SAME.*COPIED.*DONE", second, re.DOTALL), second
    assert re.search(r"SUM \w{64}", first)[0] == re.search(r"SUM \w{64}", second)[0]


@pytest.mark.parametrize("adapter", list(linux_disks.MODULES))
def test_linux_reads_a_cdrom(adapter, tmp_path):
    """Its driver for CD-ROMs finds the medium, mounts its file system, reads all of a file, and writes nothing."""
    pycdlib = pytest.importorskip("pycdlib")
    path, data = tmp_path / "disc.iso", random.Random(7).randbytes(700_001)
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, rock_ridge="1.09")
    for name, contents in (("hello.txt", b"hello from a CD-ROM\n"), ("data.bin", data)):
        image.add_fp(io.BytesIO(contents), len(contents), f"/{name.upper()};1", rr_name=name)
    image.write(str(path))
    image.close()
    before = path.read_bytes()
    said = boot(tmp_path, path, adapter, linux_disks.CDROM, extra=("isofs",), wait="sr0")
    assert "FAILED" not in said, said
    assert f"SIZE {path.stat().st_size // 512}" in said, said
    assert "hello from a CD-ROM" in said, said
    assert f"SUM {hashlib.sha256(data).hexdigest()}" in said, said
    assert "DONE" in said, said
    assert before == path.read_bytes()
