"""Some photos of a data set as the folder that a person has: few of a class, or many classes.

    python -m benchmarks.photo_folder flowers --out few --each 40
    python -m benchmarks.photo_folder tiny-imagenet --out many --classes 100 --each 20 --test 20

``OUT/train/CLASS/NUMBER.jpg`` and ``OUT/test/CLASS/NUMBER.jpg``, as ``--recipe photos`` reads them.
Test photos are those of the data set's own test split, or ``--test`` others of each class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.command import command_parser, tells_mistakes
from models.images.image import sniff_format
from trainer.data.reading import read_source
from trainer.data.sources import Rows

SEED = 0


def write(rows: Rows, names: Sequence[str], folder: Path) -> int:
    """A file for each photo, as it is stored; answers how many."""
    for index, label in enumerate(rows.labels.tolist()):
        content = rows.read(index)
        file = folder / names[label] / f"{index:05}.{(sniff_format(content) or 'jpeg').lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return len(rows)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = command_parser("benchmarks.photo_folder", __doc__, json=False)
    parser.add_argument("data", help="labelled photos, as trainer.run reads them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, help="take so many classes, evenly (default: all)")
    parser.add_argument("--each", type=int, required=True, help="photos of a class to train on")
    parser.add_argument("--test", type=int, default=0, help="photos of a class to test on")
    options = parser.parse_args(arguments)
    source = read_source(options.data)
    if (source.test is None) != bool(options.test):
        parser.error(f"--test N is for data without its own test photos: {options.data}")
    classes = len(source.classes)
    kept = np.unique(np.linspace(0, classes - 1, options.classes or classes).astype(np.int64))
    rng = np.random.default_rng(SEED)
    train: list[int] = []
    test: list[int] = []
    for label in kept:
        rows = rng.permutation(np.flatnonzero(source.train.labels == label))
        train += rows[: options.each].tolist()
        test += rows[options.each :][: options.test].tolist()
    counts = {
        "train": write(source.train.take(np.array(train)), source.classes, options.out / "train")
    }
    rows = source.train.take(np.array(test)) if source.test is None else source.test
    rows = rows.take(np.flatnonzero(np.isin(rows.labels, kept)))
    counts["test"] = write(rows, source.classes, options.out / "test")
    print(json.dumps({"folder": str(options.out), "classes": len(kept), **counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
