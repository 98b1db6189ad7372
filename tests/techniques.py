"""Techniques as tests name them: a mode, or a mode and its paging technique, as in ``svm/shadow``."""

from hvemu.machine.configuration import MODES, SVM_CPU_MODELS

SVM = ("svm", "svm/shadow", "svm/nested-2")


def settings(technique):
    """What to configure for one."""
    mode, _, mmu = technique.partition("/")
    return {"mode": mode, "mmu": mmu}


def bare_cpu(technique):
    """The CPU model of a bare machine to compare it with: one and the same."""
    return {"cpu": SVM_CPU_MODELS[0]} if technique.startswith("svm") else {}


def techniques(modes, variants=SVM):
    """All of a guest's modes, with the variants of ``svm`` that are wanted; shadow tables are for 32-bit guests."""
    found = []
    for mode in modes:
        if mode == "svm":
            found += [variant for variant in variants if variant != "svm/shadow" or "bt" in modes]
        elif mode in MODES:
            found.append(mode)
    return found
