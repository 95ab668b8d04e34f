"""Table 2 of the paper: do inherited weights need fine-tuning, or training alone?

One supernet a seed. What its generator answers at three budgets is measured with the weights that
it inherits, after a short fine-tuning of them, and trained alone from scratch for as many epochs as
the supernet.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.experiments.experiment import AbstractExperiment, Case
from benchmarks.experiments.ladder import alone
from benchmarks.experiments.paired import in_words
from benchmarks.experiments.table import by_case
from benchmarks.parts.lines import Row
from models.generator.network import ArchitectureGenerator
from models.space.arch import Arch
from trainer.engine.average import served_weights
from trainer.engine.checkpoint import State, load_checkpoint
from trainer.engine.state import fresh_state
from trainer.evaluation import answers

SIZES = (0.2, 0.5, 1.0)
"""Budgets, as places in the range of FLOPs."""
TUNED_EPOCHS, TUNED_RATE = 0.13, 0.1
"""Of fine-tuning, as shares of the supernet's: the paper takes 40 of 300 epochs."""
WEIGHTS_NAME = "supernet.safetensors"


class Inherited(AbstractExperiment):
    """The archs of a seed are in the line of its supernet."""

    def cases(self, setup: Row) -> Iterator[Case]:
        for seed in self.seeds:
            supernet = self.base.replace(name="supernet", seed=seed)
            yield Case("supernet", supernet)
            trained = by_case(self.results()).get("supernet", {})
            if seed not in trained:
                raise ValueError(
                    f"the supernet of seed {seed} has not been trained, whose archs these are; add "
                    "supernet to --only"
                )
            epochs = max(1, round(TUNED_EPOCHS * self.base.epochs))
            rate = TUNED_RATE * self.base.optimizer.learning_rate
            for size, document in enumerate(trained[seed]["archs"]):
                arch = self.space.arch_from_json(document)
                single = alone(self.base, arch).replace(seed=seed)
                yield Case(f"retrained-{size}", single.replace(name="retrained"), (arch,))
                optimizer = single.optimizer.replace(learning_rate=rate)
                tuned = single.replace(name="tuned", epochs=epochs, optimizer=optimizer)
                yield Case(f"tuned-{size}", tuned, (arch,))

    def names(self, setup: Row) -> list[str]:
        trained = [f"{way}-{size}" for way in ("retrained", "tuned") for size in range(len(SIZES))]
        return ["supernet", *trained]

    def first_state(self, case: Case) -> State | None:
        """A fine-tuning is a run whose first checkpoint has the supernet's weights."""
        if case.recipe.name != "tuned":
            return None
        state = fresh_state(case.recipe, self.splits(case.recipe.seed))
        state.net.load_state_dict(load_file(self._weights(case.recipe.seed)))
        return state.to_checkpoint()

    def kept(self, case: Case, folder: Path, archs: list[Arch]) -> Row:
        if case.name != "supernet":
            return {}
        weights = served_weights(load_checkpoint(folder))
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(contiguous, self._weights(case.recipe.seed))
        return {"archs": [self.space.arch_to_json(arch) for arch in archs]}

    def _weights(self, seed: int) -> Path:
        return self.folder / f"supernet-{seed}" / WEIGHTS_NAME

    def archs(self, setup: Row, generator: ArchitectureGenerator) -> list[Arch]:
        low, high = self.space.min_flops, self.space.max_flops
        return answers(generator, [low + size * (high - low) for size in SIZES])

    def table(self, setup: Row, results: list[Row]) -> str:
        found = by_case(results)
        lines = [
            "| MFLOPs | seeds | inherited, % | fine-tuned | trained alone |",
            "|--:|--:|--:|--:|--:|",
        ]
        supernets = found.get("supernet", {})
        for size in range(len(SIZES)):
            seeds = sorted(
                supernets.keys()
                & found.get(f"tuned-{size}", {}).keys()
                & found.get(f"retrained-{size}", {}).keys()
            )
            if not seeds:
                continue
            rows = [supernets[seed]["rows"][size] for seed in seeds]
            cells = []
            for how in ("tuned", "retrained"):
                runs = (found[f"{how}-{size}"][seed] for seed in seeds)
                gains = [
                    _right(run["rows"][0]) - _right(row)
                    for run, row in zip(runs, rows, strict=True)
                ]
                cells.append(in_words(gains, 1))
            flops = statistics.mean(row["flops"] for row in rows) / 1e6
            right = statistics.mean(_right(row) for row in rows)
            lines.append(f"| {flops:.2f} | {len(seeds)} | {right:.1f} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _right(row: Row) -> float:
    return 100 * row["test_accuracy"]
