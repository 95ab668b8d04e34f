"""Timing subnets on a machine that does other things too. No torch.

A few subnets at a time are kept ready and called in turn, so that a slow second hits all of them
alike; what is left over of such seconds is taken out round by round. Three subnets are in every
such group, and bring all groups to one level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.bundle.folder import Bundle
from models.onnx.graph import cut_graph
from models.onnx.ort import onnxruntime, session_options
from models.space.arch import Arch
from models.space.weights import fold_norms, slice_weights

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Device -> what ONNX Runtime calls it."""


@dataclass(frozen=True)
class Setup:
    """What subnets are timed on: ``batch`` images a call, ``threads`` of ONNX Runtime."""

    device: str = "cpu"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured here."""
        if self.device not in PROVIDERS:
            raise ValueError(f"--device: {self.device!r} is not one of: {', '.join(PROVIDERS)}")
        if min(self.batch, self.threads) < 1:
            raise ValueError("--batch and --threads are at least 1")
        if PROVIDERS[self.device] not in onnxruntime.get_available_providers():
            raise ValueError(
                f"--device {self.device}: this build of ONNX Runtime has no "
                f"{PROVIDERS[self.device]}; install onnxruntime-gpu, or measure with --device cpu"
            )


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, and its interval (95 %)."""

    ms: float
    low_ms: float
    high_ms: float


def subnet_call(bundle: Bundle, arch: Arch, setup: Setup) -> Callable[[], object]:
    """A call of a subnet on noise, with the options of the server.

    The weights are the bundle's. BatchNorm's statistics, which not every arch has, are left out: a
    multiplication takes as long with any number.
    """
    space = bundle.space
    weights = slice_weights(space, arch, bundle.weights)
    plain = {}
    for norm in space.norms:
        if f"{norm.name}.weight" in weights:
            channels = norm.size(arch)
            plain[norm.name] = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    graph = cut_graph(bundle.template, space, arch, fold_norms(space, weights, plain))
    options = session_options(setup.threads, setup.device, convolutional=bool(space.norms))
    if setup.device == "cpu" and not space.norms:
        # as the server does: weights are shared, so none is packed ahead
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=[PROVIDERS[setup.device]]
    )
    if session.get_providers()[0] != PROVIDERS[setup.device]:
        raise ValueError(f"--device {setup.device}: its libraries do not load; measure with cpu")
    side = space.resolution(arch)
    shape = (setup.batch, 3, side, side)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return lambda: session.run(["logits"], {"images": images})


def time_in_turn(
    calls: Sequence[Callable[[], object]], rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """Milliseconds (rounds, calls): each called once a round in random order, after two rounds."""
    seconds = np.zeros((rounds + 2, len(calls)))
    for row in seconds:
        for index in rng.permutation(len(calls)):
            start = time.perf_counter()
            calls[index]()
            row[index] = time.perf_counter() - start
    return 1000 * seconds[2:]


def level(ms: np.ndarray) -> list[Timing]:
    """The timing of each column of (rounds, calls), when a round is as fast as rounds are.

    What made a whole round slower is taken out first (medians of logarithms, by turns over rounds
    and calls). The interval is that of a median, from its quartiles.
    """
    logs = np.log(ms)
    middle = np.median(logs, axis=0)
    for _ in range(4):
        pace = np.median(logs - middle, axis=1, keepdims=True)
        middle = np.median(logs - pace, axis=0)
    middle = middle + np.median(pace)
    low, high = np.percentile(logs - pace + np.median(pace), (25, 75), axis=0)
    half = 1.57 * (high - low) / np.sqrt(len(ms))
    every = zip(np.exp(middle), np.exp(middle - half), np.exp(middle + half), strict=True)
    return [Timing(float(m), float(lo), float(hi)) for m, lo, hi in every]
