"""`assay compare`: both sides are what was asked for, take turns, and are told apart."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from assay.cli import main
from assay.compare import BUDGET, FEWEST, Compared, Job, budget_of, compare, measure, sampled
from assay.kernels import UsageError, resolve
from assay.sides import Side, prepare
from assay.timing import Inputs, Setup
from assay.verdict import AGAIN, PAIRS
from tests.ci import project


KERNELS = Path(__file__).parent.parent / "timed_kernels.py"
TINY = Setup("rms_norm", "tiny", "float32", False, 1)


def silent(_: str) -> None:
    pass


def job(inputs: Inputs, base: str, head: str, setup: Setup = TINY) -> Job:
    told = []
    for name in (base, head):
        (kernel,) = resolve(f"rms_norm={KERNELS}:{name}")
        told.append(inputs.of(kernel, setup))
    return Job(f"{base}-{head}", setup, *told)


@pytest.fixture(scope="module")
def found() -> dict[str, Compared]:
    """Comparisons with fewer processes than are usual: what is asked here has clear answers."""
    pairs = (("right", "right"), ("right", "tenfold"), ("tenfold", "right"), ("right", "crashes"), ("raises", "right"))
    with Inputs() as inputs:
        jobs = [job(inputs, *names) for names in pairs]
        return {c.job.name: c for c in compare(jobs, silent, pairs=3)}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "verdicts"),
    [
        ("right-right", ("SAME", "UNSURE")),
        ("right-tenfold", ("SLOW",)),
        ("tenfold-right", ("FAST",)),
        ("right-crashes", ("FAILED",)),
        ("raises-right", ("UNSURE",)),
    ],
)
def test_sides_are_told_apart(found: dict[str, Compared], name: str, verdicts: tuple[str, ...]) -> None:
    assert found[name].verdict in verdicts, found[name]


@pytest.mark.nightly
def test_only_what_is_suspected_is_measured_again(found: dict[str, Compared]) -> None:
    assert {name for name, c in found.items() if c.second} <= {"right-tenfold", "tenfold-right", "right-right"}
    assert len(found["right-tenfold"].first) == 3
    assert len(found["right-tenfold"].second) == 3 * AGAIN // PAIRS


class Counting:
    """A stopwatch for a kernel of which ten calls make a sample."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.timed = 0.0

    def ask(self, command: str, **told: Any) -> dict[str, Any]:
        if command == "open":
            return {"calls": 10, "seconds": self.seconds}
        self.timed += 10 * self.seconds * told["rounds"] * len(told["keys"])
        return {"samples": {key: [self.seconds] * told["rounds"] for key in told["keys"]}}


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-4, 50), (1e-3, FEWEST)])
def test_a_comparison_takes_few_seconds_of_timed_work(seconds: float, rounds: int) -> None:
    """Both measurements together stay within the budget, where FEWEST rounds do."""
    watch = Counting(seconds)
    watches: Any = {"base": watch, "head": watch}
    one = Job("k", TINY, {}, {})
    fewest, most = FEWEST * 2 * 10 * seconds, 0.0
    for number, again in ((PAIRS, False), (AGAIN, True)):
        most += number * max(budget_of(again), fewest)
        for _ in range(number):
            samples = sampled(one, watches, random.Random(0), budget_of(again))
            assert len(samples.base) == len(samples.head) >= FEWEST
    assert watch.timed <= 1.001 * most
    assert PAIRS * budget_of(False) + AGAIN * budget_of(True) == pytest.approx(BUDGET)
    assert len(sampled(one, watches, random.Random(0), 0.1).base) == rounds


@pytest.mark.nightly
def test_what_failed_says_why(found: dict[str, Compared]) -> None:
    assert found["right-crashes"].reason.startswith("head: ended its process (exit code 3)")
    assert found["raises-right"].reason == "base: RuntimeError: the device is on fire"


def test_sides_that_cannot_share_a_process_are_driven_by_turns() -> None:
    with Inputs() as inputs:
        one = Compared(job(inputs, "right", "tenfold"))
        measure([one], 1, silent, random.Random(0), apart=True)
    (samples,) = one.first
    assert samples.answer > math.log(3)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wheels")
    built = {}
    for version, rows, right in (("1.0", 1000, True), ("1.1", 9000, True), ("1.2", 1000, False)):
        tree = project.write(root / version, version=version, rows=rows, right=right)
        built[version] = project.wheel(tree, root)
    return built


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from assay.cli import main; main()", "compare", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


