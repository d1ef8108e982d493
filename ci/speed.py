"""The command line of the tracker: assay bench, compare, history."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from assay.usage import HTML, QUIET, WRITTEN, Usage, dtypes_named, need, operators, writing


if TYPE_CHECKING:
    from rich.console import Console

    from assay.bench import Missing, Timed
    from assay.compare import Compared
    from assay.history import Record, Step
    from assay.lengths import Lengths


def _dtypes(_: click.Context, __: click.Parameter, given: str) -> tuple[str, ...]:
    from assay.properties.drawing import DTYPES

    names = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in names:
        if name not in DTYPES:
            raise Usage(f"there is no dtype {name!r}; there are {', '.join(DTYPES)}")
    return names


TIMED_IN = click.option(
    "--dtype",
    "dtypes",
    default="float32",
    show_default=True,
    callback=_dtypes,
    shell_complete=dtypes_named,
    help="Comma-separated.",
)


def _lengths(_: click.Context, __: click.Parameter, given: str | None) -> Lengths | None:
    from assay.lengths import parsed

    try:
        return None if given is None else parsed(given)
    except ValueError as error:
        raise Usage(str(error)) from None


@click.command()
@click.argument("kernels", nargs=-1, metavar="[OPERATOR=MODULE:FUNCTION | OPERATOR]...", shell_complete=operators)
@TIMED_IN
@click.option("--case", "cases", multiple=True, help="Only this case of the contract, repeatable.")
@click.option(
    "--lengths", callback=_lengths, metavar="AXIS=N,N,...", help="Time each case at these lengths of an axis."
)
@click.option("--mode", type=click.Choice(["forward", "both"]), default="both", show_default=True)
@click.option(
    "--threads", "thread_counts", type=click.IntRange(1), multiple=True, help="Repeatable; one and all, if not given."
)
@click.option("--device", default="cpu", show_default=True, help="The torch device that kernels run on.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True)
@click.option("--no-memory", is_flag=True, help="Do not measure peak memory, which takes a process for each kernel.")
@click.option("--wrong", is_flag=True, help="Time kernels that break their contract too, and mark them.")
@click.option("--json", "json_path", help="Write pytest-benchmark's JSON here.", **WRITTEN)
@click.option("--plot", "plot_path", help="Draw the roofline and the peers, or time over length.", **WRITTEN)
@click.option("--html", "html_path", help="Write a page to look at here.", **HTML)
@QUIET
def bench(
    kernels: tuple[str, ...],
    dtypes: tuple[str, ...],
    cases: tuple[str, ...],
    lengths: Lengths | None,
    mode: str,
    thread_counts: tuple[int, ...],
    device: str,
    seconds: float,
    no_memory: bool,
    wrong: bool,
    json_path: Path | None,
    plot_path: Path | None,
    html_path: Path | None,
    quiet: bool,
) -> None:
    """Time kernels side by side: forward, and with their gradients; on one thread, and on all.

    Correct first: a kernel that breaks its contract is named, and not timed, unless with --wrong. All samples are kept
    as pytest-benchmark keeps them, in .assay/benchmarks. `--seconds` are those spent on each kernel, case and mode,
    about. Exit code 1 if some kernel breaks its contract or raises.
    """
    from assay.kernels import UsageError, chosen
    from assay.progress import progress, waiting
    from assay.report import console, print_left_out, write, write_json

    need("bench", "pytest_benchmark", *(["matplotlib"] if plot_path else []))
    from assay.bench import Session, Wanted, timeable
    from assay.timing import one_and_all

    try:
        with waiting("looking for kernels", quiet=quiet):
            found, left_out = chosen(kernels)
        found, untimed = timeable(list({k.spelling: k for k in found}.values()), device)
        _known_cases(found, cases)
        if lengths is not None:
            found, cases = lengths.of(found, cases), ()
        modes = (False,) if mode == "forward" else (False, True)
        threads = thread_counts or one_and_all(device)
        wanted = Wanted(found, dtypes, modes, cases, threads, device, seconds, memory=not no_memory, wrong=wrong)
        with progress(quiet=quiet) as tell:
            session = Session(wanted, tell)
            try:
                session.run()
            except KeyboardInterrupt:
                session.interrupted = True
    except UsageError as error:
        raise Usage(str(error)) from None
    out = console()
    print_timed(out, session.found)
    print_missing(out, session.missing)
    if not quiet:
        print_left_out(out, left_out | untimed)
    if json_path is not None and session.saved:
        write_json(json_path, session.saved)
    if plot_path is not None and session.found:
        from assay.lengths import plot_lengths
        from assay.plots import plot_timed

        if lengths is None:
            plot_timed(plot_path, session.found)
        else:
            plot_lengths(plot_path, session.found, lengths)
    if html_path is not None:
        from assay import webpage

        with writing(html_path):
            write(html_path, webpage.of_bench(session.found, session.missing, left_out | untimed))
    if session.interrupted:
        raise Usage(f"interrupted: {len(session.found)} timings were made, the rest were not")
    if not session.found and not session.missing:
        raise Usage("there was nothing to time")
    if any(m.fails for m in session.missing) or any(t.breaks for t in session.found):
        sys.exit(1)


@click.command()
@click.argument("base")
@click.argument("head")
@click.option("--kernel", "named", multiple=True, metavar="OPERATOR=MODULE:FUNCTION", help="Compare this; repeatable.")
@TIMED_IN
@click.option("--case", "cases", multiple=True, help="These cases of the contract, not the first one.")
@click.option("--mode", type=click.Choice(["forward", "both"]), default="both", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="The torch device that kernels run on.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in which the sides take turns.")
@click.option("--instructions", is_flag=True, help="Compare instructions, counted by Valgrind, in place of seconds.")
@click.option("--json", "json_path", help="Write the verdicts and all samples here.", **WRITTEN)
@QUIET
def compare(
    base: str,
    head: str,
    named: tuple[str, ...],
    dtypes: tuple[str, ...],
    cases: tuple[str, ...],
    mode: str,
    threads: int,
    device: str,
    seed: int,
    instructions: bool,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Has HEAD become slower than BASE?

    Each is a git revision, `main...` (its merge base with HEAD), PACKAGE==VERSION, a wheel, the folder of a source
    tree, or OPERATOR=MODULE:FUNCTION; what must be installed is, into an environment of its own. HEAD is judged first:
    a kernel that breaks its contract FAILED. Exit code 1 if something is SLOW or FAILED.
    """
    from assay.kernels import UsageError
    from assay.progress import progress
    from assay.report import console, write_json

    need("compare", "scipy")
    from assay.compare import as_json
    from assay.versions import Question, compared

    question = Question(base, head, named, dtypes, cases, mode == "both", threads, device, seed, instructions)
    try:
        with progress(quiet=quiet) as tell:
            found = compared(question, tell)
    except UsageError as error:
        raise Usage(str(error)) from None
    print_compared(console(), found)
    if json_path is not None:
        write_json(json_path, as_json(found, "instructions" if instructions else "seconds"))
    if any(c.verdict in ("SLOW", "FAILED") for c in found):
        sys.exit(1)


