"""What holds for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import trainer.finish
import trainer.report.plots
import trainer.run
from tests.bundles import template_of
from trainer.data import run_data
from trainer.data.reading import load_splits
from trainer.data.splits import Splits
from trainer.engine.state import TrainingState

SHORT = [
    "batch_size=64",
    "held_out_share=0.75",
    "generator.pretrain_steps=5",
    "generator.masked_every=2",
    "evaluate_every=0",
    "answer_budgets=4",
    "evaluation_budgets=2",
    "calibration_batches=1",
    "shift_every=3",
    "warm_up_share=0",
    "threads=1",
]


def settings(*more: str) -> list[str]:
    """Arguments for a short run; ``more`` as after --set."""
    return [part for setting in (*SHORT, *more) for part in ("--set", setting)]


@pytest.fixture(scope="session", autouse=True)
def _digits() -> Iterator[None]:
    """Read and decoded once for the same settings: half of the time that a short run takes."""
    digits = cache(load_splits)

    def load(source: str, **settings) -> Splits:
        return (digits if source == "digits" else load_splits)(source, **settings)

    with patch.object(run_data, "load_splits", load):
        yield


@pytest.fixture(scope="session", autouse=True)
def _exported_once() -> Iterator[None]:
    """A graph is exported once for all bundles of a space, which takes seconds each time."""
    with patch.object(trainer.finish, "export_template", lambda space: template_of(space.name)):
        yield


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's end without what takes seconds and is tested in ``report`` and ``test_run``."""
    monkeypatch.setattr(trainer.report.plots, "plotted", lambda *_: [])


@pytest.fixture(scope="session")
def one_epoch(_digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that lacks nothing but its end; to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    with patch.object(trainer.run, "finish", lambda *_: {}):
        assert trainer.run.main([*settings("epochs=1"), "--out", str(folder)]) == 0
    return folder


def grown(state: TrainingState) -> TrainingState:
    """With residual branches that do something: they start as nothing."""
    with torch.no_grad():
        for parameter in state.net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return state
