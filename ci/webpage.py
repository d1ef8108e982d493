"""One self-contained page of what a run found, made for looking: no script, nothing that is fetched.

Names and messages are strangers': the template escapes all of them, and `_plain` leaves nothing in them that a page
cannot show. What is on the page is decided here, how it looks in `webpage.html`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from assay import drawn
from assay.expected import Expectations
from assay.failures import Judged, not_judged
from assay.lines import shortened
from assay.properties.atlas import LEAST, Curve
from assay.properties.contract import Operator
from assay.properties.results import MEANT, SIZED, Examination, Result
from assay.properties.robustness import checks
from assay.replay import command
from assay.report import number, seconds, short, verdict, versions


if TYPE_CHECKING:
    from assay.bench import Missing, Timed


LONGEST = 4000
"""Characters of a text."""
SYMBOLS = {"pass": "✓", "fail": "✗", "error": "!", "undecided": "?", "skipped": "·", "known": "≈", "": ""}
MEANINGS = {
    "pass": "holds in every case",
    "fail": "broken; the smallest case is below",
    "error": "it raised, crashed or hung",
    "undecided": "too few cases could have shown it",
    "skipped": "not asked of this kernel",
    "known": "fails as was expected",
}


@dataclass(frozen=True)
class Cell:
    """One property of one kernel in one dtype."""

    verdict: str
    symbol: str
    told: str
    """What a pointer that rests on it is told."""


@dataclass(frozen=True)
class Row:
    """One kernel in one dtype."""

    kernel: str
    rows: int
    """So many of this kernel begin here; 0 if one began before."""
    dtype: str
    verdict: str
    headroom: str
    follows: str
    cells: Sequence[Cell]
    anchor: str
    """Of its failure; empty if there is none."""


@dataclass(frozen=True)
class Broken:
    """Properties that fail alike."""

    properties: Sequence[str]
    result: Result
    replay: str


@dataclass(frozen=True)
class Failing:
    """A kernel that does not pass in a dtype."""

    anchor: str
    kernel: str
    dtype: str
    verdict: str
    diagnosis: Sequence[str]
    broken: Sequence[Broken]


@dataclass(frozen=True)
class Panels:
    """The atlas of a kernel in a dtype."""

    kernel: str
    dtype: str
    headroom: str
    follows: str
    plots: Sequence[Markup]


@dataclass
class Section:
    """One operator."""

    name: str
    laws: Mapping[str, str]
    counts: str
    rows: list[Row] = field(default_factory=list)
    failing: list[Failing] = field(default_factory=list)
    atlas: list[Panels] = field(default_factory=list)


def of_check(
    judged: Sequence[Judged],
    left_out: Mapping[str, str],
    known: Expectations = Expectations(),
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """The page of a run of `assay check`. `tell` is called with what is drawn."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[one[0].operator.name].append(one)
    numbers = count(1)
    sections = [_section(group, known, numbers, tell) for group in groups.values()]
    skipped = [f"{name} {dtype}: {reason}" for name, dtype, reason in not_judged(judged)]
    return _page(
        title=f"assay: {_counts(judged, known) or 'nothing was judged'}",
        sections=sections,
        lists={
            "Known failures that are none, or have expired": known.problems(judged),
            "Known failures": known.lines(judged),
            "Not judged": skipped + [f"{name}: {reason}" for name, reason in left_out.items()],
        },
    )


def _counts(judged: Sequence[Judged], known: Expectations) -> str:
    found = Counter(verdict(one, known) for one in judged)
    return ", ".join(f"{found[name]} {name}" for name in SYMBOLS if found[name])


def _section(
    judged: Sequence[Judged], known: Expectations, numbers: Iterator[int], tell: Callable[[str], None]
) -> Section:
    """Of the judgements of one operator."""
    operator = judged[0][0].operator
    laws = _laws(operator, judged)
    tell(f"drawing the atlas of {operator.name}: {len(judged)} kernels and dtypes")
    section = Section(operator.name, laws, _counts(judged, known))
    rows = Counter(id(kernel) for kernel, _ in judged)  # whoever names a kernel twice has it judged twice
    begun: set[int] = set()
    for one in judged:
        kernel, found = one
        anchor = f"failure-{next(numbers)}" if known.unexpected(*one) else ""
        mine = 0 if id(kernel) in begun else rows[id(kernel)]
        begun.add(id(kernel))
        told = (number(found.headroom), str(found.inferred or ""))
        cells = [_cell(one, name, known) for name in laws]
        section.rows.append(Row(short(kernel.name), mine, found.dtype, verdict(one, known), *told, cells, anchor))
        if anchor:
            section.failing.append(_failing(one, known, anchor))
        if found.atlas:
            plots = [*_plots(found, [f for _, f in judged], f"atlas-{next(numbers)}")]
            section.atlas.append(Panels(short(kernel.name), found.dtype, *told, plots))
    section.failing.sort(key=lambda f: list(SYMBOLS).index(f.verdict))
    return section


