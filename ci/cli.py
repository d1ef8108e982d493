"""The command line: assay check, replay, identify, mutants.

`assay list` and `explain` are in listing.py, `new` in new.py, and what measures speed in speed.py.

Exit codes: 0 all pass; 1 some kernel fails, errs or is undecided; 2 usage, import or configuration error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay import listing, speed
from assay.new import new
from assay.usage import HTML, QUIET, WRITTEN, Usage, dtypes_named, operators, writing


if TYPE_CHECKING:
    from assay.jobs import How
    from assay.kernels import Known
    from assay.process import Limits
    from assay.properties.judgement import Identified


class _Commands(click.Group):
    """Ctrl-C, wherever it comes, is one line and never exit code 1, which says that a kernel fails."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Usage("interrupted") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="assay")
def main() -> None:
    """Hold numerical kernels against the exact answer."""


main.add_command(listing.list_)
main.add_command(listing.explain)
main.add_command(speed.bench)
main.add_command(speed.compare)
main.add_command(speed.history)
main.add_command(new)


def _convention(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise click.BadParameter(f"{item!r}: write NAME=VALUE, for instance layout=interleaved")
        out[name] = value
    return out


_kernels = click.argument(
    "kernels", nargs=-1, metavar="[OPERATOR=MODULE:FUNCTION | OPERATOR]...", shell_complete=operators
)
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
    click.option(
        "--dtype", "dtypes", shell_complete=dtypes_named, help="Comma-separated: float32,bfloat16,float16,float64."
    ),
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
    QUIET,
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
@click.option("--html", "html_path", help="Write a page to look at here.", **HTML)
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
@click.option(
    "--database",
    "places",
    multiple=True,
    default=(".assay/examples",),
    show_default=True,
    metavar="PLACE",
    help="Where counterexamples are kept, and those of other runs are tried first: a folder, redis://HOST, or "
    "github://OWNER/REPO, which is read alone. Repeatable; an empty text is no place.",
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
    html_path: Path | None,
    markdown_path: Path | None,
    known_path: Path | None,
    counterexamples: Path | None,
    places: tuple[str, ...],
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
    from assay.examples import Examples, opened
    from assay.kernels import UsageError
    from assay.progress import judging, progress

    quiet = options["quiet"]
    try:
        known = expected.read(known_path) if known_path else expected.Expectations()
        examples = Examples(opened(places), partial(click.echo, err=True))
    except UsageError as error:
        raise Usage(str(error)) from None
    chosen, left_out, how = _configured(kernels, options)
    work = [(kernel, dtype) for kernel in chosen for dtype in _dtypes(kernel, options["dtypes"])]
    numbered = [(number, *pair) for number, pair in enumerate(work)]
    path = journal_path or journals.FILE
    tried = examples.fetch(work, journals.examples(path) if resume else None)
    asked = journals.question(chosen, numbered, how, tried)
    console = report.console()
    interrupted = False
    try:
        journal, done, told = (journals.resume if resume else journals.begin)(path, asked, numbered)
        click.echo(told, err=True) if told else None
        with journal:
            left = [w for w in numbered if w[0] not in done]
            for number, found in judging(left, how, options["jobs"], examples.of, len(done), quiet=quiet):
                kernel = work[number][0]
                reasons = replay.store_all(kernel, found, counterexamples or replay.FOLDER, options["device"])
                reasons = "\n".join(filter(None, (reasons, journal.append(number, kernel, found))))
                click.echo(reasons, err=True) if reasons else None
                examples.save(kernel, found)
                done[number] = found
    except UsageError as error:
        raise Usage(str(error)) from None
    except KeyboardInterrupt:
        interrupted = True
    judged = [(work[number][0], done[number]) for number in sorted(done)]
    if not quiet:
        report.print_table(console, judged, known)
    report.print_failures(console, judged, known)
    report.print_known(console, judged, known)
    if not quiet:
        report.print_left_out(console, left_out)
    if json_path is not None:
        with writing(json_path):
            report.write_json(json_path, report.as_json(judged, left_out, known))
    if html_path is not None:
        from assay import webpage

        with writing(html_path), progress(quiet=quiet) as tell:
            report.write(html_path, webpage.of_check(judged, left_out, known, tell))
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
    from assay.progress import waiting
    from assay.replay import replay

    try:
        with waiting("running the kernel again"):
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

    from assay.progress import Board
    from assay.properties.judgement import identify as identified
    from assay.report import console

    if not kernels:
        raise Usage("name a kernel: assay identify OPERATOR=MODULE:FUNCTION")
    found, _, how = _configured(kernels, options)
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "dtype", "conventions", "form", "precision", "headroom", "on cases"):
        table.add_column(column, overflow="fold")
    work = [(kernel, dtype) for kernel in found for dtype in _dtypes(kernel, options["dtypes"])]
    unknown, interrupted = False, False
    try:
        with Board(len(work), quiet=options["quiet"]) as board:
            for number, (kernel, dtype) in enumerate(work):
                title = f"{kernel.name} {dtype}"
                show = partial(board.show, number, title)
                subject = kernel.subject(how.device, how.limits)
                answer = identified(kernel.operator, subject, dtype, how.effort_for(kernel), show)
                unknown = unknown or answer is None
                table.add_row(*map(Text, (kernel.name, dtype, *_identified(answer))))
                board.done(number, f"{title}: {answer.inferred if answer else 'none'}")
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
@click.argument("operator", required=False, shell_complete=operators)
@click.option(
    "--dtype", "dtypes", shell_complete=dtypes_named, help="Comma-separated; float32,bfloat16,float16 if not given."
)
@click.option("--full", is_flag=True, help="Try every property on every mutant, not only until one rejects it.")
@click.option("--jobs", type=click.IntRange(1), help="Processes side by side.")
@click.option("--json", "json_path", help="Write the matrix here.", **WRITTEN)
@QUIET
def mutants(
    operator: str | None, dtypes: str | None, full: bool, jobs: int | None, json_path: Path | None, quiet: bool
) -> None:
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
        found, left = kills.run(operator, asked, full=full, jobs=jobs, quiet=quiet)
    except UsageError as error:
        raise Usage(str(error)) from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise Usage(f"the definition cannot be evaluated: {type(error).__name__}: {one_line(error)}") from error
    console = report.console()
    for one in found:
        kills.print_matrix(console, one)
    if json_path is not None:
        with writing(json_path):
            report.write_json(json_path, kills.as_json(found))
    if left:
        raise Usage(f"interrupted: not judged to the end are {', '.join(left)}")
    if any(one.problems for one in found):
        sys.exit(1)


def _configured(kernels: tuple[str, ...], options: dict[str, Any]) -> tuple[list[Known], dict[str, str], How]:
    """Kernels with the claims asked for, and how they are judged. Raises: Usage in one line."""
    from dataclasses import replace

    from assay.jobs import How
    from assay.kernels import UsageError, chosen
    from assay.progress import waiting
    from assay.properties.run import QUICK, Effort
    from assay.reference.arithmetic.precision import PRECISIONS

    limits = _limits(options)
    try:
        with waiting("looking for kernels", quiet=options["quiet"]):
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
