"""``hvemu list``: what there is."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hvemu.vocabulary.errors import UserError

_TOPICS = ("guests", "devices", "cpus", "exits")


def main(arguments: list[str]) -> int:
    """Print one list, as text or with --json as JSON."""
    words = [word for word in arguments if word != "--json"]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: hvemu list {{{','.join(_TOPICS)}}} [--json]")
        return 0 if words else 2
    if len(words) > 1 or words[0] not in _TOPICS:
        raise UserError(f"There is no list of '{' '.join(words)}'", f"Lists are: {', '.join(_TOPICS)}.")
    rows = {"guests": _guests, "devices": _devices, "cpus": _cpus, "exits": _exits}[words[0]]()
    if "--json" in arguments:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        values = [", ".join(value) if isinstance(value, list) else str(value) for value in row.values()]
        print(f"{values[0]:20} " + "  ".join(values[1:]))
    return 0


def _guests() -> list[dict[str, Any]]:
    from hvemu.machine.configuration import MODES
    from hvemu.testing.catalog import catalog

    return [
        {
            "name": guest.name,
            "kind": guest.kind,
            "title": guest.title,
            "modes": [mode for mode in guest.modes if mode in MODES],
        }
        for guest in catalog().values()
    ]


def _devices() -> list[dict[str, Any]]:
    """Of a PC with a drive at each adapter, as its BIOS leaves it."""
    from hvemu.machine.builder import build
    from hvemu.machine.drives import ADAPTERS, escaped
    from hvemu.testing.catalog import catalog
    from hvemu.testing.running import guest_configuration

    guest = next(iter(catalog().values()))
    with tempfile.TemporaryDirectory() as folder:
        drive = Path(folder, "drive")
        drive.write_bytes(bytes(512))
        disks = tuple(f"{escaped(str(drive))},adapter={name},nonpersistent" for name in ADAPTERS if name != "pv")
        machine = build(guest_configuration(guest, disks=disks))
        machine.close()
    return [
        {"device": window.device.name, "space": bus.space, "base": f"{window.base:#x}", "length": f"{window.length:#x}"}
        for bus in (machine.ports, machine.mmio)
        for window in bus.listing()
    ]


def _cpus() -> list[dict[str, Any]]:
    from hvemu.cpu.cpuid import CpuId
    from hvemu.engine.cpuid_leaves import read_cpuid_leaves
    from hvemu.engine.vcpu import Vcpu
    from hvemu.machine.configuration import CPU_MODELS, SVM_CPU_MODELS

    return [
        {
            "cpu": model,
            "mode_svm": "AMD-V" if model in SVM_CPU_MODELS else "-",
            "features": CpuId(read_cpuid_leaves(Vcpu(model))).features(),
        }
        for model in CPU_MODELS
    ]


def _exits() -> list[dict[str, Any]]:
    from hvemu.cli.explain import EXPLANATIONS

    return [{"kind": kind, "what": text.what} for kind, text in EXPLANATIONS.items()]
