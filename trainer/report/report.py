"""python -m trainer.report RUN: a run's tables and plots, from what it left on disk.

    python -m trainer.report runs/digits                          # page, Markdown and plots
    python -m trainer.report runs/digits --html digits.html       # one file, opens from disk
    python -m trainer.report runs/digits --baseline runs/uniform runs/sandwich

Reads log.jsonl, recipe.json and frontier.json (the bundle's rows, if the run has got so far). Works
on a run that is still going.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.engine.disk import writing
from trainer.engine.log import Record
from trainer.report.page import HEAD, SPLITS, frontier_cells, report_page, status
from trainer.report.run_record import RunRecord, read_run

PAGE_NAME = "report.html"


def write_report(run: Path, out: Path | None = None, baselines: Sequence[Path] = ()) -> list[Path]:
    """Write report.md, report.html and the plots that there is data for into `out` (RUN/report).

    Answers the files written, report.md first. Raises ValueError as read_run does, and where it
    cannot write.
    """
    from trainer.report import plot_style, plots

    record, others = read_run(run), _read_baselines(baselines)
    drawn = list(plots.draw(record, {other.name: other.frontier for other in others}))
    folder = out if out is not None else run / "report"
    with writing(folder, then=""):
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "report.md", folder / PAGE_NAME]
        files[0].write_text(
            report_text(record, [(plot.name, plot.title) for plot in drawn]), encoding="utf-8"
        )
        files[1].write_text(report_page(record, drawn, others), encoding="utf-8")
        for plot in drawn:
            files += plot_style.save(plot.figure, folder / plot.name)
    return files


def write_page(run: Path, file: Path, baselines: Sequence[Path] = ()) -> None:
    """Write the page alone. Raises ValueError as read_run does, and where it cannot write."""
    from trainer.report import plots

    record, others = read_run(run), _read_baselines(baselines)
    drawn = list(plots.draw(record, {other.name: other.frontier for other in others}))
    page = report_page(record, drawn, others)
    with writing(file, then=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")


def write_pdf(run: Path, file: Path, baselines: Sequence[Path] = ()) -> None:
    """Write a PDF: the table, then a page a plot. Raises ValueError as ``write_report``."""
    from trainer.report import pdf, plots

    record, others = read_run(run), _read_baselines(baselines)
    drawn = list(plots.draw(record, {other.name: other.frontier for other in others}))
    lines = (
        [status(record), "", *text_table(HEAD, frontier_cells(record.frontier))]
        if record.frontier
        else [status(record)]
    )
    with writing(file, then=""):
        file.parent.mkdir(parents=True, exist_ok=True)
        pdf.write(file, record.name, lines, drawn)


def _read_baselines(baselines: Sequence[Path]) -> list[RunRecord]:
    others = [read_run(path) for path in baselines]
    for other, path in zip(others, baselines, strict=True):
        if not other.frontier:
            raise ValueError(f"{path} has no frontier yet: a baseline must be a finished run")
    return others


def report_text(record: RunRecord, plots: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown: the table of accuracy per budget, then the plots by file name."""
    lines = [f"# {record.name}", ""]
    if record.frontier:
        lines += ["## Accuracy per budget", "", *frontier_table(record.frontier), "", SPLITS, ""]
    else:
        lines += ["The run has no frontier yet: it has not come to its end.", ""]
    for name, title in plots:
        lines += [f"## {title}", "", f"![{title}]({name}.png)", ""]
    return "\n".join(lines)


def frontier_table(frontier: Sequence[Record]) -> list[str]:
    """Markdown lines, one row per budget. One multiply-add is one FLOP."""
    return markdown_table(HEAD, frontier_cells(frontier))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --: |" * len(head)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def text_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The same in columns of equal width."""
    rows = [head, *cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a training run")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN/report)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write only the page, to FILE")
    parser.add_argument("--pdf", type=Path, metavar="FILE", help="write only a PDF, to FILE")
    parser.add_argument(
        "--baseline", type=Path, nargs="+", default=[], metavar="RUN", help="runs to compare with"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None and (options.html is not None or options.pdf is not None):
            raise ValueError(
                f"--out {options.out} is a folder for all files; leave it out, or --html and --pdf"
            )
        files = [file for file in (options.html, options.pdf) if file is not None]
        if options.html is not None:
            write_page(options.run, options.html, options.baseline)
        if options.pdf is not None:
            write_pdf(options.run, options.pdf, options.baseline)
        if not files:
            files = write_report(options.run, options.out, options.baseline)
        frontier = read_run(options.run).frontier
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"files": [str(f) for f in files], "frontier": frontier}))
        return 0
    if frontier:
        print("\n".join(frontier_table(frontier)))
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
