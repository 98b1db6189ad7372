"""``hv``: from a fresh clone to a running command, with nothing but Python's own library."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "hv"


class Became(BaseException):
    """What ``os.execv`` does: nothing comes after it."""


class Desk:
    """hv in a folder of its own, with a fake pip and a fake exec."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "pyproject.toml").write_text("version = 1")
        self.commands: list[list[str]] = []
        self.status = 0
        self.became: list[str] = []
        monkeypatch.setattr(subprocess, "run", self._run)
        monkeypatch.setattr(os, "execv", self._execv)
        monkeypatch.chdir(folder)
        self._monkeypatch = monkeypatch
        self.module: Any = ModuleType("hv")
        self.module.__file__ = str(folder / "hv")
        exec(compile(SOURCE.read_text(encoding="utf-8"), "hv", "exec"), self.module.__dict__)

    def _run(self, command: list[str], **_options: Any) -> Any:
        self.commands.append(command)
        if self.status == 0 and "venv" in command:
            self.module.PYTHON.parent.mkdir(parents=True)
            self.module.PYTHON.touch()
        return SimpleNamespace(returncode=self.status)

    def _execv(self, path: str, command: list[str]) -> None:
        self.became = command
        assert path == command[0]
        raise Became

    def hv(self, *words: str) -> list[str]:
        """The command that ``./hv words`` becomes."""
        self._monkeypatch.setattr(sys, "argv", ["hv", *words])
        with pytest.raises(Became):
            self.module.main()
        assert self.became[0] == str(self.folder / ".venv" / "bin" / "python")
        return self.became[1:]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A fresh clone."""
    return Desk(tmp_path, monkeypatch)


def test_it_needs_only_pythons_own_library() -> None:
    """There is nothing else yet when it runs; and an old Python can read it far enough to be told so."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 7))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert set() == names - set(sys.stdlib_module_names)


def test_it_can_be_executed() -> None:
    """``./hv`` is what the README says."""
    assert os.access(SOURCE, os.X_OK)
    assert SOURCE.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")


def test_the_first_use_makes_the_environment(desk: Desk) -> None:
    """venv, then pip with the test extra; the second use does neither."""
    desk.hv("demo")
    assert 2 == len(desk.commands)
    assert desk.commands[0][1:3] == ["-m", "venv"]
    assert desk.commands[1][1:3] == ["-m", "pip"]
    assert ["install", "-e", f"{desk.folder}[test]"] == desk.commands[1][-3:]
    desk.hv("demo")
    assert 2 == len(desk.commands)


def test_a_change_of_the_project_file_installs_again(desk: Desk) -> None:
    """Into the environment that is there."""
    desk.hv("demo")
    (desk.folder / "pyproject.toml").write_text("version = 2")
    desk.hv("demo")
    assert ["venv", "pip", "pip"] == [command[2] for command in desk.commands]


def test_an_environment_whose_python_has_gone_is_made_anew(desk: Desk) -> None:
    """As after an upgrade of the system's Python; what is left of the old one is cleared away."""
    desk.hv("demo")
    desk.module.PYTHON.unlink()
    desk.module.PYTHON.parent.rmdir()
    desk.hv("demo")
    assert ["venv", "pip", "venv", "pip"] == [command[2] for command in desk.commands]
    assert "--clear" in desk.commands[2]


def test_a_failed_installation_is_a_sentence_and_is_tried_again(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2; nothing claims that the environment fits."""
    desk.status = 1
    with pytest.raises(SystemExit) as ended:
        desk.hv("demo")
    assert 2 == ended.value.code
    assert "failed with status 1. Check the network and try again.\n" in capsys.readouterr().err
    desk.status = 0
    desk.hv("demo")
    assert desk.module.STAMP.exists()


def test_a_python_without_ensurepip_is_told_what_to_install(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian's python3 has no venv of its own; nothing has been started then."""
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit) as ended:
        desk.hv("demo")
    assert (2, []) == (ended.value.code, desk.commands)
    assert capsys.readouterr().err.endswith("apt-get install python3-venv\n")


def test_an_old_python_is_told_so(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made with it."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as ended:
        desk.hv("demo")
    assert (2, []) == (ended.value.code, desk.commands)
    assert "Run it with Python 3.11 or newer" in capsys.readouterr().err


def test_a_command_is_passed_on(desk: Desk) -> None:
    """Every word, unchanged."""
    assert ["-m", "hvemu", "run", "hello", "--append", "a b"] == desk.hv("run", "hello", "--append", "a b")
    assert ["-m", "hvemu"] == desk.hv()


def test_test_is_pytest_without_the_slow_ones(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """--all takes the filter away; other words go to pytest, from the project's folder. Two processes share them."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    shared = ["-m", "pytest", "-n", "2", "--dist", "load"]
    assert [*shared, "-m", "not slow"] == desk.hv("test")
    assert [*shared, "-m", "not slow", "-x", "tests/cli"] == desk.hv("test", "-x", "tests/cli")
    assert ["-m", "pytest", "-m", "not slow", "-n", "0"] == desk.hv("test", "-n", "0")
    assert [*shared, "-x"] == desk.hv("test", "--all", "-x")
    assert desk.folder == Path.cwd()
