"""Head: what a parser of HTTP/1.1 lets pass, and a server must refuse (RFC 9112)."""

from __future__ import annotations

from collections.abc import Sequence

from shiftnas_serve.problem import Problem


def check_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises Problem 400 for headers that proxies and servers might understand differently.

    ``version``: of HTTP. ``headers``: names in small letters, and values.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        raise Problem(400, f"{len(hosts)} headers Host; send one")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        shown = b", ".join(codings).decode("latin-1")
        raise Problem(400, f"Transfer-Encoding: {shown!r:.40} is not read; send chunked alone")
