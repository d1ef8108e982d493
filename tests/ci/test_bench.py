"""`assay bench`: what is right is timed, beside the machine; what is not is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from assay.bench import Replayed
from assay.cli import main
from assay.kernels import resolve
from assay.properties.contract import Work
from assay.properties.drawing import DTYPES
from assay.roofline import Rates
from assay.timing import Inputs, NotTimed, Setup, Stopwatch, StopwatchError


KERNELS = Path(__file__).parent.parent / "timed_kernels.py"
TINY = Setup("rms_norm", "tiny", "float32", False, 1)


MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
from assay.cli import main
main()
"""


def bench(where: Path, *names: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "bench"]
    command += [f"rms_norm={KERNELS}:{name}" for name in names]
    command += ["--seconds", "0.02", "--threads", "1", "--no-memory", "--json", "out.json", *more]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    where = tmp_path_factory.mktemp("bench")
    result = bench(where, "right", "tenfold", "wrong", "no_backward", "crashes", "raises")
    assert result.returncode == 1, result.stdout + result.stderr
    return result, json.loads((where / "out.json").read_text()), where


def test_what_is_being_timed_is_told(ran: Any) -> None:
    """Though pytest runs meanwhile, whose own words nobody needs."""
    assert f"{TINY}: 5 kernels" in ran[0].stderr.splitlines()
    assert "passed" not in ran[0].stderr


def test_every_right_kernel_is_timed_and_its_samples_are_kept(ran: Any) -> None:
    _, content, where = ran
    timed = {(b["extra_info"]["kernel"].rpartition(":")[2], b["extra_info"]["mode"]) for b in content["benchmarks"]}
    assert timed == {(k, m) for k in ("right", "tenfold") for m in ("forward", "forward+backward")} | {
        ("no_backward", "forward")
    }
    assert all(len(b["stats"]["data"]) == b["stats"]["rounds"] >= 5 for b in content["benchmarks"])
    (stored,) = (where / ".assay" / "benchmarks").rglob("*.json")
    again = json.loads(stored.read_text())
    assert [b["stats"]["data"] for b in again["benchmarks"]] == [b["stats"]["data"] for b in content["benchmarks"]]


def test_each_timing_says_what_the_machine_allows(ran: Any) -> None:
    for one in ran[1]["benchmarks"]:
        info = one["extra_info"]
        passes = 2 if info["mode"] == "forward+backward" else 1
        assert (info["bytes"], info["flops"]) == (passes * 4 * (2 * 1024 * 32 + 32), passes * 4 * 1024 * 32)
        least = max(
            info["bytes"] / info["anchor_bytes_per_second"],
            info["flops"] / info["anchor_flops_per_second"],
            info["exponentials"] / info["anchor_exponentials_per_second"],
        )
        assert info["roofline_fraction"] == pytest.approx(least / one["stats"]["median"])


@pytest.mark.nightly
def test_ten_times_the_work_takes_longer(ran: Any) -> None:
    """Even so few samples on a busy machine tell these apart."""
    found = {
        b["extra_info"]["kernel"].rpartition(":")[2]: b["stats"]["min"]
        for b in ran[1]["benchmarks"]
        if b["extra_info"]["mode"] == "forward"
    }
    assert found["tenfold"] > 3 * found["right"]


@pytest.mark.parametrize(
    ("kernel", "reason", "fails"),
    [
        ("wrong", "breaks its contract: agrees_with_oracle", True),
        ("no_backward", "has no backward", False),
        ("crashes", "ended its process (exit code 3)", True),
        ("raises", "RuntimeError: the device is on fire", True),
    ],
)
def test_what_is_not_timed_is_named_with_its_reason(ran: Any, kernel: str, reason: str, fails: bool) -> None:
    result, content, _ = ran
    missing = [m for m in content["not_timed"] if m["kernel"].endswith(":" + kernel)]
    assert missing
    assert all(reason in m["reason"] and m["fails"] == fails for m in missing)
    assert reason in result.stdout


