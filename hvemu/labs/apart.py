"""A function in a process of its own, because a second engine in a process is slower."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Final, ParamSpec, TypeVar

from hvemu.vocabulary.errors import HostBug

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_MOMENT: Final = 0.5


def _in_child() -> None:
    """Ctrl-C ends the child at once; the parent says so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def apart(function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
    """What it returns in a fresh process, which does not outlive us; raises what it raises, HostBug if it dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_in_child) as pool:
        try:
            future = pool.submit(function, *arguments, **named)
            while not wait([future], _MOMENT).done:  # Python notices Ctrl-C between waits
                pass
            return future.result()
        except BrokenProcessPool:
            raise HostBug(f"The process of {function.__name__} has died") from None
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise
