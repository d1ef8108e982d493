"""A process in which kernels are called, watched from outside.

Whatever a kernel does there, crash, hang, exit, fill the memory or write where it should not, ends that process and is
told in one line; the judge goes on. A process is started afresh, not forked, in a session of its own, with no
descriptors but the channel and the memory in which arrays cross. It ends with everything that was started from it.
"""

from __future__ import annotations

import atexit
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from assay.buffers import Arena, Misfit
from assay.lines import shortened
from assay.messages import framed, unframed


@dataclass(frozen=True)
class Limits:
    """What a kernel may use."""

    call: float = 20.0
    """Seconds of one call; three times as long for the first call of a process, which may import and compile."""
    kernel: float = 900.0
    """Seconds of all calls of one kernel in one dtype."""
    memory: int = 0
    """Bytes of resident memory, of the process with its children; 0: a quarter of what there is, but 2 GiB."""
    processes: int = 100
    """Children of the process, and theirs."""

    @property
    def bytes(self) -> int:
        return self.memory or max(2 << 30, machine_memory() // 4)


GLANCE = 0.1
"""Seconds between two looks at what the process uses, in a call that takes long."""
PAUSE = 1.0
"""The same while calls take less."""
KEPT = 2000
"""Bytes of what it wrote last."""
MARK = "ASSAY_WORKER"


def machine_memory() -> int:
    """Bytes of memory, of the machine or of the container."""
    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(min(limits))


class Ended(Exception):
    """The process is gone; the message says how, in one line."""

    def __init__(self, message: str, *, overrun: bool = False) -> None:
        super().__init__(message)
        self.overrun = overrun
        """It was ended because it used too much."""


class Worker:
    """A process in which the kernels of one module are called."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.arena = Arena()
        self.called = False
        self.loaded: set[str] = set()
        """The functions that it has found."""
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._received = bytearray()
        self._output = b""
        self._look = 0.0
        ours, theirs = socket.socketpair()
        with theirs:
            channel, memory = theirs.fileno(), self.arena.descriptor
            self._process = subprocess.Popen(
                [sys.executable, "-P", _SCRIPT, str(channel), str(memory), str(os.getpid()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(channel, memory),
                start_new_session=True,
                env={**os.environ, MARK: self._mark},
            )
        self._channel = ours
        self._channel.setblocking(False)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(self._process.stdout, select.POLLIN)
        _running.add(self)

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises: Ended, where it gave none in time or did something that ends it."""
        token = secrets.token_hex(8)
        try:
            self._channel.send(framed({"token": token, **message}))
            found = self._next(seconds)
            if found.get("token") != token:
                raise Misfit("it answers what was not asked")
            return found
        except Misfit as error:
            self.end()
            raise Ended(f"it wrote into the channel of the judge: {error}") from None
        except OSError:
            how = self._how_it_ended()
            self.end()
            raise Ended(how) from None
        except BaseException:
            self.end()
            raise

    def _next(self, seconds: float) -> dict[str, Any]:
        """The next message from the channel, while what it prints is swallowed and what it uses is watched."""
        now = time.monotonic()
        until = now + seconds
        self._look = min(self._look, now + GLANCE)
        while (message := unframed(self._received)) is None:
            ready = self._poll.poll(1000 * GLANCE)
            for descriptor, _ in ready:
                if descriptor == self._channel.fileno():
                    self._receive()
                else:
                    self._swallow()
            if not ready and self._process.poll() is not None:  # its children may hold the channel open
                raise ConnectionResetError
            now = time.monotonic()
            if now > until:
                raise Ended(f"the call took longer than {seconds:g} s", overrun=True)
            if now > self._look:
                self._watch()
                self._look = time.monotonic() + GLANCE
        self._look += PAUSE
        return message

    def _receive(self) -> None:
        more = self._channel.recv(1 << 16)
        if not more:
            raise ConnectionResetError
        self._received += more

    def _swallow(self) -> None:
        """Read what it printed, so that it never waits for us; only the end is kept."""
        assert self._process.stdout is not None
        with suppress(BlockingIOError):
            text = os.read(self._process.stdout.fileno(), 1 << 16)
            self._output = (self._output + text)[-KEPT:]
            if not text:  # all who could write are gone
                with suppress(KeyError):
                    self._poll.unregister(self._process.stdout)

    def _watch(self) -> None:
        """Raises: Ended where the process and its children use too much."""
        with suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            tree = [process, *process.children(recursive=True)]
            if len(tree) > 1 + self.limits.processes:
                raise Ended(f"the call started more than {self.limits.processes} processes", overrun=True)
            most = self.limits.bytes
            # Children share pages with their parent: those are counted once only if need be, since it takes long.
            if sum(map(_resident, tree)) > most and (len(tree) == 1 or sum(map(_share, tree)) > most):
                raise Ended(f"the call used more than {most / 2**30:.1f} GiB of memory", overrun=True)

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        for _ in range(4):
            self._swallow()
        code = self._process.returncode
        if code is None:
            how = "the process closed the channel of the judge in this call"
        elif code >= 0:
            how = f"the process exited with code {code} in this call"
        else:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"the process was ended by signal {name} in this call"
        said = shortened(self._output.decode(errors="replace").strip().rpartition("\n")[2])
        return f"{how}; it last wrote: {said}" if said else how

    def kill(self) -> None:
        """End the process alone, also while another thread waits for its answer, which is then told that it ended."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        return self in _running

    def end(self) -> None:
        """End the process and everything that was started from it, by their ids."""
        if not self.alive:
            return
        _running.discard(self)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(20):
            rest = [p for p in psutil.process_iter() if self._started(p)]
            for process in rest:
                with suppress(psutil.Error):
                    process.kill()
            if not rest:
                break
            psutil.wait_procs(rest, 0.2)
        self._process.wait()
        self._channel.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self.arena.descriptor)

    def _started(self, process: psutil.Process) -> bool:
        """Does a process come from this one? Whoever left its session still has the mark in its environment."""
        if process.pid in (os.getpid(), self._process.pid):
            return False
        with suppress(psutil.Error, OSError):
            return os.getsid(process.pid) == self._process.pid or process.environ().get(MARK) == self._mark
        return False


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _share(process: psutil.Process) -> int:
    """Resident memory, pages that several processes share divided among them."""
    with suppress(psutil.Error, AttributeError):
        return int(process.memory_full_info().pss)
    return _resident(process)


_SCRIPT = str(Path(__file__).with_name("worker.py"))
_running: set[Worker] = set()


_ahead: list[tuple[Hashable, Worker]] = []
"""At most one that was started before it is known for which kernel."""


def ahead(limits: Limits | None) -> None:
    """Start a process now, for the kernel that will be asked next: it imports torch while this one does."""
    if limits is not None and not _ahead:
        _ahead.append((_surroundings(limits), Worker(limits)))


def started(limits: Limits) -> Worker:
    """The process that was started ahead, or else a new one."""
    while _ahead:
        surroundings, worker = _ahead.pop()
        if worker.alive and surroundings == _surroundings(limits):
            return worker
        worker.end()
    return Worker(limits)


def _surroundings(limits: Limits) -> Hashable:
    return limits, os.getcwd(), *filter(None, sys.path)  # each process adds the empty path where it needs it


@atexit.register
def end_all() -> None:
    """End every process that was started here."""
    for worker in list(_running):
        worker.end()
