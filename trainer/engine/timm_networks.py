"""Pretrained networks of timm, which downloads them or takes them from its cache."""

from __future__ import annotations

from torch import nn

from models.bundle.disk import reason


def pretrained_network(name: str, instead: str) -> nn.Module:
    """A network by its name, with or without the tag of its weights (``resnet50.a1_in1k``).

    Raises ValueError for a name that timm does not know, and where it has no weights: then that
    says what to give ``instead``.
    """
    import timm

    if name not in timm.list_models() and name not in timm.list_models(pretrained=True):
        raise ValueError(f"timm has no network {name!r}; timm.list_models() lists them")
    try:
        return timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"timm cannot get the weights of {name}: {reason(error)}; give {instead} instead"
        ) from None
