"""``--trace``: every event a line, the same bytes every time; and observers that fail do no harm."""

import json
from pathlib import Path

import pytest

from hvemu.cli import main
from hvemu.machine.builder import build
from hvemu.testing.catalog import Guest, catalog
from hvemu.testing.running import guest_configuration, run_guest
from hvemu.trace.events import Event, TechniqueChanged
from hvemu.trace.tracer import JsonLines, Tracer
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.exits import AssistKind, ExitKind

FIELDS = {
    "Exited": {"event", "position", "kind", "eip", "detail", "size", "value", "name"},
    "Assisted": {"event", "position", "kind", "eip", "detail", "error_code", "name"},
    "Batched": {"event", "position", "call", "result"},
    "DeviceSpoke": {"event", "position", "device", "what", "detail"},
    "InputArrived": {"event", "position", "source", "data"},
    "Ended": {"event", "position", "status", "reason"},
}
ENOUGH = 3_000_000
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody types."""
    monkeypatch.setattr("hvemu.cli.console.sys.stdin", None)


def traced(guest: Guest, path: Path) -> bytes:
    """The trace of a guest up to a position that shows all of most of them."""
    with open(path, "w", encoding="utf-8") as file:
        run_guest(
            guest_configuration(guest),
            keys=guest.input,
            keys_after=guest.input_after,
            position=ENOUGH,
            observer=JsonLines(file),
        )
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("timers", "interrupts") else ()) for name in catalog()],
)
def test_two_runs_write_the_same_trace(name: str, tmp_path: Path) -> None:
    """Byte for byte, keys and crashes included."""
    first, second = (traced(catalog()[name], tmp_path / file) for file in ("one", "two"))
    assert first == second


def test_a_trace_shows_where_the_technique_changed() -> None:
    """With the one that runs the guest from there on."""
    events = []
    tracer = Tracer()
    tracer.subscribe(events.append)
    machine = build(guest_configuration(catalog()["hello"]), tracer=tracer)
    machine.run(5_000)
    position = machine.mode.position()
    machine.switch_mode("bt")
    assert TechniqueChanged(position, "bt", "shadow") == events[-1]


def test_a_trace_shows_hypercalls_by_name_and_batches_by_their_parts(tmp_path: Path) -> None:
    """How many requests a call had, and each call of a multicall with its result."""
    path = tmp_path / "trace"
    assert 33 == main(["run", "processes_pv", "--append", "work=pte:200", "--trace", str(path)])
    events = [json.loads(line) for line in path.read_text().splitlines()]
    calls = [event for event in events if event.get("kind") == "hypercall"]
    updates = [event["size"] for event in calls if event["name"] == "mmu_update"]
    assert 200 <= sum(updates)
    assert 100 <= max(updates)
    multicalls = sum(event["size"] for event in calls if event["name"] == "multicall")
    parts = [event for event in events if event["event"] == "Batched"]
    assert multicalls == len(parts) > 0
    assert {"mmuext_op", "stack_switch"} <= {part["call"] for part in parts}
    assert {0} == {part["result"] for part in parts}


def test_two_processes_worth_of_command_line_write_the_same_trace(tmp_path: Path) -> None:
    """The same holds for files written by ``hvemu run``."""
    for name in ("one", "two"):
        assert 33 == main(["run", "ring3", "--trace", str(tmp_path / name)])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("name", ["hello", "preempt", "jump_nowhere", "triple", "poweroff"])
def test_every_line_is_an_event_of_a_known_form(name: str, tmp_path: Path) -> None:
    """Each parses, has its fields, a kind that exists and a position that never goes back; the last one is the end."""
    path = tmp_path / "trace"
    status = main(["run", name, "--trace", str(path)])
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        assert FIELDS[event["event"]] == set(event)
        assert event.get("kind", ExitKind.HLT) in (*ExitKind, *AssistKind)
    positions = [event["position"] for event in events]
    assert sorted(positions) == positions
    assert ("Ended", status) == (events[-1]["event"], events[-1]["status"])
    assert ["Ended"] == [event["event"] for event in events if event["event"] == "Ended"]


def test_tracing_does_not_change_the_run(tmp_path: Path) -> None:
    """The ledger of a traced run is that of one nobody watches."""
    ledgers = []
    for words in ([], ["--trace", str(tmp_path / "trace")]):
        main(["run", "faults", "--ledger", str(tmp_path / "ledger"), *words])
        ledgers.append({**json.loads((tmp_path / "ledger").read_text()), "wall_s": 0})
    assert ledgers[0] == ledgers[1]


def test_the_trace_and_the_ledger_count_the_same_exits(tmp_path: Path) -> None:
    """Two independent paths through the dispatcher agree."""
    main(["run", "hello", "--trace", str(tmp_path / "trace"), "--ledger", str(tmp_path / "ledger")])
    events = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    exits = json.loads((tmp_path / "ledger").read_text())["exits"]
    assert exits["io_out"] == sum(event.get("kind") == "io_out" for event in events)


class Broken:
    """An observer that fails at its third event."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, event: Event) -> None:
        """Count, and fail."""
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no more paper")

    def __repr__(self) -> str:
        return "the printer"


def test_an_observer_that_raises_is_detached_and_reported() -> None:
    """It is not called again; the others go on, and the guest does not notice."""
    broken, seen = Broken(), list[Event]()
    tracer = Tracer()
    tracer.subscribe(broken)
    tracer.subscribe(seen.append)
    for position in range(5):
        tracer.publish(Event(Position(position)))
    assert (3, 5) == (broken.calls, len(seen))
    assert ["observer the printer was detached: RuntimeError: no more paper"] == tracer.failures


def test_the_guest_passes_under_a_broken_observer() -> None:
    """The verdict is that of a run nobody watches."""
    broken = Broken()
    assert 33 == run_guest(guest_configuration(catalog()["hello"]), observer=broken).status
    assert 3 == broken.calls


def test_a_trace_that_no_longer_fits_is_reported_and_the_guest_goes_on(capfd: Captured) -> None:
    """The disk is full: the verdict stands, and a sentence says that the trace is not complete."""
    assert 33 == main(["run", "hello", "--trace", "/dev/full"])
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
