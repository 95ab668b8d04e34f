"""Settings: defaults < configuration file < SHIFTNAS_* environment < command line."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from models.images.header import MAX_PIXELS
from models.space.quantity import parse_flops
from shiftnas_serve.runtimes import RUNTIMES, Computing, check_runtime

DEFAULT_BUNDLE = Path(__file__).resolve().parents[1] / "models" / "zoo" / "imagenet-mobile"
PREFIX = "SHIFTNAS_"
_DEVICES = "; ".join(f"{name}: {', '.join(entry.devices)}" for name, entry in RUNTIMES.items())
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_KEEPING = ", ".join(name for name, entry in RUNTIMES.items() if entry.keeps_engines)


def _parts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _origin(text: str) -> str:
    default = _DEFAULT_PORTS.get(text.partition(":")[0])
    if not _ORIGIN.fullmatch(text) or (default is not None and text.endswith(default)):
        raise ValueError(
            f"{text!r:.80} is not an origin as browsers send it; write each like "
            "https://example.org or http://localhost:3000 (in small letters, without a path or a "
            "usual port), or * for all"
        )
    return text


def _can_be_sent(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or text != text.strip():
        raise ValueError("a key is blank, or has blanks at its ends; give each some text")
    if "," in text:
        raise ValueError("a key has a comma, which stands between keys; choose it without")
    if _CONTROL.search(text):
        raise ValueError(
            "a key has a line break or another control character, which nobody can send; separate "
            "keys by commas"
        )
    return key


T = TypeVar("T", bound=BaseModel)
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Flops = Annotated[
    float, BeforeValidator(lambda value: parse_flops(value) if isinstance(value, str) else value)
]
Keys = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_can_be_sent)], ...], BeforeValidator(_parts)
]


class EngineSettings(BaseModel):
    """What concerns the engine, with HTTP or without (``shiftnas_serve.load``)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    bundle: Path = DEFAULT_BUNDLE
    """folder of the bundle to serve"""
    workers: int = Field(1, ge=1, le=64)
    """threads that run subnets, with one copy of the weights"""
    threads: int = Field(1, ge=1, le=256)
    """threads of the runtime for each of them"""
    runtime: str = "onnxruntime"
    """what runs subnets; auto: the fastest that works here, as the log tells"""
    device: str = Field("cpu", description=f"where subnets run ({_DEVICES})")
    precision: Computing = "fp32"
    """in what subnets compute; bf16: half precision, with --runtime openvino; int8: 8-bit integers,
    of a bundle that holds them (python -m models quantize)"""
    engine_cache: Path | None = Field(
        None,
        description=f"folder in which the runtime ({_KEEPING}) keeps its engines between starts "
        "(default: engines are not kept)",
    )
    default_flops: Annotated[Flops, Field(gt=0)] | None = None
    """budget of requests that name none (default: the largest subnet answers)"""
    max_batch: int = Field(16, ge=1, le=256)
    """largest batch"""
    max_waiting: Count = 128
    """images that are worked on at once; more are refused with 429"""
    max_waiting_bytes: Count = 100_000_000
    """bytes of bodies that are worked on at once; more are refused with 429"""
    max_pixels: Count = MAX_PIXELS
    """larger images are refused with 413; a JPEG may have three times as many pixels, where it can
    be decoded at a fraction of its size"""
    timeout_s: Seconds = 30.0
    """seconds until a request is given up, with 504"""
    stall_s: Seconds = 10.0
    """seconds until an inference that does not come back ends the process"""
    session_bytes: Count = 512_000_000
    """memory for resident subnets (an estimate)"""
    pinned_flops: Annotated[tuple[Flops, ...], BeforeValidator(_parts)] = ()
    """budgets, separated by commas, whose subnets are built first and stay (default: none)"""
    prebuild: bool = True
    """build the subnets of all answers while idle"""

    @model_validator(mode="after")
    def _runtime_can_do_it(self) -> EngineSettings:
        check_runtime(self.runtime, self.device, self.engine_cache, self.precision)
        return self


