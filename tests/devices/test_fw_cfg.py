"""The firmware configuration device: selecting, reading, the file directory."""

import pytest

from hvemu.devices.fw_cfg import FwCfg, standard_entries


def read(device: FwCfg, key: int, length: int) -> bytes:
    """Select a key and read bytes."""
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(length))


def test_signature_and_identity() -> None:
    """QEMU, and no DMA."""
    device = FwCfg()
    assert (b"QEMU", b"\x01\0\0\0") == (read(device, 0x0000, 4), read(device, 0x0001, 4))


def test_the_signature_is_selected_at_first() -> None:
    """And selecting again begins at the start."""
    device = FwCfg()
    assert (b"QE", b"QEMU") == (bytes(device.read(1, 1) for _ in range(2)), read(device, 0, 4))


def test_reading_past_the_end_or_an_unknown_key_gives_zeros() -> None:
    """Never an error."""
    device = FwCfg()
    assert (b"QEMU\0\0", b"\0\0") == (read(device, 0, 6), read(device, 0x1234, 2))


def test_standard_entries() -> None:
    """Each at its key with its width, little-endian; the command line with its zero."""
    entries = standard_entries(
        memory_size=128 << 20, processors=1, command_line="quiet", initrd=b"cpio", initrd_address=0x800000
    )
    expected = {
        0x03: (128 << 20).to_bytes(8, "little"),
        0x05: b"\x01\0",
        0x0A: b"\0\0\x80\0",
        0x0B: b"\x04\0\0\0",
        0x0F: b"\x01\0",
        0x12: b"cpio",
        0x13: bytes(4),
        0x14: b"\x06\0\0\0",
        0x15: b"quiet\0",
    }
    assert expected == entries
    assert expected[0x03] == read(FwCfg(entries=entries), 0x03, 8)


def test_files_are_found_through_the_directory() -> None:
    """Big-endian count, size and key; names of 56 bytes, sorted."""
    device = FwCfg(files={"etc/e820": b"12345", "bootorder": b"x"})
    directory = read(device, 0x19, 4 + 2 * 64)
    assert (2, b"bootorder", b"etc/e820") == (
        int.from_bytes(directory[:4], "big"),
        directory[12:68].rstrip(b"\0"),
        directory[76:132].rstrip(b"\0"),
    )
    size, key = int.from_bytes(directory[68:72], "big"), int.from_bytes(directory[72:74], "big")
    assert (5, b"12345") == (size, read(device, key, 5))


def test_a_byte_write_selects_nothing_and_data_cannot_be_written() -> None:
    """The selector takes 16 bits."""
    device = FwCfg()
    device.write(0, 1, 0x01)
    device.write(1, 1, 0x55)
    assert (ord("Q"), 0xFFFF, 0xFF) == (device.read(1, 1), device.read(0, 2), device.read(0, 1))


def test_files_are_bounded() -> None:
    """A name that does not fit, or too many files, is refused."""
    FwCfg(files={"x" * 55: b"", **{str(number): b"" for number in range(255)}})
    with pytest.raises(ValueError, match="longer than 55"):
        FwCfg(files={"x" * 56: b""})
    with pytest.raises(ValueError, match="at most 256"):
        FwCfg(files={str(number): b"" for number in range(257)})


def test_the_position_survives_the_state() -> None:
    """The next byte is the next byte."""
    device, other = FwCfg(), FwCfg()
    device.read(1, 1)
    other.from_state(device.state())
    assert ord("E") == other.read(1, 1)
