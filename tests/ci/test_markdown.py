"""The summary for a job's page: what stands where, that nothing in it is read as Markdown or HTML, and its length."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from assay import markdown
from assay.cli import check, main
from assay.expected import Expectations, read
from assay.failures import Judged
from assay.impl.kernel import Claims
from assay.kernels import Known
from assay.properties import OPERATORS
from assay.properties.diagnosis import Finding
from assay.properties.results import Examination, Result, Verdict
from assay.questions import Signature


HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "a\\|b\\",
    "`",
    "``` ```sh",
    "a\n\n# title",
    "[x](https://example.org)",
    "![x](y)",
    "*a* _b_ ~~c~~ @all &lt; <!-- ",
    " - a",
    "</code></pre><b>",
)


def judged(name: str, dtype: str, verdict: Verdict, message: str = "output[0] is 1, exact 0") -> Judged:
    failing = verdict in ("fail", "error")
    first = Result("agrees_with_oracle", verdict, message=message if verdict != "pass" else "")
    if failing:
        first.counterexample, first.stored = "x[1, 2], position[1]", ".assay/c e.json"
    if verdict == "fail":
        first.diagnosis = [Finding("slip", "off by one", "the slip 'position off by one'")]
    second = Result("inverse", "fail", message="another") if failing else Result("inverse", verdict)
    kernel = Known(name, OPERATORS["rope"], Claims("rope"), name, None, Signature(True, frozenset()))
    return kernel, Examination(name, dtype, [first, second])


def html(text: str) -> str:
    """As a page of GitHub has it, which lets HTML through."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").render(text)


