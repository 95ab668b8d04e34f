"""A run as one page: what it reached, how it went, what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from trainer.engine.log import JsonValue, Record, number
from trainer.report.display import format_duration
from trainer.report.flops_text import format_flops
from trainer.report.html import bullets, facts, figure, folded, page, table, tiles
from trainer.report.run_record import RunRecord, rows_of

if TYPE_CHECKING:
    from trainer.report.plot_style import Plot

HEAD = ("budget", "FLOPs", "of budget", "parameters", "held-out accuracy", "test accuracy")
SPLITS = (
    "Held-out: training images on which no weight was trained; they steer the distribution B and "
    "decide what is served (val_accuracy in files). Test: reported, decides nothing; in a data set "
    "without a test split these are its val images, or a fifth of all."
)
_LOG_FIELDS = ("kind", "step", "total_steps", "recipe", "data", "images", "groups")


def report_page(run: RunRecord, plots: Sequence[Plot], baselines: Sequence[RunRecord]) -> str:
    """The whole document."""
    by_name = {plot.name: figure(plot) for plot in plots}
    body = [f"<h1>{escape(run.name)}</h1>", f'<p class="dim">{escape(status(run))}</p>']
    body.append(tiles(_tiles(run)))
    body.append(by_name.pop("frontier", ""))
    if run.frontier:
        body.append(table(HEAD, frontier_cells(run.frontier)))
        body.append(f'<p class="dim">{escape(SPLITS)}</p>')
    if baselines:
        body += ["<h2>Against the baselines</h2>", _baseline_table(run, baselines)]
    body += by_name.values()
    remarks = [*negative_facts(run), *missing_parts(run, baselines)]
    if remarks:
        body += ["<h2>To know before quoting this</h2>", bullets(remarks)]
    body += ["<h2>Recipe</h2>", folded("All settings", facts(flat(run.recipe)))]
    changes = changes_at_resume(run)
    if changes:
        body += ["<p>Changed when the run was resumed:</p>", bullets(changes)]
    body += ["<h2>Where it comes from</h2>", *_provenance(run)]
    return page(f"{run.name}: training report", [part for part in body if part])


def status(run: RunRecord) -> str:
    """How far the run is, in words."""
    total = run.total_steps
    words = f"step {run.step:,}" + (f" of {total:,}" if total else "")
    if run.frontier and run.frontier_step is not None and run.step > run.frontier_step:
        words = f"Goes on: {words}; the table is of step {run.frontier_step:,}"
    elif run.frontier:
        words = f"Finished: {words}"
    else:
        words = f"Not finished: {words}; no frontier yet"
    resumes = len(run.of_kind("start")) - 1
    if resumes > 0:
        words += f"; resumed {resumes} time{'s' if resumes > 1 else ''}"
    return words + "."


def frontier_cells(frontier: Sequence[Record]) -> list[list[str]]:
    """A row per budget, ascending, as text. One multiply-add is one FLOP."""
    rows = []
    for row in sorted(frontier, key=lambda row: number(row, "budget_flops")):
        budget, flops = number(row, "budget_flops"), number(row, "flops")
        rows.append(
            [
                format_flops(budget),
                format_flops(flops),
                f"{flops / budget:.1%}",
                f"{int(number(row, 'params')):,}" if row.get("params") is not None else "",
                _accuracy(row, "val_accuracy"),
                _accuracy(row, "test_accuracy"),
            ]
        )
    return rows


def accuracy_cells(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Test accuracy: a row per budget of the first run, a column per run, as text."""
    rows = []
    for row in runs[0].frontier:
        budget = number(row, "budget_flops")
        cells = [format_flops(budget), _accuracy(row, "test_accuracy")]
        for other in runs[1:]:
            within = [r for r in other.frontier if number(r, "budget_flops") <= budget * (1 + 1e-9)]
            cells.append(_accuracy(within[-1], "test_accuracy") if within else "none so small")
        rows.append(cells)
    return rows


def negative_facts(run: RunRecord) -> list[str]:
    """What did not work out, as far as the log tells."""
    lines = []
    answers = run.of_kind("answers")
    if answers:
        rows = rows_of(answers[-1])
        dropped = [row for row in rows if not row.get("served")]
        if dropped:
            sizes = ", ".join(format_flops(number(row, "flops")) for row in dropped[:8])
            more = f" and {len(dropped) - 8} more" if len(dropped) > 8 else ""
            lines.append(
                f"{len(dropped)} of {len(rows)} archs that the generator answers are not served: a "
                f"smaller one is clearly better on held-out images ({sizes}{more} FLOPs)."
            )
        else:
            lines.append(f"None of the generator's {len(rows)} answers had to be dropped.")
    wasted = [
        row for row in run.frontier if number(row, "flops") < 0.9 * number(row, "budget_flops")
    ]
    if wasted:
        budgets = ", ".join(format_flops(number(row, "budget_flops")) for row in wasted)
        lines.append(f"More than a tenth of the budget is left unused at {budgets}.")
    for small, large in pairwise(run.frontier):
        if small.get("test_accuracy") is None or large.get("test_accuracy") is None:
            continue
        lost = number(small, "test_accuracy") - number(large, "test_accuracy")
        if lost > 0.005:
            lines.append(
                f"The subnet at {format_flops(number(large, 'budget_flops'))} is "
                f"{100 * lost:.1f} points worse on test images than the one at "
                f"{format_flops(number(small, 'budget_flops'))}."
            )
    return lines


