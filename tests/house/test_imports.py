"""What is imported when: the command line starts fast, and nobody but the engine room knows unicorn."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "hvemu"


def modules_after(code):
    """The names in sys.modules of a fresh Python after running ``code``."""
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return set(result.stdout.split())


def test_asking_for_the_version_imports_neither_engine_nor_tui():
    """It is instant."""
    loaded = modules_after("from hvemu.cli import main; main(['--version'])")
    assert set() == loaded & {"unicorn", "textual", "capstone", "elftools"}


def test_the_machine_does_not_import_textual():
    """hvemu does not know its TUI."""
    assert "textual" not in modules_after("import hvemu.machine.builder, hvemu.cli.run")


def test_only_the_engine_room_imports_unicorn():
    """In the source, not only at run time."""
    guilty = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "unicorn" for name in names):
                guilty.append(path.relative_to(PACKAGE).parts[0])
    assert {"engine"} == set(guilty)
