"""Bundle: the deployable artifact of a training run, and all that the server reads. No torch.

A folder::

    bundle.json              what it is: space, labels, preprocessing, frontier, provenance, hashes
    card.md                  the same for people: made from what, good for what, how good; may lack
    supernet.safetensors     the shared weights; half precision where that holds them exactly
    generator.safetensors    the architecture generator
    statistics.safetensors   BatchNorm statistics of every arch that is answered; or one for all
    template.onnx            the largest subnet's graph without weights (models.onnx.template)
    latency_ms.cost.json     answers to budgets of another cost (models.bundle.costs); may lack
    int8.safetensors         ranges of activations, for int8 (models.bundle.int8); may lack

No pickle anywhere. Loading checks every hash and shape and names what is wrong.

Here is how one is written and read; ``value`` is what it answers, ``manifest`` what ``bundle.json``
says, ``files`` the files beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.numpy import save_file

from models.bundle.confidence import Confidence
from models.bundle.costs import ENDING, CostAnswers, read_cost_answers
from models.bundle.disk import reason, refused
from models.bundle.files import (
    CARD,
    GENERATOR,
    MANIFEST,
    STATISTICS,
    SUPERNET,
    TEMPLATE,
    check_files,
    check_shapes,
    contiguous,
    describe,
    halved,
    load_arrays,
    swap,
)
from models.bundle.int8 import INT8, Int8
from models.bundle.manifest import (
    FORMAT,
    FlopsEntry,
    Manifest,
    SpaceEntry,
    answer_entry,
    answers_of,
    confidence_entry,
    confidence_of,
    frontier_entry,
    frontier_row,
    int8_entry,
    int8_of,
    read_manifest,
    version_of,
)
from models.bundle.value import (
    SHARED,
    Bundle,
    FrontierRow,
    check_int8,
    pack_shared,
    pack_statistics,
    unpack_shared,
    unpack_statistics,
)
from models.generator.policy import generator_shapes
from models.images.preprocess import Preprocess
from models.onnx.graph_template import Template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics, Statistics
from models.spaces import get_space


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
    statistics: Mapping[Arch, Statistics] | None = None,
    shared_statistics: SharedStatistics | None = None,
    template: bytes,
    provenance: Mapping[str, JsonValue],
    card: str = "",
    half: bool = False,
    confidence: Confidence | None = None,
) -> None:
    """Write a bundle; an old one at ``path`` is replaced in one step, or left whole.

    A space with BatchNorm has ``statistics`` of each arch, or ``shared_statistics`` of all.
    ``half``: store weights in half precision, which has to hold them exactly
    (``models.bundle.files.halved``).

    Raises ValueError if ``path`` is something other than a bundle, or cannot be written.
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(f"{path} exists and is not a bundle (no {MANIFEST}); choose another place")
    with _made(path) as partial:
        partial.mkdir(parents=True)
        assert not half or all(np.array_equal(a, weights[k]) for k, a in halved(weights).items())
        save_file(contiguous(weights, np.float16 if half else np.float32), partial / SUPERNET)
        save_file(contiguous(generator), partial / GENERATOR)
        (partial / TEMPLATE).write_bytes(template)
        if space.norms:
            assert (statistics is None) != (shared_statistics is None)
            if shared_statistics is not None:
                packed = pack_shared(space, shared_statistics)
            else:
                each = (statistics or {}).items()
                packed = {space.arch_id(a): pack_statistics(space, a, s) for a, s in each}
            save_file(contiguous(packed), partial / STATISTICS)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, which a container's user could not read
        manifest = Manifest(
            format=FORMAT,
            name=name,
            version="",
            space=SpaceEntry(name=space.name, num_classes=space.num_classes),
            preprocess=preprocess,
            labels=tuple(labels),
            flops=FlopsEntry(
                min=space.flops(answers[0][1]) if answers else space.min_flops,
                max=space.max_flops,
                groups=tuple(groups),
            ),
            frontier=tuple(frontier_entry(space, row) for row in frontier),
            answers=tuple(answer_entry(space, budget, arch) for budget, arch in answers),
            provenance=dict(provenance),
            files={file.name: describe(file) for file in sorted(partial.iterdir())},
            confidence=None if confidence is None else confidence_entry(confidence),
        )
        _write_manifest(partial / MANIFEST, manifest)
        if card:
            (partial / CARD).write_text(card, encoding="utf-8")