def test_a_wrong_kernel_is_timed_on_demand_and_marked(tmp_path: Path) -> None:
    result = bench(tmp_path, "wrong", more=("--wrong", "--mode", "forward"))
    assert result.returncode == 1
    (one,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert one["extra_info"]["breaks_its_contract"].startswith("breaks its contract: agrees_with_oracle")
    assert "timed_kernels.py:wrong (wrong)" in result.stdout
    assert "wrong: timed_kernels.py:wrong breaks its contract: agrees_with_oracle" in result.stdout


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    result = bench(tmp_path, "interrupts")
    assert result.returncode == 2
    assert "interrupted: " in result.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert {b["extra_info"]["mode"] for b in content["benchmarks"]} == {"forward"}
    assert list((tmp_path / ".assay" / "benchmarks").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:99"), "there is no cuda:99 here"),
        (("--device", "abacus"), "there is no abacus here"),
        (("--case", "huge"), "there is no case 'huge' to time; there are tiny"),
        (("--dtype", "float7"), "there is no dtype 'float7'"),
        (("--json", "/no/such/folder/x.json"), "there is no folder"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(main, ["bench", f"rms_norm={KERNELS}:right", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.nightly
def test_peak_memory_is_that_of_the_call() -> None:
    def peak(name: str) -> int:
        (kernel,) = resolve(f"rms_norm={KERNELS}:{name}")
        with Inputs() as inputs, Stopwatch(1, memory=True) as watch:
            watch.ask("open", key="it", memory=True, **inputs.of(kernel, TINY))
            found = watch.ask("memory", key="it")["bytes"]
        if found is None:
            pytest.skip("this system does not tell")
        return int(found)

    # Linux adds up the pages of a process in batches, one for each processor, of max(32, 2 processors) pages; before
    # version 6.2 in batches of 64 for each thread. Both readings may miss that much.
    processors = os.cpu_count() or 1
    missed = 2 * max(64, max(32, 2 * processors) * processors) * 4096
    array = 1024 * 32 * 4
    assert peak("right") < 16 * array + missed
    assert (64 << 20) - missed <= peak("hungry") < (64 << 20) + 16 * array + missed
    small = (1 << 12) * 1024  # what a block has beside its numbers
    assert (64 << 20) - missed <= peak("hungry_for_crumbs") < (64 << 20) + small + 16 * array + missed


def test_a_stopwatch_survives_what_kernels_raise_and_says_when_it_does_not() -> None:
    with Inputs() as inputs, Stopwatch(1) as watch:

        def opened(name: str) -> dict[str, Any]:
            (kernel,) = resolve(f"rms_norm={KERNELS}:{name}")
            return watch.ask("open", key=name, **inputs.of(kernel, TINY))

        with pytest.raises(NotTimed, match="RuntimeError: the device is on fire"):
            opened("raises")
        assert opened("right")["calls"] >= 1
        samples = watch.ask("samples", keys=["right"], rounds=7, seed=0)["samples"]["right"]
        assert len(samples) == 7
        assert all(s > 0 for s in samples)
        opened("tires")
        with pytest.raises(NotTimed, match="RuntimeError: too tired") as raised:
            watch.ask("samples", keys=["right", "tires"], rounds=7, seed=0)
        assert raised.value.key == "tires"
        with pytest.raises(StopwatchError, match="exit code 3"):
            opened("crashes")


def test_a_kernel_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inputs() as inputs, Stopwatch(1) as watch:
        watch.ask("conditions")  # it has started
        monkeypatch.setattr("assay.timing.PATIENCE", 0.5)
        (kernel,) = resolve(f"rms_norm={KERNELS}:hangs")
        with pytest.raises(StopwatchError, match=r"gave no answer within 0\.5 seconds"):
            watch.ask("open", key="it", **inputs.of(kernel, TINY))


def test_inputs_reach_the_stopwatch_as_they_are() -> None:
    with Inputs() as inputs:
        values = np.arange(6).reshape(2, 3).astype(DTYPES["bfloat16"])
        told = inputs.write("x", values)
        back = np.frombuffer(Path(told["file"]).read_bytes(), DTYPES[told["dtype"]]).reshape(told["shape"])
        assert (back == values).all()


def test_the_roof_is_the_slowest_part_of_the_least_work() -> None:
    rates = Rates(bytes=10, flops=100, exponentials=1)
    assert rates.roof(Work(20, 100)) == (2, "bytes")
    assert rates.roof(Work(20, 900)) == (9, "flops")
    assert rates.roof(Work(20, 900, 10)) == (10, "exponentials")


def test_replayed_samples_are_those_that_were_taken() -> None:
    class Fixture:
        """As pytest-benchmark calls the function and its timer."""

        seconds: list[float]

        def pedantic(self, function: Any, *, rounds: int, iterations: int) -> None:
            self.seconds = []
            for _ in range(rounds):
                start = clock()
                function()
                self.seconds.append(clock() - start)

    clock, fixture = Replayed(), Fixture()
    clock.hand_over(fixture, (0.5, 0.25, 1.0))
    assert fixture.seconds == [0.5, 0.25, 1.0]
