"""How a step chooses its subnets. A new sampler: a file in a folder here, and a line below."""

from __future__ import annotations

import difflib
import importlib

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import AbstractSampler

SAMPLERS: dict[str, str] = {
    "shift": "trainer.samplers.shifting.shift:Shift",
    "shift-direct": "trainer.samplers.shifting.shift_direct:ShiftDirect",
    "uniform-budget": "trainer.samplers.fixed.uniform_budget:UniformBudget",
    "shift-features": "trainer.samplers.shifting.shift_features:ShiftFeatures",
    "headroom": "trainer.samplers.shifting.headroom:Headroom",
    "regret": "trainer.samplers.scored.regret:Regret",
    "influence": "trainer.samplers.scored.influence:Influence",
    "learned-tilt": "trainer.samplers.scored.learned_tilt:LearnedTilt",
    "static-tilt": "trainer.samplers.fixed.static_tilt:StaticTilt",
    "uniform-arch": "trainer.samplers.fixed.uniform_arch:UniformArch",
    "best-up": "trainer.samplers.candidates.attentive:BestUp",
    "worst-up": "trainer.samplers.candidates.attentive:WorstUp",
    "greedy": "trainer.samplers.candidates.greedy:Greedy",
    "focus": "trainer.samplers.candidates.focus:Focus",
    "fair": "trainer.samplers.fixed.fair:Fair",
    "fixed-arch": "trainer.samplers.fixed.fixed_arch:FixedArch",
    "sandwich": "trainer.samplers.fixed.sandwich:Sandwich",
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
