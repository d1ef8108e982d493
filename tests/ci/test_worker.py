"""Kernels in a process of their own: the same answers, and whatever they do is told in one line."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from assay import process, remote
from assay.buffers import Arena, Misfit
from assay.cli import main
from assay.kernels import UsageError, resolve
from assay.messages import LONGEST, LONGEST_REPLY, asked, framed, question, replied, reply, unframed
from assay.process import MARK, Limits
from assay.properties.trial import Answer, GivenUp, KernelError, NotCovered, Subject
from assay.questions import SHARED, Passed, Question, Reply
from tests import hostile
from tests.kernels import RIGHT, right


ROOT = Path(__file__).parent.parent.parent
FILE = Path(hostile.__file__)
LIMITS = Limits(call=2.0, memory=2 << 30)
CASE = {
    "x": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) / 7,
    "position": np.arange(3),
    "base": 1e4,
    "attention_factor": 1.0,
}


@pytest.fixture(autouse=True, scope="module")
def _the_tests_can_be_imported() -> Iterator[None]:
    """By the workers, which have the paths of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield
    process.end_all()
    assert not left_behind()


def left_behind() -> list[psutil.Process]:
    """Processes that were started from here, however far they have gone."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get(MARK, "").startswith(f"{os.getpid()}-") and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:
            continue
    return found


def apart(place: str, limits: Limits = LIMITS) -> Subject:
    (known,) = resolve(f"rope={place}", limits)
    assert known.function is None or place.startswith("assay.")
    return known.subject(limits=limits)


def both(place: str) -> tuple[Subject, Subject]:
    return apart(place), resolve(f"rope={place}")[0].subject()


def same(one: Answer, other: Answer) -> bool:
    def bits(answer: Answer) -> Any:
        arrays = {**dict(enumerate(answer.outputs)), **answer.gradients}
        return {n: (v.dtype, v.shape, v.tobytes()) for n, v in arrays.items()}

    return bits(one) == bits(other) and (one.touched, one.aliased) == (other.touched, other.aliased)


OWN = """
import assay, torch
from assay.impl.kernel import kernel

def backward(cotangent, x, position, *, base=10000.0, sections=None):
    return cotangent * base

@kernel("rope", form="table", backward=backward, dtypes=("float32", "bfloat16"), conventions={"layout": "half"})
def echo(x, position, *, base=10000.0, sections=None):
    if sections == "refuse":
        raise NotImplementedError("not these sections")
    if x.shape[-1] == 2:
        x.detach().add_(1)
    assert sections is None or type(sections) is tuple
    return (x.detach() * base).to(x.dtype) + (0 if sections is None else sum(sections))

