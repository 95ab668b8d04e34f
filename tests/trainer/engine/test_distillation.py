"""Distillation: what a subnet's loss is, and who teaches."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tests.bundles
from models.bundle.folder import load_bundle
from models.nets.view import Share
from models.spaces import get_space
from tests.bundles import make_bundle
from tests.trainer.conftest import settings
from trainer.engine.task import MicroBatch, Task
from trainer.engine.teacher import find_teacher, open_teacher
from trainer.job import alone
from trainer.recipes.config import get_recipe
from trainer.recipes.settings import Distillation
from trainer.run import main
from trainer.samplers.base import Draw

LABELS = [f"class {i}" for i in range(10)]


def a_part():
    images, labels = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    return MicroBatch(0, images, labels, Share(4, slice(None)), 1.0)


def test_the_loss_is_labels_and_teacher_by_weight_and_temperature():
    torch.manual_seed(0)
    part, mine, its = a_part(), torch.randn(4, 3), torch.randn(4, 3)
    task = Task(0.0, Distillation(teacher="largest", weight=0.25, temperature=2.0))
    task.taught = {0: task.taken(its)}
    labels = F.cross_entropy(mine, part.labels)
    taught = 4 * F.cross_entropy(mine / 2, (its / 2).softmax(1))
    given = task.loss(Draw(distil=True), part, mine)
    assert torch.allclose(given, 0.75 * labels + 0.25 * taught)
    assert torch.allclose(task.loss(Draw(), part, mine), labels)


def test_who_is_like_the_teacher_learns_nothing():
    torch.manual_seed(0)
    part, its = a_part(), torch.randn(4, 3)
    task = Task(0.0, Distillation(teacher="largest", temperature=3.0))
    task.taught = {0: task.taken(its)}
    mine = its.clone().requires_grad_()
    task.loss(Draw(distil=True), part, mine).backward()
    assert mine.grad is not None
    assert mine.grad.abs().max() < 1e-6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("teacher") / "bundle")


def with_teacher(name, **changes):
    return get_recipe("digits").replace(distillation=Distillation(teacher=name), **changes)


def test_a_bundle_and_its_exported_subnet_teach_alike(bundle, tmp_path):
    """Images are normalized and sized as the teacher reads them, whatever the student's are."""
    loaded = load_bundle(bundle)
    largest = loaded.space.largest
    file = tmp_path / "largest.onnx"
    file.write_bytes(loaded.build_onnx(largest).SerializeToString())
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    taught = []
    for name in (str(bundle), str(file)):
        for mean, std in (((0.5,) * 3, (0.25,) * 3), ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))):
            recipe = with_teacher(name, mean=mean, std=std)
            teacher = open_teacher(recipe, LABELS)
            assert teacher is not None
            m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
            taught.append(teacher((pixels / 255 - m) / s).numpy())
    for other in taught[1:]:
        np.testing.assert_allclose(other, taught[0], rtol=1e-3, atol=1e-3)


def test_a_bundle_teaches_by_what_it_answers_to_its_largest_budget(tmp_path, monkeypatch):
    """Its largest answer teaches: the space's largest subnet may lack statistics."""
    every = tests.bundles._answers
    monkeypatch.setattr(tests.bundles, "_answers", lambda *given: every(*given)[:-1])
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    loaded = load_bundle(bundle)
    last = loaded.archs()[-1]
    assert last != loaded.space.largest
    (tmp_path / "last.onnx").write_bytes(loaded.build_onnx(last).SerializeToString())
    images = torch.randn(3, 3, 16, 16)
    taught = [
        open_teacher(with_teacher(str(name)), LABELS)(images)
        for name in (bundle, tmp_path / "last.onnx")
    ]
    assert torch.equal(*taught)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_a_largest_subnet_that_does_not_train_is_not_a_teacher(name):
    recipe = get_recipe(name).replace(distillation=Distillation(teacher="largest"))
    space = get_space(recipe.space)
    smallest, largest = (
        alone(recipe, json.dumps(space.arch_to_json(arch)))
        for arch in (space.smallest, space.largest)
    )
    assert find_teacher(largest) is None
    with pytest.raises(ValueError, match="which this run does not train: set"):
        find_teacher(smallest)


def test_no_folder_is_made_for_a_teacher_that_is_not_there_or_of_other_classes(
    bundle, tmp_path, capsys
):
    (tmp_path / "not.onnx").write_bytes(b"words")
    small = json.dumps(get_space("nano-cnn").arch_to_json(get_space("nano-cnn").smallest))
    for name, more, said in (
        ("nowhere", [], "no teacher nowhere"),
        (str(tmp_path / "not.onnx"), [], "is not a graph that runs"),
        (str(bundle), [], "classes apart"),
        ("largest", ["--arch", small], "does not train"),
    ):
        chosen = [*settings("epochs=1", f"distillation.teacher={name}"), *more]
        assert main([*chosen, "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_or_none_is_refused(bundle, tmp_path):
    for name, labels, said in (
        (str(bundle), ["a", "b"], "tells 10 classes apart that are not the data's 2"),
        (str(tmp_path), LABELS, "no teacher"),
        ("timm:no_such_network", LABELS, "timm has no network 'no_such_network'"),
    ):
        with pytest.raises(ValueError, match=said):
            open_teacher(with_teacher(name), labels)
    assert open_teacher(with_teacher("largest"), LABELS) is None
