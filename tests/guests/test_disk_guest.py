"""The guest with three disk drivers: the same in every mode, and what it wrote is in the image."""

import shutil
import struct
import subprocess

import pytest

from hvemu.machine.configuration import MAXIMUM_SCRATCH_DISK, MachineConfiguration
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import UserError

ADAPTERS = ("ide", "buslogic", "virtio-scsi")
SIZE = 2 << 20
BLOCK = 512
LIMIT = 30_000_000


@pytest.fixture
def image(tmp_path):
    """An empty raw disk."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


def run(image, adapter, mode="native", options=""):
    """Run the guest to its end, with the disk on one adapter."""
    disks = (f"{image},adapter={adapter}",) if image else ()
    configuration = guest_configuration(catalog()["disk"], mode=mode, disks=disks, cpu="opteron-g3", append=options)
    return run_guest(configuration, position=LIMIT)


def checked(block):
    """What the guest's check leaves in a block."""
    return b"".join(
        struct.pack("<I", (block * 0x9E3779B9 + word * 0x01030507) & 0xFFFFFFFF) for word in range(BLOCK // 4)
    )


@pytest.mark.parametrize("mode", ["trap", "bt", "svm"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_mode_does_what_the_bare_machine_does(image, adapter, mode):
    """Console, status, position and registers, and the image."""
    options = f"adapter={adapter} read=64 write=64 request=16 pattern=random"
    native = run(image, adapter, options=options)
    contents = image.read_bytes()
    image.write_bytes(bytes(SIZE))
    other = run(image, adapter, mode, options)
    assert (33, native.console) == (other.status, other.console)
    assert native.machine.mode.position() == other.machine.mode.position()
    assert native.machine.registers() == other.machine.registers()
    assert contents == image.read_bytes() != bytes(SIZE)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_the_guest_wrote_is_in_the_image(image, adapter):
    """The checked blocks at three places, and a number at the start of each sequential request."""
    result = run(image, adapter, options=f"adapter={adapter} write=16 read=0 request=4")
    assert 33 == result.status
    assert result.console.startswith(f"{adapter}: HVEMU")
    contents = image.read_bytes()
    last = SIZE // BLOCK - 24
    for place in (SIZE // BLOCK // 2, last):
        for block in range(place, place + 24):
            assert checked(block) == contents[block * BLOCK :][:BLOCK]
    assert [0, 8, 16, 24] == [struct.unpack_from("<I", contents, number * 8 * BLOCK)[0] for number in range(4)]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_disk_that_is_not_to_be_written_fails_the_check(image, adapter):
    """The guest says so and ends; the image stays as it was."""
    result = run(f"{image},read-only", adapter)
    assert 35 == result.status
    assert "FAIL blocks are written" in result.console
    assert bytes(SIZE) == image.read_bytes()


@pytest.mark.parametrize(
    ("adapter", "asked"), [("ide", "buslogic"), ("buslogic", "virtio-scsi"), ("virtio-scsi", "ide")]
)
def test_an_adapter_without_a_disk_is_skipped_with_a_clear_line(image, adapter, asked):
    """The disk is on another one; status 37."""
    result = run(image, adapter, options=f"adapter={asked}")
    assert 37 == result.status
    assert result.console.startswith("SKIP a disk: none of the adapters asked for has one")


def test_without_an_adapter_named_the_youngest_is_taken(image):
    """And a CD-ROM is no disk."""
    image.with_name("other.img").write_bytes(bytes(SIZE))
    disks = (f"{image},adapter=ide", f"{image.with_name('other.img')},adapter=virtio-scsi,cdrom")
    for settings, name in (({"disks": disks}, "ide"), ({}, "ide")):
        result = run_guest(guest_configuration(catalog()["disk"], **settings))
        assert 33 == result.status
        assert result.console.startswith(f"{name}: HVEMU HARDDISK, ")


@pytest.mark.parametrize("request_size", [0, 129, 4_000_000])
def test_a_request_that_no_adapter_can_carry_fails_the_check(image, request_size):
    """Before anything is written."""
    result = run(image, "ide", options=f"request={request_size}")
    assert 35 == result.status
    assert "FAIL request= is from 1 to" in result.console
    assert bytes(SIZE) == image.read_bytes()


@pytest.mark.parametrize(("size", "mode"), [(-1, "native"), (MAXIMUM_SCRATCH_DISK + 1, "native"), (-512, "pv")])
def test_a_scratch_disk_has_its_bounds(size, mode):
    """In every mode."""
    with pytest.raises(UserError, match="scratch disk"):
        MachineConfiguration(image="a", scratch_disk=size, mode=mode)


def test_the_ported_guest_leaves_the_same_on_its_disk(image):
    """The same program by another adapter."""
    options = "write=64 read=64 request=4 pattern=random"
    run(image, "virtio-scsi", options=options)
    theirs = image.read_bytes()
    image.write_bytes(bytes(SIZE))
    disks = (f"{image},adapter=pv",)
    result = run_guest(guest_configuration(catalog()["disk_pv"], disks=disks, append=options))
    assert 33 == result.status
    assert theirs == image.read_bytes()


QEMU = shutil.which("qemu-system-i386")
PLACES = {
    "ide": ["-drive", "file=IMAGE,format=raw,if=ide"],
    "virtio-scsi": [
        "-device", "virtio-scsi-pci,disable-modern=on",
        "-drive", "file=IMAGE,format=raw,if=none,id=disk", "-device", "scsi-hd,drive=disk",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-i386")
@pytest.mark.parametrize("adapter", PLACES)
def test_the_same_guest_drives_the_disks_of_qemu(image, adapter):
    """The same lines but for the model's name, and the same image."""
    options = f"adapter={adapter} write=64 read=64 request=4 pattern=random"
    place = [word.replace("IMAGE", str(image)) for word in PLACES[adapter]]
    done = subprocess.run(
        [
            str(QEMU), "-accel", "tcg", "-m", "16", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(catalog()["disk"].image),
            "-append", options, *place,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert 33 == done.returncode, done.stdout
    theirs = image.read_bytes()
    image.write_bytes(bytes(SIZE))
    ours = run(image, adapter, options=options)
    assert ours.console.splitlines()[1:] == done.stdout.splitlines()[1:]
    assert theirs == image.read_bytes()
