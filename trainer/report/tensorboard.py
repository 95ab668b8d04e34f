"""TensorBoard: the run's log once more, as curves that TensorBoard shows.

    tensorboard --logdir runs

``log.jsonl`` stays the record. What lies in ``RUN/tensorboard`` is made from its lines and from
nothing else, so a resumed run writes them again: a new file tells readers to drop all points before
it, repeats the log as it was cut at the checkpoint, and goes on. Nothing is lost or there twice,
also after a kill -9.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainer.engine.disk import writing
from trainer.engine.log import JsonValue, Record, read_log
from trainer.report.flops_text import format_flops
from trainer.report.run_record import rows_of

FOLDER_NAME = "tensorboard"
_FROM_STEPS = ("loss", "resource_loss", "lr", "images_per_s", "flops", "scale", "skipped_steps")


class TensorBoard:
    """Points in ``tensorboard`` beside the log, flushed as they come.

    elapsed_s: of the run so far.

    Raises ValueError if the package is not there, or where the disk is full.
    """

    def __init__(self, log: Path, elapsed_s: float) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error.name} is not installed; install it with pip install -e '.[train]', or go "
                "on without: --set tensorboard=false"
            ) from None
        self._started_at = time.time() - elapsed_s
        self._folder = log.parent / FOLDER_NAME
        records = read_log(log)
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=0)
            for record in records:
                self._add(record)
            self._writer.flush()

    def write(self, record: Record) -> None:
        """Add what a line of the log holds."""
        with writing(self._folder):
            self._add(record)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._folder):
            self._writer.close()

    def _add(self, record: Record) -> None:
        elapsed_s = record.get("elapsed_s")
        at = self._started_at + elapsed_s if isinstance(elapsed_s, float) else None
        for name, value in points(record):
            self._writer.add_scalar(name, value, int(str(record["step"])), walltime=at)


def points(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of a line of the log that are worth a curve, each with its curve's name."""
    kind = record["kind"]
    if kind == "step":
        yield from _known((f"step/{name}", record.get(name)) for name in _FROM_STEPS)
    elif kind == "groups":
        labels = [format_flops(float(str(flops))) for flops in _list(record.get("groups"))]
        for field, prefix in (("probabilities", "probability"), ("loss_drops", "loss_drop")):
            names = (f"{prefix}/{label}" for label in labels)
            yield from _known(zip(names, _list(record.get(field)), strict=False))
    elif kind == "generator":
        for name in ("mean_error", "mean_use"):
            yield from _known([(f"generator/{name}", record.get(name))])
        entropies = enumerate(_list(record.get("entropy")), start=1)
        yield from _known((f"entropy/group {place}", value) for place, value in entropies)
    elif kind == "evaluation":
        for row in rows_of(record):
            label = format_flops(float(str(row["budget_flops"])))
            yield from _known([(f"val_accuracy/{label}", row.get("val_accuracy"))])


def _list(value: JsonValue) -> Sequence[JsonValue]:
    return value if isinstance(value, list) else []


def _known(pairs: Iterable[tuple[str, JsonValue]]) -> Iterator[tuple[str, float]]:
    """What is a number: not null, which stands for what was not measured or is not finite."""
    for name, value in pairs:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
