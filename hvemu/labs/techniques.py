"""Techniques by name, as labs compare them: a mode, or a mode and its paging technique, as in ``svm/shadow``."""

from dataclasses import replace
from typing import Final, NamedTuple

from hvemu.machine.configuration import MMUS, MODES, SVM_CPU_MODELS, MachineConfiguration
from hvemu.vocabulary.errors import UserError

BASELINE: Final = "native"
COMPARED: Final = ("native", "trap", "bt", "svm", "svm/shadow", "pv")
"""What is compared unless somebody asks for something else."""


class Technique(NamedTuple):
    """``mmu`` is "" where it is the mode's own choice."""

    name: str
    mode: str
    mmu: str

    @property
    def shadows(self) -> bool:
        """Whether it has shadow page tables."""
        return (self.mmu or MMUS[self.mode][0]) == "shadow"


def technique(name: str) -> Technique:
    """A technique by its name; raises UserError."""
    mode, slash, mmu = name.partition("/")
    if mode not in MODES or (slash and mmu not in MMUS[mode]):
        known = [mode if mmu == MMUS[mode][0] else f"{mode}/{mmu}" for mode in MODES for mmu in MMUS[mode]]
        raise UserError(f"There is no technique '{name}'", f"Techniques are: {', '.join(known)}.")
    if mmu == MMUS[mode][0]:
        return Technique(mode, mode, "")
    return Technique(name, mode, mmu)


def techniques(text: str | None, otherwise: tuple[str, ...] = COMPARED) -> list[Technique]:
    """Those that a list with commas names, each once, in its order; raises UserError."""
    names = otherwise if text is None else [word.strip() for word in text.split(",")]
    return list(dict.fromkeys(technique(name) for name in names))


def common_cpu(wanted: list[Technique], cpu: str) -> str:
    """The CPU model that all are to run on: ``cpu``, or if that is "" one that has what they need."""
    if cpu:
        return cpu
    return SVM_CPU_MODELS[0] if any(one.mode == "svm" for one in wanted) else ""


def under(configuration: MachineConfiguration, one: Technique, cpu: str, shadow: str) -> MachineConfiguration:
    """The same machine under a technique; raises UserError where that cannot be."""
    leaves = configuration.hypervisor_leaves
    if "pv" in (one.mode, configuration.mode) and one.mode != configuration.mode:
        leaves = ""  # Xen's belong to mode pv, and nobody else's do
    return replace(
        configuration,
        mode=one.mode,
        mmu=one.mmu,
        cpu=cpu,
        shadow=shadow if one.shadows else "cached",
        audit=False,
        intercept=configuration.intercept if one.mode == "svm" else (),
        hypervisor_leaves=leaves,
    )
