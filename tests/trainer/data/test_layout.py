"""Which files train, which test, which class they are of: one rule for every kind of data set."""

import os
import unicodedata

import numpy as np
import pytest

from tests.trainer.image_data import (
    encoded_image,
    load,
    samples,
    write_folder,
    write_parquet,
    write_tar,
)
from trainer.data.layout import place_of_images, split_of, split_of_shard
from trainer.data.reading import read_source


def read(path):
    return read_source(str(path))


def shades(rows):
    """The red values of some rows, which tell the images of these tests apart."""
    import io

    from PIL import Image

    if rows is None:
        return None
    contents = (rows.read(row) for row in range(len(rows)))
    return sorted(Image.open(io.BytesIO(content)).getpixel((0, 0))[0] for content in contents)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "training_set", "TrainSet", "seg_train")
        ),
        *((name, "test") for name in ("TEST", "Testing", "test_set", "test-images", "evaluation")),
        *((name, "val") for name in ("val2017", "valid", "Validation", "dev", "imagenet-val")),
        *((name, None) for name in ("valley", "testarossa", "trainer", "contest", "devil", "7")),
    ],
)
def test_a_word_of_a_name_says_the_split(name, split):
    assert split_of(name) == split


def test_a_name_that_says_two_splits_is_refused():
    with pytest.raises(ValueError, match="'train-test' says both test and train"):
        split_of("train-test")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/0000.parquet", "train"),
        ("default/partial-test/0000.parquet", "test"),
        ("train/test.parquet", "test"),
        ("test/data/0000.tar", "test"),
        ("0000.parquet", None),
    ],
)
def test_of_a_shard_its_own_name_counts_first_then_the_folders_around_it(name, split):
    assert split_of_shard(name) == split


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("cat", (None, "cat")),
        ("cat/deeper", (None, "cat")),
        ("Training/cat", ("train", "cat")),
        ("test_set/test_set/cat", ("test", "cat")),
        ("flowers/train/rose/deeper", ("train", "rose")),
        ("cat/test", ("test", "cat")),
        ("test/train", ("test", "train")),
        ("train/train", ("train", "train")),
        ("train_station", (None, "train_station")),
        ("test", ("test", None)),
    ],
)
def test_of_a_folder_of_images_the_outermost_split_counts_and_the_class_is_below(folder, place):
    assert place_of_images(folder.split("/")) == place


# -- the same rule for every kind ------------------------------------------------------------------


def write(kind, root, splits):
    """A data set of two classes. splits: name -> numbers of images, their red values."""
    for split, numbers in splits.items():
        for number in numbers if kind == "folder" else ():
            file = root / split / ("cat", "dog")[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded_image(number))
        if kind == "parquet":
            labels = [number % 2 for number in numbers]
            write_parquet(root / split / "0000.parquet", map(encoded_image, numbers), labels)
        elif kind == "tar":
            write_tar(root / split / "0000.tar", samples(numbers))
    return root


KINDS = pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])


@KINDS
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("a/train", "a/val"),
    ],
)
def test_no_test_image_is_trained_on(kind, train, test, tmp_path):
    source = read(write(kind, tmp_path, {train: range(10), test: range(10, 16)}))
    assert len(source.classes) == 2
    assert shades(source.train) == list(range(10))
    assert shades(source.test) == list(range(10, 16))


@KINDS
def test_val_is_the_test_split_where_there_is_no_test_and_else_not_read(kind, tmp_path):
    layout = {"train": range(10), "val": range(10, 14)}
    assert shades(read(write(kind, tmp_path / "a", layout)).test) == list(range(10, 14))
    layout["test"] = range(20, 24)
    source = read(write(kind, tmp_path / "b", layout))
    assert shades(source.train) == list(range(10))
    assert shades(source.test) == list(range(20, 24))
    assert source.passed_over[0].startswith("val is not read")


@KINDS
def test_what_says_no_split_beside_what_does_is_refused(kind, tmp_path):
    write(kind, tmp_path, {"train": range(6), "more": range(6, 10)})
    with pytest.raises(ValueError, match=r"cannot tell which split .*more.* beside .*train"):
        read(tmp_path)


@KINDS
def test_a_test_split_alone_trains_nothing(kind, tmp_path):
    write(kind, tmp_path, {"test": range(6)})
    with pytest.raises(ValueError, match="no images to train on, only test"):
        read(tmp_path)


