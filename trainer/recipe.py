"""Recipe: everything that decides a training run's numbers, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trainer.augment import Augment
from trainer.samplers.base import SamplerOptions


@dataclass(frozen=True)
class Optimizer:
    """Of the supernet's weights: one cosine cycle with a linear warm-up.

    name: "sgd" (Nesterov, momentum 0.9) or "adamw". weight_decay is not applied to norms and
    biases. clip_norm: of the gradient, 0 for none.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warm_up_share: float = 0.1
    clip_norm: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class GeneratorOptions:
    """Of the architecture generator and its losses.

    resource_weight: lambda of L_RC = ((FLOPs - budget) / range)^2. resource_batch: budgets over
    which L_RC is taken every step. masked_every: every m-th step runs masks and sends the task
    loss to the generator too; the others run sliced subnets, which are faster. 1 is the paper;
    at equal time 4 to 128 did better on digits (docs/experiments.md), 16 is among them.
    temperature: of the Gumbel softmax, linear from first to last. entropy_weight: keeps it from
    settling before the supernet can tell archs apart. pretrain_steps: on the resource loss alone,
    before the supernet's first step, at pretrain_learning_rate.
    """

    learning_rate: float = 1e-3
    resource_weight: float = 20.0
    resource_batch: int = 16
    masked_every: int = 16
    first_temperature: float = 1.0
    last_temperature: float = 0.3
    entropy_weight: float = 1e-3
    pretrain_steps: int = 0
    served_share: float = 0.5
    pretrain_learning_rate: float = 3e-3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's numbers.

    drop_path: probability with which training leaves out the last residual branch; it falls evenly
    to 0 at the first. ema: decay of the moving average of the weights that is evaluated and
    bundled in their place, 0 for none (``trainer.average``). warm_up_share: part of the steps
    in which B stays uniform. shift_every: q, steps between updates of B. steer_share: part of
    the training images that trains no weight, but steers B and every decision; steer_images: so
    many instead, if not 0. evaluate_every: epochs between evaluations on them. data_in_memory:
    decode images once ("always"), as they are needed ("never"), or as fits ("auto").
    data_workers: processes that decode and augment; -1 is up to 8 where images are handled one
    by one. skip_broken: leave out images that cannot be decoded, and count them.
    shuffle_window: images over which a source that is read in sequence (tars) is mixed; 0 reads
    it in any order. batch_size: of all processes together. accumulate: parts of a process's images
    of a batch, which run one after another to need less memory. precision: of the supernet in
    training; fp16 scales its gradients. activation_checkpointing: keep only what goes into blocks
    and run them again for their gradients, for less memory. compile: run masked steps through
    torch.compile (``trainer.compiled``). tensorboard: also write the log as
    TensorBoard's curves.
    """

    name: str
    space: str
    data: str
    resolution: int
    epochs: int
    batch_size: int
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
    steer_share: float = 0.1
    steer_images: int = 0
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
        least_one = ("epochs", "batch_size", "resolution", "shift_every", "evaluation_budgets")
        for name in (*least_one, "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes at least 1")
        for name, least in (("steer_images", 0), ("data_workers", -1), ("shuffle_window", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes at least {least}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it is a probability below 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it is a decay below 1, like 0.999, or 0 for none")
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile and activation_checkpointing both choose which activations are kept: "
                "set one to false"
            )
        if self.answer_budgets < 2:
            raise ValueError(f"answer_budgets is {self.answer_budgets}; it takes at least 2")
