"""The command line of the experiments."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import benchmarks.experiments as package
from benchmarks.experiments import EXPERIMENTS
from benchmarks.experiments.experiment import (
    AbstractExperiment,
    add_arguments,
    based,
    kept_setup,
)
from benchmarks.experiments.scales import SCALES
from models.command import command_parser, tells_mistakes
from trainer.engine.interrupt import Stopped


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake of the user's, 128 + n stopped by a signal."""
    parser = command_parser("benchmarks.experiments", package.__doc__, json=False)
    parser.add_argument("name", choices=EXPERIMENTS)
    add_arguments(parser, list(SCALES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    module, _, cls = EXPERIMENTS[options.name].partition(":")
    make: type[AbstractExperiment] = getattr(importlib.import_module(module), cls)
    folder = options.out or Path("runs/experiments") / options.name
    try:
        experiment = _asked(make, options, folder)
        if not options.table:
            experiment.run()
        seeds = None if options.seeds is None else experiment.seeds
        print(experiment.table_of(seeds, data=options.data is not None))
    except Stopped as stopped:
        print(f"{stopped}; give the same command to go on", file=sys.stderr)
        return 128 + stopped.signal
    return 0


def _asked(
    make: type[AbstractExperiment], options: argparse.Namespace, folder: Path
) -> AbstractExperiment:
    """The experiment. A table's scale and length are those of the runs, unless they are given."""
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds is {options.seeds}; give 1 or more")
    if options.table and options.only:
        raise ValueError("--table is of all runs; leave out --only, or leave out --table")
    scale, epochs = options.scale, options.epochs
    if options.table:
        setup = kept_setup(folder)
        names = {recipe().name: name for name, recipe in SCALES.items()}
        scale = scale or names.get(str(setup.get("scale")))
        epochs = setup.get("epochs") if epochs is None else epochs
    base = based(SCALES[scale or "nano"](), options.data, epochs)
    return make(options.name, base, folder, list(range(options.seeds or 8)), options.only)


if __name__ == "__main__":
    sys.exit(main())
