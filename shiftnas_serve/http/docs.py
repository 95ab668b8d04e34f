"""The page ``/docs``: the OpenAPI document for people. It needs no script and no other server."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = (
    "body { font: 16px/1.5 system-ui; max-width: 60rem; margin: auto } td { padding: 0 1em 0 0 }"
)


def docs_page(document: dict[str, Any]) -> str:
    """Every operation with its parameters, bodies and answers.

    Its link is relative, so that it holds under any prefix.
    """
    info = document["info"]
    sections = [
        _section(f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(info['description'])} "
        f"Version {escape(info['version'])}. For programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>{"".join(sections)}</html>'
    )


def _section(name: str, operation: dict[str, Any]) -> str:
    rows = [(f"{one['name']} ({one['in']})", one["description"]) for one in operation["parameters"]]
    if "requestBody" in operation:
        rows.append(("body", ", ".join(operation["requestBody"]["content"])))
    rows += [(status, one["description"]) for status, one in operation["responses"].items()]
    cells = [f"<tr><td><code>{escape(a)}</code><td>{escape(b)}" for a, b in rows]
    return (
        f"<section><h2><code>{escape(name)}</code></h2><p><b>{escape(operation['summary'])}.</b> "
        f"{escape(operation['description'])}</p><table>{''.join(cells)}</table></section>"
    )
