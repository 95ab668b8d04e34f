"""Train a supernet, its architecture generator and its sampling distribution.

    python -m trainer.run                                    # digits, a minute or two
    python -m trainer.run --recipe cifar10-cnn --data cifar10.parquet
    python -m trainer.run --recipe cifar10-cnn --set epochs=2 --set sampler=uniform-budget
    python -m trainer.run --resume runs/digits

``train`` below is the loop, Algorithm 1 of the paper with Algorithm 2 inside. A run leaves in its
folder: recipe.json, log.jsonl, checkpoint.pt, and at the end bundle/ (what the server reads),
frontier.json and report/ (tables and plots).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from models.generator import ArchitectureGenerator
from models.nets import build_net
from models.relaxed import RelaxedFlops
from models.spaces import get_space
from trainer.batches import Batches
from trainer.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from trainer.config import get_recipe, recipe_from_json, recipe_to_json, with_settings
from trainer.data import load_splits
from trainer.display import Display
from trainer.evaluate import (
    accuracy,
    answers,
    calibrated,
    calibration_images,
    evaluation_batches,
    even_budgets,
    report_generator,
)
from trainer.finish import finish
from trainer.log import JsonlLog, Record
from trainer.optim import (
    build_generator_optimizer,
    build_optimizer,
    learning_rate_at,
    set_learning_rate,
)
from trainer.probe import Probe
from trainer.provenance import provenance
from trainer.recipe import Recipe
from trainer.recipes import RECIPES
from trainer.samplers import build_sampler
from trainer.splits import Splits
from trainer.step import linear, pretrain_generator, train_step

LOG_EVERY_STEPS = 20


class Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads; a second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def train(recipe: Recipe, splits: Splits, folder: Path, *, resume: bool) -> int | None:
    """The loop. Leaves a checkpoint of the finished run; None, or the signal that stopped it."""
    # ---- what is trained -----------------------------------------------------------------------
    torch.manual_seed(recipe.seed)
    space = get_space(recipe.space, len(splits.labels))
    net = build_net(space).to(recipe.device)
    net = net.to(memory_format=torch.channels_last)
    generator = ArchitectureGenerator(space)
    sampler = build_sampler(recipe.sampler, space, recipe.sampler_options)
    optimizer = build_optimizer(net, recipe.optimizer)
    generator_optimizer = build_generator_optimizer(generator, recipe.generator.learning_rate)
    relaxed_flops = RelaxedFlops(space.flops_rule)
    rng = torch.Generator().manual_seed(recipe.seed)

    # ---- what it is trained on -----------------------------------------------------------------
    def batches_of(data: str, seed: int) -> Batches:
        return Batches(
            getattr(splits, data),
            min(recipe.batch_size, len(getattr(splits, data))),
            seed=seed,
            mean=recipe.mean,
            std=recipe.std,
            augment=recipe.augment if data == "train" else None,
            channels_last=True,
        )

    batches = batches_of("train", recipe.seed)
    steer_batches = batches_of("steer", recipe.seed)
    for_calibration = calibration_images(batches, recipe.calibration_batches)
    for_decisions = evaluation_batches(splits.steer, recipe.mean, recipe.std)
    total_steps = recipe.epochs * len(batches)
    warm_up_steps = round(recipe.warm_up_share * total_steps)

    # ---- state ---------------------------------------------------------------------------------
    step, elapsed_s = 0, 0.0
    before = {name: p.detach().clone() for name, p in net.named_parameters()}  # w_{t-1}
    if resume:
        state = load_checkpoint(folder)
        step, elapsed_s = int(state["step"]), float(state["elapsed_s"])
        net.load_state_dict(state["net"])
        generator.load_state_dict(state["generator"])
        optimizer.load_state_dict(state["optimizer"])
        generator_optimizer.load_state_dict(state["generator_optimizer"])
        sampler.load_state(state["sampler"])
        rng.set_state(state["rng"])
        before = {name: tensor.to(recipe.device) for name, tensor in state["before"].items()}

    def checkpoint() -> None:
        state = {
            "step": step,
            "elapsed_s": elapsed_s + time.monotonic() - started_at,
            "net": net.state_dict(),
            "generator": generator.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator_optimizer": generator_optimizer.state_dict(),
            "sampler": sampler.state(),
            "rng": rng.get_state(),
            "before": before,
        }
        save_checkpoint(folder, state)

    if step == 0:
        pretrain_generator(generator, relaxed_flops, recipe.generator, rng)

    # ---- Algorithm 1 ---------------------------------------------------------------------------
    log = JsonlLog(folder / "log.jsonl", resume_step=step)
    display = Display(f"{recipe.name}: {space.name} on {splits.name}")
    stream = batches.stream(*divmod(step, len(batches)))
    started_at = checkpointed_at = measured_at = time.monotonic()
    measured_step = step
    drawn: list[tuple[int, float]] = []
    with Interrupt() as interrupt, log, display:
        log.write(
            "start",
            step=step,
            total_steps=total_steps,
            recipe=recipe_to_json(recipe),
            data=splits.name,
            images=[len(splits.train), len(splits.steer), len(splits.test)],
            **provenance(),
        )
        while step < total_steps:
            learning_rate = learning_rate_at(step, total_steps, recipe.optimizer)
            set_learning_rate(optimizer, learning_rate)
            progress = step / total_steps
            options = recipe.generator
            set_learning_rate(
                generator_optimizer,
                linear(options.learning_rate, options.learning_rate / 10, progress),
            )
            temperature = linear(options.first_temperature, options.last_temperature, progress)

            optimizer.zero_grad()
            generator_optimizer.zero_grad()
            batch = next(stream)  # (x, y)
            result = train_step(  # b ~ B, a = AG(b), losses, gradients
                net,
                generator,
                relaxed_flops,
                sampler.draw(rng),
                batch.images.to(recipe.device),
                batch.labels.to(recipe.device),
                recipe,
                masked=step % options.masked_every == 0,
                temperature=temperature,
                rng=rng,
            )
            if not result.loss < float("inf"):
                raise ValueError(
                    f"the loss is {result.loss} at step {step} (subnet of {result.flops:,} FLOPs); "
                    f"resume the checkpoint with a lower optimizer.learning_rate "
                    f"(now {recipe.optimizer.learning_rate})"
                )
            if recipe.optimizer.clip_norm:
                torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.optimizer.clip_norm)
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimizer.step()
            generator_optimizer.step()
            step += 1
            drawn += result.drawn

            # ---- Algorithm 2, every q steps ----------------------------------------------------
            if sampler.learns and step % recipe.shift_every == 0:
                drops: list[float | None] | None = None
                if step >= warm_up_steps:
                    turn = step // recipe.shift_every
                    steer = steer_batches.batch(*divmod(turn, len(steer_batches)))
                    probe = Probe(
                        net,
                        generator,
                        before,
                        steer.images.to(recipe.device),
                        steer.labels.to(recipe.device),
                        noise=rng,
                        temperature=temperature,
                    )
                    drops = sampler.update(probe, rng)
                before = {name: p.detach().clone() for name, p in net.named_parameters()}
                log.write(
                    "groups",
                    step=step,
                    groups=list(sampler.groups),
                    probabilities=sampler.probabilities(),
                    loss_drops=drops,
                )

            # ---- what one sees -----------------------------------------------------------------
            epoch, index = divmod(step, len(batches))
            if step % LOG_EVERY_STEPS == 0:
                seconds = time.monotonic() - measured_at
                images_per_s = (step - measured_step) * recipe.batch_size / seconds
                measured_at, measured_step = time.monotonic(), step
                log.write(
                    "step",
                    step=step,
                    epoch=step / len(batches),
                    elapsed_s=elapsed_s + time.monotonic() - started_at,
                    loss=result.loss,
                    resource_loss=result.resource_loss,
                    lr=learning_rate,
                    images_per_s=images_per_s,
                    budget_flops=result.budget_flops,
                    flops=result.flops,
                    drawn_flops=[flops for flops, _ in drawn],
                    drawn_losses=[round(loss, 4) for _, loss in drawn],
                )
                drawn.clear()
                metrics = {
                    "epoch": step / len(batches),
                    "loss": result.loss,
                    "resource_loss": result.resource_loss,
                    "images_per_s": images_per_s,
                }
                probabilities = sampler.probabilities()
                groups = (
                    list(zip(sampler.groups, probabilities, strict=True)) if probabilities else None
                )
                display.update(step, total_steps, metrics, groups)

            if index == 0 and epoch % recipe.evaluate_every == 0 and step < total_steps:
                evaluation_at = time.monotonic()
                report = report_generator(generator)
                log.write(
                    "generator",
                    step=step,
                    mean_error=report.mean_error,
                    mean_use=report.mean_use,
                    entropy=entropies(generator, sampler.groups),
                )
                rows: list[Record] = []
                accuracies: list[str] = []
                budgets = even_budgets(space, recipe.evaluation_budgets)
                for budget, arch in zip(budgets, answers(generator, budgets), strict=True):
                    statistics = calibrated(net, arch, for_calibration, recipe.device)
                    right = accuracy(net, arch, statistics, for_decisions, recipe.device)
                    accuracies.append(f"{100 * right:.1f}")
                    rows.append(
                        {
                            "budget_flops": budget,
                            "flops": space.flops(arch),
                            "val_accuracy": right,
                            "arch": space.arch_to_json(arch),
                        }
                    )
                log.write(
                    "evaluation",
                    step=step,
                    rows=rows,
                    elapsed_s=elapsed_s + evaluation_at - started_at,
                    evaluation_s=time.monotonic() - evaluation_at,
                )
                display.message(
                    f"epoch {epoch}: held-out accuracy % from the smallest budget to the largest: "
                    f"{' '.join(accuracies)}; AG error {100 * report.mean_error:.1f} %"
                )
                measured_at, measured_step = time.monotonic(), step

            if interrupt.signal is not None or (
                time.monotonic() - checkpointed_at > recipe.checkpoint_every_s
            ):
                checkpoint()
                checkpointed_at = time.monotonic()
            if interrupt.signal is not None:
                return interrupt.signal
        checkpoint()
    return None


def entropies(generator: ArchitectureGenerator, groups: Sequence[int]) -> list[float]:
    """Entropy in nats of the generator's policy at each group: 0 is one arch and no other."""
    with torch.no_grad():
        _, log_probabilities = generator(torch.tensor(groups, dtype=torch.float64))
    each = [-(p.exp() * p).sum(1) for p in log_probabilities.values()]
    return torch.stack(each).sum(0).tolist()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status: 0 done, 2 a mistake of the user's, 128 + n stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.run",
        description=(__doc__ or "").split("``train``")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="digits", help=f"one of: {', '.join(RECIPES)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe's setting"
    )
    parser.add_argument(
        "--data", help="parquet file or folder, image folder, or a data set's name (digits)"
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run's folder")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Set up or resume a run, train, finish."""
    if options.resume is not None:
        folder, resume = options.resume, True
        if not (folder / "recipe.json").is_file():
            raise ValueError(
                f"{folder} holds no run (no recipe.json); start one with --out {folder}"
            )
        try:
            document = json.loads((folder / "recipe.json").read_text())
        except ValueError as error:
            raise ValueError(
                f"{folder / 'recipe.json'} is no JSON ({error}); restore it, or start a new run"
            ) from None
        recipe = with_settings(recipe_from_json(document), options.set)
        resume = (folder / CHECKPOINT_NAME).is_file()
    else:
        resume = False
        recipe = with_settings(get_recipe(options.recipe), options.set)
        folder = options.out or free_folder(Path("runs"), recipe.name)
        if (folder / "recipe.json").exists():
            raise ValueError(
                f"{folder} holds a run; resume it with --resume {folder}, or name another"
            )
    if options.data is not None:
        recipe = replace(recipe, data=options.data)
    get_space(recipe.space)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("training in several processes is not built yet; run without torchrun")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    splits = load_splits(
        recipe.data, steer_share=recipe.steer_share, seed=recipe.seed, resolution=recipe.resolution
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(recipe_to_json(recipe), indent=2) + "\n")
    print(f"{recipe.name} in {folder}: {len(splits.train):,} images train", file=sys.stderr)

    stopped = train(recipe, splits, folder, resume=resume)
    if stopped is not None:
        print(f"stopped; go on with: python -m trainer.run --resume {folder}", file=sys.stderr)
        return 128 + stopped
    result = finish(recipe, splits, folder)
    if options.json:
        print(json.dumps(result))
    return 0


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with the first free number behind it."""
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder


if __name__ == "__main__":
    sys.exit(main())
