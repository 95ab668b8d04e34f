"""The experiments, by name: one file each, and a line here.

    python -m benchmarks.experiments static-tilts --data data/cifar10
    python -m benchmarks.experiments static-tilts --scale digits       # as CI runs it
    python -m benchmarks.experiments static-tilts --table              # again from the logs

Every run adds a line to ``results.jsonl`` in the experiment's folder; a command that is given
again goes on where it was stopped. Pages are in ``docs/experiments/``.
"""

from __future__ import annotations

EXPERIMENTS: dict[str, str] = {
    "uniform-archs": "benchmarks.experiments.uniform_archs:UniformArchs",
    "shift": "benchmarks.experiments.settings:Shift",
    "groups": "benchmarks.experiments.settings:Groups",
    "update-every": "benchmarks.experiments.settings:UpdateEvery",
    "ranking": "benchmarks.experiments.ranking:Ranking",
    "inherited": "benchmarks.experiments.inherited:Inherited",
    "sufficiency": "benchmarks.experiments.sufficiency:Sufficiency",
    "rejection": "benchmarks.experiments.rejection:Rejection",
    "samplers": "benchmarks.experiments.samplers:Samplers",
    "static-tilts": "benchmarks.experiments.static_tilts:StaticTilts",
    "transfer": "benchmarks.experiments.transfer:Transfer",
}
"""Name -> ``module:Class``, an ``AbstractExperiment``."""
