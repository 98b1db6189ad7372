"""The licence is what pyproject.toml says, and the tree names nobody's machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACES = re.compile(rb"(?<![\w./$}])/(?:work|root|home)/\w")


def tracked() -> list[Path]:
    """The files of the project, those not committed yet included; skips outside of a checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=False,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_the_licence_is_the_gpl_version_2() -> None:
    """The whole text, from its title to the end of its appendix."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE\n" in text[:200]
    assert "Version 2, June 1991" in text[:200]
    for part in ("Preamble", "TERMS AND CONDITIONS", "NO WARRANTY", "END OF TERMS AND CONDITIONS", "How to Apply"):
        assert part in text
    numbered = re.findall(r"^ {2}(\d+)\. ", text, re.MULTILINE)
    assert [str(number) for number in range(13)] == numbered


def test_the_project_file_and_the_readme_name_that_licence() -> None:
    """GPL-2.0-or-later, because the engine is GPL."""
    assert ("GPL-2.0-or-later", ["LICENSE"]) == (PROJECT["license"], PROJECT["license-files"])
    assert "GPL-2.0-or-later" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_engine_is_pinned() -> None:
    """Another version of it behaves differently; everything else may move within a range."""
    assert "unicorn==2.1.4" in PROJECT["dependencies"]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """Paths are relative to the project, or belong to everybody."""
    assert [] == [str(path.relative_to(ROOT)) for path in tracked() if PLACES.search(path.read_bytes())]


def test_no_file_is_too_big_to_clone_by_the_way() -> None:
    """Guests are small; nothing else is binary."""
    assert [] == [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 400_000]