def _laws(operator: Operator, judged: Sequence[Judged]) -> dict[str, str]:
    """What each property says, for those that were judged."""
    laws = {
        MEANT: "it computes with the parameters that it is passed",
        SIZED: "no gradient is off by a factor",
    } | {c.name: c.law for c in checks(operator)}
    return {r.property: laws.get(r.property, "") for _, found in judged for r in found.results}


def _cell(one: Judged, name: str, known: Expectations) -> Cell:
    kernel, found = one
    result = next((r for r in found.results if r.property == name), None)
    if result is None:
        return Cell("", "", "")
    told = "known" if known.of(kernel, found.dtype, result) else result.verdict
    more = f": {result.message}" if result.message else f", {result.cases} cases" if result.cases else ""
    return Cell(told, SYMBOLS[told], f"{name}, {found.dtype}: {told}{more}")


def _failing(one: Judged, known: Expectations, anchor: str) -> Failing:
    kernel, found = one
    alike: dict[str, list[Result]] = defaultdict(list)
    bad = sorted(known.unexpected(kernel, found), key=lambda r: r.verdict == "undecided")
    for result in bad:
        alike[result.message].append(result)
    broken = [Broken([r.property for r in results], results[0], command(results[0])) for results in alike.values()]
    diagnosis = next(([f.text for f in r.diagnosis] for r in bad if r.diagnosis), [])
    return Failing(anchor, kernel.name, found.dtype, found.verdict, diagnosis, broken)


def _plots(found: Examination, peers: Sequence[Examination], name: str) -> Iterator[Markup]:
    others: list[Curve] = [c for f in peers for c in f.atlas if f is not found and f.dtype == found.dtype]
    for against in LEAST:
        if any(c.against == against for c in found.atlas):
            yield Markup(drawn.panel(against, found.atlas, others, f"{name}-{against}"))


# Speed ---------------------------------------------------------------------------------------------------------------


def of_bench(found: Sequence[Timed], missing: Sequence[Missing], left_out: Mapping[str, str]) -> str:
    """The page of a run of `assay bench`."""
    groups: dict[str, list[Timed]] = defaultdict(list)
    for timed in sorted(found, key=lambda t: t.median):
        groups[str(timed.setup)].append(timed)
    return _page(
        title=f"assay bench: {len({t.kernel.name for t in found})} kernels, {len(groups)} cases",
        timings=groups,
        roofline=Markup(drawn.timings(found, "roofline")) if found else "",
        lists={
            "Breaks its contract": list(dict.fromkeys(f"{t.kernel.name}: {t.breaks}" for t in found if t.breaks)),
            "Not timed": [f"{m.kernel} ({m.what}): {m.reason}" for m in missing]
            + [f"{name}: {reason}" for name, reason in left_out.items()],
        },
    )


# The page ------------------------------------------------------------------------------------------------------------


def _page(**told: Any) -> str:
    folder = FileSystemLoader(Path(__file__).parent)
    here = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, finalize=_plain, trim_blocks=True, lstrip_blocks=True
    )
    here.filters |= {"foldable": _foldable, "seconds": seconds}
    given = {"sections": [], "timings": {}, "roofline": "", **told}
    return here.get_template("webpage.html").render(symbols=SYMBOLS, meanings=MEANINGS, versions=versions(), **given)


def _foldable(name: str) -> Markup:
    """A kernel's name, which may be broken between its parts."""
    return Markup(re.sub(r"[:_]", r"\g<0><wbr>", str(escape(_plain(short(name))))))


def _plain(value: Any) -> Any:
    """What is put into the page, but for what was drawn: characters that can be shown, on one line, not too many."""
    return shortened(value, LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value
