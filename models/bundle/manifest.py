"""``bundle.json``: its fields, and what is wrong with one that is not as it should be. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
)

from models.bundle.confidence import Confidence
from models.bundle.int8 import Int8, Int8Row
from models.bundle.value import FrontierRow
from models.images.preprocess import Preprocess
from models.interval import interval
from models.mistake import in_words
from models.space.arch import Arch
from models.space.search_space import SearchSpace

FORMAT = 1


def check_name(name: str) -> str:
    """Raises ValueError for a name that cannot be a folder's, as an exported model's is."""
    if name in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(
            f"the bundle's name {name!r:.60} cannot be a folder's: give one without slashes and "
            "control characters"
        )
    return name


def check_label(label: str) -> str:
    """Raises ValueError for one that does not fit in a line, as lists of labels have them."""
    if label.splitlines() not in ([], [label]):
        raise ValueError(f"the label {label!r:.60} has a line break: give one without")
    return label


_Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class SpaceEntry(_Part):
    """Which search space, for how many classes."""

    name: str
    num_classes: int


class FlopsEntry(_Part):
    """Of the smallest and the largest subnet that are answered; the upper ends of the groups."""

    min: int
    max: int
    groups: tuple[Annotated[int, Field(gt=0)], ...]


class AnswerEntry(_Part):
    """An arch, and the budget from which on it is answered."""

    budget_flops: float
    id: str
    arch: dict[str, Any]

    def arch_in(self, space: SearchSpace) -> Arch:
        """The arch. Raises ValueError if the space does not have it, or by another id."""
        arch = space.arch_from_json(self.arch)
        if self.id != space.arch_id(arch):
            raise ValueError(f"id {self.id} is not that of its arch ({space.arch_id(arch)})")
        return arch


class FrontierEntry(AnswerEntry):
    """A row of the frontier table. FLOPs and parameters are for people: the space knows them."""

    flops: int
    params: int
    held_out_accuracy: _Share | None = Field(
        None, validation_alias=AliasChoices("held_out_accuracy", "val_accuracy")
    )
    """``val_accuracy`` in bundles of before 2026-11-30."""
    test_accuracy: _Share | None = None


class TemperatureEntry(_Part):
    """By what the logits of a subnet are divided."""

    flops: int
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]


class PairEntry(_Part):
    """The two subnets that share a budget from so many FLOPs on; 0 and 0: it is not shared."""

    budget_flops: int
    first_flops: int
    second_flops: int


class ConfidenceEntry(_Part):
    """How sure subnets are."""

    images: int
    data: str
    temperatures: tuple[TemperatureEntry, ...]
    pairs: tuple[PairEntry, ...]


class Int8RowEntry(_Part):
    """An answer in 8 bits. FLOPs and intervals are for people: they follow from the rest."""

    id: str
    flops: int
    agreement: _Share
    agreement_95: tuple[float, float]
    accuracy: _Share | None = None
    accuracy_95: tuple[float, float] | None = None
    fp32_accuracy: _Share | None = None


class Int8Entry(_Part):
    """Answers in 8-bit integers: what gave their ranges, and how good they are on other images."""

    calibrated_on: str
    calibration_images: int
    measured_on: str
    images: int
    rows: tuple[Int8RowEntry, ...]
    confidence: ConfidenceEntry | None = None


class FileEntry(_Part):
    """A file beside the manifest."""

    sha256: str
    size_bytes: int


class Manifest(_Part):
    """All of ``bundle.json``. What it does not know is left to later versions."""

    format: int
    name: Annotated[str, AfterValidator(check_name)]
    version: str
    space: SpaceEntry
    preprocess: Preprocess
    labels: tuple[Annotated[str, AfterValidator(check_label)], ...]
    flops: FlopsEntry
    frontier: tuple[FrontierEntry, ...]
    answers: tuple[AnswerEntry, ...]
    provenance: dict[str, JsonValue]
    files: dict[str, FileEntry]
    confidence: ConfidenceEntry | None = None
    int8: Int8Entry | None = None

    @field_validator("format")
    @classmethod
    def _is_read(cls, number: int) -> int:
        if number != FORMAT:
            raise ValueError(f"format is {number}; this version reads format {FORMAT}")
        return number


def read_manifest(text: str) -> Manifest:
    """What the text says. Raises ValueError, in one line, for the first field that is wrong."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(in_words(error)) from None


