"""Augmentations do what their definitions say, alike in any number of processes."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trainer.data.batches import Batches
from trainer.data.draws import Draws
from trainer.data.image_policies import apply_policy, random_resized_crop
from trainer.data.mixing import mix, random_erase
from trainer.data.splits import LabelledImages
from trainer.recipes.settings import Augment

POLICIES = ["randaugment", "rand-m9-mstd0.5-inc1", "autoaugment-imagenet", "augmix"]


def draws(count, seed=0, mine=None):
    return Draws(torch.Generator().manual_seed(seed), count, mine)


def noise_images(count, side=16):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator)
    return LabelledImages(images.to(torch.uint8), torch.arange(count))


def batches(data, size, augment, **options):
    defaults = {"seed": 5, "mean": (0.5,) * 3, "std": (0.25,) * 3, "workers": 0}
    return Batches(data, size, augment=augment, classes=len(data), **defaults | options)


EVERYTHING = Augment(
    padding=0, crop_area=0.3, policy="randaugment", erase=0.5, mixup=0.8, cutmix=1.0, repeats=3
)


# -- Mixup and CutMix ------------------------------------------------------------------------------


def mixed(count=1600, side=8, **options):
    """Images that are their own label: what they hold of each class can be read off."""
    labels = torch.arange(count)
    images = labels.float().view(-1, 1, 1, 1).expand(count, 3, side, side).clone()
    partner = (labels + count // 2) % count
    augment = Augment(**options)
    values, shares = mix(images, labels, count, augment, draws(count))
    own = shares[labels, labels]
    assert torch.allclose(shares.sum(1), torch.ones(count), atol=1e-5), "label mass"
    assert torch.allclose(own + shares[labels, partner], torch.ones(count), atol=1e-5)
    assert torch.allclose(values.mean((1, 2, 3)), own * labels + (1 - own) * partner, atol=0.01), (
        "the label has the pixel shares"
    )
    return values, own


def test_mixup_is_a_weighted_mean_with_beta_weights():
    values, own = mixed(mixup=0.8)
    assert values.std((1, 2, 3)).max() < 1e-2, "no image is cut"
    assert abs(own.mean() - 0.5) < 0.03
    assert abs(own.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01, "variance of Beta(0.8, 0.8)"


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    values, own = mixed(cutmix=1.0, side=8)
    assert torch.equal(own * 64, (own * 64).round()), "whole pixels"
    for row in range(50):
        pasted = values[row, 0] != row
        assert pasted.sum() == pasted.any(1).sum() * pasted.any(0).sum()
    assert own.mean() > 0.5, "what hangs over the border is not cut"


def test_cutmix_share_switches_between_them():
    values, _ = mixed(mixup=0.8, cutmix=1.0, cutmix_share=0.25)
    cut = (values.amax((1, 2, 3)) - values.amin((1, 2, 3))) > 1
    # boxes of less than a pixel or of the whole image show no edge
    assert 0.17 < cut.float().mean() < 0.27


def test_mix_probability_leaves_images_alone():
    _, own = mixed(mixup=0.8, mix_probability=0.3)
    assert 0.66 < (own == 1).float().mean() < 0.74


def test_label_smoothing_composes_as_in_timm():
    """timm mixes smoothed labels; the loss smooths mixed ones: the same, both are linear."""
    from timm.data.mixup import mixup_target

    labels, kept = torch.arange(6), 0.3
    theirs = mixup_target(labels, 6, kept, smoothing=0.1)
    ours = kept * F.one_hot(labels, 6) + (1 - kept) * F.one_hot(labels.flip(0), 6)
    logits = torch.randn(6, 6)
    assert torch.allclose(
        F.cross_entropy(logits, ours, label_smoothing=0.1), F.cross_entropy(logits, theirs)
    )


def test_labels_stay_integers_without_mixing():
    assert batches(noise_images(8), 4, Augment()).batch(0, 0).labels.dtype == torch.int64
    loader = batches(noise_images(8), 4, Augment(mixup=1.0))
    assert loader.batch(0, 0).labels.shape == (4, 8)
    assert loader.batch(0, 0, mixed=False).labels.dtype == torch.int64


# -- erasing, crops, policies ----------------------------------------------------------------------


def test_erasing_fills_rectangles_with_normal_noise():
    images = torch.full((3000, 3, 16, 16), 9.0)
    erased = random_erase(images.clone(), 0.25, draws(3000))
    gone = erased[:, 0] != 9
    hit = gone.flatten(1).any(1)
    assert 0.22 < hit.float().mean() < 0.28
    sizes = gone[hit].sum((1, 2))
    assert torch.equal(sizes, gone[hit].any(2).sum(1) * gone[hit].any(1).sum(1))
    assert sizes.min() > 0.015 * 256
    assert sizes.max() < 0.36 * 256
    assert abs(sizes.float().mean() / 256 - (0.02 + 1 / 3) / 2) < 0.02
    noise = erased[hit][gone[hit][:, None].expand(-1, 3, -1, -1)]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_random_resized_crops_have_the_asked_areas():
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], axis=-1))
    areas = []
    for seed in range(300):
        crop = np.asarray(random_resized_crop(image, 16, 0.25, seed)).astype(float)
        assert crop.shape == (16, 16, 3)
        width = (crop[8, -1, 0] - crop[8, 0, 0]) * 16 / 15
        height = (crop[-1, 8, 1] - crop[0, 8, 1]) * 16 / 15
        areas.append(width * height / 200**2)
        assert 0.7 < width / height < 1.4
    assert 0.22 < min(areas) < 0.35
    assert 0.55 < np.mean(areas) < 0.65
    again = np.asarray(random_resized_crop(image, 16, 0.25, 0))
    assert np.array_equal(again, np.asarray(random_resized_crop(image, 16, 0.25, 0)))


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_depend_on_their_seeds_alone(policy):
    images = noise_images(12).images
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    one = apply_policy(images, policy, range(12), (0.5, 0.5, 0.5))
    assert (random.random(), np.random.rand(), torch.rand(1)) == before, "left as they were"  # noqa: NPY002
    backwards = apply_policy(images.flip(0), policy, range(11, -1, -1), (0.5, 0.5, 0.5))
    assert torch.equal(one, backwards.flip(0))
    assert not torch.equal(one, apply_policy(images, policy, range(12, 24), (0.5, 0.5, 0.5)))


def test_the_strongest_posterize_is_black_and_not_an_error():
    """timm draws 0 bits for one operation in fifty, which Pillow 13 refuses."""
    images = noise_images(1, side=8).images.expand(600, -1, -1, -1)
    changed = apply_policy(images, "rand-m9-mstd0.5-inc1", range(600), (0.5, 0.5, 0.5))
    black = (changed == 0).flatten(1).all(1)
    assert 0 < black.sum() < 10


def test_the_recipes_randaugment_is_timms():
    from timm.data.auto_augment import rand_augment_transform

    image = noise_images(1, side=32).images
    ours = apply_policy(image, "rand-m9-mstd0.5-inc1", [7], (0.485, 0.456, 0.406))
    theirs = rand_augment_transform(
        "rand-m9-mstd0.5-inc1",
        {
            "translate_const": 14,
            "img_mean": (124, 116, 104),
            "interpolation": Image.Resampling.BICUBIC,
        },
    )
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = theirs(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(expected))


# -- repeated augmentation -------------------------------------------------------------------------


def test_repeats_show_a_third_of_the_images_three_times_each():
    loader = batches(noise_images(60), 6, Augment(padding=2, repeats=3))
    assert len(loader) == 10, "an epoch keeps its steps"
    shown = list(loader.epoch(0))
    labels = torch.cat([batch.labels for batch in shown])
    counts = torch.bincount(labels, minlength=60)
    assert (counts == 3).sum() == 20
    assert (counts == 0).sum() == 40
    first = shown[0]
    copies = first.images[first.labels == first.labels[0]]
    assert len(copies) == 3
    assert not torch.equal(copies[0], copies[1])
    other = torch.cat([batch.labels for batch in loader.epoch(1)])
    assert set(other.tolist()) != set(labels.tolist())


def test_copies_go_to_different_ranks():
    ranks = [
        batches(noise_images(60), 4, Augment(repeats=3), rank=rank, world_size=3).batch(0, 0)
        for rank in range(3)
    ]
    assert ranks[0].labels.tolist() == ranks[1].labels.tolist() == ranks[2].labels.tolist()
    assert len(set(ranks[0].labels.tolist())) == 4


# -- the same for everyone -------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_make_the_batch_that_one_makes(world_size):
    data = noise_images(48)
    alone = batches(data, 16, EVERYTHING).batch(1, 2)
    for rank in range(world_size):
        part = batches(data, 16 // world_size, EVERYTHING, rank=rank, world_size=world_size)
        batch = part.batch(1, 2)
        assert torch.equal(batch.images, alone.images[rank::world_size])
        assert torch.equal(batch.labels, alone.labels[rank::world_size])


@pytest.mark.gpu
def test_a_gpu_gets_the_batches_that_a_cpu_gets():
    data = noise_images(48)
    here = batches(data, 16, EVERYTHING).batch(1, 2)
    for workers in (0, 1):
        loader = batches(data, 16, EVERYTHING, device="cuda", workers=workers)
        there = next(loader.stream(1, 2))
        assert there.images.device.type == there.labels.device.type == "cuda"
        assert torch.allclose(there.images.cpu(), here.images, atol=1e-5)
        assert torch.allclose(there.labels.cpu(), here.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_bit_for_bit(workers):
    def stream(epoch=0, start=0):
        loader = batches(noise_images(48), 16, EVERYTHING, workers=workers)
        return loader.stream(epoch, start)

    whole = list(itertools.islice(stream(), 7))
    assert [batch[:2] for batch in whole] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    torch.rand(3)  # whatever else draws from torch's global generator
    resumed = list(itertools.islice(stream(1, 2), 2))
    for one, other in zip(whole[5:], resumed, strict=True):
        assert one[:2] == other[:2]
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_area": 0.08}, "padding"),
        ({"crop_area": 1.5, "padding": 0}, "crop_area"),
        ({"erase": -0.1}, "erase"),
        ({"mixup": -1.0}, "mixup"),
        ({"cutmix_share": 2.0}, "cutmix_share"),
        ({"mix_probability": 2.0}, "mix_probability"),
        ({"repeats": 0}, "repeats"),
        ({"padding": -1}, "padding"),
        ({"cutout": -2}, "cutout"),
        ({"border": "mirror"}, "'reflect' or 'zero'"),
        ({"policy": "rand"}, "randaugment"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        Augment(**options)
