"""What a bundle answers to images, as it is served: ONNX Runtime, and the server's own decoding.

``python -m trainer.evaluate`` and the end of a run measure with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.bundle.folder import Bundle
from models.images.header import ImageError
from models.onnx.ort import onnxruntime, share_arena
from models.space.arch import Arch
from trainer.data.sources import Rows
from trainer.engine.log import Record
from trainer.scores import Scores, confused

BATCH = 32
AT_ONCE = 64
"""Images whose pixels are kept while all subnets look at them; a step of the progress."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A subnet, and how right it is. budget_flops: from which on it answers."""

    budget_flops: float
    arch: Arch
    scores: Scores


def some_answers(bundle: Bundle, count: int) -> list[tuple[float, Arch]]:
    """What is answered at ``count`` budgets, each subnet once, with its own FLOPs.

    Each budget is so many times the one before: at small ones, accuracy changes most.
    """
    budgets = np.geomspace(bundle.min_flops, bundle.max_flops, count)
    archs = dict.fromkeys(bundle.answer(float(budget)) for budget in budgets)
    return [(float(bundle.space.flops(arch)), arch) for arch in archs]


def measure(
    bundle: Bundle,
    answers: Sequence[tuple[float, Arch]],
    rows: Rows,
    labels: np.ndarray | None,
    *,
    threads: int = 1,
    skip_broken: bool = False,
    fit: bool = False,
    track: Callable[[range], Iterable[int]] = iter,
) -> tuple[list[Measured], list[int], list[str]]:
    """How right subnets are on encoded images; which were read, and why the others were not.

    labels: (images,), of the bundle's classes; None takes what the largest of ``answers`` says.
    ``fit``: temperatures to these images, in place of the bundle's. ``track`` sees each piece of
    the work. Raises ValueError naming a broken image, unless those are skipped, and if none are
    left.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    share_arena(options)  # dozens of subnets, of which one runs
    sessions = [
        onnxruntime.InferenceSession(
            bundle.build_onnx(arch).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _, arch in answers
    ]
    logits: list[list[np.ndarray]] = [[] for _ in answers]
    kept: list[int] = []
    broken: list[str] = []
    for piece in track(range(0, len(rows), AT_ONCE)):
        pixels, seen, reasons = _read(
            bundle, answers, rows, range(piece, min(piece + AT_ONCE, len(rows))), skip_broken
        )
        kept += seen
        broken += reasons
        for (_, arch), session, found in zip(answers, sessions, logits, strict=True):
            images = pixels[bundle.space.resolution(arch)]
            for start in range(0, len(images), BATCH):
                batch = bundle.preprocess.normalize(np.stack(images[start : start + BATCH]))
                found.append(np.asarray(session.run(None, {"images": batch})[0]))
    if not kept:
        raise ValueError("no image could be read")
    of_each = [np.concatenate(found) for found in logits]
    right = of_each[-1].argmax(1) if labels is None else labels[kept]

    def scores(arch: Arch, found: np.ndarray) -> Scores:
        if fit:
            return Scores.fitted(found, right)
        known = bundle.confidence
        return Scores.of(found, right, known.temperature(bundle.space.flops(arch)) if known else 1)

    return (
        [
            Measured(budget, arch, scores(arch, found))
            for (budget, arch), found in zip(answers, of_each, strict=True)
        ],
        kept,
        broken,
    )


def _read(
    bundle: Bundle,
    answers: Sequence[tuple[float, Arch]],
    rows: Rows,
    indices: range,
    skip_broken: bool,
) -> tuple[dict[int, list[np.ndarray]], list[int], list[str]]:
    """Pixels at every resolution that is asked, which images those are, and broken ones."""
    space = bundle.space
    sides = sorted({space.resolution(arch) for _, arch in answers})
    pixels: dict[int, list[np.ndarray]] = {side: [] for side in sides}
    kept: list[int] = []
    broken: list[str] = []
    for index in indices:
        try:
            photo = bundle.preprocess.decode(rows.read(index), space.resolution(space.largest))
        except (ImageError, OSError) as error:
            if not skip_broken:
                raise ValueError(f"{rows.where(index)}: {error}") from error
            broken.append(f"{rows.where(index)}: {error}")
            continue
        kept.append(index)
        for side in sides:
            pixels[side].append(bundle.preprocess.pixels(photo, side))
    return pixels, kept, broken


def as_record(bundle: Bundle, measured: Measured) -> Record:
    """One answer for JSON: accuracy with its interval, top-5, confusion, per class."""
    scores, space = measured.scores, bundle.space
    return {
        "budget_flops": measured.budget_flops,
        "id": space.arch_id(measured.arch),
        "flops": space.flops(measured.arch),
        "images": len(scores.labels),
        "accuracy": scores.accuracy,
        "accuracy_95": list(scores.interval),
        "top5": float(scores.top5.mean()),
        "per_class": {
            label: {"right": right, "images": seen}
            for label, (right, seen) in zip(bundle.labels, scores.per_class(), strict=True)
            if seen
        },
        "confusion": [
            {"label": bundle.labels[i], "answer": bundle.labels[j], "images": count}
            for i, j, count in confused(scores.confusion())
        ],
    }


def labels_in(
    bundle: Bundle, classes: Sequence[str], rows: Rows, *, instead: str = ""
) -> np.ndarray:
    """The images' labels as the bundle numbers them: int64, (images,).

    Raises ValueError for a class it lacks; ``instead``: what else helps then.
    """
    place = {label: index for index, label in enumerate(bundle.labels)}
    used = np.unique(rows.labels)
    missing = [classes[int(label)] for label in used if classes[int(label)] not in place]
    if missing:
        raise ValueError(
            f"{bundle.name} has no class {missing[0]!r}"
            + (f" and {len(missing) - 1} more of the data's" if len(missing) > 1 else "")
            + f"; {instead}name the folders as its labels"
        )
    return np.array([place.get(name, -1) for name in classes])[rows.labels]
