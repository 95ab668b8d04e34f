"""From a checkpoint to a bundle: with images and without, what is refused, what a stop leaves."""

import numpy as np
import onnxruntime
import pytest
import torch

from models.__main__ import main
from models.bundle.folder import load_bundle
from models.converters import Converted, deployment
from models.converters.deployment import calibration_batches, convert_to_bundle
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.images.photos import find_photos, read_photos
from models.nets import build_net
from models.nets.calibration import calibrate
from models.spaces import get_space
from tests.bundles import template_of
from tests.pictures import encoded, picture, write_photos

CNN, VIT = "nano-cnn", "nano-vit"


def net_of(name, seed=0):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = build_net(get_space(name, 10))
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net.requires_grad_(False)


@pytest.fixture
def small(request, monkeypatch):
    """The converters' last step with a checkpoint of a small space."""
    name = request.param
    net = net_of(name)
    space = net.space
    rng = np.random.default_rng(0)
    statistics = {}
    for norm in space.norms:
        channels = norm.size(space.largest)
        noise = rng.normal(size=(2, channels)).astype(np.float32)
        statistics[norm.name] = (0.1 * noise[0], 1 + 0.1 * np.abs(noise[1]))
    weights = {key: value.numpy() for key, value in net.state_dict().items()}
    found = Converted(space, weights, statistics)
    monkeypatch.setattr(deployment, "convert", lambda *_: found)
    monkeypatch.setattr(deployment, "export_template", lambda _: template_of(name))
    return found


def both(test):
    return pytest.mark.parametrize("small", [CNN, VIT], indirect=True)(test)


def cnn(test):
    return pytest.mark.parametrize("small", [CNN], indirect=True)(test)


def logits(bundle, arch, images):
    net = build_net(bundle.space).eval()
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in bundle.weights.items()})
    found = bundle.arch_statistics(arch)
    statistics = {
        n: tuple(torch.from_numpy(np.array(p)) for p in parts) for n, parts in found.items()
    }
    with torch.no_grad():
        return net(images, arch, statistics or None)


@both
def test_without_images_the_checkpoint_s_statistics_serve_and_the_bundle_says_so(small, tmp_path):
    told = convert_to_bundle("any", tmp_path / "a.pth", tmp_path / "bundle", steps=5)
    bundle = load_bundle(tmp_path / "bundle")
    space = bundle.space
    assert told["images"] is None
    assert told["generator"] == "resource loss, 5 steps" == bundle.provenance["generator"]
    wanted = "the checkpoint's own statistics" if space.norms else None
    assert told["batch_norm"] == bundle.provenance["batch_norm"] == wanted
    for arch in {bundle.answer(budget) for budget in even_budgets(space, 9)}:
        for name, parts in bundle.arch_statistics(arch).items():
            for got, stored in zip(parts, small.statistics[name], strict=True):
                assert np.array_equal(got, stored[: len(got)])


@cnn
def test_without_images_the_checkpoint_s_statistics_serve_any_arch(small, tmp_path):
    convert_to_bundle("any", tmp_path / "a.pth", tmp_path / "bundle", steps=5)
    bundle = load_bundle(tmp_path / "bundle")
    rng = np.random.default_rng(0)
    images = torch.randn(2, 3, *[bundle.space.resolution(bundle.space.largest)] * 2)
    answered = set(bundle.archs())
    for _ in range(20):
        indices = [rng.integers(len(d.choices)) for d in bundle.space.decisions]
        arch = bundle.space.from_indices(indices)
        side = bundle.space.resolution(arch)
        given = images[..., :side, :side]
        session = onnxruntime.InferenceSession(
            bundle.build_onnx(arch).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {"images": given.numpy()})[0]
        np.testing.assert_allclose(found, logits(bundle, arch, given).numpy(), atol=1e-4)
        answered.discard(arch)
    assert answered, "most of these archs are no answers"


@cnn
def test_with_images_statistics_are_those_of_each_arch_on_them(small, tmp_path, capsys):
    folder = write_photos(tmp_path / "photos", 40)
    (folder / "bad.jpg").write_bytes(encoded(picture(), "JPEG")[:150])
    told = convert_to_bundle("any", tmp_path / "a.pth", tmp_path / "bundle", data=folder, steps=5)
    said = capsys.readouterr().err
    assert f"left out {folder / 'bad.jpg'}: damaged JPEG" in said
    assert "1 images were broken; 40 were read" in said
    bundle = load_bundle(tmp_path / "bundle")
    assert told["images"] == {"read": 40, "broken": 1} == bundle.provenance["images"]
    assert told["batch_norm"] == "measured for each arch on 40 images"
    photos = read_photos(
        find_photos(folder), bundle.preprocess, small_sides(bundle.space), at_most=99, least=1
    )
    net = net_of(CNN)
    for arch in {bundle.answer(budget) for budget in even_budgets(bundle.space, 5)}:
        side = bundle.space.resolution(arch)
        wanted = calibrate(net, arch, calibration_batches(photos, side, 99))
        for name, parts in bundle.arch_statistics(arch).items():
            for got, measured in zip(parts, wanted[name], strict=True):
                np.testing.assert_allclose(got, measured.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("small", [VIT], indirect=True)
def test_images_that_nothing_is_measured_on_are_refused(small, tmp_path):
    folder = write_photos(tmp_path / "photos", 40)
    with pytest.raises(ValueError, match="nano-vit has no BatchNorm to measure"):
        convert_to_bundle("any", tmp_path / "a.pth", tmp_path / "bundle", data=folder)


def small_sides(space):
    return {space.resolution(arch) for arch in (space.smallest, space.largest)}


@cnn
def test_mistakes_are_refused_before_any_work(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deployment, "fit_generator", lambda *_, **__: pytest.fail("work began"))
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    taken.mkdir()
    empty.mkdir()
    few = write_photos(tmp_path / "few", 3)
    new = str(tmp_path / "new")
    for arguments, said in (
        (["--out", str(taken)], f"{taken} exists"),
        (["--out", new, "--data", str(empty)], f"{empty} holds no images"),
        (["--out", new, "--data", str(tmp_path / "nowhere")], "is not a folder"),
        (["--out", new, "--data", str(few)], "3 of the 3 images that were tried"),
        (["--out", str(few / "0.jpeg" / "bundle")], "is not a folder that can be written"),
    ):
        assert main(["convert", "attentivenas", str(tmp_path / "a.pth"), *arguments]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert said in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "few", "taken"]


@cnn
@pytest.mark.parametrize(
    "when", ["fit_generator", "measured_statistics", "export_template", "save_bundle"]
)
def test_a_stop_leaves_nothing_behind(small, tmp_path, monkeypatch, capsys, when):
    def stop(*_, **__):
        raise KeyboardInterrupt

    folder = write_photos(tmp_path / "photos", 32)
    untrained = ArchitectureGenerator(small.space)
    monkeypatch.setattr(deployment, "fit_generator", lambda *_, **__: untrained)
    monkeypatch.setattr(deployment, when, stop)
    arguments = ["--out", str(tmp_path / "bundle"), "--data", str(folder)]
    assert main(["convert", "attentivenas", "a.pth", *arguments]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
