"""Pages that need nothing else: no script, no font and no image from elsewhere."""

from __future__ import annotations

import base64
import io

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure


def page(template: str, **values: object) -> str:
    """The whole document, from a template of this folder."""
    pages = Environment(
        autoescape=True, trim_blocks=True, loader=PackageLoader("trainer.report", ".")
    )
    return pages.get_template(template).render(values)


def encoded(figure: Figure) -> str:
    """The figure as SVG, for a data URL; the same data gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")
