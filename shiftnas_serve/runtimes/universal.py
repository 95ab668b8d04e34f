"""Universal sessions: ONNX Runtime sessions whose weights are inputs, so one serves many subnets.

Without BatchNorm a subnet's weights are nothing but parts of the supernet's. Then a session is
needed only for each set of blocks, not for each width, and what a subnet adds is a list of arrays.
Each distinct part of each weight is copied once, for all subnets together. (ONNX Runtime blocks the
weights of convolutions when it creates a session, which is worth a factor of three: networks made
of them get a session each.)
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakValueDictionary, ref

import numpy as np
import onnx
import onnxruntime

from models.arch import Arch
from models.bundle import Bundle
from shiftnas_serve.runtimes.base import AbstractSession

# Measured with vit-tiny (benchmarks.memory): a session without weights, a binding, what a subnet
# keeps for each of its weights.
_GRAPH_BYTES = 4_000_000
_BINDING_BYTES = 88_000
_REFERENCE_BYTES = 600
# Subnets whose bindings are kept.
_BINDINGS = 64


class Columns:
    """One weight at one width of all axes but the first; shorter first axes are views of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._values: dict[int, onnxruntime.OrtValue] = {}

    def value(self, rows: int) -> onnxruntime.OrtValue:
        """The first ``rows`` rows, not copied."""
        if rows not in self._values:
            view = self.array[:rows]
            self._values[rows] = onnxruntime.OrtValue.ortvalue_from_numpy(view)
        return self._values[rows]


class SlicePool:
    """Every distinct part of every weight, once, for as long as a subnet uses it.

    ``largest``: the arrays that the largest subnet's graph reads, of which parts are prefixes.
    ``rows``: of a weight and its sizes after the first axis, the most rows that a subnet reads.
    """

    def __init__(
        self, largest: Mapping[str, np.ndarray], rows: Mapping[tuple[str, tuple[int, ...]], int]
    ) -> None:
        self._largest, self._rows = largest, rows
        self._columns: WeakValueDictionary[tuple[str, tuple[int, ...], int], Columns] = (
            WeakValueDictionary()
        )

    @property
    def size_bytes(self) -> int:
        """Of the arrays that are in use."""
        return sum(columns.array.nbytes for columns in list(self._columns.values()))

    def columns(self, name: str, wanted: np.ndarray) -> Columns:
        """The copy of which ``wanted`` is the first rows."""
        # In most weights every subnet's part is a prefix on every axis; else it gets its own copy.
        shared = (name, wanted.shape[1:], 0)
        own = (name, wanted.shape[1:], wanted.shape[0])
        for key in (shared, own):
            columns = self._columns.get(key)
            if columns is not None:
                return columns
        key, array = own, np.ascontiguousarray(wanted)
        most = self._rows.get(shared[:2], 0)
        if most >= len(wanted):
            part = self._largest[name][tuple(slice(size) for size in (most, *wanted.shape[1:]))]
            if np.array_equal(part[: len(wanted)], wanted):
                key, array = shared, np.ascontiguousarray(part)
        columns = self._columns[key] = Columns(array)
        return columns


class BoundSession(AbstractSession):
    """A universal session with the weights of one subnet."""

    made = "universal"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: tuple[str, ...],
        weights: Sequence[tuple[Columns, int]],
        bindings: Bindings,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._names, self._bindings = names, bindings
        # Kept for the arrays' sake, too: a binding refers to their memory only.
        self._weights = tuple(weights)
        self.binding: onnxruntime.IOBinding | None = None
        self._lock = threading.Lock()
        self.size_bytes = _REFERENCE_BYTES * len(self._weights)

    def run(self, images: np.ndarray) -> np.ndarray:
        assert self._session is not None, "this session was closed"
        with self._lock:
            binding = self._bindings.of(self)
            binding.bind_cpu_input("images", images)
            binding.bind_output("logits")
            self._session.run_with_iobinding(binding)
            return np.asarray(binding.copy_outputs_to_cpu()[0])

    def bind(self) -> onnxruntime.IOBinding:
        """The session's inputs, all but the images, as ONNX Runtime wants them listed."""
        assert self._session is not None, "this session was closed"
        binding = self._session.io_binding()
        for name, (columns, rows) in zip(self._names, self._weights, strict=True):
            binding.bind_ortvalue_input(name, columns.value(rows))
        return binding

    def close(self) -> None:
        self._session = self.binding = None
        self._weights = ()


class Bindings:
    """Which subnets keep their bindings, which are large and soon made again: the last to run."""

    def __init__(self, most: int = _BINDINGS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[ref[BoundSession], None] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return _BINDING_BYTES * len(self._kept)

    def of(self, session: BoundSession) -> onnxruntime.IOBinding:
        """The binding of a session, made if it has none."""
        with self._lock:
            if session.binding is None:
                session.binding = session.bind()
            mine = ref(session)
            self._kept[mine] = None
            self._kept.move_to_end(mine)
            while len(self._kept) > self._most:
                other = self._kept.popitem(last=False)[0]()
                if other is not None:
                    other.binding = None
            return session.binding


class Universal:
    """The universal sessions of one bundle. ``create`` makes a session from a graph's bytes."""

    def __init__(
        self, bundle: Bundle, create: Callable[[bytes], onnxruntime.InferenceSession]
    ) -> None:
        assert not bundle.space.norms, "folded BatchNorms differ from subnet to subnet"
        self._bundle, self._create = bundle, create
        self._pool = SlicePool(bundle.graph_weights(bundle.space.largest), most_rows(bundle))
        self._bindings = Bindings()
        self._sessions: dict[tuple[int, frozenset[str]], onnxruntime.InferenceSession] = {}

    @property
    def size_bytes(self) -> int:
        """Of what the subnets share."""
        graphs = _GRAPH_BYTES * len(self._sessions)
        return self._pool.size_bytes + graphs + self._bindings.size_bytes

    def bind(self, arch: Arch) -> BoundSession:
        """A subnet: its weights' parts found or copied, its session found or created."""
        arrays = self._bundle.graph_weights(arch)
        key = (self._bundle.space.resolution(arch), frozenset(arrays))
        session = self._sessions.get(key)
        if session is None:
            model = weights_as_inputs(self._bundle.build_onnx_apart(arch, arrays))
            session = self._sessions[key] = self._create(model.SerializeToString())
        names = tuple(arrays)
        weights = [(self._pool.columns(name, arrays[name]), len(arrays[name])) for name in names]
        return BoundSession(session, names, weights, self._bindings)


def most_rows(bundle: Bundle) -> dict[tuple[str, tuple[int, ...]], int]:
    """Of each weight, by its sizes after the first axis as graphs read it: the most rows."""
    space, permutations = bundle.space, bundle.template.permutations
    most: dict[tuple[str, tuple[int, ...]], int] = {}
    for weight in space.weights:
        decisions = list(dict.fromkeys(d for size in weight.shape for d in size.decisions))
        for choices in itertools.product(*(space.decision[d].choices for d in decisions)):
            shape = weight.shape_at(dict(zip(decisions, choices, strict=True)))
            axes = permutations.get(weight.name, range(len(shape)))
            rows, *rest = (shape[axis] for axis in axes)
            key = (weight.name, tuple(rest))
            most[key] = max(most.get(key, 0), rows)
    return most


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A weightless graph (``cut_graph_apart``) whose weights are inputs of any size instead."""
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
    return model
