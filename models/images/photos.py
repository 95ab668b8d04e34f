"""Photos: images of a folder without labels, decoded once at every resolution. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.images.files import SUFFIXES, is_other_image, visible_files
from models.images.header import ImageError
from models.images.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos as subnets read them.

    pixels: resolution -> uint8 (photos, side, side, 3). broken: files that could not be decoded,
    each with the reason.
    """

    preprocess: Preprocess
    pixels: Mapping[int, np.ndarray]
    broken: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.pixels.values())))

    def batch(self, rows: np.ndarray | slice, resolution: int) -> np.ndarray:
        """Some of them, normalized: float32 (rows, 3, resolution, resolution)."""
        return self.preprocess.normalize(self.pixels[resolution][rows])


def find_photos(folder: Path, on_left_out: Callable[[str], None] = lambda _: None) -> list[Path]:
    """JPEG, PNG and WebP files in a folder, however deep, by name; hidden ones are left out.

    ``on_left_out`` hears in one line of images in other formats, if there are any. Raises
    ValueError if none are found.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one with JPEG, PNG or WebP images in it")
    names, _ = visible_files(folder, SUFFIXES)
    found = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    rest = (Path(name).suffix.lower() for name in names if not name.lower().endswith(SUFFIXES))
    others = [suffix for suffix in rest if is_other_image(suffix)]
    if others:
        endings = ", ".join(sorted(set(others)))
        on_left_out(
            f"{folder}: {len(others):,} images are left out ({endings}); convert them first"
        )
    if not found:
        raise ValueError(f"{folder} holds no images; give a folder with JPEG, PNG or WebP files")
    return sorted(found)


def read_photos(
    files: Sequence[Path],
    preprocess: Preprocess,
    resolutions: Iterable[int],
    *,
    at_most: int,
    least: int,
    seed: int = 0,
    on_broken: Callable[[str], None] = lambda _: None,
) -> Photos:
    """Decode ``at_most`` of some files, chosen by ``seed``, as the server decodes what it is sent.

    ``on_broken`` hears of each file that cannot be decoded; another takes its place. No more than
    four times ``at_most`` are tried. Raises ValueError if fewer than ``least`` can be decoded.
    """
    sides = sorted(resolutions)
    pixels: dict[int, list[np.ndarray]] = {side: [] for side in sides}
    broken: list[str] = []
    count = 0
    tried = np.random.default_rng(seed).permutation(len(files))[: 4 * at_most]
    for index in tried:
        try:
            image = preprocess.decode(files[index].read_bytes(), sides[-1])
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            broken.append(f"{files[index]}: {reason}")
            on_broken(broken[-1])
            continue
        for side in sides:
            pixels[side].append(preprocess.pixels(image, side))
        count += 1
        if count == at_most:
            break
    if count < least:
        raise ValueError(
            f"{count} of the {len(tried)} images that were tried could be decoded; "
            f"at least {least} are needed"
        )
    return Photos(
        preprocess, {side: np.stack(arrays) for side, arrays in pixels.items()}, (*broken,)
    )
