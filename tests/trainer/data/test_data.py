"""Data sets end up as three disjoint splits in memory, and every mistake is named in one line."""

import io
import re
from contextlib import contextmanager

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Value
from PIL import Image as Pillow

from models.images.preprocess import Preprocess
from tests.trainer.image_data import SIDE, encoded_image, write_folder, write_parquet
from trainer.data.reading import DATA_FOLDER_VARIABLE, load_splits
from trainer.data.splits import stratified_holdout


def shades(split):
    """The red value that tells the images of these tests apart."""
    return sorted(split.images[:, 0, 0, 0].tolist())


def load(source, **changes):
    return load_splits(
        str(source), **{"held_out_share": 0.2, "seed": 0, "resolution": SIDE} | changes
    )


# -- splits ----------------------------------------------------------------------------------------


def test_digits_are_rgb_uint8_over_the_full_range_in_three_splits():
    splits = load("digits", held_out_share=0.1)
    assert splits.name == "digits"
    assert splits.labels == tuple("0123456789")
    assert len(splits.train) + len(splits.held_out) + len(splits.test) == 1797
    assert abs(len(splits.test) - 0.2 * 1797) < 10
    assert abs(len(splits.held_out) - 0.1 * 0.8 * 1797) < 10
    assert splits.train.images.shape[1:] == (3, 8, 8)
    assert (splits.train.images.min(), splits.train.images.max()) == (0, 255)
    assert torch.equal(splits.train.images[:, 0], splits.train.images[:, 2])


def test_digits_match_their_labels():
    from sklearn.datasets import load_digits

    known = load_digits()
    by_image = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(known.images, known.target, strict=True)
    }
    splits = load("digits")
    for split in (splits.train, splits.held_out, splits.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert by_image[image[0].numpy().tobytes()] == label


def test_resolution_resizes():
    assert load("digits", resolution=16).train.images.shape[2:] == (16, 16)


def test_every_image_is_in_exactly_one_split(tmp_path):
    write_parquet(tmp_path / "all.parquet", map(encoded_image, range(100)), [0, 1] * 50)
    splits = load(tmp_path / "all.parquet")
    everything = shades(splits.train) + shades(splits.held_out) + shades(splits.test)
    assert sorted(everything) == list(range(100))


def test_the_test_split_does_not_depend_on_the_seed_but_the_held_out_split_does():
    one, other = load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(one.test.images, other.test.images)
    assert not torch.equal(one.held_out.images, other.held_out.images)
    assert torch.equal(one.held_out.images, load("digits", seed=1).held_out.images)


def test_a_published_test_split_is_kept_whole(tmp_path):
    write_parquet(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        map(encoded_image, range(20)),
        [0, 1] * 10,
    )
    write_parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        map(encoded_image, range(20, 40)),
        [0, 1] * 10,
    )
    write_parquet(tmp_path / "data" / "test.parquet", map(encoded_image, [90, 91, 92]), [0, 1, 1])
    splits = load(tmp_path)
    assert splits.labels == ("cat", "dog")
    assert shades(splits.test) == [90, 91, 92]
    assert sorted(shades(splits.train) + shades(splits.held_out)) == list(range(40))
    assert len(splits.held_out) == 8


def test_validation_is_the_test_split_where_test_labels_are_unpublished(tmp_path):
    write_parquet(tmp_path / "train.parquet", map(encoded_image, range(20)), [0, 1] * 10)
    write_parquet(tmp_path / "test.parquet", [encoded_image(70)], [-1])
    write_parquet(tmp_path / "validation.parquet", [encoded_image(80)], [1])
    assert shades(load(tmp_path).test) == [80]


def test_class_names_are_numbers_where_the_file_names_none(tmp_path):
    path = tmp_path / "d.parquet"
    write_parquet(path, map(encoded_image, range(30)), [0, 1, 2] * 10, label_type=Value("int64"))
    assert load(path).labels == ("0", "1", "2")


def test_image_folder_with_train_and_test(tmp_path):
    write_folder(
        tmp_path, {"train/cat": 10, "train/dog": 10, "val/cat": 1, "val/dog": 2, "train/.cache": 1}
    )
    splits = load(tmp_path)
    assert splits.labels == ("cat", "dog")
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert shades(splits.test) == [20, 21, 22]
    assert len(splits.held_out) == 4


def test_image_folder_of_classes_loses_a_share_to_the_test_split(tmp_path):
    splits = load(write_folder(tmp_path, {"cat": 10, "dog": 20}))
    assert torch.bincount(splits.test.labels).tolist() == [2, 4]
    for split in (splits.train, splits.held_out, splits.test):
        dogs = split.images[split.labels == 1][:, 0, 0, 0]
        assert (dogs >= 10).all()


def test_holdout_takes_the_share_of_every_class_and_leaves_one():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    kept, held = stratified_holdout(labels, 0.2, seed=3)
    assert sorted([*kept, *held]) == list(range(63))
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 2, 1, 0]