def save_with_cost(
    source: Path,
    path: Path,
    answers: CostAnswers,
    statistics: Mapping[Arch, Statistics],
    provenance: Mapping[str, JsonValue],
) -> None:
    """Write the bundle at ``source`` once more, which also answers budgets of another cost.

    ``statistics``: of the archs that had none. ``provenance`` joins the bundle's. Raises ValueError
    as ``save_bundle``.
    """
    bundle = load_bundle(source)
    name = answers.cost.name
    with _changed_copy(source, path) as (partial, said):
        if statistics:
            of_archs = {
                bundle.space.arch_id(arch): pack_statistics(bundle.space, arch, own)
                for arch, own in statistics.items()
            }
            save_file(contiguous({**bundle.statistics, **of_archs}), partial / STATISTICS)
        (partial / f"{name}{ENDING}").write_text(json.dumps(answers.to_json()) + "\n")
        changed = [f"{name}{ENDING}", *([STATISTICS] if statistics else [])]
        told = {**said.provenance, name: dict(provenance)}
        _say(partial, said.model_copy(update={"provenance": told}), changed)


def save_with_int8(source: Path, path: Path, int8: Int8) -> None:
    """Write the bundle at ``source`` once more, which holds its answers in 8-bit integers too.

    ``path`` may be ``source``. Raises ValueError as ``save_bundle``.
    """
    bundle = load_bundle(source)
    entry = int8_entry(bundle.space, int8, (row.arch for row in bundle.frontier))
    with _changed_copy(source, path) as (partial, said):
        save_file(contiguous(int8.ranges), partial / INT8)
        _say(partial, said.model_copy(update={"int8": entry}), [INT8])


@contextmanager
def _made(path: Path) -> Iterator[Path]:
    """Where to write a bundle, which is then checked and put at ``path``.

    Raises ValueError if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        load_bundle(partial)
        swap(partial, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(refused(path, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _changed_copy(source: Path, path: Path) -> Iterator[tuple[Path, Manifest]]:
    """A copy of a bundle to change, with its manifest; it becomes ``path`` as by ``_made``."""
    with _made(path) as partial:
        shutil.copytree(source, partial)
        yield partial, read_manifest((partial / MANIFEST).read_text(encoding="utf-8"))


def _say(partial: Path, said: Manifest, changed: Sequence[str]) -> None:
    """Write the manifest of files of which some were changed."""
    for name in changed:
        (partial / name).chmod(0o644)  # safetensors writes 0600
    files = {**said.files, **{name: describe(partial / name) for name in changed}}
    _write_manifest(partial / MANIFEST, said.model_copy(update={"files": files}))


def add_confidence(path: Path, confidence: Confidence) -> str:
    """Write it into a bundle, in place of what the bundle has; answers the bundle's new version.

    Raises ValueError if ``path`` is not a bundle, does not answer what a pair is of, or cannot be
    written.
    """
    _check_pairs(load_bundle(path), confidence)
    said = read_manifest((path / MANIFEST).read_text(encoding="utf-8"))
    said = said.model_copy(update={"confidence": confidence_entry(confidence)})
    partial = path / f".{MANIFEST}.partial-{os.getpid()}"
    try:
        version = _write_manifest(partial, said)
        partial.replace(path / MANIFEST)
    except OSError as error:
        raise ValueError(refused(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return version


def _write_manifest(file: Path, manifest: Manifest) -> str:
    """Answers the version that its content has."""
    without = {name for name in ("confidence", "int8") if getattr(manifest, name) is None}
    document = manifest.model_dump(mode="json", exclude=without)
    document["version"] = version_of(document)
    file.write_text(json.dumps(document, indent=1) + "\n")
    return document["version"]


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle. Raises ValueError naming the file or field that is wrong.

    What is read is a copy: files that change later change nothing.
    """
    path = Path(path)
    try:
        return _checked(path)
    except OSError as error:
        raise ValueError(f"cannot read {error.filename or path}: {reason(error)}") from None


