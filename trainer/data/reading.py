"""Data sets: from a path or a name to three splits, in memory or decoded as they are needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from models.images.header import ImageError
from models.images.image import sniff_format
from models.images.preprocess import Preprocess
from trainer.data.batch_workers import local_processes
from trainer.data.decoding import decode_images, installed_bytes, own_side
from trainer.data.parquet import parquet_files, read_parquet
from trainer.data.sources import Rows, Source, read_digits, read_image_folder
from trainer.data.splits import (
    AbstractSplit,
    EncodedImages,
    LabelledImages,
    Splits,
    stratified_holdout,
)
from trainer.data.tars import read_tars, tar_files

DATA_FOLDER_VARIABLE = "SHIFTNAS_DATA"

InMemory = Literal["auto", "always", "never"]

# The bundle's defaults for cropping and resizing; load_splits leaves normalization to Batches.
AS_SERVED = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

_EMBEDDED = {"digits": read_digits}

# A data set without a published test split loses this share to one. The seed is a constant:
# were it the run's, two runs would report on different images and one could train on the
# other's test images.
_TEST_SHARE = 0.2
_TEST_SEED = 20_240_717

_SHARE_OF_MEMORY = 4

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
    held_out_share: float,
    seed: int,
    resolution: int | None = None,
    preprocess: Preprocess = AS_SERVED,
    held_out_images: int = 0,
    in_memory: InMemory = "auto",
    random_crops: bool = False,
    skip_broken: bool = False,
) -> Splits:
    """Read and split a data set. Nothing is downloaded.

    source: "digits" (embedded); a parquet file or a folder of them; a tar or a folder of them
    (WebDataset); an image folder; or the name of a data set that lies as such a file or folder in
    $SHIFTNAS_DATA. held_out_share: share of each class of the training images that is held out,
    between 0 and 1; `seed` draws them. held_out_images: that many in all instead, if not 0.
    resolution: side in pixels that images are cropped and resized to; None is the side they have,
    if they are square and of one size. preprocess: how they are cropped and resized, as the
    bundle will tell the server (its mean and std are not used here).

    in_memory: "always" decodes all images once, "never" decodes as they are needed; "auto" keeps
    in memory what fits in a quarter of it (shared by the processes of a machine): held-out first,
    which is gone over most often, then `test`, then `train`. random_crops: training images will
    be cropped at random (Augment.crop_area), so "auto" keeps them only if nothing was cut off.
    skip_broken: leave out images that cannot be decoded; Splits and batches name them.
    Raises ValueError, in one line, for a source that is not there or not usable: no images, a
    broken image (named), labels that are no integers or have no name, one class only, fewer
    training images than classes.
    """
    if not 0 < held_out_share < 1:
        raise ValueError(
            f"held_out_share is {held_out_share}: give a share between 0 and 1, like 0.1"
        )
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution is {resolution}: give 1 pixel or more")
    found = read_source(source)
    train, test = found.train, found.test
    _check(found, source)
    if test is None:
        kept, held = stratified_holdout(train.labels, _TEST_SHARE, _TEST_SEED)
        train, test = train.take(kept), train.take(held)
    if not 0 <= held_out_images <= len(train) - len(found.classes):
        raise ValueError(
            f"held_out_images is {held_out_images}, of {len(train)} training images: give fewer, "
            "or 0 and a held_out_share"
        )
    kept, held = stratified_holdout(train.labels, held_out_share, seed, count=held_out_images)
    train, held_out = train.take(kept), train.take(held)
    if not (len(held_out) and len(test)):
        raise ValueError(f"{source} has too few images to hold any out: give more per class")
    rows = {"held-out": held_out, "test": test, "train": train}
    side = own_side(train, preprocess) if resolution is None else resolution
    cut_off = random_crops and not _has_side(train, side, preprocess)
    kept_names = _kept_in_memory(rows, side, in_memory, cut_off=cut_off)
    splits: dict[str, AbstractSplit] = {}
    broken: list[str] = []
    for name, part in rows.items():
        if name not in kept_names:
            splits[name] = EncodedImages.of(part, side, preprocess, skip_broken=skip_broken)
            continue
        splits[name], reasons = _decode(part, resolution, preprocess, skip_broken=skip_broken)
        broken += reasons
        if splits[name].resolution != side:
            raise ValueError(
                f"{source}: {name} images are {splits[name].resolution} pixels wide, training "
                f"images {side}: give a resolution to resize them to"
            )
    return Splits(
        train=splits["train"],
        held_out=splits["held-out"],
        test=splits["test"],
        labels=found.classes,
        name=_title(found),
        memory=_memory_line(rows, kept_names, side),
        broken=tuple(broken),
    )


def read_source(source: str) -> Source:
    """Find a data set by path or name and read all but the pixels. Raises ValueError."""
    if source in _EMBEDDED:
        return _EMBEDDED[source]()
    path = _path_of(source)
    if path.is_dir():
        if parquet_files(path):
            return read_parquet(path)
        if tar_files(path):
            return read_tars(path)
        return read_image_folder(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".tar":
        return read_tars(path)
    raise ValueError(
        f"{path} is no data set: give a .parquet or .tar file, a folder of them, or an image folder"
    )


def _path_of(source: str) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.name != source or path.suffix:
        raise ValueError(
            f"{source} does not exist: give a parquet or tar file, a folder of them, an image "
            f"folder, or a name ({', '.join(_EMBEDDED)})"
        )
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder:
        for candidate in _candidates(Path(folder), source):
            if candidate.exists():
                return candidate
    place = f"{folder} ({DATA_FOLDER_VARIABLE})" if folder else f"no {DATA_FOLDER_VARIABLE} is set"
    raise ValueError(
        f"no data set {source!r} here ({place}): pass --data PATH (parquet or tar file or folder, "
        f"image folder), set {DATA_FOLDER_VARIABLE} to the folder that holds {source}, or use "
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


def _decode(
    rows: Rows, resolution: int | None, preprocess: Preprocess, *, skip_broken: bool
) -> tuple[LabelledImages, list[str]]:
    """Decoded images without the broken ones, and why those are."""
    images, broken = decode_images(rows, preprocess, resolution, skip_broken=skip_broken)
    decoded = LabelledImages(images, torch.from_numpy(rows.labels.copy()))
    if not broken:
        return decoded, []
    if len(broken) == len(rows):
        raise ValueError(f"all {len(rows)} images are broken; the first is {broken[0]}")
    whole = np.delete(np.arange(len(rows)), list(broken))
    return decoded.take(torch.from_numpy(whole)), list(broken.values())


def _has_side(rows: Rows, side: int, preprocess: Preprocess) -> bool:
    """Whether decoding once at this side cuts nothing off, by the first image."""
    try:
        return own_side(rows, preprocess) == side
    except ValueError:
        return False


def _kept_in_memory(
    rows: dict[str, Rows], side: int, in_memory: InMemory, *, cut_off: bool
) -> set[str]:
    """Which splits are decoded once; `rows` in the order in which they come into question."""
    if in_memory == "always":
        return set(rows)
    installed = installed_bytes()
    if in_memory == "never" or installed is None:
        return set() if in_memory == "never" else set(rows)
    room = installed // _SHARE_OF_MEMORY // local_processes()
    kept = set()
    for name, part in rows.items():
        needed = len(part) * 3 * side * side
        if needed <= room and not (name == "train" and cut_off):
            kept.add(name)
            room -= needed
    return kept


def _memory_line(rows: dict[str, Rows], kept: set[str], side: int) -> str:
    parts = []
    for title, names in (
        ("in memory", [name for name in rows if name in kept]),
        ("decoded as they are needed", [name for name in rows if name not in kept]),
    ):
        if names:
            counts = ", ".join(f"{name} {len(rows[name]):,}" for name in names)
            size = sum(len(rows[name]) for name in names) * 3 * side * side
            parts.append(f"{title}: {counts} images of {side}x{side} ({size / 1e9:.2f} GB)")
    return "; ".join(parts)


def _title(found: Source) -> str:
    """The name to write beside a figure; says so where images went through JPEG."""
    title = _TITLES.get(found.classes)
    if title is None:
        return found.name
    try:
        is_jpeg = sniff_format(found.train.read(0)) == "JPEG"
    except (ImageError, OSError):
        is_jpeg = False
    return f"{title} (JPEG)" if is_jpeg else title


def _candidates(folder: Path, name: str) -> tuple[Path, ...]:
    return folder / name, folder / f"{name}.parquet", folder / f"{name}.tar"
