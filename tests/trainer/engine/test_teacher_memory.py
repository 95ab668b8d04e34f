"""What a teacher said is kept: how often it is asked, what is learnt, and that nothing is lost."""

import os
import signal

import pytest
import torch

import trainer.dry_run.measure
import trainer.loop
import trainer.run
from tests.bundles import make_bundle
from tests.trainer.conftest import settings
from tests.trainer.test_resume import STEPS_PER_EPOCH, assert_same
from trainer.dry_run.measure import dry_run
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.teacher_memory import TeacherMemory
from trainer.job import check_world_size
from trainer.recipes.config import get_recipe, with_settings
from trainer.run import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("teacher") / "bundle", label="")


def test_each_image_is_asked_about_so_often_and_then_taught_the_mean():
    torch.manual_seed(0)
    memory, asked = TeacherMemory("any", 5, 3, views=2), []

    def teacher(images):
        asked.append(len(images))
        return images[:, :, 0, 0]

    views = [torch.randn(3, 3, 1, 1) for _ in range(3)]
    rows = torch.tensor([4, 0, 2])
    first = memory.answer(rows, views[0], teacher)
    assert torch.equal(first, views[0][:, :, 0, 0])
    mean = (views[0] + views[1])[:, :, 0, 0] / 2
    assert torch.allclose(memory.answer(rows, views[1], teacher), mean)
    assert torch.allclose(memory.answer(rows, views[2], teacher), mean)
    assert asked == [3, 3]
    # of a batch only those that are new; two copies of an image are two views of it
    mixed = memory.answer(torch.tensor([2, 1, 1]), views[2], teacher)
    assert asked == [3, 3, 2]
    assert torch.allclose(mixed[0], mean[2])
    assert torch.allclose(mixed[1], views[2][1:, :, 0, 0].mean(0))
    assert torch.equal(mixed[1], mixed[2])


def test_answers_of_another_teacher_are_not_taken():
    memory = TeacherMemory("one", 4, 2, views=1)
    rows, images = torch.arange(4), torch.zeros(4, 3, 1, 1)
    memory.answer(rows, images, lambda x: torch.ones(len(x), 2))
    for name, said in (("one", 1.0), ("two", 7.0)):
        other = TeacherMemory(name, 4, 2, views=1)
        other.load_state(memory.state())
        answer = other.answer(rows, images, lambda x: torch.full((len(x), 2), 7.0))
        assert torch.equal(answer, torch.full((4, 2), said))


def test_a_run_asks_in_its_first_epochs_alone_and_resumes_bit_for_bit(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    chosen = settings(
        "epochs=6", "sampler=uniform-budget", "accumulate=2", f"distillation.teacher={bundle}",
        "distillation.weight=0.5", "distillation.views=2",
    )  # fmt: skip
    asked, steps, stops = [], [], ()
    real_answer, real_step = TeacherMemory.answer, trainer.loop.train_step

    def answer(self, rows, images, teacher):
        def counted(images):
            asked.append((len(steps), len(images)))
            return teacher(images)

        return real_answer(self, rows, images, counted)

    def step(*arguments, **named):
        steps.append(1)
        if len(steps) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments, **named)

    monkeypatch.setattr(TeacherMemory, "answer", answer)
    monkeypatch.setattr(trainer.loop, "train_step", step)
    assert main([*chosen, "--out", str(tmp_path / "whole")]) == 0
    kept = load_checkpoint(tmp_path / "whole")
    early = [count for step, count in asked if step <= 2 * STEPS_PER_EPOCH]
    assert sum(early) == 2 * 64 * STEPS_PER_EPOCH
    # an epoch leaves out what fills no batch, so that a few are asked about later
    times = kept["memory"]["asked"]
    assert int(times.max()) == 2
    assert sum(count for _, count in asked) == int(times.sum())

    steps.clear()
    stops = (2 * STEPS_PER_EPOCH - 2,)
    assert main([*chosen, "--out", str(tmp_path / "parts")]) == 128 + signal.SIGTERM
    assert main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same(kept, load_checkpoint(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["distillation.views=2"], "distillation.teacher is empty"),
        (["distillation.views=2", "distillation.teacher=largest"], "learns with the others"),
        (
            ["distillation.views=2", "distillation.teacher=x", "augment.mixup=0.8"],
            "mixup or cutmix make new ones",
        ),
    ],
)
def test_answers_that_would_not_be_of_the_same_image_are_not_kept(changes, said):
    with pytest.raises(ValueError, match=said):
        with_settings(get_recipe("digits"), changes)


def test_answers_are_kept_in_one_process():
    recipe = with_settings(get_recipe("digits"), ["distillation.teacher=x", "distillation.views=1"])
    check_world_size(recipe, 1)
    with pytest.raises(ValueError, match="here are 2: set it to 0"):
        check_world_size(recipe, 2)


def test_a_dry_run_counts_a_teacher_in_the_epochs_that_ask_it(bundle, monkeypatch):
    """Where the teacher takes nearly all of a step, ten epochs of views cost a tenth of it."""
    asked = with_settings(
        get_recipe("digits"), [f"distillation.teacher={bundle}", "epochs=10", "threads=1"]
    )
    real = trainer.dry_run.measure.measured

    def slow(state, work):
        result, seconds, more = real(state, work)
        return result, 10.0 if work.__name__ == "<lambda>" else seconds + 10.0, more

    monkeypatch.setattr(trainer.dry_run.measure, "measured", slow)
    always = dry_run(asked).epoch_s
    once = dry_run(with_settings(asked, ["distillation.views=1"])).epoch_s
    assert 0.05 < once / always < 0.3
