"""Tables of experiments: a line for each variant and account, differences paired by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from benchmarks.experiments.paired import in_words
from benchmarks.parts.lines import Row

HEAD = (
    "| same | name | seeds | steps | 10^12 multiply-adds | held-out loss: difference | test loss "
    "| difference | accuracy, % | difference | smallest | largest |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def by_case(results: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Name of a case -> seed -> its record."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in results:
        found[str(row["case"])][row["seed"]] = row
    return found


def paired_table(
    results: Iterable[Row],
    accounts: Sequence[str],
    names: Iterable[str],
    base: Callable[[str], str],
    alone: Callable[[float], float] | None = None,
) -> str:
    """Cases are called ``name/account``; base: the case that an account is compared with.

    Losses and accuracies are means over the subnets that are measured; smallest and largest are
    the accuracies of the first and the last of them. ± is half of a 95 % interval of the mean.
    alone: FLOPs -> test loss of an arch that trains alone. With it there is a column of the worst
    regret, by how much the loss of a run's worst subnet lies above that.
    """
    found, names = by_case(results), list(names)
    lines = list(HEAD)
    if alone is not None:
        lines = [HEAD[0] + " worst regret | difference |", HEAD[1] + "--:|--:|"]
    for account in accounts:
        other = found.get(base(account), {})
        for name in names:
            case = f"{name}/{account}"
            runs = other if case not in found and base(account).startswith(f"{name}/") else None
            runs = found.get(case, {}) if runs is None else runs
            seeds = sorted(runs.keys() & other.keys())
            if seeds:
                mine, its = [[of[seed] for seed in seeds] for of in (runs, other)]
                cells = _cells(mine, its)
                if alone is not None:
                    cells += f" | {_regret_cells(mine, its, alone)}"
                lines.append(f"| {account} | {name} | {len(seeds)} | {cells} |")
    return "\n".join(lines)


def mean_of(run: Row, name: str) -> float:
    """Of a record's rows."""
    return statistics.mean(row[name] for row in run["rows"])


def _cells(runs: Sequence[Row], base: Sequence[Row]) -> str:
    def gains(name: str, scale: float, digits: int) -> str:
        pairs = zip(runs, base, strict=True)
        return in_words([scale * (mean_of(a, name) - mean_of(b, name)) for a, b in pairs], digits)

    def end(place: int) -> float:
        return statistics.mean(100 * run["rows"][place]["test_accuracy"] for run in runs)

    steps = statistics.mean(run["steps"] for run in runs)
    spent = statistics.mean(run["compute"] for run in runs) / 1e12
    loss = statistics.mean(mean_of(run, "test_loss") for run in runs)
    right = statistics.mean(100 * mean_of(run, "test_accuracy") for run in runs)
    return (
        f"{steps:,.0f} | {spent:.2f} | {gains('held_out_loss', 1, 3)} | {loss:.3f} "
        f"| {gains('test_loss', 1, 3)} | {right:.1f} "
        f"| {gains('test_accuracy', 100, 1)} | {end(0):.1f} | {end(-1):.1f}"
    )


def _regret_cells(runs: Sequence[Row], base: Sequence[Row], alone: Callable[[float], float]) -> str:
    def worst(run: Row) -> float:
        return max(row["test_loss"] - alone(row["flops"]) for row in run["rows"])

    gains = [worst(a) - worst(b) for a, b in zip(runs, base, strict=True)]
    return f"{statistics.mean(map(worst, runs)):.3f} | {in_words(gains, 3)}"
