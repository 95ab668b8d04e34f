"""A dry run tells what training would do, from the same parts, and leaves nothing behind."""

import json
import math

import pytest
import torch
from PIL import Image

import trainer.engine.horizon
import trainer.run
from models.spaces import SPACES, get_space
from tests.bundles import make_bundle
from trainer.dry_run.activations import ActivationBytes
from trainer.dry_run.measure import dry_run
from trainer.dry_run.plan import KNOWN_DATA, plan_of
from trainer.dry_run.report import facts_of
from trainer.engine.average import WeightAverage
from trainer.engine.log import read_log
from trainer.recipes import RECIPES
from trainer.recipes.config import get_recipe, with_settings
from trainer.recipes.settings import Distillation
from trainer.run import main
from trainer.samplers import SAMPLERS, build_sampler

LARGE = ("vit-", "bignas", "attentivenas")
TAKES_SECONDS = [name for name in (*SPACES, *RECIPES) if name.startswith(LARGE)]


def test_a_plan_counts_what_training_does(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    settings = ["epochs=3", "shift_every=4", "warm_up_share=0.3", "generator.masked_every=3"]
    settings += ["batch_size=256"]
    settings += ["generator.pretrain_steps=0", "threads=1", "evaluate_every=100"]
    plan = plan_of(with_settings(get_recipe("digits"), settings))
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    records = read_log(tmp_path / "log.jsonl")
    start = next(record for record in records if record["kind"] == "start")
    shifts = [r["loss_drops"] for r in records if r["kind"] == "groups"]
    assert plan.steps == start["total_steps"]
    assert plan.updates == sum(drops is not None for drops in shifts) > 0
    assert plan_of(with_settings(get_recipe("digits"), ["sampler=uniform-budget"])).updates == 0
    assert plan.masked_steps == len(range(0, plan.steps, 3))
    assert plan.steps_per_epoch * 256 <= plan.train_images < (plan.steps_per_epoch + 1) * 256


def test_a_dry_run_prints_a_table_and_one_line_of_json_and_writes_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "threads=1", "--set", "generator.masked_every=1"]
    assert main(["--dry-run", "--dry-run-batch", "4", *settings, "--json"]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    told = json.loads(line)
    space = get_space("nano-cnn")
    assert (told["min_flops"], told["max_flops"]) == (space.min_flops, space.max_flops)
    assert told["groups"][-1] == space.max_flops
    assert len(told["groups"]) == 6
    assert told["images_at_once"] == 4
    memory = told["batch_memory"]
    assert memory["parameters_bytes"] == 4 * space.params(space.largest)
    assert memory["optimizer_bytes"] == memory["parameters_bytes"]  # momentum
    assert memory["total_bytes"] == sum(memory.values()) - memory["total_bytes"]
    assert told["peak_bytes"] > memory["parameters_bytes"]
    assert told["total_s"] == pytest.approx(60 * told["epoch_s"])
    assert told["training_flops"] == 3 * space.max_flops * 64 * told["steps"]
    assert "6 groups" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "space",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in TAKES_SECONDS else [])
        for name in SPACES
        if name not in {get_recipe(recipe).space for recipe in RECIPES}
    ],
)
def test_steps_of_every_space_that_no_recipe_has(space):
    """Masked and sliced, those too that leave nothing to decide at some places."""
    built = get_space(space)
    side = built.resolution(built.largest)
    settings = ["threads=1", f"space={space}", f"resolution={side}", "data=imagenet"]
    trial = dry_run(with_settings(get_recipe("digits"), settings), 2).trial
    assert all(math.isfinite(loss) for loss in trial.losses.values())


def test_activations_grow_with_the_batch_and_not_with_the_trial():
    recipe = with_settings(get_recipe("digits"), ["threads=1"])
    small, large = dry_run(recipe, 4), dry_run(recipe, 16)
    for one, other in (
        (small.trial.costs["masked"], large.trial.costs["masked"]),
        (small.trial.costs["update"], large.trial.costs["update"]),
    ):
        assert other.image_bytes == pytest.approx(one.image_bytes, rel=0.05)
        assert other.fixed_bytes == pytest.approx(one.fixed_bytes, rel=0.05)
    doubled = dry_run(recipe.replace(batch_size=128), 16)
    assert doubled.memory["activations"] == pytest.approx(2 * large.memory["activations"], rel=0.01)


def test_the_steps_that_are_tried_are_those_of_training(monkeypatch):
    averaged = []
    monkeypatch.setattr(WeightAverage, "update", lambda self, net: averaged.append(net))
    result = dry_run(with_settings(get_recipe("digits"), ["threads=1", "ema=0.9"]), 2)
    assert len(averaged) == 3  # a small masked step, a masked and a sliced one
    assert result.memory["average"] == result.memory["parameters"]


def test_cheaper_steps_cost_fewer_training_flops():
    recipe = get_recipe("digits")
    every, eighth = (
        dry_run(with_settings(recipe, [f"generator.masked_every={m}"]), 4).training_flops
        for m in (1, 8)
    )
    middle = sum(get_space("nano-cnn").flops(a) for a in _ends("nano-cnn")) / 2
    largest = get_space("nano-cnn").max_flops
    assert eighth / every == pytest.approx(1 / 8 + 7 / 8 * middle / largest, rel=0.03)


def _ends(name):
    space = get_space(name)
    return space.smallest, space.largest


