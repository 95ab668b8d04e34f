"""Images of experiments: decoded once, and kept as one array for all runs and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trainer.data.reading import load_splits
from trainer.data.splits import LabelledImages, Splits, stratified_holdout


def cached_splits(
    cache: Path, data: str, resolution: int, held_out_share: float, seed: int
) -> Splits:
    """The splits that a run of this seed reads, from ``cache`` if it is there.

    Raises ValueError as ``load_splits`` does.
    """
    if not cache.is_file():
        _write(cache, data, resolution, held_out_share)
    with np.load(cache) as kept:
        images, labels = torch.from_numpy(kept["train"]), torch.from_numpy(kept["train_labels"])
        test = LabelledImages(torch.from_numpy(kept["test"]), torch.from_numpy(kept["test_labels"]))
        classes, name = tuple(kept["classes"].tolist()), str(kept["name"])
    train = LabelledImages(images, labels)
    rest, held = stratified_holdout(labels.numpy(), held_out_share, seed)
    return Splits(
        train.take(torch.from_numpy(rest)), train.take(torch.from_numpy(held)), test, classes, name
    )


def _write(cache: Path, data: str, resolution: int, held_out_share: float) -> None:
    splits = load_splits(
        data, held_out_share=held_out_share, seed=0, resolution=resolution, in_memory="always"
    )
    train, held_out, test = splits.train, splits.held_out, splits.test
    assert isinstance(train, LabelledImages)
    assert isinstance(held_out, LabelledImages)
    assert isinstance(test, LabelledImages)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial.npz")
    np.savez(
        partial,
        train=torch.cat([train.images, held_out.images]).numpy(),
        train_labels=torch.cat([train.labels, held_out.labels]).numpy(),
        test=test.images.numpy(),
        test_labels=test.labels.numpy(),
        classes=np.array(splits.labels),
        name=np.array(splits.name),
    )
    partial.replace(cache)
