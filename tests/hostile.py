"""Kernels of RoPE that do what no kernel should. They are called only in a process of their own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from typing import Any

import torch

from tests.kernels import right


Kernel = Any


def segfault(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    ctypes.string_at(0)
    return x


def aborts(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    sys.stderr.write("free(): invalid pointer\n")
    sys.stderr.flush()
    os.abort()


def exits(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    os._exit(0)


def raises_exit(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise SystemExit(0)


def interrupts(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def kills_itself(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def hangs(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    while True:
        pass


def sleeps(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    time.sleep(10_000)
    return x


def stops(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGSTOP)
    return x


def fills_memory(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    held = []
    while True:
        held.append(b"\1" * (1 << 26))


def forks(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Processes that leave the session and hold the channel open, and then a crash."""
    for _ in range(4):
        if not os.fork():
            os.setsid()
            os.fork()
            time.sleep(10_000)
    os._exit(7)


def multiplies(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """A modest fork bomb."""
    for _ in range(7):
        os.fork()
    time.sleep(10_000)
    return x


def returns_twice(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    os.fork()
    return right(x, position)


class Unprintable(Exception):
    def __str__(self) -> str:
        os._exit(5)


def cannot_be_told(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise Unprintable


def talks_to_the_judge(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    for descriptor in range(3, 30):
        try:
            os.write(descriptor, b"\x0b\0\0\0" + b'{"token":1}')
        except OSError:
            continue
    return right(x, position)


def forges(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Takes the token of the question from the frames above, and answers with arrays that lie elsewhere."""
    frame = sys._getframe()
    while "message" not in frame.f_locals and frame.f_back is not None:
        frame = frame.f_back
    token = frame.f_locals["message"]["token"]
    elsewhere = [[-4096, "float32", [1_000_000]]]
    told = json.dumps({"token": token, "outputs": elsewhere, "gradients": {}, "aliased": []})
    for descriptor in range(3, 30):
        try:
            os.write(descriptor, len(told).to_bytes(4, "little") + told.encode())
        except OSError:
            continue
    return right(x, position)


def closes(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    os.closerange(3, 30)
    return right(x, position)


def returns_too_much(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1).expand(1 << 20, 1 << 20, 1 << 10)


def zeros(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return x * 0


def patches(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Everything that a judge in this process would use."""
    torch.allclose = torch.equal = lambda *_, **__: True
    torch.testing.assert_close = lambda *_, **__: None
    time.time = time.perf_counter = time.monotonic = lambda: 0.0
    gc.disable()
    for module in list(sys.modules):
        if module.startswith("numpy.testing"):
            del sys.modules[module]
    return zeros(x, position)


ERRORS: dict[Kernel, str] = {
    segfault: "the process was ended by signal SIGSEGV in this call",
    aborts: "the process was ended by signal SIGABRT in this call; it last wrote: free(): invalid pointer",
    exits: "the process exited with code 0 in this call",
    raises_exit: "SystemExit: 0",
    interrupts: "KeyboardInterrupt",
    kills_itself: "the process was ended by signal SIGKILL in this call",
    hangs: "the call took longer than",
    sleeps: "the call took longer than",
    stops: "the call took longer than",
    fills_memory: "the call used more than",
    forks: "the process exited with code 7 in this call",
    multiplies: "the call started more than 100 processes",
    cannot_be_told: "the process exited with code 5 in this call",
    talks_to_the_judge: "it wrote into the channel of the judge: it answers what was not asked",
    forges: "it wrote into the channel of the judge: an array must lie in the room that is there for it",
    closes: "in this call",
    returns_too_much: "for which there is no room",
}
"""Kernels that end their process or say nothing, and how that is told."""

HOSTILE = (*ERRORS, returns_twice, patches, zeros)
"""All twenty: none of them passes."""


def flood(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """Right, and talkative."""
    sys.stdout.write("x" * 2_000_000)
    sys.stderr.write("y\n" * 1_000_000)
    return right(x, position, base=base)


def what_is_loaded(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(" ".join(sorted(m for m in sys.modules if m.startswith("assay") or m == "hypothesis")))


def what_is_open(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(f"{sorted(map(int, os.listdir('/proc/self/fd')))} {os.getsid(0) == os.getpid()} {len(sys.argv)}")
