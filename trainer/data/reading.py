"""Data sets: from a path or a name to three splits, in memory or decoded as they are needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from models.bundle.manifest import check_label
from models.images.header import ImageError
from models.images.image import sniff_format
from models.images.preprocess import Preprocess
from trainer.data.batch_workers import local_processes
from trainer.data.folders import read_image_folder
from trainer.data.layout import (
    Files,
    also_passed_over,
    by_split,
    find_files,
    printable,
    split_of,
    split_of_shard,
)
from trainer.data.parquet import read_parquet
from trainer.data.sources import Classes, Rows, Source, read_digits, read_groups
from trainer.data.splits import (
    AbstractSplit,
    EncodedImages,
    Splits,
    installed_bytes,
    side_of,
    stratified_holdout,
)
from trainer.data.tars import CLASSES_NAME, class_names, read_tars

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
_TITLES: dict[Classes, str] = {_CIFAR10: "CIFAR-10", _FASHION_MNIST: "Fashion-MNIST"}


def load_splits(
    source: str,
    *,
    resolution: int,
    held_out_share: float,
    seed: int,
    preprocess: Preprocess = AS_SERVED,
    held_out_images: int = 0,
    in_memory: InMemory = "auto",
    random_crops: bool = False,
    skip_broken: bool = False,
) -> Splits:
    """Read and split a data set. Nothing is downloaded.

    source: as ``read_source``. resolution: side in pixels that images are cropped and resized to.
    held_out_share: share of each class of the training images that is held out, between 0 and 1;
    `seed` draws them. held_out_images: that many in all instead, if not 0. preprocess: how images
    are cropped and resized, as the bundle will tell the server (its mean and std are not used).

    in_memory: "always" decodes all images once, "never" decodes as they are needed; "auto"
    keeps in memory what fits in a quarter of it (shared by the processes of a machine): held-out
    first, which is gone over most often, then `test`, then `train`. random_crops: training images
    will be cropped at random (Augment.crop_area), so "auto" keeps them only if nothing was cut off.
    skip_broken: leave out images that cannot be decoded; Splits and batches name them.
    Raises ValueError, in one line, for a source that is not there or not usable: no images, a
    broken image (named), labels that are not integers or have no name, one class only, fewer
    training images than classes.
    """
    if not 0 < held_out_share < 1:
        raise ValueError(f"held_out_share is {held_out_share}: give a share between 0 and 1")
    found = read_source(source)
    _check(found, source)
    train, held_out, test = cut(found, held_out_share, seed, held_out_images)
    if not (len(held_out) and len(test)):
        raise ValueError(f"{source} has too few images to hold any out: give more per class")
    rows = {"held-out": held_out, "test": test, "train": train}
    cut_off = random_crops and side_of(train, preprocess) != resolution
    kept_names = _kept_in_memory(rows, resolution, in_memory, cut_off=cut_off)
    splits: dict[str, AbstractSplit] = {}
    broken: list[str] = []
    for name, part in rows.items():
        encoded = EncodedImages(part, resolution, preprocess, skip_broken)
        if name in kept_names:
            splits[name], reasons = encoded.decoded()
            broken += reasons
        else:
            splits[name] = encoded.for_random_access()
    return Splits(
        train=splits["train"],
        held_out=splits["held-out"],
        test=splits["test"],
        labels=found.classes,
        name=found.name,
        title=title_of(found),
        has_own_test=found.test is not None,
        passed_over=found.passed_over,
        memory=_memory_line(rows, kept_names, resolution),
        broken=tuple(broken),
        test_rows=test,
        fingerprint=found.fingerprint,
    )


def cut(
    found: Source, held_out_share: float, seed: int, held_out_images: int = 0
) -> tuple[Rows, Rows, Rows]:
    """What trains, what is held out of that, what tests; as ``load_splits`` says.

    Raises ValueError for more held-out images than there are.
    """
    train, test = cut_test(found)
    if not 0 <= held_out_images <= len(train) - len(found.classes):
        raise ValueError(
            f"held_out_images is {held_out_images}, of {len(train)} training images: give fewer, "
            "or 0 and a held_out_share"
        )
    kept, held = stratified_holdout(train.labels, held_out_share, seed, count=held_out_images)
    return train.take(kept), train.take(held), test


def cut_test(found: Source) -> tuple[Rows, Rows]:
    """What trains or is held out, and what tests: a share of the former where no such split is."""
    if found.test is not None:
        return found.train, found.test
    kept, held = stratified_holdout(found.train.labels, _TEST_SHARE, _TEST_SEED)
    return found.train.take(kept), found.train.take(held)


def read_source(source: str) -> Source:
    """Find a data set and read all but the pixels.

    source: "digits" (embedded); a parquet file or a folder of them; a tar or a folder of them
    (WebDataset); an image folder; or the name of a data set that lies as such a file or folder in
    $SHIFTNAS_DATA. Raises ValueError, in one line.
    """
    if source in _EMBEDDED:
        return _EMBEDDED[source]()
    path = find_data(source)
    if path.is_dir():
        root, files = path, find_files(path)
    else:
        root, files = path.parent, Files()
        kinds = {".parquet": files.parquet, ".tar": files.tars}
        if path.suffix not in kinds:
            raise ValueError(
                f"{path} is not a data set: give a .parquet or .tar file, a folder of them, or an "
                "image folder"
            )
        kinds[path.suffix].append(path.name)
    shards = files.parquet or files.tars
    unread = [*files.other, *(files.images if shards else ())]
    unread += files.tars if files.parquet else []
    if not shards:
        return read_image_folder(root, files, _passed_over(unread, files.links))
    groups = by_split(root, [split_of_shard(name) for name in shards], shards)
    if path.is_file():  # whatever its name says, it is all there is
        groups = {"train": shards}

    def read(names: list[str], classes: Classes | None) -> tuple[Classes, Rows | int]:
        paths = [root / name for name in names]
        if files.parquet:
            return read_parquet(paths, classes)
        known = class_names(root / CLASSES_NAME) or classes
        return read_tars(paths, known, unread, labelled=classes is None)

    name = path.name if path.is_dir() else path.stem
    if path.is_file() and split_of(name):
        name = path.resolve().parent.name
    found = read_groups(printable(name), groups, read)
    return Source(
        found.name,
        found.classes,
        found.train,
        found.test,
        (*_passed_over(unread, files.links), *found.passed_over),
    )


def full_path(source: str) -> str:
    """A path that exists in full, so that a run can be resumed from any folder; a name as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source not in _EMBEDDED and path.exists() else source


