"""A comparison of techniques as a picture: modelled cycles by cause, and wall time. Drawn by matplotlib, an extra."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final

from hvemu.labs.comparing import Comparison, ratio
from hvemu.labs.cost_model import MACHINE
from hvemu.vocabulary.errors import UserError

_MOST_CAUSES: Final = 9
"""Beyond these the rest is one colour."""


def check_plotting() -> None:
    """Raise UserError if there is no matplotlib; it is not imported."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("Plots are drawn by matplotlib, which is not installed", "Type: pip install 'hvemu[plot]'.")


def write_plot(comparison: Comparison, path: Path) -> None:
    """Write an SVG; the same comparison gives the same modelled half. Raises UserError."""
    check_plotting()
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hvemu", "svg.fonttype": "none", "font.size": 9})
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = [row for row in comparison.rows if not row.run.refused]
    figure, (modelled, wall) = pyplot.subplots(
        1, 2, figsize=(11, 1.7 + 0.4 * len(rows)), sharey=True, width_ratios=(3, 1), layout="constrained"
    )
    names = [row.name for row in rows]
    baseline = comparison.baseline
    unit = baseline.total if baseline else 1.0
    _stack(modelled, names, [row.cycles for row in rows], unit)
    modelled.set_xlabel(f"modelled cycles{', native = 1' if baseline else ''} ({MACHINE.split(';')[0]})")
    seconds = baseline.run.wall_seconds if baseline else 1.0
    wall.barh(names, [ratio(row.run.wall_seconds, seconds) or 0 for row in rows], color="0.6")
    wall.set_xlabel(f"wall time{', native = 1' if baseline else ', seconds'}")
    wall.invert_yaxis()
    configuration = comparison.rows[0].work.configuration
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{configuration.name} on {configuration.cpu}")
    try:
        figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}", "Give --plot another file.") from None
    finally:
        pyplot.close(figure)


def _stack(axes: Any, names: list[str], parts: list[dict[str, float]], unit: float) -> None:
    totals: dict[str, float] = {}
    for part in parts:
        for cause, cycles in part.items():
            totals[cause] = totals.get(cause, 0) + cycles
    ranked = sorted(totals, key=lambda cause: -totals[cause])
    shown = ranked[:_MOST_CAUSES]
    left = [0.0] * len(names)
    for cause in [*shown, "other"]:
        causes = [cause] if cause != "other" else ranked[_MOST_CAUSES:]
        widths = [sum(part.get(one, 0) for one in causes) / unit for part in parts]
        if any(widths):
            axes.barh(names, widths, left=left, label=cause)
        left = [start + width for start, width in zip(left, widths, strict=True)]
