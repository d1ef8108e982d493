"""What is installed is what is in the tree."""

from __future__ import annotations

from pathlib import Path

import assay


ROOT = Path(__file__).parent.parent
KINDS = (".py", ".html", ".css")
ROOMS = {"ci": "", "reference": "reference", "impl": "impl", "properties": "properties"}


def test_the_installed_files_are_those_of_the_tree() -> None:
    """A folder that pyproject.toml does not list vanishes from the wheel; a deleted module may linger in it."""
    installed = Path(assay.__file__).parent
    if installed == ROOT / "ci":
        return  # an editable install is the tree
    there = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.suffix in KINDS}
    here = {
        (Path(package) / p.relative_to(ROOT / folder)).as_posix()
        for folder, package in ROOMS.items()
        for p in (ROOT / folder).rglob("*")
        if p.suffix in KINDS
    }
    assert there == here
    assert (installed / "py.typed").is_file()
