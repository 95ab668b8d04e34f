"""What commands have in common: --version and --json, and mistakes told in one line. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from models import PRODUCT

P = ParamSpec("P")


def command_parser(
    module: str, description: str | None, *, json: bool = True
) -> argparse.ArgumentParser:
    """Of ``python -m MODULE``, with its text as it is written, --version and --json."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=PRODUCT)
    if json:
        parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return parser


def status_of(
    work: Callable[[], int | None],
    *,
    stopped: str = "stopped",
    mistakes: tuple[type[Exception], ...] = (ValueError,),
) -> int:
    """Do it; the exit status: its own or 0, 2 for a mistake of the user's, 130 for Ctrl-C.

    1 where nobody reads what is printed. ``mistakes`` and what the system refuses are told in one
    line; ``stopped`` is said at Ctrl-C.
    """
    try:
        status = work()
        sys.stdout.flush()
    except mistakes as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `... | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return status or 0


def tells_mistakes(main: Callable[P, int]) -> Callable[P, int]:
    """Decorates a ``main`` to end as ``status_of`` says."""

    @wraps(main)
    def told(*arguments: P.args, **named: P.kwargs) -> int:
        return status_of(lambda: main(*arguments, **named))

    return told
