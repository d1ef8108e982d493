"""What is being done, on stderr: lines that change on a terminal, one line after another elsewhere, none if quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


if TYPE_CHECKING:
    from assay.jobs import How, Judged, Tried, Work


def _stderr() -> Console:
    """The stream as it is now: what runs meanwhile, such as pytest, may take sys.stderr for itself."""
    return Console(file=sys.stderr, highlight=False, emoji=False)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that is told what is being done."""
    err = _stderr()
    if quiet:
        yield lambda text: None
    elif not err.is_terminal:
        yield lambda text: err.print(text, markup=False, soft_wrap=True)
    else:
        with err.status("", refresh_per_second=2) as status:  # seldom, since something may be timed meanwhile
            yield lambda text: status.update(text.replace("[", r"\["))


@contextmanager
def waiting(text: str, *, quiet: bool = False) -> Iterator[None]:
    """What a terminal shows meanwhile; a pipe has no need of it."""
    err = _stderr()
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


def bars(*, quiet: bool = False) -> Progress:
    """Bars on a terminal, which vanish in the end. A task has a field `told`."""
    console = _stderr()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


class Board:
    """How far the judgements of a run are: one bar for all, one line for each that is being made."""

    def __init__(self, total: int, already: int = 0, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._alone = total == 1
        self._bars = bars(quiet=quiet)
        self._all = self._bars.add_task("kernels and dtypes", completed=already, total=total, told="")
        self._rows: dict[int, TaskID] = {}

    def __enter__(self) -> Board:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, number: int, title: str, cases: int, headroom: float, what: str) -> None:
        """A judgement has come so far."""
        if number not in self._rows:
            self._rows[number] = self._bars.add_task(title, total=None, told="")
        told = f"cases, headroom {headroom:.3g}, {what}"
        self._bars.update(self._rows[number], completed=cases, told=told)

    def done(self, number: int, told: str) -> None:
        """A judgement was made. Where no bars are shown, a run of several has a line for each."""
        if number in self._rows:
            self._bars.remove_task(self._rows.pop(number))
        self._bars.update(self._all, advance=1, told=told)
        console = self._bars.console
        if not (self._quiet or self._alone or console.is_terminal):
            console.print(told, markup=False)


def judging(work: Work, how: How, jobs: int | None, tried: Tried, already: int = 0, *, quiet: bool = False) -> Judged:
    """Judge, and show how far it is. `already`: so many were judged in an earlier run."""
    from assay.jobs import one_by_one, side_by_side
    from assay.process import end_all

    jobs = min(jobs or os.cpu_count() or 1, len(work))
    titles = {number: f"{kernel.name} {dtype}" for number, kernel, dtype in work}
    try:
        with Board(already + len(work), already, quiet=quiet) as board:

            def show(number: int, cases: int, headroom: float, what: str) -> None:
                board.show(number, titles[number], cases, headroom, what)

            if jobs > 1:
                end_all()  # those that described the kernels; each job has one of its own
            judged = side_by_side(work, how, jobs, show, tried) if jobs > 1 else one_by_one(work, how, show, tried)
            for number, found in judged:
                board.done(number, f"{titles[number]}: {found.verdict}")
                yield number, found
    finally:
        end_all()