def test_a_name_is_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    assert load("pets").name == "pets"


def test_known_data_set_is_called_by_its_name_and_its_encoding(tmp_path):
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    for form, title in (("JPEG", "CIFAR-10 (JPEG)"), ("PNG", "CIFAR-10")):
        images = [encoded_image(shade, form=form) for shade in range(40)]
        path = write_parquet(tmp_path / f"{form}.parquet", images, [*range(10)] * 4, names=names)
        assert load(path).title == title


# -- decoding --------------------------------------------------------------------------------------


def test_images_of_the_right_size_are_decoded_pixel_for_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    images = []
    for pixels in noise:
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, format="JPEG", quality=80)
        images.append(file.getvalue())
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 20)
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 20)
    for image, data in zip(load(tmp_path, resolution=32).test.images, images, strict=True):
        expected = np.asarray(Pillow.open(io.BytesIO(data)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_other_sizes_are_cropped_and_resized_as_the_server_does(tmp_path):
    write_folder(tmp_path, {"cat": 4, "dog": 4})
    gradient = np.arange(30 * 50, dtype=np.uint32).reshape(30, 50) % 251
    picture = Pillow.fromarray(np.stack([gradient] * 3, axis=-1).astype(np.uint8))
    picture.save(tmp_path / "cat" / "0.png")
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), crop_ratio=0.875, interpolation="bilinear")
    splits = load(tmp_path, resolution=12, preprocess=preprocess)
    expected = preprocess.pixels(picture, 12).transpose(2, 0, 1)
    everything = torch.cat([splits.train.images, splits.held_out.images, splits.test.images])
    assert any(np.array_equal(image.numpy(), expected) for image in everything)


# -- mistakes --------------------------------------------------------------------------------------


@contextmanager
def one_line(*words):
    """Wants a ValueError of one line that says all of the words."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        yield
    assert "\n" not in str(caught.value)
    for word in words[1:]:
        assert word in str(caught.value)


def written(path, text):
    path.write_text(text)
    return path


def few(path):
    """Three images of four classes."""
    return write_parquet(path, map(encoded_image, range(3)), [0, 1, 2], names=list("abcd"))


def strange(path):
    """A table of other columns."""
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b"1"], "kind": [0]}), path)
    return path


ONE_CLASS_MORE = {"train/cat": 3, "train/dog": 3, "test/cow": 1}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda at: at / "nowhere.parquet", ["nowhere.parquet does not exist"]),
        (lambda at: written(at / "notes.txt", "hello"), ["notes.txt is not a data set"]),
        (lambda at: written(at / "x.parquet", "hello"), ["is not a readable parquet file"]),
        (lambda at: at, ["no images in"]),
        (lambda at: write_folder(at, {"cat": 0, "dog": 0}), ["no images in"]),
        (lambda at: write_folder(at, {"cat": 3, "dog": 0}), ["dog has no images"]),
        (lambda at: write_folder(at, ONE_CLASS_MORE), ["cow", "training images do not have"]),
        (lambda at: write_parquet(at / "x.parquet", [], []), ["no images"]),
        (lambda at: write_folder(at, {"cat": 5}), ["one class only (cat)"]),
        (lambda at: write_folder(at, {"cat": 5, "d\nog": 5}), [r"'d\nog' has a line break"]),
        (lambda at: few(at / "x.parquet"), ["3 training images for 4 classes"]),
        (lambda at: strange(at / "x.parquet"), ["no column named label", "picture, kind"]),
    ],
)
def test_what_is_not_a_data_set_is_said_in_one_line(tmp_path, source, words):
    with one_line(*words):
        load(source(tmp_path))


def test_unknown_name_says_what_to_pass(monkeypatch):
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    with one_line("'cifar10'", "--data PATH", DATA_FOLDER_VARIABLE, "digits"):
        load("cifar10")


def test_plain_bytes_are_images_too_but_not_missing_ones(tmp_path):
    images = [encoded_image(shade) for shade in range(20)]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 10}), path)
    assert len(load(path).test) == 4
    images[4] = None
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 10}), path)
    with one_line("row 4", "no bytes"):
        load(path)


def test_labels_that_are_no_integers(tmp_path):
    images = [encoded_image(shade) for shade in range(4)]
    path = tmp_path / "x.parquet"
    write_parquet(path, images, ["cat", "dog"] * 2, label_type=Value("string"))
    with one_line("labels are string", "integers"):
        load(path)
    write_parquet(path, images, [0, 1, None, 1], label_type=Value("int64"))
    with one_line("row 2", "label is missing"):
        load(path)
    write_parquet(path, images, [0, 1, 0, -1], label_type=Value("int64"))
    with one_line("row 3", "label is -1"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_held_out_share_that_leaves_a_split_empty(share):
    with one_line("held_out_share"):
        load("digits", held_out_share=share)
