"""What the command line answers to a question that cannot be asked."""

from __future__ import annotations

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
