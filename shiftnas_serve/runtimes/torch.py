"""The torch network itself, to compare with. Imported only when asked for; needs [train]."""

from __future__ import annotations

import numpy as np
import torch

from models.bundle.folder import Bundle
from models.nets.deployed import deployed_net
from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractRuntime, AbstractSession


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
        return TorchSession(deployed_net(bundle, arch).to(self._device), self._device)

    def describe(self) -> dict[str, str]:
        return {"runtime": "torch", "device": self._device, "version": torch.__version__}
