"""A page on what a bundle answers: accuracy with intervals, classes, confusion, worst photos."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from models.bundle.folder import Bundle
from trainer.data.sources import Rows
from trainer.engine.disk import writing
from trainer.pairs import Curve
from trainer.report import plots
from trainer.report.html import encoded, page
from trainer.scores import Scores, confused
from trainer.served import Measured

MOST_CLASSES = 30
"""In a confusion matrix; of more, the pairs that are confused most are listed."""
PHOTOS, SIDE = 24, 200
HEAD = ("budget", "MFLOPs", "right", "95 %", "first five")


def write_answers(
    folder: Path, bundle: Bundle, measured: Sequence[Measured], rows: Rows, read: Sequence[int]
) -> Path:
    """Write ``answers.html`` and its plot. rows: the images; read: which of them were measured."""
    with writing(folder, then=""), matplotlib.style.context(plots.STYLE):
        folder.mkdir(parents=True, exist_ok=True)
        figure = frontier(bundle, measured, [])
        figure.savefig(folder / "answers.png", metadata={"Software": None})
        file = folder / "answers.html"
        file.write_text(answers_page(bundle, measured, rows, read, figure), encoding="utf-8")
    return file


def answers_page(
    bundle: Bundle, measured: Sequence[Measured], rows: Rows, read: Sequence[int], figure: Figure
) -> str:
    """The whole document, pictures inside."""
    least, largest = measured[0].scores, measured[-1].scores
    confusion = largest.confusion()
    few = len(bundle.labels) <= MOST_CLASSES
    return page(
        "answers.html",
        title=f"{bundle.name}: what is served",
        images=f"{len(largest.labels):,}",
        plot=encoded(figure),
        head=HEAD,
        rows=[_row(bundle, one) for one in measured],
        classes=[
            (label, seen, f"{100 * right / seen:.1f} %", f"{100 * of_least[0] / seen:.1f} %")
            for label, (right, seen), of_least in zip(
                bundle.labels, largest.per_class(), least.per_class(), strict=True
            )
            if seen
        ],
        labels=bundle.labels,
        confusion=_shaded(bundle.labels, confusion) if few else [],
        pairs=[
            (bundle.labels[i], bundle.labels[j], f"{count} times")
            for i, j, count in confused(confusion)[:MOST_CLASSES]
        ],
        photos=[_photo(bundle, largest, rows, read, at) for at in largest.worst(PHOTOS)],
    )


def write_plot(
    file: Path, bundle: Bundle, measured: Sequence[Measured], curves: Sequence[Curve]
) -> None:
    """Write the ``frontier``. Raises ValueError where that cannot be."""
    with writing(file, then=""), matplotlib.style.context(plots.STYLE):
        file.parent.mkdir(parents=True, exist_ok=True)
        frontier(bundle, measured, curves).savefig(file, metadata={"Software": None})


def frontier(bundle: Bundle, measured: Sequence[Measured], curves: Sequence[Curve]) -> Figure:
    """Accuracy by FLOPs: of one subnet, and of pairs by what they spend on average."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    flops = [bundle.space.flops(one.arch) / 1e6 for one in measured]
    right = np.array([100 * one.scores.accuracy for one in measured])
    ends = 100 * np.array([one.scores.interval for one in measured]).T
    axes.errorbar(
        flops, right, yerr=np.abs(ends - right), marker="o", ms=4, capsize=2, label="one subnet"
    )
    plots.plot_curves(axes, curves, 1e6, 100)
    axes.legend(loc="lower right")
    axes.set_xlabel("MFLOPs" + (", on average" if curves else ""))
    axes.set_ylabel("right, %")
    axes.set_title(f"{bundle.name}: what is served")
    figure.tight_layout()
    return figure


def _row(bundle: Bundle, one: Measured) -> tuple[str, ...]:
    low, high = one.scores.interval
    return (
        f"{one.budget_flops / 1e6:.1f} M",
        f"{bundle.space.flops(one.arch) / 1e6:.1f}",
        f"{100 * one.scores.accuracy:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * float(one.scores.top5.mean()):.1f} %",
    )


def _shaded(
    labels: Sequence[str], confusion: np.ndarray
) -> list[tuple[str, list[tuple[int, str]]]]:
    """Counts, and how dark each is: its share of the class."""
    seen = np.maximum(confusion.sum(1, keepdims=True), 1)
    return [
        (label, [(int(n), f"{share:.2f}") for n, share in zip(row, shares, strict=True)])
        for label, row, shares in zip(labels, confusion, 0.6 * confusion / seen, strict=True)
    ]


def _photo(
    bundle: Bundle, scores: Scores, rows: Rows, read: Sequence[int], at: int
) -> tuple[str, str]:
    """A small JPEG in base64, and what is wrong about its answer."""
    photo = bundle.preprocess.decode(rows.read(read[at]), SIDE)
    small = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    right, first = (bundle.labels[int(of[at])] for of in (scores.labels, scores.first))
    said = f"{right}, answered {first}; {100 * scores.probability[at]:.1f} % for {right}"
    return base64.b64encode(file.getvalue()).decode(), said
