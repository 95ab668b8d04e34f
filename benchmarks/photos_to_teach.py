"""Photos of any classes as a data set of a bundle's classes: what distillation on them needs.

    python -m benchmarks.photos_to_teach models/zoo/imagenet-mobile --out photos \
        --data flowers/train.parquet tiny-imagenet/train.parquet --each 2830 5000

The label of a photo is what the bundle's largest subnet says, so a run on them that learns from
that subnet alone (``distillation.weight=1``) reports how often it says the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes
from models.converters.progress import Progress
from trainer.data.reading import read_source
from trainer.served import measure

GROUP = 100
"""Photos that a reader of the file takes at once."""
TEST = 100
"""Photos that train nothing: few, since what counts is measured elsewhere."""


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = command_parser("benchmarks.photos_to_teach", __doc__, json=False)
    parser.add_argument("bundle", type=Path, help="whose classes and answers the photos get")
    parser.add_argument(
        "--data", nargs="+", required=True, help="photos, as trainer.run reads them"
    )
    parser.add_argument("--each", nargs="+", type=int, required=True, help="photos of each, evenly")
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder for train.parquet and test.parquet"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if len(options.each) != len(options.data):
        parser.error(
            f"--data names {len(options.data)} sources, --each {len(options.each)} numbers"
        )
    from datasets import ClassLabel, Dataset, Features, Image

    bundle = load_bundle(options.bundle)
    largest = [(float(bundle.max_flops), bundle.space.largest)]
    photos: list[bytes] = []
    said: list[int] = []
    for data, count in zip(options.data, options.each, strict=True):
        rows = read_source(data).train
        rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64)))
        with Progress() as progress:

            def track(pieces: range, what: str = data) -> Iterable[int]:
                return progress.track(pieces, what, len(pieces))

            (found,), read, _ = measure(
                bundle, largest, rows, None, threads=options.threads, skip_broken=True, track=track
            )
        photos += [rows.read(row) for row in read]
        said += found.scores.first.tolist()
    features = Features({"image": Image(), "label": ClassLabel(names=list(bundle.labels))})
    test = set(np.linspace(0, len(photos) - 1, TEST).astype(int).tolist())
    options.out.mkdir(parents=True, exist_ok=True)
    for name, some in (("test", test), ("train", set(range(len(photos))) - test)):
        columns = {
            "image": [{"bytes": photos[at], "path": None} for at in sorted(some)],
            "label": [said[at] for at in sorted(some)],
        }
        written = Dataset.from_dict(columns, features=features)
        written.to_parquet(options.out / f"{name}.parquet", batch_size=GROUP)
    print(json.dumps({"photos": len(photos), "classes": len(set(said)), "out": str(options.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
