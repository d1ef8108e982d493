"""Timing kernels in processes of their own: what is asked of a stopwatch, and the handle on one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from assay.kernels import Known, keywords
from assay.properties.contract import Size
from assay.properties.drawing import Values
from assay.properties.timed import timed_case


STOPWATCH = Path(__file__).with_name("stopwatch.py")
PATIENCE = 300.0
"""Seconds after which a command is taken to hang."""
STEADY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc gives memory back to the system and asks for it again, or not, as sizes and the past will have it; the system
clears each page then, which may take longer than the kernel. So told, it keeps what it once had, in large pages."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Setup:
    """Under which one case is timed."""

    operator: str
    case: str
    dtype: str
    backward: bool
    threads: int
    device: str = "cpu"

    @property
    def mode(self) -> str:
        return "forward+backward" if self.backward else "forward"

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        return f"{self.operator} {self.case}, {self.dtype}, {self.mode}{threads}"


class StopwatchError(Exception):
    """The process of the kernels crashed, hung or could not be started: one line."""


class NotTimed(Exception):
    """A kernel raised, or cannot be asked for the case: one line."""

    def __init__(self, message: str, *, covered: bool, key: str = "") -> None:
        super().__init__(message)
        self.covered = covered
        self.key = key
        """Which of the kernels that were timed together."""


@dataclass
class Inputs:
    """The inputs of timed cases, as files in a folder that goes when this is closed."""

    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    written: dict[tuple[str, str, str], tuple[list[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def write(self, name: str, values: Values) -> dict[str, Any]:
        path = Path(self.folder.name) / name
        path.write_bytes(np.ascontiguousarray(values).tobytes())
        return {"name": name, "file": str(path), "dtype": str(values.dtype), "shape": list(values.shape)}

    def of(self, kernel: Known, setup: Setup) -> dict[str, Any]:
        """What a stopwatch is told to open a kernel on its case."""
        operator = kernel.operator
        key = (operator.name, setup.case, setup.dtype)
        known = keywords(operator)
        if key not in self.written:
            arguments = timed_case(operator, setup.case, setup.dtype).arguments
            stem = f"{len(self.written)}-"
            told = {
                n: {**self.write(stem + n, v), "name": n} if isinstance(v, np.ndarray) else v
                for n, v in arguments.items()
            }
            # Inputs come first and in the operator's order; a kernel may give them names of its own.
            tensors = [
                {"name": i.name, "value": told[i.name]} if isinstance(i, Size) else told[i.name]
                for i in operator.inputs
                if i.name in told
            ]
            self.written[key] = tensors, {n: v for n, v in told.items() if n in known}
        tensors, named = self.written[key]
        module, _, function = kernel.place.rpartition(":")
        return {
            "tensors": tensors,
            "keywords": named,
            "required": list(operator.timed[setup.case].keywords),
            "differentiate": [t["name"] for t in tensors if t["name"] in operator.tensors] if setup.backward else [],
            "module": module,
            "function": function,
            "paths": [],
        }

    def anchor(self, name: str, arrays: Mapping[str, Values]) -> dict[str, Any]:
        """The same for a function of `ci/anchors.py`."""
        tensors = [{**self.write(f"{name}-{n}", v), "name": n} for n, v in arrays.items()]
        module = str(Path(__file__).with_name("anchors.py"))
        return {
            "tensors": tensors,
            "keywords": {},
            "required": [],
            "differentiate": [],
            "module": module,
            "function": name,
            "paths": [],
        }


class Stopwatch:
    """A process that times kernels. Raises: StopwatchError if it ends or hangs."""

    def __init__(
        self,
        threads: int,
        device: str = "cpu",
        *,
        pinned: bool = False,
        memory: bool = False,
        steady: bool = False,
    ) -> None:
        """`pinned`: it runs on as many cores as there are threads, so that libraries with threads of their own have no
        more than torch. `memory`: it measures memory, not time. `steady`: it keeps the memory that it once had."""
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        if memory:  # glibc then gives back large blocks as soon as they are free, and takes none from its own heap
            environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        if steady:
            environment |= STEADY
        environment |= {name: str(threads) for name in _THREADS}
        for name in ("TRITON_INTERPRET", "PYTHONWARNINGS"):
            environment.pop(name, None)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(STOPWATCH), json.dumps({"threads": threads, "device": device, "pinned": pinned})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def ask(self, command: str, **told: Any) -> dict[str, Any]:
        """Raises: NotTimed if the kernel cannot do it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        hangs = threading.Timer(PATIENCE, self._process.kill)
        hangs.start()
        try:
            self._process.stdin.write(json.dumps({"command": command, **told}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            expired = hangs.finished.is_set()
            hangs.cancel()
        if not line:
            code = self._process.wait()
            if expired:
                raise StopwatchError(f"gave no answer within {PATIENCE:g} seconds")
            raise StopwatchError(f"ended its process (exit code {code}){self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotTimed(answer["error"], covered=True, key=answer.get("key", ""))
        if "not covered" in answer:
            raise NotTimed(answer["not covered"], covered=False)
        return answer

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:300]}" if lines else ""


def every_thread() -> int:
    """How many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_and_all(device: str) -> Sequence[int]:
    """The numbers of threads that are timed: one, and all."""
    return (1,) if device != "cpu" else tuple(dict.fromkeys((1, every_thread())))


def device_name(device: str) -> str:
    """What the results hold for."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
