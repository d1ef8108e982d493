"""Known failures: what a file of them may say, what they excuse, and when they are an error themselves."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result as Run

from assay.cli import main
from assay.expected import Expectations, read
from assay.impl.kernel import Claims
from assay.kernels import Known, UsageError
from assay.properties import OPERATORS
from assay.properties.diagnosis import Finding
from assay.properties.results import Examination, Result, Verdict
from assay.questions import Signature


KERNELS = Path(__file__).parent.parent / "kernels.py"
TODAY = datetime.date(2026, 11, 28)

ENTRY = {
    "kernel": '"mine.py:*"',
    "property": '["agrees_with_oracle", "inverse"]',
    "dtype": '"float32"',
    "signature": '"position off by one"',
    "reason": '"being repaired"',
    "expires": "2026-11-28",
}


def toml(**changes: str | None) -> str:
    lines = [f"{key} = {value}\n" for key, value in {**ENTRY, **changes}.items() if value is not None]
    return f"[[known]]\n{''.join(lines)}"


def expectations(folder: Path, *entries: str) -> Expectations:
    path = folder / "known.toml"
    path.write_text("\n".join(entries))
    return read(path, TODAY)


def judged(
    name: str = "/somewhere/mine.py:rope", dtype: str = "float32", verdict: Verdict = "fail", slip: str = "off by one"
) -> tuple[Known, Examination]:
    """A kernel that breaks two properties in the same way, or keeps them."""
    finding = Finding("slip", slip, f"the slip 'position {slip}'")
    results = [
        Result(name, verdict, message="output[0] is 1, exact 0", diagnosis=[finding] if verdict == "fail" else [])
        for name in ("agrees_with_oracle", "inverse")
    ]
    kernel = Known(name, OPERATORS["rope"], Claims("rope"), name, None, Signature(True, frozenset()))
    return kernel, Examination(name, dtype, [*results, Result("norm_is_kept", "pass")])


@pytest.mark.parametrize(
    ("entries", "one", "accepted", "problem"),
    [
        pytest.param([toml()], judged(), True, "", id="all is known"),
        pytest.param([toml(kernel='"/somewhere/mine.py:rope"')], judged(), True, "", id="by its full name"),
        pytest.param([toml(signature='"exact 0"')], judged(), True, "", id="by the message"),
        pytest.param([toml(signature='"exact 0"')], judged(verdict="error"), True, "", id="an error"),
        pytest.param([toml(property='"inverse"')], judged(), False, "", id="a part is known"),
        pytest.param([toml()], judged(slip="doubled"), False, "is met by no failure", id="it fails otherwise"),
        pytest.param([toml()], judged(verdict="pass"), True, "is met by no failure", id="it passes"),
        pytest.param([toml()], judged(verdict="skipped"), True, "is met by no failure", id="it was skipped"),
        pytest.param([toml(), toml(property='"norm_kept"')], judged(), True, "norm_kept, float32", id="a typing error"),
        pytest.param([toml()], judged(dtype="float16"), False, "", id="another dtype was judged"),
        pytest.param([toml()], judged("others.py:rope"), False, "", id="another kernel was judged"),
        pytest.param([toml(expires="2026-11-27")], judged(), False, "has expired on 2026-11-27", id="it has expired"),
        pytest.param([toml(expires="2020-01-01")], judged("a.py:f", verdict="pass"), True, "expired", id="long since"),
    ],
)
def test_what_is_excused(
    tmp_path: Path, entries: list[str], one: tuple[Known, Examination], accepted: bool, problem: str
) -> None:
    known = expectations(tmp_path, *entries)
    assert known.accepts(*one) == accepted
    problems = known.problems([one])
    assert bool(problems) == bool(problem)
    assert all(problem in p and "known.toml, entry " in p for p in problems)


def test_a_pattern_is_met_if_one_of_its_kernels_fails(tmp_path: Path) -> None:
    known = expectations(tmp_path, toml(kernel='"mine.py:rope*"'))
    right, wrong = judged("mine.py:rope_table", verdict="pass"), judged()
    assert known.problems([right])
    assert not known.problems([right, wrong])


def test_the_entry_says_what_was_found(tmp_path: Path) -> None:
    kernel, found = judged()
    known = expectations(tmp_path, toml(property='"inverse"'))
    assert [r.property for r in known.unexpected(kernel, found)] == ["agrees_with_oracle"]
    assert known.lines([(kernel, found)]) == [
        "/somewhere/mine.py:rope float32 inverse: being repaired (until 2026-11-28)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[known]\n", "known.toml is not TOML: .*line 1"),
        ("[[known]]\nkernel = 'a'\nkernel = 'b'\n", "known.toml is not TOML: .*line 3"),
        ("[[knwon]]\n", "known.toml has the key 'knwon', which means nothing"),
        ("known = 3\n", "known.toml: 'known' is not a list"),
        ("[known]\n", "known.toml: 'known' is not a list"),
        ("known = [3]\n", "known.toml, entry 1 is not a table"),
        *[(toml() + toml(**{key: None}), f"known.toml, entry 2 has no {key}") for key in ENTRY],
        (toml(propery='"inverse"'), "entry 1 has the key 'propery', which means nothing"),
        (toml(reason='" "'), "entry 1: reason must be a text that is not empty"),
        (toml(signature='""'), "entry 1: signature must be a text that is not empty"),
        (toml(kernel='["a", "b"]'), "entry 1: kernel must be a text"),
        (toml(property="[]"), "entry 1: property must be a text that is not empty, or a list"),
        (toml(dtype="[32]"), "entry 1: dtype must be a text"),
        (toml(dtype='"bf16"'), "entry 1: there is no dtype 'bf16'; there are float64, float32"),
        (toml(expires='"2027-01-31"'), "entry 1: expires must be a date, written without quotes"),
        (toml(expires="2027-01-31T00:00:00"), "entry 1: expires must be a date"),
        (toml(expires="2027-02-30"), "known.toml is not TOML"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expectations(tmp_path, text)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(UsageError, match=r"is not UTF-8: .* at byte 5"):
        read(tmp_path / "latin.toml")


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    (example,) = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    known = expectations(tmp_path, example)
    assert {(e.kernel, e.dtype, e.expires) for e in known.entries} == {
        ("torch:sdpa_*", "bfloat16", datetime.date(2027, 1, 31))
    }
    assert [e.property for e in known.entries] == ["agrees_with_oracle", "gradients_agree"]


def check(known: str, *more: str) -> Run:
    """A kernel that breaks two properties, with a file of known failures."""
    Path("known.toml").write_text(known)
    command = ["check", f"rope={KERNELS}:off_by_one", "--dtype", "float32", "--in-process", "--jobs", "1"]
    return CliRunner().invoke(main, [*command, "--known", "known.toml", *more])


def test_the_command_line_keeps_known_failures_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assay.jobs.judge", lambda *_: judged()[1])
    everything = {"kernel": '"kernels.py:off_by_*"', "expires": "9999-12-31"}

    unknown = check("", "--json", "out.json")
    assert unknown.exit_code == 1
    assert "diagnosis:" in unknown.output
    assert all(r["known"] is None for r in json.loads(Path("out.json").read_text())["results"])

    known = check(toml(**everything), "--json", "out.json")
    assert known.exit_code == 0
    assert f"known: {KERNELS}:off_by_one float32 inverse: being repaired (until 9999-12-31)" in known.output
    assert "agrees_with_oracle +1, known" in known.output
    assert "diagnosis:" not in known.output
    results = json.loads(Path("out.json").read_text())["results"]
    told = {"reason": "being repaired", "expires": "9999-12-31"}
    assert [(r["property"], r["verdict"], r["known"]) for r in results] == [
        ("agrees_with_oracle", "fail", told),
        ("inverse", "fail", told),
        ("norm_is_kept", "pass", None),
    ]

    stale = check(toml(**everything) + toml(**everything | {"signature": '"of another kind"'}))
    assert stale.exit_code == 1
    lines = [line for line in stale.output.splitlines() if line.startswith("known.toml")]
    assert [line.partition(" is met by no failure")[0] for line in lines] == [
        "known.toml, entry 2 (kernels.py:off_by_*, agrees_with_oracle, float32)",
        "known.toml, entry 2 (kernels.py:off_by_*, inverse, float32)",
    ]

    malformed = check("[[known]]\nkernel = 1\n")
    assert malformed.exit_code == 2
    assert len(malformed.output.strip().splitlines()) == 1
