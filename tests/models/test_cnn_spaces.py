"""bignas and attentivenas: what only their layers can get wrong; numbers: test_published_spaces."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.nets import build_net
from models.nets.extract import extract
from models.onnx.generalize import TemplateError
from models.onnx.graph import cut_graph, deployed_shapes
from models.onnx.graph_template import Template
from models.onnx.template import export_template
from models.space.relaxed import Relaxed
from models.space.weights import weight_slices
from models.spaces import get_space
from models.spaces.attentivenas import squeezed
from models.spaces.mbconv import Squeeze, Stage, mbconv_space
from models.spaces.published import FOLDER
from tests.one_hot import relax


def small(resolution):
    """What only attentivenas has, and turned images, at a size that exports in seconds."""
    return mbconv_space(
        "nano-projected",
        resolution=resolution,
        stem=(8, 16),
        stem_stride=2,
        stages=(
            Stage(1, (8, 16), (1,), (3, 5), (1,)),
            Stage(2, (16, 24), (1, 2), (3, 5), (2, 3), squeeze=True),
        ),
        head=(24, 32),
        num_classes=10,
        activation="silu",
        squeeze=Squeeze(squeezed, "relu", "hardsigmoid"),
        projected_shortcuts=True,
        head_expand=2,
        turned=True,
    )


SMALL = small((16, 32))
PARTS = ("stem.", "stages.", "head", "classifier.")
# Where a shortcut's two widths agree: nowhere; in stages 0, 1 and 6; at the widest in stage 0.
WIDTHS = {
    "all differ": (24, 16, 32, 40, 72, 128, 208, 224, 1984),
    "some agree": (16, 24, 24, 32, 64, 120, 216, 216, 1792),
    "the widest agree": (24, 24, 32, 32, 64, 112, 192, 216, 1984),
}


def published(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def supernets():
    """Networks in evaluation mode and statistics at full width, none at zero or one."""
    made = {}
    for space in (get_space("attentivenas", 10), get_space("bignas", 10), SMALL):
        torch.manual_seed(0)
        net = build_net(space).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
        statistics = {}
        for norm in space.norms:
            channels = norm.size(space.largest)
            statistics[norm.name] = torch.randn(channels) / 10, 1 + torch.rand(channels)
        made[space.name] = net, statistics
    return made


def statistics_at(space, arch, full):
    return {
        norm.name: tuple(part[: norm.size(arch)] for part in full[norm.name])
        for norm in space.norms
    }


def assert_same(given, wanted):
    assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# --------------------------------------------------------------------------- archs of others


@pytest.mark.parametrize("number", range(7))
def test_archs_are_written_as_the_public_project_writes_them(number):
    space, document = get_space("attentivenas"), published(f"attentivenas-a{number}")
    assert space.arch_to_json(space.arch_from_json(document)) == document


def test_bignas_answers_as_torchvisions_efficientnet_b0():
    """An implementation of others, given our weights in the order in which both hold them."""
    models = pytest.importorskip("torchvision.models")
    space = get_space("bignas")
    arch = space.arch_from_json(published("efficientnet-b0"))
    torch.manual_seed(0)
    theirs = models.efficientnet_b0().eval()
    ours = build_net(space, arch).eval()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_((other + 0.05 * torch.randn_like(other)).reshape(mine.shape))
            other.copy_(mine.reshape(other.shape))
        images = torch.randn(1, 3, 224, 224)
        statistics = {
            n.name: (torch.zeros(n.size(arch)), torch.ones(n.size(arch))) for n in space.norms
        }
        with FlopCounterMode(display=False) as counter:
            wanted = theirs(images)
        assert counter.get_total_flops() == 2 * space.flops(arch)
        assert_same(ours(images, statistics=statistics), wanted)


# --------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize("side", [32, 40])
@pytest.mark.parametrize("widths", WIDTHS)
def test_projected_shortcuts_masked_sliced_and_extracted(supernets, widths, side):
    """At small images, of which some maps have an odd side."""
    net, full = supernets["attentivenas"]
    arch = net.space.arch_from_json(published("attentivenas-a3") | {"width": list(WIDTHS[widths])})
    compare(net, full, arch, side)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["attentivenas", "bignas", "nano-projected"])
def test_random_archs_masked_sliced_and_extracted(supernets, name, seed):
    net, full = supernets[name]
    compare(net, full, net.space.random_arch(np.random.default_rng(seed)), side=48)


def compare(net, full, arch, side):
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    own = statistics_at(net.space, arch, full)
    with torch.no_grad():
        wanted = net(images, arch, own)
        assert_same(net(images, relax(net.space, arch), full), wanted)
        assert_same(extract(net, arch)(images, statistics=own), wanted)


@pytest.mark.parametrize("name", ["attentivenas", "bignas", "nano-projected"])
def test_nothing_silenced_leaks_through_squeeze_and_excitation(supernets, name):
    """h-sigmoid is 1/2 at zero, and hidden biases outlive a masked input."""
    net, full = supernets[name]
    space, arch = net.space, net.space.smallest
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(images, relax(space, arch), full)
        for weight, axes in weight_slices(space, arch).items():
            if ".squeeze." not in weight:
                continue
            outside = torch.ones_like(net.get_parameter(weight), dtype=torch.bool)
            outside[axes] = False
            net.get_parameter(weight)[outside] += 7
        assert_same(net(images, relax(space, arch), full), before)


def test_policies_of_widths_learn_through_a_shortcut_that_passes_and_one_that_converts(supernets):
    net, full = supernets["attentivenas"]
    space = net.space
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for widths in WIDTHS.values():
        arch = space.arch_from_json(published("attentivenas-a3") | {"width": list(widths)})
        policies = {k: p.requires_grad_() for k, p in relax(space, arch).policies.items()}
        net(images, Relaxed(space, policies), full).square().sum().backward()
        for name in ("width.0", "width.1", "width.6", "width.7"):
            gradient = policies[name].grad
            assert gradient is not None
            assert gradient.isfinite().all()
            assert gradient.diff().abs().min() > 1e-4 * gradient.abs().max(), (name, gradient)


# --------------------------------------------------------------------------------------- sizes


def test_a_shortcut_between_equal_widths_costs_nothing():
    space = get_space("attentivenas")
    weight = space.weight["stages.0.0.shortcut.conv.weight"]
    base = published("attentivenas-a0")

    def at(stem, first):
        widths = [stem, first, *base["width"][2:]]
        return space.arch_from_json(base | {"width": widths})

    assert weight.shape_at(at(16, 16)) == (0, 16, 1, 1)
    assert weight.shape_at(at(16, 24)) == (24, 16, 1, 1)
    # kept at the widest, because the largest subnet is the supernet; not applied even there
    assert weight.shape_at(at(24, 24)) == (24, 24, 1, 1)
    assert weight.positions is not None
    assert [weight.positions(at(*w)) for w in ((16, 16), (16, 24), (24, 24))] == [0, 96 * 96, 0]


def test_squeeze_and_excitation_widths():
    attentivenas, bignas = get_space("attentivenas"), get_space("bignas")
    hidden = "stages.2.0.squeeze.reduce.bias"
    assert attentivenas.weight[hidden].shape_at(attentivenas.smallest) == (24,)  # 24 * 4 / 4
    assert attentivenas.weight[hidden].shape_at(attentivenas.largest) == (48,)  # 32 * 6 / 4
    assert bignas.weight[hidden].shape_at(bignas.smallest) == (6,)  # 24 / 4
    assert bignas.weight[hidden].shape_at(bignas.largest) == (8,)  # 32 / 4


def test_kernels_of_bignas_are_chosen_block_by_block():
    space = get_space("bignas")
    kernels = [d for d in space.decisions if d.kind == "kernel_size"]
    assert len(kernels) == 2 + 3 + 3 + 4 + 6 + 6 + 2
    assert sum(d.block is not None for d in kernels) == 1 + 1 + 1 + 2 + 4 + 4 + 1


# -------------------------------------------------------------------------------------- graphs


def shortcuts(graph):
    """Names of the weights of shortcut convolutions that a graph's nodes read."""
    reads = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    return [name for name in reads if ".shortcut." in name]


def test_graphs_are_cut_without_the_shortcut_convolutions_that_an_arch_does_not_need():
    """Exporting compares cuts with torch, at both ends of the space and in between."""
    template = Template.parse(export_template(SMALL))
    first, second = (f"stages.{stage}.0.shortcut.conv.weight" for stage in (0, 1))
    largest = dict(SMALL.largest)
    wanted = {(8, 8, 16): [second], (8, 16, 16): [first], (16, 16, 24): [second]}
    for widths, needed in wanted.items():
        changed = {f"width.{index}": width for index, width in enumerate(widths)}
        arch = SMALL.arch(largest | changed)
        shapes = deployed_shapes(SMALL, arch)
        weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        model = cut_graph(template, SMALL, arch, weights)
        assert shortcuts(model.graph) == needed
        assert {weight.name for weight in model.graph.initializer} >= set(needed)
        assert len(shapes) == len(
            [weight for weight in model.graph.initializer if weight.name.startswith(PARTS)]
        )


@pytest.mark.slow
def test_a_resolution_that_needs_another_graph_is_refused():
    """A side of 18 is odd where a shortcut pools; neither end of the space is."""
    with pytest.raises(TemplateError, match=r"'resolution': 18.* does not run"):
        export_template(small((16, 18, 32)))
