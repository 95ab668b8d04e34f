"""The order of images that lie on disk in runs of neighbours."""

import numpy as np
import torch

from trainer.data.order import shuffled_in_runs


def order_of(runs, window, seed=0):
    return shuffled_in_runs(runs, window, torch.Generator().manual_seed(seed)).numpy()


def test_reading_in_runs_shows_each_image_once_and_mixes_them():
    runs = np.repeat(np.arange(300), 32)
    order = order_of(runs, 2000)
    assert sorted(order.tolist()) == list(range(len(runs)))
    assert not np.array_equal(order, order_of(runs, 2000, seed=1))
    assert (runs[order[1:]] == runs[order[:-1]]).mean() < 0.02, "neighbours are apart"
    first = np.full(300, len(runs))
    last = np.zeros(300)
    for place, run in enumerate(runs[order]):
        first[run] = min(first[run], place)
        last[run] = place
    far = (last - first) > 2 * 2000 + 64 * 32
    assert far.sum() <= 63, "a run is read about together, but at the seams of lanes"


def test_processes_read_runs_of_their_own():
    lengths = np.random.default_rng(0).integers(5, 16, 1000)
    runs = np.repeat(np.arange(1000), lengths)
    order = runs[order_of(runs, 1000)]
    for world_size in (2, 8):
        read = [set(order[rank::world_size].tolist()) for rank in range(world_size)]
        assert sum(map(len, read)) <= 1000 + 63, "only a run at a seam of lanes is read twice"


def test_unequal_runs_are_all_shown():
    runs = np.repeat(np.arange(70), np.random.default_rng(0).integers(1, 50, 70))
    assert sorted(order_of(runs, 100).tolist()) == list(range(len(runs)))
    assert sorted(order_of(np.zeros(5, dtype=int), 100).tolist()) == list(range(5))
