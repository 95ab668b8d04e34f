"""TensorBoard: the figures of the log as curves. ``tensorboard --logdir runs`` shows them.

``log.jsonl`` stays the record. A resumed run tells readers to drop the points that it makes again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from trainer.engine.disk import writing
from trainer.engine.log import JsonValue, Record
from trainer.report.run_record import rows_of
from trainer.report.words import format_flops

FOLDER_NAME = "tensorboard"
_FROM_STEPS = ("loss", "resource_loss", "lr", "images_per_s", "flops", "scale", "skipped_steps")


class TensorBoard:
    """Points in ``folder/tensorboard``, flushed as they come.

    step, elapsed_s: of the run so far. Raises ValueError if the package is not there, or where the
    disk is full.
    """

    def __init__(self, folder: Path, step: int, elapsed_s: float) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error.name} is not installed; install it with pip install -e '.[train]', or go "
                "on without: --set tensorboard=false"
            ) from None
        self._folder = folder / FOLDER_NAME
        self._started_at = time.time() - elapsed_s
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
            self._writer.flush()

    def write(self, record: Record) -> None:
        """Add what a line of the log holds."""
        elapsed_s = record.get("elapsed_s")
        at = self._started_at + elapsed_s if isinstance(elapsed_s, float) else None
        with writing(self._folder):
            for name, value in points(record):
                self._writer.add_scalar(name, value, int(str(record["step"])), walltime=at)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._folder):
            self._writer.close()


def points(record: Record) -> Iterator[tuple[str, float]]:
    """The figures of a line of the log that are worth a curve, each with its curve's name.

    Null stands for what was not measured or is not finite: it has no point.
    """
    for name, value in _named(record):
        if isinstance(value, int | float):
            yield name, float(value)


def _named(record: Record) -> Iterator[tuple[str, JsonValue]]:
    kind = record["kind"]
    if kind == "step":
        yield from ((f"step/{name}", record.get(name)) for name in _FROM_STEPS)
    elif kind == "groups":
        labels = [format_flops(float(str(flops))) for flops in _list(record, "groups")]
        for field, prefix in (("probabilities", "probability"), ("loss_drops", "loss_drop")):
            names = [f"{prefix}/{label}" for label in labels]
            yield from zip(names, _list(record, field), strict=False)
    elif kind == "generator":
        yield from ((f"generator/{name}", record.get(name)) for name in ("mean_error", "mean_use"))
        for group, value in enumerate(_list(record, "entropy"), start=1):
            yield f"entropy/group {group}", value
    elif kind == "evaluation":
        for row in rows_of(record):
            label = format_flops(float(str(row["budget_flops"])))
            yield f"held_out_accuracy/{label}", row.get("held_out_accuracy")


def _list(record: Record, field: str) -> list[JsonValue]:
    value = record.get(field)
    return value if isinstance(value, list) else []
