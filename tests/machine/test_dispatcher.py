"""One table maps exit kinds to handlers; doubles and gaps are loud."""

import pytest

from hvemu.dispatch.dispatcher import Dispatcher
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.errors import HostBug
from hvemu.vocabulary.exits import ExitKind, Io
from hvemu.vocabulary.outcomes import Retire


def test_a_double_registration_is_a_host_bug():
    """Two handlers for one kind cannot both be meant."""
    dispatcher = Dispatcher(Ledger(), Tracer())
    dispatcher.register(ExitKind.IO_IN, lambda io: Retire())
    with pytest.raises(HostBug, match="two handlers for exit kind io_in"):
        dispatcher.register(ExitKind.IO_IN, lambda io: Retire())


def test_a_kind_nobody_handles_is_a_host_bug():
    """The sentence says what is registered."""
    with pytest.raises(HostBug, match="no handler for exit kind io_out"):
        Dispatcher(Ledger(), Tracer()).entry(ExitKind.IO_OUT)


def test_every_entry_counts_by_its_detail():
    """The ledger has kind and port without anybody listening."""
    ledger = Ledger()
    dispatcher = Dispatcher(ledger, Tracer())
    dispatcher.register(ExitKind.IO_IN, lambda io: Retire(io.port))
    enter = dispatcher.entry(ExitKind.IO_IN)
    assert Retire(0x60) == enter(Io(0x60, 1))
    enter(Io(0x61, 1))
    enter(Io(0x60, 1))
    assert {"io_in": {"0x60": 2, "0x61": 1}} == ledger.as_dict()["exits_by_detail"]


def test_an_observer_that_raises_is_detached_and_the_guest_does_not_notice():
    """The failure is kept as a sentence; later events go to the others."""
    tracer, seen = Tracer(), []

    def broken(event):
        raise RuntimeError("oops")

    tracer.subscribe(broken)
    tracer.subscribe(seen.append)
    dispatcher = Dispatcher(Ledger(), tracer)
    dispatcher.register(ExitKind.IO_OUT, lambda io: Retire())
    enter = dispatcher.entry(ExitKind.IO_OUT)
    enter(Io(0x80, 1, 5))
    enter(Io(0x80, 1, 6))
    assert [5, 6] == [event.value for event in seen]
    assert 1 == len(tracer.failures)
    assert "oops" in tracer.failures[0]
