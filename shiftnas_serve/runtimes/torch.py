"""The torch network itself, to compare with. Imported only when asked for; needs [train]."""

from __future__ import annotations

import io

import numpy as np
import torch

from models.bundle.folder import Bundle
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession


def static_net(bundle: Bundle, arch: Arch) -> AbstractNet:
    """A subnet as deployed: its own weights, BatchNorm folded, evaluation mode."""
    net = build_net(bundle.space, arch, folded=True).eval()
    weights = bundle.subnet_weights(arch)
    net.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in weights.items()})
    return net


def exported_program(bundle: Bundle, arch: Arch) -> bytes:
    """A subnet as the bytes of a torch.export program (.pt2), for any batch size.

    ``bundle.metadata(arch)`` is inside, as its ``extra_files``.
    """
    side = bundle.space.resolution(arch)
    batch = torch.export.Dim("batch", min=1, max=65536)
    shapes = ({0: batch},)
    images = torch.zeros(2, 3, side, side)
    program = torch.export.export(static_net(bundle, arch), (images,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=bundle.metadata(arch))
    return file.getvalue()


class TorchSession(AbstractSession):
    """A subnet as a static torch network."""

    def __init__(self, net: AbstractNet, device: str) -> None:
        self._net: AbstractNet | None = net
        self._device = device
        self.size_bytes = sum(p.numel() * p.element_size() for p in net.parameters())

    def run(self, images: np.ndarray) -> np.ndarray:
        assert self._net is not None, "this session was closed"
        with torch.inference_mode():
            return self._net(torch.from_numpy(images).to(self._device)).cpu().numpy()

    def close(self) -> None:
        self._net = None


class Torch(AbstractRuntime):
    """``device``: cpu or cuda."""

    def __init__(self, device: str, threads: int) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch sees no CUDA device; serve with --device cpu")
        torch.set_num_threads(threads)
        self._device = device

    def build(self, bundle: Bundle, arch: Arch) -> AbstractSession:
        return TorchSession(static_net(bundle, arch).to(self._device), self._device)

    def describe(self) -> dict[str, str]:
        return {"runtime": "torch", "device": self._device, "version": torch.__version__}
