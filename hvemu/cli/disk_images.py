"""``hvemu disk create``, ``info``, ``check`` and ``convert``."""

import json
import re
from fractions import Fraction
from typing import Any, Final

from hvemu.cli.options import Parser
from hvemu.devices.images.checking import Findings, check_vhd
from hvemu.devices.images.contract import Image
from hvemu.devices.images.creating import FORMATS, copy_image, create_image
from hvemu.devices.images.describing import ImageFacts, describe
from hvemu.devices.images.foreign import as_raw, foreign_format, from_raw, temporary_name
from hvemu.devices.images.host_file import HostFile
from hvemu.devices.images.opening import is_vhd, open_image
from hvemu.devices.images.vhd_layout import Damage
from hvemu.vocabulary.errors import ExitStatus, UserError

_UNITS: Final = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def disk_parser(name: str, description: str, *paths: tuple[str, str]) -> Parser:
    """The parser of one command, with its paths."""
    result = Parser(prog=f"hvemu disk {name}", allow_abbrev=False, description=description)
    for path, what in paths:
        result.add_argument(path.lower(), metavar=path, help=what)
    return result


def add_parents_in(parser: Parser) -> None:
    """The option of all commands that open what an image builds on."""
    parser.add_argument(
        "--parents-in",
        metavar="FOLDER",
        action="append",
        default=[],
        help="what an image builds on may lie there too, not only in the image's folder or below",
    )


def create(arguments: list[str]) -> int:
    """Make an image; raises UserError."""
    parser = disk_parser(
        "create", "Make an image of zeros, which takes space only where it is written.", ("PATH", "file")
    )
    parser.add_argument("size", metavar="SIZE", type=disk_size, help="as in 64M, 1G or 1024B")
    parser.add_argument("--format", choices=FORMATS, help="raw, or vhd (dynamic) where the name ends in .vhd")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    options = parser.parse_args(arguments)
    create_image(options.path, options.size, options.format or "", force=options.force)
    return int(ExitStatus.POWER_OFF)


def info(arguments: list[str]) -> int:
    """Print what an image promises and takes; raises UserError."""
    parser = disk_parser("info", "What an image promises and takes, and each that it builds on.", ("PATH", "image"))
    parser.add_argument("--json", action="store_true", help="for programs; sizes in bytes")
    parser.add_argument(
        "-U", "--force-share", action="store_true", help="also while a guest writes to it; numbers may be a moment old"
    )
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    facts = describe(options.path, parents_in=options.parents_in, force_share=options.force_share)
    if options.json:
        print(json.dumps(_as_data(facts), indent=1))
    else:
        print("\n".join(_lines(facts)))
    return int(ExitStatus.POWER_OFF)


def check(arguments: list[str]) -> int:
    """Look for damage; status 74 when there is some. Raises UserError."""
    parser = disk_parser("check", "Look for damage. Status 0: none, or all repaired; 74: there is.", ("PATH", "image"))
    parser.add_argument("--repair", action="store_true", help="put right what can be, and say what was done")
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    findings = Findings()
    if is_vhd(options.path):
        file = HostFile.open(options.path, read_only=not options.repair)
        try:
            findings = check_vhd(file, repair=options.repair)
        finally:
            file.close()
    for line in findings.repaired:
        print(f"repaired: {line}")
    for damage in findings.damages:
        print(f"damaged: {damage.what}; {_advice(damage)}")
    if findings.leaked:
        print(
            f"{findings.leaked} bytes of the file are used by nothing;"
            " hvemu disk check --repair cuts off those at its end, hvemu disk convert makes a copy without any"
        )
    if not findings.sound:
        return int(ExitStatus.DIFFERENT)
    good = "no damage is left" if findings.repaired else "no damage was found"
    if not is_vhd(options.path):
        # Nothing but the name and the size of a raw image can be wrong
        open_image(options.path, read_only=True).close()
        print(good)
        return int(ExitStatus.POWER_OFF)
    try:
        open_image(options.path, read_only=True, parents_in=options.parents_in).close()
    except UserError as error:
        print(f"damaged: {error}")
        return int(ExitStatus.DIFFERENT)
    print(good)
    return int(ExitStatus.POWER_OFF)