@KINDS
def test_an_unlabelled_test_split_is_passed_over_and_val_takes_its_place(kind, tmp_path):
    write(kind, tmp_path, {"train": range(10), "val": range(10, 14)})
    images = [encoded_image(number) for number in range(20, 23)]
    (tmp_path / "test").mkdir()
    if kind == "folder":
        for number, image in enumerate(images):
            (tmp_path / "test" / f"{number}.png").write_bytes(image)
    elif kind == "parquet":
        write_parquet(tmp_path / "test" / "0000.parquet", images, [-1] * 3)
    else:
        members = [(f"{number}.png", image) for number, image in enumerate(images)]
        write_tar(tmp_path / "test" / "0000.tar", members)
    source = read(tmp_path)
    assert shades(source.train) == list(range(10))
    assert shades(source.test) == list(range(10, 14))
    assert source.passed_over[0].startswith("3 images in test have no labels")


def test_a_parquet_without_a_label_column_is_unlabelled(tmp_path):
    import pyarrow
    import pyarrow.parquet

    write("parquet", tmp_path, {"train": range(10)})
    table = pyarrow.table({"image": [encoded_image(7)]})
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    source = read(tmp_path)
    assert source.test is None
    assert source.passed_over[0].startswith("1 images in test have no labels")


def test_a_class_folder_that_may_be_a_split_is_refused(tmp_path):
    write_folder(tmp_path, {"airplane": 2, "train": 2, "truck": 2})
    with pytest.raises(ValueError, match="cannot tell which split"):
        read(tmp_path)


def test_classes_may_be_called_like_splits_below_one(tmp_path):
    write_folder(tmp_path, {"train/train": 2, "train/test": 2, "test/train": 1, "test/test": 1})
    source = read(tmp_path)
    assert source.classes == ("test", "train")
    assert shades(source.test) == [4, 5]


# -- what is no image of the data set --------------------------------------------------------------


def test_hidden_files_are_left_out_at_any_depth(tmp_path):
    write_folder(
        tmp_path,
        {
            "cat": 3,
            "dog": 3,
            "cat/.ipynb_checkpoints": 2,
            "__MACOSX/cat": 2,
            "dog/deeper/__MACOSX": 1,
        },
    )
    (tmp_path / "dog" / "._0.png").write_bytes(b"no image")
    source = read(tmp_path)
    assert source.classes == ("cat", "dog")
    assert shades(source.train) == list(range(6))


def test_hidden_members_of_a_tar_are_left_out(tmp_path):
    members = [*samples(range(4)), ("n/._0001.png", b"no"), ("__MACOSX/0.png", b"no")]
    assert len(read(write_tar(tmp_path / "a.tar", members)).train) == 4


def test_each_real_file_is_found_once(tmp_path):
    root = write_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "other", {"cow": 2})
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "far_up").symlink_to(tmp_path)
    (root / "a_dog").symlink_to(root / "dog")
    (root / "cow").symlink_to(tmp_path / "other" / "cow")
    (root / "dog" / "again.png").symlink_to(root / "cat" / "0.png")
    source = read(root)
    assert source.classes == ("cat", "cow", "dog")
    assert len(source.train) == 8
    assert source.passed_over == ("4 links to what is found elsewhere in it, like a_dog",)


def test_links_into_what_is_not_read_itself_are_followed(tmp_path):
    """Hugging Face's cache keeps files without a suffix; other stores are hidden folders."""
    cache = tmp_path / "datasets--me--x"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    blob = write_parquet(cache / "blobs" / "0123", map(encoded_image, range(6)), [0, 1] * 3)
    (cache / "snapshots" / "abc" / "train.parquet").symlink_to(blob)
    assert shades(read(cache).train) == list(range(6))

    root = write_folder(tmp_path / "photos", {"cat": 3, "dog/.store": 3, "store": 2})
    for number in range(3):
        (root / "dog" / f"a{number}.png").symlink_to(root / "dog" / ".store" / f"{number}.png")
    (root / "cat" / "0.png").rename(root / "cat" / ".0")
    (root / "cat" / "first.png").symlink_to(root / "cat" / ".0")
    (root / "elk").symlink_to(root / "dog" / ".store")
    (root / "store" / "1.png").rename(root / "store" / "1")
    for name in ("note.txt", "1.png", "1_again.png"):
        (root / "store" / name).symlink_to(root / "store" / "1")
    source = read(root)
    assert source.classes == ("cat", "dog", "store")
    assert shades(source.train) == list(range(8)), "each once"
    assert source.passed_over == ("4 links to what is found elsewhere in it, like elk/0.png",)


@pytest.mark.parametrize("pool", ["all/", ""])
def test_classes_that_are_links_to_a_pool_are_named(pool, tmp_path):
    root = write_folder(tmp_path, {pool or ".": 4} if pool else {"x": 4})
    if not pool:
        for file in (root / "x").iterdir():
            file.rename(root / file.name)
        (root / "x").rmdir()
    for number in range(4):
        link = root / ("cat", "dog")[number % 2] / f"{number}.png"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root / pool / f"{number}.png")
    with pytest.raises(ValueError, match="4 links to what is found elsewhere in it, like cat/0"):
        load(root)


