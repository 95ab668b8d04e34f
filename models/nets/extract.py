"""Extraction: a subnet as a network of its own, with copies of its weights. Uses torch."""

from __future__ import annotations

import torch

from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from models.space.weights import Statistics, fold_norms, weight_slices


def extract(net: AbstractNet, arch: Arch) -> AbstractNet:
    """The subnet of a supernet, with weights of its own on the same device, in the same mode.

    Where the space has BatchNorm, the subnet has it too and still needs ``statistics`` to run in
    evaluation mode; ``extract_folded`` does without. Raises ValueError if ``net`` is not a
    supernet.
    """
    subnet = _empty_subnet(net, arch, folded=False)
    weights = net.state_dict()
    subnet.load_state_dict({k: weights[k][s] for k, s in weight_slices(net.space, arch).items()})
    return subnet.train(net.training)


def extract_folded(net: AbstractNet, arch: Arch, statistics: Statistics) -> AbstractNet:
    """The subnet as it is deployed: each BatchNorm folded into its convolution, evaluation mode.

    ``statistics`` are those of ``arch`` (``calibration.py``), numpy; a space without BatchNorm
    takes an empty mapping. Raises ValueError if ``net`` is not a supernet, or naming the norm whose
    statistics are missing or do not fit.
    """
    subnet = _empty_subnet(net, arch, folded=True)
    supernet = net.state_dict()
    weights = {k: supernet[k][s].cpu().numpy() for k, s in weight_slices(net.space, arch).items()}
    folded = fold_norms(net.space, weights, statistics)
    subnet.load_state_dict({name: torch.from_numpy(array) for name, array in folded.items()})
    return subnet.eval()


def _empty_subnet(net: AbstractNet, arch: Arch, *, folded: bool) -> AbstractNet:
    if net.own_arch != net.space.largest:
        raise ValueError(
            f"this network is already a subnet of {net.space.name} "
            f"({net.space.arch_id(net.own_arch)}); extract from the supernet"
        )
    device = next(net.parameters()).device
    return build_net(net.space, arch, folded=folded).to(device)
