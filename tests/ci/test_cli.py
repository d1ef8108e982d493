"""The command line, as a user meets it: exit codes, one clear line, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from assay.cli import main


KERNELS = Path(__file__).parent.parent / "kernels.py"

OWN = """
import assay

def rms_norm(x, weight, *, eps):
    xp = assay.array_namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight

RMS_NORM = assay.Operator("rms_norm", rms_norm, inputs=(assay.Tensor("x", "t d"), assay.Tensor("weight", "d")),
                          parameters=(assay.Positive("eps", default=1e-6, low=1e-6, high=1e-2),))

@assay.kernel("rms_norm", dtypes=("float32",))
def mine(x, weight, *, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + FACTOR * eps).sqrt() * weight
"""


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counterexamples are stored in the working directory."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: Any) -> Result:
    """Kernels are called in this process, which is quicker; tests/ci/test_worker.py has those that are not."""
    command, *more = map(str, arguments)
    apart = command not in ("check", "replay", "identify")
    result = CliRunner().invoke(main, [command, *([] if apart else ["--in-process"]), *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def check(function: str, *more: str) -> Result:
    return run("check", f"rope={KERNELS}:{function}", "--dtype", "float32", "--quick", *more)


@pytest.mark.parametrize(
    ("function", "code", "text"),
    [
        ("right", 0, "pass"),
        ("interleaved", 1, "layout='interleaved'"),
        ("base_10001", 1, "as if base were 1000"),
        ("off_by_one", 1, "position off by one"),
        ("bf16_table", 1, "bfloat16-table"),
        ("raises", 1, "RuntimeError: the device is on fire"),
    ],
)
def test_check_says_what_a_kernel_is(function: str, code: int, text: str) -> None:
    result = check(function)
    assert result.exit_code == code
    assert text in " ".join(result.output.split())


def test_a_kernel_that_raises_does_not_stop_the_others() -> None:
    result = run("check", f"rope={KERNELS}:raises", f"rope={KERNELS}:right", "--dtype", "float32", "--quick")
    assert result.exit_code == 1
    assert "error" in result.output
    assert "pass" in result.output


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("rope=no_such_file.py:f", "there is no file no_such_file.py"),
        ("rope=no.such.module:f", "there is no module no.such.module"),
        (f"rope={KERNELS}:nothing", "has no function 'nothing'"),
        (f"rope={KERNELS}:torch", "is not a function"),
        (f"hope={KERNELS}:right", "there is no operator 'hope'; known here: clip_loss, "),
        (f"rope={KERNELS}", "names no function"),
        (f"{KERNELS}:right", "claims no operator"),
        ("rope=impl.rope:rope", "write assay.impl.rope"),
        ("", "names no module"),
    ],
)
def test_what_cannot_be_found_is_one_line(spelling: str, message: str) -> None:
    result = run("check", spelling)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("text", ["import no_such_package", "1 / 0", "raise SystemExit(0)", "def f(:"])
def test_a_module_that_does_not_import_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    result = run("check", f"rope={tmp_path / 'broken.py'}:f")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "float8"), "there is no precision 'float8'"),
        (("--form", "fft"), "rope has no form 'fft'; it has table, reduced, direct"),
        (("--convention", "layout=sideways"), "layout=half|interleaved"),
        (("--dtype", "float7"), "there is no dtype 'float7'"),
        (("--json", "/no/such/folder/x.json"), "there is no folder"),
    ],
)
def test_options_that_mean_nothing_are_one_line(options: tuple[str, ...], message: str) -> None:
    result = run("check", f"rope={KERNELS}:right", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_a_claimed_convention_makes_an_interleaved_kernel_right() -> None:
    assert check("interleaved", "--convention", "layout=interleaved").exit_code == 0


def test_a_claimed_precision_makes_a_bf16_table_right() -> None:
    assert check("bf16_table", "--precision", "bfloat16-table").exit_code == 0


def test_json_carries_everything(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    check("off_by_one", "--json", str(path))
    content: dict[str, Any] = json.loads(path.read_text())
    first = content["results"][0]
    assert (first["property"], first["verdict"]) == ("agrees_with_oracle", "fail")
    assert first["diagnosis"][0]["kind"] == "slip"
    assert "position[1]" in first["case"]
    assert Path(first["counterexample"]).is_file()
    assert {"headroom", "cases", "seconds", "form", "precision"} <= set(first)


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (2, 1)])
def test_a_users_operator_goes_through_the_same_check(tmp_path: Path, factor: int, code: int) -> None:
    (tmp_path / "mine.py").write_text(OWN.replace("FACTOR", str(factor)))
    result = run("check", str(tmp_path / "mine.py"), "--quick")
    assert result.exit_code == code
    assert ("the parameter eps is doubled" in result.output) == (factor == 2)


def test_a_float_literal_in_a_users_definition_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.replace("+ eps)", "+ 0.1)").replace("FACTOR", "1"))
    result = run("check", str(tmp_path / "mine.py"), "--quick")
    assert result.exit_code == 2
    assert "0.1 in a definition" in result.output


def test_list_and_explain() -> None:
    assert "convention layout: half, interleaved" in run("list").output
    assert json.loads(run("list", "--json").output)["operators"][0]["operator"] == "rope"
    explained = run("explain", "rope")
    assert "norm_is_kept" in explained.output
    assert "arXiv:2104.09864" in explained.output
    assert run("explain", "hope").exit_code == 2


def test_an_operator_alone_means_its_known_kernels() -> None:
    result = run("check", "rope", "--dtype", "float64", "--quick", "--examples", "20")
    assert "rope:rope_table" in result.output
    assert "sdpa" not in result.output


def test_identify() -> None:
    result = run("identify", f"rope={KERNELS}:interleaved", "--dtype", "float32", "--quick")
    assert result.exit_code == 0
    assert "layout=interleaved" in result.output
    assert run("identify").exit_code == 2
