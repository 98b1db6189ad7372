"""Drives of a machine: what ``--disk`` may say, and what becomes of what a guest writes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.cli.options import parse
from hvemu.cpu.state import EDX
from hvemu.devices.images.creating import create_image, snapshot_image
from hvemu.devices.images.memory import MemoryMedium
from hvemu.devices.images.nonpersistent import NonpersistentMedium
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.drives import Drive, check_drives, parse_drive
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.vocabulary.errors import UserError
from tests.loader.images import cdrom

BOOT = bytes.fromhex("b400cd16").ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(
    ("text", "drive"),
    [
        ("a.img", Drive("a.img")),
        ("a,,b.vhd,adapter=buslogic", Drive("a,b.vhd", "buslogic")),
        ("x.iso", Drive("x.iso", "", read_only=True, cdrom=True)),
        ("x,cdrom,adapter=ide", Drive("x", "ide", read_only=True, cdrom=True)),
        ("d,nonpersistent", Drive("d", "", nonpersistent=True)),
    ],
)
def test_a_drive_is_a_file_and_options(text, drive):
    """A doubled comma is one of the file's name."""
    assert drive == parse_drive(text)


@pytest.mark.parametrize(
    "text", ["", ",cdrom", "a,adapter=ahci", "a,adapter", "a,readonly", "a,cdrom=1", "a,", "a,cdrom,cdrom"]
)
def test_a_mistake_is_a_sentence_that_shows_how_to_write_it(text):
    """And names all that there is."""
    with pytest.raises(UserError, match=r"Write it as FILE\[,adapter="):
        parse_drive(text)


def test_adapters_belong_to_modes_and_have_so_many_places():
    """IDE is the default of a PC, and has four; a paravirtual guest has its own."""
    assert ["ide", "pv"] == [check_drives(("a",), mode)[0].adapter for mode in ("native", "pv")]
    for texts, mode in ((("a,adapter=pv",), "native"), (("a,adapter=ide",), "pv"), (("a",) * 5, "bt")):
        with pytest.raises(UserError):
            check_drives(texts, mode)


def test_a_machine_needs_something_to_boot(tmp_path):
    """An image, or a drive with a program; and a paravirtual guest is loaded, not booted."""
    compact = tmp_path / "x.iso"
    compact.write_bytes(BOOT)
    for configuration, words in (
        (MachineConfiguration(), "Give an IMAGE or a --disk"),
        (MachineConfiguration(disks=(str(compact),)), r"x\.iso is no image of a CD-ROM \(ISO 9660\)"),
        (MachineConfiguration(disks=(str(disk(tmp_path)),), mode="pv"), "A paravirtual guest is not booted from"),
    ):
        with pytest.raises(UserError, match=words):
            build(configuration)


def disk(folder, contents=BOOT, size=1 << 20):
    """An image of its own."""
    path = folder / "disk.img"
    path.write_bytes(contents.ljust(size, b"\0"))
    return path


@pytest.mark.parametrize("adapter", ["ide", "buslogic", "virtio-scsi"])
def test_the_bios_boots_from_any_adapter(adapter, tmp_path):
    """The first disk's boot sector is at 7C00h, and INT 13h reaches all of them."""
    machine = build(MachineConfiguration(disks=(f"{disk(tmp_path)},adapter={adapter}",), serial="none"))
    assert BOOT == machine.memory.read(0x7C00, 512)
    assert 0x7C00 == machine.registers().instruction_pointer
    machine.close()


def booted_from(machine):
    """The number of the drive that the BIOS started."""
    machine.close()
    return machine.registers().gpr(EDX)


@pytest.mark.parametrize("adapter", ["ide", "buslogic", "virtio-scsi"])
def test_hard_disks_are_booted_before_cdroms_and_an_image_before_both(adapter, tmp_path):
    """A blank disk and an installation's CD-ROM start the installation, and what that installs from then on."""
    blank, system, disc = disk(tmp_path, b""), tmp_path / "system.img", tmp_path / "disc.iso"
    system.write_bytes(BOOT.ljust(1 << 20, b"\0"))
    disc.write_bytes(cdrom())
    for image, disks, number in (
        ("", (blank, disc), 0xE0),
        ("", (disc, system), 0x80),
        (disc, (system,), 0xE0),
        (system, (disc,), 0x80),
    ):
        words = tuple(f"{path},adapter={adapter}" for path in disks)
        machine = build(MachineConfiguration(image=str(image), disks=words, serial="none"))
        assert number == booted_from(machine)


def test_the_order_of_booting_can_be_chosen(tmp_path):
    """For an installation's CD-ROM beside a disk with a system; the numbers of the drives stay."""
    system, disc = disk(tmp_path), tmp_path / "disc.iso"
    disc.write_bytes(cdrom())
    for words, number in (("cd", 0x80), ("dc", 0xE0), ("d", 0xE0), ("order=c", 0x80)):
        options = ["-hda", str(system), "-cdrom", str(disc), "-boot", words, "--serial", "none"]
        assert number == booted_from(build(parse(options)[1]))
    with pytest.raises(UserError, match="No drive is of a kind that -boot d names"):
        build(MachineConfiguration(disks=(str(system),), boot_order="d", serial="none"))


