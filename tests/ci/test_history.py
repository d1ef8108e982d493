"""The store of speeds holds what was put in or says why not; changes are found where they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from assay.history import Record, Store, StoreError, series, steps


def record(number: int, level: float = 0.0) -> Record:
    return Record(
        operator="rope",
        kernel="rope:rope",
        case="short",
        dtype="float32",
        mode="forward",
        threads=1,
        machine="a machine",
        harness=1,
        commit=f"{number:040x}",
        time=f"2026-01-01T00:00:{number % 60:02}",
        answers=(level - 0.001, level, level + 0.001),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "folder" / "history.jsonl")
    made.append([record(i, 0.01 * i) for i in range(5)])
    made.append([record(i, 0.01 * i) for i in range(5, 9)])
    return made


def test_what_is_appended_is_read_again(store: Store) -> None:
    assert store.read() == [record(i, 0.01 * i) for i in range(9)]
    assert Store(store.path.with_name("none.jsonl")).read() == []


def test_what_was_there_stays_byte_for_byte(store: Store) -> None:
    before = store.path.read_bytes()
    store.append([record(9)])
    assert store.path.read_bytes().startswith(before)


def damaged(content: bytes) -> dict[str, bytes]:
    lines = content.splitlines(keepends=True)
    return {
        "a byte changed": content.replace(b"short", b"shost", 1),
        "a number changed": content.replace(b"0.02,", b"0.03,", 1),
        "a line gone": b"".join(lines[:3] + lines[4:]),
        "lines in another order": b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]),
        "the last line gone": b"".join(lines[:-1]),
        "the last lines gone": b"".join(lines[:4]),
        "cut off": content[:-20],
        "only the newline cut off": content[:-1],
        "empty": b"",
        "a line twice": content + lines[-1],
        "foreign": b'{"benchmarks": []}\n',
        "no text": b"\xff\xfe\x00",
        "a list": lines[0] + b"[]\n",
    }


@pytest.mark.parametrize("how", damaged(b"\n" * 6))
def test_a_damaged_store_is_one_line_and_stays_as_it_is(store: Store, how: str) -> None:
    content = damaged(store.path.read_bytes())[how]
    assert content != store.path.read_bytes()
    store.path.write_bytes(content)
    for touch in (store.read, lambda: store.append([record(9)])):
        with pytest.raises(StoreError) as error:
            touch()
        assert str(store.path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert store.path.read_bytes() == content


def test_a_missing_part_is_an_error(store: Store) -> None:
    seal = store.seal_path.read_bytes()
    store.seal_path.unlink()
    with pytest.raises(StoreError, match="missing or damaged"):
        store.read()
    store.seal_path.write_bytes(seal)
    store.path.unlink()
    with pytest.raises(StoreError, match="is gone"):
        store.append([record(9)])
    assert not store.path.exists()


def test_a_run_that_was_killed_after_its_lines_leaves_a_good_store(store: Store) -> None:
    """The lines come first, their seal follows."""
    seal = store.seal_path.read_bytes()
    store.append([record(9)])
    store.seal_path.write_bytes(seal)
    assert len(store.read()) == 10
    store.append([record(10)])
    assert len(store.read()) == 11


@pytest.mark.parametrize("changed", [{"harness": 2}, {"machine": "another"}, {"threads": 2}, {"case": "long"}])
def test_what_cannot_be_compared_is_another_series(changed: dict[str, object]) -> None:
    first = [record(i) for i in range(20)]
    second = [replace(record(i, 0.5), **changed) for i in range(20, 40)]  # type: ignore[arg-type]
    found = series(first + second)
    assert list(found.values()) == [first, second]
    assert all(not steps(records) for records in found.values())


def history(random: np.random.Generator, noise: float, change: float, n: int = 60, at: int = 45) -> list[Record]:
    levels = noise * random.standard_normal(n) + math.log1p(change) * (np.arange(n) >= at)
    return [record(i, float(level)) for i, level in enumerate(levels)]


@pytest.mark.parametrize("noise", [0.007, 0.02])
def test_a_steady_history_has_no_steps(noise: float) -> None:
    random = np.random.default_rng(0)
    assert not any(steps(history(random, noise, 0.0)) for _ in range(20))


@pytest.mark.parametrize(("change", "least"), [(0.05, 0.95), (0.10, 0.95), (-0.05, 0.95)])
def test_a_step_is_found_where_it_is(change: float, least: float) -> None:
    """Within two commits, at the scatter of paired ratios."""
    random = np.random.default_rng(1)
    n, hits = 20, 0
    for _ in range(n):
        found = steps(history(random, 0.007, change))
        hits += len(found) == 1 and abs(int(found[0].after.commit, 16) - 45) <= 2 and found[0].counts
    assert stats.binomtest(hits, n, least, "less").pvalue > 1e-9
    assert hits > n / 2


def test_one_odd_night_is_no_step() -> None:
    random = np.random.default_rng(2)
    records = history(random, 0.007, 0.0)
    records[30] = record(30, 0.4)
    assert steps(records) == []


def test_a_step_is_told_as_a_person_would_tell_it() -> None:
    (found,) = steps([record(i, 0.0) for i in range(10)] + [record(i, math.log(1.25)) for i in range(10, 20)])
    assert str(found) == f"25.0% slower since {'0' * 10}..{'0' * 10}"
    assert int(found.before.commit, 16) == 9
    assert int(found.after.commit, 16) == 10
    (back,) = steps([record(i, math.log(1.25)) for i in range(10)] + [record(i, 0.0) for i in range(10, 20)])
    assert str(back).startswith("25.0% faster since ")
