"""Data sets end up as three disjoint splits in memory, and every mistake is named in one line."""

import io

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


@pytest.fixture
def one_line():
    """A context that wants a ValueError of one line that says all of the given words."""

    class OneLine:
        def __init__(self, *words):
            self.words = words

        def __enter__(self):
            return self

        def __exit__(self, kind, error, traceback):
            assert kind is ValueError, f"{kind}: {error}"
            assert "\n" not in str(error)
            for word in self.words:
                assert word in str(error), str(error)
            return True

    return OneLine


def test_missing_path(tmp_path, one_line):
    with one_line("nowhere.parquet does not exist"):
        load(tmp_path / "nowhere.parquet")


def test_unknown_name_says_what_to_pass(monkeypatch, one_line):
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    with one_line("'cifar10'", "--data PATH", DATA_FOLDER_VARIABLE, "digits"):
        load("cifar10")


def test_a_file_of_another_kind(tmp_path, one_line):
    (tmp_path / "notes.txt").write_text("hello")
    with one_line("notes.txt is not a data set", ".parquet"):
        load(tmp_path / "notes.txt")


def test_a_file_that_is_no_parquet(tmp_path, one_line):
    (tmp_path / "x.parquet").write_text("hello")
    with one_line("x.parquet is not a readable parquet file"):
        load(tmp_path / "x.parquet")


def test_empty_folders(tmp_path, one_line):
    with one_line("no images in"):
        load(tmp_path)
    write_folder(tmp_path, {"cat": 0, "dog": 0})
    with one_line("no images in"):
        load(tmp_path)


def test_a_class_without_images(tmp_path, one_line):
    with one_line("dog has no images"):
        load(write_folder(tmp_path, {"cat": 3, "dog": 0}))


def test_a_class_that_only_the_test_split_has(tmp_path, one_line):
    layout = {"train/cat": 3, "train/dog": 3, "test/cow": 1}
    with one_line("cow", "training images do not have"):
        load(write_folder(tmp_path, layout))


def test_an_empty_parquet(tmp_path, one_line):
    with one_line("no images"):
        load(write_parquet(tmp_path / "x.parquet", [], []))


def test_one_class_only(tmp_path, one_line):
    with one_line("one class only (cat)"):
        load(write_folder(tmp_path, {"cat": 5}))


def test_fewer_images_than_classes(tmp_path, one_line):
    path = tmp_path / "x.parquet"
    write_parquet(path, map(encoded_image, range(3)), [0, 1, 2], names=list("abcd"))
    with one_line("3 training images for 4 classes"):
        load(path)


def test_a_corrupt_image_is_named_by_file_and_row(tmp_path, one_line):
    images = [encoded_image(shade) for shade in range(20)]
    images[13] = images[13][:40]
    path = write_parquet(tmp_path / "x.parquet", images, [0, 1] * 10)
    with one_line("x.parquet, row 13", "damaged"):
        load(path)


def test_a_corrupt_image_is_named_by_its_path(tmp_path, one_line):
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "dog" / "3.png").write_text("hello")
    with one_line("dog/3.png"):
        load(tmp_path)


def test_plain_bytes_are_images_too_but_not_missing_ones(tmp_path, one_line):
    images = [encoded_image(shade) for shade in range(20)]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 10}), path)
    assert len(load(path).test) == 4
    images[4] = None
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 10}), path)
    with one_line("row 4", "no bytes"):
        load(path)


def test_labels_that_are_no_integers(tmp_path, one_line):
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


def test_columns_that_are_not_there(tmp_path, one_line):
    table = pyarrow.table({"picture": [b"1"], "kind": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with one_line("no column named label", "picture, kind"):
        load(tmp_path / "x.parquet")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_held_out_share_that_leaves_a_split_empty(share, one_line):
    with one_line("held_out_share"):
        load("digits", held_out_share=share)
