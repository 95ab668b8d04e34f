"""What does one photo get at several budgets? The picture of the README.

    python -m benchmarks.photo_at_budgets docs/images/coffee.jpg --plot budgets.png
    python -m benchmarks.photo_at_budgets photo.jpg --budgets 80M 200M

Asks the engine as the server does. Prints a table and a JSON line; ``--plot`` draws the photo
beside its answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import shiftnas_serve
from models.command import command_parser, tells_mistakes
from models.extras import require
from models.outputs import plot_file
from shiftnas_serve.engine.result import Result
from shiftnas_serve.settings import DEFAULT_BUNDLE

BUDGETS = ("72M", "173M", "386M")
TOP_K = 3
RUNS = 21


def usual(engine: shiftnas_serve.Engine, photo: Path, budget: str) -> Result:
    """The answer whose inference took the median time; the first, which builds a session, aside."""
    results = [engine.classify(photo, flops=budget, top_k=TOP_K) for _ in range(RUNS + 1)]
    return sorted(results[1:], key=lambda result: result.timing.infer_ms)[RUNS // 2]


def plot(path: Path, photo: Path, results: Sequence[Result]) -> None:
    """The photo on the left, the classes of each answer beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 2.4 * len(results), 2.6), layout="constrained")
    picture, *panels = figure.subplots(
        1, 1 + len(results), width_ratios=[1.3, *[1.0] * len(results)]
    )
    picture.imshow(Image.open(photo).convert("RGB"))
    picture.axis("off")
    for axes, result in zip(panels, results, strict=True):
        rows = list(enumerate(reversed(result.predictions)))
        axes.barh([row for row, _ in rows], [1.0] * len(rows), 0.26, color="#e8ecf4")
        axes.barh([row for row, _ in rows], [one.probability for _, one in rows], 0.26)
        for row, one in rows:
            axes.text(0, row + 0.22, f"{one.label}  {one.probability:.0%}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(-0.5, len(rows) - 0.3))
        axes.set_title(
            f"{result.subnet.flops / 1e6:.0f} MFLOPs, {result.timing.infer_ms:.1f} ms", fontsize=10
        )
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.photo_at_budgets", __doc__, json=False)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, metavar="FLOPS")
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    try:
        if options.plot is not None:
            require("bench", "matplotlib")
        with shiftnas_serve.load(options.bundle, prebuild=False) as engine:
            results = [usual(engine, options.photo, budget) for budget in options.budgets]
    except shiftnas_serve.Problem as problem:
        raise ValueError(str(problem)) from None
    print("| budget | MFLOPs | ms | classes |\n|--:|--:|--:|---|")
    rows = []
    for budget, result in zip(options.budgets, results, strict=True):
        classes = {one.label: round(one.probability, 4) for one in result.predictions}
        text = ", ".join(f"{label} {share:.0%}" for label, share in classes.items())
        flops, infer_ms = result.subnet.flops, round(result.timing.infer_ms, 2)
        print(f"| {budget} | {flops / 1e6:.1f} | {infer_ms} | {text} |")
        rows.append({"budget": budget, "flops": flops, "infer_ms": infer_ms, "classes": classes})
    if options.plot is not None:
        plot(options.plot, options.photo, results)
    print(json.dumps({"benchmark": "photo_at_budgets", "photo": str(options.photo), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
