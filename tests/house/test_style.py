"""The tree is clean: ruff, mypy --strict on hvemu, import contracts."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(module, *words):
    """Run a tool of this environment on the tree; skip when it is not installed."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed; pip install 'hvemu[test]'")
    result = subprocess.run(
        [sys.executable, *words], cwd=ROOT, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert 0 == result.returncode, result.stdout[-4000:] + result.stderr[-2000:]


def test_ruff_finds_nothing():
    """Lint rules and their exceptions are in pyproject.toml."""
    check("ruff", "-m", "ruff", "check", "--no-cache", ".")


def test_mypy_is_content_with_hvemu(tmp_path):
    """Strict on the package."""
    check("mypy", "-m", "mypy", "--cache-dir", str(tmp_path))


def test_imports_go_downstairs_only():
    """The layers of the README's map, and only the engine room imports unicorn."""
    check(
        "importlinter", "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
