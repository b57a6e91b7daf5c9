"""How far a long command is, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from camrt.cli._console import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_SECONDS_A_LINE = 30
_SECONDS_OF_SPEED = 600


class LongProgress:
    """Counts explanations: a bar with the time that is left on a terminal; elsewhere a line every half minute."""

    def __init__(self, bar: Progress, stderr: Console) -> None:
        self._bar, self._stderr = bar, stderr
        self._task = bar.add_task("evaluating", total=None)
        self._done = self._total = self._measured = 0
        self._start = self._printed = time.monotonic()

    def start(self, done: int, total: int) -> None:
        """Before anything is measured: what is there already, and what there will be."""
        self._done, self._total = done, total
        self._start = self._printed = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done)

    def advance(self, explanations: int) -> None:
        """So many more are measured."""
        self._done += explanations
        self._measured += explanations
        self._bar.advance(self._task, explanations)
        now = time.monotonic()
        if self._stderr.is_terminal or now - self._printed < _SECONDS_A_LINE:
            return
        self._printed = now
        left = (self._total - self._done) * (now - self._start) / self._measured
        shown = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        self._stderr.print(f"evaluated {self._done} of {self._total} explanations, about {shown} left")


@contextmanager
def long_progress() -> Iterator[LongProgress]:
    """Progress that disappears at the end; Rich leaves the streams alone, since stdout may be piped away."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    stderr = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed} of {task.total} explanations"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns,
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=_SECONDS_OF_SPEED,
    )
    with bar:
        yield LongProgress(bar, stderr)
