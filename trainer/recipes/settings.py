"""The parts of a recipe, and what all settings have in common: frozen, typed, checked at once.

The text under a setting says what it means; ``python -m trainer.run --settings`` lists them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

AtLeastZero = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]

Border = Literal["reflect", "zero"]
Policy = Literal[
    "randaugment",
    "rand-m9-mstd0.5-inc1",
    "autoaugment-cifar10",
    "autoaugment-imagenet",
    "trivialaugment",
    "augmix",
]


class Settings(BaseModel):
    """A frozen group of settings. Raises ValueError for a value that is not allowed."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def replace(self, **changes: Any) -> Self:
        """The same with some settings changed, and checked again.

        Raises ValueError, in one line, for the first that is not allowed.
        """
        try:
            return type(self)(**{**dict(self), **changes})
        except ValidationError as error:
            raise ValueError(in_words(error)) from None


def in_words(error: ValidationError) -> str:
    """The first mistake, in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    key = key_of(first["loc"])
    if first["type"] == "missing":
        return f"{key} is missing"
    given = json.dumps(first["input"], default=str)
    return f"{key} is {given}; {first['msg'].replace('Input', 'it', 1)}"


def key_of(place: tuple[int | str, ...]) -> str:
    """A setting as people write it: ``sampler_options.tilt[0]``."""
    parts = [part if isinstance(part, str) else f"[{part}]" for part in place]
    return ".".join(parts).replace(".[", "[")


class Optimizer(Settings):
    """Of the supernet's weights: a linear warm-up, then one cosine to zero."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd is Nesterov's, with momentum 0.9."""
    learning_rate: AtLeastZero = 0.1
    """Learning rate at its peak."""
    weight_decay: AtLeastZero = 5e-4
    """Weight decay of matrices and kernels; norms and biases have none."""
    warm_up_share: Share = 0.1
    """Part of the steps in which the learning rate rises."""
    clip_norm: AtLeastZero = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of a label that goes to all classes alike."""


class GeneratorOptions(Settings):
    """Of the architecture generator (AG) and its losses."""

    learning_rate: AtLeastZero = 1e-3
    """Learning rate of Adam at the start; it falls to a tenth."""
    resource_weight: AtLeastZero = 20.0
    """Lambda of L_RC = ((FLOPs - budget) / range)^2."""
    resource_batch: Count = 16
    """Budgets over which L_RC is taken in every step."""
    masked_every: Count = 16
    """Every how many steps subnets run as masks, through which the task loss reaches the generator.
    Other steps run slices, which are faster. 1 is the paper; at equal time 4 to 128 did better on
    digits (docs/experiments)."""
    first_temperature: AboveZero = 1.0
    """Temperature of the Gumbel softmax at the first step; it moves linearly to the last."""
    last_temperature: AboveZero = 0.3
    """Temperature of the Gumbel softmax at the last step."""
    entropy_weight: AtLeastZero = 1e-3
    """Keeps the generator from settling before the supernet can tell archs apart."""
    pretrain_steps: CountOrZero = 0
    """Steps on L_RC alone, before the supernet's first step."""
    served_share: Share = 0.5
    """Share of sliced steps that train what would be served at the budget, not a sample."""
    pretrain_learning_rate: AtLeastZero = 3e-3
    """Learning rate of Adam in those first steps."""


class Distillation(Settings):
    """What subnets learn from a teacher's answers to the same images, beside their labels."""

    teacher: str = ""
    """largest is the largest subnet, as it is at that moment; it has to be trained. A network that
    does not learn is a bundle (what it answers to its largest budget), a subnet as an .onnx file,
    or timm:NAME. Empty: no teacher."""
    weight: Share = 1.0
    """Share of the teacher's answers in the loss; the labels have the rest."""
    temperature: AboveZero = 1.0
    """The logits of both are divided by it (arXiv 1503.02531)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the largest subnet answers as the teacher."""
    views: CountOrZero = 0
    """How often a teacher that does not learn is asked about an image, in the first epochs: what
    it says of that many random views of it. All later epochs learn from the mean of these logits,
    and cost no more than without a teacher. They take 4 bytes for each image and class, in memory
    and in every checkpoint: 5 GB for ImageNet. 0 asks about every view."""

    @model_validator(mode="after")
    def _asks_what_stays(self) -> Self:
        if self.views and self.teacher in ("", "largest"):
            given = "is empty" if not self.teacher else "learns with the others"
            raise ValueError(
                f"distillation.views={self.views} keeps the answers of a teacher, and "
                f"distillation.teacher {given}: name one that does not learn, or set views to 0"
            )
        return self


