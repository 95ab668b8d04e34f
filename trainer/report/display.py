"""What a training run shows while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
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

    title: what is being trained. console: where to; stderr by default, so that stdout stays free
    for JSON. refresh_s: seconds between redraws of a live screen. line_every_s: seconds between
    lines where there is no terminal. clock: monotonic seconds.

    Drawing happens inside `update`, at most once per interval: no thread competes with the
    training for a core, and in between a call costs microseconds.
    """

    def __init__(
        self,
        title: str,
        *,
        console: Console | None = None,
        refresh_s: float = 0.5,
        line_every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console if console is not None else Console(stderr=True)
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._interval_s = refresh_s if self._is_live else line_every_s
        self._clock = clock
        self._live: Live | None = None
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, int, Mapping[str, float], Groups] | None = None
        self._drawn_at: float | None = None
        self._drawn_step: int | None = None
        self._phase = ""

    def __enter__(self) -> Self:
        if self._is_live:
            # What others print must not tear the screen; but a redirected stdout is theirs alone.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._last is not None and self._drawn_step != self._last[0]:
            self._draw()
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)
            self._live = None

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
        if self._first is None or phase != self._phase:
            self._first, self._phase, self._drawn_at = (step, now), phase, None
        if groups is None:
            groups = self._last[3] if self._last is not None else ()
        self._last = (step, total_steps, metrics, groups)
        if self._drawn_at is None or now - self._drawn_at >= self._interval_s:
            self._draw()

    def message(self, text: str) -> None:
        """A line that stays, above the live part: a checkpoint, an evaluation."""
        self._console.print(Text(text))

    def _draw(self) -> None:
        assert self._last is not None
        assert self._first is not None
        step, total_steps, metrics, groups = self._last
        now = self._clock()
        first_step, first_time = self._first
        left_s = None
        if step > first_step:
            left_s = (now - first_time) / (step - first_step) * max(total_steps - step, 0)
        if self._live is not None:
            title = f"{self._title}: {self._phase}" if self._phase else self._title
            screen = live_screen(title, step, total_steps, metrics, groups, left_s)
            self._live.update(screen, refresh=True)
        else:
            line = plain_line(step, total_steps, metrics, left_s)
            line = f"{self._phase}: {line}" if self._phase else line
            self._console.print(Text(line), soft_wrap=True)
        self._drawn_at, self._drawn_step = now, step


def plain_line(
    step: int, total_steps: int, metrics: Mapping[str, float], left_s: float | None
) -> str:
    """One line for a log file: step, metrics, time left."""
    parts = [f"step {step}/{total_steps} ({_percent(step, total_steps)})"]
    parts += [_metric(name, value) for name, value in metrics.items()]
    if left_s is not None:
        parts.append(f"{format_duration(left_s)} left")
    return "  ".join(parts)


def live_screen(
    title: str,
    step: int,
    total_steps: int,
    metrics: Mapping[str, float],
    groups: Groups,
    left_s: float | None,
) -> RenderableType:
    """Progress bar, metrics, and one bar per FLOPs group."""
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        Text(title, style="bold"),
        ProgressBar(total=max(total_steps, 1), completed=step, width=_BAR_WIDTH),
        Text(f"{step}/{total_steps} ({_percent(step, total_steps)})"),
        Text("" if left_s is None else f"{format_duration(left_s)} left", style="cyan"),
    )
    line = Text("  ").join(Text(_metric(name, value)) for name, value in metrics.items())
    if not groups:
        return Group(progress, line)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("FLOPs group", justify="right")
    table.add_column("sampling probability", width=_BAR_WIDTH)
    table.add_column("", justify="right")
    rows = merge_groups(groups, _MAX_GROUP_ROWS)
    top = max(probability for _, probability in rows)
    for label, probability in rows:
        bar = ProgressBar(
            total=max(top, 1e-9),
            completed=probability,
            width=_BAR_WIDTH,
            # A probability that is the largest is not "finished": one colour for all.
            finished_style="bar.complete",
        )
        table.add_row(label, bar, f"{probability:.1%}")
    return Group(progress, line, table)


def merge_groups(groups: Groups, max_rows: int) -> list[tuple[str, float]]:
    """Label and probability per row; neighbours are added up where there are too many groups."""
    per_row = -(-len(groups) // max_rows)
    rows = []
    for start in range(0, len(groups), per_row):
        members = groups[start : start + per_row]
        label = format_flops(members[0][0])
        if len(members) > 1:
            label = f"{label}-{format_flops(members[-1][0])}"
        rows.append((label, sum(probability for _, probability in members)))
    return rows


def _percent(step: int, total_steps: int) -> str:
    return f"{step / max(total_steps, 1):.0%}"


def _metric(name: str, value: float) -> str:
    if name == "images_per_s":
        return f"{value:.0f} images/s"
    label = name.replace("_", " ")
    if name.endswith("flops"):
        return f"{label} {format_flops(value)}"
    return f"{label} {value:.4g}"
