"""`assay replay`, as a user meets it: stored by a failure, run again from anywhere, and refused in one line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from assay.cli import main
from assay.kernels import UsageError, importable, resolve
from assay.properties import OPERATORS
from assay.properties.counterexample import Counterexample
from assay.properties.drawing import Case
from assay.replay import read, spelled, store
from tests.ci.test_cli import OWN
from tests.ci.test_plugin import pytest_in


ROPE = """
import torch

def rope(x, position, *, base=10000.0):
    if x.shape[-1] % 2 or not x.is_floating_point():
        raise ValueError("x must have an even number of floating-point channels")
    theta = base ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    angle = (position[:, None] + {offset}) * theta
    cos, sin = angle.cos(), angle.sin()
    a, b = x.double().chunk(2, dim=-1)
    {raises}
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
"""
WRONG = ROPE.format(offset="1", raises="")
FIXED = ROPE.format(offset="0.0", raises="")
RAISES = ROPE.format(offset="0.00", raises="raise RuntimeError('the device\\nis on fire')")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's, in which everything is run."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("mine", None)


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def failing(text: str = WRONG, spelling: str = "rope=mine.py:rope", *more: str) -> tuple[Path, Result]:
    """Judge a wrong kernel; the file of its first counterexample."""
    Path("mine.py").write_text(text)
    result = run("check", spelling, "--quick", "--jobs", "1", "--json", "out.json", *more)
    assert result.exit_code == 1
    first = next(r for r in json.loads(Path("out.json").read_text())["results"] if r["counterexample"])
    return Path(first["counterexample"]), result


def test_a_failure_is_stored_and_its_text_ends_in_the_command() -> None:
    path, result = failing(WRONG, "rope=mine.py:rope", "--dtype", "float32")
    assert path.parent == Path(".assay/counterexamples")
    assert path.name.startswith("rope-rope-agrees_with_oracle-float32-")
    assert result.output.rstrip().splitlines()[-1] == f"  replay: assay replay {path}"
    again = run("replay", path)
    assert again.exit_code == 1
    assert "still fails: output[0, 0, 0, 0] is" in again.output
    stored = read(path)
    assert stored.miss is not None
    assert (stored.miss.what, stored.miss.index) == ("output", (0, 0, 0, 0))
    assert stored.diagnosis[0].name == "position_off_by_one"
    assert {"assay", "python", "numpy", "torch"} <= set(stored.versions)


def test_nothing_is_written_when_all_passes() -> None:
    Path("mine.py").write_text(FIXED)
    assert run("check", "rope=mine.py:rope", "--quick", "--dtype", "float32", "--jobs", "1").exit_code == 0
    assert [p.name for p in Path(".assay").iterdir()] == ["journal.jsonl"]


def test_no_path_of_the_machine_is_stored(project: Path) -> None:
    path, _ = failing(WRONG, f"rope={project / 'mine.py'}:rope", "--dtype", "float32")
    content = json.loads(path.read_text())
    assert (content["kernel"], content["folder"]) == ("rope=mine.py:rope", "../..")
    assert str(project) not in path.read_text()


def test_it_replays_from_another_folder_and_after_the_project_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = failing(WRONG, "rope=mine.py:rope", "--dtype", "float32")
    monkeypatch.chdir(tmp_path)
    assert run("replay", Path("project", path)).exit_code == 1
    shutil.move("project", "moved")
    assert run("replay", Path("moved", path)).exit_code == 1


def test_a_dotted_module_replays_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    path, _ = failing(WRONG, "rope=mine:rope", "--dtype", "float32")
    assert json.loads(path.read_text())["folder"] == "../.."
    sys.path.remove(str(Path.cwd()))
    sys.modules.pop("mine", None)
    monkeypatch.chdir(tmp_path)
    assert run("replay", Path("project", path)).exit_code == 1


def test_an_installed_kernel_needs_no_folder() -> None:
    spelling = "rope=assay.impl.rope:rope"
    (known,) = resolve(spelling)
    assert spelled(known, Path("kept")) == (spelling, None)
    assert run("replay", store(example(ARGUMENTS, kernel=spelling, folder=None), Path("kept"))).exit_code == 0


def test_a_kernel_that_was_mended_passes_and_one_that_raises_still_fails() -> None:
    path, _ = failing(WRONG, "rope=mine.py:rope", "--dtype", "float32")
    Path("mine.py").write_text(FIXED)
    result = run("replay", path)
    assert result.exit_code == 0
    assert "passes now" in result.output
    Path("mine.py").write_text(RAISES)
    result = run("replay", path)
    assert result.exit_code == 1
    assert "still fails: RuntimeError: the device is on fire" in result.output


def test_a_kernel_that_raises_replays() -> None:
    path, _ = failing(RAISES, "rope=mine.py:rope", "--dtype", "float32")
    assert read(path).verdict == "error"
    assert "still fails: RuntimeError: the device is on fire" in run("replay", path).output


def test_another_kernel_runs_on_the_same_case() -> None:
    path, _ = failing(WRONG, "rope=mine.py:rope", "--dtype", "float32")
    Path("other.py").write_text(FIXED)
    assert run("replay", path, "--kernel", "rope=other.py:rope").exit_code == 0
    refused(run("replay", path, "--kernel", "rope=nowhere.py:rope"), "there is no file nowhere.py")


def test_a_users_operator_replays() -> None:
    path, _ = failing(OWN.replace("FACTOR", "2"), "mine.py")
    assert run("replay", path).exit_code == 1
    Path("mine.py").write_text(OWN.replace("FACTOR", "1.0"))
    assert run("replay", path).exit_code == 0
    Path("mine.py").write_text(OWN.replace("FACTOR", "1.00").replace('"rms_norm"', '"other_norm"'))
    refused(run("replay", path), "there is no operator 'rms_norm'")


def test_claims_are_kept() -> None:
    """The same kernel on the same case passes under another claim: what was claimed is stored."""
    text = (
        WRONG.replace("+ 1)", "+ 0)")
        .replace("(cos, sin)", "")
        .replace("angle.cos(), angle.sin()", "angle.cos().bfloat16().double(), angle.sin().bfloat16().double()")
    )
    path, _ = failing(text, "rope=mine.py:rope", "--dtype", "float32")
    assert run("replay", path).exit_code == 1
    counterexample = read(path)
    assert counterexample.precision is None
    weaker = store(with_changes(counterexample, precision="bfloat16-table"), path.parent)
    assert run("replay", weaker).exit_code == 0


def with_changes(counterexample: Counterexample, **changes: Any) -> Counterexample:
    return replace(counterexample, **changes)


# Files that are refused ------------------------------------------------------------------------------------------


@pytest.fixture
def stored() -> Path:
    Path("mine.py").write_text(WRONG)
    arguments = {"x": np.ones((1, 1, 2, 4), np.float32), "position": np.arange(2), "base": 1e4, "attention_factor": 1.0}
    return store(example(arguments), Path("kept"))


def example(arguments: dict[str, Any], **changes: Any) -> Counterexample:
    made = Counterexample(
        operator="rope",
        kernel="rope=mine.py:rope",
        folder="..",
        property="agrees_with_oracle",
        case=Case("float32", arguments, "ordinary", 0, {"x": "contiguous"}),
        form=None,
        precision=None,
        conventions={},
        device="cpu",
        verdict="fail",
        message="",
    )
    return with_changes(made, **changes)


def test_it_replays_before_anything_is_broken(stored: Path) -> None:
    assert run("replay", stored).exit_code == 1


def test_a_file_that_is_not_there(stored: Path) -> None:
    refused(run("replay", "nothing.json"), "nothing.json cannot be read: No such file or directory")
    refused(run("replay", "kept"), "cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_json(stored: Path, share: float) -> None:
    content = stored.read_bytes()
    stored.write_bytes(content[: int(len(content) * share)])
    refused(run("replay", stored), "is not JSON, or not all of it")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b"[]"])
def test_foreign_files(stored: Path, content: bytes) -> None:
    stored.write_bytes(content)
    refused(run("replay", stored), "not")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 99, "a newer assay wrote it"),
        ("arrays", "../x.npz", "'arrays' must name a file in the same folder"),
        ("arrays", 3, "'arrays' must name a file in the same folder"),
        ("dtype", "float8", "there is no dtype 'float8'"),
        ("seed", 5, "its digest does not fit its content"),
    ],
)
def test_json_that_was_changed(stored: Path, key: str, value: Any, message: str) -> None:
    stored.write_text(json.dumps({**json.loads(stored.read_text()), key: value}))
    refused(run("replay", stored), message)


def archive(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


class Trap:
    """What must never be unpickled."""

    def __reduce__(self) -> Any:
        return Path("sprung").touch, ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "it is not an archive of arrays"),
        (b"garbage", "it is not an archive of arrays"),
        (archive(x=np.ones((1, 1, 2, 4), np.float32))[:200], "it is not an archive of arrays"),
        (archive(x=np.array([Trap()], dtype=object), position=np.arange(2)), "it holds Python objects"),
        (archive(x=np.ones((1, 1, 2, 4), np.float32)), "the array 'position' is missing"),
        (archive(x=np.ones((8,), np.float32), position=np.arange(2)), "the array 'x' has shape [8]"),
        (archive(x=np.ones((1, 1, 2, 4)), position=np.arange(2)), "must be stored as float32, not float64"),
        (archive(x=np.zeros((1, 1, 2, 4), np.float32), position=np.arange(2)), "digest"),
    ],
)
def test_arrays_that_are_not_those_that_were_written(stored: Path, content: bytes | None, message: str) -> None:
    arrays = stored.with_suffix(".npz")
    if content is None:
        arrays.unlink()
    else:
        arrays.write_bytes(content)
    refused(run("replay", stored), message)
    assert not Path("sprung").exists()


def test_a_flipped_bit_in_the_arrays(stored: Path) -> None:
    arrays = stored.with_suffix(".npz")
    content = bytearray(arrays.read_bytes())
    content[content.index(np.ones(4, np.float32).tobytes())] ^= 1
    arrays.write_bytes(content)
    refused(run("replay", stored), "it is not an archive of arrays, or not a whole one")


def test_an_npy_file_in_place_of_the_archive(stored: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.ones(3))
    stored.with_suffix(".npz").write_bytes(out.getvalue())
    refused(run("replay", stored), "it is not an archive of arrays")


def test_a_kernel_file_that_is_gone(stored: Path) -> None:
    Path("mine.py").unlink()
    refused(run("replay", stored), "there is no file mine.py")


ARGUMENTS = {"x": np.ones((1, 1, 2, 4), np.float32), "position": np.arange(2), "base": 1e4, "attention_factor": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "hope", "kernel": "hope=mine.py:rope"}, "there is no operator 'hope'"),
        ({"operator": "hope"}, "is about hope, not rope"),
        ({"kernel": "rope=mine.py:nothing"}, "has no function 'nothing'"),
        ({"kernel": "rope=no_such_module:f", "folder": None}, "there is no module no_such_module"),
        ({"kernel": "", "folder": None}, "add --kernel OPERATOR=MODULE:FUNCTION"),
        ({"property": "tastes_good"}, "rope has no property 'tastes_good'"),
        ({"form": "fft"}, "rope has no form 'fft'; it has table, reduced, direct"),
        ({"precision": "float7"}, "there is no precision 'float7'"),
        ({"device": "nowhere"}, "there is no device 'nowhere' here"),
        ({"arguments": {"x": ARGUMENTS["x"]}}, "the case has no position, which rope takes"),
        ({"arguments": {**ARGUMENTS, "tempo": 2}}, "rope takes no tempo, which the case has"),
        ({"arguments": {**ARGUMENTS, "layout": "sideways"}}, "cannot be evaluated on this case"),
        ({"arguments": {**ARGUMENTS, "position": np.arange(3)}}, "cannot be evaluated on this case"),
        ({"property": "unrotated_channels_pass"}, "the case is outside the domain of unrotated_channels_pass"),
    ],
)
def test_questions_that_cannot_be_asked(changes: dict[str, Any], message: str) -> None:
    Path("mine.py").write_text(WRONG)
    arguments = changes.pop("arguments", ARGUMENTS)
    refused(run("replay", store(example(arguments, **changes), Path("kept"))), message)


# Writing ---------------------------------------------------------------------------------------------------------


def test_the_same_failure_has_the_same_files() -> None:
    one = store(example(ARGUMENTS), Path("kept"))
    before = one.read_bytes(), one.with_suffix(".npz").read_bytes()
    assert store(example(ARGUMENTS), Path("kept")) == one
    assert (one.read_bytes(), one.with_suffix(".npz").read_bytes()) == before
    assert store(example({**ARGUMENTS, "base": 5.0}), Path("kept")) != one


def test_a_file_of_ours_that_was_damaged_is_written_anew() -> None:
    path = store(example(ARGUMENTS), Path("kept"))
    path.with_suffix(".npz").write_bytes(b"damaged")
    store(example(ARGUMENTS), Path("kept"))
    assert read(path).operator == "rope"


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_file_of_others_is_never_overwritten(suffix: str) -> None:
    path = store(example(ARGUMENTS), Path("kept"))
    for file in (path, path.with_suffix(".npz")):
        file.unlink()
    foreign = path.with_suffix(suffix)
    foreign.write_text('{"mine": true}')
    with pytest.raises(FileExistsError, match="is not a counterexample of assay"):
        store(example(ARGUMENTS), Path("kept"))
    assert [f.name for f in Path("kept").iterdir()] == [foreign.name]
    assert foreign.read_text() == '{"mine": true}'


def test_arrays_without_their_json_are_those_of_a_run_that_was_stopped() -> None:
    path = store(example(ARGUMENTS), Path("kept"))
    path.unlink()
    assert store(example(ARGUMENTS), Path("kept")) == path


def test_many_writers_at_once_leave_whole_files() -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(store, example(ARGUMENTS, message=str(i)), Path("kept")) for i in range(64)]
        for future in futures:
            assert read(future.result()).operator == "rope"
    assert len(list(Path("kept").iterdir())) == 2


def test_a_folder_of_ones_own() -> None:
    path, _ = failing(WRONG, "rope=mine.py:rope", "--dtype", "float32", "--counterexamples", "kept/here")
    assert path.parent == Path("kept/here")
    assert run("replay", path).exit_code == 1


def test_a_folder_that_cannot_be_written_changes_no_verdict() -> None:
    Path("mine.py").write_text(WRONG)
    Path("file").write_text("")
    options = ("--quick", "--dtype", "float32", "--jobs", "1", "--counterexamples")
    refused_early = run("check", "rope=mine.py:rope", *options, "file")
    assert refused_early.exit_code == 2
    result = run("check", "rope=mine.py:rope", *options, "file/inside")
    assert result.exit_code == 1
    assert "the counterexample could not be stored" in result.output
    assert "position off by one" in result.output


# pytest ----------------------------------------------------------------------------------------------------------

FILE = """
import assay
from mine import rope
test_rope = assay.conformance("rope", rope, dtypes=["float32"], examples=40)
test_nameless = assay.conformance("rope", lambda x, position: x, dtypes=["float32"], examples=40)
"""


def test_pytest_stores_and_tells(project: Path) -> None:
    Path("mine.py").write_text(WRONG)
    Path("test_mine.py").write_text(FILE)
    out = pytest_in(project, "test_mine.py", "-k", "agrees").stdout
    path = next(Path(".assay/counterexamples").glob("rope-rope-*.json"))
    assert f"replay: assay replay {path}\n" in out
    assert run("replay", path).exit_code == 1
    nameless = next(Path(".assay/counterexamples").glob("rope-kernel-*.json"))
    assert f"replay: assay replay {nameless} --kernel OPERATOR=MODULE:FUNCTION\n" in out
    refused(run("replay", nameless), "has no name by which it can be imported")
    assert run("replay", nameless, "--kernel", "rope=mine.py:rope").exit_code == 1


def test_pytest_stores_where_its_ini_file_says(project: Path) -> None:
    Path("mine.py").write_text(WRONG)
    Path("pytest.ini").write_text("[pytest]\nassay_counterexamples = kept\n")
    out = pytest_in(project, "-c", "pytest.ini", "--assay", "rope=mine.py:rope").stdout
    path = next(Path("kept").glob("rope-rope-agrees*.json"))
    assert f"replay: assay replay {project / path}" in out
    assert json.loads(path.read_text())["folder"] == ".."
    assert run("replay", path).exit_code == 1


def test_an_expected_failure_is_not_stored(project: Path) -> None:
    Path("mine.py").write_text(WRONG)
    xfail = 'examples=40, xfail={("agrees_with_oracle", "float32"): "known"})'
    Path("test_mine.py").write_text(FILE.replace("examples=40)", xfail))
    out = pytest_in(project, "test_mine.py", "-k", "agrees").stdout
    assert "2 xfailed" in out
    assert not Path(".assay").exists()


def test_names_by_which_functions_are_found() -> None:
    from assay.impl import rope

    assert importable(rope.rope, OPERATORS["rope"]) == "assay.impl.rope:rope"
    assert importable(lambda x, position: x, OPERATORS["rope"]) == ""
    assert importable(example, OPERATORS["rope"]) == "tests.ci.test_replay:example"


def test_reading_raises_nothing_else(stored: Path) -> None:
    with pytest.raises(UsageError):
        read(Path("no", "such", "file"))
