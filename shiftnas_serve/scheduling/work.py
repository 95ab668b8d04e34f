"""Work: what decoding an image costs, and where it is decoded.

What takes but a moment is done at once: the way to a thread and back would take longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.images.header import ImageHeader

_SMALL_PIXELS = 250_000
# Of a PNG, each 2 kB may be a chunk of their own.
_SMALL_BYTES = {"JPEG": 16_000, "PNG": 64_000}  # (pixels have none)
# A body that is longer than this, in base64, too, holds an image that has to wait its turn.
LARGE_BODY_BYTES = 4 * max(_SMALL_BYTES.values()) // 3
# On a core of a few years ago. What formats and machines make of it is learnt.
_MS_PER_BYTE, _MS_PER_PIXEL = 1e-5, 3e-6
_GENERATOR_MS = 8.0
# How fast an estimate follows what is observed, and how far.
_STEP = 0.1
_FACTORS = (0.05, 50.0)


@dataclass(frozen=True, slots=True)
class Work:
    """Something to do in a thread: ``ms`` is its size, not what it takes here.

    ``kind``: of work that takes alike for its size.
    """

    kind: str
    ms: float


def is_small(header: ImageHeader, size_bytes: int) -> bool:
    """Whether decoding a file with this header, or resizing pixels, takes no more than a moment.

    A WebP may be an animation, whose frames libwebp looks at one by one.
    """
    if header.pixels > _SMALL_PIXELS or header.scans_at:
        return False
    return size_bytes <= _SMALL_BYTES.get(header.format, 0)


def is_large(width: int, height: int) -> bool:
    """Whether resizing so many pixels takes more than a moment."""
    return width * height > _SMALL_PIXELS


def decode_work(header: ImageHeader, size_bytes: int, *, generator: bool) -> Work:
    """Decoding a file, if it is one, and resizing. ``generator``: and asking it for a subnet."""
    ms = size_bytes * _MS_PER_BYTE + header.pixels * _MS_PER_PIXEL
    if generator:
        return Work(f"{header.format} and generator", _GENERATOR_MS + ms)
    return Work(header.format, ms)


class WorkFactors:
    """By how much work of each kind takes longer here than its size says."""

    def __init__(self) -> None:
        self._factors: dict[str, float] = {}

    def expected_ms(self, work: Work) -> float:
        """What it takes in a thread, by what such work took."""
        return work.ms * self._factors.get(work.kind, 1.0)

    def learn(self, work: Work, took_ms: float) -> None:
        """It took so long."""
        low, high = _FACTORS
        seen = min(max(took_ms / max(work.ms, 1e-6), low), high)
        factor = self._factors.get(work.kind)
        # The first is all that is known.
        self._factors[work.kind] = seen if factor is None else factor + _STEP * (seen - factor)
