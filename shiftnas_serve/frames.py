"""Frames: what the HTTP process and a worker say to each other over a Unix-domain socket.

A frame is its length (uint32, of what follows), its kind (one byte), a fixed header, and raw bytes:
uint8 pixels one way, float32 logits the other. Nothing is pickled. Both ends are processes of one
machine and one server, so numbers stand in its own byte order and a malformed frame is a bug.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LENGTH = struct.Struct("=I")
_JOB = struct.Struct("=IBQdddII?H")
_DONE = struct.Struct("=IBQffffHBH")
_NUMBERED = struct.Struct("=IBQ")
_OTHERS = struct.Struct("=IBd")

SOURCES = ("resident", "universal", "built")
"""Where the session that answered came from."""


@dataclass(frozen=True, slots=True)
class Job:
    """To a worker: one image for one subnet.

    ``key``: the arch's choices as bytes (``arch_key``); ``pixels``: uint8 (height, width, 3),
    ``prepared`` (cropped and resized, for this subnet), or a photo as it was decoded.
    ``aim_s``: when it should be done; the worker may run a smaller subnet for that. None: it may
    not. Times are on the machine's monotonic clock, which its processes share.
    """

    id: int
    key: bytes
    pixels: np.ndarray
    sent_s: float
    deadline_s: float
    aim_s: float | None = None
    prepared: bool = True


@dataclass(frozen=True, slots=True)
class Open:
    """To a worker, first: the number of the revision that all jobs of this connection are for."""

    revision: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """To a worker: nobody waits for this job any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Done:
    """From a worker. logits: float32 (classes,); ``batch``: images that ran together.

    ``turn_ms``: what the batch took in all, building aside, ``infer_ms`` of it the subnet itself.
    ``key``: the subnet that ran.
    """

    id: int
    logits: np.ndarray
    queue_ms: float
    infer_ms: float
    turn_ms: float
    build_ms: float
    batch: int
    source: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Late:
    """From a worker: not run, since it could not be done by its deadline.

    That had passed when its turn came, or would have before its end, and others waited behind it.
    """

    id: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """From a worker: the job was cancelled before its turn."""

    id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """From a worker: the subnet could not run."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Hello:
    """From a worker, once: the revision is ready. What it measured, and what runs there."""

    pid: int
    latency_points: tuple[tuple[float, float], ...]
    runtime: dict[str, str]


@dataclass(frozen=True, slots=True)
class Resident:
    """From a worker: ids of the subnets whose sessions came and went since the last such frame."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Building:
    """From a worker: it builds a session, in ``limit_s`` at most; an Alive follows then."""

    limit_s: float


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """From a worker, to one HTTP process: a session that no job waits for could not be built."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alive:
    """From a worker, after a build, and now and then while jobs wait: it works."""


@dataclass(frozen=True, slots=True)
class Others:
    """From a worker, to each of several HTTP processes with its answers: what waits of the others.

    ``least_ms``: of jobs with latency budgets, what they take if all shrink as far as they may.
    """

    least_ms: float


@dataclass(frozen=True, slots=True)
class Refused:
    """From a worker, last: it cannot load the revision that was opened."""

    reason: str


Frame = (
    Job
    | Cancel
    | Done
    | Late
    | Dropped
    | Failed
    | Hello
    | Resident
    | Building
    | Unbuilt
    | Open
    | Alive
    | Others
    | Refused
)

_ORDER = (
    *(Job, Cancel, Done, Late, Dropped, Failed, Hello),
    *(Resident, Building, Unbuilt, Open, Alive, Others, Refused),
)
_KINDS: dict[type[Frame], int] = {kind: n for n, kind in enumerate(_ORDER, start=1)}


def arch_key(indices: Sequence[int]) -> bytes:
    """The choices of an arch as bytes."""
    return np.asarray(indices, "<u2").tobytes()


def arch_indices(key: bytes) -> tuple[int, ...]:
    """The reverse of ``arch_key``."""
    return tuple(np.frombuffer(key, "<u2").tolist())


def pack(frame: Frame) -> bytes:
    """A frame as bytes."""
    kind = _KINDS[type(frame)]
    match frame:
        case Job(identity, key, pixels, sent_s, deadline_s, aim_s, prepared):
            height, width, channels = pixels.shape
            assert pixels.dtype == np.uint8, pixels.dtype
            assert channels == 3, pixels.shape
            length = _JOB.size - _LENGTH.size + len(key) + pixels.size
            times = sent_s, deadline_s, math.inf if aim_s is None else aim_s
            shape = height, width, prepared, len(key)
            head = _JOB.pack(length, kind, identity, *times, *shape)
            return b"".join((head, key, pixels.tobytes()))
        case Done(identity, logits, queue_ms, infer_ms, turn_ms, build_ms, batch, source, key):
            data = key + logits.astype(np.float32, copy=False).tobytes()
            length = _DONE.size - _LENGTH.size + len(data)
            return (
                _DONE.pack(
                    length,
                    kind,
                    identity,
                    queue_ms,
                    infer_ms,
                    turn_ms,
                    build_ms,
                    batch,
                    SOURCES.index(source),
                    len(key),
                )
                + data
            )
        case Cancel(identity) | Late(identity) | Dropped(identity):
            return _NUMBERED.pack(_NUMBERED.size - _LENGTH.size, kind, identity)
        case Others(least_ms):
            return _OTHERS.pack(_OTHERS.size - _LENGTH.size, kind, least_ms)
        case Failed(identity, reason):
            data = reason.encode("utf-8", "replace")
            length = _NUMBERED.size - _LENGTH.size + len(data)
            return _NUMBERED.pack(length, kind, identity) + data
        case Hello(pid, points, runtime):
            return _document(kind, {"pid": pid, "latency_points": points, "runtime": runtime})
        case Resident(added, removed):
            return _document(kind, {"added": added, "removed": removed})
        case Building(limit_s):
            return _document(kind, {"limit_s": limit_s})
        case Alive():
            return _document(kind, {})
        case Open(revision):
            return _document(kind, {"revision": revision})
        case Refused(reason) | Unbuilt(reason):
            return _document(kind, {"reason": reason})


def _document(kind: int, document: Mapping[str, object]) -> bytes:
    data = json.dumps(document).encode()
    return _LENGTH.pack(1 + len(data)) + bytes((kind,)) + data


class FrameReader:
    """Turns what arrives in pieces of any size into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with ``data``; read them all before the next call."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(buffer, start)[0]
            if len(buffer) < end:
                break
            yield _unpack(bytes(buffer[start:end]))
            start = end
        del buffer[:start]