@pytest.mark.nightly
def test_two_wheels_in_one_process_are_told_apart(tmp_path: Path, wheels: dict[str, Path]) -> None:
    options = ("--kernel", "scaled=planted:kernel", "--json", "out.json")
    slower = run(tmp_path, str(wheels["1.0"]), str(wheels["1.1"]), *options)
    assert slower.returncode == 1, slower.stderr
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["verdict"] == "SLOW"
    assert len(result["first"]) == PAIRS
    assert len(result["second"]) == AGAIN
    same = run(tmp_path, str(wheels["1.0"]), str(wheels["1.0"]), *options)
    assert same.returncode == 0, same.stderr


@pytest.mark.nightly
def test_the_gate_fails_on_a_tenth_more_work_and_passes_without(tmp_path: Path) -> None:
    """The working tree against the commit that it starts from."""
    tree = project.write(tmp_path / "tree")
    project.commit(tree, "first")
    project.write(tree, rows=1100)
    options = ("--kernel", "scaled=planted:kernel")
    slower = run(tree, "main...", ".", *options)
    assert slower.returncode == 1, slower.stderr
    assert "SLOW" in slower.stdout
    project.write(tree)
    same = run(tree, "main...", ".", *options)
    assert same.returncode == 0, same.stdout


@pytest.mark.nightly
def test_a_head_that_breaks_its_contract_fails(tmp_path: Path, wheels: dict[str, Path]) -> None:
    wrong = run(tmp_path, str(wheels["1.0"]), str(wheels["1.2"]), "--kernel", "scaled=planted:kernel")
    assert wrong.returncode == 1, wrong.stderr
    assert "FAILED" in wrong.stdout
    assert "head breaks its contract: agrees_with_oracle" in " ".join(wrong.stdout.split())


@pytest.mark.nightly
def test_a_side_is_what_was_asked_for(tmp_path: Path, wheels: dict[str, Path]) -> None:
    """Two versions of one package answer from one process, each with its own text, also in what they import late."""
    sides = {}
    for version in ("1.0", "1.1"):
        (tmp_path / version).mkdir()
        sides[version] = prepare(str(wheels[version]), tmp_path / version)
    assert {s.package for s in sides.values()} == {"planted"}
    assert not any(s.native for s in sides.values())
    code = (
        "import sys, json; from assay.stopwatch import Side, _function\n"
        "sides = [Side([p]) for p in sys.argv[1:]]\n"
        "rows = []\n"
        "for s in sides + sides:\n"
        "    with s():\n"
        "        import planted\n"
        "        rows.append(planted.ROWS)\n"
        "print(json.dumps([rows, 'planted' in sys.modules]))\n"
    )
    paths = [path for s in sides.values() for path in s.paths]
    told = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [[1000, 9000, 1000, 9000], False]


@pytest.mark.nightly
def test_a_git_revision_is_installed_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = project.write(tmp_path / "tree", rows=1000)
    first = project.commit(tree, "first")
    project.write(tree, rows=2000)
    project.commit(tree, "second")
    project.write(tree, rows=3000)
    monkeypatch.chdir(tree)
    rows = {}
    for name, spelling in {"first": first, "merge base": "main...", "tree": "."}.items():
        (tmp_path / f"of {name}").mkdir()
        (path,) = prepare(spelling, tmp_path / f"of {name}").paths
        rows[name] = (Path(path) / "planted.py").read_text().partition("ROWS = ")[2].partition("\n")[0]
    assert rows == {"first": "1000", "merge base": "2000", "tree": "3000"}


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("no-such-revision", "is no git revision here; a side is a git revision"),
        ("no_such.whl", "there is no wheel no_such.whl"),
        (".", "the folder . holds no Python project"),
        ("rope=no_such_file.py:f", "there is no file no_such_file.py"),
        ("--output=x", "is no git revision here"),
    ],
)
def test_a_side_that_means_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "environment").mkdir()
    with pytest.raises(UsageError) as error:
        prepare(spelling, tmp_path / "environment")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.commit(project.write(tmp_path / "tree"), "first")
    monkeypatch.chdir(tmp_path / "tree")
    right = f"rms_norm={KERNELS}:right"
    for arguments, message in (
        ((right, "rope=assay.impl.rope:rope"), "kernels of two operators"),
        ((right, "HEAD"), "is one file for both sides"),
        ((right, right, "--dtype", "float7"), "there is no dtype 'float7'"),
        ((right, right, "--device", "cuda:99"), "there is no cuda:99 here"),
    ):
        result = CliRunner().invoke(main, ["compare", *arguments])
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output


def test_a_side_that_brings_compiled_modules_is_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    assert Side("x", (str(tmp_path),)).native
    assert not Side("x").native
