"""Parquet files: which column has the images, which files are read, and the copy on disk."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.trainer.image_data import encoded_image, load, write_parquet
from trainer.data.reading import read_source


@pytest.fixture(autouse=True)
def arrow_copies_in_the_tests_own_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def write(path, *, first=0, count=20):
    """A parquet file whose images have the red values from `first` on."""
    shades = range(first, first + count)
    return write_parquet(path, map(encoded_image, shades), [0, 1] * (count // 2))


def shades(split):
    return sorted(split.fetch(np.arange(len(split))).images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("name", ["d[12]", "d?", "d*"])
def test_a_path_is_not_a_pattern(name, tmp_path):
    write(tmp_path / "d1" / "train.parquet", first=100)
    write(tmp_path / name / "train.parquet")
    disk, memory = (load(tmp_path / name, in_memory=where) for where in ("never", "always"))
    assert shades(disk.train) == shades(memory.train)


def test_files_that_changed_are_not_read_from_an_older_copy(tmp_path):
    source = read_source(str(write(tmp_path / "x.parquet")))
    write(tmp_path / "x.parquet", count=18)
    with pytest.raises(ValueError, match=r"x.parquet .* has 18 images, they have 20: remove /.*"):
        source.train.images.for_random_access()


def test_files_without_rows_are_left_out(tmp_path):
    for number, count in enumerate((0, 10, 0, 10)):
        write(tmp_path / "data" / f"{number}.parquet", first=10 * number, count=count)
    disk, memory = (load(tmp_path / "data", in_memory=where) for where in ("never", "always"))
    assert shades(disk.train) == shades(memory.train)
    assert len(disk.train) + len(disk.held_out) + len(disk.test) == 20
    assert disk.test_rows.where(0).startswith(f"{tmp_path}/data/1.parquet, row ")
    (tmp_path / "data" / "1.parquet").unlink()
    (tmp_path / "data" / "3.parquet").unlink()
    with pytest.raises(ValueError, match="no images in"):
        load(tmp_path / "data")


def test_only_the_system_is_asked_for_room(tmp_path, monkeypatch):
    """Files that `datasets` cannot join take no more room elsewhere."""
    import datasets

    write(tmp_path / "data" / "1.parquet")
    table = pyarrow.table({"image": [encoded_image(0)] * 20, "label": [0, 1] * 10})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "0.parquet")
    with pytest.raises(ValueError, match=r"Couldn't cast.*all alike, or set data_in_memory=always"):
        load(tmp_path / "data")
    (tmp_path / "data" / "1.parquet").unlink()
    inside_a_file = tmp_path / "data" / "0.parquet" / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", inside_a_file)
    with pytest.raises(ValueError, match=r"Not a directory.*set HF_DATASETS_CACHE to a folder"):
        load(tmp_path / "data")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("mask", "image"), "image"),
        (("img", "mask"), "img"),
        (("img", "image"), "image"),
        (("mask",), "mask"),
    ],
)
def test_of_several_columns_of_bytes_the_one_called_image_is_taken(names, taken, tmp_path):
    columns = {name: [encoded_image(names.index(name))] * 10 for name in names}
    table = pyarrow.table(columns | {"label": [0, 1] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    source = read_source(str(tmp_path / "x.parquet"))
    assert source.train.read(0) == encoded_image(names.index(taken))


def test_several_columns_of_bytes_without_a_known_name_are_refused(tmp_path):
    table = pyarrow.table({"left": [b""] * 2, "right": [b""] * 2, "label": [0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"2 columns of bytes \(left, right\): call the one") as e:
        read_source(str(tmp_path / "x.parquet"))
    assert "\n" not in str(e.value)
