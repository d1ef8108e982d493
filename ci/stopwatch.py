"""The stopwatch: a process that times kernels, told what to do by lines of JSON on its standard input.

It is run as a file, by whichever Python and with whichever packages the kernel lives in, so it imports nothing of
assay: the same stopwatch times both sides of a comparison. Commands, each answered by one line:

    open          load a kernel and its inputs, warm it up, find how many calls make a sample, if `calls` does not say
    samples       time opened kernels in rounds, in random order within each
    memory        how much memory one call needs at its highest
    instructions  how many instructions one call takes, by Callgrind
    conditions    what may have slowed everything down: load, clocks, throttling

On a CPU a sample is a loop of calls. On a GPU it is the replay of a CUDA graph that goes round so many copies of the
inputs that none is found in the L2 cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import inspect
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


HARNESS = 3
"""Raised whenever a change here may change what is measured: histories are not compared across it."""
LEAST = 1e-3
"""Seconds that a sample takes at least, if nothing else is said: far above what a graph takes to launch."""
OVER_L2 = 5
"""The copies of a GPU kernel's inputs take so many times the L2 cache."""


UNDER_CALLGRIND = """
import gc, importlib.util, json, sys, warnings
warnings.simplefilter("ignore")
spec = importlib.util.spec_from_file_location("stopwatch", {file!r})
stopwatch = sys.modules["stopwatch"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stopwatch)
call = stopwatch.called(json.loads({told!r}))
gc.disable()
"""
"""How a process under Callgrind gets its call."""


class NotCovered(Exception):
    """The kernel cannot be asked for this case."""


class Raised(Exception):
    """A kernel raised while it was timed with others."""

    def __init__(self, key: str, error: Exception) -> None:
        super().__init__(key)
        self.key = key
        self.error = error


