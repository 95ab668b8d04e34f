"""The baseline of serve_load: LitServe as its documentation has it, with a ``predict`` by groups.

    python -m benchmarks.plain_litserve --port 8000

``POST /predict`` with JSON ``{"image": base64, "flops": budget}``. LitServe collects a batch, the
images are grouped by subnet, each group runs once.
"""

import base64
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from benchmarks.parts.bundles import CIFAR10_CNN
from models.bundle.folder import load_bundle
from models.command import command_parser, tells_mistakes
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.runtimes import build_runtime


class GroupedApi(litserve.LitAPI):
    """Decodes in the worker, groups in ``predict``; all sessions are there from the start."""

    def __init__(self, bundle: Path, max_batch: int) -> None:
        wait_s = 0.005 if max_batch > 1 else 0.0
        super().__init__(max_batch_size=max_batch, batch_timeout=wait_s)
        self.folder = bundle

    def setup(self, device: str) -> None:
        self.bundle = load_bundle(self.folder)
        self.engine = Sessions(self.bundle, build_runtime("onnxruntime", "cpu", 1), 10**12)
        for arch in self.bundle.archs():
            self.engine.session(arch)

    # With this annotation LitServe reads the body as JSON; it must be the class, not its name.
    def decode_request(self, request: Request, **kwargs: Any) -> Any:
        """Pixels and subnet."""
        body: Any = request
        arch = self.bundle.answer(body["flops"])
        side = self.bundle.space.resolution(arch)
        data = base64.b64decode(body["image"])
        preprocess = self.bundle.preprocess
        return arch, preprocess.pixels(preprocess.decode(data, side), side)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are: subnets differ in the size of their images."""
        return inputs

    def unbatch(self, output: Any) -> Any:
        return output

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """The logits of each image, in order."""
        items = x if isinstance(x, list) else [x]
        groups: dict[Any, list[int]] = {}
        for index, (arch, _) in enumerate(items):
            groups.setdefault(arch, []).append(index)
        answers: list[Any] = [None] * len(items)
        for arch, indices in groups.items():
            pixels = np.stack([items[index][1] for index in indices])
            done = self.engine.run(arch, self.bundle.preprocess.normalize(pixels))
            for index, logits in zip(indices, done.logits, strict=True):
                answers[index] = logits
        return answers if isinstance(x, list) else answers[0]

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """The best class and all logits."""
        return {"index": int(np.argmax(output)), "logits": output.tolist()}


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.plain_litserve", __doc__, json=False)
    parser.add_argument("--bundle", type=Path, default=CIFAR10_CNN)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch", type=int, default=8)
    options = parser.parse_args(arguments)
    load_bundle(options.bundle)  # what is wrong with it is told here, and not by a worker
    api = GroupedApi(options.bundle, options.max_batch)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=options.port, log_level="error", generate_client_file=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
