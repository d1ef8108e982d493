"""A kernel over several processes, judged as one: each rank of torch.distributed has some of the rows.

`Sharded` is a subject like any other. Each of its ranks is a kernel in a worker that has met the others; it hands each
its part of the inputs, and puts the answers together. A rank that dies, hangs or raises costs the kernel an error, and
the other ranks their lives.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assay.buffers import Values
from assay.impl.kernel import Claims
from assay.process import Ended, Limits, Worker
from assay.properties.trial import Answer, KernelError, NotCovered
from assay.questions import Signature
from assay.reference.arithmetic.oracle import Arguments
from assay.remote import LOADING, WorkerSubject, place_of
from assay.runner import ClaimingSubject


GRACE = 1.0
"""Seconds after the first fault in which others are still heard: one rank dies, and the others complain of it."""


class Ranks:
    """Processes that have met. Kernels of one module may take turns in them."""

    def __init__(self, world: int, limits: Limits) -> None:
        self.limits = limits
        self.world = world
        self.workers: list[Worker] = []
        self._met: set[int] = set()
        self._folder: Path | None = None
        """Where they meet."""

    def start(self) -> None:
        """If they do not run. Not in a thread that waits for answers, with whose end they would end."""
        if not self.complete:
            self.end()
        if not self.workers:
            self._folder = Path(tempfile.mkdtemp(prefix="assay-"))
            self.workers = [Worker(self.limits) for _ in range(self.world)]

    def joined(self, number: int) -> Worker:
        """The process of a rank, which meets the others if it has not yet. Raises: Ended."""
        worker = self.workers[number]
        if not worker.alive:
            raise Ended("the process has ended")
        if number not in self._met:
            assert self._folder is not None
            store = (self._folder / "store").as_uri()
            worker.ask({"do": "join", "rank": number, "world": self.world, "store": store}, LOADING)
            self._met.add(number)
        return worker

    @property
    def complete(self) -> bool:
        return all(worker.alive for worker in self.workers)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        self._met.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


_kept: dict[Hashable, Ranks] = {}
"""Those that run."""


def ranks(module: str, function: str, world: int, limits: Limits) -> Ranks:
    """Those that run, if they were started for the same kernel, as `assay.remote.worker` has it."""
    key = (world, place_of(module, function), limits, os.getcwd(), *sys.path)
    if key not in _kept:
        end_all()
        _kept[key] = Ranks(world, limits)
    return _kept[key]


@atexit.register
def end_all() -> None:
    """End those that run."""
    for found in _kept.values():
        found.end()
    _kept.clear()


class Rank(WorkerSubject):
    """The kernel as one rank calls it."""

    number: int
    together: Ranks
    killed = False
    """It was waiting for others, which had failed."""

    def _process(self) -> Worker:
        return self.together.joined(self.number)

    @property
    def ended(self) -> bool:
        return not self.together.workers[self.number].alive

    def kill(self) -> None:
        """While a call waits, from another thread. It is not counted as a crash."""
        self.killed = True
        self._crashes -= 1
        self.together.workers[self.number].kill()


class Sharded(ClaimingSubject):
    """A kernel on as many ranks as its claims say, as the judge sees it. Inputs are divided along their first axis."""

    def __init__(
        self,
        name: str,
        place: str,
        claims: Claims,
        signature: Signature,
        known: frozenset[str],
        limits: Limits,
        *,
        device: str = "cpu",
        own: bool = True,
    ) -> None:
        """As of a WorkerSubject."""
        super().__init__(name, claims, signature, known, device)
        module, _, function = place.rpartition(":")
        self._together = partial(ranks, module, function, claims.world, limits)
        self._ranks = []
        for number in range(claims.world):
            rank = Rank(name, place, claims, signature, known, limits, device=device, own=own)
            rank.number = number
            self._ranks.append(rank)

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        divided = {n for n, v in arguments.items() if isinstance(v, np.ndarray) and v.ndim}
        ends = self._ends(len(arguments[next(iter(divided))]))
        parts = [
            {n: v[start:end] if n in divided else v for n, v in arguments.items()}
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        answers = self._asked([(part, cotangents, by, mode) for part in parts])
        if len({len(a.outputs) for a in answers}) > 1:
            raise KernelError("the ranks return different numbers of outputs")
        outputs = tuple(self._loss(found) for found in zip(*(a.outputs for a in answers), strict=True))
        gradients = {
            n: self._gradient([a.gradients[n] for a in answers], n in divided)
            for n in by
            if all(n in a.gradients for a in answers)
        }

        def any_rank(told: Iterable[Sequence[str]]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(name for names in told for name in names))

        return Answer(
            outputs,
            gradients,
            touched=any_rank(a.touched for a in answers),
            trespassed=any_rank(a.trespassed for a in answers),
            aliased=any_rank(a.aliased for a in answers),
            drew=any(a.drew for a in answers),
        )

    def _ends(self, n: int) -> list[int]:
        """Where the part of each rank ends: after about 1, 3, 6 ... shares; after equal ones if losses are averaged."""
        w = self.claims.world
        if self.claims.ranks == "sum":
            return [n * (r + 1) * (r + 2) // (w * (w + 1)) for r in range(w)]
        if n % w:
            raise NotCovered(f"{n} rows do not divide evenly among {w} ranks")
        return [n // w * (r + 1) for r in range(w)]

    def _loss(self, found: Sequence[Values]) -> Values:
        if self.claims.ranks == "mean":
            return np.asarray(np.mean([f.astype(np.float64) for f in found], axis=0)).astype(found[0].dtype)
        if any(f.tobytes() != found[0].tobytes() for f in found):
            raise KernelError(f"the ranks return different losses: {', '.join(map(str, found))}")
        return found[0]

    def _gradient(self, found: Sequence[Values], divided: bool) -> Values:
        """Of an input that was divided, the parts side by side; of another one, their sum."""
        wide = [f.astype(np.float64) for f in found]
        whole = np.concatenate(wide) if divided else np.sum(wide, axis=0)
        return np.asarray(whole / (self.claims.world if self.claims.ranks == "mean" else 1)).astype(found[0].dtype)

    def _asked(self, questions: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """What every rank answers. Raises: KernelError or NotCovered, of the rank that tells most."""
        together = self._together()
        together.start()
        for rank in self._ranks:
            rank.together, rank.killed = together, False
        with ThreadPoolExecutor(len(questions)) as pool:
            calls = {pool.submit(rank, *question): rank for rank, question in zip(self._ranks, questions, strict=True)}
            waiting = set(calls)
            try:
                _, waiting = wait(waiting, return_when=FIRST_EXCEPTION)
                _, waiting = wait(waiting, GRACE)
            finally:
                for call in waiting:
                    calls[call].kill()
        faults = [(rank, call.exception()) for call, rank in calls.items() if call.exception() is not None]
        if not faults:
            return [call.result() for call in calls]
        rank, first = min(faults, key=lambda fault: (fault[0].killed, not fault[0].ended))
        if len(faults) < len(calls) or not together.complete:
            together.end()  # some wait for others, or have half of their messages
        if isinstance(first, KernelError | NotCovered):
            raise type(first)(f"rank {rank.number} of {self.claims.world}: {first}") from None
        assert first is not None
        raise first
