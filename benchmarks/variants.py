"""Does a setting help? Runs with and without it at equal training time, over several seeds.

    python -m benchmarks.variants --out runs/ema --variant ema=0 --variant ema=0.99
    python -m benchmarks.variants --out runs/v --variant plain --variant "two ema=0.9 drop_path=0.1"

A variant is settings as for ``trainer.run --set``, after a name of its own if it has blanks. The
first trains for the recipe's epochs, every other for as many as cost the same processor time.
So ``epochs`` is a setting of all (``--set``), not of a variant. A folder goes on with its own
variants, recipe and data alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.parts.comparison import build_parser, compare
from models.command import tells_mistakes


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = build_parser("variants", __doc__)
    parser.add_argument(
        "--variant", action="append", required=True, metavar="[NAME] KEY=VALUE ...", dest="variants"
    )
    options = parser.parse_args(arguments)
    compare("variants", options, named(options.variants))
    return 0


def named(texts: Sequence[str]) -> dict[str, list[str]]:
    """Settings by the name of their variant.

    Raises ValueError for two of one name, and for words that are not settings.
    """
    variants: dict[str, list[str]] = {}
    for text in texts:
        words = text.split()
        name = next(iter(words), "")
        if not name or "/" in name:
            raise ValueError(f"a variant is [NAME] KEY=VALUE ..., not {text!r}")
        if name in variants:
            raise ValueError(f"two variants are called {name!r}; give each a name of its own")
        settings = words if "=" in name else words[1:]
        for word in settings:
            if "=" not in word:
                raise ValueError(f"variant {text!r}: {word!r} is not a setting; write KEY=VALUE")
        variants[name] = settings
    return variants


if __name__ == "__main__":
    sys.exit(main())
