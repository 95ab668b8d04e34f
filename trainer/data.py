"""Data sets: from a path or a name to three splits in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from models.preprocess import Preprocess
from trainer.batches import Batch as Batch
from trainer.batches import Batches as Batches
from trainer.decode import decode_images
from trainer.parquet import parquet_files, read_parquet
from trainer.sources import Rows, Source, read_digits, read_image_folder
from trainer.splits import LabelledImages as LabelledImages
from trainer.splits import Splits as Splits
from trainer.splits import stratified_holdout

DATA_FOLDER_VARIABLE = "SHIFTNAS_DATA"

# The bundle's defaults for cropping and resizing; load_splits leaves normalization to Batches.
AS_SERVED = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

_EMBEDDED = {"digits": read_digits}

# A data set without a published test split loses this share to one. The seed is a constant:
# were it the run's, two runs would report on different images and one could train on the
# other's test images.
_TEST_SHARE = 0.2
_TEST_SEED = 20_240_717

# Known by their class names, wherever the files lie and whatever they are called.
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
_TITLES: dict[tuple[str, ...], str] = {_CIFAR10: "CIFAR-10", _FASHION_MNIST: "Fashion-MNIST"}


def load_splits(
    source: str,
    *,
    steer_share: float,
    seed: int,
    resolution: int | None = None,
    preprocess: Preprocess = AS_SERVED,
) -> Splits:
    """Read, decode and split a data set. Nothing is downloaded, nothing is written.

    source: "digits" (embedded); a parquet file or a folder of them; an image folder; or the
    name of a data set that lies as such a file or folder in $SHIFTNAS_DATA. steer_share: share
    of each class of the training images that becomes `steer`, between 0 and 1; `seed` draws
    them. resolution: side in pixels that images are cropped and resized to; None is the side
    they have, if they are square and of one size. preprocess: how they are cropped and resized,
    as the bundle will tell the server (its mean and std are not used here).
    Raises ValueError, in one line, for a source that is not there or not usable: no images, a
    broken image (named), labels that are no integers, one class only, fewer training images
    than classes.
    """
    if not 0 < steer_share < 1:
        raise ValueError(f"steer_share is {steer_share}: give a share between 0 and 1, like 0.1")
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution is {resolution}: give 1 pixel or more")
    found = read_source(source)
    train, test = found.train, found.test
    _check(found, source)
    if test is None:
        kept, held = stratified_holdout(train.labels, _TEST_SHARE, _TEST_SEED)
        train, test = train.take(kept), train.take(held)
    kept, held = stratified_holdout(train.labels, steer_share, seed)
    train, steer = train.take(kept), train.take(held)
    if not (len(steer) and len(test)):
        raise ValueError(f"{source} has too few images to hold any out: give more per class")
    decoded_train = _decode(train, resolution, preprocess)
    side = decoded_train.images.shape[-1]
    steer_images = _decode(steer, resolution, preprocess)
    test_images = _decode(test, resolution, preprocess)
    for name, split in (("steer", steer_images), ("test", test_images)):
        if split.images.shape[-1] != side:
            raise ValueError(
                f"{source}: {name} images are {split.images.shape[-1]} pixels wide, training "
                f"images {side}: give a resolution to resize them to"
            )
    return Splits(decoded_train, steer_images, test_images, found.classes, _title(found))


def read_source(source: str) -> Source:
    """Find a data set by path or name and read all but the pixels. Raises ValueError."""
    if source in _EMBEDDED:
        return _EMBEDDED[source]()
    path = _path_of(source)
    if path.is_dir():
        if parquet_files(path):
            return read_parquet(path)
        return read_image_folder(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    raise ValueError(
        f"{path} is no data set: give a .parquet file, a folder of them, or an image folder"
    )


def _path_of(source: str) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.name != source or path.suffix:
        raise ValueError(
            f"{source} does not exist: give a parquet file, a folder of them, an image folder, "
            f"or a name ({', '.join(_EMBEDDED)})"
        )
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder:
        for candidate in (Path(folder) / source, Path(folder) / f"{source}.parquet"):
            if candidate.exists():
                return candidate
    place = f"{folder} ({DATA_FOLDER_VARIABLE})" if folder else f"no {DATA_FOLDER_VARIABLE} is set"
    raise ValueError(
        f"no data set {source!r} here ({place}): pass --data PATH (parquet file or folder, image "
        f"folder), set {DATA_FOLDER_VARIABLE} to the folder that holds {source}, or use "
        f"{', '.join(_EMBEDDED)}, which is embedded"
    )


def _check(found: Source, source: str) -> None:
    if len(found.train) == 0 or (found.test is not None and len(found.test) == 0):
        raise ValueError(f"no images in {source}")
    if len(np.unique(found.train.labels)) < 2:
        only = found.classes[int(found.train.labels[0])]
        raise ValueError(f"{source} has one class only ({only}): there is nothing to tell apart")
    if len(found.train) < len(found.classes):
        raise ValueError(
            f"{source} has {len(found.train)} training images for {len(found.classes)} classes: "
            "give at least one per class"
        )


def _decode(rows: Rows, resolution: int | None, preprocess: Preprocess) -> LabelledImages:
    images = decode_images(rows.encoded, rows.where, preprocess, resolution)
    return LabelledImages(images, torch.from_numpy(rows.labels.copy()))


def _title(found: Source) -> str:
    """The name to write beside a figure; says so where images went through JPEG."""
    title = _TITLES.get(found.classes)
    if title is None:
        return found.name
    first = found.train.encoded[0]
    is_jpeg = isinstance(first, bytes) and first.startswith(b"\xff\xd8")
    return f"{title} (JPEG)" if is_jpeg else title
