"""What does weight sharing cost a training step, and the generator, and the distribution?

    python -m benchmarks.train_step --space cifar-cnn
    python -m benchmarks.train_step --space vit-tiny --rounds 5
    python -m benchmarks.train_step --space vit-tiny --device cuda --batch 256
    python -m benchmarks.train_step --space nano-vit --beside compile bf16

Whole steps (forward, backward, optimizer) of one arch in the middle of the range, in turn: a static
network extracted at that arch, our sliced step of it, the static largest subnet, our masked step
with its generator, and the generator's work alone. Then updates of the distribution. Ratios are
medians over rounds of ratios within a round. On a CPU time is processor time, of which other work
on the machine takes none; on a GPU it is wall time. The images are random.

``--beside`` times other ways to run the same masked step instead, in turn with it: through
torch.compile (what compiling took is said apart), or in half precision. In half precision the
sliced step is timed too.

The reference for ViTs is torchvision's VisionTransformer at the sizes of timm's ViT-Ti/16.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.parts.timing import machine
from models.command import command_parser, tells_mistakes
from models.generator.answer import answer_within
from models.generator.report import policy_of
from models.nets import build_net
from models.nets.extract import extract
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces import get_space
from models.spaces.vit import vit_space
from trainer.data.run_data import run_data
from trainer.dry_run.measure import random_splits
from trainer.engine.optim import Schedule, build_optimizer
from trainer.engine.probe import probe_of
from trainer.engine.state import fresh_state
from trainer.engine.step import autocast, train_step
from trainer.recipes.config import get_recipe, with_settings
from trainer.recipes.recipe import Recipe
from trainer.samplers import AbstractSampler, build_sampler

SPACES = {
    "vit-tiny": ("vit-tiny", 16),
    "cifar-cnn": ("cifar10-cnn", 128),
    "nano-vit": ("digits", 64),
    "nano-cnn": ("digits", 64),
}
"""Space -> recipe whose settings hold, and images of a step."""
SHIFT_EVERY = 100
WAYS = {
    "compile": ["compile=true"],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
}
"""To run a masked step, beside that of the recipe: the settings of each."""
ESTIMATORS = ("shift", "shift-direct")
SLICED = Schedule(learning_rate=1e-4, generator_learning_rate=1e-3, temperature=0.7, masked=False)
MASKED = replace(SLICED, masked=True)
REFERENCE = "torchvision ViT-Ti/16"


@dataclass(frozen=True)
class Target:
    """A measured ratio and the most that it may be."""

    name: str
    value: float
    at_most: float


def middle_arch(space: SearchSpace, seed: int) -> Arch:
    """Of 300 random archs the one whose FLOPs are nearest to the middle of the range."""
    rng = np.random.default_rng(seed)
    middle = (space.min_flops + space.max_flops) / 2
    archs = [space.random_arch(rng) for _ in range(300)]
    return min(archs, key=lambda arch: abs(space.flops(arch) - middle))


def reference_vit() -> tuple[nn.Module, int]:
    """The ViT of torchvision at ViT-Ti's sizes, and its FLOPs by this project's rule."""
    from torchvision.models.vision_transformer import VisionTransformer

    sizes = vit_space(
        "vit-ti",
        image=224,
        patch=16,
        embed_dim=(192,),
        depth=(12,),
        num_heads=(3,),
        mlp_ratio=(4,),
        head_dim=64,
        num_classes=1000,
    )
    net = VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    return net, sizes.max_flops


def static_step(
    net: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, *arch: Arch
) -> Callable[[], None]:
    """A call that trains ``net`` for a step."""
    optimizer = build_optimizer(net, recipe.optimizer)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(recipe, images.device):
            logits = net(images, *arch)
        F.cross_entropy(
            logits.float(), labels, label_smoothing=recipe.optimizer.label_smoothing
        ).backward()
        optimizer.step()

    return step


def candidates(recipe: Recipe, arch: Arch) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    space = get_space(recipe.space)
    splits = random_splits(recipe, space.num_classes, recipe.batch_size)
    batch = run_data(recipe, splits).train.batch(0, 0)
    images = batch.images.to(recipe.device).contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(recipe.device)
    torch.manual_seed(recipe.seed)

    def ready(net: nn.Module) -> nn.Module:
        return net.to(recipe.device).to(memory_format=torch.channels_last).train()

    supernet = build_net(space)
    calls: dict[str, Callable[[], object]] = {
        "static": static_step(ready(extract(supernet, arch)), recipe, images, labels),
        "sliced": static_step(ready(supernet), recipe, images, labels, arch),
        "largest": static_step(ready(build_net(space)), recipe, images, labels),
    }
    if space.name.startswith("vit"):
        calls[REFERENCE] = static_step(ready(reference_vit()[0]), recipe, images, labels)

    state = fresh_state(recipe, splits)
    calls["masked"] = lambda: train_step(state, batch, MASKED, recipe)

    def generator_step() -> None:
        """All of a sliced step but the subnet."""
        (draw,) = state.sampler.draw(state.rng)
        assert draw.budget_flops is not None
        state.generator_optimizer.zero_grad()
        policies, loss, _ = state.resource_loss(
            state.generator, [draw.budget_flops], temperature=0.7, rng=state.rng
        )
        loss.backward()
        if float(torch.rand((), generator=state.rng)) < recipe.generator.served_share:
            answer_within(policy_of(state.generator), draw.budget_flops)
        else:
            state.generator.relaxed(policies).arch()
        torch.nn.utils.clip_grad_norm_(state.generator.parameters(), 1.0)
        state.generator_optimizer.step()

    calls["generator"] = generator_step
    for name in ESTIMATORS:
        sampler = build_sampler(name, space, recipe.sampler_options)

        def update(sampler: AbstractSampler = sampler) -> None:
            sampler.update(probe_of(state, batch, MASKED, recipe, [batch]), state.rng)
            state.keep_weights()

        state.keep_weights()
        calls[f"update {name}"] = update
    return calls


def beside(recipe: Recipe, ways: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Whole steps of a recipe, and of the same with a setting changed, by name."""
    space = get_space(recipe.space)
    splits = random_splits(recipe, space.num_classes, recipe.batch_size)
    batch = run_data(recipe, splits).train.batch(0, 0)
    calls: dict[str, Callable[[], object]] = {}
    for way in ("", *ways):
        changed = with_settings(recipe, WAYS[way]) if way else recipe
        for schedule in (MASKED,) if way == "compile" else (MASKED, SLICED):
            state = fresh_state(changed, splits)
            name = f"{'masked' if schedule.masked else 'sliced'} {way}".strip()
            calls[name] = partial(train_step, state, batch, schedule, changed)
    return calls


