"""``hvemu bench``: what exits cost and how fast guests compute, as ratios measured in one run.

Every figure is the median over fresh processes, because a second engine in a process is slower. Costs are scaled to a
machine where a Python hook of Unicorn's own binding costs 0.45 microseconds, so that they can be compared.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hvemu.labs import bench_boot, bench_disk, bench_guests
from hvemu.vocabulary.errors import UserError

_ABOUT = (__doc__ or "").replace("``", "")
if TYPE_CHECKING:
    from hvemu.machine.machine import Machine

_ROUNDS: Final = 7
_OTHERS: Final = """\
--disk: MB/s of a guest's disk at each adapter, beside QEMU's; some minutes.
--boot: seconds of a Linux boot in every full mode, beside QEMU's and Bochs'; up to half an hour.
"""
_USAGE: Final = "Type: hvemu bench [--json], hvemu bench --disk [--json], or hvemu bench --boot KERNEL --initrd FILE."
_REFERENCE_HOOK: Final = 0.45e-6
_LOOPS: Final = 150
_REPEAT: Final = 100_000
_PLACES: Final = 3000
_PAGES: Final = 16_384
_FLUSHES: Final = 20
_ITERATIONS: Final = 100_000_000
_FILLS: Final = 1000
_WORK: Final = {"null": 20_000, "pte": 20_000, "switch": 4_000, "fork": 200}
"""Pieces of work of the kernel with processes: hypercalls, page-table entries, context switches, forks."""
_KERNELS: Final = ("native", "trap", "bt", "pv")
_SPACES, _SPACE_PAGES, _SWITCHES = 8, 16, 50


def _cpu_seconds(machine: "Machine") -> float:
    """Processor seconds of running a guest to its end; building the machine is not counted."""
    started = time.process_time()
    machine.run()
    return time.process_time() - started


def _compute(clock: str) -> float:
    from hvemu.machine.builder import build
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    return _cpu_seconds(build(guest_configuration(catalog()["compute"], append=f"loops={_LOOPS}", clock=clock)))


def _compute_bare() -> float:
    from hvemu.engine.bare import run_bare
    from hvemu.loader import firmware, multiboot
    from hvemu.loader.contract import BootRequest
    from hvemu.memory.guest_memory import GuestPhysicalMemory
    from hvemu.memory.machine_memory import MachineMemory
    from hvemu.testing.catalog import catalog
    from hvemu.vocabulary.machine_map import DEBUG_EXIT_PORT

    guest = catalog()["compute"]
    memory = GuestPhysicalMemory(MachineMemory(guest.memory << 20))
    firmware.install(memory)
    request = BootRequest(guest.image.read_bytes(), guest.image.name, f"loops={_LOOPS}")
    seconds, _ = run_bare(memory, multiboot.load(memory, request), "penryn", DEBUG_EXIT_PORT)
    return seconds


def _flat_machine(code: bytes, **changes: Any) -> "Machine":
    """The machine of a flat guest that ends by writing to the debug exit port."""
    from hvemu.cpu.decoder import decode_operands
    from hvemu.machine.builder import build
    from hvemu.machine.configuration import MachineConfiguration

    decode_operands(b"\x90", 32)  # imports capstone, which is not what is to be measured
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flat.bin")
        path.write_bytes(code)
        return build(MachineConfiguration(image=str(path), loader="flat", memory=16 << 20, serial="none", **changes))


def _flat(code: bytes, **changes: Any) -> float:
    """Processor seconds of a flat guest."""
    return _cpu_seconds(_flat_machine(code, **changes))


def _port_exit() -> float:
    return (_flat(bench_guests.ports(_REPEAT)) - _flat(bench_guests.nothing())) / _REPEAT


def _intercept() -> float:
    """Seconds of a CPUID that exits, without the loop around it."""
    loop = bench_guests.identifications
    many, one = (_flat(loop(count), mode="svm") for count in (_REPEAT, 1))
    return (many - one) / (_REPEAT - 1)


def _interrupt_round_trip() -> float:
    calls = bench_guests.system_calls
    return (_flat(calls(_REPEAT)) - _flat(calls(1))) / (_REPEAT - 1)


def _privileged() -> float:
    loop = bench_guests.privileged
    return (_flat(loop(_REPEAT // 4), mode="trap") - _flat(loop(1), mode="trap")) / (3 * (_REPEAT // 4 - 1))


def _interrupt_flag(mode: str, count: int) -> float:
    loop = bench_guests.interrupt_flag
    return (_flat(loop(count), mode=mode) - _flat(loop(1000), mode=mode)) / (count - 1000)


def _translation() -> float:
    """Seconds for each instruction that is translated, chained and run once."""
    code = bench_guests.straight_line
    return (_flat(code(_PLACES), mode="bt") - _flat(code(12), mode="bt")) / (_PLACES - 12)


def _hits() -> float:
    """How many of all calls, returns and jumps of a guest the cache follows by itself; a count, not a time."""
    machine = _flat_machine(bench_guests.calls(_REPEAT), mode="bt")
    machine.run()
    transfers = _REPEAT * (2 * bench_guests.CALLS_PER_ROUND + 1)
    return 1 - float(machine.statistics()["exits"]["dispatch"]) / transfers


def _privileged_cold() -> float:
    once = bench_guests.privileged_once
    return (_flat(once(_PLACES), mode="trap") - _flat(once(1), mode="trap")) / (_PLACES - 1)


def _hidden_fault() -> float:
    touch = bench_guests.touches
    return (_flat(touch(_PAGES), mode="trap") - _flat(touch(1), mode="trap")) / (_PAGES - 1)


def _hidden_fault_after_flush() -> float:
    """Dropping what was there before is part of it."""
    touch, pages = bench_guests.touches_again, _PAGES // 16
    many, one = (_flat(touch(pages, rounds), mode="trap", shadow="flush") for rounds in (_FLUSHES + 1, 1))
    return (many - one) / (pages * _FLUSHES)


def _hidden_faults_of_switching(shadow: str) -> float:
    """How many there are; a count, not a time."""
    machine = _flat_machine(bench_guests.switches(_SPACES, _SPACE_PAGES, _SWITCHES), mode="trap", shadow=shadow)
    machine.run()
    return float(machine.statistics()["exits"]["hidden_fault"])


def _work(kind: str, mode: str, **changes: Any) -> float:
    """Seconds for one piece of work of the kernel that is built twice, ported for mode pv."""
    from hvemu.machine.builder import build
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    guest, count = catalog()["processes_pv" if mode == "pv" else "processes"], _WORK[kind]

    def seconds(amount: int) -> float:
        return _cpu_seconds(build(guest_configuration(guest, mode=mode, append=f"work={kind}:{amount}", **changes)))

    return (seconds(count) - seconds(count // 10)) / (count - count // 10)


def _start_up() -> float:
    return _process("-m", "hvemu", "run", "hello", "--serial", "none")


def _import_engine() -> float:
    return _process("-c", "import unicorn, capstone, elftools.elf.elffile")


def _python() -> float:
    return _process("-c", "pass")


def _version() -> float:
    return _process("-m", "hvemu", "--version")


def _process(*arguments: str) -> float:
    """Host seconds of a fresh Python, with compiled modules at hand as in an installation."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir(), "hvemu-bench-pycache"))
    command = [sys.executable, *arguments]
    started = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment)
    return time.perf_counter() - started