def missing_parts(run: RunRecord, baselines: Sequence[RunRecord]) -> list[str]:
    """What this page lacks, and why."""
    lines = []
    if not run.frontier:
        lines.append("No frontier and no test accuracy: they are measured when the run ends.")
    if not run.of_kind("groups"):
        name = f"the sampler {run.sampler}" if run.sampler else "this run's sampler"
        lines.append(f"No probabilities over time: {name} shifts none, or no update came yet.")
    if not run.of_kind("generator"):
        lines.append("No error of the generator, no entropy: no evaluation came yet.")
    if not run.of_kind("answers") and run.frontier:
        lines.append("Which answers were dropped is not in this log; archs are those of the table.")
    if run.drawn() and not run.has_every_draw:
        lines.append(
            "Losses per group and the FLOPs histogram are of one subnet in every logged step."
        )
    if not baselines:
        lines.append(
            "No baselines: nothing here says that the sampler helps. Give other runs with "
            "--baseline."
        )
    if run.recipe.get("seed") is not None:
        lines.append("One seed: differences of a few standard errors mean nothing yet.")
    return lines


def changes_at_resume(run: RunRecord) -> list[str]:
    """Settings and commits that a later process had otherwise than the one before."""
    lines = []
    starts = run.of_kind("start")
    for before, after in pairwise(starts):
        step = int(number(after, "step"))
        old, new = (dict(flat(_mapping(start.get("recipe")))) for start in (before, after))
        changed = [
            f"{key} {old.get(key, 'unset')} → {new.get(key, 'unset')}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        changed += [
            f"{key} {before.get(key)} → {after.get(key)}"
            for key in ("commit", "total_steps", "torch", "machine")
            if before.get(key) != after.get(key)
        ]
        lines.append(f"Step {step:,}: " + (", ".join(changed) if changed else "nothing") + ".")
    return lines


def flat(document: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted name, text)."""
    pairs: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            pairs.append((prefix + key, ", ".join(str(entry) for entry in value)))
        else:
            pairs.append((prefix + key, "–" if value is None else str(value)))
    return pairs


def _tiles(run: RunRecord) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for row, words in ((run.frontier[:1], "smallest"), (run.frontier[-1:], "largest")):
        if row and row[0].get("test_accuracy") is not None:
            size = format_flops(number(row[0], "flops"))
            text = f"{number(row[0], 'test_accuracy'):.1%}"
            pairs.append((text, f"test accuracy, {words} ({size} FLOPs)"))
    if run.space:
        pairs.append((run.space, "search space"))
    if run.sampler:
        pairs.append((run.sampler, "sampler"))
    pairs.append((f"{run.step:,}", "steps"))
    if run.seconds is not None:
        pairs.append((format_duration(run.seconds), "of training, evaluations included"))
    reports = [*run.of_kind("generator"), *run.of_kind("answers")]
    if reports and reports[-1].get("mean_error") is not None:
        pairs.append(
            (f"{number(reports[-1], 'mean_error'):.1%}", "error of the generator (argmax)")
        )
    return pairs


def _baseline_table(run: RunRecord, baselines: Sequence[RunRecord]) -> str:
    """Test accuracy per budget, a column per run."""
    head = ["budget", run.name, *(other.name for other in baselines)]
    rows = accuracy_cells([run, *baselines])
    if not rows:
        return "<p>The run itself has no frontier yet.</p>"
    return table(head, rows) + (
        '<p class="dim">Test accuracy. How the runs differ in steps, seeds and time is in their '
        "own reports.</p>"
    )


def _provenance(run: RunRecord) -> list[str]:
    starts = run.of_kind("start")
    if not starts:
        return ["<p>The log does not say.</p>"]
    pairs = [
        (key.replace("_", " "), str(value))
        for key, value in starts[-1].items()
        if key not in _LOG_FIELDS and value is not None
    ]
    seed = run.recipe.get("seed")
    pairs.append(("seed", "unknown" if seed is None else str(seed)))
    if starts[-1].get("data") is not None:
        pairs.append(("data", str(starts[-1]["data"])))
    answers = run.of_kind("answers")
    if answers and answers[-1].get("weights") is not None:
        pairs.append(("weights", str(answers[-1]["weights"])))
    images = starts[-1].get("images")
    if isinstance(images, Sequence) and len(images) == 3:
        train, held_out, test = images
        pairs.append(("images", f"{train} train, {held_out} held out, {test} test"))
    return [facts(pairs)]


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, Mapping) else {}


def _accuracy(row: Record, field: str) -> str:
    return "" if row.get(field) is None else f"{number(row, field):.2%}"
