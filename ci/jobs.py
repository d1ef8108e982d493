"""Judging kernels, each in each dtype: here, one after the other, or in several processes side by side.

Side by side, each process judges on its own and has a worker of its own in which it calls the kernel. A process takes
the next dtype of the kernel that it has judged last, so that its worker need not be started again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from typing import Any

from assay.examples import read
from assay.kernels import Known, UsageError, resolve
from assay.lines import one_line
from assay.process import Limits, end_all
from assay.properties.judgement import examine
from assay.properties.results import Examination, Progress, Result
from assay.properties.robustness import AGREEMENT
from assay.properties.run import Effort
from assay.worker import end_with


@dataclass(frozen=True)
class How:
    """Everything that a judgement depends on beside the kernel and the dtype."""

    effort: Effort
    device: str
    claimed: Mapping[str, Any]
    """What is claimed in the kernel's place: its precision, its form, its conventions."""
    limits: Limits | None
    """What a kernel may use, in a process of its own; None: it is called in the process of the judge."""

    def effort_for(self, kernel: Known) -> Effort:
        """Less for a kernel of which every program costs Triton's interpreter milliseconds."""
        if kernel.claims.interpreted and self.device == "cpu":
            few = max(1, self.effort.examples * 3 // 4)
            return replace(self.effort, examples=few, shares=1, largest=256, thin=True)
        return self.effort


Work = Sequence[tuple[int, Known, str]]
"""Number, kernel and dtype of each judgement."""
Judged = Iterator[tuple[int, Examination]]
"""By number, as they come."""
Show = Callable[[int, int, float, str], None]
"""Called with the number of a judgement, the cases so far, the headroom so far, and what is being tried."""
PAUSE = 0.2
"""Seconds between two calls, of judgements that are made elsewhere."""


Tried = Callable[[Known, str], Sequence[bytes]]
"""The examples that a kernel is tried on first, in a dtype."""


def nothing(kernel: Known, dtype: str) -> Sequence[bytes]:
    return ()


def judge(
    kernel: Known, dtype: str, how: How, show: Progress | None = None, examples: Sequence[bytes] = ()
) -> Examination:
    """Raises: UsageError where the definition of a user's operator cannot be evaluated."""
    try:
        return examine(
            kernel.operator,
            kernel.subject(how.device, how.limits),
            dtype,
            conventions=dict(kernel.claims.conventions),
            effort=how.effort_for(kernel),
            progress=show,
            examples=[*map(read, examples)],
        )
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UsageError(
            f"the definition of {kernel.operator.name} cannot be evaluated: {type(error).__name__}: {one_line(error)}"
        ) from error


def one_by_one(work: Work, how: How, show: Show, tried: Tried = nothing) -> Judged:
    """Judge in this process."""
    for number, kernel, dtype in work:
        yield number, judge(kernel, dtype, how, partial(show, number), tried(kernel, dtype))


def side_by_side(work: Work, how: How, jobs: int, show: Show | None = None, tried: Tried = nothing) -> Judged:
    """Judge in so many processes."""
    pools: dict[int, ProcessPoolExecutor] = {}
    pipes: dict[int, Connection] = {}
    """From each of them, what it is doing."""
    running: dict[Future[Examination], tuple[int, int, Known, str]] = {}
    last: dict[int, str] = {}
    # The slowest first: one that began last would be waited for alone.
    waiting = sorted(work, key=lambda one: not one[1].claims.interpreted)
    try:
        while waiting or running:
            for slot in set(range(jobs)) - {slot for slot, *_ in running.values()}:
                if waiting:
                    number, kernel, dtype = waiting.pop(_next(waiting, last.get(slot), set(last.values())))
                    last[slot] = kernel.spelling
                    if slot not in pools:
                        pools[slot], pipes[slot] = _pool()
                    future = pools[slot].submit(_there, number, kernel.spelling, dtype, how, tried(kernel, dtype))
                    running[future] = slot, number, kernel, dtype
            done, _ = wait(running, timeout=PAUSE, return_when=FIRST_COMPLETED)
            for slot, number, *_ in running.values():
                while pipes[slot].poll():
                    told = pipes[slot].recv()
                    if show is not None and told[0] == number:
                        show(*told)
            for future in done:
                slot, number, kernel, dtype = running.pop(future)
                try:
                    yield number, future.result()
                except BrokenProcessPool:
                    del pools[slot]
                    yield number, _lost(kernel, dtype)
    except BaseException:
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise
    for pool in pools.values():
        pool.shutdown()


def _pool() -> tuple[ProcessPoolExecutor, Connection]:
    """A process that judges, and the pipe through which it tells what it is doing. What it says is so short that it is
    written as a whole or not at all."""
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(), writer)), reader


def _begin(parent: int, writer: Connection) -> None:
    quiet(parent)
    _writer.append(writer)


_writer: list[Connection] = []
"""The pipe to the process that the user sees."""


def _next(waiting: Work, last: str | None, taken: set[str]) -> int:
    """The judgement that a process takes next: of the kernel that it judged last, or else of the same module, which its
    worker has imported, or else of a module that no other process has imported."""
    imported = set(map(_module, taken))

    def order(place: int) -> tuple[bool, bool, bool, bool, int]:
        spelling = waiting[place][1].spelling
        module = _module(spelling)
        return spelling != last, module != _module(last or ""), spelling in taken, module in imported, place

    return min(range(len(waiting)), key=order)


def _module(spelling: str) -> str:
    return spelling.rpartition(":")[0]


def _lost(kernel: Known, dtype: str) -> Examination:
    """The process that judged is gone, which a kernel can do only if it is called there."""
    message = "the process that judged it ended: the machine may have too little memory, or --in-process is unsafe here"
    return Examination(kernel.name, dtype, [Result(AGREEMENT.name, "error", message=message)])


def quiet(parent: int = 0) -> None:
    """What a process of a pool does first. Ctrl-C is the business of the process that the user sees, and so are
    warnings; it ends with its parent."""
    if parent:
        end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    warnings.simplefilter("ignore")


def _terminated(*_: object) -> None:
    end_all()
    os._exit(128 + signal.SIGTERM)


def _there(number: int, spelling: str, dtype: str, how: How, examples: Sequence[bytes]) -> Examination:
    (kernel,) = _resolved(spelling, how.limits)
    last = 0.0

    def show(cases: int, headroom: float, what: str) -> None:
        nonlocal last
        if time.monotonic() - last > PAUSE:
            last = time.monotonic()
            with suppress(OSError):
                _writer[0].send((number, cases, headroom, what))

    return judge(kernel.claiming(**how.claimed), dtype, how, show, examples)


def _resolved(spelling: str, limits: Limits | None) -> list[Known]:
    key = spelling, limits, os.getcwd(), *sys.path
    if key not in _known:
        _known.clear()
        _known[key] = resolve(spelling, limits)
    return _known[key]


_known: dict[object, list[Known]] = {}
"""What was judged last: its module is not imported again for the next dtype."""