@click.command()
@click.argument("kernels", nargs=-1, metavar="[OPERATOR=MODULE:FUNCTION]...")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=Path(".assay/history.jsonl"))
@click.option("--add", "revisions", help="Measure this commit, or every commit of this range, and append to the store.")
@click.option("--mode", type=click.Choice(["forward", "both"]), default="both", show_default=True)
@TIMED_IN
@click.option("--bisect", is_flag=True, help="Find the commit that made each change that counts.")
@click.option("--plot", "plot_path", help="Draw the history into this PNG file.", **WRITTEN)
@QUIET
def history(
    kernels: tuple[str, ...],
    store: Path,
    revisions: str | None,
    mode: str,
    dtypes: tuple[str, ...],
    bisect: bool,
    plot_path: Path | None,
    quiet: bool,
) -> None:
    """What became slower, and since when?

    The store (.assay/history.jsonl) holds, per commit, how long each kernel took next to a kernel whose text never
    changes. It is only ever appended to; a damaged store is refused and left as it is. Records of another machine or
    another harness are another history.
    """
    from assay.kernels import UsageError

    need("history", "scipy", "ruptures", *(["matplotlib"] if plot_path else []))
    from assay.commits import listed, recorded
    from assay.history import Store, series, steps
    from assay.progress import progress

    kept = Store(store)
    modes = (False,) if mode == "forward" else (False, True)
    setups = [(dtype, backward) for dtype in dtypes for backward in modes]
    try:
        kept.read()  # what is damaged is said before anything is measured
        with progress(quiet=quiet) as tell:
            for commit in listed(revisions) if revisions else ():
                tell(f"commit {commit[:10]}")
                kept.append(recorded(commit, kernels, setups, tell))
        places = {spelling.rpartition("=")[2] for spelling in kernels}
        found = [(r, steps(r)) for r in series(kept.read()).values() if not places or r[0].kernel in places]
        if not found:
            raise UsageError(f"there are no records in {store}: add some with --add")
        print_history(found, bisect=bisect, quiet=quiet)
        if plot_path is not None:
            from assay.plots import plot_history

            plot_history(plot_path, found)
    except UsageError as error:
        raise Usage(str(error)) from None
    except KeyboardInterrupt:
        raise Usage("interrupted: commits that were measured to the end are kept") from None