def test_a_sentence_names_every_drive_that_was_tried(tmp_path):
    """And tells who takes a CD-ROM for a hard disk what to write."""
    blank, disc = disk(tmp_path, b""), tmp_path / "disc.iso"
    disc.write_bytes(cdrom(indicator=0))
    with pytest.raises(
        UserError, match=r"disk\.img has no boot sector; disc\.iso is not bootable on a PC with a BIOS\. "
    ):
        build(MachineConfiguration(disks=(str(blank), str(disc)), serial="none"))
    disc.rename(tmp_path / "disc.bin")
    with pytest.raises(UserError, match=r"disc\.bin is a CD-ROM image, and no hard disk. Write it as FILE,cdrom\."):
        build(MachineConfiguration(disks=(str(tmp_path / "disc.bin"),), serial="none"))


def test_an_image_that_is_a_disk_takes_a_place_at_its_adapter(tmp_path):
    """Four drives fill IDE; a kernel needs none of them."""
    path = disk(tmp_path)
    disks = (f"{path},nonpersistent",) * 4
    build(guest_configuration(catalog()["hello"], disks=disks)).close()
    with pytest.raises(UserError, match="The adapter ide has 4 places for drives, and an IMAGE that is one needs"):
        build(MachineConfiguration(image=str(path), disks=disks, serial="none"))


def test_a_virtual_hard_disk_is_opened_as_a_drive(tmp_path):
    """As IMAGE it would be read as what it is not; and what it builds on may lie where the user says."""
    base, top = tmp_path / "base.vhd", tmp_path / "sub" / "top.vhd"
    create_image(str(base), 1 << 20)
    top.parent.mkdir()
    snapshot_image(str(base), str(top), parents_in=[str(tmp_path)])
    with pytest.raises(UserError, match=r"base\.vhd is a virtual hard disk.* Type: hvemu run --disk base\.vhd\."):
        build(MachineConfiguration(image=str(base), serial="none"))
    with pytest.raises(UserError, match="add --parents-in"):
        build(guest_configuration(catalog()["hello"], disks=(str(top),)))
    build(guest_configuration(catalog()["hello"], disks=(str(top),), parents_in=(str(tmp_path),))).close()


def test_a_reset_starts_what_is_on_the_disk_by_then(tmp_path):
    """A guest may have installed another boot sector; or nothing that can be started, which ends the run."""
    path = disk(tmp_path)
    machine = build(MachineConfiguration(disks=(str(path),), serial="none", reboot=True))
    medium = machine.media.drives[0].medium
    for sector in (b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa", bytes(512)):
        medium.write(0, sector)
        machine.board.request_reset()
        stop = machine.run(machine.mode.position() + 100)
        assert sector[:2] == machine.memory.read(0x7C00, 2)
    assert 68 == stop.status
    assert "after its reset there is nothing to boot: disk.img has no boot sector." in stop.reason
    machine.close()


def test_a_disk_without_a_boot_sector_is_a_sentence(tmp_path):
    """As for an image that is given by itself."""
    with pytest.raises(UserError, match=r"disk\.img has no boot sector"):
        build(MachineConfiguration(disks=(str(disk(tmp_path, b"")),), serial="none"))
    build(MachineConfiguration(disks=(str(disk(tmp_path)),), serial="none")).close()  # and nothing stays locked


def test_two_machines_cannot_write_one_image(tmp_path):
    """But any number can begin with it and forget."""
    path = disk(tmp_path)
    one = build(guest_configuration(catalog()["hello"], disks=(str(path),)))
    with pytest.raises(UserError, match="in use"):
        build(guest_configuration(catalog()["hello"], disks=(str(path),)))
    one.close()
    several = [build(guest_configuration(catalog()["hello"], disks=(f"{path},nonpersistent",))) for _ in range(2)]
    for machine in several:
        machine.close()


def test_a_machine_with_every_adapter_runs_as_one_without(tmp_path):
    """The guest that ignores its disks says the same; a state of every chip can be told."""
    disks = tuple(f"{disk(tmp_path)},nonpersistent,adapter={name}" for name in ("ide", "buslogic", "virtio-scsi"))
    result = run_guest(guest_configuration(catalog()["hello"], disks=disks))
    assert 33 == result.status
    states = {place: device.state() for place, device in result.machine.board.devices().items()}
    assert {"pci:00:01.1", "pci:00:03.0/0", "pci:00:10.0/0", "port:0x1f0"} <= set(states)


CHUNKS = st.tuples(st.integers(0, 39), st.integers(1, 24), st.integers(1, 255), st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(CHUNKS, max_size=12), st.integers(20, 40))
def test_a_nonpersistent_medium_is_the_base_with_changes_on_top(changes, sectors):
    """Against an array of bytes; the base never changes."""
    contents = bytes(range(1, 256)) * (sectors * 512 // 255 + 1)
    base = MemoryMedium(contents[: sectors * 512])
    medium, model = NonpersistentMedium(base), bytearray(base.read(0, base.size))
    for start, most, value, discard in changes:
        first = start % sectors
        count = min(most, sectors - first)
        data = bytes(count * 512) if discard else bytes((value,)) * (count * 512)
        if discard:
            medium.discard(first * 512, count * 512)
        else:
            medium.write(first * 512, data)
        model[first * 512 : (first + count) * 512] = data
        assert bytes(model) == medium.read(0, medium.size)
        assert bytes(model[first * 512 :]) == medium.read(first * 512, medium.size - first * 512)
    assert contents[: sectors * 512] == base.read(0, base.size)
    assert 512 <= medium.extent(0)[0] <= medium.size
    medium.close()
