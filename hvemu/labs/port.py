"""``hvemu lab port``: what it takes to port a kernel to mode ``pv``, in lines of its source.

The kernel of guests/17_processes is built twice. Files named ``paravirt.*`` and the public interface's ``xen.h`` are
the port; ``native.*`` is what they stand for on a PC; ``paravirt_*`` is what a PC has nothing like; all other files are
the same for both. Lines of code are those that are neither blank nor comment.
"""

import json
import re
from pathlib import Path
from typing import Final, NamedTuple

from hvemu.testing.catalog import guests_directory
from hvemu.vocabulary.errors import UserError

_ABOUT = (__doc__ or "").replace("``", "")
FOLDER: Final = "17_processes"
_SUFFIXES: Final = frozenset({".c", ".h", ".S", ".ld"})
_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_PARTS: Final = {
    "port": "for the hypervisor's interface",
    "native": "for a PC",
    "beyond": "what a PC has nothing like: the balloon",
    "common": "the same in both",
}


class Counted(NamedTuple):
    """Lines of one file, and how many of them are code."""

    name: str
    part: str
    lines: int
    code: int


def part_of(name: str) -> str:
    """Which part of the kernel a file belongs to."""
    stem = Path(name).stem
    if stem == "paravirt" or name == "xen.h":
        return "port"
    if stem.startswith("paravirt_"):
        return "beyond"
    return "native" if stem == "native" else "common"


def count(folder: Path) -> list[Counted]:
    """Every source file of a kernel, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES:
            text = path.read_text(encoding="utf-8")
            bare = _COMMENT.sub("", text)
            code = sum(bool(line.strip()) for line in bare.splitlines())
            found.append(Counted(path.name, part_of(path.name), len(text.splitlines()), code))
    return found


def main(arguments: list[str]) -> int:
    """Print the table, or with ``--json`` its values."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: hvemu lab port [--json]\n\n{_ABOUT}")
        return 0
    if arguments not in ([], ["--json"]):
        raise UserError(f"hvemu lab port does not know '{arguments[0]}'", "Type: hvemu lab port [--json].")
    folder = guests_directory() / FOLDER
    if not (folder / "paravirt.c").exists():
        raise UserError("The guests' sources are not installed here", "Run it in a clone of hvemu's repository.")
    files = count(folder)
    if arguments:
        print(json.dumps([file._asdict() for file in files], indent=1))
        return 0
    print(f"{'file':22} {'lines':>6} {'code':>6}")
    for part, what in _PARTS.items():
        own = [file for file in files if file.part == part]
        print(f"{part}: {what}")
        for file in own:
            print(f"  {file.name:20} {file.lines:>6} {file.code:>6}")
        print(f"  {'':20} {sum(file.lines for file in own):>6} {sum(file.code for file in own):>6}")
    port, all_of_it = (
        sum(file.code for file in files if file.part in parts) for parts in (["port"], ["port", "common"])
    )
    print(f"The port is {port} lines of code, {100 * port / all_of_it:.0f} % of the paravirtual kernel's {all_of_it}.")
    return 0
