"""Converters: public supernet checkpoints, read into our weights. No torch at this level.

A new one is a file in this folder and a line here. A converter reads tensors only (no pickled
objects), renames them, and refuses by name whatever it cannot carry over.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.lookup import look_up
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics, Statistics

CONVERTERS: dict[str, str] = {
    "attentivenas": "models.converters.attentivenas:convert_attentivenas",
    "autoformer": "models.converters.autoformer:convert_autoformer",
}
"""Name -> ``module:function``; the function takes a ``Checkpoint`` and gives ``Converted``."""


@dataclass(frozen=True, eq=False)
class Converted:
    """A checkpoint in our terms.

    weights: float32, every weight of the space at the supernet's size.
    statistics: BatchNorm's as the checkpoint stores them, of the widest channels; empty for
    spaces without BatchNorm. They were not measured for any one arch (``models.nets.calibration``).
    part: the arch that the checkpoint is, where it does not fill the supernet; weights and
    statistics are of its size then.
    taken: which part of the file, in words.
    """

    space: SearchSpace
    weights: Mapping[str, np.ndarray]
    statistics: Statistics
    part: Arch | None = None
    taken: str = "the whole file"

    def arch_statistics(self, arch: Arch) -> Statistics:
        """What the original implementation uses for an arch: the first channels of each."""
        return SharedStatistics(self.statistics).of(self.space, arch, {})


def convert(name: str, checkpoint: Path, entry: str | None = None) -> Converted:
    """Read a public checkpoint. Raises ValueError naming what is not as it should be.

    ``entry``: which of the networks to take, where the file has several.
    """
    carry = look_up(CONVERTERS, name, "converter")
    read = importlib.import_module("models.converters.checkpoint").read_checkpoint
    read_from = read(checkpoint, entry)
    converted: Converted = carry(read_from)
    return replace(converted, taken=read_from.taken)
