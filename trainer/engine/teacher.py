"""Teacher: a network that does not learn, whose answers subnets are drawn to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.bundle.disk import reason
from models.bundle.files import MANIFEST
from models.bundle.folder import load_bundle
from models.images.preprocess import Preprocess
from models.nets.resolution import at_resolution
from models.spaces import get_space
from trainer.engine.timm_networks import pretrained_network
from trainer.recipes.recipe import Recipe
from trainer.samplers.base import group_archs

LARGEST = "largest"
"""The teacher that is the largest subnet itself, trained in the same steps."""
TIMM = "timm:"
OTHERS = "a bundle's folder, an .onnx file of shiftnas_serve.export, or timm:NAME"
"""Teachers that do not learn."""

Teacher = Callable[[Tensor], Tensor]
"""Normalized images as the student gets them, (B, 3, H, H) -> logits (B, classes), same device."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A subnet as ONNX, with what it says of itself (``Bundle.describe``)."""

    session: onnxruntime.InferenceSession
    labels: list[str]
    preprocess: Preprocess


def find_teacher(recipe: Recipe) -> Graph | nn.Module | None:
    """Read the recipe's teacher, if it has one that is not trained itself. Needs no data.

    Raises ValueError for one that is not there, and for a largest subnet that would not train.
    """
    name = recipe.distillation.teacher
    if name == LARGEST:
        space = get_space(recipe.space)
        archs = group_archs(space, recipe.sampler_options.archs)
        if archs and space.largest not in archs:
            raise ValueError(
                f"distillation.teacher={LARGEST} is the largest subnet, which this run does not "
                f"train: set distillation.teacher to {OTHERS}, or leave it empty "
                "(--set distillation.teacher=)"
            )
    if name in ("", LARGEST):
        return None
    if name.startswith(TIMM):
        return pretrained_network(name.removeprefix(TIMM), "a bundle or an exported subnet")
    path = Path(name)
    if (path / MANIFEST).is_file():
        bundle = load_bundle(path)
        largest = bundle.answer(float(bundle.max_flops))
        return _graph(name, bundle.build_onnx(largest).SerializeToString(), recipe)
    if path.suffix == ".onnx" and path.is_file():
        return _graph(name, path.read_bytes(), recipe)
    raise ValueError(f"no teacher {name}: it is {LARGEST}, {OTHERS}")


def open_teacher(recipe: Recipe, labels: Sequence[str] | int) -> Teacher | None:
    """The recipe's teacher, if it has one that is not trained itself.

    labels: the data's classes, or how many they are where nobody has read their names. Raises
    ValueError as ``find_teacher`` does, and for one that tells other classes apart.
    """
    found = find_teacher(recipe)
    if found is None:
        return None
    if isinstance(found, Graph):
        return _onnx_teacher(found, recipe, labels)
    return _timm_teacher(found, recipe, labels)


def _seen_by(teacher: Preprocess, side: int, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """From the student's images to the teacher's: its size, its mean and deviation."""
    mine, its = (
        [torch.tensor(v).view(1, 3, 1, 1) for v in (p.mean, p.std)] for p in (recipe, teacher)
    )

    def seen(images: Tensor) -> Tensor:
        mean, std, its_mean, its_std = (v.to(images) for v in (*mine, *its))
        return at_resolution((images * std + mean - its_mean) / its_std, side)

    return seen


def _graph(name: str, model: bytes, recipe: Recipe) -> Graph:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = recipe.threads
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - it has a class for each status code
        raise ValueError(f"teacher {name} is not a graph that runs: {reason(error)}") from None
    told = session.get_modelmeta().custom_metadata_map
    if "preprocess" not in told or "labels" not in told:
        raise ValueError(
            f"teacher {name} does not say how it reads images; export it with "
            "python -m shiftnas_serve.export"
        )
    steps = json.loads(told["preprocess"])
    read = Preprocess(recipe.mean, recipe.std).to_json()
    preprocess = Preprocess.from_json({key: steps[key] for key in read})
    return Graph(session, json.loads(told["labels"]), preprocess)


def _onnx_teacher(graph: Graph, recipe: Recipe, labels: Sequence[str] | int) -> Teacher:
    same = len(graph.labels) == labels if isinstance(labels, int) else graph.labels == [*labels]
    if not same:
        count = labels if isinstance(labels, int) else len(labels)
        raise ValueError(
            f"teacher {recipe.distillation.teacher} tells {len(graph.labels)} classes apart that "
            f"are not the data's {count}, in the same order; give one that was trained on the same "
            "classes"
        )
    session = graph.session
    seen = _seen_by(graph.preprocess, session.get_inputs()[0].shape[-1], recipe)

    def answer(images: Tensor) -> Tensor:
        arrays = np.ascontiguousarray(seen(images).cpu().numpy())
        (logits,) = session.run(None, {"images": arrays})
        return torch.from_numpy(np.asarray(logits)).to(images.device)

    return answer


def _timm_teacher(net: nn.Module, recipe: Recipe, labels: Sequence[str] | int) -> Teacher:
    import timm

    net = net.eval().requires_grad_(False)
    count = labels if isinstance(labels, int) else len(labels)
    if net.num_classes != count:
        raise ValueError(
            f"teacher {recipe.distillation.teacher} tells {net.num_classes} classes apart, the "
            f"data {count}"
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
