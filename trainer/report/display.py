"""What a training run shows while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.report.words import format_duration, format_flops

Groups = Sequence[tuple[int, float]]

_MAX_GROUP_ROWS = 16
_BAR_WIDTH = 36


class Display:
    """Shows the progress of a run. A context manager; `update` may be called every step.

    title: what is being trained. console: what it writes to; by default stderr, so that stdout
    stays free for JSON. line_every_s: seconds between lines where there is no terminal. clock:
    monotonic seconds.

    It is redrawn inside `update`, at most once per interval: no thread competes with the training
    for a core, and in between a call costs microseconds.
    """

    def __init__(
        self,
        title: str,
        *,
        console: Console | None = None,
        line_every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console if console is not None else Console(stderr=True)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # What others print must not tear the screen; but a redirected stdout is theirs alone.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()
            )
        self._interval_s = 0.5 if self._live is not None else line_every_s
        self._clock = clock
        self._phase: str | None = None
        self._first = (0, 0.0)
        self._groups: Groups = ()
        self._shown_at = -math.inf
        self._unseen: Callable[[], None] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._open.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        if self._unseen is not None:
            self._unseen()
        self._open.close()

    def update(
        self,
        step: int,
        total_steps: int,
        metrics: Mapping[str, float],
        groups: Groups | None = None,
        phase: str = "",
    ) -> None:
        """Report the state after `step` of `total_steps` of a phase.

        metrics: shown by name, in order; `images_per_s` is shown as the throughput. groups:
        (FLOPs, probability) of each FLOPs group; None keeps those of the last call.
        """
        now = self._clock()
        if phase != self._phase:
            self._phase, self._first, self._shown_at = phase, (step, now), -math.inf
        if groups is not None:
            self._groups = groups
        self._unseen = partial(self._show, step, total_steps, metrics)
        if now - self._shown_at >= self._interval_s:
            self._unseen()

    def message(self, text: str) -> None:
        """A line that stays, above the live part: a checkpoint, an evaluation."""
        self._console.print(Text(text))

    def _show(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        self._shown_at, self._unseen = self._clock(), None
        first_step, first_time = self._first
        done = f"{step}/{total_steps} ({step / max(total_steps, 1):.0%})"
        left: list[str] = []
        if step > first_step:
            each_s = (self._shown_at - first_time) / (step - first_step)
            left = [f"{format_duration(each_s * max(total_steps - step, 0))} left"]
        figures = [_metric(name, value) for name, value in metrics.items()]
        if self._live is None:
            phase = f"{self._phase}: " if self._phase else ""
            line = "  ".join([f"{phase}step {done}", *figures, *left])
            self._console.print(Text(line), soft_wrap=True)
            return
        progress = Table.grid(padding=(0, 2))
        progress.add_row(
            Text(f"{self._title}: {self._phase}" if self._phase else self._title, style="bold"),
            ProgressBar(total=max(total_steps, 1), completed=step, width=_BAR_WIDTH),
            Text(done),
            Text("".join(left), style="cyan"),
        )
        bars = [group_bars(self._groups)] if self._groups else []
        self._live.update(Group(progress, Text("  ".join(figures)), *bars), refresh=True)


def group_bars(groups: Groups) -> RenderableType:
    """A bar for each FLOPs group."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("FLOPs group", justify="right")
    table.add_column("sampling probability", width=_BAR_WIDTH)
    table.add_column("", justify="right")
    rows = merge_groups(groups, _MAX_GROUP_ROWS)
    top = max(probability for _, probability in rows)
    for label, probability in rows:
        # The largest probability is not "finished": one colour for all.
        bar = ProgressBar(
            total=top, completed=probability, width=_BAR_WIDTH, finished_style="bar.complete"
        )
        table.add_row(label, bar, f"{probability:.1%}")
    return table


def merge_groups(groups: Groups, max_rows: int) -> list[tuple[str, float]]:
    """Label and probability per row; neighbours are added up where there are too many groups."""
    per_row = -(-len(groups) // max_rows)
    rows = []
    for start in range(0, len(groups), per_row):
        members = groups[start : start + per_row]
        ends = dict.fromkeys([format_flops(members[0][0]), format_flops(members[-1][0])])
        rows.append(("-".join(ends), sum(probability for _, probability in members)))
    return rows


def _metric(name: str, value: float) -> str:
    if name == "images_per_s":
        return f"{value:.0f} images/s"
    text = format_flops(value) if name.endswith("flops") else f"{value:.4g}"
    return f"{name.replace('_', ' ')} {text}"
