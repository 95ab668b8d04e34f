"""A subnet in 8 bits is a model of its own that says the same, nearly."""

import numpy as np

from benchmarks.int8 import classes, session_of
from benchmarks.parts.bundles import CIFAR10_CNN
from models.bundle.folder import load_bundle
from models.onnx.int8 import quantized


def test_a_subnet_in_8_bits_gives_nearly_the_same_logits():
    bundle = load_bundle(CIFAR10_CNN)
    arch = bundle.answer(4e6)
    model = bundle.build_onnx(arch).SerializeToString()
    images = np.random.default_rng(0).normal(size=(24, 3, 32, 32)).astype(np.float32)
    small = quantized(model, images[:16])
    assert len(small) < 0.6 * len(model)
    exact, near = (session_of(one).run(None, {"images": images})[0] for one in (model, small))
    assert near.shape == exact.shape
    assert near.dtype == np.float32
    # a processor without VNNI may cut sums off, so no more is asked of every machine
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.8
    assert (classes(session_of(small), images) == near.argmax(1)).all()
