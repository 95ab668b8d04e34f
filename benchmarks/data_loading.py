"""How many images a second does training data come at, from memory and from disk?

    python -m benchmarks.data_loading                  # synthetic photos, 0, 1 and 2 workers
    python -m benchmarks.data_loading --workers 0 4 8 --images 4000 --batch-size 256

Photos of 500 x 375 are made up (noise that compresses like a photo, about 45 kB), written as an
image folder, as parquet and as tars, and read back at 224 x 224 with the augmentation of the DeiT
and AutoFormer recipes. Every configuration is measured in each round, in turn. The files are warm
in the system's cache: this measures decoding and augmentation, not the disk.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.parts.timing import machine
from models.command import command_parser, tells_mistakes
from trainer.data.batches import Batch, Batches
from trainer.data.reading import InMemory, load_splits
from trainer.recipes.settings import Augment

SIZE = (500, 375)
RESOLUTION = 224
CLASSES = 2
PLAIN = Augment(padding=16, border="zero")
DEIT = Augment(
    padding=0,
    crop_area=0.08,
    policy="rand-m9-mstd0.5-inc1",
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
    repeats=3,
)


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of smooth shapes with some noise: no photo, but as large a file as one."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 8, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=85)
    return file.getvalue()


def write_sources(root: Path, images: list[bytes]) -> dict[str, Path]:
    """The same images as every kind of source."""
    import pyarrow
    import pyarrow.parquet

    for number, image in enumerate(images):
        folder = root / "folder" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(image)
    labels = [number % CLASSES for number in range(len(images))]
    table = pyarrow.table({"image": images, "label": labels})
    (root / "parquet").mkdir()
    pyarrow.parquet.write_table(table, root / "parquet" / "train.parquet", row_group_size=100)
    (root / "tars").mkdir()
    shard_size = -(-len(images) // 4)
    for start in range(0, len(images), shard_size):
        with tarfile.open(root / "tars" / f"{start:06d}.tar", "w") as archive:
            for number in range(start, min(start + shard_size, len(images))):
                for suffix, content in (
                    ("jpg", images[number]),
                    ("cls", str(labels[number]).encode()),
                ):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return {kind: root / kind for kind in ("folder", "parquet", "tars")}


def configurations(
    sources: dict[str, Path], workers: list[int], batch_size: int
) -> dict[str, Callable[[], Iterator[Batch]]]:
    """Streams by what they read, do and use."""
    found: dict[str, Callable[[], Iterator[Batch]]] = {}

    def add(source: str, in_memory: InMemory, name: str, augment: Augment, count: int) -> None:
        splits = load_splits(
            str(sources[source]),
            held_out_share=0.1,
            seed=0,
            resolution=RESOLUTION,
            in_memory=in_memory,
        )
        batches = Batches(
            splits.train,
            batch_size,
            seed=0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augment=augment,
            classes=CLASSES,
            workers=count,
        )
        place = "memory" if in_memory == "always" else source
        found[f"{place:8} {name:10} {count} workers"] = batches.stream

    add("folder", "always", "crop, flip", PLAIN, 0)
    for source in sources:
        for count in workers:
            add(source, "never", "DeiT", DEIT, count)
    return found


def images_per_s(stream: Iterator[Batch], batches: int) -> float:
    """Of a stream that has already started."""
    start = time.perf_counter()
    count = sum(len(batch.images) for batch in islice(stream, batches))
    return count / (time.perf_counter() - start)


def measure(
    streams: dict[str, Callable[[], Iterator[Batch]]], rounds: int, batches: int
) -> dict[str, list[float]]:
    """Images a second per round. A stream starts afresh each time: its workers end with it."""
    found: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, start in streams.items():
            stream = start()
            next(stream)  # workers start, files are opened
            found[name].append(images_per_s(stream, batches))
            del stream
    return found


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.data_loading", __doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--batches", type=int, default=8, help="batches for each configuration and round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("HF_DATASETS_CACHE", scratch)
        sources = write_sources(Path(scratch), [photo(rng) for _ in range(options.images)])
        size = sum(file.stat().st_size for file in sources["folder"].glob("*/*"))
        streams = configurations(sources, options.workers, options.batch_size)
        found = measure(streams, options.rounds, options.batches)
    rows = [
        {
            "configuration": " ".join(name.split()),
            "median_images_per_s": round(float(np.median(rates)), 1),
            "least": round(min(rates), 1),
            "most": round(max(rates), 1),
        }
        for name, rates in found.items()
    ]
    if not options.json:
        print(f"{options.images} JPEGs of {SIZE[0]} x {SIZE[1]}, {size // options.images:,} bytes")
        print("images/s: median (least - most) of", options.rounds, "rounds")
        for name, row in zip(found, rows, strict=True):
            print(
                f"{name}  {row['median_images_per_s']:8} ({row['least']} - {row['most']})",
            )
    facts = machine() | {"cores": os.cpu_count(), "pillow": version("pillow")}
    print(json.dumps({"machine": facts, "batch_size": options.batch_size, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
