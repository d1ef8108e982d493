"""The command line: assay list, explain, check, replay, identify, mutants.

`assay new` is in new.py, and what measures speed in speed.py.

Exit codes: 0 all pass; 1 some kernel fails, errs or is undecided; 2 usage, import or configuration error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay import speed
from assay.new import new
from assay.usage import WRITTEN, Usage, writing


if TYPE_CHECKING:
    from rich.progress import Progress

    from assay.jobs import How, Judged, Work
    from assay.kernels import Known
    from assay.process import Limits
    from assay.properties.judgement import Identified


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="assay")
def main() -> None:
    """Hold numerical kernels against the exact answer."""


main.add_command(speed.bench)
main.add_command(speed.compare)
main.add_command(speed.history)
main.add_command(new)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List operators: signature, conventions, and the kernels known here."""
    from rich.text import Text

    from assay import report
    from assay.explain import signature
    from assay.kernels import known_kernels
    from assay.properties import OPERATORS

    found, left_out = known_kernels()
    rows: list[dict[str, Any]] = [
        {
            "operator": o.name,
            "signature": signature(o).removeprefix(o.name),
            "conventions": {name: list(values) for name, values in o.conventions.items()},
            "forms": list(o.texts),
            "kernels": [k.spelling for k in found if k.operator.name == o.name],
        }
        for o in OPERATORS.values()
    ]
    if as_json:
        click.echo(json.dumps({"operators": rows, "left_out": left_out}, indent=1))
        return
    console = report.console()
    for row in rows:
        console.print(Text(f"{row['operator']}{row['signature']}", style="bold"))
        for name, values in OPERATORS[row["operator"]].conventions.items():
            console.print(f"  convention {name}: {', '.join(values)}")
        console.print(f"  forms: {', '.join(row['forms'])}")
        for kernel in row["kernels"]:
            console.print(f"  kernel {kernel}", markup=False)
    report.print_left_out(console, left_out)


@main.command()
@click.argument("operator")
def explain(operator: str) -> None:
    """Explain OPERATOR: formula, axes, conventions, forms, properties, source."""
    from assay.explain import explained
    from assay.kernels import UsageError, operator_named

    try:
        o = operator_named(operator)
    except UsageError as error:
        raise Usage(str(error)) from None
    click.echo(explained(o))


