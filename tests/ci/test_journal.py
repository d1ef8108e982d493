"""The journal of a run: killed at any moment it is resumed, and what is not a journal of the same run is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from assay.cli import main


MINE = """
import assay
from assay.properties.contract import Operator, Tensor


def scaled(x, weight):
    return x * weight


SCALED = Operator("scaled", scaled, (Tensor("x", "t d"), Tensor("weight", "d")))


@assay.kernel("scaled", backward="none")
def right(x, weight):
    if not (x.is_floating_point() and weight.is_floating_point()):
        raise TypeError("x and weight must be real")
    return (x.float() * weight.float()).to(x.dtype)


@assay.kernel("scaled", backward="none", dtypes=("float32",))
def wrong(x, weight):
    return x + weight


@assay.kernel("scaled", backward="none", dtypes=("float32",))
def raises(x, weight):
    raise RuntimeError("the device is on fire")
"""
FILE = Path(".assay/journal.jsonl")
QUESTION = ("check", "mine.py", "--examples", "2", "--jobs", "1", "--json", "out.json")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def run(*more: str) -> Result:
    result = CliRunner().invoke(main, [*QUESTION, "--quick", "--in-process", *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def told() -> list[tuple[Any, ...]]:
    """What the run found, but for seconds, and for counterexamples: shrinking has a limit of time."""
    results = json.loads(Path("out.json").read_text())["results"]
    return [tuple(r[key] for key in ("kernel", "property", "dtype", "verdict", "cases", "headroom")) for r in results]


def lines() -> list[str]:
    return FILE.read_text().splitlines()


# Killed ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that are forked from one in which everything is imported, so that starting one takes no time."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["assay.cli", "assay.jobs", "assay.report", "assay.replay", "torch", __name__])
    return context


def checks(arguments: list[str], output: str) -> None:
    """A run of its own: in a process that may be killed."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    main(arguments)


def written() -> list[str]:
    """The verdicts that are on the disk; what stands behind the last line break is torn."""
    return FILE.read_text().split("\n")[1:-1] if FILE.exists() else []


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_runs_killed_at_random_moments_lose_nothing(processes: ForkServerContext, count: int) -> None:
    """Nothing that was written is lost or judged again, and the verdicts are those of a run that was not killed."""
    arguments = [*QUESTION, "--quick", "--in-process"]
    started = time.monotonic()
    whole = processes.Process(target=checks, args=(arguments, "output.txt"))
    whole.start()
    whole.join()
    assert whole.exitcode == 1
    seconds = time.monotonic() - started
    expected = told()
    draw = random.Random(count)
    killed = 0
    while killed < count:
        for file in (FILE, Path("out.json")):
            file.unlink()
        shutil.rmtree(".assay/examples")
        ended = False
        while not ended:
            before = written()
            resumed = ["--resume"] if FILE.exists() else []
            Path("output.txt").write_text("")
            process = processes.Process(target=checks, args=([*arguments, *resumed], "output.txt"))
            process.start()
            process.join(draw.uniform(0, seconds))
            ended = not process.is_alive()
            process.kill()
            process.join()
            killed += not ended
            after = written()
            assert after[: len(before)] == before
            printed = Path("output.txt").read_text()
            for line in before:
                judged = json.loads(line)
                name = judged["kernel"].partition("=")[2]
                assert f"{name} {judged['dtype']}: " not in printed, printed
        assert (process.exitcode, Path("out.json").exists()) == (1, True), Path("output.txt").read_text()
        assert told() == expected
        assert len(lines()) == 1 + 5


# Resumed --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> bytes:
    """The journal of a run, which no refusal may change."""
    assert run().exit_code == 1
    return FILE.read_bytes()


def test_a_whole_journal_answers_without_judging(kept: bytes) -> None:
    found = told()
    result = run("--resume")
    assert result.exit_code == 1
    assert "float32: pass" not in result.output
    assert (told(), FILE.read_bytes()) == (found, kept)


def test_without_resume_a_new_journal_is_begun_and_the_last_is_kept(kept: bytes) -> None:
    assert run().exit_code == 1
    assert FILE.with_name("journal.jsonl.previous").read_bytes() == kept
    assert len(lines()) == 6


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_dropped_with_a_notice(kept: bytes, cut: int) -> None:
    found = told()
    FILE.write_bytes(kept[:-cut])
    result = run("--resume")
    assert f"the last line of {FILE} was torn and is dropped" in result.output
    assert (told(), len(lines())) == (found, 6)


def test_without_a_journal_there_is_a_notice(kept: bytes) -> None:
    FILE.unlink()
    assert f"there is no journal {FILE} to resume: starting from the beginning" in run("--resume").output


CHANGES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "one bit": (lambda r: [*r[:2], r[2].replace('"fail"', '"pass"').replace('"seconds": 0', '"seconds": 1'), *r[3:]],
                "line 3"),
    "a line twice": (lambda r: [*r, r[-1]], "line 7"),
    "a line out of nowhere": (lambda r: [*r[:4], "{}", *r[4:]], "line 5"),
    "no header": (lambda r: r[1:], "its first line was changed"),
    "another header": (lambda r: [r[1], *r[1:]], "its first line was changed"),
    "nothing": (lambda r: [], "is not a journal of assay"),
    "a text": (lambda r: ["Dear diary,"], "its first line was changed"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_that_was_changed_is_refused(kept: bytes, change: str) -> None:
    edit, message = CHANGES[change]
    FILE.write_text("".join(f"{row}\n" for row in edit(lines())))
    found = FILE.read_bytes()
    refused(run("--resume"), message)
    assert FILE.read_bytes() == found


def test_another_question_is_refused(kept: bytes) -> None:
    refused(run("--resume", "--seed", "1"), "answers another question (effort changed)")
    Path("mine.py").write_text(MINE + "\n")
    refused(run("--resume"), "answers another question (files changed)")
    assert FILE.read_bytes() == kept


def test_what_is_no_journal_is_never_overwritten() -> None:
    FILE.parent.mkdir()
    FILE.write_text("Dear diary,\n")
    refused(run(), "is not a journal of assay: move it away, or name another with --journal")
    assert FILE.read_text() == "Dear diary,\n"
    assert run("--journal", "mine.jsonl").exit_code == 1
    assert FILE.read_text() == "Dear diary,\n"


def test_a_journal_that_another_run_writes_is_refused(kept: bytes) -> None:
    import fcntl

    with open(FILE, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run("--resume"), "another run is writing")


def test_where_none_can_be_written_the_run_goes_on() -> None:
    Path(".assay").write_text("a file where the folder should be")
    result = run()
    assert result.exit_code == 1
    assert "there is no journal of this run" in result.output
    assert len(told()) > 0
