"""The page at ``/``: a photo, a slider, and what the model makes of them.

Its files are in ``static``; nothing is built, and nothing comes from another server. Their links
are relative, so that the page works under any prefix. A photo goes to ``/classify`` and nowhere
else; the page keeps nothing, not even a key.

``cat.jpg`` and ``coffee.jpg`` are by Stefan van der Walt and Rachel Michetti (both CC0, from the
package scikit-image); ``ship.jpg`` was drawn for this project.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC = Path(__file__).parent / "static"
PHOTO = STATIC / "coffee.jpg"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[Route]:
    """``/`` and its files. They are read here, once."""
    routes = [_route(f"/page/{file.name}", file) for file in sorted(STATIC.iterdir())]
    return [_route("/", STATIC / "index.html"), *routes]


def _route(path: str, file: Path) -> Route:
    data = file.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {**_HEADERS, "ETag": tag, "Content-Type": _TYPES[file.suffix]}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)

    return Route(path, answer, methods=["GET"])
