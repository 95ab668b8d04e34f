"""A report as PDF: a page of text, then a page a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from trainer.report.plot_style import DIM, STYLE, Plot

_A4_LANDSCAPE = (11.69, 8.27)


def write(file: Path, title: str, lines: Sequence[str], plots: Sequence[Plot]) -> None:
    """lines: of the first page, set in a font of one width. Figures grow by what words need."""
    with (
        rc_context(STYLE),
        PdfPages(file, metadata={"Title": title, "CreationDate": None}) as pages,
    ):
        first = Figure(figsize=_A4_LANDSCAPE)
        first.text(0.06, 0.92, title, fontsize=20, va="top")
        text = "\n".join(lines)
        first.text(0.06, 0.84, text, fontsize=10, va="top", family="monospace", linespacing=1.5)
        pages.savefig(first)
        for plot in plots:
            width = int(12 * plot.figure.get_size_inches()[0])
            caption = "\n".join(textwrap.wrap(plot.caption, width))
            words = plot.figure.supxlabel(caption, fontsize=8, color=DIM)
            heading = plot.figure.suptitle(plot.title, fontsize=12)
            pages.savefig(plot.figure)
            words.set_visible(False)
            heading.set_visible(False)
