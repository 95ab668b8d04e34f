"""What a run was trained on: in words, by which its data are told from others, and cut again."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.bundle.folder import MANIFEST, load_bundle
from models.bundle.value import Bundle
from trainer.data.reading import cut
from trainer.data.sources import Rows, Source
from trainer.data.splits import Splits
from trainer.engine.checkpoint import State, kept_state
from trainer.recipes.config import read_recipe

_LABELS = re.compile(r", labels [0-9a-f]{12}$")


def in_words(splits: Splits) -> str:
    """What tells the data of a run from other data."""
    return _words(len(splits.train), len(splits.held_out), splits.labels, splits.fingerprint)


def _words(train: int, held_out: int, labels: Sequence[str], fingerprint: str = "") -> str:
    counts = f"{train:,} + {held_out:,} images of {len(labels)} classes"
    told = f", labels {fingerprint}" if fingerprint else ""
    return f"{counts} ({labels[0]} to {labels[-1]}){told}"


def is_same(its: str, here: str, *, counts: bool = True) -> bool:
    """Whether words are of the same data. counts: False where broken images may not be counted.

    Older runs say nothing of all labels: they are compared by the rest.
    """
    told = _LABELS.search(its)
    if not counts:
        return told is None or here.endswith(told[0])
    return its == (here if told else _LABELS.sub("", here))


def refuse_other_data(checkpoint: State, here: str) -> None:
    """Raises ValueError unless a checkpoint is of the data that is ``here``, in words."""
    trained_on = checkpoint.get("trained_on", here)
    if not is_same(trained_on, here):
        raise ValueError(
            f"the checkpoint was trained on {trained_on}, the data here is {here}; name the same "
            "with --data, or start a new run with --out"
        )


def words_of(bundle: Bundle) -> str | None:
    """What a bundle's run was trained on, in words; None if it does not say."""
    made = bundle.provenance
    told, train, held_out = (made.get(k) for k in ("trained_on", "train_images", "val_images"))
    if isinstance(told, str):
        return told
    if isinstance(train, int) and isinstance(held_out, int):
        return _words(train, held_out, bundle.labels)
    return None


def skipped_broken(bundle: Bundle) -> bool:
    """Whether a bundle's run left out images that could not be decoded."""
    told: object = bundle.provenance
    for key in ("trained_with", "recipe", "skip_broken"):
        told = told.get(key) if isinstance(told, Mapping) else None
    return told is True


@dataclass(frozen=True)
class RunParts:
    """Of a run's data: what it held out, what it tests on, and what to call the former.

    skip_broken: whether it leaves out images that cannot be decoded.
    """

    held_out: Rows
    test: Rows
    held_out_name: str
    skip_broken: bool


def parts_of_run(source: Source, run: Path) -> RunParts:
    """Cut a data set as a run did.

    Raises ValueError for another than it was trained on: its cut would call images test images that
    have trained. Its checkpoint tells, or its bundle; where neither is there, that is said.
    """
    recipe = read_recipe(run / "recipe.json")
    train, held_out, test = cut(source, recipe.held_out_share, recipe.seed, recipe.held_out_images)
    here = _words(len(train), len(held_out), source.classes, source.fingerprint)
    its = _trained_on(run)
    if its is None:
        print(f"{run} does not say on what it was trained: on {source.name}?", file=sys.stderr)
    elif not is_same(its, here, counts=not recipe.skip_broken):
        raise ValueError(
            f"{run} was trained on {its}, the data here is {here}: which of these images have "
            "trained is not known; name the same data, as they were"
        )
    name = f"{source.name}, held out by {recipe.name} with seed {recipe.seed}"
    return RunParts(held_out, test, name, recipe.skip_broken)


def _trained_on(run: Path) -> str | None:
    its = (kept_state(run) or {}).get("trained_on")
    if its is None and (run / "bundle" / MANIFEST).is_file():
        its = words_of(load_bundle(run / "bundle"))
    return its
