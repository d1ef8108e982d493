"""Plots within a page: SVG whose colours and letters are those of the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from assay.plots import roofline
from assay.properties.atlas import Against, Class, Curve


if TYPE_CHECKING:
    from assay.bench import Timed


INK, FAINT, MARK, BAD, SOFT = (f"#00000{n}" for n in range(1, 6))
COLORS = {
    "#000000": "currentColor",
    INK: "currentColor",
    FAINT: "var(--faint)",
    MARK: "var(--mark)",
    BAD: "var(--fail)",
    SOFT: "var(--line)",
}
"""What the page puts in the place of the colours that are drawn."""
FLOOR, CEILING = -3, 6
"""Powers of ten of |error| / bound between which it is drawn; what is beyond is drawn at these."""
EXACT = FLOOR - 1.0
"""Where no error at all is drawn."""
APART = 4
"""Classes that lie further from each other are not joined by a line."""
TICKS = 5


@contextmanager
def _theme() -> Iterator[None]:
    colored = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    style: dict[str, Any] = {
        **dict.fromkeys(colored, INK),
        **dict.fromkeys(clear, "none"),
        "svg.fonttype": "none",
        "svg.hashsalt": "assay",
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "text.parse_math": False,
        "grid.color": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        yield


def embedded(figure: Figure, name: str, label: str) -> str:
    """A figure as an element of a page. `name` tells its parts from those of others; `label` is read aloud."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for child in list(root):
        if child.tag.endswith("metadata") or any(part.tag.endswith("style") for part in child):
            root.remove(child)  # who made it, and a style for the whole page
    used = set(re.findall(rb'#(\w+)[")]', file.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        given = {key.rpartition("}")[2]: value for key, value in element.items()}
        if given.get("id", "").encode() not in used:
            given.pop("id", None)
        element.attrib.clear()
        element.text, element.tail = (element.text or "").strip(), ""
        element.attrib.update({key: _themed(key, value, name) for key, value in given.items()})
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _themed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"^#|url\(#", rf"\g<0>{name}-", value)
    if key == "style":
        value = re.sub("#0000[0-9a-f]{2}", lambda found: COLORS.get(found[0], found[0]), value)
        return re.sub("; font-family: [^;]*", "", value)
    return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}", " ".join(value.split()))


# The atlas -----------------------------------------------------------------------------------------------------------


def panel(against: Against, own: Sequence[Curve], others: Sequence[Curve], name: str) -> str:
    """|error| / bound against one thing: the kernel's outputs and gradients, and faintly the outputs of its peers."""
    own, others = ([c for c in curves if c.against == against] for curves in (own, others))
    with _theme():
        figure = Figure(figsize=(3.5, 2.4))
        figure.subplots_adjust(left=0.15, right=0.97, top=0.9, bottom=0.2)
        axes = figure.subplots()
        lows = sorted({c.low for curve in (*own, *others) for c in curve.classes})
        place = _places(against, lows)
        for curve in others:
            if curve.what == "outputs":
                _line(axes, place, curve.classes, color=FAINT, linewidth=0.7, alpha=0.6, zorder=1)
        for curve in own:
            if curve.what == "outputs":
                x, worst, middle = _joined(place, curve.classes)
                axes.fill_between(x, middle, worst, color=MARK, alpha=0.18, linewidth=0, zorder=2)
            style = {"linestyle": "-" if curve.what == "outputs" else (0, (2, 1.5)), "linewidth": 1.4}
            _line(axes, place, curve.classes, color=MARK, marker="o", markersize=2.6, zorder=3, **style)
        _frame(axes, against, place, max((_height(c.worst) for curve in own for c in curve.classes), default=0.0))
        return embedded(figure, name, _told(against, own))