def test_the_time_of_a_run_is_that_of_its_compute_or_of_its_clock():
    recipe = with_settings(get_recipe("digits"), ["threads=1", "compute=1e12"])
    result = dry_run(recipe, 2)
    assert result.plan.steps != recipe.epochs * result.plan.steps_per_epoch
    epochs = result.plan.steps / result.plan.steps_per_epoch
    assert facts_of(result)["total_s"] == pytest.approx(epochs * result.epoch_s)
    assert dry_run(recipe.replace(compute=0.0, training_hours=0.5), 2).total_s == 1800


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_tried(sampler, monkeypatch):
    """Steps and updates, where a space leaves nothing to decide at some places."""
    monkeypatch.setattr(trainer.engine.horizon, "DRAWS", 20)  # nobody looks at the mean here
    space = get_space("cifar-cnn")
    archs = [space.arch_to_json(space.smallest)] if sampler == "fixed-arch" else []
    settings = [f"sampler={sampler}", f"sampler_options.archs={json.dumps(archs)}"]
    settings += ["threads=1", "space=cifar-cnn", "resolution=32", "data=cifar10"]
    result = dry_run(with_settings(get_recipe("digits"), settings), 2)
    assert all(map(math.isfinite, result.trial.losses.values()))
    built = build_sampler(sampler, space, result.recipe.sampler_options)
    assert ("update" in result.trial.costs) == built.learns


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry-run-batch", "1"], "at least 2"),
        (["--data", "nowhere/at/all"], "does not exist"),
        (["--set", "sampler=shfit"], "did you mean 'shift'"),
        (["--set", "space=nano-cn"], "did you mean 'nano-cnn'"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert main(["--dry-run", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_activations_are_counted_once_and_freed():
    layer = torch.nn.Linear(10, 20)
    images = torch.randn(8, 10)
    with ActivationBytes(layer.parameters()) as kept:
        for _ in range(3):
            hidden = layer(images)
            # the input, and a result that two functions save
            (hidden.exp() * hidden.exp().detach()).sum().backward()
            del hidden
    assert kept.held == 0
    assert kept.peak == 4 * (8 * 10 + 2 * 8 * 20)


PUBLISHED = {  # smallest and largest, GFLOPs; groups
    "vit-tiny": (1.258, 2.541, 13),
    "vit-small": (3.065, 7.684, 46),
    "vit-base": (8.788, 16.538, 77),
    "bignas": (0.2067, 1.843, 33),
    "attentivenas": (0.20339, 1.939, 35),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_recipes_say_what_the_paper_says(name):
    recipe, plan = get_recipe(name), plan_of(get_recipe(name))
    low, high, groups = PUBLISHED[name]
    space = get_space(recipe.space)
    assert space.min_flops / 1e9 == pytest.approx(low, rel=1e-3)
    assert space.max_flops / 1e9 == pytest.approx(high, rel=1e-3)
    step = 0.1 if name.startswith("vit") else 0.05
    assert (high - low) / groups == pytest.approx(step, rel=0.015)
    assert recipe.sampler_options.groups == groups
    assert recipe.resolution == space.resolution(space.largest)
    assert (recipe.epochs, recipe.batch_size, recipe.shift_every) == (500, 1024, 100)
    assert (plan.train_images, plan.held_out_images) == (1_231_167, 50_000)
    assert plan.warm_up_steps == 50 * plan.steps_per_epoch
    assert plan.masked_steps == plan.steps == 500 * 1202
    expected = ("adamw", 1e-3, 0.05) if name.startswith("vit") else ("sgd", 0.5, 1e-5)
    options = recipe.optimizer
    assert (options.name, options.learning_rate, options.weight_decay) == expected


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in TAKES_SECONDS else [])
        for name in RECIPES
    ],
)
def test_every_recipe_takes_its_steps(name, monkeypatch):
    """With all its own settings but for a teacher of other classes, its data being there or not."""
    recipe = get_recipe(name)
    if recipe.data not in ("digits", *KNOWN_DATA):
        monkeypatch.setitem(KNOWN_DATA, recipe.data, (1437, 10))
        learned = recipe.distillation.replace(teacher="largest")
        recipe = recipe.replace(distillation=learned)
    result = dry_run(recipe, 2)
    assert result.groups[-1] == result.space.max_flops
    taught = recipe.distillation
    share = taught.weight if taught.teacher else 0.0
    for loss in result.trial.losses.values():
        # an untrained net knows nothing of the classes, whoever names them
        expected = math.log(result.space.num_classes) * (1 - share + share * taught.temperature**2)
        assert loss == pytest.approx(expected, rel=0.15)
    assert min(cost.seconds for cost in result.trial.costs.values()) > 0
    masked, sliced = (result.trial.costs[kind].bytes_of(2) for kind in ("masked", "sliced"))
    assert masked > sliced > 0 or recipe.sampler_options.archs


def test_a_teacher_is_tried_on_the_classes_of_the_data(tmp_path):
    teacher = make_bundle("nano-cnn", tmp_path / "teacher")
    for data, classes in (("few", 3), ("data", 10)):
        for name in (f"class {number}" for number in range(classes)):
            (tmp_path / data / name).mkdir(parents=True)
            for number in range(60 // classes):
                Image.new("RGB", (16, 16)).save(tmp_path / data / name / f"{number}.png")
    recipe = get_recipe("digits").replace(
        data=str(tmp_path / "data"),
        held_out_images=30,
        distillation=Distillation(teacher=str(teacher)),
        threads=1,
    )
    assert dry_run(recipe, 4).trial.teacher_s > 0
    with pytest.raises(ValueError, match="tells 10 classes apart"):
        dry_run(recipe.replace(data=str(tmp_path / "few")), 4)
    # of data that nobody reads the number of classes is known, and not their names
    assert dry_run(recipe.replace(data="cifar10"), 4).trial.teacher_s > 0
    with pytest.raises(ValueError, match="tells 10 classes apart"):
        dry_run(recipe.replace(data="imagenet"), 4)
