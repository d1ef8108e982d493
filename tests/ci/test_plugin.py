"""The pytest plugin and `assay.conformance`, run in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


KERNELS = Path(__file__).parent.parent / "kernels.py"

FILE = """
import assay, importlib.util
spec = importlib.util.spec_from_file_location("kernels", {kernels!r})
kernels = importlib.util.module_from_spec(spec); spec.loader.exec_module(kernels)
test_rope = assay.conformance("rope", kernels.{function}, dtypes=["float32"], examples=40, xfail={xfail!r})
"""


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-c", "/dev/null", "--rootdir", str(folder), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def conformance(folder: Path, function: str, xfail: dict[tuple[str, ...], str] | None = None) -> str:
    (folder / "test_mine.py").write_text(FILE.format(kernels=str(KERNELS), function=function, xfail=xfail))
    return pytest_in(folder, "test_mine.py").stdout


def test_a_right_kernel_passes(tmp_path: Path) -> None:
    out = conformance(tmp_path, "right")
    assert "PASSED test_mine.py::test_rope[agrees_with_oracle-float32]" in out
    assert "failed" not in out


def test_a_failure_prints_what_a_person_needs(tmp_path: Path) -> None:
    out = conformance(tmp_path, "interleaved")
    assert "FAILED test_mine.py::test_rope[agrees_with_oracle-float32]" in out
    assert "diagnosis: this is rope with layout='interleaved'" in out
    assert "regime" in out
    assert "Traceback" not in out


def test_an_expected_failure_is_one_and_an_unexpected_pass_is_not(tmp_path: Path) -> None:
    names = ("agrees_with_oracle", "gradients_agree", "rotations_compose", "norm_is_kept")
    reasons = {(name, "float32"): "interleaved" for name in names[:3]}
    out = conformance(tmp_path, "interleaved", {**reasons, (names[3], "float32"): "is not true"})
    assert "XFAIL test_mine.py::test_rope[agrees_with_oracle-float32]" in out
    assert "FAILED test_mine.py::test_rope[norm_is_kept-float32]" in out


def test_an_expected_failure_with_another_signature_fails(tmp_path: Path) -> None:
    out = conformance(tmp_path, "interleaved", {("agrees_with_oracle", "float32", "off by one"): "wrong reason"})
    assert "FAILED test_mine.py::test_rope[agrees_with_oracle-float32]" in out


def test_an_xfail_line_that_matches_nothing_is_refused() -> None:
    import assay

    with pytest.raises(ValueError, match="matches no item"):
        assay.conformance("rope", lambda x, position: x, xfail={("no_such_property", "float32"): "typo"})


def test_pytest_judges_a_kernel_without_a_file(tmp_path: Path) -> None:
    run = pytest_in(tmp_path, "--assay", f"rope={KERNELS}:off_by_one")
    assert run.returncode == 1
    assert "position off by one" in run.stdout


def test_pytest_with_a_kernel_that_does_not_exist(tmp_path: Path) -> None:
    run = pytest_in(tmp_path, "--assay", "rope=nowhere.py:f")
    assert run.returncode != 0
    assert "there is no file nowhere.py" in run.stdout + run.stderr