def _checked(path: Path) -> Bundle:
    manifest = path / MANIFEST
    if not manifest.is_file():
        missing = f"it has no {MANIFEST}" if path.is_dir() else "there is no such folder"
        raise ValueError(
            f"{path} is not a bundle: {missing}; give a folder that a training wrote, such as "
            "runs/NAME/bundle"
        )
    try:
        text = manifest.read_text(encoding="utf-8")
        document = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{manifest} is not JSON: {error}") from None
    try:
        said = read_manifest(text)
        bundle = _load(path, said)
        if said.version != (content := version_of(document)):
            raise ValueError(
                f"version is {said.version}, its content's is {content}: {MANIFEST} was changed"
            )
    except ValueError as error:
        raise ValueError(f"bundle {path}: {error}") from None
    return bundle


def _load(path: Path, said: Manifest) -> Bundle:
    space = get_space(said.space.name, said.space.num_classes)
    if len(said.labels) != space.num_classes:
        raise ValueError(f"labels has {len(said.labels)} entries for {space.num_classes} classes")
    check_files(path, said.files, space, int8=said.int8 is not None)
    answers = answers_of(space, said.answers)
    least = space.flops(answers[0][1]) if answers else space.min_flops
    for name, written, mine in (
        ("min", said.flops.min, least),
        ("max", said.flops.max, space.max_flops),
    ):
        if written != mine:
            raise ValueError(f"flops: {name} is {written:,}, but {space.name} has {mine:,}")
    weights = load_arrays(path / SUPERNET)
    check_shapes(weights, {w.name: w.shape_at(space.largest) for w in space.weights}, SUPERNET)
    generator = load_arrays(path / GENERATOR)
    check_shapes(generator, generator_shapes(space), GENERATOR)
    statistics = load_arrays(path / STATISTICS) if space.norms else {}
    costs = {
        name.removesuffix(ENDING): read_cost_answers(space, name, (path / name).read_text("utf-8"))
        for name in said.files
        if name.endswith(ENDING)
    }
    if space.norms:
        also = [arch for one in costs.values() for arch in one.archs()]
        _check_statistics(space, [*(arch for _, arch in answers), *also], statistics)
    graph = (path / TEMPLATE).read_bytes()
    try:
        template = Template.parse(graph)
        weights = template.lay_out(weights)
    except ValueError as error:
        raise ValueError(f"{TEMPLATE} is {error}") from None
    except Exception as error:  # noqa: BLE001 - a graph can be wrong in any of its parts
        raise ValueError(f"{TEMPLATE} is not a template: {error!r:.200}") from None
    bundle = Bundle(
        name=said.name,
        version=said.version,
        space=space,
        preprocess=said.preprocess,
        labels=said.labels,
        groups=said.flops.groups,
        frontier=tuple(frontier_row(space, entry) for entry in said.frontier),
        answers=answers,
        weights=weights,
        generator=generator,
        statistics=statistics,
        template=template,
        provenance=said.provenance,
        card=(path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else "",
        costs=costs,
        confidence=None if said.confidence is None else confidence_of(said.confidence),
        int8=None if said.int8 is None else int8_of(said.int8, load_arrays(path / INT8)),
    )
    if bundle.int8 is not None:
        check_int8(bundle)
    for known in (bundle.confidence, bundle.int8.confidence if bundle.int8 else None):
        if known is not None:
            _check_pairs(bundle, known)
    return bundle


def _check_pairs(bundle: Bundle, confidence: Confidence) -> None:
    """Raises ValueError for a pair with a subnet that the bundle does not list."""
    for _, *pair in confidence.pairs:
        for flops in filter(None, pair):
            if flops not in bundle.listed:
                raise ValueError(f"confidence: no subnet that is answered has {flops:,} FLOPs")


def _check_statistics(
    space: SearchSpace,
    answers: Sequence[Arch],
    statistics: Mapping[str, np.ndarray],
) -> None:
    """Raises ValueError naming an arch that can be answered and has none, or none that fit."""
    if SHARED in statistics:
        unpack_shared(space, statistics)
        return
    if not answers:
        raise ValueError("answers is empty, but statistics belong to the archs that are answered")
    for arch in answers:
        if space.arch_id(arch) not in statistics:
            raise ValueError(f"{STATISTICS} lacks {space.arch_id(arch)}, which is answered")
        unpack_statistics(space, arch, statistics[space.arch_id(arch)])