def _line(axes: Any, place: dict[float, float], classes: Sequence[Class], **style: Any) -> None:
    x, worst, _ = _joined(place, classes)
    axes.plot(x, worst, **style)
    if "marker" in style:
        exact = [place[c.low] for c in classes if not c.worst]
        axes.plot(exact, [EXACT] * len(exact), **{**style, "linestyle": ""})


def _joined(place: dict[float, float], classes: Sequence[Class]) -> tuple[list[float], list[float], list[float]]:
    """x, worst and middle of classes that are joined by lines: broken over gaps, and where there is no error."""
    found: list[tuple[float, float, float]] = []
    last = -math.inf
    for one in classes:
        at = place[one.low]
        if at - last > APART or not one.worst:
            found.append((math.nan, math.nan, math.nan))
        if one.worst:
            found.append((at, _height(one.worst), _height(one.middle)))
            last = at
    x, worst, middle = zip(*found, strict=True) if found else ((), (), ())
    return list(x), list(worst), list(middle)


def _height(ratio: float) -> float:
    return min(CEILING, max(FLOOR, math.log10(ratio))) if ratio > 0 else EXACT


def _places(against: Against, lows: Sequence[float]) -> dict[float, float]:
    """Where each class is drawn: at its logarithm, and zero to the left of all."""
    logarithm = math.log10 if against == "magnitude" else math.log2
    found = {low: logarithm(low) for low in lows if low > 0}
    reach = max(found.values(), default=0.0) - min(found.values(), default=0.0)
    return {0.0: min(found.values(), default=1.0) - max(1.0, reach / 12), **found} if 0.0 in lows else found


def _frame(axes: Any, against: Against, place: dict[float, float], highest: float) -> None:
    top = min(CEILING, max(0.5, highest)) + 0.3
    axes.axhline(0, color=BAD, linewidth=1, zorder=2)
    axes.axhspan(0, top, color=BAD, alpha=0.06, linewidth=0, zorder=0)
    axes.set_ylim(EXACT - 0.3, top)
    heights = range(FLOOR, int(top) + 1, 1 if top < 3 else 3)
    axes.set_yticks([EXACT, *heights], ["0", *map(_ratio, heights)])
    base = 10 if against == "magnitude" else 2
    powers = sorted(round(x) for low, x in place.items() if low > 0)
    step = max(1, -(-(powers[-1] - powers[0]) // TICKS)) if powers else 1
    shown = list(range(powers[0], powers[-1] + 1, step)) if powers else []
    shown = shown[1:] if 0.0 in place and shown and shown[0] - place[0.0] < step / 2 else shown
    zero = [place[0.0]] if 0.0 in place else []
    axes.set_xticks([*zero, *map(float, shown)], ["0"] * len(zero) + [_power(base, power) for power in shown])
    axes.grid(visible=True, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.set_xlabel({"position": "position", "magnitude": "magnitude", "size": "elements of the array"}[against])
    axes.set_title("error / bound", loc="left", fontsize=9)


def _ratio(height: int) -> str:
    beyond = "≤" * (height == FLOOR) + "≥" * (height == CEILING)
    return beyond + (_power(10, height) if height > 2 else f"{10.0**height:g}")


def _power(base: int, exponent: int) -> str:
    if 0 <= exponent <= (2 if base == 10 else 10):
        return str(base**exponent)
    return f"{base}{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _told(against: Against, own: Sequence[Curve]) -> str:
    parts = []
    for curve in own:
        worst = max(curve.classes, key=lambda c: c.worst)
        parts.append(f"{curve.what} at most {worst.worst:.3g} of the bound, at {against} {worst.low:.15g} and above")
    return f"Error over bound against {against}: {'; '.join(parts) or 'nothing to compare'}"


# Speed ---------------------------------------------------------------------------------------------------------------


def timings(found: Sequence[Timed], name: str) -> str:
    """Measured against least time, under the roofline."""
    with _theme():
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        roofline(figure.subplots(), found)
        return embedded(
            figure, name, "Seconds per call against the least seconds that the work allows; told in the tables"
        )
