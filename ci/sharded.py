"""A kernel over several processes, judged as one: each rank of torch.distributed has some of the rows.

`Sharded` is a subject like any other. It starts a process for each rank, hands each its part of the inputs, and puts
the answers together. A rank that dies, hangs or raises costs the kernel an error, and the other ranks their lives. What
comes back from a rank is text and raw numbers: nothing that could be executed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from assay.lines import one_line
from assay.properties.drawing import DTYPES, Values
from assay.properties.trial import Answer, KernelError, NotCovered
from assay.reference.arithmetic.oracle import Arguments
from assay.runner import TorchSubject


if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


STARTING = 120.0
"""Seconds for the ranks to import torch and to meet."""
GRACE = 1.0
"""Seconds after the first fault in which others are still heard: one rank dies, and the others complain of it."""
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "assay.sharded"])


@dataclass(frozen=True)
class Convention:
    """What the answers of the ranks amount to."""

    loss: Literal["same", "mean"] = "same"
    """Every rank returns the loss of all, or their mean is that."""
    gradients: Literal["sum", "mean"] = "sum"
    """Those of one process are had by summing over the ranks, or by averaging, as DistributedDataParallel does."""
    even: bool = False
    """All ranks must have as many rows."""


class Sharded:
    """A kernel on `world` ranks, as the judge sees it. `subject`: the kernel as one rank calls it, with inputs that are
    divided along their first axis. A call may take `seconds`."""

    def __init__(
        self, subject: TorchSubject, world: int, convention: Convention = Convention(), *, seconds: float = 30.0
    ) -> None:
        self.subject = subject
        self.world = world
        self.convention = convention
        self.seconds = seconds
        self._ranks: list[_Rank] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def name(self) -> str:
        return f"{self.subject.name} on {self.world} ranks"

    @property
    def form(self) -> str | None:
        return self.subject.form

    @property
    def precision(self) -> str | None:
        return self.subject.precision

    @property
    def differentiable(self) -> bool:
        return self.subject.differentiable

    def supports(self, keyword: str) -> bool:
        return self.subject.supports(keyword)

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        if mode:
            raise ValueError(f"over several ranks there is no mode {mode!r}")
        divided = {n for n, v in arguments.items() if isinstance(v, np.ndarray)}
        ends = self._ends(len(arguments[next(iter(divided))]))
        parts = [
            {n: v[start:end] if n in divided else v for n, v in arguments.items()}
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        answers = self._asked([(part, cotangents, by) for part in parts])
        outputs = tuple(self._loss(found) for found in zip(*(a.outputs for a in answers), strict=True))
        gradients = {
            n: self._gradient([a.gradients[n] for a in answers], n in divided)
            for n in by
            if all(n in a.gradients for a in answers)
        }
        return Answer(outputs, gradients, tuple(dict.fromkeys(n for a in answers for n in a.touched)))

    def _ends(self, n: int) -> list[int]:
        """Where the part of each rank ends: in steps of about 1, 2, 3 ... shares."""
        w = self.world
        if not self.convention.even:
            return [n * (r + 1) * (r + 2) // (w * (w + 1)) for r in range(w)]
        if n % w:
            raise NotCovered(f"{n} rows do not divide evenly among {w} ranks")
        return [n // w * (r + 1) for r in range(w)]

    def _loss(self, found: Sequence[Values]) -> Values:
        if self.convention.loss == "mean":
            return np.asarray(np.mean([f.astype(np.float64) for f in found], axis=0)).astype(found[0].dtype)
        if any(f.tobytes() != found[0].tobytes() for f in found):
            raise KernelError(f"the ranks return different losses: {', '.join(map(str, found))}")
        return found[0]

    def _gradient(self, found: Sequence[Values], divided: bool) -> Values:
        """Of an input that was divided, the parts side by side; of another one, their sum."""
        wide = [f.astype(np.float64) for f in found]
        whole = np.concatenate(wide) if divided else np.sum(wide, axis=0)
        return np.asarray(whole / (self.world if self.convention.gradients == "mean" else 1)).astype(found[0].dtype)

    # Processes -------------------------------------------------------------------------------------------------------

    def _asked(self, questions: Sequence[Any]) -> list[Answer]:
        try:
            if not self._ranks:
                self._folder = tempfile.TemporaryDirectory(prefix="assay-")
                for number in range(self.world):
                    self._ranks.append(_Rank(self.subject, number, self.world, self._folder.name))
                self._heard(STARTING)
            for rank, question in zip(self._ranks, questions, strict=True):
                rank.ask(question)
            return self._heard(self.seconds)
        except BaseException:
            self.close()  # others may be waiting for the one that failed, or have half of its messages
            raise

    def _heard(self, seconds: float) -> list[Answer]:
        """What every rank answers. Raises: KernelError or NotCovered, of the rank that tells most."""
        waiting = {rank.pipe: rank for rank in self._ranks}
        answers: dict[int, Answer] = {}
        faults: list[tuple[int, Exception]] = []
        deadline = time.monotonic() + seconds
        while waiting:
            ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]  # what was waited for is one of them
                try:
                    answers[rank.number] = rank.answer()
                except _Died as death:
                    faults.insert(0, (rank.number, KernelError(str(death))))
                except (KernelError, NotCovered) as fault:
                    faults.append((rank.number, fault))
                if len(faults) == 1:
                    deadline = min(deadline, time.monotonic() + GRACE)
            if not ready:
                break
        if faults:
            number, first = faults[0]
            raise type(first)(f"rank {number} of {self.world}: {first}")
        if waiting:
            late = " and ".join(str(rank.number) for rank in waiting.values())
            raise KernelError(f"rank {late} of {self.world}: no answer within {seconds:g} seconds")
        return [answers[rank.number] for rank in self._ranks]

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            rank.end()
        self._ranks.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Sharded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Died(Exception):
    pass


class _Rank:
    """One process, and the pipe to it."""

    def __init__(self, subject: TorchSubject, number: int, world: int, folder: str) -> None:
        self.number = number
        self.pipe, there = PROCESSES.Pipe()
        self.process: BaseProcess = PROCESSES.Process(
            target=_serve, args=(there, subject, number, world, folder), daemon=True
        )
        self.process.start()
        there.close()

    def ask(self, question: Any) -> None:
        try:
            self.pipe.send(question)
        except OSError as error:
            raise KernelError(f"rank {self.number} has ended: {one_line(error)}") from error

    def answer(self) -> Answer:
        try:
            data = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.process.join(GRACE)
            raise _Died(f"the process died (exit code {self.process.exitcode})") from None
        return _unpacked(data)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _serve(pipe: Any, subject: TorchSubject, number: int, world: int, folder: str) -> None:
    """The life of a rank: it meets the others, then answers."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world, timeout=timedelta(days=1))
    pipe.send_bytes(_packed(Answer(())))
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            told = _packed(subject(*question))
        except (KernelError, NotCovered) as fault:
            told = _packed(Answer(()), type(fault).__name__, str(fault))
        pipe.send_bytes(told)


