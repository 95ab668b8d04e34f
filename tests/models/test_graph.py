"""Graphs cut from a space's template answer as torch does, for any arch of any space."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.extract import extract_folded
from models.nets.vit import ViTNet
from models.onnx.generalize import TemplateError
from models.onnx.graph import cut_graph, cut_graph_apart, deployed_shapes, graph_weights
from models.onnx.graph_template import INPUT, OUTPUT, Template
from models.onnx.template import export_template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import Statistics, fold_norms, slice_weights
from models.spaces import get_space
from tests.bundles import RECORDED, template_of

FAST = ["nano-cnn", "nano-vit"]


@cache
def supernet(name: str) -> AbstractNet:
    """Random weights, none at zero or one, where a mistake may not show."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build_net(get_space(name, 10))
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net.eval()


@cache
def template(name: str) -> Template:
    return Template.parse(template_of(name))


def images_for(space: SearchSpace, arch: Arch, batch: int) -> torch.Tensor:
    side = space.resolution(arch)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def some_archs(space: SearchSpace) -> list[Arch]:
    rng = np.random.default_rng(1)
    return [space.smallest, space.largest, *(space.random_arch(rng) for _ in range(4))]


def deployed(net: AbstractNet, arch: Arch) -> tuple[dict[str, np.ndarray], Statistics]:
    measured = calibrate(net, arch, [images_for(net.space, arch, 16)])
    statistics = {name: (mean.numpy(), var.numpy()) for name, (mean, var) in measured.items()}
    weights = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    sliced = slice_weights(net.space, arch, weights)
    return fold_norms(net.space, sliced, statistics), statistics


def some_weights(space: SearchSpace, arch: Arch) -> dict[str, np.ndarray]:
    shapes = deployed_shapes(space, arch)
    return {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}


def session(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(runnable: onnxruntime.InferenceSession, images: torch.Tensor) -> np.ndarray:
    return np.asarray(runnable.run([OUTPUT], {INPUT: images.numpy()})[0])


def assert_alike(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", FAST)
def test_weights_can_be_given_from_outside_the_graph(name):
    net = supernet(name)
    for arch in some_archs(net.space):
        weights, _ = deployed(net, arch)
        stored = cut_graph(template(name), net.space, arch, weights)
        arrays = graph_weights(template(name), net.space, arch, weights)
        bare = cut_graph_apart(template(name), net.space, arch, arrays)
        constants = stored.ByteSize() - sum(weight.nbytes for weight in weights.values())
        assert bare.ByteSize() < constants + 100 * len(weights)

        contiguous = [np.ascontiguousarray(array) for array in arrays.values()]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in contiguous]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_external_initializers(list(arrays), values)
        images = images_for(net.space, arch, 2)
        assert_alike(run(session(bare, options), images), run(session(stored), images))


@pytest.mark.parametrize("name", FAST)
def test_dropped_blocks_are_not_in_the_graph(name):
    space = get_space(name, 10)
    blocks = {weight.block for weight in space.weights if weight.block is not None}
    for arch in some_archs(space):
        graph = cut_graph(template(name), space, arch, some_weights(space, arch)).graph
        read = {value for node in graph.node for value in node.input}
        there = {b.name for b in blocks if any(v.startswith(f"{b.name}.") for v in read)}
        assert there == {block.name for block in blocks if block.present(arch)}
        assert read <= {t.name for t in graph.initializer} | {INPUT, ""} | {
            value for node in graph.node for value in node.output
        }
        names = {tensor.name for tensor in graph.initializer}
        assert set(deployed_shapes(space, arch)) <= names
        assert names <= {value for node in graph.node for value in node.input}, "unused"
        for block in blocks:
            if not block.present(arch):
                assert not any(n.startswith(f"{block.name}.") for n in names)


def test_a_graph_takes_images_of_its_own_resolution():
    space = get_space("nano-cnn", 10)
    for arch in (space.smallest, space.largest):
        dims = (
            cut_graph(template("nano-cnn"), space, arch, some_weights(space, arch))
            .graph.input[0]
            .type.tensor_type.shape.dim
        )
        side = space.resolution(arch)
        assert [d.dim_value for d in dims] == [0, 3, side, side]


def test_cutting_leaves_the_template_as_it_was():
    space = get_space("nano-cnn", 10)
    one, weights = template("nano-cnn"), some_weights(space, space.largest)
    before = cut_graph(one, space, space.largest, weights)
    cut_graph(one, space, space.smallest, some_weights(space, space.smallest))
    assert cut_graph(one, space, space.largest, weights) == before


def test_weights_that_do_not_fit_are_named():
    net = supernet("nano-cnn")
    space, arch = net.space, net.space.smallest
    weights, _ = deployed(net, arch)
    others = {
        "is missing": {k: v for k, v in weights.items() if k != "head.weight"},
        "needs float32": weights | {"head.weight": weights["head.weight"][:-1]},
        "is float64": weights | {"head.weight": weights["head.weight"].astype(np.float64)},
    }
    for words, wrong in others.items():
        with pytest.raises(ValueError, match=rf"^weight head\.weight .*{words}"):
            cut_graph(template("nano-cnn"), space, arch, wrong)
    with pytest.raises(ValueError, match="no template"):
        Template.parse(b"")
    with pytest.raises(ValueError, match="no ONNX model"):
        Template.parse(b"graph")


def outside() -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.UINT8, dims=[4], raw_data=b"abcd"
    )
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


@pytest.mark.parametrize("where", ["initializer", "sparse", "constant", "branch", "function"])
def test_a_template_that_names_other_files_is_refused(where):
    model = onnx.load_model_from_string(template_of("nano-cnn"))
    constant = onnx.helper.make_node("Constant", [], ["w"], value=outside())
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    if where == "initializer":
        model.graph.initializer.append(outside())
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside())
    elif where == "constant":
        model.graph.node.append(constant)
    elif where == "branch":
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch))
    else:
        model.functions.add().node.append(constant)
    with pytest.raises(ValueError, match="tensor 'w' is in another file"):
        Template.parse(model.SerializeToString())


def test_a_template_with_a_compiled_engine_is_refused():
    """It may name a file."""
    model = onnx.load_model_from_string(template_of("nano-cnn"))
    attributes = {"ep_cache_context": "secret.bin", "embed_mode": 0}
    node = onnx.helper.make_node("EPContext", [], ["w"], domain="com.microsoft", **attributes)
    model.graph.node.append(node)
    with pytest.raises(ValueError, match="EPContext"):
        Template.parse(model.SerializeToString())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_the_recorded_templates_are_what_is_exported(name):
    """If not, and the exporter meant to change: ``python -m tests.bundles``."""
    assert export_template(get_space(name, 10)) == template_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_the_exporter_says_the_same(name):
    net = supernet(name)
    arch = some_archs(net.space)[2]
    weights, statistics = deployed(net, arch)
    images = images_for(net.space, arch, 2)
    program = torch.onnx.export(
        extract_folded(net, arch, statistics),
        (images,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None
    cut = cut_graph(template(name), net.space, arch, weights)
    assert_alike(run(session(cut), images), run(session(program.model_proto), images))


@pytest.mark.slow
def test_a_forward_pass_that_no_cut_can_follow_is_refused(monkeypatch):
    run_as_written = ViTNet.run

    def scaled(self, *arguments):
        return run_as_written(self, *arguments) * (1 / self.own_arch["embed_dim"])

    monkeypatch.setattr(ViTNet, "run", scaled)
    with pytest.raises(TemplateError, match="a constant depends on the arch"):
        export_template(get_space("nano-vit", 10))
