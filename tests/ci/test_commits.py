"""The commit to blame is found."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.commits import culprit, listed
from assay.history import Store
from assay.kernels import UsageError
from tests.ci import project


@pytest.mark.parametrize("step", [1.1, 0.9])
@pytest.mark.parametrize("n", [2, 3, 7, 16, 60])
def test_a_bisection_finds_every_culprit_in_few_looks(n: int, step: float) -> None:
    """Also if what it looks at scatters, by less than half of the step."""
    random = np.random.default_rng(n)
    commits = [f"commit {i}" for i in range(n)]
    for guilty in range(1, n):
        looks = []

        def ratio(commit: str, guilty: int = guilty, looks: list[str] = looks) -> float:
            looks.append(commit)
            level = step if commits.index(commit) >= guilty else 1.0
            return level * math.exp(0.4 * abs(math.log(step)) * random.uniform(-1, 1))

        assert culprit(commits, ratio, step) == commits[guilty]
        assert len(looks) <= math.ceil(math.log2(n))


def test_commits_are_listed_as_they_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = project.write(tmp_path / "tree")
    commits = [project.commit(tree, f"number {i}") for i in range(4)]
    monkeypatch.chdir(tree)
    assert listed("HEAD") == [commits[-1]]
    assert listed(f"{commits[0]}..HEAD") == commits[1:]
    with pytest.raises(UsageError, match=r"there is no commit in HEAD\.\.HEAD"):
        listed("HEAD..HEAD")
    with pytest.raises(UsageError, match="git rev-parse"):
        listed("no-such-revision")


def history(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from assay.cli import main; main()", "history", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


def test_a_damaged_store_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    result = history(tmp_path, "--store", "mine.jsonl", "--add", "HEAD")
    assert result.returncode == 2
    assert "is no history of assay" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n"


def test_an_empty_history_is_one_line(tmp_path: Path) -> None:
    result = history(tmp_path)
    assert result.returncode == 2
    assert "there are no records in .assay/history.jsonl: add some with --add" in result.stderr


@pytest.mark.nightly
def test_a_planted_regression_is_found_at_its_commit(tmp_path: Path) -> None:
    """Sixty commits, of which every fourth is measured; number 41 has a tenth more work."""
    tree = project.write(tmp_path / "tree")
    commits = []
    for i in range(60):
        (tree / "notes.txt").write_text(f"{i}\n")
        if i == 41:
            project.write(tree, rows=1100)
        commits.append(project.commit(tree, f"number {i}"))
    kernel = "scaled=planted:kernel"
    for commit in commits[3::4]:
        result = history(tree, kernel, "--add", commit, "--store", str(tmp_path / "h.jsonl"))
        assert result.returncode == 0, result.stderr
    assert len(Store(tmp_path / "h.jsonl").read()) == 15
    result = history(tree, kernel, "--store", str(tmp_path / "h.jsonl"), "--bisect", "--plot", str(tmp_path / "h.png"))
    assert result.returncode == 0, result.stderr
    assert f"slower since {commits[39][:10]}..{commits[43][:10]}" in result.stdout
    assert f"by {commits[41]}" in result.stdout
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
