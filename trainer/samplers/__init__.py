"""How a training step chooses its subnets. A new sampler: a file in this folder and a line here."""

from __future__ import annotations

import difflib
import importlib

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import AbstractSampler

SAMPLERS: dict[str, str] = {
    "shift": "trainer.samplers.shift:Shift",
    "shift-direct": "trainer.samplers.shift_direct:ShiftDirect",
    "uniform-budget": "trainer.samplers.uniform_budget:UniformBudget",
    "shift-features": "trainer.samplers.shift_features:ShiftFeatures",
    "headroom": "trainer.samplers.headroom:Headroom",
    "regret": "trainer.samplers.regret:Regret",
    "influence": "trainer.samplers.influence:Influence",
    "learned-tilt": "trainer.samplers.learned_tilt:LearnedTilt",
    "static-tilt": "trainer.samplers.static_tilt:StaticTilt",
    "uniform-arch": "trainer.samplers.uniform_arch:UniformArch",
    "best-up": "trainer.samplers.attentive:BestUp",
    "worst-up": "trainer.samplers.attentive:WorstUp",
    "greedy": "trainer.samplers.greedy:Greedy",
    "focus": "trainer.samplers.focus:Focus",
    "fair": "trainer.samplers.fair:Fair",
    "fixed-arch": "trainer.samplers.fixed_arch:FixedArch",
    "sandwich": "trainer.samplers.sandwich:Sandwich",
}
"""Name -> ``module:Class``."""


def build_sampler(name: str, space: SearchSpace, options: SamplerOptions) -> AbstractSampler:
    """The sampler called ``name``. Raises ValueError naming those there are."""
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no sampler {name!r}; {hint}there are: {', '.join(SAMPLERS)}")
    module, _, cls = SAMPLERS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(space, options)
