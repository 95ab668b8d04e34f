"""Images of experiments: decoded once, and kept as one array for all runs and seeds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from trainer.data.reading import load_splits
from trainer.data.splits import LabelledImages, Splits, stratified_holdout


def cached_splits(
    cache: Path, data: str, resolution: int, held_out_share: float, seed: int
) -> Splits:
    """Splits of a seed, from ``cache`` if it is there: the same for all runs of an experiment.

    As many are held out, of every class, as in a run of ``trainer.run``, which holds out others.
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


def cache_name(data: str) -> str:
    """A short name of where the data is, by which one cache is told from another."""
    path = Path(data).expanduser()
    where = str(path.resolve()) if path.exists() else data
    return hashlib.sha256(where.encode()).hexdigest()[:8]


def fingerprint(splits: Splits) -> str:
    """A short name of the images themselves, the same wherever they lie: of the test images."""
    test = splits.test
    assert isinstance(test, LabelledImages)
    parts = (test.images.contiguous().numpy(), test.labels.numpy())
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]


def _write(cache: Path, data: str, resolution: int, held_out_share: float) -> None:
    splits = load_splits(
        data, held_out_share=held_out_share, seed=0, resolution=resolution, in_memory="always"
    )
    train, held_out, test = splits.train, splits.held_out, splits.test
    assert isinstance(train, LabelledImages)
    assert isinstance(held_out, LabelledImages)
    assert isinstance(test, LabelledImages)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}.partial.npz")  # two may begin at once
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
