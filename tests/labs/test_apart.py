"""A function in a process of its own."""

import os
import signal

import pytest

from hvemu.labs.apart import apart
from hvemu.vocabulary.errors import HostBug, UserError
from tests.cli.process import PATIENCE, Talk, engine_of_a_child, has_the_engine, start


def double(number: int, *, fail: bool = False) -> tuple[int, int]:
    """Twice the number, and who says so."""
    if fail:
        raise UserError(f"No {number}", "Take another.")
    return 2 * number, os.getpid()


def die() -> None:
    """As by a crash of the engine."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_returns_what_the_function_returns() -> None:
    """From another process, which is gone then."""
    result, process = apart(double, 21)
    assert (42, True) == (result, process != os.getpid())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_it_raises_what_the_function_raises() -> None:
    """With its advice."""
    with pytest.raises(UserError, match="No 7") as error:
        apart(double, 7, fail=True)
    assert "Take another." == error.value.hint


def test_a_process_that_dies_is_a_bug_of_ours() -> None:
    """Not a wait without an end."""
    with pytest.raises(HostBug, match="The process of die has died"):
        apart(die)


def test_nobody_is_left_behind_by_a_parent_that_was_killed() -> None:
    """A guest that never ends would compute on for ever."""
    with start("compare", "loop_forever", "--modes", "native") as process:
        child = engine_of_a_child(process)
        process.kill()
        process.wait(PATIENCE)
        assert process.stderr is not None
        with pytest.raises(AssertionError, match="the end came"):  # when no process has it open any more
            Talk(process.stderr.fileno()).until("something that nobody says")
        assert not has_the_engine(child)
