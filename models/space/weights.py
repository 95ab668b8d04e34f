"""Weight entanglement: a subnet's weights are prefixes of the supernet's, kernels centre crops.

One slicing rule for torch parameters (training) and numpy arrays (serving). No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from models.space.arch import Arch
from models.space.search_space import SearchSpace

Slices = tuple[slice, ...]
Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""BatchNorm statistics of one arch: norm's name -> (mean, variance), each of shape (channels,)."""


@lru_cache(maxsize=64)
def weight_slices(space: SearchSpace, arch: Arch) -> dict[str, Slices]:
    """For each weight that the subnet has, by name: one slice an axis into the supernet's."""
    slices: dict[str, Slices] = {}
    for weight in space.weights:
        if weight.block is not None and not weight.block.present(arch):
            continue
        shape = weight.shape_at(arch)
        axes = [slice(0, size) for size in shape]
        if weight.centred:
            for axis in (-2, -1):
                full = weight.shape[axis](space.largest)
                start = (full - shape[axis]) // 2
                axes[axis] = slice(start, start + shape[axis])
        slices[weight.name] = tuple(axes)
    return slices


def slice_weights(
    space: SearchSpace, arch: Arch, supernet: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The subnet's weights as views into the supernet's."""
    return {name: supernet[name][axes] for name, axes in weight_slices(space, arch).items()}


@dataclass(frozen=True, eq=False)
class SharedStatistics:
    """One set of BatchNorm statistics for all archs: an arch takes the first channels.

    norms: BatchNorm's name -> (mean, variance) of the widest channels. centres: convolution -> the
    mean of each channel that it reads, by which that is centred first. Then a subnet that lacks
    some of them lacks what they vary by and not what they add on average, and the mean stays where
    it is while weights learn. No multiply-add is spent on it: it is a bias.
    """

    norms: Statistics
    centres: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, space: SearchSpace, arch: Arch, weights: Mapping[str, np.ndarray]) -> Statistics:
        """An arch's own, with nothing centred. ``weights``: the arch's (``slice_weights``)."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for norm in space.norms:
            if norm.block is not None and not norm.block.present(arch):
                continue
            mean, variance = (of[: norm.size(arch)] for of in self.norms[norm.name])
            if norm.conv in self.centres:
                weight = weights[f"{norm.conv}.weight"].reshape(len(mean), -1)
                mean = mean + weight @ self.centres[norm.conv][: weight.shape[1]]
            found[norm.name] = mean, variance
        return found


def fold_norms(
    space: SearchSpace, weights: Mapping[str, np.ndarray], statistics: Statistics
) -> dict[str, np.ndarray]:
    """Fold each BatchNorm into the convolution before it, which gains a bias.

    ``weights`` are a subnet's (from ``slice_weights``), ``statistics`` its own. Raises ValueError
    naming a norm whose statistics are missing or do not fit.
    """
    folded = dict(weights)
    for norm in space.norms:
        if f"{norm.name}.weight" not in weights:
            continue
        scale, shift = folded.pop(f"{norm.name}.weight"), folded.pop(f"{norm.name}.bias")
        if norm.name not in statistics:
            raise ValueError(f"no BatchNorm statistics for {norm.name}; calibrate this arch first")
        mean, variance = statistics[norm.name]
        if mean.shape != scale.shape or variance.shape != scale.shape:
            raise ValueError(
                f"BatchNorm statistics of {norm.name} have shapes {mean.shape} and "
                f"{variance.shape}; this arch has {scale.shape}"
            )
        factor = scale / np.sqrt(variance + space.norm_epsilon)
        conv = weights[f"{norm.conv}.weight"]
        folded[f"{norm.conv}.weight"] = conv * factor.reshape(-1, *[1] * (conv.ndim - 1))
        bias = weights.get(f"{norm.conv}.bias", np.zeros_like(mean))
        folded[f"{norm.conv}.bias"] = shift + (bias - mean) * factor
    return folded
