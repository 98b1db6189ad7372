"""A function in a process of its own, because a second engine in a process is slower."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final, ParamSpec, TypeVar

from hvemu.vocabulary.errors import HostBug

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_MOMENT: Final = 0.5
"""Host seconds after which a waiting Python looks for signals again."""


def apart(function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
    """What it returns in a fresh process, which does not outlive us; raises what it raises, HostBug if it dies."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(sender, function, arguments, named), daemon=True)
    with receiver:
        try:
            with sender, _holding_interrupts():
                child.start()
            while not receiver.poll(_MOMENT):
                pass
            succeeded, outcome = receiver.recv()
        except EOFError:
            raise HostBug(f"The process of {function.__name__} has died") from None
        finally:
            if child.pid is not None:
                child.kill()
                child.join()
    if not succeeded:
        raise outcome
    result: _Result = outcome
    return result


def _in_child(
    sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Ctrl-C ends the child at once, the parent says so; and nobody is left behind by a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send((True, function(*arguments, **named)))
    except Exception as error:
        sender.send((False, error))


@contextlib.contextmanager
def _holding_interrupts() -> Iterator[None]:
    """Ctrl-C waits until a process is there to be ended; what is started inside begins with it held."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would let them through, as it does when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