class Side:
    """Where a kernel's packages are, and its own modules while another side's are imported.

    Two versions of one package live in one process by turns: whatever lies below `paths`, and the kernels' own modules,
    are in sys.modules only while their side is at work.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.below = tuple(os.path.join(path, "") for path in paths)
        self.own: set[str] = set()
        self.modules: dict[str, Any] = {}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if not self.paths:
            yield
            return
        sys.path[:0] = self.paths
        sys.modules.update(self.modules)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            del sys.path[: len(self.paths)]
            for name, module in list(sys.modules.items()):
                if name in self.own or _place(module).startswith(self.below):
                    self.modules[name] = sys.modules.pop(name)


def _place(module: Any) -> str:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", None) or ()), "")
    return str(file)


class Kernel:
    """One opened kernel: calls of it on fixed inputs."""

    def __init__(self, told: dict[str, Any], side: Side, device: str) -> None:
        self.side = side
        self.device = device
        self.differentiate: list[str] = told["differentiate"]
        with side():
            side.own.add(told["module"])
            self.function = _function(told["module"], told["function"])
            self.backward = getattr(getattr(self.function, "__assay__", None), "backward", "autograd")
            self.keywords = self._supported(told["keywords"], set(told["required"]))
        if self.differentiate and self.backward == "none":
            raise NotCovered("has no backward")
        self.inputs = {t["name"]: t["value"] if "value" in t else _tensor(t).to(device) for t in told["tensors"]}
        self.given = {n: _tensor(k).to(device) if _is_tensor(k) else k for n, k in self.keywords.items()}
        self.cotangents: Any = None

    def _supported(self, keywords: dict[str, Any], required: set[str]) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters.values()
        names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            missing = required - names
            if missing:
                raise NotCovered(f"has no keyword {', '.join(sorted(missing))}")
            keywords = {n: v for n, v in keywords.items() if n in names}
        return {n: tuple(v) if isinstance(v, list) else v for n, v in keywords.items()}

    @property
    def footprint(self) -> int:
        return sum(int(getattr(t, "nbytes", 0)) for t in self.inputs.values())

    def copied(self) -> Callable[[], Any]:
        """One call, on a copy of the inputs."""
        import torch

        inputs: dict[str, Any] = {n: t if isinstance(t, int) else t.detach().clone() for n, t in self.inputs.items()}
        for name in self.differentiate:
            inputs[name].requires_grad_()
        if self.differentiate and self.cotangents is None:
            torch.manual_seed(0)
            outputs = _outputs(self.function(*inputs.values(), **self.given))
            self.cotangents = [torch.randn_like(o) for o in outputs]

        def forward() -> Any:
            with torch.no_grad():
                return self.function(*inputs.values(), **self.given)

        def both() -> Any:
            outputs = _outputs(self.function(*inputs.values(), **self.given))
            if callable(self.backward):
                return outputs, self.backward(*self.cotangents, *inputs.values(), **self.given)
            wanted = [inputs[n] for n in self.differentiate]
            return outputs, torch.autograd.grad(outputs, wanted, self.cotangents, allow_unused=True)

        return both if self.differentiate else forward


def _function(module_name: str, name: str) -> Callable[..., Any]:
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{module_name} cannot be read as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    function: Callable[..., Any] = getattr(module, name)
    return function


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "file" in value


def _tensor(told: dict[str, Any]) -> Any:
    import torch

    dtype = getattr(torch, told["dtype"])
    content = bytearray(Path(told["file"]).read_bytes())
    return torch.frombuffer(content, dtype=dtype).reshape(told["shape"]) if content else torch.empty(0, dtype=dtype)


def _outputs(returned: Any) -> tuple[Any, ...]:
    return tuple(returned) if isinstance(returned, tuple | list) else (returned,)


def called(told: dict[str, Any]) -> Callable[[], Any]:
    """One call of a kernel, in a process that holds no other side."""
    sys.path[:0] = told["paths"]
    return Kernel(told, Side([]), "cpu").copied()


# Clocks: each turns a kernel into samples, in seconds per call. -------------------------------------------------------


class Loop:
    """A loop of calls on a CPU, in wall time or in the time that the process has the processors for."""

    how = "loop"

    def __init__(self, kernel: Kernel, least: float, calls: int, now: Callable[[], float]) -> None:
        self.side = kernel.side
        self.now = now
        with self.side():
            self.call = kernel.copied()
            self.call()
            self.calls = calls or 1
            while not calls and (seconds := self._seconds()) * self.calls < least and self.calls < 1 << 20:
                wanted = math.ceil(1.1 * least / max(seconds, 1e-9))
                self.calls = max(self.calls + 1, min(wanted, 16 * self.calls))

    def _seconds(self) -> float:
        calls, call, now = range(self.calls), self.call, self.now
        start = now()
        for _ in calls:
            call()
        return (now() - start) / self.calls

    def sample(self) -> float:
        with self.side():
            return self._seconds()


class Replays:
    """A CUDA graph of calls over copies of the inputs, between two events.

    A kernel that waits for the GPU within a call cannot be recorded: its calls are then issued one by one.
    """

    def __init__(self, kernel: Kernel, least: float, calls: int) -> None:
        import torch

        self.side = kernel.side
        cache = torch.cuda.get_device_properties(torch.device(kernel.device)).L2_cache_size
        copies = 1 + math.ceil(OVER_L2 * cache / max(kernel.footprint, 1))
        free, _ = torch.cuda.mem_get_info()
        copies = max(1, min(copies, free // (4 * max(kernel.footprint, 1)), 4096))
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with self.side():
            self.sweep = [kernel.copied() for _ in range(copies)]
            self.run: Callable[[], None] = self._issue
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._issue()
            torch.cuda.current_stream().wait_stream(aside)
            torch.cuda.synchronize()
            try:
                self.run = self._recorded()
                self.how = "graph"
            except RuntimeError:
                torch.cuda.synchronize()
                self.how = "launches"
            self.repeats = 1
            wanted = calls or least / max(self._seconds(), 1e-9)
            self.repeats = math.ceil(wanted / len(self.sweep))

    @property
    def calls(self) -> int:
        return self.repeats * len(self.sweep)

    def _issue(self) -> None:
        for call in self.sweep:
            call()

    def _recorded(self) -> Callable[[], None]:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._issue()
        graph.replay()
        torch.cuda.synchronize()
        replay: Callable[[], None] = graph.replay
        return replay

    def _seconds(self) -> float:
        self.start.record()
        for _ in range(self.repeats):
            self.run()
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3 / self.calls

    def sample(self) -> float:
        with self.side():
            return self._seconds()


# Commands -------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """What is opened in this process."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sides: dict[tuple[str, ...], Side] = {}
        self.clocks: dict[str, Loop | Replays] = {}
        self.kernels: dict[str, Kernel] = {}

    def open(self, told: dict[str, Any]) -> dict[str, Any]:
        side = self.sides.setdefault(tuple(told["paths"]), Side(told["paths"]))
        kernel = self.kernels[told["key"]] = Kernel(told, side, self.device)
        if told.get("memory"):
            return {}
        calls = told.get("calls", 0)
        clock: Loop | Replays
        if self.device.startswith("cuda"):
            clock = Replays(kernel, LEAST, calls)
        else:
            now = time.process_time if told.get("processor") else time.perf_counter
            clock = Loop(kernel, told.get("least", LEAST), calls, now)
        self.clocks[told["key"]] = clock
        seconds = [clock.sample()]
        while len(seconds) < 9 and sum(seconds) * clock.calls < 10 * LEAST:
            seconds.append(clock.sample())
        return {"calls": clock.calls, "how": clock.how, "seconds": sum(seconds) / len(seconds)}

    def samples(self, told: dict[str, Any]) -> dict[str, Any]:
        """Seconds per call, by kernel, for each round; in each round the kernels come in an order of its own."""
        order = random.Random(told["seed"])
        keys = list(told["keys"])
        found: dict[str, list[float]] = {key: [] for key in keys}
        gc.collect()
        for _ in range(told["rounds"]):
            order.shuffle(keys)
            for key in keys:
                try:
                    found[key].append(self.clocks[key].sample())
                except Exception as error:
                    raise Raised(key, error) from error
        return {"samples": found}

    def memory(self, told: dict[str, Any]) -> dict[str, Any]:
        kernel = self.kernels[told["key"]]
        with kernel.side():
            call = kernel.copied()
            call()  # loads whatever is loaded once
            gc.collect()
            before = _peak(self.device, reset=True)
            kept = call()
            after = _peak(self.device, reset=False)
            del kept
        return {"bytes": None if before is None or after is None else max(0, after - before)}

    def instructions(self, told: dict[str, Any]) -> dict[str, Any]:
        """Per call of a kernel that need not be open here: it is opened once more, in a process under Callgrind."""
        from torch.utils.benchmark import Timer

        os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        timer = Timer("call()", setup=UNDER_CALLGRIND.format(file=__file__, told=json.dumps(told)), num_threads=1)
        found = timer.collect_callgrind(
            told["calls"], repeats=told["repeats"], collect_baseline=False, retain_out_file=False
        )
        return {"instructions": [counts.counts() / told["calls"] for counts in found]}

    def conditions(self, told: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"harness": HARNESS}
        if hasattr(os, "getloadavg"):
            found["load"] = os.getloadavg()[0]
        if self.device.startswith("cuda"):
            found |= _gpu_conditions()
        return found


