"""The tracker, judged: how often it cries wolf, and how often it misses a wolf.

Our own kernels are compared with themselves, and with themselves called 34 times for 33, 21 for 20 and 11 for 10: 3, 5
and 10 per cent more work, on the machine as it is and with two neighbours that keep it busy in bursts. The same samples
are given to the rules that others use, as they would have had them: all of base from one process, all of head from the
next.

    python -m assay.power --runs 13          some 40 minutes on two cores; the table is only worth a quiet machine
    python -m assay.power --runs 1 --conditions counted           the same for instructions, with Valgrind
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
from scipy import stats

from assay.compare import Compared, Job, compare
from assay.instructions import count, countable
from assay.kernels import Known, UsageError, resolve
from assay.properties.contract import Structure
from assay.report import versions
from assay.timing import Inputs, Setup, device_name


CHANGES: Mapping[float, tuple[int, int]] = {0.0: (20, 20), 0.03: (33, 34), 0.05: (20, 21), 0.10: (10, 11)}
"""What is planted: how often base and head call the kernel."""
PLANTED = (0.0, 0.0, 0.0, 0.03, 0.05, 0.10)
"""In each kernel of a run."""
ROPE = {"b": 1, "h": 4, "t": 16, "d": 64}
ATTENTION = {"b": 1, "h": 1, "g": 1, "t": 32, "s": 32, "d": 64, "e": 64}
KERNELS: Mapping[str, Mapping[str, int]] = {
    "rope=assay.impl.rope:rope": ROPE,
    "rope=assay.impl.rope:rope_table": ROPE,
    "softmax_attention=assay.impl.attention:softmax_attention": ATTENTION,
    "softmax_attention=assay.impl.attention:softmax_attention_plain": ATTENTION,
}
"""The kernels, each with its sizes: of which 33 calls, that are one to the tracker, take a millisecond or two."""

Rule = Callable[[Sequence[float], Sequence[float]], bool]


def mean_5(base: Sequence[float], head: Sequence[float]) -> bool:
    """pytest-benchmark --benchmark-compare-fail=mean:5%."""
    return fmean(head) > 1.05 * fmean(base)


def median_5(base: Sequence[float], head: Sequence[float]) -> bool:
    """pytest-benchmark --benchmark-compare-fail=median:5%."""
    return median(head) > 1.05 * median(base)


def asv(base: Sequence[float], head: Sequence[float]) -> bool:
    """asv compare --factor 1.05: Mann-Whitney U, p < 0.002, and the ratio of medians above the factor."""
    return median_5(base, head) and bool(stats.mannwhitneyu(base, head, method="auto").pvalue < 0.002)


def pyperf(base: Sequence[float], head: Sequence[float]) -> bool:
    """pyperf compare_to: Student's t-test with pooled variance, 95 %, and slower."""
    return fmean(head) > fmean(base) and bool(stats.ttest_ind(base, head).pvalue < 0.05)


OTHERS: Mapping[str, Rule] = {
    "pytest-benchmark, mean > 5 %": mean_5,
    "pytest-benchmark, median > 5 %": median_5,
    "asv, Mann-Whitney and median > 5 %": asv,
    "pyperf, t-test": pyperf,
}
OURS = "assay compare"
COUNTING = "assay compare --instructions"
CONDITIONS = ("quiet", "loaded", "counted")


@dataclass(frozen=True)
class Count:
    """Alarms in so many trials."""

    alarms: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson, 95 %."""
        found = stats.binomtest(self.alarms, self.trials).proportion_ci(0.95, "exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.alarms / self.trials:.3f} ({low:.3f} to {high:.3f})"


Counts = dict[tuple[str, str, float], Count]
"""By rule, condition and planted change."""


REPEATED = """
import functools, importlib
kernel = importlib.import_module({module!r}).{function}

@functools.wraps(kernel)
def repeated(*arguments, **keywords):
    for _ in range({calls} - 1):
        kernel(*arguments, **keywords)
    return kernel(*arguments, **keywords)