def time_calls(
    calls: Mapping[str, Callable[[], object]], device: str, rounds: int
) -> dict[str, np.ndarray]:
    """Milliseconds of every call, (rounds,), in turn, after a first round, which comes with them.

    What is compiled is compiled in that round.
    """
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if on_gpu:
                torch.cuda.synchronize(device)
            taken[name].append(1000 * (clock() - start))
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return {name: np.array(values) for name, values in taken.items()}


def targets(taken: Mapping[str, np.ndarray], recipe: Recipe, arch: Arch) -> list[Target]:
    """The ratios that a step is judged by."""
    space = get_space(recipe.space)
    masked_share = 1 / recipe.generator.masked_every
    step = masked_share * taken["masked"] + (1 - masked_share) * (
        taken["sliced"] + taken["generator"]
    )

    def median(ratio: np.ndarray) -> float:
        return round(float(np.median(ratio)), 4)

    found = [
        Target("sliced / static of the same arch", median(taken["sliced"] / taken["static"]), 1.05),
        Target(
            "generator, L_RC, bookkeeping / sliced step",
            median(taken["generator"] / (taken["generator"] + taken["sliced"])),
            0.05,
        ),
        Target("masked / largest subnet", median(taken["masked"] / taken["largest"]), 1.15),
    ]
    for name in ESTIMATORS:
        cost = taken[f"update {name}"]
        share = cost / (cost + SHIFT_EVERY * step)
        found.append(Target(f"update by {name} / training, q = 100", median(share), 0.03))
    if REFERENCE in taken:
        ours = taken["sliced"] / space.flops(arch)
        theirs = taken[REFERENCE] / reference_vit()[1]
        found.append(Target(f"sliced / {REFERENCE}, per FLOP", median(ours / theirs), 1.2))
    return found


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.train_step", __doc__, json=False)
    parser.add_argument("--space", choices=list(SPACES), default="cifar-cnn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=WAYS,
        default=[],
        metavar="WAY",
        help="other ways to run a step: compile, bf16, fp16",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available; leave --device out")
    torch.set_num_threads(options.threads)
    name, batch = SPACES[options.space]
    recipe = get_recipe(name).replace(
        space=options.space,
        batch_size=options.batch or batch,
        device=options.device,
        precision=options.precision,
        seed=options.seed,
    )
    arch = middle_arch(get_space(recipe.space), options.seed)
    calls = beside(recipe, options.beside) if options.beside else candidates(recipe, arch)
    timed = time_calls(calls, options.device, options.rounds)
    first_ms = {name: round(values[0], 1) for name, values in timed.items()}
    taken = {name: values[1:] for name, values in timed.items()}
    found = [] if options.beside else targets(taken, recipe, arch)
    ratios = {
        f"{name} / {name.split()[0]}": np.percentile(values / taken[name.split()[0]], (10, 50, 90))
        for name, values in taken.items()
        if options.beside and " " in name
    }
    space = get_space(recipe.space)
    where = "processor" if options.device == "cpu" else "wall"
    print(
        f"{space.name}, {recipe.batch_size} images a step, arch of {space.flops(arch):,} FLOPs "
        f"(largest {space.max_flops:,}), {recipe.precision}, {where} time, {options.rounds} rounds"
    )
    for name, values in taken.items():
        low, middle, high = np.percentile(values, (10, 50, 90))
        print(f"  {name:24} {middle:10.2f} ms   ({low:.2f} to {high:.2f})")
    for name, (low, middle, high) in ratios.items():
        first_s = first_ms[name.split(" /")[0]] / 1000
        print(f"  {name:30} {middle:.3f} ({low:.3f} to {high:.3f}), first step {first_s:.1f} s")
    for target in found:
        verdict = "kept" if target.value <= target.at_most else "MISSED"
        print(f"  {target.name:48} {target.value:.4f}   at most {target.at_most}: {verdict}")
    document = {
        "benchmark": "train_step",
        "space": space.name,
        "batch": recipe.batch_size,
        "flops": space.flops(arch),
        "masked_every": recipe.generator.masked_every,
        "seed": options.seed,
        "threads": options.threads,
        "milliseconds": {
            name: [round(float(v), 3) for v in np.percentile(values, (10, 50, 90))]
            for name, values in taken.items()
        },
        "first_milliseconds": first_ms,
        "ratios": {name: [round(float(v), 4) for v in values] for name, values in ratios.items()},
        "targets": {t.name: {"value": t.value, "at_most": t.at_most} for t in found},
        "machine": {**machine(), "torch": torch.__version__, "device": _device(options.device)},
    }
    print(json.dumps(document))
    return 0


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    sys.exit(main())
