"""Recipe: everything that decides a training run's numbers, as frozen values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trainer.recipes.allowed import NOT_ALL, SHARE, SOME, Allowed, at_least, check_numbers
from trainer.recipes.settings import Augment, GeneratorOptions, Optimizer, SamplerOptions


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's numbers.

    compute: multiply-adds that the run may spend, in place of epochs; 0 for as many as those take
    (``trainer.engine.horizon``). drop_path: probability with which training leaves out the last
    residual branch; it falls evenly to 0 at the first. ema: decay of the moving average of the
    weights that is evaluated and bundled in their place, 0 for none (``average.py``).
    warm_up_share: part of the steps in which B stays uniform. shift_every: q, steps between
    updates of B. held_out_share: part of
    the training images that trains no weight, but steers B and every decision; held_out_images: so
    many instead, if not 0. evaluate_every: epochs between evaluations on them, 0 for none before
    the end. data_in_memory: decode images once ("always"), as they are needed ("never"), or as
    fits ("auto"). data_workers: processes that decode and augment; -1 is up to 8 where images are
    handled one by one. skip_broken: leave out images that cannot be decoded, and count them.
    shuffle_window: images over which a source that is read in sequence (tars) is mixed; 0 reads
    it in any order. batch_size: of all processes together. accumulate: parts of a process's images
    of a batch, which run one after another to need less memory. precision: of the supernet in
    training; fp16 scales its gradients. activation_checkpointing: keep only what goes into blocks
    and run them again for their gradients, for less memory. compile: run masked steps through
    torch.compile (``trainer.engine.compiled``). tensorboard: also write the log as
    TensorBoard's curves.
    """

    name: str
    space: str
    data: str
    resolution: int
    epochs: int
    batch_size: int
    compute: float = 0.0
    sampler: str = "shift"
    sampler_options: SamplerOptions = field(default_factory=SamplerOptions)
    optimizer: Optimizer = field(default_factory=Optimizer)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    augment: Augment = field(default_factory=Augment)
    drop_path: float = 0.0
    ema: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    warm_up_share: float = 0.1
    shift_every: int = 100
    held_out_share: float = 0.1
    held_out_images: int = 0
    evaluate_every: int = 10
    evaluation_budgets: int = 8
    calibration_batches: int = 16
    answer_budgets: int = 128
    data_in_memory: Literal["auto", "always", "never"] = "auto"
    data_workers: int = -1
    skip_broken: bool = False
    shuffle_window: int = 50_000
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_every_s: float = 120.0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_numbers(
            "",
            self,
            {
                "resolution": at_least(1),
                "epochs": at_least(1),
                "batch_size": at_least(1),
                "compute": at_least(0, "in multiply-adds, 0 for what the epochs take"),
                "drop_path": NOT_ALL,
                "ema": Allowed("a decay below 1, like 0.999, or 0 for none", NOT_ALL.holds),
                "warm_up_share": SHARE,
                "shift_every": at_least(1, "sampler=uniform-budget never moves B"),
                "held_out_share": SOME,
                "held_out_images": at_least(0, "0 is a held_out_share of them"),
                "evaluate_every": at_least(0, "0 is never before the end"),
                "evaluation_budgets": at_least(1),
                "calibration_batches": at_least(1),
                "answer_budgets": at_least(2),
                "data_workers": at_least(-1, "-1 is as many as help"),
                "shuffle_window": at_least(0, "0 is any order"),
                "seed": at_least(0),
                "threads": at_least(0, "0 is as many as torch takes"),
                "accumulate": at_least(1),
                "checkpoint_every_s": at_least(0, "0 is after every step"),
            },
        )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean is {list(self.mean)}; it takes three numbers, like 0.5")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"std is {list(self.std)}; it takes three numbers above 0")
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile and activation_checkpointing both choose which activations are kept: "
                "set one to false"
            )
