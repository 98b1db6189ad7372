"""QEMU's firmware configuration device, the traditional port interface: select a key, read its bytes.

The builder gives the entries and files once; they are configuration and not part of the state. Reading past
the end gives zeros; writing data does nothing.

Not emulated: the DMA interface (the ID says so), writable files, the memory-mapped form.
Spec: QEMU docs/specs/fw_cfg "QEMU Firmware Configuration (fw_cfg) Device".
"""

from collections.abc import Mapping
from typing import Final

from hvemu.devices.saved import Number, SavedDevice

SIGNATURE, IDENTIFIER, RAM_SIZE, PROCESSORS = 0x00, 0x01, 0x03, 0x05
INITRD_ADDRESS, INITRD_SIZE, MAXIMUM_PROCESSORS, INITRD_DATA = 0x0A, 0x0B, 0x0F, 0x12
COMMAND_LINE_ADDRESS, COMMAND_LINE_SIZE, COMMAND_LINE_DATA = 0x13, 0x14, 0x15
FILE_DIRECTORY, FIRST_FILE = 0x19, 0x20

TRADITIONAL_INTERFACE: Final = 0b01
LONGEST_NAME: Final = 55
MOST_FILES: Final = 256
KEY_MASK: Final = 0xBFFF  # bit 14 asked for writing once; it selects the same entry


def standard_entries(
    *, memory_size: int, processors: int = 1, command_line: str = "", initrd: bytes = b"", initrd_address: int = 0
) -> dict[int, bytes]:
    """The well-known keys as QEMU encodes them, little-endian."""
    command = command_line.encode() + b"\0"
    return {
        RAM_SIZE: memory_size.to_bytes(8, "little"),
        PROCESSORS: processors.to_bytes(2, "little"),
        MAXIMUM_PROCESSORS: processors.to_bytes(2, "little"),
        INITRD_ADDRESS: initrd_address.to_bytes(4, "little"),
        INITRD_SIZE: len(initrd).to_bytes(4, "little"),
        INITRD_DATA: initrd,
        COMMAND_LINE_ADDRESS: (0).to_bytes(4, "little"),
        COMMAND_LINE_SIZE: len(command).to_bytes(4, "little"),
        COMMAND_LINE_DATA: command,
    }


class FwCfg(SavedDevice):
    """The selector at offset 0 takes 16 bits; the data port at offset 1 gives bytes."""

    name = "fw-cfg"
    widest_access = 2
    layout = {"selected": Number(0xFFFF), "position": Number(1 << 40)}

    def __init__(self, *, entries: Mapping[int, bytes] | None = None, files: Mapping[str, bytes] | None = None) -> None:
        self._entries = {
            SIGNATURE: b"QEMU",
            IDENTIFIER: TRADITIONAL_INTERFACE.to_bytes(4, "little"),
            **(entries or {}),
        }
        self._add_files(files or {})
        self._content = b""
        self.reset()

    def _add_files(self, files: Mapping[str, bytes]) -> None:
        """The directory is big-endian, unlike everything else."""
        if len(files) > MOST_FILES:
            raise ValueError(f"fw_cfg holds at most {MOST_FILES} files, not {len(files)}")
        directory = len(files).to_bytes(4, "big")
        for key, name in enumerate(sorted(files), FIRST_FILE):
            encoded = name.encode()
            if len(encoded) > LONGEST_NAME:
                raise ValueError(f"the fw_cfg file name {name!r} is longer than {LONGEST_NAME} bytes")
            header = len(files[name]).to_bytes(4, "big") + key.to_bytes(2, "big") + bytes(2)
            directory += header + encoded.ljust(LONGEST_NAME + 1, b"\0")
            self._entries[key] = files[name]
        self._entries[FILE_DIRECTORY] = directory

    def reset(self) -> None:
        """The signature is selected."""
        self.selected = SIGNATURE
        self.position = 0
        self.resume()

    def resume(self) -> None:
        """Look up the selected entry."""
        self._content = self._entries.get(self.selected & KEY_MASK, b"")

    def read(self, offset: int, size: int) -> int:
        """The next byte of the entry."""
        if offset != 1 or size != 1:
            return (1 << 8 * size) - 1
        position = self.position
        if position >= len(self._content):
            return 0
        self.position = position + 1
        return self._content[position]

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an entry and begin at its start."""
        if offset == 0 and size == 2:
            self.selected = value & 0xFFFF
            self.position = 0
            self.resume()
