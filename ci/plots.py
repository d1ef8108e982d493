"""Plots, as PNG or SVG files that can be read by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter


if TYPE_CHECKING:
    from assay.bench import Timed
    from assay.history import Record, Step

TALLEST = 200
"""Bars in one plot."""
LINEAR = 20
"""Ratios up to which bars are as long as their ratios; beyond, as the logarithms."""


def plot_timed(path: Path, found: Sequence[Timed]) -> None:
    """Measured against least time, under the roofline; and how much longer than its fastest peer each kernel takes."""
    figure = Figure(figsize=(15, max(6.0, 0.22 * min(len(found), TALLEST) + 2)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    roofline(left, found)
    _peers(right, found[:TALLEST])
    saved(figure, path)


def saved(figure: Figure, path: Path) -> None:
    """As SVG where the file is called so, with the same bytes each time; as PNG otherwise."""
    if path.suffix == ".svg":
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "assay"}):
            figure.savefig(path, format="svg", metadata={"Date": None})
    else:
        figure.savefig(path, dpi=110, format="png")


def roofline(axes: Any, found: Sequence[Timed]) -> None:
    """Measured against least time; on the line is as fast as this machine."""
    operators = sorted({t.setup.operator for t in found})
    markers = {"bytes": "o", "flops": "s", "exponentials": "^"}
    ends: list[float] = []
    for timed in found:
        fraction, limit = timed.roofline
        color = f"C{operators.index(timed.setup.operator) % 10}"
        axes.scatter(fraction * timed.median, timed.median, marker=markers[limit], color=color, alpha=0.6, s=28)
        ends += [fraction * timed.median, timed.median]
    span = (min(ends) / 2, max(ends) * 2)
    for part, style in ((1.0, "-"), (0.5, "--"), (0.1, ":")):
        axes.plot(span, [s / part for s in span], "k", linestyle=style, linewidth=0.8, label=f"{part:.0%} of the roof")
    for operator in operators:
        axes.scatter([], [], color=f"C{operators.index(operator) % 10}", label=operator)
    for limit, marker in markers.items():
        axes.scatter([], [], color="grey", marker=marker, label=f"limited by {limit}")
    axes.set(xscale="log", yscale="log", xlim=span, ylim=span)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter("s"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("least seconds that the work allows on this machine")
    axes.set_ylabel("seconds per call (median)")
    axes.set_title("Roofline: on the line is as fast as this machine")
    axes.legend(fontsize=7, loc="lower right")  # where nothing is: faster than the roof


def _peers(axes: Any, found: Sequence[Timed]) -> None:
    groups: dict[str, list[Timed]] = {}
    for timed in found:
        groups.setdefault(str(timed.setup), []).append(timed)
    labels, ratios, colors = [], [], []
    for number, (setup, timings) in enumerate(groups.items()):
        best = min(t.median for t in timings)
        for timed in sorted(timings, key=lambda t: t.median):
            labels.append(f"{timed.kernel.name.rpartition('/')[2]} | {setup}")
            ratios.append(timed.median / best)
            colors.append(f"C{number % 10}")
    bars = axes.barh(range(len(ratios)), ratios, color=colors)
    axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=3, fontsize=7)
    axes.set_yticks(range(len(ratios)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    if max(ratios) > LINEAR:
        axes.set_xscale("log")
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_xlabel("time / time of the fastest kernel of the same case")
    axes.set_title("Peers, timed by turns in one process")


def plot_history(path: Path, found: Sequence[tuple[Sequence[Record], Sequence[Step]]]) -> None:
    """One panel for each series: the ratio to the steady kernel at each commit, and the steps in it."""
    columns = 2 if len(found) > 1 else 1
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(9 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (records, steps) in zip(panels, found, strict=False):
        first = records[0]
        levels = [100 * math.exp(r.level - first.level) for r in records]
        axes.plot(range(len(records)), levels, ".-", linewidth=0.7)
        places = [id(r) for r in records]
        for step in steps:
            at = places.index(id(step.after)) - 0.5
            axes.axvline(at, color="red" if step.ratio > 1 else "green", linewidth=1)
            beside = {"xytext": (-4, 0), "textcoords": "offset points", "va": "top", "ha": "right"}
            axes.annotate(str(step), (at, max(levels)), fontsize=8, **beside)
        axes.set_title(f"{first.kernel}, {first.case}, {first.dtype}, {first.mode}\n{first.machine}", fontsize=8)
        axes.set_ylabel("time, first commit = 100", fontsize=8)
        axes.set_xticks([0, len(records) - 1], [records[0].commit[:10], records[-1].commit[:10]], fontsize=7)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    saved(figure, path)
