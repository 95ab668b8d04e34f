"""How a step chooses its subnets. A new sampler: a file in a folder here, and a line below."""

from __future__ import annotations

from models.lookup import look_up
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
    """The sampler called ``name``.

    Raises ValueError naming those there are, and for archs that it would not keep to.
    """
    sampler: type[AbstractSampler] = look_up(SAMPLERS, name, "sampler")
    if options.archs and not sampler.keeps_archs:
        raise ValueError(
            f"the sampler {name} does not keep to sampler_options.archs: set "
            "sampler_options.archs=[], or another sampler, like uniform-budget"
        )
    return sampler(space, options)
