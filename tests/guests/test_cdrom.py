"""A real boot loader, Debian's ISOLINUX, boots a guest from a CD-ROM through the BIOS."""

import pytest

from hvemu.testing.catalog import catalog
from hvemu.testing.running import run_guest
from hvemu.machine.configuration import MachineConfiguration

from .packages import one_file

pycdlib = pytest.importorskip("pycdlib")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CONFIGURATION = b"SERIAL 0 115200\nDEFAULT hello\nLABEL hello\n KERNEL mboot.c32\n APPEND /hello.elf from a CD-ROM\n"


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    """A CD-ROM with the boot loader, its configuration and a guest."""
    path = tmp_path_factory.mktemp("disc") / "disc.iso"
    loader = one_file("isolinux", "usr/lib/ISOLINUX/isolinux.bin")
    modules = [
        one_file("syslinux-common", f"usr/lib/syslinux/modules/bios/{name}.c32")
        for name in ("ldlinux", "mboot", "libcom32")
    ]
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, rock_ridge="1.09")
    for file in (loader, *modules, catalog()["hello"].image):
        image.add_file(str(file), f"/{file.name.upper()};1", rr_name=file.name)
    configuration = path.with_suffix(".cfg")
    configuration.write_bytes(CONFIGURATION)
    image.add_file(str(configuration), "/ISOLINUX.CFG;1", rr_name="isolinux.cfg")
    image.add_eltorito("/ISOLINUX.BIN;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4, boot_info_table=True)
    image.write(str(path))
    image.close()
    return path


@pytest.mark.parametrize("mode", ["native", "bt", "svm"])
@pytest.mark.parametrize("adapter", ["", "ide", "buslogic", "virtio-scsi"])
def test_isolinux_boots_a_guest(disc, adapter, mode):
    """From an image, and from a drive at each adapter."""
    where = {"disks": (f"{disc},adapter={adapter}",)} if adapter else {"image": str(disc)}
    result = run_guest(MachineConfiguration(mode=mode, **where), position=400_000_000)
    assert "ISOLINUX" in result.console
    assert 'command line: "from a CD-ROM"' in result.console
    assert 33 == result.status
