"""The rules that keep "certified" true, and the order of the tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import assay
from assay.properties import OPERATORS


ROOT = Path(__file__).parent.parent
DEFINITIONS = sorted((ROOT / "reference").glob("*.py"))


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_definitions_hold_no_inexact_constant(path: Path) -> None:
    """A float literal or a number from math or numpy is rounded before the balls see it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant):
            assert not isinstance(node.value, float | complex), f"{where}: the literal {node.value} is not exact"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in ("math", "cmath", "numpy", "torch", "scipy"), f"{where}: {name}"
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            for call in ast.walk(node.test):
                called = isinstance(call, ast.Call) and getattr(call.func, "id", "")
                assert called not in ("float", "bool"), f"{where}: a branch on a computed number"


@pytest.mark.parametrize("name", OPERATORS)
def test_a_family_has_a_file_in_every_room(name: str) -> None:
    stem = OPERATORS[name].definition.__module__.rpartition(".")[2]
    for room in ("reference", "impl", "properties", "tests/reference", "tests/properties", "tests/impl"):
        prefix = "test_" if room.startswith("tests") else ""
        assert (ROOT / room / f"{prefix}{stem}.py").is_file()


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code."""
    run = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["assay", "assay.cli"])
def test_importing_assay_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}").isdisjoint({"torch", "numpy", "hypothesis", "flint", "mpmath"})


def test_starting_pytest_with_the_plugin_loads_nothing_heavy() -> None:
    code = (
        "import pytest, tempfile\n"
        "pytest.main(['-q', '-p', 'no:hypothesispytest', '-c', '/dev/null', '--collect-only', tempfile.mkdtemp()])"
    )
    assert loaded(code).isdisjoint({"torch", "numpy", "hypothesis", "flint", "mpmath"})


@pytest.mark.parametrize("name", assay.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(assay, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = assay.nonsense