def _peak(device: str, *, reset: bool) -> int | None:
    """Bytes. With `reset`: those in use now, from where the peak is counted anew. None: this system does not tell."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    try:
        if reset:
            _trim()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _trim() -> None:
    """Give back what the allocator keeps of free blocks, if it can be asked to as glibc can: else the next call finds
    there what it needs, and seems to need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _gpu_conditions() -> dict[str, Any]:
    """Clocks, temperature, power and why the clocks are held down, from nvidia-ml-py if it is installed."""
    try:
        import pynvml
    except ImportError:
        return {"clocks": "not known: nvidia-ml-py is not installed"}
    import torch

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return {
        "sm clock MHz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
        "memory clock MHz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
        "temperature C": pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        "power W": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "throttle reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
    }


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    told = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what kernels print is not an answer
    if told["pinned"] and told["device"] == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-told["threads"] :])
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(told["threads"])
    gc.disable()
    stopwatch = Stopwatch(told["device"])
    commands = {name: getattr(stopwatch, name) for name in ("open", "samples", "memory", "instructions", "conditions")}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = commands[command["command"]](command)
        except (NotCovered, NotImplementedError) as refusal:
            answer = {"not covered": " ".join(str(refusal).split())[:300] or "not implemented"}
        except Raised as raised:
            answer = {"error": _line(raised.error), "key": raised.key}
        except Exception as error:
            answer = {"error": _line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
