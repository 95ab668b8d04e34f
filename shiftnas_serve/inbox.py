"""Inbox: a worker's end of the transport: a listening socket, a connection from each HTTP process.

Read by the thread that also runs the subnets, between two batches: what came meanwhile waits in the
kernel. So there is no hand-over between threads, which costs more than a small subnet takes.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from shiftnas_serve.frames import Cancel, Frame, FrameReader, Job, Open, pack

# An HTTP process that takes nothing for so long is as good as gone.
_SEND_TIMEOUT_S = 1.0
_RECEIVE_BYTES = 1 << 18
_LONGEST_PATH = 100
_ERROR_PAUSE_S = 0.05

_LOG = structlog.get_logger("shiftnas_serve.inbox")


def socket_path(folder: Path, worker_id: int) -> Path:
    """Where a worker listens. Raises ValueError when a socket's name cannot be so long."""
    path = folder / f"w{worker_id}"
    if len(str(path)) > _LONGEST_PATH:
        raise ValueError(
            f"{folder} is too long a name for sockets in it; set TMPDIR to a shorter one"
        )
    return path


class Client:
    """A connection of an HTTP process. revision: the one that it has opened, None before."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_TIMEOUT_S)
        self.connection = connection
        self.revision: int | None = None
        self.reader = FrameReader()


class Inbox:
    """Listens, reads, replies. A client that is gone is dropped; ``lost`` says which."""

    def __init__(self, path: Path) -> None:
        self._clients: set[Client] = set()
        self.lost: list[Client] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)  # of the worker before this one
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @property
    def connected(self) -> bool:
        """Whether any HTTP process is there."""
        return bool(self._clients)

    def clients(self, revision: int) -> list[Client]:
        """The connections of one revision."""
        return [client for client in self._clients if client.revision == revision]

    def receive(self, timeout_s: float) -> Iterator[tuple[Client, Job | Cancel | Open]]:
        """All that has come; waits up to ``timeout_s`` where nothing has."""
        more = True
        while more:
            more = False
            for key, _ in self._selector.select(timeout_s):
                if key.data is None:
                    self._accept()
                    continue
                data = self._read(key.data)
                more |= len(data) == _RECEIVE_BYTES  # else it was all, and need not be asked for
                for frame in key.data.reader.feed(data):
                    assert isinstance(frame, Job | Cancel | Open), frame
                    yield key.data, frame
            timeout_s = 0.0

    def _read(self, client: Client) -> bytes:
        try:
            data = client.connection.recv(_RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self.drop(client)
        return data

    def send(self, client: Client, data: bytes) -> None:
        """Send packed frames to a client; one that has gone or is stuck is dropped."""
        if client not in self._clients:
            return
        try:
            client.connection.sendall(data)
        except OSError:
            self.drop(client)

    def tell_one(self, frame: Frame, revision: int) -> None:
        """Send a frame to any client of a revision; nothing happens where there is none."""
        for client in self.clients(revision)[:1]:
            self.send(client, pack(frame))

    def tell_all(self, frame: Frame, revision: int | None = None) -> None:
        """Send a frame to every client, or to those of one revision."""
        data = pack(frame)
        for client in list(self._clients):
            if revision in (None, client.revision):
                self.send(client, data)

    def drop(self, client: Client) -> None:
        """Close a connection."""
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.connection)
            client.connection.close()
            self.lost.append(client)

    def close(self) -> None:
        """Close everything; the HTTP processes see it at once."""
        for client in list(self._clients):
            self.drop(client)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            client = Client(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError as error:  # too many open files: that may pass, and jobs go on
            _LOG.error("cannot accept an HTTP process", error=str(error))
            time.sleep(_ERROR_PAUSE_S)
            return
        self._clients.add(client)
        self._selector.register(client.connection, selectors.EVENT_READ, client)
