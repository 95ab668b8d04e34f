"""Depthwise convolution with faster gradients on a CPU. Uses torch.

Gradients are those of ``F.conv2d``, added in another order. oneDNN is quick at the gradient of 3x3
kernels; for 5x5 ones, and in bfloat16 with a stride, it takes many times as long as it has to.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_FAST = 3
"""Side of the kernels whose weight gradient oneDNN is quick at."""
_PART_BYTES = 4 << 20
"""Images are taken in parts of so many bytes, which stay in a cache."""


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Each channel of x (batch, channels, side, side) with its own kernel (channels, 1, k, k).

    Pads by k // 2. Works in the precision of autocast, as ``F.conv2d`` does.
    """
    on_cpu = x.device.type == "cpu"
    half = on_cpu and torch.is_autocast_enabled("cpu")
    wide = weight.shape[-1] > _FAST and stride == 1
    if (
        not on_cpu
        or not (wide or (half and stride > 1))
        or not (torch.is_grad_enabled() and weight.requires_grad)
        or weight.dtype == torch.float64  # gradients are computed in float32 here
        or torch.compiler.is_compiling()
    ):
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, weight.shape[0])
    if half:
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _Depthwise.apply(x, weight, bias, stride)


class _Depthwise(torch.autograd.Function):
    # torch types it as taking anything; each function takes what it takes
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = grad_outputs
        x, weight = ctx.saved_tensors
        asks_x, asks_weight, asks_bias, _ = ctx.needs_input_grad
        wide = gradient.float(), x.float(), weight.float()
        ours = asks_weight and ctx.stride == 1 and weight.shape[-1] > _FAST
        asked = asks_x, asks_weight and not ours
        of_x, of_weight = _gradients(*wide, ctx.stride, asked)
        if ours:
            of_weight = _weight_gradient(gradient, x, weight.shape[-1])
        return (
            None if of_x is None else of_x.to(x.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            gradient.sum((0, 2, 3)) if asks_bias else None,
            None,
        )


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, asked: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the weight, as torch computes them."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride, stride],
        [weight.shape[-1] // 2] * 2,
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [*asked, False],
    )
    return of_x, of_weight


def _weight_gradient(gradient: Tensor, x: Tensor, kernel: int) -> Tensor:
    """Float32 (channels, 1, kernel, kernel), put together from gradients of 3x3 kernels.

    Each is of the same x, and of the gradient moved by so many pixels. Both have a border of
    zeros, so that to move is to read from another place in memory: a row's end is the next one's
    border.
    """
    batch, channels, height, width = x.shape
    border = (kernel - _FAST) // 2
    tall, long = height + 2 * border, width + 2 * border
    image = tall * long * channels
    part = max(1, min(batch, _PART_BYTES // (4 * image)))
    margin = border * (long + 1) * channels
    still = torch.zeros(part, tall, long, channels)
    moving = torch.zeros(2 * margin + part * image)
    unmoved = moving[margin : margin + part * image].view(part, tall, long, channels)
    inside = slice(border, border + height), slice(border, border + width)
    small = torch.empty(channels, 1, _FAST, _FAST)
    of_weight = torch.zeros(channels, 1, kernel, kernel)
    firsts = [*range(0, kernel - _FAST, _FAST), kernel - _FAST]
    for start in range(0, batch, part):
        images = slice(start, min(start + part, batch))
        count = images.stop - images.start
        still[:count, *inside] = x[images].permute(0, 2, 3, 1)
        unmoved[:count, *inside] = gradient[images].permute(0, 2, 3, 1)
        for row, top in enumerate(firsts):
            for column, left in enumerate(firsts):
                at = margin + ((border - top) * long + border - left) * channels
                moved = moving[at : at + count * image].view(count, tall, long, channels)
                _, tile = _gradients(
                    moved.permute(0, 3, 1, 2),
                    still[:count].permute(0, 3, 1, 2),
                    small,
                    1,
                    (False, True),
                )
                assert tile is not None
                # what the tile before has of these rows and columns is not added again
                down = firsts[row - 1] + _FAST - top if row else 0
                right = firsts[column - 1] + _FAST - left if column else 0
                of_weight[:, :, top + down : top + _FAST, left + right : left + _FAST] += tile[
                    :, :, down:, right:
                ]
    return of_weight