def version_of(document: Mapping[str, object]) -> str:
    """The version of a bundle, from all that its manifest says but where it comes from.

    What decides an answer is in it: labels and preprocessing here, the other files by their hashes.
    """
    content = {k: v for k, v in document.items() if k not in ("version", "provenance")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def answer_entry(space: SearchSpace, budget_flops: float, arch: Arch) -> AnswerEntry:
    """What the manifest says of an answer."""
    return AnswerEntry(
        budget_flops=budget_flops,
        id=space.arch_id(arch),
        arch=dict(space.arch_to_json(arch)),
    )


def frontier_entry(space: SearchSpace, row: FrontierRow) -> FrontierEntry:
    """What the manifest says of a row of the frontier table."""
    return FrontierEntry(
        **dict(answer_entry(space, row.budget_flops, row.arch)),
        flops=row.flops,
        params=row.params,
        held_out_accuracy=row.held_out_accuracy,
        test_accuracy=row.test_accuracy,
    )


def frontier_row(space: SearchSpace, entry: FrontierEntry) -> FrontierRow:
    """The reverse; FLOPs and parameters are the space's, whatever the entry says."""
    arch = entry.arch_in(space)
    return FrontierRow(
        budget_flops=entry.budget_flops,
        arch=arch,
        flops=space.flops(arch),
        params=space.params(arch),
        held_out_accuracy=entry.held_out_accuracy,
        test_accuracy=entry.test_accuracy,
    )


def answers_of(
    space: SearchSpace, entries: Sequence[AnswerEntry]
) -> tuple[tuple[float, Arch], ...]:
    """Budgets and archs. Raises ValueError for one that exceeds its budget or is out of order."""
    answers = tuple((entry.budget_flops, entry.arch_in(space)) for entry in entries)
    for index, (budget, arch) in enumerate(answers):
        if space.flops(arch) > budget:
            raise ValueError(f"answers[{index}]: {space.flops(arch):,} FLOPs exceed {budget:,}")
        if index and budget <= answers[index - 1][0]:
            raise ValueError(f"answers[{index}]: budgets must ascend")
    if answers and answers[0][0] != space.flops(answers[0][1]):
        raise ValueError(
            f"answers must begin at their smallest subnet ({space.flops(answers[0][1]):,} FLOPs)"
        )
    return answers


def confidence_entry(known: Confidence) -> ConfidenceEntry:
    """What the manifest says of it."""
    return ConfidenceEntry(
        images=known.images,
        data=known.data,
        temperatures=tuple(TemperatureEntry(flops=f, temperature=t) for f, t in known.temperatures),
        pairs=tuple(
            PairEntry(budget_flops=budget, first_flops=first, second_flops=second)
            for budget, first, second in known.pairs
        ),
    )


def confidence_of(entry: ConfidenceEntry) -> Confidence:
    """Raises ValueError without temperatures, for rows out of order, pairs over budget."""
    temperatures = tuple((row.flops, row.temperature) for row in entry.temperatures)
    pairs = tuple((row.budget_flops, row.first_flops, row.second_flops) for row in entry.pairs)
    if not temperatures:
        raise ValueError("confidence: temperatures must be there")
    for budget, first, second in pairs:
        if first + second > budget or ((first or second) and not 0 < first < second):
            raise ValueError(f"confidence: {first:,} and {second:,} FLOPs do not share {budget:,}")
    for name, rows in (("temperatures", temperatures), ("pairs", pairs)):
        if any(row[0] >= following[0] for row, following in pairwise(rows)):
            raise ValueError(f"confidence: {name} must ascend")
    return Confidence(temperatures, pairs, entry.images, entry.data)


def int8_entry(space: SearchSpace, int8: Int8, archs: Iterable[Arch]) -> Int8Entry:
    """What the manifest says of it; archs: the frontier's, in order."""
    rows = []
    for key, arch in {space.arch_id(arch): arch for arch in archs}.items():
        row = int8.rows[key]
        rows.append(
            Int8RowEntry(
                id=key,
                flops=space.flops(arch),
                agreement=row.agreement,
                agreement_95=interval(row.agreement, int8.images),
                accuracy=row.accuracy,
                accuracy_95=None if row.accuracy is None else interval(row.accuracy, int8.images),
                fp32_accuracy=row.fp32_accuracy,
            )
        )
    return Int8Entry(
        calibrated_on=int8.calibrated_on,
        calibration_images=int8.calibration_images,
        measured_on=int8.measured_on,
        images=int8.images,
        rows=tuple(rows),
        confidence=None if int8.confidence is None else confidence_entry(int8.confidence),
    )


def int8_of(entry: Int8Entry, ranges: Mapping[str, np.ndarray]) -> Int8:
    """The reverse. Raises ValueError as ``confidence_of``."""
    return Int8(
        ranges=ranges,
        calibrated_on=entry.calibrated_on,
        calibration_images=entry.calibration_images,
        measured_on=entry.measured_on,
        images=entry.images,
        rows={
            row.id: Int8Row(row.agreement, row.accuracy, row.fp32_accuracy) for row in entry.rows
        },
        confidence=None if entry.confidence is None else confidence_of(entry.confidence),
    )
