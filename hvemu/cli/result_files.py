"""Files that results go to: they must be writable, each one's own, and none of what the guest is made of."""

import contextlib
import os

from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.drives import parse_drive
from hvemu.vocabulary.errors import UserError


def check_writable(path: str) -> None:
    """Before the guest runs: whether a result can be written; raises UserError. Nothing is created or emptied."""
    folder = os.path.dirname(path) or "."
    try:
        writable = os.access(path, os.W_OK) and not os.path.isdir(path)
        if not os.path.lexists(path):
            os.stat(os.path.join(folder, "."))
            writable = os.path.basename(path) != "" and os.access(folder, os.W_OK)
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # a name that is too long
    except (OSError, ValueError):
        writable = False
    if not writable:
        what = "it is a folder" if os.path.isdir(path) else "there is no such folder, or no right to write there"
        raise UserError(f"Cannot write '{path}': {what}", "Give a path in a folder that exists.")


def check_own_files(paths: list[str]) -> None:
    """Two results in one file would overwrite each other; raises UserError. Devices take both."""
    files = [os.path.realpath(path) for path in paths if not os.path.exists(path) or os.path.isfile(path)]
    for path in files:
        if files.count(path) > 1:
            raise UserError(f"Two results go to '{path}'", "Give each a file of its own.")


def check_spares_image(path: str, configuration: MachineConfiguration) -> None:
    """A result must not be written over what is to be booted, or will be next time; raises UserError."""
    inputs = [configuration.image, configuration.initrd, *(text.partition(" ")[0] for text in configuration.modules)]
    inputs += [parse_drive(text).path for text in configuration.disks]
    for source in inputs:
        with contextlib.suppress(OSError, ValueError):  # the one is not there yet, or the other never was
            if os.path.isfile(source) and os.path.samefile(path, source):
                raise UserError(f"'{path}' is what the guest is made of", "Give results a file of their own.")
