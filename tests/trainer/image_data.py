"""Small data sets of every kind, whose images are told apart by their red value."""

import io
import tarfile

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from trainer.data.reading import load_splits

SIDE = 8


def encoded_image(shade, *, size=(SIDE, SIDE), form="PNG"):
    file = io.BytesIO()
    Pillow.new("RGB", size, (shade, 255 - shade, 7)).save(file, format=form)
    return file.getvalue()


def write_parquet(path, images, labels, *, names=("cat", "dog"), label_type=None, group=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "label": list(labels),
    }
    label_type = label_type or ClassLabel(names=list(names))
    dataset = Dataset.from_dict(columns, features=Features(image=Image(), label=label_type))
    # As on the Hugging Face hub: the features lie in the file's own metadata.
    pyarrow.parquet.write_table(dataset.data.table, path, row_group_size=group)
    return path


def write_folder(root, layout):
    """layout: folder -> number of images; shades count up so that every image is another."""
    shade = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(encoded_image(shade))
            shade += 1
    return root


def write_tar(path, members):
    """members: (name, content) in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(shades, classes=2):
    """Members of a tar: an image and its label each."""
    for shade in shades:
        yield f"n/{shade:04d}.png", encoded_image(shade)
        yield f"n/{shade:04d}.cls", str(shade % classes).encode()


def write_source(kind, root, count):
    """`count` training images of two classes, red value = number, as every kind of source."""
    if kind == "folder":
        for shade in range(count):
            file = root / "train" / ("cat", "dog")[shade % 2] / f"{shade:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded_image(shade))
            test = root / "test" / file.parent.name / "t.png"
            test.parent.mkdir(parents=True, exist_ok=True)
            test.write_bytes(encoded_image(250))
    elif kind == "parquet":
        half = count // 2
        for part, shades in enumerate((range(half), range(half, count))):
            labels = [shade % 2 for shade in shades]
            path = root / f"train-{part}.parquet"
            write_parquet(path, map(encoded_image, shades), labels, group=7)
        write_parquet(root / "test.parquet", [encoded_image(250)] * 2, [0, 1])
    else:
        assert kind == "tar"
        third = -(-count // 3)
        for part in range(3):
            shades = range(part * third, min((part + 1) * third, count))
            write_tar(root / f"data-train-{part:03d}.tar", samples(shades))
        write_tar(root / "data-val-000.tar", samples([250, 251]))
    return root


def load(source, **changes):
    defaults = {"held_out_share": 0.2, "seed": 0, "resolution": 8, "in_memory": "never"}
    return load_splits(str(source), **defaults | changes)
