"""What the command line answers to a question that cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from assay.lines import shortened


class Usage(click.ClickException):
    """One line, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, 500))  # what a user typed may be in it, line breaks and all


def _file(_: click.Context, __: click.Parameter, given: Path | None) -> Path | None:
    if given is not None and not given.resolve().parent.is_dir():
        raise Usage(f"there is no folder {given.resolve().parent} to write {given.name} into")
    return given


WRITTEN: Any = {"type": click.Path(path_type=Path, dir_okay=False), "callback": _file}
"""Of an option that names a file to write."""


def need(command: str, *modules: str, extra: str = "speed") -> None:
    """Raises: Usage where what a command needs beyond assay's own dependencies is not installed."""
    from importlib.util import find_spec

    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise Usage(f"assay {command} needs {' and '.join(missing)}: pip install 'assay[{extra}]'")


def _page(context: click.Context, option: click.Parameter, given: Path | None) -> Path | None:
    if given is not None:
        need(f"{context.info_name} --html", "jinja2", "matplotlib", extra="report")
    return _file(context, option, given)


HTML: Any = {**WRITTEN, "callback": _page}
"""Of an option that names a page to write."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, a file that cannot be written is told in one line."""
    try:
        yield
    except OSError as error:
        raise Usage(f"{path} cannot be written: {error.strerror or error}") from None


QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing of what is as it should be.")


# For the completion of a shell: nothing heavy is imported while somebody types. --------------------------------------


def operators(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of operators; a file, where none begins so."""
    from assay.properties import OPERATORS

    found = [CompletionItem(name) for name in OPERATORS if name.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]


def dtypes_named(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """The dtypes, after those that are there and a comma."""
    there, comma, last = begun.rpartition(",")
    names = ("float32", "bfloat16", "float16", "float64")
    return [CompletionItem(f"{there}{comma}{n}") for n in names if n.startswith(last) and n not in there.split(",")]
