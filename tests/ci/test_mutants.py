"""`assay mutants`, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.mutants import shorten
from tests.ci.test_cli import OWN, run


def written(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_the_matrix_of_a_users_operator(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = run("mutants", written(tmp_path, OWN), "--dtype", "float32", "--json", str(path))
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "0 survived" in told
    assert "gradient of weight halved" in told
    assert "torch.testing.assert_close" in told
    content: dict[str, Any] = json.loads(path.read_text())
    (own,) = content["operators"]
    assert own["operator"] == "rms_norm"
    assert own["problems"] == []
    first = own["mutants"][0]
    assert {"mutant", "kind", "text", "dtype", "fate", "by", "cases", "seconds", "message"} == set(first)
    assert own["rules"][0]["false_alarms"] == 0


def test_a_survivor_without_an_explanation_is_exit_code_1(tmp_path: Path) -> None:
    """A parameter without any effect: whoever ignores it is not found out, and the contract has to say so."""
    text = OWN.replace("*, eps):", "*, eps, idle):").replace(
        "high=1e-2),)", "high=1e-2), assay.Positive('idle', default=1, low=1, high=2)), slips={'none': rms_norm}"
    )
    result = run("mutants", written(tmp_path, text), "--dtype", "float32")
    assert result.exit_code == 1
    assert "none float32 survives: no case shows it" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hope",), "there is no operator 'hope'; known here: clip_loss, "),
        (("no_such_file.py",), "there is no file no_such_file.py"),
        (("rope", "--dtype", "float7"), "there is no dtype 'float7'"),
        (("rope", "--json", "/no/such/folder/x.json"), "there is no folder"),
    ],
)
def test_usage_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run("mutants", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_module_without_operators_is_one_line(tmp_path: Path) -> None:
    result = run("mutants", written(tmp_path, "x = 1\n"))
    assert result.exit_code == 2
    assert "has no Operator" in result.output


def test_long_messages_are_cut() -> None:
    assert shorten("a" * 40) == "a" * 40
    assert shorten("a" * 41) == "a" * 37 + "..."