@kernel("rope", backward="none")
def bare(x, position): return x
"""


def test_the_answers_are_those_of_a_call_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    worker, here = both(f"{path}:echo")
    assert (worker.form, worker.precision, worker.differentiable) == ("table", None, True)
    assert worker.supports("sections")
    assert not worker.supports("layout")
    wide = np.zeros((1, 2, 3, 9), np.float32)
    wide[..., 1::2] = CASE["x"]
    for x in (CASE["x"], CASE["x"].astype(ml_dtypes.bfloat16), wide[..., 1::2], CASE["x"][..., :2], CASE["x"][:, :0]):
        for more in ({}, {"sections": (1, 2)}, {"base": float("inf")}, {"base": -0.0}):
            arguments: dict[str, Any] = {**CASE, "x": x, **more}
            for cotangents in (None, [np.ones_like(x)]):
                by = ("x",) if cotangents else ()
                one, other = worker(arguments, cotangents, by), here(arguments, cotangents, by)
                assert same(one, other)
                assert ("x" in one.touched) == (x.shape[-1] == 2)
                assert set(one.gradients) == set(by)
    with pytest.raises(NotCovered, match="not these sections"):
        worker({**CASE, "sections": "refuse"}, None, ())
    with pytest.raises(TypeError, match="an argument of type object"):
        worker({**CASE, "sections": object()}, None, ())
    assert [(k.name.rpartition(":")[2], k.claims.backward) for k in resolve(str(path), LIMITS)][1] == ("bare", "none")


def test_a_worker_loads_no_oracle_and_inherits_nothing() -> None:
    with pytest.raises(KernelError) as told:
        apart(f"{FILE}:what_is_loaded")(CASE, None, ())
    loaded = set(str(told.value).split())
    assert "assay.call" in loaded
    assert not [m for m in loaded if m.startswith(("assay.reference", "assay.properties", "hypothesis"))]
    with pytest.raises(KernelError) as told:
        apart(f"{FILE}:what_is_open")(CASE, None, ())
    descriptors, _, rest = str(told.value).removeprefix("RuntimeError: ").partition("] ")
    # The three standard ones, the channel, the memory twice (it is mapped through a copy), and the folder being read.
    assert len(descriptors.split()) == 7
    assert rest == "True 1"


@pytest.mark.parametrize("kernel", hostile.ERRORS, ids=lambda k: k.__name__)
def test_whatever_it_does_is_told_in_one_line(kernel: hostile.Kernel) -> None:
    """Also a kernel that was not called before waits three times as long as the limit at most."""
    subject = apart(f"{FILE}:{kernel.__name__}")
    started = time.monotonic()
    with pytest.raises(KernelError) as told:
        subject(CASE, None, ())
    assert hostile.ERRORS[kernel] in str(told.value)
    assert "\n" not in str(told.value)
    assert time.monotonic() - started < 60
    process.end_all()
    assert not left_behind()


def test_a_fork_that_answers_too_is_found_out() -> None:
    subject = apart(f"{FILE}:returns_twice")

    def calls() -> None:
        for _ in range(3):
            subject(CASE, None, ())

    with pytest.raises(KernelError, match="it answers what was not asked"):
        calls()


def test_a_flood_of_output_harms_nobody() -> None:
    worker, here = apart(f"{FILE}:flood"), resolve(f"rope={FILE}:right")[0].subject()
    assert same(worker(CASE, None, ()), here(CASE, None, ()))
    assert same(worker(CASE, None, ()), here(CASE, None, ()))


def test_after_some_crashes_it_is_not_called_again() -> None:
    subject = apart(f"{FILE}:exits")
    for _ in range(remote.CRASHES):
        with pytest.raises(KernelError) as told:
            subject(CASE, None, ())
        assert not isinstance(told.value, GivenUp)
    with pytest.raises(GivenUp, match="not called again, since the process exited"):
        subject(CASE, None, ())


def test_after_an_overrun_it_is_not_called_again_at_once() -> None:
    subject = apart(f"{FILE}:sleeps", Limits(call=0.3))
    with pytest.raises(KernelError, match=r"the call took longer than 0\.9"):
        subject(CASE, None, ())
    told = r"since the call took longer than 0\.9 s, given x\[1, 2, 3, 4\] float32, position\[3\] int64"
    with pytest.raises(GivenUp, match=f"not called again, {told}"):
        subject(CASE, None, ())


def test_all_calls_together_are_limited() -> None:
    subject = apart(f"{FILE}:right", Limits(kernel=1e-9))
    subject(CASE, None, ())
    with pytest.raises(GivenUp, match="its calls took longer than"):
        subject(CASE, None, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os._exit(3)", "the process exited with code 3 while it was imported"),
        ("import ctypes; ctypes.string_at(0)", "the process was ended by signal SIGSEGV while it was imported"),
        ("raise SystemExit", "SystemExit"),
        ("import assay; f = assay.kernel('rope', form=[1])(lambda x: x); f.__module__ = __name__", "a description has"),
        ("class C:\n  def __call__(self, x): return x\n  __signature__ = 3\nf = C()", "cannot be seen"),
        ("f = print", "has no operator"),
    ],
)
def test_a_module_that_cannot_be_looked_at_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    try:
        resolve(f"rope={tmp_path / 'own.py'}:f", LIMITS)
    except UsageError as error:
        told = str(error)
    else:
        told = "has no operator"
    assert message in told
    assert "\n" not in told


def test_a_module_that_loads_a_thousand_files_is_described(tmp_path: Path) -> None:
    """Which is what an installation from source, or a large repository, amounts to. What is installed is not told."""
    folder, there = tmp_path / ("f" * 200), tmp_path / "site-packages"
    folder.mkdir()
    there.mkdir()
    (there / "assay_installed_elsewhere.py").touch()
    (tmp_path / "own.py").write_text(f"""