def _known_cases(kernels: Sequence[object], cases: Sequence[str]) -> None:
    known = dict.fromkeys(c for k in kernels for c in k.operator.timed)  # type: ignore[attr-defined]
    for case in cases:
        if case not in known:
            raise Usage(f"there is no case {case!r} to time; there are {', '.join(known) or 'none'}")


def print_timed(console: Console, found: Sequence[Timed]) -> None:
    """One table for each case, the fastest first."""
    from rich.table import Table
    from rich.text import Text

    from assay.report import seconds

    groups = defaultdict(list)
    for timed in found:
        groups[str(timed.setup)].append(timed)
    for title, timings in groups.items():
        table = Table(box=None, header_style="bold", pad_edge=False, title=Text(title), title_justify="left")
        table.add_column("kernel", overflow="fold")
        for column in ("median", "spread", "to fastest", "of the roof", "limited by", "peak memory", "samples"):
            table.add_column(column, justify="right", no_wrap=True)
        timings.sort(key=lambda t: t.median)
        for timed in timings:
            fraction, limit = timed.roofline
            table.add_row(
                Text(timed.kernel.name.rpartition("/")[2] + " (wrong)" * bool(timed.breaks)),
                seconds(timed.median),
                f"{timed.spread:.0%}",
                f"{timed.median / timings[0].median:.2f}",
                f"{fraction:.0%}",
                limit,
                "" if timed.memory is None else f"{timed.memory / 2**20:.1f} MiB",
                str(len(timed.seconds)),
            )
        console.print(table)
        console.print()
    for name, told in dict.fromkeys((t.kernel.name, t.breaks) for t in found if t.breaks):
        console.print(Text(f"wrong: {name.rpartition('/')[2]} {told}", style="red"), soft_wrap=True)


def print_compared(console: Console, found: Sequence[Compared]) -> None:
    """One row per case: the worst first."""
    from rich.table import Table
    from rich.text import Text

    styles = {"FAILED": "red", "SLOW": "red", "UNSURE": "yellow", "SAME": "", "FAST": "green"}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("kernel", "case", "verdict", "head / base", "98 % interval"):
        table.add_column(column, overflow="fold")
    for c in sorted(found, key=lambda c: list(styles).index(c.verdict)):
        e = c.estimate
        told = (f"{e.ratio:.3f}", f"{e.low:.3f} to {e.high:.3f}") if e is not None and not c.reason else ("", c.reason)
        case = str(c.job.setup).partition(" ")[2]
        table.add_row(Text(c.job.name), Text(case), Text(c.verdict, style=styles[c.verdict]), *map(Text, told))
    console.print(table)


def print_history(found: Sequence[tuple[Sequence[Record], Sequence[Step]]], *, bisect: bool, quiet: bool) -> None:
    """One line for each series, and one for each change in it."""
    from rich.text import Text

    from assay.commits import blamed
    from assay.progress import progress
    from assay.report import console

    out = console()
    for records, changes in found:
        first = records[0]
        title = f"{first.kernel}, {first.case}, {first.dtype}, {first.mode}, {first.machine}, harness {first.harness}"
        out.print(Text(f"{title}: {len(records)} records"), soft_wrap=True)
        for step in changes:
            style = ("red" if step.ratio > 1 else "green") if step.counts else "dim"
            out.print(Text(f"  {step}", style=style), soft_wrap=True)
            if bisect and step.counts:
                with progress(quiet=quiet) as tell:
                    commit = blamed(step, tell)
                out.print(Text(f"    by {commit}", style="bold"), soft_wrap=True)


def print_missing(console: Console, missing: Sequence[Missing]) -> None:
    """What was not timed: what kernels do wrong first, then what they do not do."""
    from rich.text import Text

    seen = defaultdict(list)
    for m in missing:
        seen[m.kernel, m.reason, m.fails].append(m.what)
    for (kernel, reason, fails), what in sorted(seen.items(), key=lambda item: not item[0][2]):
        where = what[0] if len(what) == 1 else f"{what[0]}, and {len(what) - 1} more"
        text = f"not timed: {kernel.rpartition('/')[2]} ({where}): {reason}"
        console.print(Text(text, style="red" if fails else "dim"), soft_wrap=True)