def _bare_hook() -> float:
    from hvemu.engine.bare import bare_hook_seconds

    return bare_hook_seconds()


_LOOPS_OF_BOTH: dict[str, Callable[[], bytes]] = {
    "user_arithmetic": lambda: bench_guests.user_arithmetic(_ITERATIONS),
    "user_stores": lambda: bench_guests.user_stores(_FILLS),
    "kernel_stores": lambda: bench_guests.kernel_stores(_FILLS),
    "kernel_arithmetic": lambda: bench_guests.kernel_arithmetic(_ITERATIONS),
    "calls": lambda: bench_guests.calls(_ITERATIONS // 20),
}
"""What takes no exits, to be compared between modes."""


def _loop_of_both(code: Callable[[], bytes], technique: str) -> float:
    mode, _, mmu = technique.partition("/")
    return _flat(code(), mode=mode, mmu=mmu)


_CASES: dict[str, Callable[[], float]] = {
    "bare_hook": _bare_hook,
    "compute_bare": _compute_bare,
    "compute_host": lambda: _compute("host"),
    "compute_virtual": lambda: _compute("virtual"),
    "port_exit": _port_exit,
    "interrupt": _interrupt_round_trip,
    "trap_privileged": _privileged,
    "trap_privileged_cold": _privileged_cold,
    "trap_hidden_fault": _hidden_fault,
    "trap_hidden_fault_after_flush": _hidden_fault_after_flush,
    **{
        f"{technique}_{name}": partial(_loop_of_both, code, technique)
        for name, code in _LOOPS_OF_BOTH.items()
        for technique in ("native", "trap", "bt", "svm", "svm/shadow")
    },
    "svm_intercept": _intercept,
    "trap_interrupt_flag": lambda: _interrupt_flag("trap", _REPEAT // 4),
    "bt_interrupt_flag": lambda: _interrupt_flag("bt", 50 * _REPEAT),
    "bt_translation": _translation,
    "bt_hits": _hits,
    **{f"switching_{shadow}": partial(_hidden_faults_of_switching, shadow) for shadow in ("cached", "flush")},
    "pv_null": partial(_work, "null", "pv"),
    "traced_pte": partial(_work, "pte", "trap", shadow="trace"),
    **{f"{mode}_{kind}": partial(_work, kind, mode) for kind in ("pte", "switch", "fork") for mode in _KERNELS},
    "start_up": _start_up,
    "import_engine": _import_engine,
    "python": _python,
    "version": _version,
}
_ALONE = frozenset({"start_up", "import_engine", "python", "version"})
"""Cases that are processes already."""


def _measure(case: str) -> float:
    if case in _ALONE:
        return _CASES[case]()
    command = [sys.executable, "-m", "hvemu.labs.bench", case]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"Case {case} failed: {result.stderr.strip()[-300:]}", "Run hvemu doctor.")
    return float(json.loads(result.stdout))


def main(arguments: list[str]) -> int:
    """Run every case and print PASS or MISS against its goal; ``--json`` prints the medians instead."""
    if arguments and arguments[0] in ("-h", "--help"):
        usage = ("hvemu bench [--json]", "hvemu bench --disk [--json]", "hvemu bench --boot KERNEL --initrd FILE")
        print("usage: " + "\n       ".join(usage) + f"\n\n{_ABOUT}\n{_OTHERS}")
        return 0
    if "--disk" in arguments:
        return bench_disk.main(arguments)
    if "--boot" in arguments:
        return bench_boot.main(arguments)
    if arguments and arguments != ["--json"]:
        raise UserError(
            f"hvemu bench does not know '{arguments[0]}'",
            _USAGE,
        )
    samples: dict[str, list[float]] = {case: [] for case in _CASES}
    for _ in range(_ROUNDS):  # round-robin, so that a noisy moment hits every case alike
        for case in _CASES:
            samples[case].append(_measure(case))
    medians = {case: statistics.median(values) for case, values in samples.items()}
    if arguments:
        print(json.dumps(medians, indent=1))
        return 0
    print(f"bare Unicorn hook: {medians['bare_hook'] * 1e6:.2f} us here, scaled to 0.45 us; medians of {_ROUNDS}")
    for row in _rows(medians):
        print(row)
    return 0


class _Row(NamedTuple):
    """A line of the table; without a goal it is only told."""

    what: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    def __str__(self) -> str:
        line = f"{self.what:58} {self.value:8.2f} {self.unit:3}"
        if self.goal is None:
            return f"      {line}".rstrip()
        good = self.value >= self.goal if self.at_least else self.value <= self.goal
        return f"{'PASS' if good else 'MISS'}  {line} (goal {'>=' if self.at_least else '<='} {self.goal:g})"


def _rows(medians: dict[str, float]) -> list[_Row]:
    microseconds = _REFERENCE_HOOK / medians["bare_hook"] * 1e6
    bare = medians["compute_bare"]

    def cost(case: str) -> float:
        return medians[case] * microseconds

    def of_native(loop: str, mode: str = "trap") -> float:
        return medians[f"native_{loop}"] / medians[f"{mode}_{loop}"]

    return [
        _Row("compute, --clock host, of bare Unicorn", bare / medians["compute_host"], "x", 0.85, True),
        _Row("compute, --clock virtual, of bare Unicorn", bare / medians["compute_virtual"], "x", 0.70, True),
        _Row("OUT exit", cost("port_exit"), "us", 2.5),
        _Row("INT 80h to ring 0 and IRET", cost("interrupt"), "us", 8.0),
        _Row("trap: privileged instruction", cost("trap_privileged"), "us", 10.0),
        _Row("trap: the same, at a place never seen before", cost("trap_privileged_cold"), "us"),
        _Row("trap: hidden fault, a page never touched before", cost("trap_hidden_fault"), "us", 15.0),
        _Row("trap: hidden fault, after a flush", cost("trap_hidden_fault_after_flush"), "us", 15.0),
        _Row("trap: computing in ring 3, of native", of_native("user_arithmetic"), "x", 0.95, True),
        _Row("trap: stores in ring 3, of native", of_native("user_stores"), "x", 3.0, True),
        _Row("trap: stores in the kernel, of native", of_native("kernel_stores"), "x", 3.0, True),
        _Row(
            f"trap: hidden faults of {_SPACES} address spaces, of --shadow flush",
            medians["switching_cached"] / medians["switching_flush"],
            "x",
            0.1,
        ),
        _Row("bt: computing in the kernel, of native", of_native("kernel_arithmetic", "bt"), "x", 0.7, True),
        _Row("bt: calls and returns in the kernel, of native", of_native("calls", "bt"), "x", 0.25, True),
        _Row("bt: stores in the kernel, of native", of_native("kernel_stores", "bt"), "x"),
        _Row("bt: computing in ring 3, of native", of_native("user_arithmetic", "bt"), "x", 0.95, True),
        _Row(
            "bt: CLI and STI, trap's cost of them",
            medians["trap_interrupt_flag"] / medians["bt_interrupt_flag"],
            "x",
            100,
            True,
        ),
        _Row("bt: translating an instruction", cost("bt_translation"), "us"),
        _Row("bt: transfers that the cache follows by itself", 100 * medians["bt_hits"], "%"),
        _Row("svm: a CPUID that exits", cost("svm_intercept"), "us", 4.0),
        _Row("svm: computing in the kernel, of native", of_native("kernel_arithmetic", "svm"), "x", 0.9, True),
        _Row("svm: computing in ring 3, of native", of_native("user_arithmetic", "svm"), "x", 0.9, True),
        _Row("svm: stores in the kernel, of native", of_native("kernel_stores", "svm"), "x"),
        _Row(
            "svm --mmu shadow: stores in the kernel, of native", of_native("kernel_stores", "svm/shadow"), "x", 3, True
        ),
        _Row("svm --mmu shadow: stores in ring 3, of native", of_native("user_stores", "svm/shadow"), "x", 3, True),
        _Row("pv: a hypercall that does nothing", cost("pv_null"), "us"),
        _Row(
            "pv: a page-table entry, cost of it where each store faults",
            medians["traced_pte"] / medians["pv_pte"],
            "x",
        ),
        *(
            row
            for kind, what in (
                ("pte", "a page-table entry"),
                ("switch", "a context switch"),
                ("fork", "a fork and wait"),
            )
            for row in (
                _Row(f"pv: {what}", cost(f"pv_{kind}"), "us"),
                *(
                    _Row(f"pv: {what}, {mode}'s cost of it", medians[f"{mode}_{kind}"] / medians[f"pv_{kind}"], "x")
                    for mode in _KERNELS[:-1]
                ),
            )
        ),
        _Row(
            "start-up beyond libraries (engine, capstone, ELF)",
            (medians["start_up"] - medians["import_engine"]) / (medians["import_engine"] - medians["python"]),
            "x",
            1.0,
        ),
        _Row("hvemu --version, of bare Python", medians["version"] / medians["python"], "x", 3.0),
    ]


if __name__ == "__main__":
    print(json.dumps(_CASES[sys.argv[1]]()))
