"""Load: requests over HTTP, closed loop (so many at once) or open loop (at given moments)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.parts.processes import process_tree, processor_s

READY_WITHIN_S = 180
# Less than the 5 s after which uvicorn closes an idle connection.
_KEPT_S = 2.0


@dataclass(frozen=True)
class Sample:
    """One answer. ``ask``: which request; ``latency_ms``: since it was due, or was sent.

    ``source``: where the session came from, as Server-Timing says.
    """

    ask: int
    status: int
    latency_ms: float
    served_flops: int
    source: str = ""


def http_request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connections:
    """Kept-alive connections to one server; as many as there are requests at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def ask(self, index: int, request: bytes, due_s: float | None = None) -> Sample:
        """Send a request and read its answer. Status 0: it broke; -1: nobody listens."""
        start = time.perf_counter() if due_s is None else due_s
        try:
            reader, writer = await self._connection()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(_field(head, b"content-length") or 0))
        except ConnectionRefusedError:
            return Sample(index, -1, 1000 * (time.perf_counter() - start), 0)
        except (OSError, asyncio.IncompleteReadError):
            return Sample(index, 0, 1000 * (time.perf_counter() - start), 0)
        latency_ms = 1000 * (time.perf_counter() - start)
        if _field(head, b"connection") == b"close":
            writer.close()
        else:
            self._free.append((reader, writer, time.perf_counter()))
        served = int(_field(head, b"served-flops") or 0)
        timing = (_field(head, b"server-timing") or b"").partition(b'desc="')[2]
        source = timing.partition(b'"')[0].decode()
        return Sample(index, int(head.split(None, 2)[1]), latency_ms, served, source)

    def close(self) -> None:
        """All that are kept."""
        for _, writer, _ in self._free:
            writer.close()
        self._free.clear()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that was used of late; servers close what is idle, which must not count as theirs."""
        while self._free:
            reader, writer, used_s = self._free.pop()
            if time.perf_counter() - used_s < _KEPT_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


def _field(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else None


def closed_loop(
    port: int, requests: Sequence[bytes], concurrency: int, seconds: float
) -> tuple[list[Sample], float]:
    """Always so many at once; the answers, and the seconds that it took."""

    async def run() -> tuple[list[Sample], float]:
        connections, turn = Connections(port), itertools.count()
        samples: list[Sample] = []
        start = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < start + seconds:
                index = next(turn) % len(requests)
                samples.append(await connections.ask(index, requests[index]))

        await asyncio.gather(*(client() for _ in range(concurrency)))
        connections.close()
        return samples, time.perf_counter() - start

    return asyncio.run(run())


def open_loop(port: int, requests: Sequence[bytes], arrivals_s: Sequence[float]) -> list[Sample]:
    """Each request at its moment, whatever became of those before it."""

    async def run() -> list[Sample]:
        connections = Connections(port)
        start = time.perf_counter() + 0.1
        asked = []
        for number, moment in enumerate(arrivals_s):
            delay = start + moment - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            index = number % len(requests)
            one = connections.ask(index, requests[index], start + moment)
            asked.append(asyncio.create_task(one))
        samples = list(await asyncio.gather(*asked))
        connections.close()
        return samples

    return asyncio.run(run())


def arrivals(rate_per_s: float, seconds: float, cv2: float, seed: int) -> list[float]:
    """Moments of requests with gamma distributed gaps: ``cv2`` 1 is Poisson, more is bursty."""
    count = int(rate_per_s * seconds)
    gaps = np.random.default_rng(seed).gamma(1 / cv2, cv2 / rate_per_s, count)
    return np.cumsum(gaps).tolist()


def recorded(path: Path, rate_per_s: float, seconds: float) -> list[float]:
    """The beginning of a recording (a moment in seconds a line), sped up to a mean rate."""
    try:
        moments = np.sort(np.array([float(line) for line in path.read_text().split()]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; a trace is one number of seconds a line") from None
    moments = moments[: int(rate_per_s * seconds)] - moments[0]
    if len(moments) < 2 or moments[-1] == 0:
        raise ValueError(f"{path} has {len(moments)} moments; too few for a load")
    return (moments * (len(moments) / rate_per_s / moments[-1])).tolist()


@dataclass(frozen=True)
class Server:
    """A server that runs: a group of processes of its own."""

    port: int
    pid: int

    def processor_s(self) -> float:
        """Processor time of all its processes since they started. Linux only."""
        return processor_s(process_tree(self.pid))

    def pause(self) -> None:
        """Stop all its processes: some servers keep a core busy while they wait."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def serving(
    command: Sequence[str], ready_path: str, core: int | None, checkout: Path | None = None
) -> Iterator[Server]:
    """Run a server (``command`` and ``--port``) on a core while the block runs.

    ``checkout``: another checkout of this repository, whose code runs.
    Raises ValueError if it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pin = [] if core is None else ["taskset", "-c", str(core)]
    process = subprocess.Popen(
        [*pin, sys.executable, *command, "--port", str(port)],
        stdout=subprocess.DEVNULL,  # the last line there is ours
        stderr=subprocess.DEVNULL,
        cwd=checkout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        _wait(f"http://127.0.0.1:{port}{ready_path}", process)
        yield Server(port, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # stock LitServe leaves children behind
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                time.sleep(1.0)
                return
        time.sleep(0.1)
    raise ValueError(f"the server for {url} did not come up; start it by hand to see why")
