"""From a trained run to what it was for: the bundle, the accuracy per budget, the report."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from models.bundle.folder import FrontierRow, load_bundle, save_bundle
from models.bundle.manifest import frontier_entry
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets, report_generator
from models.interval import interval
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.nets.normalize import TensorStatistics, on_device
from models.onnx.template import export_template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import Statistics
from models.spaces import get_space
from trainer.data.run_data import (
    batches_of,
    calibration_count,
    calibration_images,
    evaluation_batches,
    preprocess_of,
)
from trainer.data.sources import Rows
from trainer.data.splits import Splits
from trainer.engine.average import described_weights, served_weights
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.disk import write_whole
from trainer.engine.log import JsonlLog, Record, read_log
from trainer.engine.provenance import provenance
from trainer.engine.state import frozen_of
from trainer.evaluation import (
    answers,
    calibrated,
    scores,
)
from trainer.evolution import children
from trainer.intervals import is_better
from trainer.pairs import curve, drawn_budgets, fit_confidence
from trainer.ranks import ALONE, Ranks
from trainer.recipes.recipe import Recipe
from trainer.report.answers import write_answers
from trainer.report.report import write_report
from trainer.report.run_record import read_runs
from trainer.samplers import build_sampler
from trainer.samplers.base import group_archs
from trainer.scores import Scores
from trainer.served import as_record, measure, some_answers

MOST_ANSWERED = 1_000
"""Test images for the page on what is served."""
A_GENERATION = 25
"""Archs that are tried before the parents of the next ones are chosen."""
DOMINATED_BY = 0.005
"""Accuracy by which a smaller answer must be better for a larger one to be dropped, if the held-out
images are enough to tell."""


def finish(recipe: Recipe, splits: Splits, folder: Path, ranks: Ranks = ALONE) -> Record:
    """Write ``folder/bundle``, ``frontier.json`` and ``report``; print the table per budget.

    Archs are the generator's answers to a fine grid of budgets and, where the recipe says so, what
    a search out of them finds, each calibrated on training images. ``held_out_accuracy`` is on
    training images that trained no weight, ``test_accuracy`` on test images, which decide nothing.
    The ranks share the archs out, and the first one writes; the others answer nothing.
    """
    ranks.wait()  # for the checkpoint
    state = load_checkpoint(folder)
    space = get_space(recipe.space, len(splits.labels))
    net = build_net(space).to(recipe.device)
    net.load_state_dict(served_weights(state))
    frozen = frozen_of(state, recipe.device)
    if recipe.half:
        round_to_half(net)
    generator = ArchitectureGenerator(space)
    generator.load_state_dict(state["generator"])
    # an arch may answer from its own FLOPs on; sorted, so that a larger budget gets a larger one
    alone = group_archs(space, recipe.sampler_options.archs)
    asked = alone or (
        *answers(generator, even_budgets(space, recipe.answer_budgets)),
        *resolutions_alone(space),
    )
    candidates = sorted({space.flops(arch): arch for arch in asked}.items())

    train = batches_of(recipe, splits, splits.train, train=True)
    images = calibration_images(train, calibration_count(recipe))
    held_out = evaluation_batches(splits.held_out, recipe.mean, recipe.std, recipe.device)
    test = evaluation_batches(splits.test, recipe.mean, recipe.std, recipe.device)
    measured: dict[Arch, TensorStatistics | None] = {}
    known: dict[Arch, Scores] = {}

    def try_out(archs: Sequence[Arch]) -> None:
        """Statistics and held-out scores of each; the ranks share them out."""
        here: list[tuple[TensorStatistics | None, Scores]] = []
        for number, arch in enumerate(ranks.shared_out(archs), start=1):
            own = None if frozen else calibrated(net, arch, images, recipe.device)
            its_scores = scores(net, arch, frozen or own, held_out, recipe.device)
            # tensors come to other ranks on the device that they leave from, which may be another
            here.append((None if own is None else on_device(own, "cpu"), its_scores))
            done = min(number * ranks.world_size, len(archs))
            if number % 25 == 0 or done == len(archs):
                print(f"calibrated and evaluated {done} of {len(archs)} archs", file=sys.stderr)
        for arch, (own, its_scores) in zip(archs, ranks.gathered(here), strict=True):
            measured[arch] = None if own is None else on_device(own, recipe.device)
            known[arch] = its_scores

    try_out([arch for _, arch in candidates])
    if recipe.search_archs:
        rng = torch.Generator().manual_seed(recipe.seed)
        while len(known) < len(candidates) + recipe.search_archs:
            left = len(candidates) + recipe.search_archs - len(known)
            parents = [arch for _, arch in most_accurate(space, known)]
            more = children(space, parents, known, min(left, A_GENERATION), rng)
            if not more:
                break
            try_out(more)
            done = len(known) - len(candidates)
            print(f"search: {done} of {recipe.search_archs} archs tried", file=sys.stderr)
    held_out_accuracy = {arch: its.accuracy for arch, its in known.items()}
    right = {arch: its_scores.right for arch, its_scores in known.items()}
    if recipe.search_archs:
        grid_answers = most_accurate(space, known)
    else:
        grid_answers = undominated(candidates, right, DOMINATED_BY)
    measured = {arch: measured[arch] for _, arch in grid_answers}
    budgets = _budgets(space, alone, recipe.evaluation_budgets)
    served = [_served(grid_answers, budget) for budget in budgets]
    confidence = fit_confidence(
        {flops: known[arch] for flops, arch in grid_answers}, f"{splits.title}, held out"
    )

    def tested(arch: Arch) -> Scores:
        statistics, temperature = frozen or measured[arch], known[arch].temperature
        return scores(net, arch, statistics, test, recipe.device, temperature)

    if ranks.is_first:
        print(f"measuring {len(served)} answers on {len(splits.test)} test images", file=sys.stderr)
    on_test = ranks.gathered([tested(arch) for arch in ranks.shared_out(served)])
    rows = [
        FrontierRow(
            budget,
            arch,
            space.flops(arch),
            space.params(arch),
            held_out_accuracy[arch],
            its.accuracy,
        )
        for budget, arch, its in zip(budgets, served, on_test, strict=True)
    ]
    if not ranks.is_first:
        return {}

    for left in folder.glob(".bundle.*"):  # by a process that was killed while it wrote one
        shutil.rmtree(left)
    statistics: dict[Arch, Statistics] = {
        arch: {name: (m.cpu().numpy(), v.cpu().numpy()) for name, (m, v) in values.items()}
        for arch, values in measured.items()
        if values is not None
    }
    report = report_generator(generator)
    with JsonlLog(folder / "log.jsonl", resume_step=int(state["step"])) as log:
        log.write(
            "answers",
            step=int(state["step"]),
            mean_error=report.mean_error,
            mean_use=report.mean_use,
            weights=described_weights(state),
            rows=_answer_rows(space, held_out_accuracy, grid_answers),
        )
    records = read_log(folder / "log.jsonl")
    seconds = [float(str(r["elapsed_s"])) for r in records if r["kind"] == "step"]
    # The last process had the settings that hold; of those before it, only what was otherwise.
    *before, last = [record for record in records if record["kind"] == "start"]
    trained_with: JsonValue = json.loads(json.dumps(last | {"step": int(state["step"])}))
    changed = [{k: v for k, v in one.items() if k == "step" or v != last.get(k)} for one in before]
    resumed: JsonValue = json.loads(json.dumps(changed))
    save_bundle(
        folder / "bundle",
        name=recipe.bundle_name or re.sub(r"[^\w.-]+", "-", splits.name).strip("-.") or recipe.name,
        space=space,
        preprocess=preprocess_of(recipe),
        labels=splits.labels,
        groups=build_sampler(recipe.sampler, space, recipe.sampler_options).groups,
        frontier=rows,
        answers=[(float(flops), arch) for flops, arch in grid_answers],
        weights={name: p.detach().cpu().numpy() for name, p in net.named_parameters()},
        generator={name: np.asarray(p) for name, p in generator.state_dict().items()},
        statistics=statistics if frozen is None else None,
        shared_statistics=None if frozen is None else frozen.shared,
        half=recipe.half,
        confidence=confidence,
        template=export_template(space),
        provenance={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "data": splits.title,
            "train_images": len(splits.train),
            "val_images": len(splits.held_out),
            "held_out": {"share": recipe.held_out_share, "images": recipe.held_out_images},
            "test_images": len(splits.test),
            "trained_on": state.get("trained_on"),
            "epochs": recipe.epochs,
            "start": recipe.start or None,
            "weights": described_weights(state),
            "training_s": max(seconds, default=None),
            "answers_asked": len(known),
            "answers_kept": len(grid_answers),
            "trained_with": trained_with,
            "earlier_processes": resumed,
            "bundled_with": dict(provenance()),
        },
    )
    least = float(grid_answers[0][0])  # archs that train alone need not begin at the smallest
    grid = [max(budget, least) for budget in even_budgets(space, recipe.answer_budgets)]
    served_use = float(np.mean([space.flops(_served(grid_answers, b)) / b for b in grid]))
    table = [frontier_entry(space, row).model_dump() for row in rows]
    write_whole(folder / "frontier.json", json.dumps(table, indent=1) + "\n")
    pairs = drawn_budgets(load_bundle(folder / "bundle"))
    alone_on_test = dict(zip(served, on_test, strict=True))
    for arch in {arch for pair in pairs.values() for arch in pair}.difference(alone_on_test):
        alone_on_test[arch] = tested(arch)
    by_flops = {space.flops(arch): its for arch, its in alone_on_test.items()}
    curves = [curve(by_flops, b, [space.flops(a) for a in pair]) for b, pair in pairs.items()]
    with JsonlLog(folder / "log.jsonl", resume_step=int(state["step"])) as log:
        rows_json = json.loads(json.dumps([one.to_json() for one in curves]))
        log.write("confidence", step=int(state["step"]), rows=rows_json)
    report_page, *_ = write_report(read_runs([folder]), folder / "report")
    print(_table(rows, len(splits.held_out), len(splits.test)), file=sys.stderr)
    if recipe.answers_page and splits.test_rows is not None:
        print(
            f"what is served: {_report_answers(recipe, splits.test_rows, folder)}", file=sys.stderr
        )
    if not alone:  # of which nothing answers budgets
        print(
            f"AG: argmax is {100 * report.mean_error:.2f} % off the budget on average; what is "
            f"served (answers: {len(grid_answers)}) uses {100 * served_use:.2f} % of it and never "
            "exceeds it",
            file=sys.stderr,
        )
    print(
        f"report: {report_page}\n"
        f"serve it: python -m shiftnas_serve --bundle {shlex.quote(str(folder / 'bundle'))}",
        file=sys.stderr,
    )
    return {
        "run": str(folder),
        "bundle": str(folder / "bundle"),
        "frontier": table,
        "generator_mean_error": report.mean_error,
        "generator_mean_use": report.mean_use,
        "served_mean_use": served_use,
    }


def _report_answers(recipe: Recipe, rows: Rows, folder: Path) -> Path:
    """Answer test images with the bundle as the server does, and write the page on it."""
    bundle = load_bundle(folder / "bundle")
    some = np.linspace(0, len(rows) - 1, min(len(rows), MOST_ANSWERED)).astype(np.int64)
    rows = rows.take(np.unique(some))
    answers = some_answers(bundle, recipe.evaluation_budgets)
    threads = recipe.threads or 1
    measured, read, _ = measure(
        bundle, answers, rows, rows.labels, threads=threads, skip_broken=recipe.skip_broken
    )
    document = [as_record(bundle, one) for one in measured]
    write_whole(folder / "answers.json", json.dumps(document, indent=1) + "\n")
    return write_answers(folder / "report", bundle, measured, rows, read)


def resolutions_alone(space: SearchSpace) -> list[Arch]:
    """The largest subnet at each resolution: what the other decisions have to beat."""
    names = space.resolution.decisions
    choices = itertools.product(*(space.decision[name].choices for name in names))
    largest = dict(space.largest)
    return [space.arch(largest | dict(zip(names, some, strict=True))) for some in choices]


@torch.no_grad()
def round_to_half(net: AbstractNet) -> None:
    """Every weight to the nearest that half precision holds."""
    for parameter in net.parameters():
        parameter.copy_(parameter.half())


def _budgets(space: SearchSpace, alone: Sequence[Arch], count: int) -> list[float]:
    """The budgets of a run's report: the FLOPs of the archs that it trains alone, or even ones."""
    return [float(space.flops(arch)) for arch in alone] or list(even_budgets(space, count))