# Answers as bytes -----------------------------------------------------------------------------------------------------


def _packed(answer: Answer, fault: str = "", message: str = "") -> bytes:
    """A line of JSON, then the numbers."""
    arrays = [*answer.outputs, *answer.gradients.values()]
    header = {
        "fault": fault,
        "message": message,
        "outputs": len(answer.outputs),
        "gradients": list(answer.gradients),
        "touched": list(answer.touched),
        "arrays": [[str(a.dtype), list(a.shape)] for a in arrays],
    }
    return b"".join([json.dumps(header).encode(), b"\n", *(a.tobytes() for a in arrays)])


def _unpacked(data: bytes) -> Answer:
    try:
        line, _, rest = data.partition(b"\n")
        header: Mapping[str, Any] = json.loads(line)
        arrays, at = [], 0
        for name, shape in header["arrays"]:
            dtype = DTYPES[name]
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            arrays.append(np.frombuffer(rest[at : at + size], dtype).reshape(shape))
            at += size
        outputs = tuple(arrays[: header["outputs"]])
        gradients = dict(zip(header["gradients"], arrays[header["outputs"] :], strict=True))
        answer = Answer(outputs, gradients, tuple(header["touched"]))
        fault, message = header["fault"], header["message"]
    except (KeyError, TypeError, ValueError) as error:
        raise KernelError(f"its answer cannot be read: {one_line(error)}") from None
    if fault:
        raise {"NotCovered": NotCovered}.get(fault, KernelError)(message)
    return answer
