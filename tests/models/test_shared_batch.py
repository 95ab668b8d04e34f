"""A batch that is shared out comes to what it would have come to whole."""

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
    here = SharedBatchNormalizer(lambda tensor: tensor).normalize("norm", x, weight, bias)
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
    here = SharedBatchNormalizer(lambda tensor: tensor).normalize("norm", x, ones, zeros)
    assert here.dtype == torch.float16
    assert float(here.float().var()) == pytest.approx(1, abs=0.01)
