"""``hvemu disk COMMAND``: disk images and what is done with them. Another command is one line of ``COMMANDS``."""

from importlib import import_module
from typing import NamedTuple

from hvemu.vocabulary.errors import ExitStatus, UserError


class DiskCommand(NamedTuple):
    """What it does, and the function ``main(arguments)`` as module:name."""

    what: str
    function: str


COMMANDS = {
    "create": DiskCommand("make an image of zeros: PATH SIZE", "hvemu.cli.disk_images:create"),
    "info": DiskCommand("what an image promises and takes, and what it builds on: PATH", "hvemu.cli.disk_images:info"),
    "check": DiskCommand("look for damage, and repair it: PATH [--repair]", "hvemu.cli.disk_images:check"),
    "convert": DiskCommand("copy to another format: SOURCE DESTINATION", "hvemu.cli.disk_images:convert"),
    "snapshot": DiskCommand(
        "go on in a new image that builds on this one: PATH CHILD", "hvemu.cli.disk_chains:snapshot"
    ),
    "commit": DiskCommand("write a snapshot's blocks into its parent: CHILD", "hvemu.cli.disk_chains:commit"),
    "rebase": DiskCommand("let a snapshot build on another parent: CHILD PARENT", "hvemu.cli.disk_chains:rebase"),
    "serve": DiskCommand("give images to initiators as an iSCSI target: IMAGE...", "hvemu.cli.disk_serve:main"),
}


def main(arguments: list[str]) -> int:
    """Run one command; without any, list them. Raises UserError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hvemu disk COMMAND [options]\n\ncommands:")
        for name, command in COMMANDS.items():
            print(f"  {name:9} {command.what}")
        print("\n'hvemu disk COMMAND --help' says more, docs/disks.md all.")
        return int(ExitStatus.POWER_OFF if arguments else ExitStatus.USAGE)
    if arguments[0] not in COMMANDS:
        raise UserError(f"There is no command 'disk {arguments[0]}'", f"Commands are: {', '.join(COMMANDS)}.")
    module, _, function = COMMANDS[arguments[0]].function.partition(":")
    try:
        return int(getattr(import_module(module), function)(arguments[1:]))
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"hvemu disk {arguments[0]} failed: {reason}", "Type: hvemu disk check PATH.") from None
