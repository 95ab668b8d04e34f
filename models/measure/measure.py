"""``python -m models measure``: a latency table of this machine. No torch.

Subnets of the bundle's space are timed in groups (``timing``), what their layers take is worked out
(``fit``), and subnets that the fit has not seen tell how far off it is. After each group what has
been timed is kept beside the table, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from models import PRODUCT
from models.bundle.folder import Bundle
from models.costs.latency import latency
from models.costs.table import CostTable
from models.measure.design import chosen_archs, spread_archs
from models.measure.fit import Fitted, Forms, fit
from models.measure.machine import machine
from models.measure.timing import Setup, Timing, level, subnet_call, time_in_turn
from models.space.arch import Arch

UNSEEN = 30
"""Archs that are timed and not fitted to."""
GROUP = 24
_GROUP_BYTES = 3_000_000_000
_LEAST_ARCHS, _MOST_ARCHS = 60, 400
_LEAST_ROUNDS, _MOST_ROUNDS = 12, 200


@dataclass(frozen=True)
class Plan:
    """Which archs, in groups, and how often each is called. ``fitted``: not in ``unseen``."""

    anchors: tuple[Arch, ...]
    fitted: tuple[Arch, ...]
    unseen: tuple[Arch, ...]
    groups: tuple[tuple[Arch, ...], ...]
    rounds: int


def measure(
    bundle: Bundle,
    setup: Setup,
    out: Path,
    *,
    minutes: float = 5.0,
    archs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> CostTable:
    """Time, fit, check, and write the table.

    ``minutes``: about how long. ``archs``: how many are fitted to; by default twice the forms that
    layers have, between 60 and 400. Raises ValueError for an ``out`` that exists or cannot be
    written.
    """
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: {out.absolute().parent} is not a folder")
    if out.exists():
        raise ValueError(f"{out} exists; give another place, or remove it first")
    forms = Forms.of(bundle.space)
    plan = make_plan(bundle, setup, forms, minutes=minutes, archs=archs, seed=seed)
    partial = out.with_name(out.name + ".partial")
    key = {
        "bundle": bundle.version,
        "setup": asdict(setup),
        "machine": machine(),
        "archs": len(plan.fitted),
        "seed": seed,
    }
    medians, spent_s = _resumed(partial, key)
    if medians:
        say(f"{partial}: {len(medians)} of {len(plan.groups)} groups are there; going on")
    rng = np.random.default_rng([seed, len(medians)])
    for number in range(len(medians), len(plan.groups)):
        group = (*plan.anchors, *plan.groups[number])
        start = time.perf_counter()
        calls = [subnet_call(bundle, arch, setup) for arch in group]
        medians.append([asdict(one) for one in level(time_in_turn(calls, plan.rounds, rng))])
        del calls
        spent_s += time.perf_counter() - start
        _write(partial, {"key": key, "spent_s": spent_s, "groups": medians})
        left_s = spent_s / len(medians) * (len(plan.groups) - len(medians))
        say(
            f"group {len(medians)} of {len(plan.groups)}: {len(group)} subnets, {plan.rounds} "
            f"rounds; about {left_s:.0f} s left"
        )
    timings = _one_level(plan, medians)
    fitted_ms = np.array([timings[arch].ms for arch in plan.fitted])
    fitted = fit(forms, plan.fitted, fitted_ms)
    table = CostTable(
        "latency_ms",
        (bundle.space.name, bundle.space.num_classes),
        fitted.fixed,
        fitted.parts(),
        {
            **asdict(setup),
            "bundle": {"name": bundle.name, "version": bundle.version},
            "machine": machine(),
            "program": PRODUCT,
            "date": datetime.now(UTC).date().isoformat(),
            "spent_s": round(spent_s, 1),
            "archs": len(plan.fitted),
            "rounds": plan.rounds,
            "leeway": fitted.leeway,
        },
        check(bundle, fitted, plan.unseen, timings),
    )
    latency(bundle.space, table)  # before it is written: a table that cannot be read is of no use
    _write(out, table.to_json())
    partial.unlink(missing_ok=True)
    return table


def make_plan(
    bundle: Bundle,
    setup: Setup,
    forms: Forms,
    *,
    minutes: float,
    archs: int | None,
    seed: int,
) -> Plan:
    """The archs that tell most, and some at random that are not fitted to."""
    space, rng = bundle.space, np.random.default_rng(seed)
    count = archs or int(np.clip(2 * len(forms.forms), _LEAST_ARCHS, _MOST_ARCHS))
    middle = min(
        spread_archs(space, 200, rng), key=lambda a: abs(2 * space.flops(a) - space.max_flops)
    )
    anchors = tuple(dict.fromkeys((space.smallest, middle, space.largest)))
    fitted = chosen_archs(forms, count, rng)
    known = {*fitted, *anchors}
    unseen = [arch for arch in spread_archs(space, 40 * UNSEEN, rng) if arch not in known][:UNSEEN]
    shuffled = [*fitted, *unseen]
    shuffled = [shuffled[index] for index in rng.permutation(len(shuffled))]
    # in memory for each: the graph, the weights as they are and as they are laid out
    bytes_each = 3 * 4 * space.params(space.largest)
    size = int(np.clip(_GROUP_BYTES // bytes_each, 4, GROUP)) - len(anchors)
    groups = [tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    few = [subnet_call(bundle, arch, setup) for arch in anchors]
    round_ms = np.median(time_in_turn(few, 5, rng), axis=0).mean()
    round_s = round_ms / 1000 * sum(len(group) + len(anchors) for group in groups)
    rounds = int(np.clip(0.8 * 60 * minutes / round_s, _LEAST_ROUNDS, _MOST_ROUNDS))
    return Plan(anchors, tuple(fitted), tuple(unseen), tuple(groups), rounds)


def check(
    bundle: Bundle, fitted: Fitted, unseen: tuple[Arch, ...], timings: Mapping[Arch, Timing]
) -> dict[str, object]:
    """Prediction errors for archs that were not fitted to.

    Beside that of a straight line over FLOPs, which is fitted to these very archs.
    """
    space = bundle.space
    predicted = fitted.predict(unseen)
    ms = np.array([timings[arch].ms for arch in unseen])
    errors = np.abs(predicted / ms - 1)
    flops = np.array([space.flops(arch) for arch in unseen])
    line = np.polyfit(flops, ms, 1, w=1 / ms)
    return {
        "archs": len(unseen),
        "median_error": round(float(np.median(errors)), 5),
        "worst_error": round(float(errors.max()), 5),
        "within_5_percent": round(float((errors < 0.05).mean()), 4),
        "median_error_of_flops": round(
            float(np.median(np.abs(np.polyval(line, flops) / ms - 1))), 5
        ),
        "rows": [
            {
                "id": space.arch_id(arch),
                "flops": space.flops(arch),
                "predicted_ms": round(float(guess), 5),
                "measured_ms": round(timings[arch].ms, 5),
                "interval_ms": [round(timings[arch].low_ms, 5), round(timings[arch].high_ms, 5)],
            }
            for arch, guess in sorted(
                zip(unseen, predicted, strict=True), key=lambda pair: space.flops(pair[0])
            )
        ],
    }


def _one_level(plan: Plan, medians: list[list[dict[str, float]]]) -> dict[Arch, Timing]:
    """Groups brought to one level by the subnets that are in all of them."""
    count = len(plan.anchors)
    anchored = np.log([[one["ms"] for one in group[:count]] for group in medians])
    pace = np.exp(np.median(anchored - np.median(anchored, axis=0), axis=1))
    timings = {}
    for group, found, slower in zip(plan.groups, medians, pace, strict=True):
        for arch, one in zip(group, found[count:], strict=True):
            timings[arch] = Timing(**{name: value / float(slower) for name, value in one.items()})
    return timings


def _resumed(
    partial: Path, key: Mapping[str, object]
) -> tuple[list[list[dict[str, float]]], float]:
    """The groups that an earlier run of the same measurement has timed."""
    if not partial.is_file():
        return [], 0.0
    try:
        document = json.loads(partial.read_text(encoding="utf-8"))
        if document["key"] == key:
            return document["groups"], document["spent_s"]
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{partial} is of another measurement; remove it, or give another --out")


def _write(path: Path, document: Mapping[str, object]) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(document) + "\n", encoding="utf-8")
    scratch.replace(path)
