"""Classify many photos without a server: ``python -m shiftnas_serve.classify --help``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

from models.command import command_parser, status_of
from shiftnas_serve.batch.photos import Photo, sources
from shiftnas_serve.batch.tables import AbstractTable, Row, open_table
from shiftnas_serve.budgets.asked import parse_budgets
from shiftnas_serve.library import WEDGED, Engine
from shiftnas_serve.log import configure_log
from shiftnas_serve.problem import Problem
from shiftnas_serve.runtimes import Computing
from shiftnas_serve.settings import DEFAULT_BUNDLE, EngineSettings, checked

_DESCRIPTION = """\
Classify photos without a server: files, folders with all that is below them,
parquet files.

  python -m shiftnas_serve.classify photos/ --flops 100M --csv labels.csv
  python -m shiftnas_serve.classify photos.parquet --parquet labels/
  python -m shiftnas_serve.classify cat.jpg dog.jpg

One row a photo: what it is, how sure that is, which subnet said so. A photo
that cannot be read has the reason in the column error, and the end names some
of them. Started again with the same words, it goes on where it was stopped.
docs/batches.md spreads the work over many machines."""
_AT_ONCE = 64
_SAY_S = 0.5
_NAMED = 10


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_parser("shiftnas_serve.classify", _DESCRIPTION, json=False)
    made.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO|FOLDER",
        help="photos, folders of them, or parquet files with a column of images",
    )
    made.add_argument("--flops", help="the budget of each photo: 100M, 1.3G (default: none)")
    made.add_argument(
        "--confidence",
        help="like 0.8: a small subnet answers, and a larger one where the small one is less sure",
    )
    out = made.add_mutually_exclusive_group()
    out.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a table to it (default: standard output)"
    )
    out.add_argument("--parquet", type=Path, metavar="FOLDER", help="write parquet files into it")
    made.add_argument(
        "--column", default="image", help="the images' column in parquet files (default: image)"
    )
    made.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, help="a bundle's folder")
    made.add_argument(
        "--workers", type=int, help="threads that run subnets (default: one a core, 64 at most)"
    )
    made.add_argument("--runtime", default="onnxruntime", help="what runs subnets")
    made.add_argument("--device", default="cpu", help="where subnets run")
    made.add_argument(
        "--precision",
        choices=get_args(Computing),
        default="fp32",
        help="bf16: in half precision; int8: in 8 bits",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 photos of the table could not be read; 2 a user's mistake; 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    configure_log("warning", "text")
    return status_of(
        lambda: 1 if run(options) else 0,
        stopped="stopped; the same command goes on from here",
        mistakes=(ValueError, Problem),
    )


def run(options: argparse.Namespace) -> int:
    """How many photos of the table could not be read.

    Raises ValueError, Problem for a user's mistake.
    """
    texts = {"flops": options.flops, "confidence": options.confidence}
    asked = parse_budgets(texts)
    budget = ", ".join(
        filter(None, [options.flops, options.confidence and f"confidence {options.confidence}"])
    )
    found = sources(options.photos, options.column)
    settings = checked(
        EngineSettings,
        {
            "bundle": options.bundle,
            "workers": options.workers if options.workers is not None else min(cores(), 64),
            "runtime": options.runtime,
            "device": options.device,
            "precision": options.precision,
            "prebuild": False,
            # nobody waits for an answer, and no more is worked on than is asked for
            "timeout_s": 86_400,
            "max_waiting_bytes": 1 << 40,
        },
    )
    with Engine(settings, wedged=_end) as engine:
        engine.model.planner.plan(asked, 0.0)  # or says what cannot be
        model = engine.model.name
        name = f"{model.name}:{model.version}"
        if model.precision != "fp32":
            name += f":{model.precision}"
        with open_table(options.csv, options.parquet, name, budget or "none") as table:
            every = (photo for source in found for photo in source.photos())
            left = (photo for photo in every if photo.name not in table.done)
            say = partial(row_of, engine, name, budget or "none", texts)
            total = sum(source.count for source in found)
            before = sum(name in table.done for source in found for name in source.names())
            # Closed before the engine: its threads wait for answers.
            with closing(in_order(say, left)) as rows:
                return _write(rows, table, before, total)


def _write(rows: Iterable[Row], table: AbstractTable, before: int, total: int) -> int:
    """Write the rows; answers how many photos of the table are broken.

    before: photos of this run that the table has already, of ``total``.
    """
    broken: list[Row] = []
    started_s = said_s = time.monotonic()
    count, shows = 0, sys.stderr.isatty()
    earlier = sum(error is not None for error in table.done.values())
    if table.done:
        told = f"; broken rows of the table: {earlier:,}" if earlier else ""
        print(f"{before:,} of {total:,} are done already{told}", file=sys.stderr)
    for row in rows:
        table.write(row)
        count += 1
        if row.error is not None:
            broken.append(row)
        now_s = time.monotonic()
        if shows and now_s - said_s > _SAY_S:
            said_s = now_s
            rate = count / (now_s - started_s)
            line = f"{before + count:,} of {total:,}, {rate:,.0f} a second, {len(broken):,} broken"
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
    if shows and said_s > started_s:
        print(file=sys.stderr)
    for row in broken[:_NAMED]:
        print(f"broken: {row.photo}: {row.error}", file=sys.stderr)
    if len(broken) > _NAMED:
        print(f"and {len(broken) - _NAMED:,} more; see the column error", file=sys.stderr)
    seconds = time.monotonic() - started_s
    print(f"{count:,} photos in {seconds:.1f} s, {len(broken):,} broken", file=sys.stderr)
    return earlier + len(broken)


def in_order(
    say: partial[Row], photos: Iterable[Photo], at_once: int = _AT_ONCE
) -> Generator[Row, None, None]:
    """A row for each photo, in their order; some of them are worked on at once."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="photo") as threads:
        begun: deque[Future[Row]] = deque()
        try:
            for photo in photos:
                begun.append(threads.submit(say, photo))
                if len(begun) >= 2 * at_once:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for one in begun:
                one.cancel()


def row_of(
    engine: Engine, model: str, budget: str, texts: Mapping[str, str | None], photo: Photo
) -> Row:
    """What the engine says of a photo, or why it says nothing."""
    row = partial(Row, photo.name, model, budget)
    if photo.source is None:
        return row(error="there is no image in this row")
    try:
        result = engine.classify(photo.source, **texts, top_k=1)
    # Whatever it is, it concerns this photo: the others must not wait for somebody to look at it.
    except Exception as error:  # noqa: BLE001
        told = str(error) if isinstance(error, Problem | ValueError) else repr(error)
        return row(error=told.encode("utf-8", "backslashreplace").decode())
    (best,) = result.predictions
    subnet = result.subnet
    said = best.label, best.index, best.probability
    return row(*said, subnet.id, subnet.flops, result.spent_flops)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _end(reason: str) -> None:
    print(f"error: {reason}; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(WEDGED)


if __name__ == "__main__":
    sys.exit(main())
