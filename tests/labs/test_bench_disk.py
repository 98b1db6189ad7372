"""``hvemu bench --disk``: rates, exits and ratios of a guest's disk."""

import json

import pytest

from hvemu.cli import main
from hvemu.labs import bench_disk
from hvemu.labs.bench_disk import Measured, lines_of, measure, options_of, run
from hvemu.labs.disk import ADAPTERS

ROW = Measured("virtio-scsi", "read", "random", 50.0, 1280.0, {"the engine": 3, "hvemu/devices": 1}, 200.0)


def test_everything_goes_in_one_direction():
    """What is not measured is zero."""
    assert "adapter=ide read=64 write=0 request=4 pattern=random" == options_of("ide", "read", "random", 64)
    assert "adapter=ide read=0 write=8 request=4 pattern=sequential" == options_of("ide", "write", "sequential", 8)


def test_a_row_tells_rates_exits_and_where_the_time_went():
    """A dash where there is nothing to compare with."""
    head, columns, line, where = lines_of(ROW, first=True)
    assert head.startswith("requests of 4 KiB")
    assert "exits per MiB" in columns
    assert ["virtio-scsi", "read", "random", "50.00", "1,280", "200.0", "0.2500"] == line.split()
    assert "time: the engine 75 %, hvemu/devices 25 %" == where.strip()
    line, where = lines_of(ROW._replace(qemu_rate=None, rate=None, samples={}), first=False)
    assert ["virtio-scsi", "read", "random", "-", "1,280", "-", "-"] == line.split()
    assert "time: too short to tell" == where.strip()


@pytest.mark.parametrize(("operation", "pattern"), [("read", "random"), ("write", "sequential")])
def test_exits_of_a_mebibyte_are_exact(operation, pattern):
    """The difference of two runs: five for each of 256 requests."""
    found = measure("virtio-scsi", operation, pattern, None, rounds=1, mebibytes=1)
    # a digit more is printed for 1088 KiB than for 64: two exits each, twice
    assert 256 * 5 == pytest.approx(found.exits, abs=8)
    assert None is found.qemu_rate is found.ratio


def test_a_guest_that_fails_is_a_mistake_that_is_told():
    """Not a rate."""
    with pytest.raises(bench_disk.UserError, match="status 35"):
        run("ide", "adapter=ide request=4000")


def test_all_are_measured_and_qemu_may_be_missing(capsys, monkeypatch):
    """Sixteen rows, as text and as values."""
    monkeypatch.setattr(
        bench_disk, "measure", lambda adapter, operation, pattern, program: ROW._replace(adapter=adapter)
    )
    monkeypatch.setattr(bench_disk.shutil, "which", lambda name: None)
    assert 0 == main(["bench", "--disk"])
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in ADAPTERS for _ in range(4)] == [line.split()[0] for line in lines if "1,280" in line]
    assert "qemu-system-i386 is not installed" in lines[-1]
    monkeypatch.setattr(bench_disk.shutil, "which", lambda name: name)
    assert 0 == main(["bench", "--disk"])
    assert "has no BusLogic adapter" in capsys.readouterr().out
    assert 0 == main(["bench", "--disk", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert (16, 0.25) == (len(rows), rows[0]["ratio"])


@pytest.mark.slow
@pytest.mark.skipif(bench_disk.shutil.which("qemu-system-i386") is None, reason="needs qemu-system-i386")
@pytest.mark.parametrize("adapter", bench_disk.QEMU_MEBIBYTES)
def test_qemu_runs_the_same_command_line(adapter):
    """To its verdict."""
    options = options_of(adapter, "write", "random", 64)
    assert bench_disk.run_in_qemu("qemu-system-i386", adapter, options) > 0


def test_what_it_does_not_know_is_a_mistake(capsys):
    """With how it is spelled."""
    assert 2 == main(["bench", "--disk", "--wide"])
    assert "Type: hvemu bench --disk [--json]." in capsys.readouterr().err
