"""The README is true: its commands run, its Python runs, its paths exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "sh" and "hv test" not in text]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]


@pytest.mark.parametrize("text", SHELL)
def test_the_commands_of_the_readme_work(text, tmp_path):
    """Run as written, by the Python that runs the tests."""
    script = text.replace("./hv ", f"'{sys.executable}' -m hvemu ").replace("ledger.json", str(tmp_path / "l.json"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert 0 == result.returncode, result.stdout[-2000:] + result.stderr


@pytest.mark.parametrize("text", PYTHON)
def test_the_python_of_the_readme_works(text, tmp_path):
    """Each block is a program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert 0 == result.returncode, result.stderr


def test_there_are_commands_and_python_to_test():
    """The patterns above find something."""
    assert (2, 1) <= (len(SHELL), len(PYTHON))


def test_the_paths_of_the_readme_exist():
    """The map leads somewhere."""
    for name in re.findall(
        r"`((?:hvemu|guests|docs|tests|machine|devices|vocabulary|cli)/[\w./]+\.(?:py|toml|md))`", README
    ):
        assert (ROOT / name).is_file() or (ROOT / "hvemu" / name).is_file(), name
    for name in re.findall(r"\]\(([A-Z]\w+\.md)\)", README):
        assert (ROOT / name).is_file(), name


def test_the_two_commands_of_ci_are_the_readmes():
    """CI runs what the README says."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ci.index("./hv test ") < ci.index("./hv test --all")
    assert "./hv test" in README