def _advice(damage: Damage) -> str:
    if damage.loses:
        return "hvemu disk check --repair gives them up, with what is left of them: copy the file first"
    if damage.repairable:
        return "hvemu disk check --repair can put it right"
    return "nothing here can put it right (a copy with a name that does not end in .vhd is a raw image)"


def convert(arguments: list[str]) -> int:
    """Copy an image to another format; raises UserError and OSError."""
    parser = disk_parser(
        "convert",
        "Copy an image, with all that it builds on, to one that stands alone. Other formats than raw and VHD are known"
        " by the end of the name (.qcow2, .vmdk, .vdi, .vhdx) and need qemu-img.",
        ("SOURCE", "image to read"),
        ("DESTINATION", "image to make"),
    )
    parser.add_argument("--format", choices=FORMATS, help="raw, or vhd (dynamic) where the name ends in .vhd")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    add_parents_in(parser)
    options = parser.parse_args(arguments)
    if foreign_format(options.source):
        with as_raw(options.source, options.destination) as raw:
            _copy(open_image(raw, read_only=True), options)
    else:
        _copy(open_image(options.source, read_only=True, parents_in=options.parents_in), options)
    return int(ExitStatus.POWER_OFF)


def disk_size(text: str) -> int:
    """Bytes of a size with its unit, as 64M, 1.5G or 512B; raises UserError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)([BKMGT])(?:(?<!B)IB)?", text.upper(), re.ASCII)
    if match is None:
        raise UserError(f"'{text}' is not the size of a disk", "Write it with its unit, as 64M, 1.5G or 1024B.")
    size = Fraction(match[1]) * _UNITS[match[2]]
    if size.denominator != 1:
        raise UserError(f"'{text}' is not a whole number of bytes", "Write it in bytes, as 1536B.")
    return int(size)


def _copy(source: Image, options: Any) -> None:
    try:
        path = options.destination
        if not foreign_format(path):
            copy_image(source, path, options.format or ("vhd" if is_vhd(path) else "raw"), force=options.force)
            return
        if options.format:
            raise UserError(f"'{path}' has its format from its name", "Leave --format out.")
        if not options.force:
            _refuse_existing(path)
        with temporary_name(path + ".copy") as raw:
            copy_image(source, raw, "raw")
            from_raw(raw, path)
    finally:
        source.close()


def _refuse_existing(path: str) -> None:
    import os

    if os.path.lexists(path):
        raise UserError(f"'{path}' exists already", "Give another name, or --force to overwrite it.")


def _lines(facts: list[ImageFacts]) -> list[str]:
    lines = []
    for index, one in enumerate(facts):
        lines.append(f"{'builds on ' if index else ''}{one.path}")
        lines.append(f"  format     {one.format}")
        lines.append(f"  promised   {one.virtual_size} bytes ({size_words(one.virtual_size)})")
        share = 100 * one.allocated / one.virtual_size
        lines.append(
            f"  allocated  {size_words(one.allocated)} by the format ({share:.0f} %),"
            f" {size_words(one.stored)} by the host"
        )
        if one.unique_id:
            lines.append(f"  unique id  {one.unique_id}")
        state = (
            "clean"
            if one.clean
            else "sound; space at its end that nothing uses, which hvemu disk check --repair cuts off"
        )
        lines.append(f"  state      {state}")
    if len(facts) > 1:
        stored = sum(one.stored for one in facts)
        lines.append(
            f"chain of {len(facts)}: {size_words(stored)} on the host for {size_words(facts[0].virtual_size)} promised"
        )
    return lines


def _as_data(facts: list[ImageFacts]) -> dict[str, Any]:
    images = [
        {
            "path": one.path,
            "format": one.format,
            "virtual_size": one.virtual_size,
            "allocated": one.allocated,
            "file_size": one.file_size,
            "stored": one.stored,
            "unique_id": one.unique_id,
            "clean": one.clean,
        }
        for one in facts
    ]
    stored = sum(one.stored for one in facts)
    return {"virtual_size": facts[0].virtual_size, "stored": stored, "images": images}


def size_words(size: int) -> str:
    for unit, factor in reversed(_UNITS.items()):
        if unit != "B" and size >= factor:
            return f"{size / factor:.4g} {unit}iB"
    return f"{size} bytes"
