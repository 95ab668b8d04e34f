"""A first classifier on what a pretrained network sees, before any of its weights move.

A random one would send gradients of no use through good weights, and spoil them (linear probing
first: arXiv 2202.10054). One pass over some images at a middle resolution, then logistic regression
by L-BFGS; it costs a fraction of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nets.elastic import AbstractNet, ElasticLinear
from models.nets.normalize import BatchStatistics
from models.nets.resolution import at_resolution
from models.space.arch import Arch
from trainer.data.batches import Batch

IMAGES = 5_000
"""At most so many are looked at."""
DECAY = 1e-2
"""Of squared weights of the classifier, on features of about unit size."""
_ITERATIONS = 60


def fit_classifier(
    net: AbstractNet, arch: Arch, statistics: BatchStatistics, batches: Iterable[Batch], device: str
) -> tuple[int, float]:
    """Fit ``net.classifier``; answers how many images it saw and which part of them is right."""
    classifier = net.get_submodule("classifier")
    assert isinstance(classifier, ElasticLinear)
    features, labels = _features(net, arch, statistics, batches, device)
    scale = features.std() + 1e-6
    head = nn.Linear(features.shape[1], len(classifier.weight)).to(device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(head(features / scale), labels) + DECAY * head.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        right = float((head(features / scale).argmax(1) == labels).float().mean())
        classifier.weight[:, : features.shape[1]].copy_(head.weight / scale)
        classifier.bias.copy_(head.bias)
    return len(labels), right


def _features(
    net: AbstractNet, arch: Arch, statistics: BatchStatistics, batches: Iterable[Batch], device: str
) -> tuple[Tensor, Tensor]:
    """What reaches the classifier, (images, features), and the labels."""
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    classifier = net.get_submodule("classifier")

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().float())

    hook = classifier.register_forward_pre_hook(look)
    was_training = net.training
    net.train(statistics is None)  # which then normalizes by the batch
    try:
        with torch.no_grad():
            for batch in batches:
                images = at_resolution(batch.images.to(device), net.space.resolution(arch))
                net(images, arch, statistics)
                labels.append(batch.labels.to(device))
                if sum(map(len, labels)) >= IMAGES:
                    break
    finally:
        hook.remove()
        net.train(was_training)
    return torch.cat(seen), torch.cat(labels)
