"""Sharded tars: what is found in them, and what is refused by its name."""

import os
import tarfile

import numpy as np
import pytest

from tests.trainer.image_data import encoded_image, load, samples, write_source, write_tar
from trainer.data.reading import read_source
from trainer.data.tars import RUN_LENGTH

COUNT = 60


def test_tars_name_their_classes_in_a_file(tmp_path):
    write_tar(tmp_path / "a.tar", samples(range(30)))
    assert load(tmp_path).labels == ("0", "1")
    assert load(tmp_path / "a.tar").labels == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load(tmp_path).labels == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match=r"classes\.txt must name each class once"):
        load(tmp_path)


def test_long_names_other_members_and_other_orders_are_read(tmp_path):
    long = "x" * 150
    members = [("readme.txt", b"hello"), (f"{long}/1.cls", b"1\n"), ("2.json", b"{}")]
    members += [("2.cls", b" 0"), ("2.PNG", encoded_image(2)), (f"{long}/1.png", encoded_image(1))]
    write_tar(tmp_path / "a.tar", members)
    rows = read_source(str(tmp_path)).train
    assert rows.labels.tolist() == [0, 1]
    assert rows.read(1) == encoded_image(1)
    assert rows.where(1).endswith(f"a.tar, {long}/1.png")


def test_many_shards_are_indexed_by_several_processes(tmp_path):
    for shard in range(17):
        write_tar(tmp_path / f"{shard:02d}.tar", samples(range(shard * 4, shard * 4 + 4)))
    rows = read_source(str(tmp_path)).train
    assert len(rows) == 68
    assert rows.read(67) == encoded_image(67)
    assert len(np.unique(rows.images.runs())) == 17


def test_long_shards_have_several_runs(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        ((f"{i}.{kind}", b"1" if i % 2 else b"0") for i in range(600) for kind in ("png", "cls")),
    )
    runs = read_source(str(tmp_path / "a.tar")).train.images.runs()
    assert np.bincount(runs).tolist() == [RUN_LENGTH, RUN_LENGTH, 600 - 2 * RUN_LENGTH]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.png", encoded_image(1)), ("1.cls", b"cat")], "1.cls: the label is 'cat'"),
        ([("1.png", encoded_image(1)), ("1.cls", b"-1")], "1.cls: the label is '-1'"),
        ([("1.png", encoded_image(1)), ("1.cls", b"1.0")], "1.cls: the label is '1.0'"),
        ([("1.png", encoded_image(1))], "1.png: no label"),
        ([*samples(range(8)), ("9.png", b""), ("9.cls", b"7")], "no image has label 2"),
        ([("1.txt", b"")], "no images"),
    ],
)
def test_wrong_labels_are_named(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path / "a.tar")
    assert "a.tar" in str(caught.value)


def test_labels_beyond_the_class_names_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", samples(range(9), classes=3))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"a\.tar, n/0002\.png: label is 2.*2 classes"):
        load(tmp_path)


def test_a_tar_that_was_cut_short_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(range(20)))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    for cut in (members[8].offset, members[8].offset + 9, members[8].offset_data + 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.tar (was cut short|is not a readable)"):
            load(path)
    path.write_bytes(whole)
    train = load(path).train
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r"a\.tar was cut short"):
        train.fetch(np.arange(len(train)))


def test_a_missing_shard_is_never_skipped(tmp_path):
    write_source("tar", tmp_path / "data", COUNT)
    train = load(tmp_path / "data", skip_broken=True).train
    (tmp_path / "data" / "data-train-001.tar").unlink()
    with pytest.raises(ValueError, match=r"data-train-001\.tar cannot be read"):
        train.fetch(np.arange(len(train)))


def test_compressed_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match="uncompressed"):
        load(tmp_path / "a.tar")
