"""Recipe: everything that decides a training run's numbers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.recipes.settings import (
    AboveZero,
    AtLeastZero,
    Augment,
    Count,
    CountOrZero,
    Distillation,
    GeneratorOptions,
    Optimizer,
    SamplerOptions,
    Settings,
    Share,
    ShareBelowOne,
)


class Recipe(Settings):
    """Everything that decides a run's numbers; a run keeps it in its folder as recipe.json."""

    name: str
    """The recipe's name."""
    bundle_name: str = ""
    """Name of the model that it trains; empty takes that of the data's file or folder."""
    space: str
    """The search space."""
    data: str
    """A parquet or tar file or folder, an image folder, or a data set's name."""
    resolution: Count
    """Side of the images in pixels."""
    epochs: Count
    """How often training sees all images."""
    compute: AtLeastZero = 0.0
    """Multiply-adds that training may spend, in place of epochs; 0 is what those take. A backward
    pass counts as two forward ones, a masked pass as the whole supernet."""
    training_hours: AtLeastZero = 0.0
    """Hours of training by the clock, in place of epochs; 0 is as long as those take. Schedules
    follow the time that has gone, so that two such runs are not the same."""
    most_epochs: CountOrZero = 0
    """Epochs after which training ends at the latest; 0 is no bound."""
    batch_size: Count
    """Images of a step, of all processes together."""
    start: str = ""
    """What the weights begin as: efficientnet-lite0, timm:NAME, a file with such a network's
    weights, or a bundle; empty is at random."""
    statistics: Literal["arch", "start"] = "arch"
    """BatchNorm uses statistics measured for each arch (arch), or those of the start, which all
    archs share and which do not move (start)."""
    distillation: Distillation = Distillation()
    """What subnets learn from a teacher."""
    sampler: str = "static-tilt"
    """What draws the subnets of a step."""
    sampler_options: SamplerOptions = SamplerOptions()
    """What samplers have in common."""
    optimizer: Optimizer = Optimizer()
    """What moves the supernet's weights."""
    generator: GeneratorOptions = GeneratorOptions()
    """How the architecture generator learns."""
    augment: Augment = Augment()
    """Random changes of images."""
    drop_path: ShareBelowOne = 0.0
    """Probability with which training leaves out the last residual branch; it falls evenly to 0 at
    the first."""
    ema: ShareBelowOne = 0.0
    """Decay, like 0.999, of the moving average of the weights that is evaluated and bundled in
    their place; 0 for none."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Means of the three channels, on images scaled to 0..1."""
    std: tuple[AboveZero, AboveZero, AboveZero] = (0.229, 0.224, 0.225)
    """Standard deviations of the three channels."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the shorter side that the centred square of an image keeps; ImageNet's is 0.875."""
    warm_up_share: Share = 0.1
    """Part of the steps in which the distribution B stays uniform."""
    shift_every: CountOrZero = 0
    """Steps between updates of B: q of Algorithm 2. 0 fits it to the run: 100, or fewer where the
    steps after the warm-up are too few for 50 updates."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the training images that trains no weight, but moves B and makes every decision."""
    held_out_images: CountOrZero = 0
    """Number of held-out images; 0 takes held_out_share of them."""
    evaluate_every: CountOrZero = 10
    """Epochs between evaluations on held-out images; 0 evaluates at the end alone."""
    evaluation_budgets: Annotated[int, Field(ge=2)] = 8
    """Budgets at which the run is evaluated, even over the range."""
    calibration_batches: Count = 16
    """Batches of training images from which BatchNorm statistics are measured."""
    answer_budgets: Annotated[int, Field(ge=2)] = 128
    """Budgets that the generator is asked at the end, for what the bundle serves."""
    search_archs: CountOrZero = 0
    """Archs that are tried on held-out images at the end beside the generator's answers: mutations
    and crosses of those that did best. Then the most accurate of all are served. 0: the
    generator's answers alone."""
    answers_page: bool = False
    """Answer up to 1,000 test images with the bundle at the end, and report on it, worst photos
    and all."""
    half: bool = False
    """Store the bundle's weights in half precision, rounded before anything is measured."""
    data_in_memory: Literal["auto", "always", "never"] = "auto"
    """Decode images once (always), as they are needed (never), or as memory allows (auto)."""
    data_workers: Annotated[int, Field(ge=-1)] = -1
    """Processes that decode and change images ahead; -1 is as many as help."""
    skip_broken: bool = False
    """Leave out images that cannot be decoded, and count them."""
    shuffle_window: CountOrZero = 50_000
    """Images over which a source that is read in sequence (tars) is mixed; 0 is any order."""
    seed: CountOrZero = 0
    """Seed of every random number."""
    threads: CountOrZero = 0
    """Threads of torch in each process; 0 is as many as torch takes."""
    device: str = "cpu"
    """Where training runs: cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the supernet in training; fp16 scales its gradients."""
    accumulate: Count = 1
    """Parts of a process's images of a batch, which run one after another to need less memory."""
    activation_checkpointing: bool = False
    """Keep only what goes into blocks and run them again for their gradients, for less memory."""
    compile: bool = False
    """Run masked steps through torch.compile."""
    checkpoint_every_s: AtLeastZero = 120.0
    """Seconds between checkpoints; 0 is after every step."""
    tensorboard: bool = True
    """Also write the log as TensorBoard's curves."""

    @model_validator(mode="after")
    def _keeps_activations_one_way(self) -> Self:
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile and activation_checkpointing both choose which activations are kept: "
                "set one to false"
            )
        return self

    @model_validator(mode="after")
    def _is_as_long_one_way(self) -> Self:
        if self.compute and self.training_hours:
            raise ValueError("compute and training_hours both say how long a run is: set one to 0")
        return self

    @model_validator(mode="after")
    def _asks_about_one_image(self) -> Self:
        if self.distillation.views and self.augment.mixes:
            raise ValueError(
                f"distillation.views={self.distillation.views} keeps a teacher's answers for each "
                "image, and mixup or cutmix make new ones: set views to 0, or mixup and cutmix to 0"
            )
        return self

    @model_validator(mode="after")
    def _searches_what_it_trains(self) -> Self:
        if self.search_archs and self.sampler_options.archs:
            raise ValueError(
                f"search_archs={self.search_archs} tries archs that this run does not train: set "
                "it to 0, or train all (leave out --arch, set sampler_options.archs=[])"
            )
        return self

    def steps_between_updates(self, total_steps: int) -> int:
        """q, in a run of so many steps."""
        after_warm_up = total_steps - round(self.warm_up_share * total_steps)
        return self.shift_every or min(100, max(1, after_warm_up // 50))

    def updates(self, total_steps: int) -> int:
        """How often B moves in a run of so many steps: every q, after the warm-up."""
        every, warm_up = self.steps_between_updates(total_steps), self.warm_up_share * total_steps
        return total_steps // every - max(round(warm_up) - 1, 0) // every