def _answer_rows(
    space: SearchSpace,
    held_out_accuracy: Mapping[Arch, float],
    kept: Sequence[tuple[int, Arch]],
) -> list[Record]:
    """What was tried over the range, and which of it is served."""
    served = {arch for _, arch in kept}
    return [
        {
            "flops": space.flops(arch),
            "held_out_accuracy": accuracy,
            "served": arch in served,
            "arch": space.arch_to_json(arch),
        }
        for arch, accuracy in sorted(held_out_accuracy.items(), key=lambda row: space.flops(row[0]))
    ]


def most_accurate(space: SearchSpace, known: Mapping[Arch, Scores]) -> list[tuple[int, Arch]]:
    """The archs that are more accurate than all smaller ones, by FLOPs, ascending."""
    kept: list[tuple[int, Arch]] = []
    best = -1.0
    for arch in sorted(known, key=lambda arch: (space.flops(arch), -known[arch].accuracy)):
        if known[arch].accuracy > best:
            kept.append((space.flops(arch), arch))
            best = known[arch].accuracy
    return kept


def undominated(
    candidates: list[tuple[int, Arch]], right: Mapping[Arch, np.ndarray], margin: float
) -> list[tuple[int, Arch]]:
    """Drop answers that a smaller one beats on held-out images by more than ``margin`` and chance.

    right: which of the held-out images each gets right. To use the last of a budget, an answer may
    need choices that the generator hardly samples and the supernet hardly trained; a user is better
    served by the smaller subnet then. By FLOPs, ascending; the smallest always stays.
    """
    kept = candidates[:1]
    best = right[candidates[0][1]]
    for flops, arch in candidates[1:]:
        lead = best.mean() - right[arch].mean()
        if lead <= margin or not is_better(best, right[arch]):
            kept.append((flops, arch))
        if lead < 0:
            best = right[arch]
    return kept


def _served(grid: list[tuple[int, Arch]], budget: float) -> Arch:
    """The answer to a budget as the bundle gives it: the largest arch within it."""
    return [arch for flops, arch in grid if flops <= budget][-1]


def _table(rows: list[FrontierRow], held_out: int, test: int) -> str:
    lines = [f"budget MFLOPs   MFLOPs     params   {'held-out %':>20}   {'test %':>20}"]
    lines += [
        f"{row.budget_flops / 1e6:13.2f} {row.flops / 1e6:8.2f} {row.params:10,}   "
        f"{_with_interval(row.held_out_accuracy, held_out)}   "
        f"{_with_interval(row.test_accuracy, test)}"
        for row in rows
    ]
    return "\n".join([*lines, "in brackets: 95 % intervals"])


def _with_interval(accuracy: float | None, images: int) -> str:
    low, high = interval(accuracy or 0.0, images)
    return f"{100 * (accuracy or 0):6.2f} [{100 * low:5.2f}, {100 * high:5.2f}]"
