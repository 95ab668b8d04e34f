"""Listeners: the sockets on which the HTTP processes take connections, each its own."""

from __future__ import annotations

import socket

_BACKLOG = 2048


def check_port(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen there."""
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port"
            ) from None


def listening_sockets(first: socket.socket, count: int) -> list[socket.socket]:
    """As many sockets on the address of ``first``, which is closed.

    The kernel deals connections out among them. From one socket, the process that wakes first takes
    all that came at once. ``first`` itself will not do even for one: LitServe's manager was forked
    with it, and would go on listening when nobody answers any more.
    """
    address = first.getsockname()
    first.close()
    sockets = []
    for _ in range(count):
        one = socket.socket(first.family)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        one.listen(_BACKLOG)  # now, so that none gets the connections of one that starts later
        sockets.append(one)
    return sockets
