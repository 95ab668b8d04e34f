"""What Algorithm 2 asks: losses with the weights of now and of before, at an arch's own size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.generator.network import ArchitectureGenerator
from models.nets import build_net
from models.nets.normalize import FrozenStatistics
from models.nets.resolution import at_resolution
from models.space.weights import SharedStatistics
from models.spaces.mbconv import Stage, mbconv_space
from models.spaces.vit import vit_space
from tests.one_hot import relax
from trainer.data.batches import Batch
from trainer.engine.probe import BatchProbe
from trainer.evaluation import gradient_norm
from trainer.ranks import Ranks

SPACES = {
    "relative": vit_space(
        "relative",
        image=16,
        patch=4,
        embed_dim=(8, 16),
        depth=(1, 2),
        num_heads=(1, 2),
        mlp_ratio=(1, 2),
        head_dim=4,
        num_classes=5,
        relative_position=4,
    ),
    "two-sizes": mbconv_space(
        "two-sizes",
        resolution=(8, 16),
        stem=(4,),
        stem_stride=1,
        stages=(Stage(2, (4, 8), (1, 2), (3,), (1, 2)),),
        head=(8,),
        num_classes=5,
        activation="relu",
    ),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("of", ["smallest", "largest"])
@pytest.mark.parametrize("masked", [True, False])
def test_losses_are_those_of_the_subnet_with_either_weights(name, of, masked):
    space = SPACES[name]
    torch.manual_seed(0)
    net, earlier = build_net(space).train(), build_net(space).train()
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    probe = BatchProbe(
        net,
        ArchitectureGenerator(space),
        dict(earlier.named_parameters()),
        images,
        labels,
        noise=torch.Generator(),
        temperature=1.0,
    )
    arch = getattr(space, of)
    asked = relax(space, arch) if masked else arch
    for before, which in ((False, net), (True, earlier)):
        logits = which(at_resolution(images, space.resolution(arch)), arch)
        expected = F.cross_entropy(logits, labels)
        assert probe.loss(asked, before=before).item() == pytest.approx(expected.item(), rel=1e-4)


def test_sufficiency_is_the_norm_of_the_subnets_gradient_and_changes_nothing():
    """Eq. 4, with averages of weights that want no gradient, too."""
    space = next(iter(SPACES.values()))
    torch.manual_seed(0)
    net = build_net(space).train()
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    arch = space.smallest
    logits = net(at_resolution(images, space.resolution(arch)), arch)
    F.cross_entropy(logits, labels).backward()
    parts = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    for wanted in (True, False):
        net.requires_grad_(wanted)
        norm = gradient_norm(net, arch, Batch(0, 0, images, labels), "cpu")
        assert norm == pytest.approx(float(torch.cat(parts).norm()), rel=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_levels_and_sufficiency_are_with_the_statistics_that_do_not_move():
    space = SPACES["two-sizes"]
    torch.manual_seed(0)
    net, arch = build_net(space).train(), space.largest
    sizes = {norm.name: norm.size(space.largest) for norm in space.norms}
    units = {name: (np.zeros(n, "f4"), np.full(n, 4, "f4")) for name, n in sizes.items()}
    frozen = FrozenStatistics(SharedStatistics(units))
    batch = Batch(0, 0, torch.randn(6, 3, 16, 16), torch.arange(6) % 5)
    probe = BatchProbe(
        net,
        ArchitectureGenerator(space),
        {},
        batch.images,
        batch.labels,
        noise=torch.Generator(),
        temperature=1.0,
        frozen=frozen,
        fixed=[batch],
    )
    loss = F.cross_entropy(net(batch.images, arch, frozen), batch.labels)
    assert probe.level(arch) == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
    found = gradient_norm(net, arch, batch, "cpu", frozen)
    assert found == pytest.approx(float(norm), rel=1e-4)


class TwoAlike(Ranks):
    """Two ranks with the same images, of which this process is one."""

    def average(self, tensor):
        return tensor


def test_images_that_all_ranks_have_alike_are_counted_once():
    space = SPACES["two-sizes"]
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    probe = BatchProbe(
        build_net(space).train(),
        ArchitectureGenerator(space),
        {},
        images,
        labels,
        noise=torch.Generator(),
        temperature=1.0,
        ranks=TwoAlike(0, 2),
        fixed=[Batch(0, 0, images, labels)],
    )
    probe.level(space.largest)
    assert probe.compute == 6 * space.max_flops
    with torch.no_grad():
        probe.loss(space.largest, before=False)
    assert probe.compute == (6 + 2 * 6) * space.max_flops, "of a batch each has images of its own"
