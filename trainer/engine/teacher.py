"""Teacher: a network that does not learn, whose answers subnets are drawn to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from models.bundle.files import MANIFEST
from models.bundle.folder import load_bundle
from models.images.preprocess import Preprocess
from models.nets.resolution import at_resolution
from trainer.engine.timm_networks import pretrained_network
from trainer.recipes.recipe import Recipe

LARGEST = "largest"
"""The teacher that is the largest subnet itself, trained in the same steps."""
TIMM = "timm:"

Teacher = Callable[[Tensor], Tensor]
"""Normalized images as the student gets them, (B, 3, H, H) -> logits (B, classes), same device."""


def open_teacher(recipe: Recipe, labels: Sequence[str]) -> Teacher | None:
    """The recipe's teacher, if it has one that is not trained itself.

    Raises ValueError for one that is not there, or tells other classes apart than the data.
    """
    name = recipe.distillation.teacher
    if name in ("", LARGEST):
        return None
    if name.startswith(TIMM):
        return _timm_teacher(name.removeprefix(TIMM), recipe, labels)
    path = Path(name)
    if (path / MANIFEST).is_file():
        bundle = load_bundle(path)
        described = bundle.describe(bundle.space.largest)
        model = bundle.build_onnx(bundle.space.largest).SerializeToString()
        return _onnx_teacher(name, model, described, recipe, labels)
    if path.suffix == ".onnx" and path.is_file():
        return _onnx_teacher(name, path.read_bytes(), None, recipe, labels)
    raise ValueError(
        f"no teacher {name}: it is {LARGEST}, a bundle's folder, an .onnx file of "
        "shiftnas_serve.export, or timm:NAME"
    )


def _seen_by(teacher: Preprocess, side: int, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """From the student's images to the teacher's: its size, its mean and deviation."""
    mine, its = (
        [torch.tensor(v).view(1, 3, 1, 1) for v in (p.mean, p.std)] for p in (recipe, teacher)
    )

    def seen(images: Tensor) -> Tensor:
        mean, std, its_mean, its_std = (v.to(images) for v in (*mine, *its))
        return at_resolution((images * std + mean - its_mean) / its_std, side)

    return seen


def _onnx_teacher(
    name: str,
    model: bytes,
    described: dict[str, object] | None,
    recipe: Recipe,
    labels: Sequence[str],
) -> Teacher:
    """A subnet as a graph with its description; of a file, the description is inside."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = recipe.threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if described is None:
        told = session.get_modelmeta().custom_metadata_map
        if "preprocess" not in told:
            raise ValueError(
                f"teacher {name} does not say how it reads images; export it with "
                "python -m shiftnas_serve.export"
            )
        described = {key: json.loads(told[key]) for key in ("labels", "preprocess", "arch")}
    _check_labels(name, described["labels"], labels)
    preprocess = described["preprocess"]
    assert isinstance(preprocess, dict)
    read = Preprocess(recipe.mean, recipe.std).to_json()
    side = session.get_inputs()[0].shape[-1]
    seen = _seen_by(Preprocess.from_json({name: preprocess[name] for name in read}), side, recipe)

    def answer(images: Tensor) -> Tensor:
        arrays = np.ascontiguousarray(seen(images).cpu().numpy())
        (logits,) = session.run(None, {"images": arrays})
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return answer


def _timm_teacher(name: str, recipe: Recipe, labels: Sequence[str]) -> Teacher:
    import timm

    net = pretrained_network(name, "a bundle or an exported subnet")
    net = net.eval().requires_grad_(False)
    if net.num_classes != len(labels):
        raise ValueError(
            f"teacher timm:{name} tells {net.num_classes} classes apart, the data {len(labels)}"
        )
    config = timm.data.resolve_data_config(model=net)
    seen = _seen_by(
        Preprocess(tuple(config["mean"]), tuple(config["std"])), config["input_size"][-1], recipe
    )
    net.to(recipe.device)

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        return net(seen(images))

    return answer


def _check_labels(name: str, its: object, labels: Sequence[str]) -> None:
    if not isinstance(its, list) or list(labels) != its:
        count = len(its) if isinstance(its, list) else 0
        raise ValueError(
            f"teacher {name} tells {count} classes apart that are not the data's {len(labels)}, "
            "in the same order; give one that was trained on the same classes"
        )
