"""The server's command line: ``python -m shiftnas_serve --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from models.command import command_parser, tells_mistakes
from shiftnas_serve.hosts import serve
from shiftnas_serve.runtimes import AUTO, RUNTIMES
from shiftnas_serve.settings import PREFIX, Settings, load_settings

_DESCRIPTION = f"""\
Serve a bundle: POST an image to /classify with the header FLOPs-Budget, and
the subnet that fits the budget answers.

  python -m shiftnas_serve                      the bundle in this repository
  python -m shiftnas_serve --bundle runs/digits/bundle --port 9000
  curl -T docs/images/coffee.jpg -H 'FLOPs-Budget: 100M' localhost:8000/classify

Every setting can also stand in a JSON file (--config) or in the environment
({PREFIX}PORT=9000). The command line wins, then the environment."""


def parser() -> argparse.ArgumentParser:
    """The options are the fields of ``Settings``, with their descriptions and defaults."""
    made = command_parser("shiftnas_serve", _DESCRIPTION, json=False)
    made.usage = "python -m shiftnas_serve [--SETTING VALUE] ..."
    made.add_argument("--config", type=Path, help="JSON file of settings")
    for name, field in Settings.model_fields.items():
        allowed = _allowed(name, field.annotation)
        shown = str(field.default).lower() if field.annotation is bool else field.default
        default = "" if field.default in (None, ()) else f" (default: {shown})"
        made.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar=f"{{{','.join(allowed)}}}" if allowed else name.rpartition("_")[2].upper(),
            help=f"{field.description}{default}".replace("%", "%%"),
        )
        if field.annotation is bool:
            made.add_argument(
                f"--no-{name.replace('_', '-')}",
                dest=name,
                action="store_const",
                const="false",
                help=f"the same as --{name} false",
            )
    return made


def _allowed(name: str, annotation: object) -> Sequence[str]:
    """The values a setting can have, where they can be listed."""
    devices = dict.fromkeys(one for entry in RUNTIMES.values() for one in entry.devices)
    listed = {"runtime": (*RUNTIMES, AUTO), "device": tuple(devices)}
    if annotation is bool:
        return "true", "false"
    return listed.get(name, get_args(annotation) if get_origin(annotation) is Literal else ())


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped in order, 2 a mistake of the user's."""
    options = vars(parser().parse_args(arguments))
    config = options.pop("config")
    return serve(load_settings(options, config=config))
