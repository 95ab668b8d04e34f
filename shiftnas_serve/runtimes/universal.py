"""Universal sessions: ONNX Runtime sessions whose weights are inputs, so one serves many subnets.

Without BatchNorm a subnet's weights are nothing but parts of the supernet's. Then a session is
needed only for each set of blocks, not for each width, and what a subnet adds is a list of arrays
that all subnets share (``slice_pool``). (ONNX Runtime blocks the weights of convolutions when it
creates a session, which is worth a factor of three: networks made of them get a session each.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx

from models.bundle.folder import Bundle
from models.onnx.ort import onnxruntime
from models.space.arch import Arch
from shiftnas_serve.runtimes.base import AbstractSession
from shiftnas_serve.runtimes.slice_pool import Columns, SlicePool

# Measured with vit-tiny (benchmarks.memory): a session without weights; what a subnet keeps, and
# what it keeps for each of its weights.
_GRAPH_BYTES = 4_000_000
_SUBNET_BYTES = 4_000
_REFERENCE_BYTES = 60


class BoundSession(AbstractSession):
    """A universal session with the weights of one subnet.

    ``feeds``: they as the session's inputs, by name; ``columns``: the arrays they are views of.
    """

    made = "universal"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        feeds: Mapping[str, onnxruntime.OrtValue],
        columns: Sequence[Columns],
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._feeds, self._columns = dict(feeds), tuple(columns)
        self.size_bytes = _SUBNET_BYTES + _REFERENCE_BYTES * len(self._feeds)

    def run(self, images: np.ndarray) -> np.ndarray:
        session = self._session
        assert session is not None, "this session was closed"
        # A binding would keep the inputs listed as ONNX Runtime wants them, and 600 kB a subnet.
        feeds = {**self._feeds, "images": onnxruntime.OrtValue.ortvalue_from_numpy(images)}
        return np.asarray(session.run_with_ort_values(["logits"], feeds)[0].numpy())

    def close(self) -> None:
        self._session = None
        self._feeds.clear()
        self._columns = ()


class Universal:
    """The universal sessions of one bundle. ``create`` makes a session from a graph's bytes."""

    def __init__(
        self, bundle: Bundle, create: Callable[[bytes], onnxruntime.InferenceSession]
    ) -> None:
        assert not bundle.space.norms, "folded BatchNorms differ from subnet to subnet"
        self._bundle, self._create = bundle, create
        self.pool = SlicePool(bundle)
        self._sessions: dict[tuple[int, frozenset[str]], onnxruntime.InferenceSession] = {}

    @property
    def size_bytes(self) -> int:
        """Of what the subnets share."""
        return self.pool.size_bytes + _GRAPH_BYTES * len(self._sessions)

    def bind(self, arch: Arch) -> BoundSession:
        """A subnet: its weights' parts found or copied, its session found or created."""
        arrays = self._bundle.graph_weights(arch)
        key = (self._bundle.space.resolution(arch), frozenset(arrays))
        session = self._sessions.get(key)
        if session is None:
            model = self._bundle.build_onnx_apart(arch, arrays)
            data = weights_as_inputs(model, self.pool.transposed).SerializeToString()
            session = self._sessions[key] = self._create(data)
        laid_out = self.pool.laid_out(arrays)
        columns = {name: self.pool.columns(name, array) for name, array in laid_out.items()}
        feeds = {name: columns[name].value(len(array)) for name, array in laid_out.items()}
        return BoundSession(session, feeds, tuple(columns.values()))


def weights_as_inputs(model: onnx.ModelProto, transposed: Collection[str]) -> onnx.ModelProto:
    """A weightless graph (``cut_graph_apart``) whose weights are inputs of any size instead.

    Those in ``transposed``, second factors of products of matrices, come transposed; the product is
    ONNX Runtime's own operator then, which is as fast.
    """
    graph = model.graph
    constants = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            shape = [f"{tensor.name}.{axis}" for axis in range(len(tensor.dims))]
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, shape)
            )
    del graph.initializer[:]
    graph.initializer.extend(constants)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in transposed:
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
            node.attribute.append(onnx.helper.make_attribute("transB", 1))
    if transposed:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model
