"""Mini-batches depend on (seed, epoch, index) alone, and augmentation does what it says."""

import numpy as np
import pytest
import torch

from trainer.data.augment import crop_and_flip, cutout
from trainer.data.batches import Batches
from trainer.data.draws import Draws
from trainer.data.splits import LabelledImages
from trainer.recipes.settings import Augment

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def numbered(count, side=8):
    """Random images whose labels are their row numbers."""
    images = torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)
    )
    return LabelledImages(images.to(torch.uint8), torch.arange(count))


def make(data=None, batch_size=4, **options):
    data = numbered(22) if data is None else data
    return Batches(data, batch_size, **{"seed": 7, "mean": MEAN, "std": STD} | options)


def same(left, right):
    return left[:2] == right[:2] and all(map(torch.equal, left[2:4], right[2:4]))


# -- order -----------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_in_another_order_each_time():
    batches = make(drop_last=False)
    assert len(batches) == 6
    orders = [torch.cat([b.labels for b in batches.epoch(e)]).tolist() for e in range(3)]
    for order in orders:
        assert sorted(order) == list(range(22))
    assert orders[0] != orders[1] != orders[2]


def test_drop_last_leaves_only_whole_batches():
    batches = make()
    assert len(batches) == 5
    assert all(len(b.labels) == 4 for b in batches.epoch(0))


def test_without_shuffle_the_order_is_that_of_the_data():
    batches = make(shuffle=False, drop_last=False)
    assert torch.cat([b.labels for b in batches]).tolist() == list(range(22))


def test_the_seed_changes_order_and_augmentation():
    one, other = (make(seed=seed, augment=Augment(padding=2)).batch(0, 0) for seed in (1, 2))
    assert one.labels.tolist() != other.labels.tolist()
    one, other = (
        make(seed=seed, shuffle=False, augment=Augment(padding=2)).batch(0, 0) for seed in (1, 2)
    )
    assert not torch.equal(one.images, other.images)


def test_too_few_images_for_one_batch_is_said():
    with pytest.raises(ValueError, match=r"takes 40 images, the data has 22"):
        make(batch_size=40)


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_normalized_per_channel(channels_last):
    data = numbered(22)
    batch = make(data, channels_last=channels_last).batch(3, 2)
    pixels = data.images[batch.labels].numpy().transpose(0, 2, 3, 1) / 255
    expected = ((pixels - MEAN) / STD).transpose(0, 3, 1, 2)
    assert batch.images.dtype == torch.float32
    np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_crops_are_crops_of_the_padded_image_at_many_places(border, mode):
    images = numbered(300, side=6).images
    moved = crop_and_flip(
        images,
        2,
        border=border,
        flip=True,
        draws=Draws(torch.Generator().manual_seed(1), len(images)),
    )
    found = set()
    for before, after in zip(images.numpy(), moved.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode=mode)
        places = [
            (y, x, flip)
            for y in range(5)
            for x in range(5)
            for flip in (1, -1)
            if np.array_equal(padded[:, y : y + 6, x : x + 6][:, :, ::flip], after)
        ]
        assert places, "not a crop"
        found.add(places[0])
    assert len(found) == 50, "every shift, mirrored and not"


def test_without_flip_nothing_is_mirrored():
    images = numbered(50).images
    still = crop_and_flip(
        images,
        0,
        border="zero",
        flip=False,
        draws=Draws(torch.Generator().manual_seed(1), len(images)),
    )
    assert torch.equal(still, images)


def test_alternating_flips_show_each_side_of_every_image_in_two_epochs():
    images = numbered(40).images
    images[..., 0] = 0  # no image is its own mirror image
    data = LabelledImages(images, torch.arange(40))
    augment = Augment(padding=0, alternate_flips=True)

    def mirrored(epoch, **rank):
        found = {}
        for batch in make(data, 4 // rank.get("world_size", 1), augment=augment, **rank).epoch(
            epoch
        ):
            sides = batch.images[..., -1].std(2).amax(1) == 0
            found |= dict(zip(batch.labels.tolist(), sides.tolist(), strict=True))
        return dict(sorted(found.items()))

    first, second, third = map(mirrored, range(3))
    assert third == first
    assert second == {row: not side for row, side in first.items()}
    assert 5 < sum(first.values()) < 35
    assert mirrored(0, rank=0, world_size=2).items() <= first.items(), "however many ranks"


def test_alternating_flips_without_flips_or_with_repeats_are_refused():
    with pytest.raises(ValueError, match=r"set augment\.flip to true"):
        Augment(flip=False, alternate_flips=True)
    with pytest.raises(ValueError, match="set repeats to 1"):
        Augment(alternate_flips=True, repeats=2)


def test_cutout_blanks_one_square_per_image_and_nothing_else():
    images = torch.ones(400, 3, 9, 9)
    cut = cutout(images.clone(), 3, Draws(torch.Generator().manual_seed(0), 400))
    gone = cut == 0
    assert torch.equal(gone[:, 0], gone[:, 2])
    sizes = gone[:, 0].sum((1, 2))
    assert sizes.max() == 9
    assert sizes.min() == 4, "the centre lies in the image, so a corner at least is cut"
    rows = gone[:, 0].any(2).sum(1)
    columns = gone[:, 0].any(1).sum(1)
    assert torch.equal(sizes, rows * columns)


def test_cutout_leaves_the_mean_colour():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    data = LabelledImages(images, torch.arange(4))
    augment = Augment(padding=0, flip=False, cutout=4)
    batch = make(data, augment=augment).batch(0, 0)
    assert (batch.images == 0).any(), "0 after normalization is the mean before it"
    assert (batch.images < 0).any()


def test_a_reflected_border_as_large_as_the_image_is_refused():
    with pytest.raises(ValueError, match=r"padding 8.*larger"):
        make(augment=Augment(padding=8)).batch(0, 0)