class Augment(Settings):
    """Which random changes an image gets, in this order; cutout and erase after normalization."""

    padding: CountOrZero = 4
    """The image moves by up to this many pixels on both axes."""
    border: Border = "reflect"
    """What fills the border then: the image's mirror image, or black."""
    flip: bool = True
    """Mirror left-right with probability 1/2; not for digits or text."""
    alternate_flips: bool = False
    """Mirror each image in every second epoch instead, half of them in the first (arXiv
    2404.00498): two epochs then show both sides of all images."""
    cutout: CountOrZero = 0
    """Side in pixels of a square of the mean colour at a random centre (arXiv 1708.04552)."""
    policy: Policy | None = None
    """A policy of torchvision or timm, image by image. rand-m9-mstd0.5-inc1 is timm's, of DeiT's
    and AutoFormer's recipes; torchvision's randaugment has fewer operations and other strengths."""
    crop_area: Share = 0.0
    """A random part, of at least this share of the image's area and of sides 3:4 to 4:3, becomes
    the image (0.08 for ImageNet); 0 for none. Needs padding=0."""
    erase: Share = 0.0
    """Probability that a rectangle of 2 % to 33 % of the image becomes noise (arXiv 1708.04896,
    noise per pixel as in DeiT)."""
    mixup: AtLeastZero = 0.0
    """Alpha of the Beta distribution by which two images share, like 0.8; 0 for none
    (arXiv 1710.09412). Labels become shares of classes."""
    cutmix: AtLeastZero = 0.0
    """Alpha of the same for CutMix (arXiv 1905.04899); 0 for none."""
    cutmix_share: Share = 0.5
    """Share of images that get CutMix where both are set; the others get Mixup."""
    mix_probability: Share = 1.0
    """Share of the images that are mixed at all."""
    repeats: Count = 1
    """Changed copies of an image in a global batch (repeated augmentation, arXiv 1902.05509; 3 in
    DeiT). An epoch has as many steps as ever, so it sees 1 / repeats of the images."""

    @model_validator(mode="after")
    def _crops_once(self) -> Self:
        if self.crop_area and self.padding:
            raise ValueError(
                f"augment.crop_area {self.crop_area} and augment.padding {self.padding} both crop: "
                "set one to 0"
            )
        return self

    @model_validator(mode="after")
    def _alternates_what_flips(self) -> Self:
        if self.alternate_flips and not self.flip:
            raise ValueError("augment.alternate_flips mirrors images: set augment.flip to true")
        if self.alternate_flips and self.repeats > 1:
            raise ValueError(
                f"augment.alternate_flips mirrors all copies of an image or none, and "
                f"augment.repeats={self.repeats} leaves images out of an epoch: set repeats to 1, "
                "or alternate_flips to false"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


class SamplerOptions(Settings):
    """What samplers have in common; each uses what concerns it."""

    groups: Annotated[int, Field(ge=2)] = 8
    """FLOPs groups between the smallest and the largest subnet."""
    learning_rate: AtLeastZero = 1e-2
    """The most that a logit of the distribution B moves at an update. The paper: 1e-3, for 5,600
    updates; fewer updates need more."""
    floor: Share = 0.2
    """Share of the uniform distribution that is always mixed in, so that no group dies."""
    as_printed: bool = False
    """Use the sign of Algorithm 2 as the paper prints it, against its prose."""
    jitter: bool = True
    """Draw the budget anywhere in the group, not only at its upper end."""
    groups_per_update: Annotated[int, Field(ge=2)] = 4
    """Groups that shift-direct measures at an update, to compare their drops."""
    tilt: tuple[float, float] = (-4.0, -4.0)
    """For static-tilt: the logarithm of how much more often the largest group is drawn than the
    smallest, at the start and at the end of the run. At -4 the smallest is drawn 55 times as often
    as the largest, and a step costs less: such a run needs about 1.4 times the epochs."""
    bend: AtLeastZero = 0.0
    """For static-tilt: above 0 the smallest and the largest groups are drawn more often."""
    step_flops: AtLeastZero = 0.0
    """What a step's time has beside its passes (data, generator, optimizer), as FLOPs of a forward
    pass of one image. It counts where compute is spent, and where it is weighed."""
    pass_flops: AtLeastZero = 0.0
    """What the time of a forward pass has beside its subnet's FLOPs, as FLOPs for each image. It
    counts as ``step_flops`` does, once in every pass."""
    forward_weight: AtLeastZero = 1.0
    """What a forward pass counts that no backward one follows, as a share of a third of one with
    it. By multiply-adds that is 1; by time it is less."""
    archs: tuple[dict[str, Any], ...] = ()
    """The groups are these subnets, by rising FLOPs, in place of the generator's answers."""
