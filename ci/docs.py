"""The pages of the documentation that are made from contracts, from claims, and from the record of verdicts:
`python -m assay.docs`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from assay import findings, judged
from assay.pages import contents, operator_page
from assay.properties import OPERATORS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default="docs")
@click.option("--check", is_flag=True, help="Write nothing: exit code 1 if a page is not what would be written.")
@click.option(
    "--judged",
    "results",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file of `assay check --json`, to be added to the record of verdicts first; repeatable.",
)
def main(folder: Path, check: bool, results: tuple[Path, ...]) -> None:
    """Write the pages of the operators and the findings into FOLDER, docs if none is named."""
    judged.add(folder, results) if results else None
    stale = False
    for path, text in pages(folder).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        click.echo(f"{path}: {'not up to date: run python -m assay.docs' if check else 'written'}")
    if check and stale:
        sys.exit(1)


def pages(folder: Path) -> Mapping[Path, str]:
    """Every page that is made, by its path."""
    record = judged.read(folder)
    found = {folder / "operators" / f"{name}.md": operator_page(OPERATORS[name], record) for name in OPERATORS}
    found[folder / "operators" / "README.md"] = contents(record)
    found[folder / "findings.md"] = findings.page(folder, record)
    return found


if __name__ == "__main__":
    main()
