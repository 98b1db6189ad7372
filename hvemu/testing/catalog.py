"""The catalogue of guests: what there is, where it may run and what it must say."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hvemu
from hvemu.vocabulary.errors import UserError


@dataclass(frozen=True)
class Guest:
    """One row of guests/catalog.toml. ``memory`` is MiB, ``timeout`` host seconds."""

    name: str
    image: Path
    kind: str
    format: str
    title: str
    lesson: str
    modes: tuple[str, ...]
    memory: int
    command_line: str
    input: str
    input_after: str
    expected_status: int
    timeout: int
    console: tuple[str, ...]
    paravirtual: str
    """The guest that is the same program, ported to mode pv; "" if there is none."""
    disk: int
    """MiB of a scratch disk that the guest is given when nobody names one; 0 is none."""


def guests_directory() -> Path:
    """Where the guests are: beside the package in a checkout, inside it when installed."""
    package = Path(hvemu.__file__).parent
    for candidate in (package.parent / "guests", package / "_guests"):
        if (candidate / "catalog.toml").is_file():
            return candidate
    raise UserError("The guests are not installed", "Install hvemu again with pip, or work in a checkout.")


@cache
def catalog() -> dict[str, Guest]:
    """Every guest by name, in the catalogue's order."""
    directory = guests_directory()
    rows = tomllib.loads((directory / "catalog.toml").read_text(encoding="utf-8"))["guest"]
    return {
        row["name"]: Guest(
            name=row["name"],
            image=directory / row["image"],
            kind=row["kind"],
            format=row["format"],
            title=row["title"],
            lesson=row["lesson"],
            modes=tuple(row["modes"]),
            memory=row["memory"],
            command_line=row["command_line"],
            input=row["input"],
            input_after=row.get("input_after", ""),
            expected_status=row["expected_status"],
            timeout=row["timeout"],
            console=tuple(row["console"]),
            paravirtual=row.get("paravirtual", ""),
            disk=row.get("disk", 0),
        )
        for row in rows
    }
