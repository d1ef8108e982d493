"""What is installed is what is in the tree."""

from __future__ import annotations

import tomllib
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


def test_no_module_is_left_out_of_the_order_of_the_rooms() -> None:
    """Modules of ci/ lie beside the rooms in the package, so that the contract of each room must name them all."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    forbidden = [set(c["forbidden_modules"]) for c in told["tool"]["importlinter"]["contracts"]]
    apart = [names for names in forbidden if "assay.cli" in names]
    assert len(apart) == len(ROOMS) - 1
    for names in apart:
        assert {f"assay.{p.stem}" for p in (ROOT / "ci").glob("*.py") if p.stem != "__init__"} <= names