def find_data(source: str) -> Path:
    """The path of a data set that is not embedded. Raises ValueError."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.name != source or path.suffix:
        raise ValueError(
            f"{path.absolute()} does not exist: give --data again, a parquet or tar file, a folder "
            f"of them, an image folder, or a name ({', '.join(_EMBEDDED)})"
        )
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder:
        for name in (source, f"{source}.parquet", f"{source}.tar"):
            if (Path(folder) / name).exists():
                return Path(folder) / name
    place = f"{folder} ({DATA_FOLDER_VARIABLE})" if folder else f"no {DATA_FOLDER_VARIABLE} is set"
    raise ValueError(
        f"no data set {source!r} in {Path.cwd()}, nor in the data folder ({place}): pass --data "
        f"PATH (parquet or tar file or folder, image folder), set {DATA_FOLDER_VARIABLE} to the "
        f"folder that holds {source}, or use {', '.join(_EMBEDDED)}, which is embedded"
    )


def _passed_over(unread: list[str], links: list[str]) -> tuple[str, ...]:
    kinds = {
        "files of kinds that are not read here": unread,
        "links to what is found elsewhere in it": links,
    }
    return tuple(
        f"{len(names):,} {what}, like {printable(names[0])}"
        for what, names in kinds.items()
        if names
    )


def _check(found: Source, source: str) -> None:
    if len(found.train) == 0 or (found.test is not None and len(found.test) == 0):
        raise ValueError(f"no images in {source}")
    for label in found.classes:
        check_label(label)
    if len(np.unique(found.train.labels)) < 2:
        only = found.classes[int(found.train.labels[0])]
        raise ValueError(
            f"{source} has one class only ({only}): there is nothing to tell apart; if classes are "
            f"folders of {only}, give that one{also_passed_over(found.passed_over)}"
        )
    if len(found.train) < len(found.classes):
        raise ValueError(
            f"{source} has {len(found.train)} training images for {len(found.classes)} classes: "
            "give at least one per class"
        )


def _kept_in_memory(rows: dict[str, Rows], side: int, mode: InMemory, *, cut_off: bool) -> set[str]:
    """Which splits are decoded once; `rows` has the most wanted first."""
    installed = installed_bytes()
    if mode == "never":
        return set()
    if mode == "always" or installed is None:
        return set(rows)
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


def title_of(found: Source) -> str:
    """The name to write beside a figure; says so where images went through JPEG."""
    title = _TITLES.get(found.classes)
    if title is None:
        return found.name
    try:
        is_jpeg = sniff_format(found.train.read(0)) == "JPEG"
    except (ImageError, OSError):
        is_jpeg = False
    return f"{title} (JPEG)" if is_jpeg else title
