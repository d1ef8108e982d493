"""The judge of the tracker: rules find what is there in samples of known truth, and rates are counted rightly."""

from __future__ import annotations

import functools
import importlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from assay import stopwatch
from assay.compare import Compared, Job, Samples
from assay.kernels import resolve
from assay.power import (
    CHANGES,
    KERNELS,
    OTHERS,
    OURS,
    PLANTED,
    Count,
    Row,
    jobs_of,
    main,
    repeated,
    table,
    tally,
    verdicts,
)
from assay.properties.contract import Structure
from assay.timing import Inputs, Setup


def samples(random: np.random.Generator, change: float, drift: float = 0.0, n: int = 40) -> Samples:
    """One process: samples scatter by 2 per cent, and the whole process may run slower than others."""
    pace = 1e-3 * (1 + drift * random.standard_normal())
    base, head = (pace * factor * (1 + 0.02 * random.standard_normal(n)) for factor in (1.0, 1 + change))
    return Samples(tuple(base), tuple(head))


def rate(rule: str, change: float, drift: float, trials: int = 200) -> Count:
    random = np.random.default_rng(0)
    raised = 0
    for _ in range(trials):
        base, head = samples(random, change, drift).base, samples(random, change, drift).head
        raised += OTHERS[rule](base, head)
    return Count(raised, trials)


@pytest.mark.parametrize("rule", OTHERS)
def test_every_rule_finds_a_large_change_in_steady_samples(rule: str) -> None:
    assert rate(rule, 0.10, 0.0).alarms == 200


@pytest.mark.parametrize("rule", [r for r in OTHERS if r != "pyperf, t-test"])
def test_rules_with_a_margin_are_silent_on_steady_samples(rule: str) -> None:
    assert rate(rule, 0.0, 0.0).alarms == 0


def test_a_t_test_is_wrong_as_often_as_it_says() -> None:
    """Two-sided at 5 per cent, and only the slower half is an alarm."""
    count = rate("pyperf, t-test", 0.0, 0.0, 2000)
    assert stats.binomtest(count.alarms, count.trials, 0.025).pvalue > 1e-9


@pytest.mark.parametrize("rule", OTHERS)
def test_processes_that_drift_mislead_rules_that_do_not_pair(rule: str) -> None:
    assert rate(rule, 0.0, 0.05).alarms > 10


def test_what_drifts_does_not_mislead_pairs() -> None:
    random = np.random.default_rng(1)
    answers = [samples(random, 0.0, 0.05).answer for _ in range(200)]
    assert max(map(abs, answers)) < 0.025


def test_rates_are_counted_with_their_intervals() -> None:
    quiet = {"condition": "quiet"}
    rows: list[Row] = [{**quiet, "planted": 0.0, "raised": {OURS: False}}] * 300
    rows += [{**quiet, "planted": 0.05, "raised": {OURS: i > 0}} for i in range(100)]
    counts = tally(rows)
    assert counts[OURS, "quiet", 0.0] == Count(0, 300)
    assert counts[OURS, "quiet", 0.05] == Count(99, 100)
    low, high = Count(0, 300).interval
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 300))
    assert table(counts).splitlines() == [
        "| planted | trials | assay compare |",
        "|---|---|---|",
        "| nothing, quiet | 300 | 0.000 (0.000 to 0.012) |",
        "| 5%, quiet | 100 | 0.990 (0.946 to 1.000) |",
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_change_is_that_much_more_work(change: float) -> None:
    base, head = CHANGES[change]
    assert head / base == pytest.approx(1 + change, abs=1e-3)


@pytest.mark.parametrize("spelling", KERNELS)
def test_what_is_timed_is_the_kernel_so_many_times(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel,) = resolve(spelling)
    module, _, name = kernel.place.rpartition(":")
    home = importlib.import_module(module)
    right, calls = getattr(home, name), []

    @functools.wraps(right)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments))
        return right(*arguments, **keywords)

    monkeypatch.setattr(home, name, counted)
    small = replace(kernel, operator=replace(kernel.operator, timed={"small": Structure(sizes=KERNELS[spelling])}))
    with Inputs() as inputs:
        told = repeated(inputs, small, Setup(kernel.operator.name, "small", "float32", False, 1), 7)
        timed = stopwatch.Kernel(told, stopwatch.Side([]), "cpu")
        assert timed.keywords, "the keywords of the kernel are seen through its repetition"
        timed.copied()()
    assert len(calls) == 7


def test_a_run_compares_every_kernel_with_every_change() -> None:
    with Inputs() as inputs:
        jobs = jobs_of(inputs, random.Random(0))
        assert len(jobs) == len(KERNELS) * len(PLANTED)
        for change, job in jobs:
            for side, calls in zip((job.base, job.head), CHANGES[change], strict=True):
                assert f"range({calls} - 1)" in Path(side["module"]).read_text(encoding="utf-8")


def test_the_table_is_of_all_that_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "power.jsonl"
    row = {"condition": "quiet", "machine": "abacus", "planted": 0.05, "raised": {OURS: True}}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    result = CliRunner().invoke(main, ["--runs", "0", "--out", str(file)])
    assert result.exit_code == 0
    assert result.output.startswith("abacus, ")
    assert "| 5%, quiet | 2 | 1.000 (0.158 to 1.000) |" in result.output


def test_the_published_table_is_that_of_the_published_comparisons() -> None:
    docs = Path(__file__).parents[2] / "docs"
    counts = tally([json.loads(line) for line in (docs / "power.jsonl").read_text(encoding="utf-8").splitlines()])
    assert table(counts) in (docs / "speed.md").read_text(encoding="utf-8")
    for change, least in ((0.0, 300), (0.03, 100), (0.05, 100), (0.1, 100)):
        assert sum(c.trials for (rule, _, x), c in counts.items() if (rule, x) == (OURS, change)) >= least


WINDY = '{"condition": "windy", "planted": 0.0, "machine": "abacus", "raised": {"rule": true}}'


@pytest.mark.parametrize("content", ["{", "[]", '{"raised": {}}', "3", '{"raised": {"rule": true}}', WINDY])
def test_a_file_that_is_something_else_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "power.jsonl"
    file.write_text(content)
    result = CliRunner().invoke(main, ["--runs", "0", "--out", str(file)])
    assert result.exit_code == 1
    assert "is not what this program writes" in result.output
    assert file.read_text() == content


def test_alarms_are_those_of_the_first_measurement_and_of_our_verdict() -> None:
    random = np.random.default_rng(2)
    job = Job("k", Setup("rope", "short", "float32", False, 1), {}, {})
    compared = Compared(job, "SLOW", first=[samples(random, 0.2) for _ in range(5)])
    assert all(verdicts(compared).values())
    compared.verdict = "UNSURE"
    assert not verdicts(compared)[OURS]