def _unpack(data: bytes) -> Frame:
    kind = data[_LENGTH.size]
    if kind == _KINDS[Job]:
        _, _, identity, sent_s, deadline_s, aim_s, *shape = _JOB.unpack_from(data)
        height, width, prepared, key_length = shape
        split = _JOB.size + key_length
        pixels = np.frombuffer(data, np.uint8, offset=split).reshape(height, width, 3)
        aim = None if aim_s == math.inf else aim_s
        return Job(identity, data[_JOB.size : split], pixels, sent_s, deadline_s, aim, prepared)
    if kind == _KINDS[Done]:
        _, _, identity, queue_ms, infer_ms, turn_ms, build_ms, *rest = _DONE.unpack_from(data)
        batch, source, key_length = rest
        split = _DONE.size + key_length
        logits = np.frombuffer(data, np.float32, offset=split)
        key, source = data[_DONE.size : split], SOURCES[source]
        times = queue_ms, infer_ms, turn_ms, build_ms
        return Done(identity, logits, *times, batch, source, key)
    if kind == _KINDS[Failed]:
        return Failed(_NUMBERED.unpack_from(data)[2], data[_NUMBERED.size :].decode())
    for numbered in (Cancel, Late, Dropped):
        if kind == _KINDS[numbered]:
            return numbered(_NUMBERED.unpack_from(data)[2])
    if kind == _KINDS[Others]:
        return Others(_OTHERS.unpack_from(data)[2])
    document = json.loads(data[_LENGTH.size + 1 :])
    if kind == _KINDS[Hello]:
        points = tuple((float(flops), float(ms)) for flops, ms in document["latency_points"])
        return Hello(document["pid"], points, document["runtime"])
    if kind == _KINDS[Resident]:
        return Resident(tuple(document["added"]), tuple(document["removed"]))
    if kind == _KINDS[Open]:
        return Open(document["revision"])
    if kind == _KINDS[Refused]:
        return Refused(document["reason"])
    if kind == _KINDS[Unbuilt]:
        return Unbuilt(document["reason"])
    if kind == _KINDS[Alive]:
        return Alive()
    assert kind == _KINDS[Building], kind
    return Building(document["limit_s"])
