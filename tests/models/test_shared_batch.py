"""A batch that is shared out comes to what it would have come to whole."""

import threading

import pytest
import torch
import torch.nn.functional as F

from models.nets.normalize import SharedBatchNormalizer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_that_is_not_shared_is_normalized_as_ever(layout):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 5, 5, generator=rng) * 2 + 3
    x = x.contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.rand(6, generator=rng).requires_grad_() for _ in range(2))
    given = torch.randn(x.shape, generator=rng)
    here = SharedBatchNormalizer(lambda tensor: tensor).normalize("norm", x, weight, bias, 1e-5)
    usual = F.batch_norm(x, None, None, weight, bias, training=True)
    assert here.is_contiguous(memory_format=layout)
    torch.testing.assert_close(here, usual, rtol=1e-5, atol=1e-5)
    inputs = (x, weight, bias)
    for one, other in zip(
        torch.autograd.grad(here, inputs, given),
        torch.autograd.grad(usual, inputs, given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_half_precision_stays_and_is_summed_in_full():
    x = (torch.randn(64, 2, 16, 16) + 40).half()
    ones, zeros = torch.ones(2), torch.zeros(2)
    here = SharedBatchNormalizer(lambda tensor: tensor).normalize("norm", x, ones, zeros, 1e-5)
    assert here.dtype == torch.float16
    assert float(here.float().var()) == pytest.approx(1, abs=0.01)


class TwoShares:
    """Two threads that meet to average, as two processes would."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=60)
        self.said = {}

    def average(self, tensor):
        self.said[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        mean = sum(self.said.values()) / 2
        self.barrier.wait()
        return mean


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_two_shares_are_normalized_as_one_batch(layout):
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(8, 3, 4, 4, generator=rng) * 2 + 3).contiguous(memory_format=layout)
    given = torch.randn(x.shape, generator=rng)
    weight, bias = torch.rand(2, 3, generator=rng)
    shares, found = TwoShares(), {}

    def run(rank):
        inputs = [t.clone().requires_grad_() for t in (x[rank::2], weight, bias)]
        normalized = SharedBatchNormalizer(shares.average).normalize("norm", *inputs, 1e-5)
        found[rank] = normalized, *torch.autograd.grad(normalized, inputs, given[rank::2])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    whole = F.batch_norm(inputs[0], None, None, *inputs[1:], training=True)
    to_x, *to_others = torch.autograd.grad(whole, inputs, given)
    for rank, (normalized, to_mine, *_) in found.items():
        assert torch.allclose(normalized, whole[rank::2], atol=1e-5)
        assert torch.allclose(to_mine, to_x[rank::2], atol=1e-5)
    for place, expected in enumerate(to_others, start=2):
        assert torch.allclose(found[0][place] + found[1][place], expected, atol=1e-5)


def test_gradients_are_those_of_differences():
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2, 3, 3), (2,), (2,))
    )
    normalizer = SharedBatchNormalizer(lambda tensor: tensor)
    assert torch.autograd.gradcheck(
        lambda *inputs: normalizer.normalize("norm", *inputs, 1e-5), (x, weight, bias)
    )
