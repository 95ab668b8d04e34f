"""Bundle: the deployable artifact of a training run, and all that the server reads. No torch.

A folder::

    bundle.json              what it is: space, labels, preprocessing, frontier, provenance, hashes
    supernet.safetensors     the shared weights
    generator.safetensors    the architecture generator
    statistics.safetensors   BatchNorm statistics of every arch it answers, by arch id
    template.onnx            the largest subnet's graph without weights (models.template)

No pickle anywhere. Loading checks every hash and shape and names what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.arch import Arch
from models.decode import decode
from models.graph import cut_graph
from models.policy import GeneratorPolicy
from models.preprocess import Preprocess
from models.space import SearchSpace
from models.spaces import get_space
from models.weights import Statistics, fold_norms, slice_weights

FORMAT = 1
MANIFEST = "bundle.json"
SUPERNET, GENERATOR = "supernet.safetensors", "generator.safetensors"
STATISTICS, TEMPLATE = "statistics.safetensors", "template.onnx"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class FrontierRow:
    """What is answered at a budget, and how often it is right (None: not measured)."""

    budget_flops: float
    arch: Arch
    flops: int
    params: int
    val_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. Immutable; arrays are shared, not copied.

    answers: the archs that may be answered, each with the budget from which on, ascending. A space
    without BatchNorm may have none: any of its archs can be answered, and the generator is asked.
    """

    name: str
    version: str
    space: SearchSpace
    preprocess: Preprocess
    labels: tuple[str, ...]
    groups: tuple[int, ...]
    frontier: tuple[FrontierRow, ...]
    answers: tuple[tuple[float, Arch], ...]
    weights: Mapping[str, np.ndarray]
    generator: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray]
    template: onnx.ModelProto
    provenance: Mapping[str, Json]

    @property
    def min_flops(self) -> int:
        return self.space.min_flops

    @property
    def max_flops(self) -> int:
        return self.space.max_flops

    @cached_property
    def policy(self) -> GeneratorPolicy:
        return GeneratorPolicy(self.space, self.generator)

    def answer(self, budget_flops: float) -> Arch:
        """The generator's arch for a budget: ``space.flops(arch) <= budget_flops`` always.

        Where answers to a fine grid of budgets are stored (always with BatchNorm, whose statistics
        exist for those archs only), a budget gets the largest of them that it allows. Raises
        ValueError below the smallest subnet.
        """
        if not budget_flops >= self.min_flops:
            raise ValueError(
                f"a budget of {budget_flops:,.0f} FLOPs is below the smallest subnet of "
                f"{self.name}: budgets start at {self.min_flops:,} FLOPs, and from "
                f"{self.max_flops:,} on the largest answers"
            )
        if self.answers:
            index = bisect_right(self._from_budgets, budget_flops) - 1
            arch = self.answers[max(index, 0)][1]
        else:
            arch = decode(self.space, self.policy.log_probabilities(budget_flops), budget_flops)
            assert self.space.flops(arch) <= budget_flops
        return arch

    def archs(self) -> tuple[Arch, ...]:
        """The stored answers, each once; where there are none, the frontier's archs."""
        listed = [arch for _, arch in self.answers] or [row.arch for row in self.frontier]
        return tuple(dict.fromkeys(listed))

    def arch_statistics(self, arch: Arch) -> Statistics:
        """BatchNorm statistics of an arch. Raises ValueError for one that was not calibrated."""
        if not self.space.norms:
            return {}
        key = self.space.arch_id(arch)
        if key not in self.statistics:
            raise ValueError(
                f"subnet {key} of {self.name} has no BatchNorm statistics; only the "
                f"{len(self.statistics)} archs that the bundle answers were calibrated"
            )
        return unpack_statistics(self.space, arch, self.statistics[key])

    def subnet_weights(self, arch: Arch) -> dict[str, np.ndarray]:
        """The weights of a subnet as deployed: sliced, BatchNorm folded, float32."""
        sliced = slice_weights(self.space, arch, self.weights)
        return fold_norms(self.space, sliced, self.arch_statistics(arch))

    def build_onnx(self, arch: Arch) -> onnx.ModelProto:
        """The subnet as a self-contained ONNX model: images -> logits."""
        return cut_graph(self.template, self.space, arch, self.subnet_weights(arch))

    @cached_property
    def _from_budgets(self) -> list[float]:
        return [budget for budget, _ in self.answers]


def pack_statistics(space: SearchSpace, arch: Arch, statistics: Statistics) -> np.ndarray:
    """An arch's statistics as one array, float32 (2, sum of channels): means, variances."""
    names = _present_norms(space, arch)
    parts = [np.concatenate([statistics[n][row] for n in names]) for row in (0, 1)]
    return np.stack(parts).astype(np.float32)


