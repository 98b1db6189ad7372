"""Hypothesis gives the same examples whatever a process has imported before."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAW = """
import hashlib, importlib, sys
import tests.conftest
for name in sys.argv[1:]:
    importlib.import_module(name)
from hypothesis import given, settings, strategies as st

drawn = []

@settings(max_examples=300)
@given(st.lists(st.one_of(st.integers(), st.binary(max_size=8), st.text(max_size=8), st.floats()), max_size=20))
def test(numbers):
    drawn.append(repr(numbers))

test()
print(hashlib.sha256("".join(drawn).encode()).hexdigest())
"""


def test_examples_do_not_depend_on_what_was_imported_before(tmp_path: Path) -> None:
    """Otherwise they would differ between the processes that share the tests."""
    script = tmp_path / "draw.py"
    script.write_text(DRAW)
    answers = [
        subprocess.run(
            [sys.executable, str(script), *modules],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
        for modules in ((), ("hvemu.vocabulary.paging", "hvemu.vocabulary.svm", "hvemu.vocabulary.scsi"))
    ]
    assert answers[0] == answers[1]
