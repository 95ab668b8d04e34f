"""The generator's equations a second time, in plain torch operations: what gradients must be."""

import torch
import torch.nn.functional as F

from models.generator.tail import tail_of

HIDDEN = 64


def reference_forward(generator, budgets, *, temperature=1.0, gumbel=None):
    """Budgets (batch,) -> (policies, log-probabilities) as ``ArchitectureGenerator`` gives them.

    gumbel: (batch, choices) of all decisions, or None.
    """
    space, tail = generator.space, tail_of(generator.space)
    low, high = space.min_flops, space.max_flops
    budgets = budgets.double()
    position = ((budgets - low) / (high - low)).to(generator.start.dtype)
    features = torch.cos(torch.pi * position[:, None] * torch.arange(16))
    budget = generator.encode(features)
    entry = budget + generator.start
    hidden = cell = torch.zeros_like(budget)
    policies, log_probabilities = {}, {}
    indices = torch.zeros(len(budgets), len(space.decisions), dtype=torch.int64)
    columns = dict(zip(range(len(space.decisions)), split(space, gumbel), strict=True))
    gaps = None
    for place in tail.order:
        decision = space.decisions[place]
        count = len(decision.choices)
        if count == 1:
            policies[decision.name] = torch.ones(len(budgets), 1)
            log_probabilities[decision.name] = torch.zeros(len(budgets), 1)
            continue
        hidden, cell = generator.cell(entry, (hidden, cell))
        head, embedding = generator.heads[decision.kind], generator.embeddings[decision.kind]
        logits = F.linear(hidden, head.weight[:count], head.bias[:count])
        logits = 6 * torch.tanh(logits / 6)
        if place in tail.decisions:
            if gaps is None:
                gaps = tail.gaps(indices.numpy(), budgets.detach().numpy())
            logits = logits - torch.from_numpy(tail.toll(gaps))
        log_probabilities[decision.name] = F.log_softmax(logits, dim=1)
        if columns[place] is not None:
            logits = logits + columns[place]
        soft = F.softmax(logits / temperature, dim=1)
        indices[:, place] = soft.argmax(1)
        policy = F.one_hot(indices[:, place], count) + (soft - soft.detach())
        policies[decision.name] = policy
        if gaps is not None:
            gaps = tail.after(gaps, indices[:, place].numpy())
        entry = budget + F.linear(policy, embedding.weight[:, :count])
    names = [decision.name for decision in space.decisions]
    return {n: policies[n] for n in names}, {n: log_probabilities[n] for n in names}


def split(space, gumbel):
    counts = [len(decision.choices) for decision in space.decisions]
    if gumbel is None:
        return [None] * len(counts)
    return torch.from_numpy(gumbel).split(counts, dim=1)
