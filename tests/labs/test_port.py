"""``hvemu lab port``: lines of the kernel that is built twice, and what the README says of them."""

import json
import re
from pathlib import Path

import pytest

from hvemu.cli import main
from hvemu.labs.port import count

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]


def test_the_readme_says_what_the_command_prints(capsys: Captured) -> None:
    """Lines of code and share."""
    assert 0 == main(["lab", "port"])
    last = capsys.readouterr().out.splitlines()[-1]
    said = re.search(r"The port is (\d+) lines of code, (\d+) %", last)
    assert said is not None
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"took: {said[1]} lines of code, {said[2]} % of that small kernel" in readme


def test_every_file_is_counted_once(capsys: Captured) -> None:
    """As values, too; the parts are those the table shows."""
    assert 0 == main(["lab", "port", "--json"])
    files = {file["name"]: file for file in json.loads(capsys.readouterr().out)}
    folder = ROOT / "guests" / "17_processes"
    assert {path.name for path in folder.iterdir() if path.suffix in (".c", ".h", ".S", ".ld")} == set(files)
    assert "port" == files["paravirt.c"]["part"] == files["xen.h"]["part"]
    assert ["native", "beyond", "common"] == [
        files[name]["part"] for name in ("native.S", "paravirt_balloon.c", "memory.c")
    ]


def test_comments_and_blank_lines_are_no_code(tmp_path: Path) -> None:
    """Of one line, of several, behind code."""
    (tmp_path / "paravirt.c").write_text("/* a\n b */\nint x; /* c */\n\n// d\nint y; // e\n")
    assert [("paravirt.c", "port", 6, 2)] == [tuple(file) for file in count(tmp_path)]


def test_what_it_does_not_know_is_a_mistake(capsys: Captured) -> None:
    """One sentence."""
    assert 2 == main(["lab", "port", "--wide"])
    assert "hvemu lab port does not know '--wide'. Type: hvemu lab port [--json]." in capsys.readouterr().err
