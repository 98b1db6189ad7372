"""A guest that counts its boots on the disk it was booted from."""

import shutil
import struct

import pytest

from hvemu.cli import main
from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import run_guest

ADAPTERS = ("ide", "buslogic", "virtio-scsi")
COUNTER = 2 * 512


@pytest.fixture
def copy(tmp_path):
    """A copy of the image that comes with hvemu."""
    path = tmp_path / "copy.img"
    shutil.copyfile(catalog()["boot_counter"].image, path)
    return path


def boot(disk, mode="native"):
    """The number that the guest says."""
    result = run_guest(MachineConfiguration(disks=(disk,), mode=mode, memory=16 << 20, serial="none"))
    assert 33 == result.status, result.console
    (line,) = (line for line in result.console.splitlines() if line.startswith("boot number "))
    return int(line.split()[-1])


def counted(path):
    """What the image says."""
    signature, count = struct.unpack_from("<4sI", path.read_bytes(), COUNTER)
    assert b"boot" == signature
    return count


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_disk_counts_its_boots(copy, adapter):
    """In every mode, and in the image afterwards; only the counter has changed."""
    before = copy.read_bytes()
    assert [1, 2, 3] == [boot(f"{copy},adapter={adapter}", mode) for mode in ("native", "bt", "svm")]
    assert 3 == counted(copy)
    after = copy.read_bytes()
    assert before[:COUNTER] + before[COUNTER + 512 :] == after[:COUNTER] + after[COUNTER + 512 :]


def test_the_count_is_the_disks_own_whatever_it_hangs_on(copy):
    """Moved from one adapter to the next."""
    assert [1, 2, 3] == [boot(f"{copy},adapter={adapter}") for adapter in ADAPTERS]


def test_a_nonpersistent_disk_forgets(copy):
    """Every boot is the first."""
    assert [1, 1] == [boot(f"{copy},nonpersistent") for _ in range(2)]
    assert 0 == counted(copy)


def test_a_number_of_several_digits_is_told(copy):
    """In decimal."""
    contents = bytearray(copy.read_bytes())
    struct.pack_into("<I", contents, COUNTER + 4, 4_294_967_294)
    copy.write_bytes(contents)
    assert 4_294_967_295 == boot(str(copy))


def test_a_disk_that_cannot_be_written_or_counts_nothing_fails(copy):
    """The guest says what went wrong; status 35."""
    for disk, line in ((f"{copy},read-only", "FAIL the counter is written"), (str(copy), "FAIL the counter is read")):
        result = run_guest(MachineConfiguration(disks=(disk,), serial="none"))
        assert (35, True) == (result.status, line in result.console), result.console
        contents = bytearray(copy.read_bytes())
        contents[COUNTER] ^= 0xFF
        copy.write_bytes(contents)


def test_the_image_that_comes_with_hvemu_is_never_written(capfd):
    """It is booted as an image, from a copy in memory."""
    before = catalog()["boot_counter"].image.read_bytes()
    for _ in range(2):
        assert 33 == main(["run", "boot_counter"])
        assert "boot number 1\n" in capfd.readouterr().out.replace("\r\n", "\n")
    assert before == catalog()["boot_counter"].image.read_bytes()