def shown(text: str) -> list[list[str]]:
    """The cells of the table, without tags."""
    rows = re.findall("<tr>(.*?)</tr>", html(text), re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall("<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def test_a_table_of_verdicts_then_each_failure_with_its_diagnosis_first() -> None:
    run = [
        judged("mine.py:rope", "float32", "fail"),
        judged("mine.py:rope", "bfloat16", "pass"),
        judged("torch:rope", "bfloat16", "error", "RuntimeError: no"),
        judged("later:rope", "float32", "skipped", "not today"),
    ]
    text = markdown.summary(run, {"timm:f": "timm is not installed"}, Expectations())
    assert text.startswith("## assay: 1 error, 1 fail, 1 pass, 1 skipped\n")
    assert shown(text) == [
        ["operator", "kernel", "float32", "bfloat16"],
        ["rope", "mine.py:rope", "fail", "pass"],
        ["rope", "torch:rope", "", "error"],
        ["rope", "later:rope", "skipped", ""],
    ]
    _, first, second, rest = text.split("### ")
    assert (
        first
        == """`mine.py:rope` float32

**Diagnosis:** `the slip 'position off by one'`

```text
agrees_with_oracle: output[0] is 1, exact 0
in x[1, 2], position[1]
```

Also: `inverse`

```sh
assay replay '.assay/c e.json'
```

"""
    )
    assert second.startswith("`torch:rope` bfloat16\n\n```text\nagrees_with_oracle: RuntimeError: no\n")
    assert rest == "Not judged\n\n- `later:rope float32: not today`\n- `timm:f: timm is not installed`\n"


def test_known_failures_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    entry = "dtype = 'float32'\nsignature = 'a'\nreason = 'upstream'\nexpires = 9999-12-31\n"
    path.write_text(
        f"[[known]]\nkernel = 'a:*'\nproperty = ['agrees_with_oracle', 'inverse']\n{entry}"
        f"[[known]]\nkernel = 'b:*'\nproperty = 'inverse'\n{entry}"
    )
    text = markdown.summary([judged("a:f", "float32", "fail"), judged("b:f", "float32", "pass")], {}, read(path))
    assert text.startswith("## assay: 1 known, 1 pass\n")
    assert shown(text)[1:] == [["rope", "a:f", "known"], ["rope", "b:f", "pass"]]
    assert "- `a:f float32 inverse: upstream (until 9999-12-31)`" in text
    assert "entry 2 (b:*, inverse, float32) is met by no failure" in text
    assert "Diagnosis" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_what_strangers_chose_is_shown_as_it_is(name: str) -> None:
    text = markdown.summary([judged(name, "float32", "fail", f"it says {name}")], {name: name}, Expectations())
    page, plain = html(text), html(markdown.summary([judged("a", "float32", "fail")], {"a": "a"}, Expectations()))
    # The same elements, whatever the name is.
    assert re.findall("<[^>]*>", page) == re.findall("<[^>]*>", plain)
    line = " ".join(name.split())
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert len(shown(text)[1]) == 3
    assert escaped in " ".join(shown(text)[1][1].split())
    assert f"it says {escaped}" in page


def test_the_workflows_to_copy_ask_what_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    workflows = re.findall("```yaml\n(.*?)```", page, re.DOTALL)
    assert len(workflows) == 2
    for workflow in workflows:
        (folded,) = re.findall("- (?:run: )?>-\n( +)(assay check .*?\n(?:\\1\\S.*\n)*)", workflow)
        _, name, *arguments = shlex.split(folded[1].replace("$GITHUB_STEP_SUMMARY", "summary.md"))
        assert check.make_context(name, arguments).params["markdown_path"] == Path("summary.md")
        for artifact in ("assay.json", "counterexamples"):
            assert workflow.partition("artifact")[2].count(artifact) == 1


def test_a_summary_is_no_longer_than_github_shows() -> None:
    run = [judged(f"mine.py:f{number}", "float32", "fail", "long " * 100) for number in range(50)]
    whole = markdown.summary(run, {}, Expectations())
    short = markdown.summary(run, {}, Expectations(), room=20_000)
    assert len(short.encode()) <= 20_000 < len(whole.encode())
    parts = short.count("\n### ")
    assert parts > 5
    assert short.endswith(f"There is no room for the other {50 - parts} parts.\n")
    assert "no room" not in whole


def test_the_command_line_adds_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assay.jobs.judge", lambda kernel, dtype, *_: judged(kernel.name, dtype, "fail")[1])
    kernels = Path(__file__).parent.parent / "kernels.py"
    command = ["check", f"rope={kernels}:right", "--dtype", "float32", "--in-process", "--jobs", "1", "--markdown"]
    for _ in range(2):
        assert CliRunner().invoke(main, [*command, "summary.md"]).exit_code == 1
    first, second = Path("summary.md").read_text().split("## assay: 1 fail\n")[1:]
    assert first == f"{second}\n"
    for option in ("--markdown", "--json"):
        Path("folder.part").mkdir(exist_ok=True)  # beside which JSON is written
        path = "/dev/full" if option == "--markdown" else "folder"
        full = CliRunner().invoke(main, [*command[:-1], option, path])
        assert full.exit_code == 2
        assert f"{path} cannot be written" in full.output.splitlines()[-1]


def test_a_pipe_takes_a_summary_too() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader:
        markdown.append(Path(f"/dev/fd/{writing}"), [judged("a:f", "float32", "pass")], {}, Expectations())
        os.close(writing)
        assert reader.readline() == "## assay: 1 pass\n"


@pytest.mark.parametrize(
    "text",
    [
        "base**(-2j / r) and x_i * y_j, x[..., t] < n, <q, k>, a_ _b, ~~c~~, [x](y), \\n",
        "# 1\n- 2\n+ 3\n> 4",
        "`a*b*c_` stays, *this* too",
        "<script>alert(1)</script> <!-- x -->",
    ],
)
def test_a_docstring_is_shown_as_it_is(text: str) -> None:
    plain = re.sub("<.*?>", "", html(markdown.escaped(text))).strip()
    assert plain == text.replace("`", "").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def test_formulas_and_doctests_of_a_docstring_are_code() -> None:
    text = "A law\n\n    y = x**2\n      + 1\n\nand more:\n>>> 1 + 1\n2\n\nEnd."
    law = "A law\n\n```text\ny = x**2\n  + 1\n```\n"
    assert markdown.prose(text) == f"{law}\nand more:\n\n```pycon\n>>> 1 + 1\n2\n```\n\nEnd.\n"


def test_a_cell_of_a_table_may_hold_a_bar() -> None:
    assert shown(markdown.table(("a", "b"), [("x|y", markdown.code("|R x|^2"))]))[1:] == [["x|y", "|R x|^2"]]
