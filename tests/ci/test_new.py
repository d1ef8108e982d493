"""Files to start from: what is written is imported, judged as it is, and judged again once the body is there."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from assay.cli import main
from assay.kernels import load, resolve
from assay.new import kernel_file
from assay.properties import OPERATORS


EMPTY = 'raise NotImplementedError("this kernel is still to be written")'


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def check(file: str, *more: str) -> Result:
    return run("check", file, "--quick", "--in-process", "--jobs", "1", *more)


@pytest.mark.parametrize(
    "name", ["rope", "softmax_attention", "selective_scan", "hippo_matrices", "random_projection", "s4d_kernel"]
)
def test_a_new_kernel_is_not_judged_before_it_has_a_body(name: str) -> None:
    written = run("new", name)
    assert written.exit_code == 0
    assert f"assay check my_{name}.py --quick" in written.output
    result = check(f"my_{name}.py")
    assert result.exit_code == 1
    assert f"my_{name}.py:{name} float32: not judged: this kernel is still to be written" in result.output
    assert "error" not in result.output


@pytest.mark.parametrize("name", OPERATORS)
def test_a_new_kernel_has_the_arguments_of_its_operator(name: str) -> None:
    path = Path(f"my_{name}.py")
    path.write_text(kernel_file(name, path), encoding="utf-8")
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120
    (kernel,) = resolve(str(path))
    assert kernel.operator is OPERATORS[name]
    assert kernel.function is not None
    wanted = inspect.signature(OPERATORS[name].definition).parameters
    found = inspect.signature(kernel.function).parameters
    assert [(p.name, p.kind, p.default) for p in found.values()] == [
        (p.name, p.kind, p.default) for p in wanted.values() if p.name != "xp"
    ]


def test_with_a_body_it_is_judged() -> None:
    run("new", "unnormalized_attention", "--file", "here.py")
    path = Path("here.py")
    body = (
        "from assay.impl.linear_attention import unnormalized_attention as ours\n    return ours(q, k, v, order=order)"
    )
    path.write_text(path.read_text().replace(EMPTY, body))
    result = check("here.py", "--dtype", "float32", "--examples", "20")
    assert result.exit_code == 0, result.output
    assert "here.py:unnormalized_attention  float32  pass" in result.output


def test_what_a_comment_offers_can_be_claimed() -> None:
    run("new", "rope")
    text = Path("my_rope.py").read_text()
    for claim in ("form=", "conventions=", "backward=", "requires="):
        assert text.count(f"    # {claim}") == 1
        text = text.replace(f"    # {claim}", f"    {claim}")
    Path("claims.py").write_text(text)
    (kernel,) = resolve("claims.py")
    assert kernel.claims.form in kernel.operator.texts
    assert kernel.claims.conventions == {"layout": "half"}
    assert kernel.claims.backward == "none"


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (2, 1)])
def test_an_operator_of_ones_own_is_judged_once_the_kernel_has_a_body(factor: int, code: int) -> None:
    assert run("new", "--operator", "MY_FILE_NAME").exit_code == 0
    path = Path("my_MY_FILE_NAME.py")
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 120
    empty = check(str(path), "--dtype", "float32")
    assert empty.exit_code == 1
    assert f"{path}:kernel float32: not judged: this kernel is still to be written" in empty.output
    body = f"return x / (x.square().mean(-1, keepdim=True) + {factor} * eps).sqrt() * weight"
    Path("own.py").write_text(text.replace(EMPTY, body))
    result = check("own.py", "--dtype", "float32", "--examples", "20")
    assert result.exit_code == code, result.output
    assert ("the parameter eps is doubled" in result.output) == (factor == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an operator, assay new OPERATOR"),
        (("rope", "--operator", "mine"), "name an operator, assay new OPERATOR"),
        (("hope",), "there is no operator 'hope'; known here: clip_loss, "),
        (("--operator", "rope"), "assay knows rope already: assay new rope"),
        (("--operator", "rms-norm"), "'rms-norm' cannot be the name of an operator"),
        (("--operator", "class"), "'class' cannot be the name of an operator"),
        (("--operator", "assay"), "'assay' cannot be the name of an operator"),
        (("rope", "--file", "rope.txt"), "must end with .py"),
        (("rope", "--file", "a\nb.py"), "must end with .py"),
        (("rope", "--file", "there.py"), "there.py exists already: name another with --file"),
        (("--operator", "mine", "--file", "there.py"), "there.py exists already"),
        (("rope", "--file", "no/such/folder/rope.py"), "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    Path("there.py").write_text("mine")
    result = run("new", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert Path("there.py").read_text() == "mine"
    assert [p.name for p in Path().iterdir()] == ["there.py"]


def test_a_file_with_a_strange_name_is_a_file_still() -> None:
    name = 'it\'s a """ kernel\\.py'
    assert run("new", "rope", "--file", name).exit_code == 0
    assert load(name).rope.__name__ == "rope"
