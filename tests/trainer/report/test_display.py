"""Progress: a live screen on a terminal, a line now and then elsewhere."""

import io

import pytest
from rich.console import Console

from trainer.report.display import Display, merge_groups
from trainer.report.words import flops_unit, format_duration, format_flops


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def run(steps, *, terminal, seconds_a_step=1.0, groups=None, first=1, total=None):
    screen, clock = io.StringIO(), Clock()
    console = Console(file=screen, force_terminal=terminal, width=120, color_system=None)
    with Display("digits", console=console, clock=clock, line_every_s=10) as display:
        for step in range(first, first + steps):
            clock.now_s += seconds_a_step
            metrics = {"loss": 2.0, "images_per_s": 312.4, "budget_flops": 4_250_000}
            display.update(step, total or steps, metrics, groups)
            if step == 5:
                display.message("saved a checkpoint")
    return screen.getvalue()


def test_without_a_terminal_one_plain_line_every_interval_and_the_last_step():
    text = run(25, terminal=False)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "1/25",
        "11/25",
        "21/25",
        "25/25",
    ]
    assert lines[1] == "saved a checkpoint"
    assert "loss 2  312 images/s  budget flops 4.25M  14s left" in lines[2]
    assert "\x1b" not in text


def test_on_a_terminal_the_groups_have_bars():
    text = run(3, terminal=True, groups=[(1e6, 0.2), (2e6, 0.8)])
    last = text.rsplit("digits", 1)[1]
    assert "3/3 (100%)" in last
    rows = {line.split()[0]: line for line in last.splitlines() if "M " in line and "%" in line}
    assert rows["1M"].count("━") * 3 < rows["2M"].count("━")
    assert "80.0%" in rows["2M"]


def test_time_left_counts_the_steps_of_this_process_only():
    lines = run(12, first=889, total=1000, terminal=False).splitlines()
    assert "step 899/1000" in lines[1]
    assert "1:41 left" in lines[1]


def test_an_error_passes_through_and_the_last_state_is_shown():
    screen = io.StringIO()

    def fail():
        with Display("x", console=Console(file=screen)) as display:
            display.update(1, 10, {})
            display.update(2, 10, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "step 2/10" in screen.getvalue()


def test_many_groups_share_rows_and_lose_no_probability():
    groups = [(1e6 * (i + 1), 1 / 44) for i in range(44)]
    rows = merge_groups(groups, 16)
    assert len(rows) <= 16
    assert rows[0][0] == "1M-3M"
    assert sum(probability for _, probability in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (200, "3:20"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"), [(1.3e9, "1.3G"), (4_250_000, "4.25M"), (800_000, "800K"), (12, "12")]
)
def test_flops(flops, text):
    assert format_flops(flops) == text


def test_axis_units():
    assert flops_unit(15e6) == (1e6, "M")
    assert flops_unit(2e9) == (1e9, "G")
