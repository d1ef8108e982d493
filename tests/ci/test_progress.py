"""What a person at a terminal sees while assay works, and what a pipe, a shell and somebody who wants quiet get."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from assay.cli import main
from assay.jobs import How, side_by_side
from assay.kernels import Known, resolve
from assay.properties.results import Examination, Verdict
from assay.properties.run import Effort
from tests.ci.test_journal import MINE
from tests.ci.test_markdown import judged
from tests.test_rules import loaded


SLOW = """

@assay.kernel("scaled", backward="none", dtypes=("float32",))
def slow(x, weight):
    import time

    time.sleep(0.02)
    return x * weight
"""
COMMAND = ["check", "mine.py", "--dtype", "float32", "--quick", "--examples", "2", "--in-process", "--jobs", "1"]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# A terminal ----------------------------------------------------------------------------------------------------------


def said(terminal: int) -> Iterator[str]:
    """All that was written to a terminal so far, again and again until the other side closes it."""
    text = b""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                text += os.read(terminal, 1 << 16)
            except OSError:  # closed
                return
        yield re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode(errors="replace"))


def test_a_terminal_sees_what_is_tried_and_ctrl_c_keeps_what_is_done() -> None:
    Path("mine.py").write_text(MINE + SLOW)
    ours, theirs = pty.openpty()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored\n"
        "from assay.cli import main; main()"
    )
    environment = {**os.environ, "COLUMNS": "150", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND, "--json", "out.json"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),  # type: ignore[arg-type]
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown, screen = False, ""
        for screen in said(ours):
            told = re.findall(r"mine\.py:slow float32 .* (\d+)/\? +cases, headroom ([\d.e-]+), (\w+)", screen)
            if told and not shown:
                shown = True
                process.send_signal(signal.SIGINT)
        os.close(ours)
    assert shown
    assert (process.returncode, "Traceback" in screen) == (2, False)
    assert "Error: interrupted after 3 of 4 judgements: --resume goes on with the rest" in screen
    assert {r["kernel"] for r in json.loads(Path("out.json").read_text())["results"]} == {
        f"mine.py:{name}" for name in ("right", "wrong", "raises")
    }


def test_what_is_tried_elsewhere_is_told_too() -> None:
    Path("mine.py").write_text(MINE + SLOW)
    (kernel,) = (k for k in resolve("mine.py") if k.name.endswith("slow"))
    told: list[tuple[int, int, float, str]] = []
    how = How(Effort(examples=2, climb=0, pooled=0, shrink_seconds=0), "cpu", {}, None)
    ((number, found),) = side_by_side([(7, kernel, "float32")], how, 1, lambda *one: told.append(one))
    assert {n for n, *_ in told} == {number} == {7}
    assert [cases for _, cases, _, _ in told][-1] > 1
    assert {what for *_, what in told} <= {r.property for r in found.results}


# A pipe --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is judged: the verdicts are known."""
    verdicts: dict[str, Verdict] = {"right": "pass", "wrong": "fail", "raises": "error"}

    def judge(kernel: Known, dtype: str, *_: Any) -> Examination:
        return judged(kernel.name, dtype, verdicts[kernel.name.partition(":")[2]])[1]

    monkeypatch.setattr("assay.jobs.judge", judge)


@pytest.mark.usefixtures("canned")
def test_a_pipe_gets_one_line_for_each_verdict() -> None:
    result = run(*COMMAND)
    assert "\x1b" not in result.output
    lines = ["mine.py:right float32: pass", "mine.py:wrong float32: fail", "mine.py:raises float32: error"]
    assert result.stderr.splitlines() == lines


@pytest.mark.usefixtures("canned")
def test_quiet_tells_what_is_wrong_and_nothing_else() -> None:
    whole, short = run(*COMMAND), run(*COMMAND, "--quiet")
    assert short.exit_code == whole.exit_code == 1
    assert short.stderr == ""
    assert short.stdout.startswith("\nmine.py:wrong float32\n")
    assert whole.stdout.endswith(short.stdout)
    result = run(COMMAND[0], "scaled=mine.py:right", *COMMAND[2:], "-q")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.usefixtures("canned")
@pytest.mark.parametrize("off", ["NO_COLOR", "TERM"])
def test_colors_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    colors = r"\x1b\[(\d+;)*[349]\d(;\d+)*m"
    assert re.search(colors, run(*COMMAND).stdout)
    monkeypatch.setenv(off, {"NO_COLOR": "1", "TERM": "dumb"}[off])
    assert not re.search(colors, run(*COMMAND).stdout)


# Interrupted ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_anywhere_is_one_line_and_never_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def known_kernels(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("assay.kernels.known_kernels", known_kernels)
    for command in (["list"], ["check"], ["check", "rope"]):
        result = run(*command)
        assert (result.exit_code, result.output) == (2, "Error: interrupted\n")


def test_interrupted_mutants_are_told_as_far_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from assay import mutants

    judge = mutants.judge

    def until(task: mutants.Task, progress: Any = None) -> mutants.Judged:
        if task.dtype == "bfloat16":
            raise KeyboardInterrupt
        return judge(task, progress)

    monkeypatch.setattr(mutants, "judge", until)
    result = run("mutants", "mine.py", "--dtype", "float32,bfloat16", "--jobs", "1")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: interrupted: not judged to the end are scaled bfloat16"
    assert "killed" in result.stdout
    assert not re.search("bfloat16 +killed", result.stdout)


def test_interrupted_identification_is_told_as_far_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.properties import judgement

    identify = judgement.identify

    def until(operator: Any, subject: Any, *rest: Any) -> Any:
        if subject.name.endswith("wrong"):
            raise KeyboardInterrupt
        return identify(operator, subject, *rest)

    monkeypatch.setattr(judgement, "identify", until)
    result = run("identify", *COMMAND[1:-2])
    assert result.exit_code == 2
    first, last = result.stderr.splitlines()
    assert first.startswith("mine.py:right float32: definition, ")
    assert last == "Error: interrupted after 1 of 3"
    assert "mine.py:right" in result.stdout


# A shell -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "begun", "offered"),
    [
        ([], "che", {"check"}),
        (["explain"], "hippo", {"hippo_matrices", "hippo_project"}),
        (["check", "--quick"], "softmax", {"softmax_attention"}),
        (["bench"], "clip", {"clip_loss"}),
        (["mutants"], "siglip", {"siglip_loss"}),
        (["new"], "sel", {"selective_scan"}),
        (["check"], "--mark", {"--markdown"}),
        (["check", "--dtype"], "b", {"bfloat16"}),
        (["check", "--dtype"], "float32,f", {"float32,float16", "float32,float64"}),
    ],
)
def test_a_shell_completes(arguments: list[str], begun: str, offered: set[str]) -> None:
    items = ShellComplete(main, {}, "assay", "_ASSAY_COMPLETE").get_completions(arguments, begun)
    assert {item.value for item in items} == offered


def test_a_shell_completes_files_where_no_operator_begins_so() -> None:
    (item,) = ShellComplete(main, {}, "assay", "_ASSAY_COMPLETE").get_completions(["check"], "mine")
    assert item.type == "file"


def test_completing_loads_nothing_heavy() -> None:
    code = (
        "from click.shell_completion import ShellComplete\nfrom assay.cli import main\n"
        "assert len(ShellComplete(main, {}, 'assay', '_ASSAY_COMPLETE').get_completions(['check'], '')) > 10"
    )
    assert loaded(code).isdisjoint({"torch", "numpy", "hypothesis"})
