"""What the command line answers to a question that cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, a file that cannot be written is told in one line."""
    try:
        yield
    except OSError as error:
        raise Usage(f"{path} cannot be written: {error.strerror or error}") from None
