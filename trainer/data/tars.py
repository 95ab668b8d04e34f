"""Sharded tars (WebDataset): 000123.jpg and 000123.cls side by side in *.tar, read where they lie.

Nothing is unpacked and nothing is copied. One pass over the headers notes where each image
begins; after that an image is one read at its offset. So an epoch's order, the split over
processes and the place to resume at are plain functions of (seed, epoch, index), as for every
other source. The alternative, `datasets` in streaming mode (IterableDataset), reads the same
tars in sequence, but on resuming loses what its shuffle buffer held, cannot hold images out by
their number, and gives processes epochs of unequal length.

The disk is still read in sequence: images are shuffled in runs of neighbours (trainer.data.order),
and the first read of a run asks the system for all of it. The pass over the headers takes about
100 us an image and core, a quarter of a minute for ImageNet on 16 cores.
"""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from models.images.files import SUFFIXES, is_hidden, is_other_image
from trainer.data.layout import printable
from trainer.data.sources import AbstractImages, Classes, Rows, check_labels

CLASSES_NAME = "classes.txt"
RUN_LENGTH = 256

_BLOCK = 512
_OPEN_FILES = 128
_SHARDS_FOR_A_POOL = 16


@dataclass(frozen=True)
class Shard:
    """The images of one tar, in its order: names, where their bytes begin, sizes, labels.

    A label is -1 where there is none. other: images of kinds that are not read, or beside the one
    of a sample.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    other: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def read_tars(
    files: Sequence[Path], classes: Classes | None, passed_over: list[str], *, labelled: bool
) -> tuple[Classes, Rows | int]:
    """One split of a data set, in tars.

    Samples are pairs of members KEY.jpg (or another image) and KEY.cls, which holds the label
    as a number; other members are ignored. classes: names if they are known; else they are called
    by their numbers. Answers the classes and the images; or how many there are, if they need not be
    labelled and is not. passed_over: takes the images that are not read, each with its tar.
    Raises ValueError naming the tar, and the member, and what is wrong with it.
    """
    if len(files) < _SHARDS_FOR_A_POOL:
        shards = [read_shard(file) for file in files]
    else:
        with ProcessPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
            shards = list(pool.map(read_shard, files))
    for file, shard in zip(files, shards, strict=True):
        passed_over += [f"{file}, {printable(name)}" for name in shard.other]
    images = TarImages(files, shards)
    labels = np.concatenate([shard.labels for shard in shards])
    if not labelled and len(labels) and labels.max() < 0:
        return classes or (), len(labels)
    if len(labels) and labels.min() < 0:
        row = int(labels.argmin())
        raise ValueError(f"{images.where(row)}: no label; a .cls member with its number is missing")
    return check_labels(labels, classes, images), Rows.of(images, labels)


class TarImages(AbstractImages):
    """The images of several tars, each read at its offset."""

    def __init__(self, files: Sequence[Path], shards: Sequence[Shard]) -> None:
        self._files = [str(file) for file in files]
        counts = [len(shard) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        self._names = np.concatenate([shard.names for shard in shards])
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        run_counts = [-(-count // RUN_LENGTH) for count in counts]
        first_run = np.concatenate([[0], np.cumsum(run_counts)])
        within = np.concatenate([np.arange(count) // RUN_LENGTH for count in counts])
        self._runs = (first_run[self._shard] + within).astype(np.int32)
        # Of each run its first image; the last entry is the end.
        self._run_starts = np.searchsorted(self._runs, np.arange(first_run[-1] + 1))
        self._open: OrderedDict[int, int] = OrderedDict()
        self._asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> bytes:
        shard = int(self._shard[row])
        file = self._file(shard)
        self._read_ahead(file, int(self._runs[row]))
        size = int(self._sizes[row])
        content = os.pread(file, size, int(self._offsets[row]))
        if len(content) != size:
            raise ValueError(f"{self._files[shard]} was cut short: fetch it again")
        return content

    def where(self, row: int) -> str:
        name = printable(os.fsdecode(bytes(self._names[row])))
        return f"{self._files[self._shard[row]]}, {name}"

    def runs(self) -> np.ndarray:
        return self._runs

    def __getstate__(self) -> dict[str, object]:
        """Open files stay behind: another process opens its own."""
        return self.__dict__ | {"_open": OrderedDict(), "_asked": set()}

    def _file(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            file = os.open(self._files[shard], os.O_RDONLY)
        except OSError as error:
            # Not one broken image but a thousand: never skipped.
            raise ValueError(f"{self._files[shard]} cannot be read: {error.strerror}") from error
        self._open[shard] = file
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return file

    def _read_ahead(self, file: int, run: int) -> None:
        if run in self._asked or not hasattr(os, "posix_fadvise"):
            return
        if len(self._asked) >= len(self._run_starts) // 2:
            self._asked.clear()  # about half an epoch on: the system may have dropped it
        self._asked.add(run)
        first, last = int(self._run_starts[run]), int(self._run_starts[run + 1]) - 1
        start = int(self._offsets[first])
        length = int(self._offsets[last] + self._sizes[last]) - start
        os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)


def read_shard(file: Path) -> Shard:
    """Where a tar's images are, and their labels. Raises ValueError naming what is wrong."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, tuple[str, bytes]] = {}
    other: list[str] = []
    end = 0
    try:
        with tarfile.open(file, "r:") as archive, file.open("rb") as contents:
            for member in archive:
                key, suffix = os.path.splitext(member.name)  # noqa: PTH122 - of no file
                suffix = suffix.lower()
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not member.isreg() or any(map(is_hidden, PurePosixPath(member.name).parts)):
                    continue
                if suffix in SUFFIXES and key not in images:
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == ".cls":
                    contents.seek(member.offset_data)
                    labels[key] = (member.name, contents.read(min(member.size, 32)))
                elif suffix in SUFFIXES or is_other_image(suffix):
                    other.append(member.name)
            contents.seek(end)
            is_whole = contents.read(_BLOCK) == bytes(_BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is not a readable, uncompressed tar: {error}") from error
    if not is_whole:
        # Python's reader takes a file that ends between two members for a whole one.
        raise ValueError(f"{file} was cut short (no end mark): fetch it again")
    for key, (name, _, _) in list(images.items()):
        # WebDataset's key ends at the first dot: 7.depth.png is another part of sample 7.
        if key not in labels and _sample(key) != key and _sample(key) in images:
            other.append(name)
            del images[key]
    rows = [
        (name, offset, size, _label(file, *labels[key]) if key in labels else -1)
        for key, (name, offset, size) in images.items()
    ]
    return Shard(
        names=np.array([os.fsencode(row[0]) for row in rows], dtype=np.bytes_),
        offsets=np.array([row[1] for row in rows], dtype=np.int64),
        sizes=np.array([row[2] for row in rows], dtype=np.int64),
        labels=np.array([row[3] for row in rows], dtype=np.int64),
        other=tuple(other),
    )


def _sample(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _label(file: Path, member: str, content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise ValueError(f"{file}, {member}: the label is {text!r}, it must be an integer from 0")
    return int(text)


def class_names(file: Path) -> Classes | None:
    """The classes that a file names, one a line; None if it is not there. Raises ValueError."""
    if not file.is_file():
        return None
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8: save it so") from None
    names = names[: max((i + 1 for i, name in enumerate(names) if name), default=0)]
    if not names or not all(names) or len(set(names)) != len(names):
        raise ValueError(f"{file} must name each class once, one a line, without empty lines")
    return tuple(names)
