"""Bochs boots what ``hvemu bench --boot`` boots, from a CD-ROM; its BIOS and boot loader are not counted."""

import pytest

from hvemu.labs import bench_bochs
from hvemu.labs.bench_boot import APPEND
from hvemu.vocabulary.errors import UserError
from tests.guests.packages import linux
from tests.loader.images import bzimage

RESET_BY_KEYBOARD_CONTROLLER = b"\xb0\xfe\xe6\x64\xf4"
SETUP_CODE = 0x268
STARTED = (0.1, b"00000000000i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called\n")
LOADED = (2.0, b"Loading initrd......ok\r\n")


@pytest.fixture
def files(tmp_path):
    """A kernel whose setup code resets the machine at once, and something for an initial RAM disk."""
    code = RESET_BY_KEYBOARD_CONTROLLER
    image = bytearray(bzimage())
    image[SETUP_CODE : SETUP_CODE + len(code)] = code
    (tmp_path / "kernel").write_bytes(image)
    (tmp_path / "initrd").write_bytes(bytes(4096))
    return tmp_path / "kernel", tmp_path / "initrd"


@pytest.fixture
def installed():
    """Skips where Bochs and what makes its CD-ROM are not installed."""
    if packages := bench_bochs.missing():
        pytest.skip(f"needs apt-get install {' '.join(packages)}")


@pytest.mark.parametrize(
    "end",
    [
        b"reboot: 08045358056i[SYS   ] bx_pc_system_c::Reset(SOFTWARE) called\n",
        b"08045358056p[ACPI  ] >>PANIC<< ACPI control: soft power off\n",
    ],
)
def test_a_boot_is_from_the_end_of_the_loader_to_the_end_of_the_guest(end):
    """A line of the log may begin within one of the serial line; the reset that Bochs starts with is none."""
    output = [STARTED, LOADED, (60.0, b"[    0.000000] Linux version 6.1.0\r\n"), (200.5, end), (201.0, b"")]
    assert bench_bochs.Booted(kernel=198.5, before=2.0) == bench_bochs.times_of(output)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ((9.0, b"00000000000p[BIOS  ] >>PANIC<< No bootable device.\n"), "Bochs gave up: No bootable device"),
        ((9.0, b"anything\n"), "ended before the kernel did"),
        (STARTED, "ended before the kernel did"),
    ],
)
def test_a_boot_without_an_end_is_said(last, words):
    """With the words of Bochs, if there are any."""
    with pytest.raises(UserError, match=words):
        bench_bochs.times_of([STARTED, last])


def test_bochs_is_told_of_memory_disk_and_where_to_write(tmp_path):
    """What it logs and what its guest says have to come the same way."""
    lines = bench_bochs.configuration(tmp_path / "boot.iso", "/dev/fd/7", 128).splitlines()
    told = dict(line.split(": ", 1) for line in lines)
    assert "guest=128, host=128" == told["memory"]
    assert f'type=cdrom, path="{tmp_path}/boot.iso", status=inserted' == told["ata0-master"]
    assert ("/dev/fd/7", "enabled=1, mode=file, dev=/dev/fd/7") == (told["log"], told["com1"])


def test_missing_packages_are_found_by_their_files(tmp_path):
    """All at first, then those that are left."""
    assert list(bench_bochs.PACKAGES) == bench_bochs.missing(tmp_path)
    for package in ("bochs", "bochs-term"):
        path = tmp_path / bench_bochs.PACKAGES[package].replace("*", "x86_64-linux-gnu")
        path.parent.mkdir(parents=True)
        path.touch()
    assert ["bochsbios", "vgabios", "isolinux", "syslinux-common", "xorriso"] == bench_bochs.missing(tmp_path)


@pytest.mark.usefixtures("installed")
def test_bochs_boots_a_kernel_and_sees_its_reset(files):
    """The kernel takes no time, BIOS and loader do."""
    found = bench_bochs.boot(*map(str, files), "anything", 32)
    assert 0 <= found.kernel < found.before


@pytest.mark.usefixtures("installed")
def test_a_kernel_that_the_loader_refuses_ends_bochs(files):
    """The loader hands over to the next device, of which there is none."""
    kernel, initrd = files
    image = bytearray(kernel.read_bytes())
    image[0x206:0x208] = bytes(2)
    kernel.write_bytes(image)
    with pytest.raises(UserError, match="No bootable device"):
        bench_bochs.boot(str(kernel), str(initrd), "anything", 32)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("installed")
def test_bochs_boots_debians_kernel_to_its_reboot():
    """Which takes it much longer than its BIOS and the loader."""
    kernel, initrd, _ = linux()
    found = bench_bochs.boot(str(kernel), str(initrd), APPEND, 128)
    assert found.kernel > 3 * found.before > 0
