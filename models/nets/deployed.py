"""A bundle's subnet as a torch network of its own, for Python and as a file. Uses torch."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from models.bundle.folder import Bundle
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.onnx import OPSET
from models.onnx.graph_template import INPUT
from models.space.arch import Arch

LARGEST_SIDE = 2048
"""Of images that a file of features takes, in pixels."""


class Features(nn.Module):
    """A network that gives ``AbstractNet.features`` where the other gives logits."""

    def __init__(self, net: AbstractNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net.features(images))


def deployed_net(bundle: Bundle, arch: Arch) -> AbstractNet:
    """A subnet as deployed: its own weights, BatchNorm folded, evaluation mode.

    ``net(images)`` gives logits, ``net.features(images)`` maps for dense tasks.
    """
    assert bundle.precision == "fp32", "what runs in 8 bits is the ONNX graph"
    net = build_net(bundle.space, arch, folded=True).eval()
    weights = bundle.subnet_weights(arch)
    net.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in weights.items()})
    return net


def exported_program(bundle: Bundle, arch: Arch, *, features: bool = False) -> bytes:
    """A subnet as the bytes of a torch.export program (.pt2), for any batch size.

    ``bundle.metadata(arch)`` is inside, as its ``extra_files``. features: see ``AbstractNet``; of a
    CNN they take images of any side that its coarsest stride divides.
    """
    net = deployed_net(bundle, arch)
    program = torch.export.export(
        Features(net).eval() if features else net,
        (_images(net),),
        dynamic_shapes=(_dynamic(net, sides=features),),
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=bundle.metadata(arch))
    return file.getvalue()


def features_onnx(bundle: Bundle, arch: Arch) -> bytes:
    """The features of a subnet as a self-contained ONNX model: ``images`` -> ``stride_2``, ...

    ``bundle.metadata(arch)`` is in its ``metadata_props``.
    """
    net = deployed_net(bundle, arch)
    program = torch.onnx.export(
        Features(net).eval(),
        (_images(net),),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=(_dynamic(net, sides=True),),
        input_names=[INPUT],
        output_names=[f"stride_{stride}" for stride in strides(net)],
        verbose=False,
    )
    assert program is not None
    for key, value in bundle.metadata(arch).items():
        program.model.metadata_props[key] = value
    return ir.to_proto(program.model).SerializeToString()


@torch.inference_mode()
def strides(net: AbstractNet) -> list[int]:
    """Of its features, from fine to coarse."""
    images = _images(net)
    return [images.shape[-1] // one.shape[-1] for one in net.features(images)]


def _images(net: AbstractNet) -> Tensor:
    side = net.space.resolution(net.own_arch)
    return torch.zeros(2, 3, side, side)


def _dynamic(net: AbstractNet, *, sides: bool) -> Mapping[int, object]:
    dims: dict[int, object] = {0: torch.export.Dim("batch", min=1, max=65536)}
    found = strides(net) if sides else []
    if len(found) > 1:  # a ViT has a position for each of its patches
        for axis, name in ((2, "height"), (3, "width")):
            most = LARGEST_SIDE // found[-1]
            dims[axis] = found[-1] * torch.export.Dim(name, min=1, max=most)
    return dims