def unpack_statistics(space: SearchSpace, arch: Arch, packed: np.ndarray) -> Statistics:
    """The reverse. Raises ValueError if the number of channels is not the arch's."""
    sizes = {n.name: n.size(arch) for n in space.norms if n.block is None or n.block.present(arch)}
    if packed.shape != (2, sum(sizes.values())):
        raise ValueError(
            f"{STATISTICS}: {space.arch_id(arch)} has shape {packed.shape}, "
            f"its arch needs {(2, sum(sizes.values()))}"
        )
    ends = np.cumsum(list(sizes.values()))[:-1]
    means, variances = (np.split(row, ends) for row in packed)
    return dict(zip(sizes, zip(means, variances, strict=True), strict=True))


def _present_norms(space: SearchSpace, arch: Arch) -> list[str]:
    return [n.name for n in space.norms if n.block is None or n.block.present(arch)]


# ---- saving ------------------------------------------------------------------------------------


def save_bundle(
    path: Path,
    *,
    name: str,
    space: SearchSpace,
    preprocess: Preprocess,
    labels: Sequence[str],
    groups: Sequence[int],
    frontier: Sequence[FrontierRow],
    answers: Sequence[tuple[float, Arch]],
    weights: Mapping[str, np.ndarray],
    generator: Mapping[str, np.ndarray],
    statistics: Mapping[Arch, Statistics],
    template: bytes,
    provenance: Mapping[str, Json],
) -> None:
    """Write a bundle; an old one at ``path`` is replaced in one step, or left whole.

    Raises ValueError if ``path`` is something other than a bundle.
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(f"{path} exists and is no bundle (no {MANIFEST}); choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_file(_contiguous(weights), partial / SUPERNET)
        save_file(_contiguous(generator), partial / GENERATOR)
        (partial / TEMPLATE).write_bytes(template)
        if space.norms:
            packed = {space.arch_id(a): pack_statistics(space, a, s) for a, s in statistics.items()}
            save_file(_contiguous(packed), partial / STATISTICS)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, which a container's user could not read
        files = {file.name: _describe(file) for file in sorted(partial.iterdir())}
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        document: dict[str, Json] = {
            "format": FORMAT,
            "name": name,
            "version": digest[:12],
            "space": {"name": space.name, "num_classes": space.num_classes},
            "preprocess": json.loads(json.dumps(preprocess.to_json())),
            "labels": list(labels),
            "flops": {"min": space.min_flops, "max": space.max_flops, "groups": list(groups)},
            "frontier": [frontier_row_to_json(space, row) for row in frontier],
            "answers": [
                {"budget_flops": budget, "id": space.arch_id(arch), "arch": _arch_json(space, arch)}
                for budget, arch in answers
            ],
            "provenance": dict(provenance),
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
        load_bundle(partial)
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def frontier_row_to_json(space: SearchSpace, row: FrontierRow) -> dict[str, Json]:
    """A row of the frontier table as plain JSON values."""
    return {
        "budget_flops": row.budget_flops,
        "id": space.arch_id(row.arch),
        "arch": _arch_json(space, row.arch),
        "flops": row.flops,
        "params": row.params,
        "val_accuracy": row.val_accuracy,
        "test_accuracy": row.test_accuracy,
    }


def _arch_json(space: SearchSpace, arch: Arch) -> Json:
    return json.loads(json.dumps(space.arch_to_json(arch)))


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _describe(file: Path) -> Json:
    data = file.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def _swap(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path``; a folder cannot be renamed over a full one."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---- loading -----------------------------------------------------------------------------------


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle. Raises ValueError naming the file or field that is wrong."""
    path = Path(path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{path} is no bundle: it has no {MANIFEST}")
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{manifest} is no JSON: {error}") from None
    try:
        return _parse(path, _Fields(document, MANIFEST))
    except ValueError as error:
        raise ValueError(f"bundle {path}: {error}") from None


class _Fields:
    """A JSON object whose fields are asked for by name and type, and named when wrong."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{where} must be an object, not {type(document).__name__}")
        self._document: dict[str, object] = document
        self._where = where

    def value(self, name: str, *kinds: type) -> object:
        if name not in self._document:
            raise ValueError(f"{self._where} has no {name!r}")
        value = self._document[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self._where}: {name} must be {allowed}, not {value!r:.60}")
        return value

    def text(self, name: str) -> str:
        return str(self.value(name, str))

    def integer(self, name: str) -> int:
        value = self.value(name, int)
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        value = self.value(name, int, float)
        assert isinstance(value, int | float)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self._document.get(name) is None else self.number(name)

    def items(self, name: str) -> list[object]:
        value = self.value(name, list)
        assert isinstance(value, list)
        return value

    def part(self, name: str) -> _Fields:
        return _Fields(self.value(name, dict), f"{self._where}: {name}")

    def mapping(self, name: str) -> dict[str, object]:
        value = self.value(name, dict)
        assert isinstance(value, dict)
        return value


def _parse(path: Path, fields: _Fields) -> Bundle:
    number = fields.integer("format")
    if number != FORMAT:
        raise ValueError(f"format is {number}; this version reads format {FORMAT}")
    described = fields.part("space")
    space = get_space(described.text("name"), described.integer("num_classes"))
    labels = tuple(str(label) for label in fields.items("labels"))
    if len(labels) != space.num_classes:
        raise ValueError(f"labels has {len(labels)} entries for {space.num_classes} classes")
    flops = fields.part("flops")
    for name, mine in (("min", space.min_flops), ("max", space.max_flops)):
        if flops.integer(name) != mine:
            raise ValueError(
                f"flops: {name} is {flops.integer(name):,}, but {space.name} has {mine:,}"
            )
    _check_files(path, fields.mapping("files"), space)
    weights = _load_arrays(path / SUPERNET)
    _check_shapes(weights, {w.name: w.shape_at(space.largest) for w in space.weights}, SUPERNET)
    answers = []
    for index, entry in enumerate(fields.items("answers")):
        row = _Fields(entry, f"answers[{index}]")
        answers.append((row.number("budget_flops"), _arch(space, row)))
    _check_answers(space, answers)
    statistics = _load_arrays(path / STATISTICS) if space.norms else {}
    for _, arch in answers:
        if space.norms:
            if space.arch_id(arch) not in statistics:
                raise ValueError(f"{STATISTICS} lacks {space.arch_id(arch)}, which is answered")
            unpack_statistics(space, arch, statistics[space.arch_id(arch)])
    try:
        template = onnx.load_model_from_string((path / TEMPLATE).read_bytes())
    except Exception as error:  # noqa: BLE001 - protobuf's own error class is not part of its interface
        raise ValueError(f"{TEMPLATE} is no ONNX model: {error}") from None
    return Bundle(
        name=fields.text("name"),
        version=fields.text("version"),
        space=space,
        preprocess=Preprocess.from_json(fields.mapping("preprocess")),
        labels=labels,
        groups=tuple(int(str(group)) for group in flops.items("groups")),
        frontier=tuple(
            _frontier_row(space, _Fields(entry, f"frontier[{index}]"))
            for index, entry in enumerate(fields.items("frontier"))
        ),
        answers=tuple(answers),
        weights=weights,
        generator=_load_arrays(path / GENERATOR),
        statistics=statistics,
        template=template,
        provenance=json.loads(json.dumps(fields.mapping("provenance"))),
    )


def _arch(space: SearchSpace, row: _Fields) -> Arch:
    arch = space.arch_from_json(row.mapping("arch"))
    if row.text("id") != space.arch_id(arch):
        raise ValueError(f"id {row.text('id')} is not that of its arch ({space.arch_id(arch)})")
    return arch


def _frontier_row(space: SearchSpace, row: _Fields) -> FrontierRow:
    arch = _arch(space, row)
    return FrontierRow(
        budget_flops=row.number("budget_flops"),
        arch=arch,
        flops=space.flops(arch),
        params=space.params(arch),
        val_accuracy=row.optional_number("val_accuracy"),
        test_accuracy=row.optional_number("test_accuracy"),
    )


def _check_answers(space: SearchSpace, answers: Sequence[tuple[float, Arch]]) -> None:
    if (space.norms and not answers) or (answers and answers[0][0] > space.min_flops):
        raise ValueError(f"answers must begin at the smallest subnet ({space.min_flops:,} FLOPs)")
    for index, (budget, arch) in enumerate(answers):
        if space.flops(arch) > budget:
            raise ValueError(f"answers[{index}]: {space.flops(arch):,} FLOPs exceed {budget:,}")
        if index and budget <= answers[index - 1][0]:
            raise ValueError(f"answers[{index}]: budgets must ascend")


def _check_files(path: Path, files: Mapping[str, object], space: SearchSpace) -> None:
    for name in (SUPERNET, GENERATOR, TEMPLATE, *([STATISTICS] if space.norms else [])):
        if name not in files:
            raise ValueError(f"files does not list {name}")
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        expected = _Fields(files[name], f"files: {name}")
        found = _Fields(_describe(path / name), name)
        if expected.integer("size_bytes") != found.integer("size_bytes"):
            raise ValueError(
                f"{name} has {found.integer('size_bytes'):,} bytes, "
                f"not {expected.integer('size_bytes'):,}; it is cut off or another file"
            )
        if expected.text("sha256") != found.text("sha256"):
            raise ValueError(f"{name} has another SHA-256 than {MANIFEST} says; it was changed")


def _load_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file.name} is no safetensors file: {error}") from None


def _check_shapes(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{where} lacks {name}")
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise ValueError(
                f"{where}: {name} is {arrays[name].dtype} {arrays[name].shape}, not float32 {shape}"
            )
    for name in arrays:
        if name not in shapes:
            raise ValueError(f"{where} has {name}, which the space does not know")