def test_images_that_are_not_read_are_counted_and_one_is_shown(tmp_path):
    write_folder(tmp_path / "folder", {"cat": 3, "dog": 3})
    for name in ("a.bmp", "b.TIF", "c.heic", "notes.txt"):
        (tmp_path / "folder" / "cat" / name).write_bytes(b"")
    (tmp_path / "folder" / "logo.png").write_bytes(b"")
    source = read(tmp_path / "folder")
    assert len(source.train) == 6
    assert "3 files of kinds that are not read here, like cat/a.bmp" in source.passed_over
    assert "1 images are not in a folder of a class, like logo.png" in source.passed_over

    members = [*samples(range(4)), ("5.bmp", b""), ("5.cls", b"0"), ("n/0001.depth.png", b"")]
    write_tar(tmp_path / "tars" / "a.tar", members)
    (line,) = read(tmp_path / "tars").passed_over
    assert line.startswith("2 files of kinds that are not read here, like ")
    assert line.endswith("a.tar, 5.bmp")


def test_a_class_of_which_no_image_can_be_read_is_refused(tmp_path):
    write_folder(tmp_path, {"cat": 3, "dog": 3, "cow": 0})
    (tmp_path / "cow" / "0.bmp").write_bytes(b"")
    with pytest.raises(ValueError, match="cow has no images: allowed are"):
        read(tmp_path)


def test_images_beside_parquet_files_are_counted(tmp_path):
    write("parquet", tmp_path, {"train": range(10)})
    write("folder", tmp_path / "more", {"": range(4)})
    assert read(tmp_path).passed_over[0].startswith("4 files of kinds")


def test_keys_of_tars_may_hold_dots(tmp_path):
    members = []
    for number in range(6):
        name = f"shot_2.{number}"
        members += [(f"{name}.png", encoded_image(number)), (f"{name}.cls", b"01"[:1])]
    members[-1] = (members[-1][0], b"1")
    source = read(write_tar(tmp_path / "a.tar", members))
    assert shades(source.train) == list(range(6))
    assert source.train.labels.tolist() == [0] * 5 + [1]


# -- names of classes ------------------------------------------------------------------------------


def test_spellings_of_a_class_in_unicode_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_folder(
        tmp_path, {f"train/{composed}": 2, f"train/{decomposed}": 2, "train/tea": 2, "val/tea": 1}
    )
    write_folder(tmp_path / "val", {decomposed: 1})
    source = read(tmp_path)
    assert source.classes == (composed, "tea")
    assert np.bincount(source.train.labels).tolist() == [4, 2]
    assert np.bincount(source.test.labels).tolist() == [1, 1]


def test_names_of_two_classes_that_are_spelt_alike_are_refused(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write_parquet(tmp_path / "a.parquet", map(encoded_image, range(4)), [0, 1] * 2, names=names)
    with pytest.raises(ValueError, match="two classes are called 'café'"):
        read(tmp_path)


def test_a_class_name_that_is_not_utf_8_is_refused_and_a_file_name_is_shown(tmp_path):
    write_folder(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "dog" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dog/\\xff\.png") as caught:
        load(tmp_path, in_memory="always")
    assert str(caught.value).isprintable()
    os.rename(tmp_path / "dog", tmp_path / os.fsdecode(b"d\xf6g"))  # noqa: PTH104
    with pytest.raises(ValueError, match=r"name of class d\\xf6g is not UTF-8: rename") as caught:
        read(tmp_path)
    assert str(caught.value).isprintable()


# -- what is said ----------------------------------------------------------------------------------


def test_one_line_says_what_was_understood(tmp_path):
    layout = {"Training/cat": 30, "Training/dog": 20, "Testing/cat": 3, "Testing/dog": 2}
    splits = load(write_folder(tmp_path / "a", layout))
    assert str(splits) == "train 40, held-out 10, test 5 images; 2 classes: cat … dog"
    splits = load(write_folder(tmp_path / "b", {"cat": 30, "dog": 20}))
    assert str(splits).startswith("train 32, held-out 8, test 10 images (a fifth of all: no test")


def test_a_data_set_is_called_as_its_folder_is(tmp_path):
    write("parquet", tmp_path / "pets", {"": range(10)})
    (tmp_path / "pets" / "0000.parquet").rename(tmp_path / "pets" / "train.parquet")
    assert read(tmp_path / "pets").name == "pets"
    assert read(tmp_path / "pets" / "train.parquet").name == "pets"
