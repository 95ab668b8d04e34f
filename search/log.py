"""Tried archs and their scores, in a file: a search that is given again goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.engine.log import add_line, json_lines


class TriedArchs:
    """Scores archs, each once, and adds a line to a file for each.

    A search draws the same archs for the same seed and the same scores. So one that is given again
    asks for the same ones, finds them here, and goes on where it was stopped.

    scores: of all archs in the file. asked: archs that this search has asked for.

    score: held-out accuracy of an arch, in 0..1. settings: what the scores depend on; a file of
    others, or with a line that is not one of these, is refused with ValueError. A last line that
    was cut off is left out.
    """

    def __init__(
        self,
        space: SearchSpace,
        score: Callable[[Arch], float],
        file: Path | None,
        settings: Mapping[str, object],
    ) -> None:
        self._space, self._score, self._file = space, score, file
        self.scores: dict[Arch, float] = {}
        self.asked: set[Arch] = set()
        if file is None:
            return
        first = json.dumps(dict(settings)) + "\n"
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        if first.startswith(text):  # a new file, or one that was cut off as it began
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(first, encoding="utf-8")
            return
        if not text.startswith(first):
            raise ValueError(
                f"{file} is of another search ({text.partition(chr(10))[0]:.200}); name another "
                "--out"
            )
        for number, row, _ in islice(json_lines(file), 1, None):
            try:
                self.scores[space.arch_from_json(row["arch"])] = float(row["accuracy"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}, line {number}, is not an arch that was tried ({error!r}); name "
                    "another --out"
                ) from None

    def __call__(self, arch: Arch) -> float:
        """Held-out accuracy."""
        self.asked.add(arch)
        if arch not in self.scores:
            self.scores[arch] = self._score(arch)
            row = {
                "flops": self._space.flops(arch),
                "accuracy": self.scores[arch],
                "arch": self._space.arch_to_json(arch),
            }
            if self._file is not None:
                add_line(self._file, row)
        return self.scores[arch]
