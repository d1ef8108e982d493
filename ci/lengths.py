"""`assay bench --lengths`: the cases of a contract at several lengths of one axis; time and memory over them, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.kernels import Known, UsageError
from assay.properties.contract import Operator, Structure


if TYPE_CHECKING:
    from assay.bench import Timed


@dataclass(frozen=True)
class Lengths:
    """An axis, or a keyword that counts like one, and the lengths that it takes; t+s is both of them at once."""

    axis: str
    lengths: tuple[int, ...]

    @property
    def axes(self) -> list[str]:
        return self.axis.split("+")

    def name(self, case: str, length: int) -> str:
        return f"{case}, {self.axis}={length}"

    def cases(self, operator: Operator, asked: Sequence[str]) -> dict[str, tuple[str, int]]:
        """The cases of an operator that have the axis, of those asked for or of all: name -> case, length."""
        return {
            self.name(case, length): (case, length)
            for case, structure in operator.timed.items()
            if (not asked or case in asked) and {*self.axes} <= {*structure.sizes, *structure.keywords}
            for length in self.lengths
        }

    def of(self, kernels: Sequence[Known], asked: Sequence[str]) -> list[Known]:
        """The kernels, timed on these cases in place of their own. Raises: UsageError where none has the axis."""
        found: dict[str, Operator] = {}
        for operator in {k.operator.name: k.operator for k in kernels}.values():
            timed = {
                name: self._at(operator.timed[case], length)
                for name, (case, length) in self.cases(operator, asked).items()
            }
            found[operator.name] = replace(operator, timed=timed)
        if not any(o.timed for o in found.values()):
            raise UsageError(f"no case that is timed has an axis {self.axis!r}")
        return [replace(k, operator=found[k.operator.name]) for k in kernels if found[k.operator.name].timed]

    def _at(self, structure: Structure, length: int) -> Structure:
        sizes = {**structure.sizes, **{axis: length for axis in self.axes if axis in structure.sizes}}
        rest = {axis: length for axis in self.axes if axis not in sizes}
        return replace(structure, sizes=sizes, keywords={**structure.keywords, **rest})


def parsed(text: str) -> Lengths:
    """Of AXIS=LENGTH,LENGTH,... Raises: ValueError for what is none."""
    axis, _, told = text.partition("=")
    lengths = tuple(int(x) for x in told.split(",") if x.strip().isdecimal())
    named = all(name.isidentifier() for name in axis.split("+"))
    if not named or len(lengths) != len(told.split(",")) or min(lengths) < 1:
        raise ValueError(f"{text!r} is not AXIS=LENGTH,LENGTH,...")
    return Lengths(axis, tuple(dict.fromkeys(lengths)))


def plot_lengths(path: Path, found: Sequence[Timed], over: Lengths) -> None:
    """One row for each case, dtype, mode and number of threads: seconds and peak memory of every kernel over the
    length, beside a line that grows as the length does. A kernel has one colour, and one line in the legend."""
    from matplotlib.figure import Figure

    from assay.plots import saved

    series: dict[tuple[str, ...], dict[str, list[tuple[int, Timed]]]] = {}
    for timed in found:
        setup = timed.setup
        case, _, length = setup.case.rpartition(f", {over.axis}=")
        threads = f"{setup.threads} thread{'s' * (setup.threads > 1)} on {setup.device}"
        told = (setup.operator, case, setup.dtype, setup.mode, threads)
        series.setdefault(told, {}).setdefault(timed.kernel.name, []).append((int(length), timed))
    names = dict.fromkeys(timed.kernel.name for timed in found)
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    figure = Figure(figsize=(13, 4.2 * len(series) + 0.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(series), 2, squeeze=False)
    for (left, right), (row, kernels) in zip(panels, series.items(), strict=True):
        for name, points in kernels.items():
            _line(left, name, [(n, t.median) for n, t in points], colours)
            _line(right, name, [(n, t.memory / 2**20) for n, t in points if t.memory is not None], colours)
        for axes, what in ((left, "seconds per call (median)"), (right, "peak memory beside the inputs, MiB")):
            axes.set(xlabel=over.axis, ylabel=what)
            axes.set_title(", ".join(row), fontsize=9)
            if axes.get_lines():
                _growing(axes)
                axes.set(xscale="log", yscale="log")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    if lines:
        figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=2)
    saved(figure, path)


def _line(axes: Any, name: str, points: Sequence[tuple[int, float]], colours: Mapping[str, str]) -> None:
    known = sorted((n, y) for n, y in points if y > 0)
    if known:
        axes.plot(*zip(*known, strict=True), ".-", label=name.rpartition("/")[2], color=colours[name])


def _growing(axes: Any) -> None:
    """Through the lowest point on the left."""
    lines = [line.get_xydata() for line in axes.get_lines()]
    low, high = min(xy[0][0] for xy in lines), max(xy[-1][0] for xy in lines)
    start = min(xy[0][1] for xy in lines if xy[0][0] == low)
    axes.plot([low, high], [start, start * high / low], "k:", linewidth=0.8, label="grows as the length")
