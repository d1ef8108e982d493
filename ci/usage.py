"""What the command line answers to a question that cannot be asked."""

from __future__ import annotations

import click

from assay.lines import shortened


class Usage(click.ClickException):
    """One line, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, 500))  # what a user typed may be in it, line breaks and all