"""


def repeated(inputs: Inputs, kernel: Known, setup: Setup, calls: int) -> dict[str, Any]:
    """The kernel so many times in one call, as a stopwatch is told."""
    told = inputs.of(kernel, setup)
    file = Path(inputs.folder.name) / f"{told['module']}.{told['function']}.{calls}.py"
    file.write_text(REPEATED.format(**told, calls=calls), encoding="utf-8")
    return {**told, "module": str(file), "function": "repeated"}


def jobs_of(inputs: Inputs, order: random.Random) -> list[tuple[float, Job]]:
    """The cases of one run, in random order, each with what is planted in it."""
    found = []
    for spelling, sizes in KERNELS.items():
        (kernel,) = resolve(spelling)
        small = replace(kernel, operator=replace(kernel.operator, timed={"small": Structure(sizes=sizes)}))
        setup = Setup(kernel.operator.name, "small", "float32", False, 1)
        for change in PLANTED:
            sides = [repeated(inputs, small, setup, calls) for calls in CHANGES[change]]
            found.append((change, Job(kernel.name, setup, *sides)))
    order.shuffle(found)
    return found


def verdicts(compared: Compared) -> dict[str, bool]:
    """Who raises an alarm on the samples of one comparison."""
    found = {OURS: compared.verdict == "SLOW"}
    one, other = compared.first[:2]
    return found | {name: rule(one.base, other.head) for name, rule in OTHERS.items()}


Row = dict[str, Any]
"""One comparison, as it is stored."""


def tally(rows: Sequence[Row]) -> Counts:
    """Counts of alarms."""
    alarms: dict[tuple[str, str, float], list[bool]] = defaultdict(list)
    for row in rows:
        for rule, alarm in row["raised"].items():
            alarms[rule, row["condition"], row["planted"]].append(alarm)
    return {key: Count(sum(found), len(found)) for key, found in alarms.items()}


def table(counts: Counts) -> str:
    """Markdown: the rate of alarms with its 95 % interval, by what was planted under which condition, and by rule."""
    rules = list(dict.fromkeys(rule for rule, _, _ in counts))
    places = dict.fromkeys((condition, change) for _, condition, change in counts)
    lines = ["| planted | trials | " + " | ".join(rules) + " |", "|---" * (2 + len(rules)) + "|"]
    for condition, change in sorted(places, key=lambda place: (CONDITIONS.index(place[0]), place[1])):
        found = [counts.get((rule, condition, change)) for rule in rules]
        trials = max(count.trials for count in found if count is not None)
        cells = ["" if count is None else str(count) for count in found]
        planted = "nothing" if change == 0 else f"{change:.0%}"
        lines.append(f"| {planted}, {condition} | {trials} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def neighbour(seed: int) -> None:
    """Compute and move memory, in bursts of random length, until this process is ended."""
    order = random.Random(seed)
    block = bytearray(1 << 25)
    while True:
        until = time.monotonic() + order.uniform(0, 0.5)
        while time.monotonic() < until:
            block[:] = bytes(block)
            sum(range(order.randrange(100_000)))
        time.sleep(order.uniform(0, 0.5))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes beside this one."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=neighbour, args=(i,), daemon=True) for i in range(count)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.join()


@click.command()
@click.option("--runs", type=click.IntRange(0), default=13, show_default=True, help="Of 24 comparisons, per condition.")
@click.option("--conditions", default="quiet,loaded", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path(".assay/power.jsonl"))
def main(runs: int, conditions: str, out: Path) -> None:
    """Judge the tracker. Every comparison is appended to a file as it is made; the table is of all that it holds."""
    asked = [c.strip() for c in conditions.split(",")]
    for condition in asked:
        if condition not in CONDITIONS:
            raise click.BadParameter(f"{condition!r}: conditions are {', '.join(CONDITIONS)}")
    rows = _rows(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("a", encoding="utf-8") as file:
            for condition in asked:
                before = sum(row["condition"] == condition for row in rows)
                with neighbours(2 if condition == "loaded" else 0):
                    for run in range(runs):
                        click.echo(f"{condition}: run {run + 1} of {runs}", err=True)
                        for change, compared in _run(condition, f"{condition} {before} {run}"):
                            rows.append(_row(condition, change, compared))
                            file.write(json.dumps(rows[-1]) + "\n")
                            file.flush()
    except KeyboardInterrupt:
        click.echo("interrupted: the table is of what was done", err=True)
    if rows:
        machines = ", ".join(dict.fromkeys(row["machine"] for row in rows))
        click.echo(f"{machines}, {versions()}\n\n{table(tally(rows))}")


def _rows(out: Path) -> list[Row]:
    """What earlier runs have written. Raises: ClickException where the file is something else."""
    try:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
        tally(rows)
        if not {row["condition"] for row in rows} <= {*CONDITIONS}:
            raise ValueError
        return [{**row, "machine": str(row["machine"])} for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise click.ClickException(f"{out} is not what this program writes; it was left as it is") from None


def _run(condition: str, seed: str) -> list[tuple[float, Compared]]:
    order = random.Random(seed)
    with Inputs() as inputs:
        jobs = jobs_of(inputs, order)
        asked = [job for _, job in jobs]
        if condition == "counted":
            try:
                countable(asked)
            except UsageError as error:
                raise click.ClickException(str(error)) from None
            found = count(asked, lambda _: None)
        else:
            found = compare(asked, lambda _: None, seed=order.getrandbits(32))
    failed = [c for c in found if c.reason]
    if failed:
        raise click.ClickException(f"{failed[0].job.name}: {failed[0].reason}")
    return [(change, compared) for (change, _), compared in zip(jobs, found, strict=True)]


def _row(condition: str, change: float, compared: Compared) -> Row:
    return {
        "condition": condition,
        "machine": device_name("cpu"),
        "planted": change,
        "kernel": compared.job.name,
        "verdict": compared.verdict,
        "raised": {COUNTING: compared.verdict == "SLOW"} if condition == "counted" else verdicts(compared),
        "first": [s.answer for s in compared.first],
        "second": [s.answer for s in compared.second],
    }


if __name__ == "__main__":
    main()
