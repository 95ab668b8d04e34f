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
from benchmarks.experiments.experiment import AbstractExperiment, add_arguments, based
from benchmarks.experiments.scales import SCALES
from trainer.engine.interrupt import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake of the user's, 128 + n stopped by a signal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=EXPERIMENTS)
    add_arguments(parser, list(SCALES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    module, _, cls = EXPERIMENTS[options.name].partition(":")
    make: type[AbstractExperiment] = getattr(importlib.import_module(module), cls)
    folder = options.out or Path("runs/experiments") / options.name
    try:
        base = based(SCALES[options.scale](), options.data, options.epochs)
        experiment = make(base, folder, list(range(options.seeds)), options.only)
        if not options.table:
            experiment.run()
        print(experiment.table(experiment.kept_setup(), experiment.results()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; give the same command to go on", file=sys.stderr)
        return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
