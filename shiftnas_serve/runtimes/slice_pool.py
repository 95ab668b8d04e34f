"""SlicePool: every distinct part of every weight, once for all subnets that use it.

ONNX Runtime computes with contiguous arrays. The first rows of one are contiguous, its first
columns are not: for each number of columns there is a copy, of as many rows as any subnet reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from weakref import WeakValueDictionary

import numpy as np

from models.bundle.folder import Bundle
from models.onnx.graph_template import Template
from models.onnx.ort import onnxruntime
from models.space.search_space import SearchSpace

Shape = tuple[int, ...]


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
    """The parts of a bundle's weights that are in use.

    ``transposed``: weights whose parts are stored transposed, because fewer copies do then.
    """

    def __init__(self, bundle: Bundle) -> None:
        shapes = read_shapes(bundle.space, bundle.template.permutations)
        self.transposed = smaller_transposed(shapes, matrices(bundle.template))
        self._rows = {
            name: most_rows({shape[::-1] for shape in some} if name in self.transposed else some)
            for name, some in shapes.items()
        }
        self._largest = self.laid_out(bundle.graph_weights(bundle.space.largest))
        self._columns: WeakValueDictionary[tuple[str, Shape, int], Columns] = WeakValueDictionary()

    @property
    def size_bytes(self) -> int:
        """Of the arrays that are in use."""
        return sum(columns.array.nbytes for columns in list(self._columns.values()))

    def laid_out(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a graph reads, as the pool stores it."""
        return {n: a.T if n in self.transposed else a for n, a in arrays.items()}

    def columns(self, name: str, wanted: np.ndarray) -> Columns:
        """The copy of which ``wanted`` (laid out) is the first rows."""
        # In most weights every subnet's part is a prefix on every axis; else it gets its own copy.
        width = wanted.shape[1:]
        shared, own = (name, width, 0), (name, width, len(wanted))
        for key in (shared, own):
            columns = self._columns.get(key)
            if columns is not None:
                return columns
        key, array = own, np.ascontiguousarray(wanted)
        most = self._rows.get(name, {}).get(width, 0)
        if most >= len(wanted):
            part = self._largest[name][tuple(slice(size) for size in (most, *width))]
            if np.array_equal(part[: len(wanted)], wanted):
                key, array = shared, np.ascontiguousarray(part)
        columns = self._columns[key] = Columns(array)
        return columns


def read_shapes(
    space: SearchSpace, permutations: Mapping[str, Sequence[int]]
) -> dict[str, set[Shape]]:
    """By weight, all shapes in which the graphs of subnets read it (``Template.permutations``)."""
    shapes: dict[str, set[Shape]] = {}
    for weight in space.weights:
        decisions = list(dict.fromkeys(d for size in weight.shape for d in size.decisions))
        for choices in itertools.product(*(space.decision[d].choices for d in decisions)):
            shape = weight.shape_at(dict(zip(decisions, choices, strict=True)))
            axes = permutations.get(weight.name, range(len(shape)))
            shapes.setdefault(weight.name, set()).add(tuple(shape[axis] for axis in axes))
    return shapes


def most_rows(shapes: Collection[Shape]) -> dict[Shape, int]:
    """By the sizes after the first axis, the most rows."""
    most: dict[Shape, int] = {}
    for rows, *width in shapes:
        most[tuple(width)] = max(most.get(tuple(width), 0), rows)
    return most


def matrices(template: Template) -> set[str]:
    """What is only ever the second factor of a product of matrices: either layout will do."""
    second = {s.inputs[1] for s in template.steps if s.proto.op_type == "MatMul"}
    other = {
        name
        for step in template.steps
        for place, name in enumerate(step.inputs)
        if step.proto.op_type != "MatMul" or place != 1
    }
    return second - other


def smaller_transposed(
    shapes: Mapping[str, Collection[Shape]], names: Collection[str]
) -> frozenset[str]:
    """Those of ``names`` whose parts take less when they are stored transposed."""

    def size(some: Collection[Shape]) -> int:
        return sum(rows * math.prod(width) for width, rows in most_rows(some).items())

    return frozenset(
        name
        for name in names
        if name in shapes
        and all(len(shape) == 2 for shape in shapes[name])
        and size([shape[::-1] for shape in shapes[name]]) < size(shapes[name])
    )
