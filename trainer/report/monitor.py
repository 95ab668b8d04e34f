"""Monitor: what one sees of a run while it trains, in its log and on the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from trainer.data.splits import Splits
from trainer.engine.horizon import Horizon
from trainer.engine.log import JsonlLog, JsonValue, Record, number
from trainer.engine.optim import Schedule
from trainer.engine.provenance import provenance
from trainer.engine.state import TrainingState
from trainer.engine.step import StepResult
from trainer.evaluation import Evaluation
from trainer.recipes.recipe import Recipe
from trainer.report.display import Display, Groups
from trainer.report.tensorboard import TensorBoard

LOG_EVERY_STEPS = 20


class Monitor:
    """Writes ``folder/log.jsonl`` and ``tensorboard``, draws the display. A context manager."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        splits: Splits,
        state: TrainingState,
        horizon: Horizon,
    ) -> None:
        self._folder, self._recipe, self._splits, self._state = folder, recipe, splits, state
        self._horizon = horizon
        self._log = JsonlLog(folder / "log.jsonl", resume_step=state.step)
        self._display = Display(f"{recipe.name}: {recipe.space} on {splits.title}")
        self._measured_at, self._measured_step = time.monotonic(), state.step
        self._broken: set[str] = set()
        self._board: TensorBoard | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.enter_context(self._log)
            if self._recipe.tensorboard:
                self._board = TensorBoard(self._folder, self._state.step, self._state.total_s)
                opening.enter_context(closing(self._board))
            opening.enter_context(self._display)
            self._open = opening.pop_all()
        splits = self._splits
        self._write(
            "start",
            step=self._state.step,
            total_steps=self._horizon.steps,
            recipe=self._recipe.model_dump(mode="json"),
            data=splits.title,
            classes=len(splits.labels),
            images=[len(splits.train), len(splits.held_out), len(splits.test)],
            **provenance(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _write(self, kind: str, **fields: JsonValue) -> None:
        record = self._log.write(kind, **fields)
        if self._board is not None:
            self._board.write(record)

    def step(self, result: StepResult, schedule: Schedule, spent: float) -> None:
        """After every step; of most only the subnets are kept, for the next record and the last.

        spent: of the horizon's budget.
        """
        state = self._state
        state.drawn += result.drawn
        seconds = time.monotonic() - self._measured_at
        images_per_s = (state.step - self._measured_step) * self._recipe.batch_size / seconds
        epoch = state.step / self._horizon.steps_per_epoch
        metrics = {
            "epoch": epoch,
            "loss": result.loss,
            "resource_loss": result.resource_loss,
            "images_per_s": images_per_s,
        }
        foreseen = self._horizon.foreseen(state.step, spent)
        self._display.update(state.step, foreseen, metrics, self._shown_groups())
        is_over = self._horizon.is_over(state.step, spent)
        if state.step % LOG_EVERY_STEPS and not is_over:
            return
        self._restart_throughput()
        self._write(
            "step",
            step=state.step,
            epoch=epoch,
            elapsed_s=state.total_s,
            compute=state.compute,
            loss=result.loss,
            resource_loss=result.resource_loss,
            lr=schedule.learning_rate,
            images_per_s=images_per_s,
            budget_flops=result.budget_flops,
            flops=result.flops,
            drawn_flops=[flops for flops, _ in state.drawn],
            drawn_losses=[round(loss, 4) for _, loss in state.drawn],
            **self._scaling(),
        )
        state.drawn.clear()

    def pretraining(self, step: int) -> None:
        """After every step of the generator's, before the first of the run."""
        self._display.update(
            step, self._recipe.generator.pretrain_steps, {}, phase="the generator learns budgets"
        )
        self._restart_throughput()

    def broken(self, images: Sequence[str]) -> None:
        """After every step: all images skipped so far, each with its reason."""
        found = [image for image in images if image not in self._broken]
        if found:
            self._broken.update(found)
            count = len(self._broken)
            self._write("broken", step=self._state.step, images=found, count=count)
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            self._display.message(f"skipped {found[0]}{more}; {count} broken images so far")

    def groups(self, drops: Sequence[float | None] | None) -> None:
        """At every update of the distribution; None while it still warms up."""
        self._write(
            "groups",
            step=self._state.step,
            groups=list(self._state.sampler.groups),
            probabilities=self._state.sampler.probabilities(),
            loss_drops=drops,
        )

    def evaluation(self, evaluation: Evaluation, seconds: float) -> None:
        """At the end of some epochs; ``seconds`` is how long it took."""
        step = self._state.step
        report = evaluation.generator
        self._write(
            "generator",
            step=step,
            mean_error=report.mean_error,
            mean_use=report.mean_use,
            entropy=evaluation.entropy,
        )
        self._write(
            "evaluation",
            step=step,
            rows=evaluation.rows,
            elapsed_s=self._state.total_s - seconds,
            evaluation_s=seconds,
        )
        accuracies = " ".join(
            f"{100 * number(row, 'held_out_accuracy'):.1f}" for row in evaluation.rows
        )
        epoch = step // self._horizon.steps_per_epoch
        self._display.message(
            f"epoch {epoch}: held-out accuracy % from the smallest budget to the largest: "
            f"{accuracies}; AG error {100 * report.mean_error:.1f} %"
        )
        self._restart_throughput()

    def _shown_groups(self) -> Groups | None:
        probabilities = self._state.sampler.probabilities()
        if not probabilities:
            return None
        return list(zip(self._state.sampler.groups, probabilities, strict=True))

    def _scaling(self) -> Record:
        """Of gradients in fp16: what they are multiplied with, and the steps that this cost."""
        scaler = self._state.scaler
        if not scaler.is_enabled():
            return {}
        return {"scale": scaler.get_scale(), "skipped_steps": self._state.skipped_steps}

    def _restart_throughput(self) -> None:
        self._measured_at, self._measured_step = time.monotonic(), self._state.step


class Silence:
    """What the other ranks have in place of a monitor: the first tells what all of them do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, result: StepResult, schedule: Schedule, spent: float) -> None: ...

    def pretraining(self, step: int) -> None: ...

    def broken(self, images: Sequence[str]) -> None: ...

    def groups(self, drops: Sequence[float | None] | None) -> None: ...

    def evaluation(self, evaluation: Evaluation, seconds: float) -> None: ...
