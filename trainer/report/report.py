"""python -m trainer.report RUN [RUN ...]: tables and plots, from what runs left on disk.

    python -m trainer.report runs/digits                     # into runs/digits/report
    python -m trainer.report runs/shift runs/uniform         # a table: runs over one another
    python -m trainer.report runs/shift runs/uniform --out compared

A report is a page that needs nothing else (report.html), the same as Markdown, and its plots. Runs
that are compared must be of one search space on the same images. Works on runs that still go on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style

from models.command import command_parser, tells_mistakes
from trainer.engine.disk import writing
from trainer.report import plots
from trainer.report.page import report_page, report_text, summary, tables
from trainer.report.run_record import RunRecord, read_runs
from trainer.report.words import markdown_table


def write_report(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write report.html, report.md and the plots that there is data for into a folder.

    Answers the files written, the page first. Raises ValueError for what runs lack, and where it
    cannot write.
    """
    made = list(plots.plotted(runs))
    for plot in made:  # placed once: matplotlib would do it for each file, which takes longest
        plot.figure.draw_without_rendering()
        plot.figure.set_layout_engine("none")
    texts = {"report.html": report_page, "report.md": report_text}
    with writing(folder, then=""), matplotlib.style.context(plots.STYLE):
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in texts.items():
            (folder / name).write_text(make(runs, made), encoding="utf-8")
        for plot in made:
            plot.figure.savefig(folder / f"{plot.name}.png", metadata={"Software": None})
    return [folder / name for name in (*texts, *(f"{plot.name}.png" for plot in made))]


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit status: 2 for a user's mistake."""
    parser = command_parser("trainer.report", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to (default: RUN/report; several runs are then only printed)",
    )
    options = parser.parse_args(arguments)
    runs = read_runs(options.runs)
    folder = options.out or (None if runs[1:] else options.runs[0] / "report")
    files: list[Path] = [] if folder is None else write_report(runs, folder)
    if options.json:
        found = [{**summary(run), "frontier": run.frontier} for run in runs]
        print(json.dumps({"files": [str(file) for file in files], "runs": found}))
        return 0
    for _, head, rows in tables(runs):
        if rows:
            print("\n".join(markdown_table(head, rows)), end="\n\n")
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
