"""`assay bench`: how fast kernels are, beside their peers and the machine itself.

Correct first: a kernel that breaks its contract is reported and not timed. The kernels of one operator that are timed
on the same case, and the anchors, share one process and take turns in random order, so that what slows the machine
slows all of them. Samples are handed to pytest-benchmark, which keeps them; peak memory is had in a further process
for each.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from assay.gate import judged
from assay.kernels import Known, UsageError
from assay.properties.contract import Work
from assay.properties.timed import work_of
from assay.roofline import Rates, anchors_of, rates_of
from assay.timing import Inputs, NotTimed, Setup, Stopwatch, StopwatchError, device_name


if TYPE_CHECKING:
    import pytest


STORAGE = Path(".assay/benchmarks")
FEWEST, MOST = 5, 200
"""Rounds in which the kernels of a group take turns,"""
LONG = 30.0
"""unless a round takes longer than so many seconds: then two must do."""
MEMORY = (
    "how far the resident memory of a process of its own rises above what it was before, in the second call; "
    "outputs are counted, inputs are not; Linux counts to within some hundred KiB; on a GPU, of torch's allocator"
)


class Replayed:
    """A clock that runs through samples taken earlier: pytest-benchmark's timer, and the function that it times."""

    __name__ = "replayed"  # how pytest-benchmark stores it

    def __init__(self) -> None:
        self.now = 0.0
        self.left: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += next(self.left, 0.0)

    def hand_over(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """`seconds` are per call; each is one round of the benchmark."""
        self.left = iter(seconds)
        benchmark.pedantic(self.advance, rounds=len(seconds), iterations=1)


@dataclass(frozen=True)
class Timed:
    """What was found of one kernel under one setup."""

    kernel: Known
    setup: Setup
    seconds: tuple[float, ...]
    calls: int
    """Calls in a sample; `seconds` are of one."""
    how: str
    work: Work
    rates: Rates
    conditions: Mapping[str, Any]
    memory: int | None
    breaks: str = ""
    """How it breaks its contract, if it was timed all the same."""

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a fraction of the median."""
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def roofline(self) -> tuple[float, str]:
        """The fraction of what the machine allows, and what it is limited by."""
        least, limit = self.rates.roof(self.work)
        return least / self.median, limit

    def extra_info(self) -> dict[str, Any]:
        fraction, limit = self.roofline
        return {
            "operator": self.kernel.operator.name,
            "kernel": self.kernel.name,
            "versions": self.kernel.versions,
            "case": self.setup.case,
            "dtype": self.setup.dtype,
            "mode": self.setup.mode,
            "threads": self.setup.threads,
            "device": self.setup.device,
            "calls_per_sample": self.calls,
            "sampled_by": self.how,
            "bytes": self.work.bytes,
            "flops": self.work.flops,
            "exponentials": self.work.exponentials,
            "anchor_bytes_per_second": self.rates.bytes,
            "anchor_flops_per_second": self.rates.flops,
            "anchor_exponentials_per_second": self.rates.exponentials,
            "roofline_fraction": fraction,
            "roofline_limit": limit,
            "peak_memory_bytes": self.memory,
            "breaks_its_contract": self.breaks,
            "conditions": dict(self.conditions),
        }


@dataclass(frozen=True)
class Missing:
    """A kernel that was not timed, and why."""

    kernel: str
    what: str
    reason: str
    fails: bool
    """It is the kernel's fault; otherwise it just does not do this."""


@dataclass(frozen=True)
class Wanted:
    """What to time."""

    kernels: Sequence[Known]
    dtypes: Sequence[str] = ("float32",)
    modes: Sequence[bool] = (False, True)
    """Whether with backward."""
    cases: Sequence[str] = ()
    """All, if empty."""
    threads: Sequence[int] = (1,)
    device: str = "cpu"
    seconds: float = 0.5
    """For each kernel and setup, about."""
    memory: bool = True
    wrong: bool = False
    """Time kernels that break their contract too."""
    seed: int = 0

    def groups(self) -> list[tuple[Setup, list[Known]]]:
        """The setups, each with the kernels that claim its dtype."""
        found = []
        operators = {k.operator.name: k.operator for k in self.kernels}
        for operator in operators.values():
            cases = [c for c in operator.timed if not self.cases or c in self.cases]
            for case, dtype, mode, count in product(cases, self.dtypes, self.modes, self.threads):
                setup = Setup(operator.name, case, dtype, mode, count, self.device)
                peers = [k for k in self.kernels if k.operator.name == operator.name and dtype in k.claims.dtypes]
                if peers:
                    found.append((setup, peers))
        return found


Told = Callable[[str], None]


@dataclass
class Session:
    """One run: what was found, and what is missing. It is a plugin of the pytest that it runs."""

    wanted: Wanted
    tell: Told
    found: list[Timed] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    interrupted: bool = False
    saved: dict[str, Any] = field(default_factory=dict)
    """pytest-benchmark's JSON, with what was not timed."""
    _groups: list[tuple[Setup, list[Known]]] = field(default_factory=list)
    _inputs: Inputs = field(default_factory=Inputs)
    _breaks: dict[tuple[str, str], str] = field(default_factory=dict)
    """How the kernels that are timed break their contract, by name and dtype; empty where they keep it."""
    _down: set[str] = field(default_factory=set)
    """The names of kernels that took a process down."""
    _peaks: dict[tuple[str, str, str, bool], int | None] = field(default_factory=dict)

    def run(self) -> None:
        """Judge, time, and store. Raises: UsageError where pytest-benchmark itself cannot run."""
        right = self._right()
        self._groups = [(s, [k for k in peers if (k.name, s.dtype) in right]) for s, peers in self.wanted.groups()]
        self._groups = [(s, peers) for s, peers in self._groups if peers]
        if not self._groups:
            return
        with self._inputs:
            self._under_pytest()

    def _right(self) -> set[tuple[str, str]]:
        """The kernels that may be timed, with the dtype: they keep their contract, or what they break was asked for."""
        asked = sorted({(k.spelling, d) for s, peers in self.wanted.groups() for k in peers for d in (s.dtype,)})
        names = {k.spelling: k.name for k in self.wanted.kernels}
        by_dtype: dict[str, list[str]] = {}
        for spelling, dtype in asked:
            by_dtype.setdefault(dtype, []).append(spelling)
        right = set()
        for dtype, spellings in by_dtype.items():
            self.tell(f"judging {_counted(spellings)} in {dtype}")
            for spelling, reason in judged(spellings, dtype, self.wanted.device, self.tell).items():
                if reason is None or (self.wanted.wrong and reason.startswith("breaks")):
                    right.add((names[spelling], dtype))
                    self._breaks[names[spelling], dtype] = reason or ""
                else:
                    self.missing.append(Missing(names[spelling], dtype, reason, fails=True))
        return right

    def _under_pytest(self) -> None:
        import pytest

        arguments = [
            str(Path(__file__).with_name("benchmarks.py")),
            *("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "-c", os.devnull),
            *("-W", "ignore"),  # of a benchmark that was not timed; this user's other tests may want errors
            f"--rootdir={Path(__file__).parent}",
            f"--benchmark-storage=file://{STORAGE.resolve()}",
            *("--benchmark-autosave", "--benchmark-save-data", "--benchmark-quiet", "--benchmark-only"),
            "--capture=no",  # which would take what is told of progress too
        ]
        said = io.StringIO()
        with _only_the_plugins_asked_for(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pytest.main(arguments, plugins=[self])
        self.interrupted = code == pytest.ExitCode.INTERRUPTED
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED):
            raise UsageError(f"pytest-benchmark did not run (exit code {code}):\n{said.getvalue()}")

    # Hooks of pytest ----------------------------------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        import pytest

        items = []
        for setup, peers in self._groups:
            measured: list[list[Timed]] = []  # the first item of a group measures, all of them read
            for kernel in peers:
                clock = Replayed()
                mark = pytest.mark.benchmark(group=str(setup), timer=clock)
                item = Item(self, setup, peers, kernel, clock, measured)
                items.append(pytest.param(item, marks=mark, id=f"{kernel.name}-{setup}"))
        metafunc.parametrize("item", items)

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        from assay.report import versions

        machine_info |= {"assay": versions(), "device": device_name(self.wanted.device), "peak_memory": MEMORY}

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        for one in output_json["benchmarks"]:
            one["params"] = {"item": one["param"]}
        output_json["not_timed"] = [vars(m) for m in self.missing]
        self.saved = output_json

    # Measuring ----------------------------------------------------------------------------------------------------

    def measure(self, setup: Setup, peers: Sequence[Known]) -> list[Timed]:
        """The kernels of one group, by turns. One that takes the process down is left out; the others begin anew."""
        left = [k for k in peers if k.name not in self._down]
        while left:
            self.tell(f"{setup}: {_counted(left)}")
            try:
                return self._together(setup, left)
            except _Down as down:
                left.remove(down.kernel)
                self._down.add(down.kernel.name)
                reason = f"{down}; it was not tried again"
                self.missing.append(Missing(down.kernel.name, str(setup), reason, fails=True))
        return []

    def _together(self, setup: Setup, peers: Sequence[Known]) -> list[Timed]:
        works = work_of(peers[0].operator, setup.case, setup.dtype, backward=setup.backward)
        opened: dict[str, tuple[Known, dict[str, Any]]] = {}
        with Stopwatch(setup.threads, setup.device, pinned=True) as watch:
            costs = {
                name: watch.ask("open", key=name, **told)
                for name, told in anchors_of(self._inputs, setup, works).items()
            }
            for kernel in peers:
                with _blamed_on(kernel):
                    try:
                        answer = watch.ask("open", key=kernel.name, **self._inputs.of(kernel, setup))
                    except NotTimed as reason:
                        self.missing.append(Missing(kernel.name, str(setup), str(reason), fails=reason.covered))
                        continue
                opened[kernel.name] = kernel, answer
            if not opened:
                return []
            keys = [*costs, *opened]
            whole = sum(c["seconds"] * c["calls"] for c in (*costs.values(), *(a for _, a in opened.values())))
            fewest = FEWEST if whole < LONG else 2
            rounds = max(fewest, min(MOST, round(self.wanted.seconds * len(opened) / whole)))
            before = watch.ask("conditions")
            try:
                samples = watch.ask("samples", keys=keys, rounds=rounds, seed=self.wanted.seed)["samples"]
            except NotTimed as raised:
                raise _Down(opened[raised.key][0], str(raised)) from None
            except StopwatchError as error:  # all had been called before, and nothing tells which it was
                told = f"one of {len(opened)} kernels timed together {error}"
                self.missing += [Missing(k.name, str(setup), told, fails=True) for k, _ in opened.values()]
                return []
            after = watch.ask("conditions")
        rates = rates_of(samples, works)
        return [
            Timed(
                kernel,
                setup,
                tuple(samples[name]),
                answer["calls"],
                answer["how"],
                works,
                rates,
                {"before": before, "after": after},
                self._peak(kernel, setup),
                self._breaks.get((kernel.name, setup.dtype), ""),
            )
            for name, (kernel, answer) in opened.items()
        ]

    def _peak(self, kernel: Known, setup: Setup) -> int | None:
        if not self.wanted.memory:
            return None
        key = kernel.name, setup.case, setup.dtype, setup.backward
        if key not in self._peaks:
            self.tell(f"{setup}: memory of {kernel.name}")
            with contextlib.suppress(StopwatchError, NotTimed), Stopwatch(1, setup.device, memory=True) as watch:
                watch.ask("open", key="it", memory=True, **self._inputs.of(kernel, setup))
                self._peaks[key] = watch.ask("memory", key="it")["bytes"]
        return self._peaks.setdefault(key, None)


def _counted(kernels: Sequence[Any]) -> str:
    return f"{len(kernels)} kernel{'s' * (len(kernels) != 1)}"


@dataclass
class Item:
    """One kernel under one setup, as pytest sees it."""

    session: Session
    setup: Setup
    peers: Sequence[Known]
    kernel: Known
    clock: Replayed
    measured: list[list[Timed]]

    def hand_over(self, benchmark: Any) -> bool:
        """Measures the group if no peer has; False if this kernel could not be timed."""
        if not self.measured:
            self.measured.append(self.session.measure(self.setup, self.peers))
        mine = next((t for t in self.measured[0] if t.kernel is self.kernel), None)
        if mine is None:
            return False
        self.clock.hand_over(benchmark, mine.seconds)
        benchmark.extra_info.update(mine.extra_info())
        self.session.found.append(mine)
        return True


class _Down(StopwatchError):
    """A kernel took the process down."""

    def __init__(self, kernel: Known, message: str) -> None:
        super().__init__(message)
        self.kernel = kernel


@contextlib.contextmanager
def _blamed_on(kernel: Known) -> Iterator[None]:
    try:
        yield
    except StopwatchError as error:
        raise _Down(kernel, str(error)) from None


@contextlib.contextmanager
def _only_the_plugins_asked_for() -> Iterator[None]:
    """Whatever pytest's environment says, of this user's other tests, is not meant here."""
    changed = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    changed |= dict.fromkeys(("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST_WORKER"), "")
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def timeable(kernels: Sequence[Known], device: str) -> tuple[list[Known], dict[str, str]]:
    """The kernels that may be timed here; the names of the others, each with the reason.

    Raises: UsageError where the device is not there.
    """
    if device != "cpu":
        import torch

        try:
            there = (
                torch.device(device).type == "cuda" and (torch.device(device).index or 0) < torch.cuda.device_count()
            )
        except RuntimeError:
            there = False
        if not there:
            raise UsageError(f"there is no {device} here that torch can use; without --device the CPU is timed")
    left_out = {}
    found = []
    for kernel in kernels:
        if not kernel.operator.timed:
            left_out[kernel.name] = f"the contract of {kernel.operator.name} names no cases to time"
        elif kernel.claims.world > 1:
            left_out[kernel.name] = f"it runs over {kernel.claims.world} ranks, and what is timed runs in one process"
        elif kernel.claims.interpreted and device == "cpu":
            left_out[kernel.name] = "the time of Triton's interpreter means nothing"
        else:
            found.append(kernel)
    return found, left_out
