"""`assay mutants`: the kill matrix, run side by side and printed."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.kernels import UsageError, load
from assay.properties import OPERATORS
from assay.properties.contract import Operator
from assay.properties.matrix import DTYPES, Bench, Outcome, Score, dtypes as dtypes_of, idle, matrix, scores, unused


FEW = 4
"""With fewer operators and dtypes than this for each process, the mutants of each are shared out."""
FATES = {"killed": "green", "equivalent": "dim", "legal": "dim", "explained": "yellow", "survived": "bold red"}


@dataclass(frozen=True)
class Task:
    """One operator in one dtype, or a share of its mutants, as another process finds it."""

    place: str
    """The name of an operator of assay, or the user's module."""
    operator: str
    dtype: str
    full: bool
    share: int = 0
    shares: int = 1

    @property
    def told_share(self) -> str:
        return "" if self.shares == 1 else f", share {self.share + 1} of {self.shares}"


@dataclass
class Matrix:
    """Everything found of one operator."""

    operator: Operator
    full: bool
    every_dtype: bool
    outcomes: list[Outcome] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What makes the matrix fail, each in one line."""
        out = [f"{o.mutant} {o.dtype} survives: {o.message}" for o in self.outcomes if o.fate == "survived"]
        if self.scores and self.scores[0].false_alarms:
            out.append(f"{self.scores[0].false_alarms} right kernels are rejected")
        if self.every_dtype:
            out += [f"the explanation {p!r} matches no survivor" for p in unused(self.operator, self.outcomes)]
            if self.full:
                out += [f"the property {name} rejects no mutant" for name in idle(self.operator, self.outcomes)]
        return out

    def count(self, *fates: str) -> int:
        return sum(o.fate in fates for o in self.outcomes)

    @property
    def median(self) -> float:
        """Seconds until a mutant is rejected, the median."""
        return statistics.median([o.seconds for o in self.outcomes if o.fate == "killed"] or [0.0])


def operators_in(place: str | None) -> list[tuple[str, Operator]]:
    """The operators that a spelling means, each with its place. Raises: UsageError."""
    if place is None:
        return [(o.name, o) for o in OPERATORS.values()]
    if place in OPERATORS:
        return [(place, OPERATORS[place])]
    if not place.endswith(".py") and os.sep not in place and "." not in place:
        raise UsageError(f"there is no operator {place!r}; known here: {', '.join(sorted(OPERATORS))}")
    found = [(place, v) for v in vars(load(place)).values() if isinstance(v, Operator)]
    if not found:
        raise UsageError(f"{place} has no Operator")
    return found


def run(
    place: str | None, dtypes: Sequence[str] | None, *, full: bool, jobs: int | None, quiet: bool = False
) -> tuple[list[Matrix], list[str]]:
    """Judge every mutant of the operators named; progress goes to stderr. Also the operators and dtypes that were not
    judged to the end, once the run is interrupted."""
    found = operators_in(place)
    asked = tuple(dtypes or DTYPES)
    each = [(where, o.name, dtype) for where, o in found for dtype in dtypes_of(o, asked)]
    jobs = jobs or os.cpu_count() or 1
    shares = jobs if len(each) < FEW * jobs else 1  # so that all end at about the same time
    tasks = [Task(*one, full, number, shares) for one in each for number in range(shares)]
    parts: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    with suppress(KeyboardInterrupt):
        for task, judged in zip(tasks, _judged(tasks, jobs, quiet), strict=True):
            parts[task.operator, task.dtype].append(judged)
    whole = {key: shared for key, shared in parts.items() if len(shared) == shares}
    left = [f"{name} {dtype}" for _, name, dtype in each if (name, dtype) not in whole]
    out = {o.name: Matrix(o, full, set(DTYPES) <= set(asked) and not left) for _, o in found}
    for (name, _), shared in whole.items():
        of = out[name]
        of.outcomes += [o for turn in zip_longest(*(outcomes for outcomes, _ in shared)) for o in turn if o is not None]
        for _, scored in shared:
            of.scores = scored if not of.scores else [a + b for a, b in zip(of.scores, scored, strict=True)]
    return [of for of in out.values() if of.outcomes or not left], left


Judged = tuple[list[Outcome], list[Score]]


def judge(task: Task, progress: Callable[[int, int, str], None] | None = None) -> Judged:
    operator = next(o for _, o in operators_in(task.place) if o.name == task.operator)
    bench = Bench(operator, task.dtype, share=task.share, shares=task.shares)
    outcomes = list(matrix(bench, full=task.full, progress=progress))
    return outcomes, scores(bench, outcomes)


def _judged(tasks: Sequence[Task], jobs: int, quiet: bool) -> Iterator[Judged]:
    """In the order of the tasks; in fresh processes if there are several."""
    from assay.progress import bars

    jobs = min(jobs, len(tasks))
    with bars(quiet=quiet) as progress:
        done = progress.add_task("operators and dtypes", total=len(tasks), told="")
        for task, judged in zip(tasks, (_here if jobs <= 1 else _side_by_side)(tasks, jobs, progress), strict=True):
            killed = sum(o.fate == "killed" for o in judged[0])
            told = f"{task.operator} {task.dtype}{task.told_share}: {killed} of {len(judged[0])} killed"
            progress.update(done, advance=1, told=told)
            if not (quiet or progress.console.is_terminal) and len(tasks) > 1:
                progress.console.print(told, markup=False)
            yield judged


def _here(tasks: Sequence[Task], jobs: int, progress: Any) -> Iterator[Judged]:
    for task in tasks:
        shown = progress.add_task(f"{task.operator} {task.dtype}", total=None, told="")

        def show(number: int, total: int, told: str, shown: Any = shown) -> None:
            progress.update(shown, completed=number, total=total, told=told)

        yield judge(task, show)
        progress.remove_task(shown)


def _side_by_side(tasks: Sequence[Task], jobs: int, progress: Any) -> Iterator[Judged]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    from assay.jobs import quiet

    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=quiet)
    try:
        for future in [pool.submit(judge, task) for task in tasks]:
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise
    pool.shutdown()


# Printing ----------------------------------------------------------------------------------------------------------


def print_matrix(console: Console, found: Matrix) -> None:
    """One row per mutant and dtype, the summary, then the rules of other suites."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("mutant", "dtype", "fate", "by"):
        table.add_column(column, no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("what was said", no_wrap=True)
    for o in found.outcomes:
        by = o.by[0] + (f" +{len(o.by) - 1}" if len(o.by) > 1 else "") if o.by else ""
        cells = (o.mutant, o.dtype, Text(o.fate, style=FATES[o.fate]), by)
        table.add_row(
            *(Text(c) if isinstance(c, str) else c for c in cells),
            str(o.cases),
            f"{1e3 * o.seconds:.1f}",
            Text(shorten(o.message)),
        )
    console.print(Text(found.operator.name, style="bold"))
    console.print(table)
    console.print(Text("\n" + summary(found), style="bold"), soft_wrap=True)
    for problem in found.problems:
        console.print(Text(f"  {problem}", style="bold red"), soft_wrap=True)
    print_scores(console, found.scores)


def shorten(message: str, most: int = 40) -> str:
    """What fits beside the rest of a row; the JSON file has all of it."""
    return message if len(message) <= most else message[: most - 3] + "..."


def summary(found: Matrix) -> str:
    explained = found.count("equivalent", "legal", "explained")
    return (
        f"{found.operator.name}: {len(found.outcomes)} mutants, {found.count('killed')} killed, {explained} explained "
        f"({found.count('equivalent')} equivalent, {found.count('legal')} legal, {found.count('explained')} by hand), "
        f"{found.count('survived')} survived; median {1e3 * found.median:.1f} ms to the first kill"
    )


def print_scores(console: Console, found: Sequence[Score]) -> None:
    if not found:
        return
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        title="the same mutants and cases under other rules",
        title_justify="left",
    )
    for column in ("rule", "killed", "on ordinary numbers", "right kernels rejected", "on ordinary numbers"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for s in found:
        numbers = (s.killed, s.killed_on_ordinary, s.false_alarms, s.false_alarms_on_ordinary)
        of = (s.mutants, s.mutants, s.right, s.right)
        table.add_row(Text(s.rule), *(f"{a} of {b}" for a, b in zip(numbers, of, strict=True)))
    console.print()
    console.print(table)
    console.print(Text("mutants that are equivalent to the right kernel are not counted here", style="dim"))


def as_json(found: Sequence[Matrix]) -> dict[str, Any]:
    return {
        "assay": metadata.version("assay"),
        "operators": [
            {
                "operator": m.operator.name,
                "full": m.full,
                "problems": m.problems,
                "median_seconds": m.median,
                "mutants": [asdict(o) for o in m.outcomes],
                "rules": [asdict(s) for s in m.scores],
            }
            for m in found
        ],
    }
