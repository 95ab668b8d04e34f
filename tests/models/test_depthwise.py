"""Depthwise convolutions have torch's values and gradients, in each precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.nets import depthwise
from models.nets.depthwise import depthwise_conv2d

pytestmark = pytest.mark.numbers

SIZES = [(1, 4, 6), (3, 7, 5), (24, 2, 2)]
"""Channels, height, width."""


def inputs(channels: int, height: int, width: int, kernel: int, batch: int) -> list[Tensor]:
    """x, weight and bias; x in the order of bytes that nets use."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    given = x, torch.randn(channels, 1, kernel, kernel), torch.randn(channels)
    return [tensor.requires_grad_() for tensor in given]


@pytest.mark.parametrize("part_bytes", [depthwise._PART_BYTES, 2_000])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_torchs(
    size: tuple[int, int, int],
    kernel: int,
    stride: int,
    part_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depthwise, "_PART_BYTES", part_bytes)
    x, weight, bias = given = inputs(*size, kernel, batch=5)
    expected = F.conv2d(x, weight, bias, stride, kernel // 2, 1, size[0])
    output = depthwise._Depthwise.apply(x, weight, bias, stride)
    assert torch.equal(output, expected)
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(output, given, gradient)
    torchs = torch.autograd.grad(expected, given, gradient)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_under_autocast_are_at_least_as_exact_as_torchs(
    size: tuple[int, int, int], kernel: int, stride: int
) -> None:
    x, weight, bias = given = inputs(*size, kernel, batch=5)

    def gradients(output: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return torch.autograd.grad(output, given, torch.randn(output.shape).to(output))

    exact = gradients(F.conv2d(x, weight, bias, stride, kernel // 2, 1, size[0]))
    with torch.autocast("cpu", torch.bfloat16):
        output = depthwise_conv2d(x, weight, bias, stride)
        torchs = F.conv2d(x, weight, bias, stride, kernel // 2, 1, size[0])
    assert torch.equal(output, torchs)
    for ours, of_torch, true in zip(gradients(output), gradients(torchs), exact, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = (ours - true).abs().max(), (of_torch - true).abs().max()
        assert error <= allowed + 0.02 * true.abs().max()


@pytest.mark.parametrize(
    ("dtype", "half", "kernel", "stride", "ours"),
    [
        (torch.float32, False, 5, 1, True),
        (torch.float32, False, 5, 2, False),
        (torch.float32, False, 3, 1, False),
        (torch.float32, True, 3, 2, True),
        (torch.float32, True, 3, 1, False),
        (torch.float64, False, 5, 1, False),
    ],
)
def test_what_torch_is_quick_or_more_exact_at_is_left_to_it(
    dtype: torch.dtype, half: bool, kernel: int, stride: int, ours: bool
) -> None:
    x, weight, bias = (tensor.to(dtype) for tensor in inputs(4, 6, 6, kernel, batch=2))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = depthwise_conv2d(x, weight, bias, stride)
    assert output.grad_fn is not None
    assert ("Depthwise" in output.grad_fn.name()) == ours


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = inputs(8, 6, 6, 5, batch=2)
    frozen = weight.detach()
    (of_x,) = torch.autograd.grad(depthwise_conv2d(x, frozen, None, 1).sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, None, 1, 2, 1, 8).sum(), x)
    torch.testing.assert_close(of_x, expected)
    asked: list[tuple[bool, bool]] = []
    gradients = depthwise._gradients

    def spied(*given: Any) -> tuple[Tensor | None, Tensor | None]:
        asked.append(given[-1])
        return gradients(*given)

    monkeypatch.setattr(depthwise, "_gradients", spied)
    depthwise_conv2d(x.detach(), weight, None, 1).sum().backward()
    assert weight.grad is not None
    assert asked
    assert not any(of_x for of_x, _ in asked)
