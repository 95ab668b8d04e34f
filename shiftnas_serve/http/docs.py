"""The page ``/docs``: the OpenAPI document for people. It needs no script and no other server."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font-family: ui-monospace, monospace; background: #f3f3f3; padding: .1em .3em }
pre { padding: .7em; overflow-x: auto } section { border-top: 1px solid #ccc; padding: .5rem 0 }
td { padding: .2em .8em .2em 0; vertical-align: top } h2 code { background: none }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Every operation with its parameters, bodies and answers."""
    info = document["info"]
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(info['description'])} "
        f"Version {escape(info['version'])}. For programs: "
        f'<a href="/openapi.json">/openapi.json</a>.</p>{"".join(operations)}</html>'
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"]
    parts.append(f"<p><b>{escape(operation['summary'])}.</b> ")
    parts.append(f"{escape(operation.get('description', ''))}</p>")
    parameters = operation.get("parameters", [])
    if parameters:
        parts.append(
            _table(
                [(f"{one['name']} ({one['in']})", one.get("description", "")) for one in parameters]
            )
        )
    bodies = operation.get("requestBody", {}).get("content", {})
    if bodies:
        parts.append(f"<p>Body: {', '.join(f'<code>{escape(one)}</code>' for one in bodies)}</p>")
    answers = operation["responses"].items()
    parts.append(_table([(status, one["description"]) for status, one in answers]))
    return "".join([*parts, "</section>"])


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [f"<tr><td><code>{escape(a)}</code><td>{escape(b)}" for a, b in rows]
    return f"<table>{''.join(cells)}</table>"