def _convention(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise click.BadParameter(f"{item!r}: write NAME=VALUE, for instance layout=interleaved")
        out[name] = value
    return out


_kernels = click.argument("kernels", nargs=-1, metavar="[OPERATOR=MODULE:FUNCTION | OPERATOR]...")
_isolation = (
    click.option("--in-process", is_flag=True, help="Call kernels in this process, for a debugger."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=20,
        show_default=True,
        metavar="SECONDS",
        help="How long a call may take; three times that for the first, which may import and compile.",
    ),
)
_shared = (
    *_isolation,
    click.option("--quick", is_flag=True, help="Fewer cases, little shrinking."),
    click.option("--dtype", "dtypes", help="Comma-separated: float32,bfloat16,float16,float64."),
    click.option("--device", default="cpu", show_default=True, help="The torch device that kernels run on."),
    click.option("--precision", help="Judge as claiming this precision."),
    click.option("--form", help="Judge as claiming this form."),
    click.option("--convention", "conventions", multiple=True, callback=_convention, help="NAME=VALUE, repeatable."),
    click.option(
        "--world",
        type=click.IntRange(2),
        help="Call it at once on so many ranks of torch.distributed, with some rows each.",
    ),
    click.option(
        "--ranks",
        type=click.Choice(["sum", "mean"]),
        help="What the ranks return: the loss of all, and gradients to add up; or what is to be averaged.",
    ),
    click.option("--examples", type=click.IntRange(1), help="Cases per kernel and dtype."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the drawn cases."),
)


def _options(options: Sequence[Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _limits(options: dict[str, Any]) -> Limits | None:
    from assay.process import Limits

    return None if options["in_process"] else Limits(call=options["timeout"], kernel=45 * options["timeout"])


@main.command()
@_kernels
@_options(_shared)
@click.option(
    "--jobs", type=click.IntRange(1), help="Processes side by side; as many as there are cores, if not given."
)
@click.option("--json", "json_path", help="Write the results here.", **WRITTEN)
@click.option("--markdown", "markdown_path", help="Add a summary for a job's page to this file.", **WRITTEN)
@click.option(
    "--known",
    "known_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Failures that are expected, in TOML: they do not make the exit code 1; an entry that none meets does.",
)
@click.option(
    "--counterexamples",
    type=click.Path(path_type=Path, file_okay=False),
    help="Store counterexamples in this folder, instead of .assay/counterexamples.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was ended, from its journal.")
@click.option(
    "--journal",
    "journal_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write verdicts here as they come, instead of .assay/journal.jsonl.",
)
def check(
    kernels: tuple[str, ...],
    json_path: Path | None,
    markdown_path: Path | None,
    known_path: Path | None,
    counterexamples: Path | None,
    resume: bool,
    journal_path: Path | None,
    **options: Any,
) -> None:
    """Judge kernels; without an argument, every kernel of assay and of the packages installed here, as with --quick.

    MODULE is a dotted name or a path to a .py file; MODULE alone means every function in it that is decorated with
    @assay.kernel. Each kernel is called in a process of its own, which may crash or hang.
    """
    from assay.process import ahead

    ahead(_limits(options))

    from assay import expected, journal as journals, markdown, replay, report
    from assay.kernels import UsageError

    try:
        known = expected.read(known_path) if known_path else expected.Expectations()
    except UsageError as error:
        raise Usage(str(error)) from None
    chosen, left_out, how = _configured(kernels, options)
    work = [(kernel, dtype) for kernel in chosen for dtype in _dtypes(kernel, options["dtypes"])]
    numbered = [(number, *pair) for number, pair in enumerate(work)]
    path = journal_path or journals.FILE
    asked = journals.question(chosen, numbered, how)
    console = report.console()
    interrupted = False
    try:
        journal, done, told = (journals.resume if resume else journals.begin)(path, asked, numbered)
        click.echo(told, err=True) if told else None
        with journal:
            for number, found in _judged([w for w in numbered if w[0] not in done], how, options["jobs"], len(done)):
                kernel = work[number][0]
                reasons = replay.store_all(kernel, found, counterexamples or replay.FOLDER, options["device"])
                reasons = "\n".join(filter(None, (reasons, journal.append(number, kernel, found))))
                click.echo(reasons, err=True) if reasons else None
                done[number] = found
    except UsageError as error:
        raise Usage(str(error)) from None
    except KeyboardInterrupt:
        interrupted = True
    judged = [(work[number][0], done[number]) for number in sorted(done)]
    report.print_table(console, judged, known)
    report.print_failures(console, judged, known)
    report.print_known(console, judged, known)
    report.print_left_out(console, left_out)
    if json_path is not None:
        with writing(json_path):
            report.write_json(json_path, report.as_json(judged, left_out, known))
    if markdown_path is not None:
        with writing(markdown_path):
            markdown.append(markdown_path, judged, left_out, known)
    if interrupted:
        raise Usage(f"interrupted after {len(judged)} of {len(work)} judgements: --resume goes on with the rest")
    if not judged:
        raise Usage("there was nothing to judge: no kernel supports the dtypes asked for")
    if known.problems(judged) or not all(known.accepts(*one) for one in judged):
        sys.exit(1)


@main.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kernel", metavar="OPERATOR=MODULE:FUNCTION", help="Run this kernel instead, under the same claims.")
@click.option("--device", help="Run it on this torch device instead of the one on which it failed.")
@_options(_isolation)
def replay_(file: Path, kernel: str | None, device: str | None, **options: Any) -> None:
    """Run the counterexample stored in FILE again: exit code 1 if it still fails, 0 if it passes now."""
    from assay.kernels import UsageError
    from assay.replay import replay

    try:
        fails, told = replay(file, kernel, device, _limits(options))
    except UsageError as error:
        raise Usage(str(error)) from None
    click.echo("\n".join(told))
    if fails:
        sys.exit(1)


@main.command()
@_kernels
@_options(_shared)
def identify(kernels: tuple[str, ...], **options: Any) -> None:
    """Tell which conventions, form and precision a kernel follows."""
    from assay.process import ahead

    ahead(_limits(options))

    from rich.table import Table
    from rich.text import Text

    from assay.properties.judgement import identify as identified
    from assay.report import console, progress

    if not kernels:
        raise Usage("name a kernel: assay identify OPERATOR=MODULE:FUNCTION")
    found, _, how = _configured(kernels, options)
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "dtype", "conventions", "form", "precision", "headroom", "on cases"):
        table.add_column(column, overflow="fold")
    work = [(kernel, dtype) for kernel in found for dtype in _dtypes(kernel, options["dtypes"])]
    unknown, interrupted = False, False
    try:
        with progress() as tell:
            for number, (kernel, dtype) in enumerate(work, 1):
                tell(f"{number} of {len(work)}: {kernel.name} {dtype}") if len(work) > 1 else None
                subject = kernel.subject(how.device, how.limits)
                answer = identified(kernel.operator, subject, dtype, how.effort_for(kernel))
                unknown = unknown or answer is None
                table.add_row(*map(Text, (kernel.name, dtype, *_identified(answer))))
    except KeyboardInterrupt:
        interrupted = True
    console().print(table)
    if interrupted:
        raise Usage(f"interrupted after {table.row_count} of {len(work)}")
    if unknown:
        sys.exit(1)


def _identified(answer: Identified | None) -> Sequence[str]:
    if answer is None:
        return "none of the published ones", "", "", "", ""
    told, inferred = ", ".join(f"{n}={v}" for n, v in answer.conventions.items()), answer.inferred
    on = "all" if answer.cases == answer.answered else f"{answer.cases} of {answer.answered}"
    return told, inferred.form, inferred.precision, f"{inferred.headroom:.3g}", on


@main.command()
@click.argument("operator", required=False)
@click.option("--dtype", "dtypes", help="Comma-separated; float32,bfloat16,float16 if not given.")
@click.option("--full", is_flag=True, help="Try every property on every mutant, not only until one rejects it.")
@click.option("--jobs", type=click.IntRange(1), help="Processes side by side.")
@click.option("--json", "json_path", help="Write the matrix here.", **WRITTEN)
def mutants(operator: str | None, dtypes: str | None, full: bool, jobs: int | None, json_path: Path | None) -> None:
    """Judge wrong kernels derived from the contract of OPERATOR: the kill matrix.

    OPERATOR is the name of an operator of assay, or a module with operators of your own, a dotted name or a path to a
    .py file. Exit code 1 if a mutant survives without an explanation.
    """
    from assay import mutants as kills, report
    from assay.kernels import UsageError
    from assay.lines import one_line
    from assay.properties.drawing import DTYPES

    asked = [d.strip() for d in dtypes.split(",") if d.strip()] if dtypes else None
    for name in asked or ():
        if name not in DTYPES:
            raise Usage(f"there is no dtype {name!r}; there are {', '.join(DTYPES)}")
    try:
        found = kills.run(operator, asked, full=full, jobs=jobs)
    except UsageError as error:
        raise Usage(str(error)) from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise Usage(f"the definition cannot be evaluated: {type(error).__name__}: {one_line(error)}") from error
    except KeyboardInterrupt:
        raise Usage("interrupted") from None
    console = report.console()
    for one in found:
        kills.print_matrix(console, one)
    if json_path is not None:
        with writing(json_path):
            report.write_json(json_path, kills.as_json(found))
    if any(one.problems for one in found):
        sys.exit(1)


def _configured(kernels: tuple[str, ...], options: dict[str, Any]) -> tuple[list[Known], dict[str, str], How]:
    """Kernels with the claims asked for, and how they are judged. Raises: Usage in one line."""
    from dataclasses import replace

    from assay.jobs import How
    from assay.kernels import UsageError, chosen
    from assay.properties.judgement import QUICK, Effort
    from assay.reference.arithmetic.precision import PRECISIONS

    limits = _limits(options)
    try:
        found, left_out = chosen(kernels, limits)
    except UsageError as error:
        raise Usage(str(error)) from None
    if options["world"] and limits is None:
        raise Usage("each rank needs a process of its own: --world goes without --in-process")
    if options["precision"] and options["precision"] not in PRECISIONS:
        raise Usage(f"there is no precision {options['precision']!r}; there are {', '.join(PRECISIONS)}")
    for kernel in found:
        if options["form"] and options["form"] not in kernel.operator.texts:
            forms = ", ".join(kernel.operator.texts)
            raise Usage(f"{kernel.operator.name} has no form {options['form']!r}; it has {forms}")
        for name, value in options["conventions"].items():
            values = kernel.operator.conventions.get(name, ())
            if value not in values:
                there = "; ".join(f"{n}={'|'.join(v)}" for n, v in kernel.operator.conventions.items()) or "none"
                raise Usage(f"{kernel.operator.name} has no convention {name}={value}; it has {there}")
    claimed = {name: options[name] for name in ("precision", "form", "conventions", "world", "ranks")}
    effort = replace(QUICK if options["quick"] or not kernels else Effort(), seed=options["seed"])
    if options["examples"]:
        effort = replace(effort, examples=options["examples"])
    return [k.claiming(**claimed) for k in found], left_out, How(effort, options["device"], claimed, limits)


def _dtypes(kernel: Known, asked: str | None) -> list[str]:
    """The dtypes to judge a kernel in: those asked for, of those that it claims."""
    from assay.properties.drawing import DTYPES

    if asked is None:
        return list(kernel.claims.dtypes)
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in DTYPES:
            raise Usage(f"there is no dtype {name!r}; there are {', '.join(DTYPES)}")
    return [name for name in names if name in kernel.claims.dtypes or name == "float64"]


def _judged(work: Work, how: How, jobs: int | None, already: int) -> Judged:
    """Judge, showing progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from assay.jobs import side_by_side
    from assay.process import end_all

    jobs = min(jobs or os.cpu_count() or 1, len(work))
    console = Console(stderr=True, highlight=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    )
    by_number = {number: (kernel, dtype) for number, kernel, dtype in work}
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            shown = progress.add_task("kernels and dtypes", completed=already, total=already + len(work), told="")
            if jobs > 1:
                end_all()  # those that described the kernels; each job has one of its own
            for number, found in side_by_side(work, how, jobs) if jobs > 1 else _one_by_one(work, how, progress):
                kernel, dtype = by_number[number]
                progress.update(shown, advance=1, told=f"{kernel.name} {dtype}: {found.verdict}")
                if not console.is_terminal and len(work) > 1:
                    console.print(f"{kernel.name} {dtype}: {found.verdict}", markup=False)
                yield number, found
    finally:
        end_all()


def _one_by_one(work: Work, how: How, progress: Progress) -> Judged:
    from assay.jobs import judge

    for number, kernel, dtype in work:
        task = progress.add_task(f"{kernel.name} {dtype}", total=None, told="")

        def show(cases: int, headroom: float, task: Any = task) -> None:
            progress.update(task, completed=cases, told=f"cases, headroom {headroom:.3g}")

        yield number, judge(kernel, dtype, how, show)
        progress.remove_task(task)
