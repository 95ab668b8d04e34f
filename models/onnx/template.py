"""The ONNX template of a space: exported once, cut for any arch by ``graph.py``. Uses torch.

The exporter writes the graph of one arch; ``generalize.py`` makes it hold for all. At last,
cuts for some archs are compared with torch.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import onnx_ir as ir
import torch

from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.extract import extract_folded
from models.onnx import OPSET
from models.onnx.generalize import BATCH, TemplateError, generalize
from models.onnx.graph import (
    applied,
    conditional_weights,
    cut_graph,
    deployed_shapes,
    module_of,
)
from models.onnx.graph_template import (
    BLOCK_KEY,
    BLOCKS_KEY,
    INPUT,
    OUTPUT,
    PERMUTATIONS_KEY,
    Template,
)
from models.onnx.ort import onnxruntime
from models.space.arch import Arch
from models.space.search_space import SearchSpace

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_TOLERANCE = 1e-4


def export_template(space: SearchSpace) -> bytes:
    """The serialized template of a space, without weights: some kilobytes, some seconds.

    Raises TemplateError naming the node that does not fit all archs.
    """
    model = _trace(space, _all_in_use(space, -1))
    permutations = _transpose_weights(model)
    reference = _trace(space, _all_in_use(space, 0))
    _transpose_weights(reference)
    blocks = _label_blocks(space, model)
    generalize(model, reference)

    template = ir.to_proto(model)
    template.producer_name, template.producer_version = "shiftnas", ""
    metadata = {BLOCKS_KEY: blocks, PERMUTATIONS_KEY: permutations}
    onnx.helper.set_model_props(template, {k: json.dumps(v) for k, v in metadata.items()})
    _strip(template)
    data = template.SerializeToString(deterministic=True)
    _verify(space, Template.parse(data))
    return data


def _trace(space: SearchSpace, arch: Arch) -> ir.Model:
    """Export a subnet as deployed, its weights as graph inputs, so that none is folded away."""
    side = space.resolution(arch)
    with torch.random.fork_rng(devices=[]):
        net = build_net(space, arch, folded=True).eval()
    # Sides are those of the arch: symbols for them make the exporter several times as slow. Nothing
    # in the graph may depend on them; ``generalize`` and ``_verify`` see to that.
    batch = torch.export.Dim(BATCH, min=1, max=65536)
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 3, side, side),),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: batch},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        optimize=False,
        verbose=False,
    )
    assert program is not None
    graph = program.model.graph
    for name in deployed_shapes(space, arch):
        if name not in graph.initializers:
            raise TemplateError(f"{space.name}: the exported graph does not use weight {name}")
        weight = graph.initializers.pop(name)
        weight.const_value = None
        graph.inputs.append(weight)
    program.optimize()
    return program.model


def _all_in_use(space: SearchSpace, end: int) -> Arch:
    """An arch with every block and every weight, else of the smallest (0) or largest (-1) choices.

    The two share all nodes, and few sizes.
    """
    depths = {weight.block.depth for weight in space.weights if weight.block is not None}
    arch = space.arch({d.name: d.choices[-1 if d.name in depths else end] for d in space.decisions})
    rng = np.random.default_rng(0)
    for _ in range(1000):
        idle = [w for w in conditional_weights(space) if not applied(w, arch)]
        if not idle:
            return arch
        changed = dict(arch)
        for weight in idle:  # at random, because putting one right may put another wrong
            assert weight.positions is not None
            name = rng.choice(weight.positions.decisions)
            changed[name] = rng.choice(space.decision[name].choices).item()
        arch = space.arch(changed)
    raise TemplateError(f"{space.name}: no arch was found that applies every weight")


def _transpose_weights(model: ir.Model) -> dict[str, list[int]]:
    """Remove transpositions of weights: the cut stores them as they are read, nobody copies."""
    permutations: dict[str, list[int]] = {}
    weights = set(model.graph.inputs)
    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight not in weights or len(weight.uses()) > 1:
            continue
        assert weight.name is not None
        assert weight.shape is not None
        axes = list(node.attributes["perm"].as_ints())
        permutations[weight.name] = axes
        weight.shape = ir.Shape([weight.shape[axis] for axis in axes])
        ir.convenience.replace_all_uses_with(node.outputs[0], weight)
        model.graph.remove(node, safe=True)
    return permutations


def _label_blocks(space: SearchSpace, model: ir.Model) -> dict[str, list[str]]:
    """Write each node's block into its metadata; block -> [what it reads, what it gives].

    A module whose weight is conditional is dropped like a block.
    """
    names = [weight.block.name for weight in space.weights if weight.block is not None]
    names += [module_of(weight) for weight in conditional_weights(space)]
    members: dict[str, list[ir.Node]] = {name: [] for name in names}
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES_KEY, "")
        # a list of module paths written by repr: ['', 'blocks.3', 'blocks.3.attention']
        inside = [name for name in members if f"'{name}'" in scopes]
        node.metadata_props.clear()
        node.doc_string = None
        if inside:
            node.metadata_props[BLOCK_KEY] = inside[0]
            members[inside[0]].append(node)

    blocks: dict[str, list[str]] = {}
    for name, nodes in members.items():
        own = set(nodes)
        reads = {
            value.name
            for node in nodes
            for value in node.inputs
            if value is not None and value.producer() is not None and value.producer() not in own
        }
        gives = {
            value.name
            for node in nodes
            for value in node.outputs
            if any(user not in own for user in value.consumers())
        }
        if len(reads) != 1 or len(gives) != 1:
            raise TemplateError(
                f"{space.name}: block {name} cannot be dropped: it reads {sorted(map(str, reads))} "
                f"and gives {sorted(map(str, gives))}; it must read one value and give one"
            )
        blocks[name] = [str(reads.pop()), str(gives.pop())]
    return blocks


def _strip(template: onnx.ModelProto) -> None:
    """Weights from inputs to declarations without data; drop what belongs to one arch."""
    graph = template.graph
    images, *weights = graph.input
    images.ClearField("metadata_props")
    for axis, name in ((0, BATCH), (2, "side"), (3, "side")):
        images.type.tensor_type.shape.dim[axis].dim_param = name
    for weight in weights:
        graph.initializer.add(
            name=weight.name,
            data_type=onnx.TensorProto.FLOAT,
            dims=[d.dim_value for d in weight.type.tensor_type.shape.dim],
        )
    del graph.input[1:]
    for field in ("value_info", "metadata_props", "doc_string"):
        graph.ClearField(field)
    for value in (*graph.initializer, *graph.output):
        value.ClearField("metadata_props")
    template.ClearField("doc_string")


def _verify(space: SearchSpace, template: Template) -> None:
    """Compare cuts with torch: both ends and an arch of every resolution, batches of 1 and 3.

    BatchNorms are calibrated before they are folded: without them random weights let activations
    grow until float32 itself is off by a tenth.
    """
    rng = np.random.default_rng(0)
    decisions = space.resolution.decisions
    resolutions = list(itertools.product(*(space.decision[name].choices for name in decisions)))
    archs = [space.smallest, space.largest]
    for choices in itertools.islice(itertools.cycle(resolutions), max(4, len(resolutions))):
        chosen = dict(zip(decisions, choices, strict=True))
        archs.append(space.arch(dict(space.random_arch(rng)) | chosen))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build_net(space)
        for parameter in net.parameters():  # none at zero or one, where a mistake may not show
            parameter += torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.02)
    for arch in archs:
        side = space.resolution(arch)
        images = rng.normal(size=(3, 3, side, side)).astype(np.float32)
        measured = calibrate(net, arch, [torch.from_numpy(images)])
        statistics = {name: (mean.numpy(), var.numpy()) for name, (mean, var) in measured.items()}
        subnet = extract_folded(net, arch, statistics)
        weights = {name: weight.numpy() for name, weight in subnet.state_dict().items()}
        try:
            session = _session(cut_graph(template, space, arch, weights))
        except Exception as error:
            raise TemplateError(
                f"{space.name}: the graph cut for {space.arch_to_json(arch)} does not run: {error}"
            ) from error
        for batch in (images[:1], images):
            with torch.no_grad():
                expected = subnet(torch.from_numpy(batch)).numpy()
            (logits,) = session.run([OUTPUT], {INPUT: batch})
            error = np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()
            if not error < _TOLERANCE:
                raise TemplateError(
                    f"{space.name}: the graph cut for {space.arch_to_json(arch)} differs from "
                    f"torch by {error:.1e} of the largest logit"
                )


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