class Settings(EngineSettings):
    """Everything that can be set. The descriptions are the command line's help."""

    server: Literal["uvicorn", "litserve", "ray"] = "uvicorn"
    """what runs the server"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 and :: can be reached from other machines"""
    port: int = Field(8000, ge=1024, le=65535)
    """port to listen on"""
    processes: int = Field(1, ge=1, le=64)
    """processes on the port, each a whole server"""
    max_body_bytes: Count = 20_000_000
    """longer bodies are refused with 413"""
    api_keys: Keys = ()
    """keys with which to send requests, separated by commas; better set as SHIFTNAS_API_KEYS, where
    other users of the machine cannot see them (default: no key is needed)"""
    admin_keys: Keys = ()
    """keys with which to reload, separated by commas; better set as SHIFTNAS_ADMIN_KEYS (default:
    none, so that nobody can)"""
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_parts)
    ] = ()
    """web pages that may send requests from a browser, separated by commas, like
    https://example.org; * for all (default: none)"""
    page: bool = True
    """a page at / to try the model in a browser"""
    drain_s: float = Field(0.0, ge=0, le=86_400)
    """seconds after SIGTERM in which /readyz is 503 and requests are still taken; with --server
    uvicorn"""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"
    """least severe lines of the log on standard error; info has one a request"""
    log_format: Literal["text", "json"] = "text"
    """form of the lines of the log"""

    @model_validator(mode="after")
    def _all_go_together(self) -> Settings:
        every = {key.get_secret_value() for key in self.api_keys}
        if any(key.get_secret_value() in every for key in self.admin_keys):
            raise ValueError("a key stands in api_keys and in admin_keys; give admins their own")
        if self.max_body_bytes > self.max_waiting_bytes:
            raise ValueError(
                f"max_body_bytes is {self.max_body_bytes:,}, and there is never room for it: set "
                f"max_waiting_bytes, {self.max_waiting_bytes:,}, to as many or more"
            )
        return self


def load_settings(
    command_line: Mapping[str, object],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Merge the layers. Raises ValueError in one line naming the setting and its source."""
    values: dict[str, object] = {} if config is None else _read(config)
    values |= _named(environment)
    values |= {name: value for name, value in command_line.items() if value is not None}
    return checked(Settings, values)


def checked(kind: type[T], values: Mapping[str, object]) -> T:
    """Settings with these values. Raises ValueError in one line naming the setting."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # settings that do not go together
            raise ValueError(message) from None
        name = str(first["loc"][0])
        # what this module refuses says so itself; keys are secret
        own = first["type"] == "value_error" or "_keys" in name
        given = "" if own else f", not {first['input']!r:.60}"
        raise ValueError(f"{name}: {message}{given}") from None


def as_environment(settings: Settings) -> dict[str, str]:
    """What is set, as the variables that a process started later reads."""

    def text(value: object) -> str:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return ",".join(map(text, value)) if isinstance(value, tuple) else str(value)

    every = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {PREFIX + name.upper(): text(one) for name, one in every.items() if one is not None}


def _read(config: Path) -> dict[str, object]:
    def once(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{config}: {twice!r} stands several times; leave one of them")

    try:
        text = config.read_bytes()
        document = msgspec.json.decode(text, type=dict[str, object])
    except OSError as error:
        raise ValueError(f"cannot read {config}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{config} must be a JSON object of settings: {error}") from None
    json.loads(text, object_pairs_hook=once)  # (of those that stand twice it takes the last)
    for name in document:
        _check(name, f"{config}: no setting {name!r}", repr)
    return document


def _named(environment: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or name == "data":  # the trainer's
            continue
        said = f"environment: no setting {variable}"
        linked = "://" in value or "_SERVICE_" in variable or "_PORT_" in variable
        if linked and (name == "port" or name not in Settings.model_fields):
            hint = "Kubernetes sets it for a Service: give the pod enableServiceLinks: false"
            raise ValueError(f"{said}; {hint} (--help lists all)")
        _check(name, said, lambda near: PREFIX + near.upper())
        values[name] = value
    return values


def _check(name: str, said: str, spelt: Callable[[str], str]) -> None:
    if name not in Settings.model_fields:
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {spelt(near[0])}?" if near else "leave it out"
        raise ValueError(f"{said}; {hint} (--help lists all)")
