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
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hvemu.vocabulary.errors import UserError

if TYPE_CHECKING:
    from hvemu.machine.configuration import MachineConfiguration

_ROUNDS: Final = 7
_REFERENCE_HOOK: Final = 0.45e-6
_LOOPS: Final = 150
_REPEAT: Final = 100_000
_BASE: Final = 0x0010_0000


def _assemble(*pieces: str) -> bytes:
    return bytes.fromhex("".join(pieces).replace(" ", ""))


# mov ecx, N / again: out 80h, al / dec ecx / jnz again / out 0F4h, al
_PORT_LOOP = _assemble("b9", _REPEAT.to_bytes(4, "little").hex(), "e680 49 75fb e6f4 f4")


def _cpu_seconds(configuration: "MachineConfiguration") -> float:
    """Processor seconds of running a guest to its end; building the machine is not counted."""
    from hvemu.machine.builder import build

    machine = build(configuration)
    started = time.process_time()
    machine.run()
    return time.process_time() - started


def _compute(clock: str) -> float:
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    return _cpu_seconds(guest_configuration(catalog()["compute"], append=f"loops={_LOOPS}", clock=clock))


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


def _flat(code: bytes) -> float:
    """Host seconds of a flat guest that ends by writing to the debug exit port."""
    from hvemu.machine.configuration import MachineConfiguration

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flat.bin")
        path.write_bytes(code)
        return _cpu_seconds(MachineConfiguration(image=str(path), loader="flat", memory=16 << 20, serial="none"))


def _port_exit() -> float:
    return (_flat(_PORT_LOOP) - _flat(_assemble("e6f4 f4"))) / _REPEAT


def _interrupt_round_trip() -> float:
    return (_flat(_ring3_image(_REPEAT)) - _flat(_ring3_image(1))) / (_REPEAT - 1)


def _ring3_image(count: int) -> bytes:
    """A flat guest: GDT, TSS and one trap gate, then ``count`` times INT 80h from ring 3 and IRET back."""
    image = bytearray(0x1000)

    def put(offset: int, data: bytes) -> None:
        image[offset : offset + len(data)] = data

    def word(value: int) -> str:
        return value.to_bytes(4, "little").hex()

    descriptors = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF)
    tss = _BASE + 0x800
    tss_descriptor = 0x67 | (tss & 0xFFFFFF) << 16 | 0x89 << 40 | (tss >> 24) << 56
    put(0x400, b"".join(value.to_bytes(8, "little") for value in (*descriptors, tss_descriptor)))
    put(0x440, (47).to_bytes(2, "little") + (_BASE + 0x400).to_bytes(4, "little"))
    handler, idt = _BASE + 0x200, _BASE + 0xA00
    gate = (handler & 0xFFFF) | 0x08 << 16 | 0xEF << 40 | (handler >> 16) << 48
    put(0xA00 + 0x80 * 8, gate.to_bytes(8, "little"))
    put(0x448, (0x7FF).to_bytes(2, "little") + idt.to_bytes(4, "little"))
    put(0x804, (_BASE + 0x7000).to_bytes(4, "little") + (0x10).to_bytes(4, "little"))
    put(0x866, (0x68).to_bytes(2, "little"))
    user = _BASE + 0x300
    start = _assemble(
        "0f0115", word(_BASE + 0x440),  # lgdt
        "0f011d", word(_BASE + 0x448),  # lidt
        "66b810008ed08ed88ec0bc", word(_BASE + 0x6000),  # mov ax,10h / mov ss,ax / mov ds,ax / mov es,ax / mov esp
        "66b828000f00d8",  # mov ax,28h / ltr ax
        "6a2368", word(_BASE + 0x5000), "68", word(0x3002), "6a1b68", word(user),  # SS, ESP, EFLAGS IOPL 3, CS, EIP
        "cf",  # iret to ring 3
    )  # fmt: skip
    put(0, start)
    put(0x200, _assemble("cf"))
    put(0x300, _assemble("b9", word(count), "cd80 49 75fb e6f4 ebfe"))
    return bytes(image)


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


_CASES: dict[str, Callable[[], float]] = {
    "bare_hook": _bare_hook,
    "compute_bare": _compute_bare,
    "compute_host": lambda: _compute("host"),
    "compute_virtual": lambda: _compute("virtual"),
    "port_exit": _port_exit,
    "interrupt": _interrupt_round_trip,
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
        print(f"usage: hvemu bench [--json]\n\n{__doc__}")
        return 0
    if arguments and arguments != ["--json"]:
        raise UserError(f"hvemu bench does not know '{arguments[0]}'", "Type: hvemu bench [--json].")
    samples: dict[str, list[float]] = {case: [] for case in _CASES}
    for _ in range(_ROUNDS):  # round-robin, so that a noisy moment hits every case alike
        for case in _CASES:
            samples[case].append(_measure(case))
    medians = {case: statistics.median(values) for case, values in samples.items()}
    if arguments:
        print(json.dumps(medians, indent=1))
        return 0
    scale = _REFERENCE_HOOK / medians["bare_hook"]
    bare = medians["compute_bare"]
    rows = [
        ("compute, --clock host, of bare Unicorn", bare / medians["compute_host"], 0.85, "x", True),
        ("compute, --clock virtual, of bare Unicorn", bare / medians["compute_virtual"], 0.70, "x", True),
        ("OUT exit", medians["port_exit"] * scale * 1e6, 2.5, "us", False),
        ("INT 80h to ring 0 and IRET", medians["interrupt"] * scale * 1e6, 8.0, "us", False),
        (
            "start-up beyond libraries (engine, capstone, ELF)",
            (medians["start_up"] - medians["import_engine"]) / (medians["import_engine"] - medians["python"]),
            1.0,
            "x",
            False,
        ),
        ("hvemu --version, of bare Python", medians["version"] / medians["python"], 3.0, "x", False),
    ]
    print(f"bare Unicorn hook: {medians['bare_hook'] * 1e6:.2f} us here, scaled to 0.45 us; medians of {_ROUNDS}")
    for what, value, goal, unit, at_least in rows:
        good = value >= goal if at_least else value <= goal
        sign = ">=" if at_least else "<="
        print(f"{'PASS' if good else 'MISS'}  {what:50} {value:8.2f} {unit:3} (goal {sign} {goal:g})")
    return 0


if __name__ == "__main__":
    print(json.dumps(_CASES[sys.argv[1]]()))