import importlib.util, sys
def f(x, position, *, base=1e4): return x
sys.path.append({str(there)!r})
import assay_installed_elsewhere
for n in range(1000):
    name = f"loaded_{{n}}"
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{{name}}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
""")
    (kernel,) = resolve(f"rope={tmp_path / 'own.py'}:f", LIMITS)
    assert sum(map(len, kernel.files)) > LONGEST
    told = {Path(file).name for file in kernel.files}
    assert told >= {"own.py", "loaded_0.py", "loaded_999.py"}
    assert "assay_installed_elsewhere.py" not in told


SLEEPER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
from tests.ci.test_worker import CASE, FILE, Limits, apart
subject = apart(f"{FILE}:sleeps", Limits(call=1000.0))
print("ready", flush=True)
subject(CASE, None, ())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_judge(number: signal.Signals) -> None:
    judge = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert judge.stdout is not None
    with judge.stdout:
        assert judge.stdout.readline() == "ready\n"
    (worker,) = psutil.Process(judge.pid).children()
    time.sleep(0.3)
    judge.send_signal(number)
    try:
        judge.wait(30)
    finally:
        judge.kill()
    gone, alive = psutil.wait_procs([worker], 30)
    assert (len(gone), alive) == (1, [])


# Messages -------------------------------------------------------------------------------------------------------------

ARENA = Arena()
ASKED = Question({"x": 1.0}, {"base": (1, float("inf"), None, "a")}, None, ("x",), (0, 1 << 20), "vmap")
GOOD: dict[str, Any] = {
    "outputs": [[0, "float32", [2, 3]]],
    "gradients": {"x": [8192, "float32", [2]]},
    "aliased": ["x"],
}


def test_a_question_arrives_as_it_was_asked() -> None:
    where = reply(GOOD, ASKED, ARENA).outputs[0].where
    whole = Question({"x": Passed(where, 64)}, dict(ASKED.named), [Passed(where, 128)], ["x"], (0, 1), "")
    received = bytearray(framed(asked(whole)) * 2)
    for _ in range(2):
        content = unframed(received)
        assert content is not None
        assert question(content) == whole
    assert unframed(received) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": None},
        {"outputs": {}},
        {"outputs": [[0, "float32", [2]]] * 65},
        {"outputs": [[0, "float32"]]},
        {"outputs": [["0", "float32", [2]]]},
        {"outputs": [[True, "float32", [2]]]},
        {"outputs": [[0, 5, [2]]]},
        {"outputs": [[0, "float7", [2]]]},
        {"outputs": [[0, "float32", "22"]]},
        {"outputs": [[0, "float32", [-2]]]},
        {"outputs": [[0, "float32", [2.0]]]},
        {"outputs": [[0, "float32", [1 << 60]]]},
        {"outputs": [[-1, "float32", [2]]]},
        {"outputs": [[1 << 20, "float32", [2]]]},
        {"gradients": []},
        {"gradients": {"y": [0, "float32", [2]]}},
        {"gradients": {"x": None}},
        {"aliased": "x"},
        {"raised": 3},
        {"refused": ["x"]},
    ],
)
def test_a_reply_that_does_not_fit_is_refused(changes: Mapping[str, Any]) -> None:
    assert reply(GOOD, ASKED, ARENA).aliased == ["x"]
    with pytest.raises(Misfit):
        reply({**GOOD, **changes}, ASKED, ARENA)


def test_in_whose_memory_outputs_lie_arrives() -> None:
    given = Reply(aliased=["x", *SHARED], drew=True)
    found = reply(replied(given), ASKED, ARENA)
    assert (found.aliased, found.drew) == (given.aliased, True)


def test_what_a_reply_says_is_bounded() -> None:
    told = reply({**GOOD, "raised": "a\n\x1b" + "b" * 10_000, "aliased": ["x", "y", 3]}, ASKED, ARENA)
    assert told.raised is not None
    assert told.raised.isprintable()
    assert len(told.raised) == 300
    assert told.aliased == ["x"]


@pytest.mark.parametrize("text", [b"[]", b"3", b"{", b"\xff", b"[" * 60_000, b"1" * 60_000])
def test_a_message_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(Misfit):
        unframed(bytearray(len(text).to_bytes(4, "little") + text))


def test_messages_are_bounded() -> None:
    with pytest.raises(Misfit, match="too long"):
        unframed(bytearray(b"\xff" * 8))
    with pytest.raises(ValueError, match="is longer than"):
        framed({"a": "x" * LONGEST})
    with pytest.raises(ValueError, match="is longer than"):
        framed({"a": "x" * LONGEST_REPLY}, LONGEST_REPLY)


# Whole runs -----------------------------------------------------------------------------------------------------------


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", *arguments, "--dtype", "float32", "--quick"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def verdicts(output: str) -> dict[str, str]:
    rows = (line.split() for line in output.splitlines())
    return {row[0].rpartition(":")[2]: row[2] for row in rows if len(row) > 2 and row[1] == "float32"}


def test_a_crash_costs_one_kernel_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("exits", "patches", "right")
    code, output = check(*(f"rope={FILE}:{name}" for name in names), "--jobs", "2")
    assert code == 1
    assert verdicts(output) == {"exits": "error", "patches": "fail", "right": "pass"}
    assert "the process exited with code 0 in this call" in output
    file = next(Path(".assay/counterexamples").glob("rope-exits-*.json"))
    result = CliRunner().invoke(main, ["replay", str(file)])
    assert (result.exit_code, "still fails: the process exited" in result.output) == (1, True)


@pytest.mark.nightly
def test_twenty_hostile_kernels_among_twenty_right_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is complete, the hostile ones do not pass, and the right ones do."""
    monkeypatch.chdir(tmp_path)
    assert len(hostile.HOSTILE) == 20
    wrong = [f"rope={FILE}:{k.__name__}" for k in hostile.HOSTILE]
    fine = []
    for number in range(20):
        path = tmp_path / f"right{number}.py"
        path.write_text(f"from tests.kernels import {RIGHT[number % len(RIGHT)].__name__} as right{number}\n")
        fine.append(f"rope={path}:right{number}")
    mixed = [one for pair in zip(wrong, fine, strict=True) for one in pair]
    code, output = check(*mixed, "--timeout", "5", "--json", "out.json")
    found = verdicts(output)
    assert code == 1
    assert len(found) == 40
    assert {found[f"right{number}"] for number in range(20)} == {"pass"}
    for kernel in hostile.HOSTILE:
        assert found[kernel.__name__] == ("fail" if kernel in (hostile.patches, hostile.zeros) else "error")
    assert not left_behind()


def overhead() -> tuple[float, float]:
    """Milliseconds of a call in this process and in a worker, medians, for a tensor of 480 numbers."""
    assert right.__name__ == "right"
    worker, here = both(f"{FILE.with_name('kernels.py')}:right")
    case = {**CASE, "x": np.random.default_rng(0).standard_normal((2, 3, 5, 16)).astype(np.float32)}
    case["position"] = np.arange(5)
    taken: dict[Subject, list[float]] = {worker: [], here: []}
    for _ in range(1000):
        for subject, times in taken.items():
            started = time.perf_counter()
            subject(case, None, ())
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(taken[here]), 1e3 * statistics.median(taken[worker])


@pytest.mark.nightly
def test_a_call_in_a_worker_takes_less_than_a_millisecond_more(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = overhead()
    with capsys.disabled():
        print(f"\na call takes {here:.3f} ms in this process, {there:.3f} ms in a worker")
    assert there - here < 1
