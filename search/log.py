"""Tried archs and their scores, in a file: a search that is given again goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from models.space.arch import Arch
from models.space.search_space import SearchSpace


class TriedArchs:
    """Scores archs, each once, and adds a line to a file for each.

    A search draws the same archs for the same seed and the same scores. So one that is given again
    asks for the same ones, finds them here, and goes on where it was stopped.

    score: held-out accuracy of an arch, in 0..1. settings: what the scores depend on; a file of
    others is refused with ValueError.
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
        if file is None:
            return
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(dict(settings)) + "\n", encoding="utf-8")
            return
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        if json.loads(head) != json.loads(json.dumps(dict(settings))):
            raise ValueError(f"{file} is of another search ({head}); name another --out")
        for line in lines:
            row = json.loads(line)
            self.scores[space.arch_from_json(row["arch"])] = row["accuracy"]

    def __call__(self, arch: Arch) -> float:
        """Held-out accuracy."""
        if arch not in self.scores:
            self.scores[arch] = self._score(arch)
            row = {
                "flops": self._space.flops(arch),
                "accuracy": self.scores[arch],
                "arch": self._space.arch_to_json(arch),
            }
            if self._file is not None:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        return self.scores[arch]
