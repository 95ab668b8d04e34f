"""Every kind of source, on disk or in memory, gives the same images and can be resumed anywhere."""

import itertools
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from tests.trainer.image_data import (
    encoded_image,
    load,
    samples,
    write_folder,
    write_parquet,
    write_source,
    write_tar,
)
from trainer.data.batches import Batches
from trainer.data.splits import EncodedImages, LabelledImages, stratified_holdout
from trainer.engine.state import in_words
from trainer.recipes.settings import Augment

KINDS = ["folder", "parquet", "tar"]
COUNT = 60


@pytest.fixture(autouse=True)
def arrow_copies_in_the_tests_own_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def batches(split, size, **options):
    defaults = {"seed": 5, "mean": (0.5,) * 3, "std": (0.25,) * 3, "workers": 0}
    return Batches(split, size, **defaults | options)


def shades(batch):
    """The red values that tell the images of these tests apart."""
    return ((batch.images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long().tolist()


def same(one, other):
    return (
        one[:2] == other[:2]
        and torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
    )


# -- the same images -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_on_disk_and_in_memory_are_the_same_images(kind, tmp_path):
    source = write_source(kind, tmp_path / "data", COUNT)
    disk, memory = load(source), load(source, in_memory="always")
    assert isinstance(disk.train, EncodedImages)
    assert isinstance(memory.train, LabelledImages)
    for name in ("train", "held_out", "test"):
        one, other = getattr(disk, name), getattr(memory, name)
        fetched = one.fetch(np.arange(len(one)))
        assert torch.equal(fetched.images, other.images)
        assert torch.equal(fetched.labels, other.labels)
    every = list(range(len(disk.train)))
    red = disk.train.fetch(np.array(every)).images[:, 0, 0, 0].tolist()
    assert [shade % 2 for shade in red] == disk.train.rows.labels.tolist(), "labels are their own"


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_images_train_no_weight(kind, tmp_path):
    splits = load(write_source(kind, tmp_path / "data", COUNT), held_out_images=17)
    assert len(splits.held_out) == 17
    trained = batches(splits.train, 4, drop_last=False)
    held_out = batches(splits.held_out, 4, drop_last=False)
    for epoch in range(3):
        seen = [shade for batch in trained.epoch(epoch) for shade in shades(batch)]
        held = [shade for batch in held_out.epoch(epoch) for shade in shades(batch)]
        assert sorted(seen + held) == list(range(COUNT)), "each image on one side"
    assert abs(splits.held_out.rows.labels.mean() - 0.5) < 0.1, "in proportion to the classes"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_some_batches_the_rest_comes_out_the_same(kind, workers, tmp_path):
    source = write_source(kind, tmp_path / "data", COUNT)
    augment = Augment(padding=0, crop_area=0.5, mixup=0.5, cutmix=0.5)

    def stream(epoch, start):
        train = load(source).train
        options = {"augment": augment, "classes": 2, "window": 20, "workers": workers}
        return batches(train, 8, **options).stream(epoch, start)

    whole = list(itertools.islice(stream(0, 0), 9))
    assert [batch[:2] for batch in whole[5:7]] == [(0, 5), (1, 0)]
    resumed = list(itertools.islice(stream(0, 4), 5))
    assert all(map(same, whole[4:], resumed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "start"), [(0, 0), (0, 2), (2, 1)])
def test_ranks_share_out_an_epoch_also_from_its_middle_on(kind, workers, start, tmp_path):
    train = load(write_source(kind, tmp_path / "data", COUNT)).train
    alone = list(batches(train, 12, window=20).epoch(1))[start:]
    seen = []
    for rank in range(3):
        options = {"rank": rank, "world_size": 3, "workers": workers, "window": 20}
        part = list(batches(train, 4, **options).epoch(1, start))
        for whole, mine in zip(alone, part, strict=True):
            assert mine[:2] == whole[:2]
            assert shades(mine) == shades(whole)[rank::3]
            seen += shades(mine)
    assert sorted(seen) == sorted(shade for batch in alone for shade in shades(batch))
    assert len(set(seen)) == len(seen) == 12 * len(alone)


def test_workers_see_a_source_that_was_sent_to_them(tmp_path):
    """As on systems that start processes afresh: everything is pickled."""
    for kind in KINDS:
        train = load(write_source(kind, tmp_path / kind, COUNT)).train
        train.fetch(np.arange(3))
        sent = pickle.loads(pickle.dumps(train))  # noqa: S301 - its own
        assert torch.equal(sent.fetch(np.arange(9)).images, train.fetch(np.arange(9)).images)


def test_workers_end_with_the_stream(tmp_path):
    train = load(write_source("folder", tmp_path / "data", COUNT)).train
    stream = batches(train, 4, workers=2).stream()
    next(stream)
    children = multiprocessing.active_children()
    assert len(children) == 2
    stream.close()
    end = time.monotonic() + 30
    while multiprocessing.active_children():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_worker_leaves_ctrl_c_to_the_run(tmp_path):
    """A terminal sends it to all processes; the run stops after its step, which needs a batch."""
    train = load(write_source("folder", tmp_path / "data", COUNT)).train
    stream = batches(train, 4, workers=1).stream()
    next(stream)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGINT)
    assert len(list(itertools.islice(stream, 20))) == 20


def test_a_worker_that_dies_is_said_in_one_line(tmp_path):
    train = load(write_source("folder", tmp_path / "data", COUNT)).train
    stream = batches(train, 4, workers=1).stream()
    next(stream)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(ValueError, match="process that decodes images has died") as caught:
        list(itertools.islice(stream, 20))
    assert "\n" not in str(caught.value)


def test_workers_leave_torchs_global_generator_alone(tmp_path):
    train = load(write_source("folder", tmp_path / "data", COUNT)).train
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(batches(train, 4, workers=1).stream())
    assert torch.equal(torch.rand(3), expected)


# -- what is kept in memory ------------------------------------------------------------------------


def test_what_fits_is_kept_in_memory_the_held_out_images_first(tmp_path, monkeypatch):
    import trainer.data.reading

    source = write_source("folder", tmp_path / "data", COUNT)
    room = 4 * 3 * 8 * 8
    for images, kept in (
        (0, ""),
        (12, "held_out"),
        (14, "held_out test"),
        (62, "held_out test train"),
    ):
        monkeypatch.setattr(trainer.data.reading, "installed_bytes", lambda n=images: n * room)
        splits = load(source, in_memory="auto")
        names = [
            n
            for n in ("held_out", "test", "train")
            if isinstance(getattr(splits, n), LabelledImages)
        ]
        assert " ".join(names) == kept
    assert splits.memory.startswith("in memory: held-out 12, test 2, train 48 images of 8x8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert isinstance(load(source, in_memory="auto").train, EncodedImages), "four share it"


def test_random_crops_are_taken_from_the_whole_image(tmp_path):
    for name, size in (("exact", 8), ("large", 16)):
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(5):
                file = tmp_path / name / label / f"{number}.png"
                file.write_bytes(encoded_image(number, size=(size, size)))
        splits = load(tmp_path / name, in_memory="auto", random_crops=True)
        assert isinstance(splits.train, LabelledImages if name == "exact" else EncodedImages)
        assert isinstance(splits.held_out, LabelledImages)


# -- broken images ---------------------------------------------------------------------------------


def break_one(kind, root):
    """Make the image with shade 13 unreadable; the name that an error must give it."""
    write_source(kind, root, COUNT)
    if kind == "folder":
        file = root / "train" / "dog" / "0013.png"
        file.write_bytes(encoded_image(13)[:40])
        return str(file)
    if kind == "parquet":
        images = [encoded_image(shade) for shade in range(30)]
        images[13] = images[13][:40]
        write_parquet(root / "train-0.parquet", images, [0, 1] * 15, group=7)
        return f"{root / 'train-0.parquet'}, row 13"
    members = [
        (name, b"hello" if name == "n/0013.png" else content)
        for name, content in samples(range(20))
    ]
    write_tar(root / "data-train-000.tar", members)
    return f"{root / 'data-train-000.tar'}, n/0013.png"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_named(kind, workers, tmp_path):
    name = break_one(kind, tmp_path / "data")
    with pytest.raises(ValueError, match="13") as caught:
        load(tmp_path / "data", in_memory="always")
    assert str(caught.value).startswith(name)
    splits = load(tmp_path / "data")
    loaders = [
        batches(part, 4, workers=workers, drop_last=False)
        for part in (splits.train, splits.held_out)
    ]
    with pytest.raises(ValueError, match="13") as caught:
        list(itertools.chain(*loaders))
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_memory", ["always", "never"])
@pytest.mark.parametrize("kind", KINDS)
def test_broken_images_are_skipped_and_counted_if_asked(kind, in_memory, tmp_path):
    name = break_one(kind, tmp_path / "data")
    splits = load(tmp_path / "data", in_memory=in_memory, skip_broken=True)
    found, seen = list(splits.broken), []
    for part in (splits.train, splits.held_out):
        loader = batches(part, 4, drop_last=False, workers=1)
        seen += [shade for batch in loader.epoch(0) for shade in shades(batch)]
        found += loader.broken
    assert sorted(seen) == [shade for shade in range(COUNT) if shade != 13]
    assert len(found) == 1
    assert found[0].startswith(f"{name}: ")


@pytest.mark.parametrize("gone", [[13], [0, 29, 30], [14, 15, 58, 59]])
def test_with_broken_images_on_disk_and_in_memory_are_the_same_too(gone, tmp_path):
    """So that a run can be resumed where other splits fit in memory."""
    write_source("folder", tmp_path / "data", COUNT)
    for shade in gone:
        file = tmp_path / "data" / "train" / ("cat", "dog")[shade % 2] / f"{shade:04d}.png"
        file.write_bytes(b"hello")
    disk, memory = (
        load(tmp_path / "data", in_memory=where, skip_broken=True) for where in ("never", "always")
    )
    assert in_words(disk) == in_words(memory)
    for name in ("train", "held_out"):
        one, other = getattr(disk, name), getattr(memory, name)
        every = np.arange(len(one))
        for fill in (True, False):
            fetched, kept = one.fetch(every, fill=fill), other.fetch(every, fill=fill)
            assert torch.equal(fetched.images, kept.images)
            assert torch.equal(fetched.labels, kept.labels)
        options = {"augment": Augment(padding=1, mixup=1.0), "classes": 2}
        assert all(map(same, batches(one, 6, **options), batches(other, 6, **options)))


def test_training_batches_stay_whole_where_images_are_skipped(tmp_path):
    break_one("folder", tmp_path / "data")
    train = load(tmp_path / "data", skip_broken=True).train

    def epochs():
        loader = batches(train, 6, augment=Augment(padding=1, mixup=1.0), classes=2)
        return [batch for epoch in range(2) for batch in loader.epoch(epoch)]

    assert all(len(batch.images) == 6 for batch in epochs())
    assert all(map(same, epochs(), epochs()))


def test_a_missing_file_is_named(tmp_path):
    write_folder(tmp_path / "data", {"cat": 10, "dog": 10})
    splits = load(tmp_path / "data")
    for file in (tmp_path / "data" / "dog").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"dog/\d\.png: .*No such file"):
        list(batches(splits.train, 4).epoch(0))


def test_only_broken_images_are_an_error(tmp_path):
    write_folder(tmp_path / "data", {"cat": 10, "dog": 10})
    for file in (tmp_path / "data").glob("*/*"):
        file.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"all 4 images are broken.*(cat|dog)/\d\.png"):
        load(tmp_path / "data", in_memory="always", skip_broken=True)
    train = load(tmp_path / "data", skip_broken=True).train
    with pytest.raises(ValueError, match=r"broken images in a row.*(cat|dog)/\d\.png"):
        batches(train, 4).batch(0, 0)


def test_labels_that_count_from_one_are_refused(tmp_path):
    from datasets import Value

    path = tmp_path / "x.parquet"
    write_parquet(path, map(encoded_image, range(9)), [1, 2, 3] * 3, label_type=Value("int64"))
    with pytest.raises(ValueError, match=r"row 2: label is 3, but no image has label 0"):
        load(path)


def test_a_held_out_number_is_held_out_exactly():
    labels = np.repeat(np.arange(7), [3, 50, 70, 1, 9, 200, 2])
    kept, held = stratified_holdout(labels, 0.5, 3, count=67)
    assert sorted([*kept, *held]) == list(range(335))
    assert len(held) == 67
    assert np.bincount(labels[held], minlength=7).tolist() == [1, 10, 14, 0, 2, 40, 0]


@pytest.mark.parametrize("count", [-1, 19, 200])
def test_more_held_out_images_than_there_are(count, tmp_path):
    write_folder(tmp_path / "data", {"cat": 10, "dog": 10})
    with pytest.raises(ValueError, match=f"held_out_images is {count}, of 16 training images"):
        load(tmp_path / "data", held_out_images=count)
