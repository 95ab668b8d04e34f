"""Pieces of a self-contained page: no script, no font and no image from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.report.plot_style import Plot

CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --dim: #6b6b6d; --grid: #e3e3e5;
  --paper: #ffffff; --soft: #f5f5f7; --link: #2f74c0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --dim: #a0a0a5; --grid: #3a3a3e;
  --paper: #18181a; --soft: #232326; --link: #7fb2ee; } }
@media print { :root { color-scheme: light; --ink: #000; --dim: #555; --grid: #ddd; --paper: #fff;
  --soft: #f5f5f7; } section, figure, tr, .tile { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .dim, figcaption { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; padding: 0; list-style: none; }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .85rem; }
figure { margin: .6rem 0 0; } figcaption { font-size: .9rem; max-width: 46rem; margin-top: .3rem; }
svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  margin: .6rem 0; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--grid); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--dim); } .number { text-align: right; }
code { font-size: .9em; overflow-wrap: anywhere; } summary { cursor: pointer; }
ul { padding-left: 1.2rem; max-width: 46rem; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document. title: plain text; body: HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 0) -> str:
    """A table of plain text; columns from `words` on are numbers, set to the right."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        classes = ("" if place < words else ' class="number"' for place in range(len(texts)))
        return "".join(
            f"<{tag}{kind}>{escape(text)}</{tag}>"
            for kind, text in zip(classes, texts, strict=True)
        )

    lines = [f"<tr>{cells('td', row)}</tr>" for row in rows]
    return (
        f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    lines = [
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(value)}</code></td></tr>'
        for name, value in pairs
    ]
    return '<div class="wide"><table><tbody>' + "\n".join(lines) + "</tbody></table></div>"


def tiles(pairs: Sequence[tuple[str, str]]) -> str:
    """A few numbers to see first: (value, what it is)."""
    items = (
        f'<li class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></li>'
        for value, name in pairs
    )
    return '<ul class="tiles">' + "".join(items) + "</ul>"


def figure(plot: Plot) -> str:
    """A section with the plot and its caption, which also is its text alternative."""
    from trainer.report.plot_style import (
        inline_svg,  # not above: matplotlib takes its time to import
    )

    return (
        f"<section><h2>{escape(plot.title)}</h2>\n<figure>{inline_svg(plot)}\n"
        f'<figcaption id="{plot.name}-caption">{escape(plot.caption)}</figcaption>'
        "</figure></section>"
    )


def bullets(lines: Sequence[str]) -> str:
    """Plain sentences, one an item."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def folded(title: str, body: str) -> str:
    """What only some want to see."""
    return f"<details><summary>{escape(title)}</summary>\n{body}</details>"
