"""``hvemu disk snapshot``, ``commit`` and ``rebase``."""

from hvemu.cli.disk_images import add_parents_in, disk_parser
from hvemu.devices.images.changing import commit_image, rebase_image
from hvemu.devices.images.creating import snapshot_image
from hvemu.vocabulary.errors import ExitStatus


def snapshot(arguments: list[str]) -> int:
    """Make a new top of a chain; raises UserError."""
    parser = disk_parser(
        "snapshot",
        "Make CHILD, which reads as PATH does now and takes all writes from now on. PATH is a VHD, and must not change"
        " any more; a raw image is converted first: hvemu disk convert disk.img disk.vhd --format vhd-fixed.",
        ("PATH", "image as it is now"),
        ("CHILD", "image to go on in"),
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    snapshot_image(options.path, options.child, parents_in=options.parents_in, force=options.force)
    print(f"'{options.child}' builds on '{options.path}', which must not be written any more")
    return int(ExitStatus.POWER_OFF)


def commit(arguments: list[str]) -> int:
    """Write a child into its parent; raises UserError and OSError."""
    parser = disk_parser(
        "commit",
        "Write all blocks of CHILD into the image that it builds on, and empty CHILD. Other images that build on the"
        " same parent are of no use afterwards, and are refused. When interrupted, it is to be done again.",
        ("CHILD", "snapshot"),
    )
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    parent = commit_image(options.child, parents_in=options.parents_in)
    print(f"'{parent}' reads as '{options.child}' does, which is empty now")
    return int(ExitStatus.POWER_OFF)


def rebase(arguments: list[str]) -> int:
    """Give a child another parent; raises UserError and OSError."""
    parser = disk_parser(
        "rebase",
        "Let CHILD build on PARENT. It reads as before: what the old and the new parent differ in is copied into it.",
        ("CHILD", "snapshot"),
        ("PARENT", "image to build on, of the same size"),
    )
    parser.add_argument("--unsafe", action="store_true", help="copy nothing: only note the other parent")
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    rebase_image(options.child, options.parent, unsafe=options.unsafe, parents_in=options.parents_in)
    print(f"'{options.child}' builds on '{options.parent}'")
    return int(ExitStatus.POWER_OFF)
