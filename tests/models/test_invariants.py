"""What holds for every search space. A space joins by being registered.

Masked == sliced == extracted; FLOPs == torch's own count of the operators that ran; parameters ==
those that exist; the relaxed FLOPs are the exact ones at one-hots. Spaces beyond 200 MFLOPs run
their forward passes only in the slow tests.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.extract import extract, extract_folded
from models.space.describe import describe_layers
from models.space.flops import flops_rule
from models.space.relaxed import Relaxed, RelaxedCost
from models.space.weights import slice_weights, weight_slices
from models.spaces import SPACES, get_space
from tests.models.test_equivalence import FULL_SCALE, RELATIVE
from tests.one_hot import relax

# Small, but with what only large registered spaces have.
SPACE = {name: get_space(name) for name in SPACES} | {RELATIVE.name: RELATIVE}
LARGE = {name for name, space in SPACE.items() if space.max_flops > 200e6}
every_space = pytest.mark.parametrize("name", SPACE)
every_small_space = pytest.mark.parametrize("name", [n for n in SPACE if n not in LARGE])
every_space_but_those_of_test_equivalence = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n
        for n in SPACE
        if n not in FULL_SCALE
    ],
)


def some_archs(space, random):
    rng = np.random.default_rng(0)
    return [space.smallest, space.largest, *(space.random_arch(rng) for _ in range(random))]


@every_space
def test_the_flops_of_layers_add_up_to_those_of_the_arch(name):
    space = SPACE[name]
    for arch in some_archs(space, 5):
        layers = describe_layers(space, arch)
        assert sum(layer["flops"] for layer in layers) == space.flops(arch)
        assert sum(layer["largest"] for layer in layers) == space.max_flops
        assert any(layer["flops"] == 0 for layer in layers) == any(
            not weight.block.present(arch) for weight in space.weights if weight.block
        )


def supernet(space, *, biases=True):
    """No parameter at zero or one, where a wrong one would not show."""
    torch.manual_seed(0)
    net = build_net(space)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if biases or not name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
    return net


def some_images(space, arch, batch):
    side = space.resolution(arch)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_same_logits(given, wanted, tolerance):
    assert given.shape == wanted.shape
    assert (given - wanted).abs().max() <= tolerance * wanted.abs().max()


# ------------------------------------------------------------------------------ forward passes


@every_space_but_those_of_test_equivalence
@pytest.mark.parametrize("batch", [1, 3])
def test_masked_sliced_and_extracted_answer_alike(name, batch):
    space = SPACE[name]
    net = supernet(space)
    for arch in some_archs(space, random=4 if name not in LARGE else 1):
        images = some_images(space, arch, batch)
        with torch.no_grad():
            sliced = net(images, arch)
            tolerance = 1e-4 if name in LARGE else 1e-5
            assert_same_logits(net(images, relax(space, arch)), sliced, tolerance)
            assert_same_logits(extract(net, arch)(images), sliced, tolerance)


@every_space_but_those_of_test_equivalence
def test_folded_network_answers_as_the_calibrated_subnet(name):
    space = SPACE[name]
    net = supernet(space)
    for arch in some_archs(space, random=2 if name not in LARGE else 0):
        images = some_images(space, arch, batch=4)
        statistics = calibrate(net, arch, [images, -0.5 * images])
        arrays = {k: (mean.numpy(), variance.numpy()) for k, (mean, variance) in statistics.items()}
        folded = extract_folded(net, arch, arrays)
        with torch.no_grad():
            wanted = net.eval()(images, arch, statistics or None)
            assert_same_logits(folded(images), wanted, 1e-4 if name in LARGE else 1e-5)
        assert not any(".norm." in k and space.norms for k in folded.state_dict())


@every_small_space
def test_the_whole_supernet_is_its_largest_subnet(name):
    space = SPACE[name]
    net = supernet(space)
    images = some_images(space, space.largest, batch=2)
    with torch.no_grad():
        assert torch.equal(net(images), net(images, space.largest))


@every_small_space
def test_archs_run_in_any_order_without_touching_each_other(name):
    space = SPACE[name]
    net = supernet(space)
    first, second = space.smallest, space.largest
    images = some_images(space, first, batch=2)
    with torch.no_grad():
        before = net(images, first)
        net(some_images(space, second, batch=2), second)
        assert torch.equal(net(images, first), before)


def test_layer_norm_ignores_what_silenced_channels_hold():
    space = SPACE["nano-vit"]
    net = supernet(space)
    arch = space.smallest
    images = some_images(space, arch, batch=2)
    with torch.no_grad():
        before = net(images, relax(space, arch))
        for name, axes in weight_slices(space, arch).items():
            outside = torch.ones_like(net.get_parameter(name), dtype=torch.bool)
            outside[axes] = False
            net.get_parameter(name)[outside] = 7.0
        assert_same_logits(net(images, relax(space, arch)), before, 1e-5)


# ------------------------------------------------------------------- parameters, FLOPs, slices


@every_space
def test_flops_and_params_are_those_of_the_extracted_network(name):
    check_counts(name, random=0 if name in LARGE else 1)


@pytest.mark.slow
@every_space
def test_flops_and_params_of_200_random_archs(name):
    check_counts(name, random=200)


def check_counts(name, random):
    space = SPACE[name]
    for arch in some_archs(space, random):
        with torch.device("meta"):  # shapes are counted; nothing has to be computed
            subnet = build_net(space, arch).train()
            side = space.resolution(arch)
            with FlopCounterMode(display=False) as counter:
                subnet(torch.empty(1, 3, side, side))
        assert counter.get_total_flops() == 2 * space.flops(arch)
        assert sum(p.numel() for p in subnet.parameters()) == space.params(arch)


@every_space
def test_parameters_are_the_weights_of_the_description(name):
    space = SPACE[name]
    for arch in some_archs(space, random=2):
        with torch.device("meta"):
            shapes = {k: tuple(p.shape) for k, p in build_net(space, arch).named_parameters()}
        assert shapes == {
            w.name: w.shape_at(arch)
            for w in space.weights
            if w.block is None or w.block.present(arch)
        }


@every_small_space
def test_numpy_slices_are_the_weights_of_the_extracted_network(name):
    space = SPACE[name]
    net = supernet(space)
    arrays = {k: p.detach().numpy() for k, p in net.named_parameters()}
    for arch in some_archs(space, random=3):
        subnet = extract(net, arch)
        sliced = slice_weights(space, arch, arrays)
        assert set(sliced) == {k for k, _ in subnet.named_parameters()}
        for key, parameter in subnet.named_parameters():
            np.testing.assert_array_equal(sliced[key], parameter.detach().numpy())


@every_space
def test_relaxed_flops_are_exact_at_one_hots(name):
    space = SPACE[name]
    archs = some_archs(space, random=20)
    policies = [relax(space, arch).policies for arch in archs]
    batch = {d.name: torch.stack([p[d.name] for p in policies]) for d in space.decisions}
    flops = RelaxedCost(space.flops_rule)(batch)
    assert flops.tolist() == [space.flops(arch) for arch in archs]


@every_space
def test_relaxed_flops_gradient_is_the_cost_of_another_choice(name):
    """The rule is linear in each policy, so a gradient tells the exact difference."""
    space = SPACE[name]
    rule = flops_rule(space.decisions, space.weights, space.products)
    arch = space.random_arch(np.random.default_rng(3))
    policies = {
        k: p[None].double().requires_grad_() for k, p in relax(space, arch).policies.items()
    }
    RelaxedCost(rule)(policies).sum().backward()
    here = space.indices(arch)
    for position, decision in enumerate(space.decisions):
        if len(decision.choices) == 1:
            continue  # nothing else can be chosen
        gradient = policies[decision.name].grad
        assert gradient is not None, decision.name
        for choice in range(len(decision.choices)):
            there = here.copy()
            there[position] = choice
            wanted = rule.batch(np.stack([there, here]))
            difference = gradient[0, choice] - gradient[0, here[position]]
            assert int(difference) == wanted[0] - wanted[1], decision.name


@every_space
def test_choices_ascend_in_flops(name):
    space = SPACE[name]
    rng = np.random.default_rng(4)
    for _ in range(3):
        here = space.indices(space.random_arch(rng))
        for position, decision in enumerate(space.decisions):
            line = np.repeat(here[None], len(decision.choices), axis=0)
            line[:, position] = range(len(decision.choices))
            assert (np.diff(space.flops_rule.batch(line)) >= 0).all(), decision.name


# ------------------------------------------------------------------------------------ gradients


@every_small_space
def test_a_training_step_changes_exactly_the_slices(name):
    space = SPACE[name]
    net = supernet(space).train()
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    arch = space.random_arch(np.random.default_rng(5))
    net(some_images(space, arch, batch=4), arch).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    slices = weight_slices(space, arch)
    for key, parameter in net.named_parameters():
        changed = parameter != before[key]
        if key not in slices:
            assert not changed.any(), key
            continue
        if key.endswith("attention.key.bias"):
            continue  # what is added to all keys cancels in the softmax
        if key.endswith("project.norm.bias"):
            continue  # a constant added to a channel cancels in the next BatchNorm
        for axis, part in enumerate(slices[key]):
            others = [other for other in range(changed.ndim) if other != axis]
            along = changed.any(dim=others) if others else changed
            indices = along.nonzero().flatten()
            assert (int(indices.min()), int(indices.max()) + 1) == (part.start, part.stop), key


@every_small_space
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_masks_tell_every_policy_what_another_choice_would_change(name, end):
    """Also of silenced channels: biases are zero, so a channel masked twice would tell nothing."""
    space = SPACE[name]
    arch = getattr(space, end)
    net = supernet(space, biases=False).train()
    policies = {k: p.requires_grad_() for k, p in relax(space, arch).policies.items()}
    images = some_images(space, arch, batch=4)
    net(images, Relaxed(space, policies)).square().sum().backward()
    for decision in space.decisions:
        dropped = decision.block is not None and not decision.block.present(arch)
        if decision.kind == "resolution" or len(decision.choices) == 1 or dropped:
            continue  # resolution is not a mask: its gradient comes from the FLOPs alone
        gradient = policies[decision.name].grad
        assert gradient is not None, decision.name
        assert gradient.isfinite().all(), decision.name
        changes = (gradient.diff().abs() / gradient.abs().max()).tolist()
        assert min(changes) > 1e-4, (decision.name, gradient)


# ---------------------------------------------------------------------------------------- archs


@every_space
def test_archs_survive_json(name):
    space = SPACE[name]
    for arch in some_archs(space, random=10):
        back = space.arch_from_json(json.loads(json.dumps(space.arch_to_json(arch))))
        assert back == arch
        assert hash(back) == hash(arch)
        assert space.arch_id(back) == space.arch_id(arch)
        assert space.from_indices(space.indices(arch)) == arch


@every_space
def test_what_dropped_blocks_choose_makes_no_difference(name):
    space = SPACE[name]
    smallest, largest = dict(space.smallest), dict(space.largest)
    for decision in space.decisions:
        if decision.block is not None and not decision.block.present(smallest):
            smallest[decision.name] = largest[decision.name]
    assert space.arch(smallest) == space.smallest


def test_arch_ids_are_the_same_in_every_process():
    names = list(SPACES)
    program = (
        "import json, sys; from models.spaces import get_space; "
        "spaces = [get_space(name) for name in json.loads(sys.argv[1])]; "
        "assert 'torch' not in sys.modules, 'spaces must not need torch'; "
        "print(json.dumps([s.arch_id(a) for s in spaces for a in (s.smallest, s.largest)]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names)],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [SPACE[n].arch_id(a) for n in names for a in (SPACE[n].smallest, SPACE[n].largest)]
    assert json.loads(answer.stdout) == here
    assert len(set(here)) == len(here)


@every_space
def test_wrong_archs_are_refused_by_name(name):
    space = SPACE[name]
    good = dict(space.largest)
    chosen = next(d for d in space.decisions if len(d.choices) > 1 and d.block is None)
    with pytest.raises(ValueError, match="no decision 'colour'"):
        space.arch(good | {"colour": 1})
    with pytest.raises(ValueError, match=f"{chosen.name} = 77777 is not one of"):
        space.arch(good | {chosen.name: 77777})
    with pytest.raises(ValueError, match=f"{chosen.name} is missing"):
        space.arch({k: v for k, v in good.items() if k != chosen.name})
    document = space.arch_to_json(space.largest)
    with pytest.raises(ValueError, match="has no 'colour'"):
        space.arch_from_json(document | {"colour": 1})
    with pytest.raises(ValueError, match="JSON object"):
        space.arch_from_json("x")
    with pytest.raises(ValueError, match="must be numbers"):
        space.arch_from_json(document | {chosen.kind: "wide"})
    with pytest.raises(ValueError, match="must be numbers"):
        space.arch_from_json(document | {chosen.kind: True})
    with pytest.raises(ValueError, match="at most"):
        space.arch_from_json(document | {chosen.kind: [1] * 99})


def test_unknown_spaces_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'nano-vit'"):
        get_space("nano-vti")


@every_small_space
def test_number_of_classes_can_be_chosen(name):
    if name not in SPACES:
        pytest.skip("not registered")
    space = get_space(name, 7)
    net = build_net(space).train()
    assert net(some_images(space, space.largest, batch=2)).shape == (2, 7)


def test_only_supernets_are_extracted_from():
    space = SPACE["nano-vit"]
    subnet = extract(build_net(space), space.smallest)
    with pytest.raises(ValueError, match="already a subnet"):
        extract(subnet, space.smallest)


def test_extracted_weights_are_copies():
    space = SPACE["nano-vit"]
    net = supernet(space)
    subnet = extract(net, space.smallest)
    with torch.no_grad():
        subnet.get_parameter("classifier.weight").zero_()
    assert net.get_parameter("classifier.weight").abs().min() > 0
