"""Exported subnets: used by what their files say, with onnxruntime and Pillow alone."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from models.__main__ import main as models_main
from models.bundle.folder import Bundle
from shiftnas_serve.export import main
from tests.serve.conftest import PNG

MEMBERS = {"id", "flops", "params", "arch", "model", "labels", "preprocess"}


def metadata_of(data: bytes) -> dict:
    told = {one.key: one.value for one in onnx.load_model_from_string(data).metadata_props}
    return {key: text if key == "id" else json.loads(text) for key, text in told.items()}


def probabilities_by(data: bytes, picture: bytes) -> dict[str, float]:
    """Of each label, by an exported file and its metadata; nothing of this project."""
    told = metadata_of(data)
    how, side = told["preprocess"], told["arch"]["resolution"]
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    cut = min(image.size) * how["crop_ratio"]
    left, top = ((length - cut) / 2 for length in image.size)
    interpolation = Image.Resampling[how["interpolation"].upper()]
    box = (left, top, left + cut, top + cut)
    pixels = np.asarray(image.resize((side, side), interpolation, box=box)) / 255
    given = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, {"images": given})[0])[0]
    powers = np.exp(logits - logits.max())
    return dict(zip(told["labels"], (powers / powers.sum()).tolist(), strict=True))


def test_a_file_says_all_that_is_needed_to_give_the_servers_answer(
    server, bundle_folder, bundle: Bundle, tmp_path, capsys
):
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    picture = file.getvalue()
    asked = {"top_k": len(bundle.labels)}
    headers = {**PNG, "FLOPs-Budget": "1M"}
    answer = server.client.post("/classify", params=asked, content=picture, headers=headers).json()

    out = tmp_path / "subnet.onnx"
    assert main([str(bundle_folder), "--flops", "1M", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    path, form = f"/subnets/{answer['subnet']['id']}", {"format": "onnx"}
    for data in (out.read_bytes(), server.client.get(path, params=form).content):
        told = metadata_of(data)
        assert told.keys() == MEMBERS
        assert {name: printed[name] for name in MEMBERS} == told
        assert {name: told[name] for name in answer["subnet"]} == answer["subnet"]
        assert told["model"] == answer["model"]
        found = probabilities_by(data, picture)
        for one in answer["predictions"]:
            assert found[one["label"]] == pytest.approx(one["probability"], abs=1e-4)


def test_a_torch_program_says_the_same(bundle_folder, bundle: Bundle, tmp_path, capsys):
    import torch

    out, arch = tmp_path / "subnet.pt2", bundle.space.smallest
    text = json.dumps(bundle.space.arch_to_json(arch))
    more = ["--format", "torch", "--out", str(out)]
    assert main([str(bundle_folder), "--arch", text, *more]) == 0
    inside = dict.fromkeys(MEMBERS, "")
    torch.export.load(out, extra_files=inside)
    assert inside == bundle.metadata(arch)


def test_describe_takes_a_bundle(bundle_folder, bundle: Bundle, capsys):
    assert models_main(["describe", str(bundle_folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == {"name": bundle.name, "version": bundle.version}
    assert told["labels"] == list(bundle.labels)
    assert told["preprocess"] == bundle.preprocess.to_json()
    assert len(told["frontier"]) == len(bundle.frontier)
    assert told["archs"] == np.prod([len(d.choices) for d in bundle.space.decisions])
    text = json.dumps(bundle.space.arch_to_json(bundle.space.smallest))
    assert models_main(["describe", str(bundle_folder), "--arch", text]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == bundle.space.arch_id(bundle.space.smallest)
    assert models_main(["describe", str(bundle_folder), "--relative-position"]) == 2
    assert models_main(["describe", str(bundle_folder.parent)]) == 2
