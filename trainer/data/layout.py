"""Where splits and classes come from: one rule for folders of images, parquet files and tars.

The names on the way from the given folder to a file count. A name says a split with one of the
words below, which are those of Hugging Face `datasets`: `Training`, `test_set`, `val2017`,
`data-train-000`. Of a file that holds many images its own name counts first, then the folders
around it, from the inside out. Of a folder of images the outermost name that says a split counts,
and the next folder is the class: so classes may be called `train` or `test_tube`.

A file that says nothing beside others that do is refused, as is a name that says two splits. A
split whose images have no labels is passed over, unless it is for training.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from models.images.files import SUFFIXES, is_other_image, visible_files

_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "dev"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_THINGS = ("set", "data", "images")  # as in test_set, TrainingSet and testdata
_WORD = re.compile(rf"({'|'.join(sorted(_SPLIT_OF, reverse=True))})(?:{'|'.join(_THINGS)})?")


@dataclass(frozen=True)
class Files:
    """The files below a folder, as names with "/" between their parts.

    other: images of kinds that are not read. empty: folders. links: those left out, since what they
    lead to is found elsewhere.
    """

    images: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def find_files(folder: Path) -> Files:
    """What a folder holds, without hidden files, each real file once."""
    found = Files()
    kinds = {**dict.fromkeys(SUFFIXES, found.images), ".parquet": found.parquet, ".tar": found.tars}
    names, links = visible_files(folder, tuple(kinds))
    found.links.extend(links)
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if name.endswith("/"):
            found.empty.append(name[:-1])
        elif suffix in kinds:
            kinds[suffix].append(name)
        elif is_other_image(suffix):
            found.other.append(name)
    return found


def split_of(name: str) -> str | None:
    """The split that a name says: "train", "test" or "val". Raises ValueError if it says two."""
    words = re.findall("[a-z]+", name.lower())
    found = {_SPLIT_OF[match[1]] for match in map(_WORD.fullmatch, words) if match is not None}
    if len(found) > 1:
        raise ValueError(f"{name!r} says both {' and '.join(sorted(found))}: rename it")
    return next(iter(found), None)


def split_of_shard(name: str) -> str | None:
    """The split of a file that holds many images; its name may have folders before it."""
    path = PurePosixPath(name)
    names = (path.stem, *reversed(path.parent.parts))
    return next((split for split in map(split_of, names) if split is not None), None)


def place_of_images(folders: Sequence[str]) -> tuple[str | None, str | None]:
    """Split and class of the images in a folder, given the names on the way to it.

    The class is None for images of a split that are not in a folder of a class.
    """
    for at, folder in enumerate(folders):
        split, rest = split_of(folder), list(folders[at + 1 :])
        if split is None:
            continue
        while len(rest) > 1 and split_of(rest[0]) == split:  # archives repeat it: test_set/test_set
            del rest[0]
        if rest:
            return split, rest[0]
        if _says_nothing_else(folder):
            return split, folders[at - 1] if at else None
    return None, folders[0] if folders else None


def by_split(
    root: Path, splits: Sequence[str | None], names: Sequence[str]
) -> dict[str, list[str]]:
    """Names by the split that each says, "train" if none of them says any.

    Raises ValueError if some do and others do not, or if none is for training.
    """
    groups: dict[str, list[str]] = {}
    for split, name in zip(splits, names, strict=True):
        groups.setdefault(split or "", []).append(name)
    if set(groups) == {""}:
        return {"train": groups[""]}
    if "" in groups:
        other = next(name for split, name in zip(splits, names, strict=True) if split)
        raise ValueError(
            f"cannot tell which split {root / groups[''][0]} belongs to, beside {root / other}: "
            "let a name on the way to each file say train, test or val, or move it away"
        )
    if "train" not in groups:
        (split, (name, *_)), *_ = groups.items()
        raise ValueError(f"{root} has no images to train on, only {split} ({name} and the like)")
    return groups


def class_name(name: str) -> str:
    """As it is kept: one spelling of accents. Raises ValueError for a name that is not UTF-8."""
    if not is_text(name):
        raise ValueError(f"the name of class {printable(name)} is not UTF-8: rename the folder")
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name of a file is UTF-8; else Python keeps its bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def printable(name: str) -> str:
    """A file's name, with bytes that are not UTF-8 written in hexadecimal."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def also_passed_over(lines: Sequence[str]) -> str:
    """For the end of an error: what else lies there and is not used."""
    return f"; passed over: {'; '.join(lines)}" if lines else ""


def _says_nothing_else(name: str) -> bool:
    words = re.findall("[a-z]+", name.lower())
    return all(_WORD.fullmatch(word) or word in (*_THINGS, "split") for word in words)
