"""Exported subnets: used by what their files say, with onnxruntime and Pillow alone."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from models.__main__ import main as models_main
from models.bundle.folder import Bundle
from shiftnas_serve.export import main, write_triton
from tests.contract.process import PNG
from tests.pictures import encoded

ROOT = Path(__file__).resolve().parents[2]
PROGRAM, FEATURES = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "docs" / "export.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)
MEMBERS = {"id", "flops", "params", "arch", "model", "labels", "preprocess"}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_the_help_names_the_opset_that_is_written(bundle: Bundle, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    (written,) = bundle.build_onnx(bundle.space.smallest).opset_import
    assert f"opset {written.version}:" in capsys.readouterr().out


def test_a_file_named_like_another_format_is_not_written(bundle_folder, tmp_path, capsys):
    out = tmp_path / "subnet.pt2"
    assert main([str(bundle_folder), "--flops", "1G", "--out", str(out)]) == 2
    assert "is named like --format torch, and --format is onnx" in capsys.readouterr().err
    assert not out.exists()


def metadata_of(data: bytes) -> dict:
    told = {one.key: one.value for one in onnx.load_model_from_string(data).metadata_props}
    return {key: text if key == "id" else json.loads(text) for key, text in told.items()}


def probabilities_by(model: Path, picture: Path, folder: Path) -> dict[str, float]:
    """Of each label, by the program that the documentation shows; nothing of this project."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with patch.object(sys, "argv", [str(program), str(model), str(picture)]):
        found = runpy.run_path(str(program))
    shares = found["powers"] / found["powers"].sum()
    return dict(zip(found["labels"], shares.tolist(), strict=True))


def test_a_file_says_all_that_is_needed_to_give_the_servers_answer(
    alone, bundle_folder, bundle: Bundle, tmp_path, capsys
):
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    picture = file.getvalue()
    asked = {"top_k": len(bundle.labels)}
    headers = {**PNG, "FLOPs-Budget": "1M"}
    with alone.client() as client:
        answer = client.post("/classify", params=asked, content=picture, headers=headers).json()

    out = tmp_path / "subnet.onnx"
    assert main([str(bundle_folder), "--flops", "1M", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    path, form = f"/subnets/{answer['subnet']['id']}", {"format": "onnx"}
    (tmp_path / "noise.png").write_bytes(picture)
    downloaded = tmp_path / "downloaded.onnx"
    sent = alone.get(path, params=form)
    assert sent.status_code == 200, sent.text
    downloaded.write_bytes(sent.content)
    for file in (out, downloaded):
        data = file.read_bytes()
        told = metadata_of(data)
        assert told.keys() == MEMBERS
        assert {name: printed[name] for name in MEMBERS} == told
        assert {name: told[name] for name in answer["subnet"]} == answer["subnet"]
        assert told["model"] == answer["model"]
        found = probabilities_by(file, tmp_path / "noise.png", tmp_path)
        for one in answer["predictions"]:
            assert found[one["label"]] == pytest.approx(one["probability"], abs=1e-4)


def photos() -> dict[str, bytes]:
    """One of every kind that a camera, a scanner or a browser makes."""

    def made(kind: str, width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
        rng = np.random.default_rng(width)
        rough = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 4), np.uint8)
        image = Image.fromarray(rough, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
        return encoded(image.convert("RGB" if mode == "P" else mode).convert(mode), kind, **options)

    def turned(orientation: int) -> Image.Exif:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif

    grey = np.random.default_rng(0).integers(0, 65536, (50, 70)).astype(np.uint16)
    return {
        "small": made("JPEG", 33, 41),
        "tiny": made("PNG", 5, 3),
        "its own size": made("PNG", 16, 16),
        "odd": made("JPEG", 127, 301),
        "large": made("JPEG", 1999, 1501),
        "large, turned": made("JPEG", 1601, 1203, exif=turned(6)),
        **{f"turned {n}": made("JPEG", 90, 60, exif=turned(n)) for n in range(2, 9)},
        "turned png": made("PNG", 70, 50, exif=turned(8)),
        "turned webp": made("WEBP", 70, 50, exif=turned(3)),
        "progressive": made("JPEG", 800, 600, progressive=True, subsampling="4:4:4"),
        "grey": made("JPEG", 640, 480, "L"),
        "cmyk": made("JPEG", 300, 200, "CMYK"),
        "panorama": made("JPEG", 2400, 150),
        "large png": made("PNG", 900, 700),
        "transparent": made("PNG", 200, 120, "RGBA"),
        "transparent grey": made("PNG", 60, 60, "LA"),
        "palette": made("PNG", 100, 80, "P"),
        "clear in a palette": made("PNG", 100, 80, "P", transparency=3),
        "1 bit": made("PNG", 64, 48, "1"),
        "16 bit": encoded(Image.fromarray(grey)),
        "webp": made("WEBP", 500, 333),
        "clear webp": made("WEBP", 120, 100, "RGBA"),
    }


@pytest.mark.parametrize(
    "how", [{}, {"crop_ratio": 0.875, "interpolation": "bilinear"}, {"crop_ratio": None}]
)
def test_the_documented_program_gives_the_servers_answer_for_any_photo(
    bundle: Bundle, tmp_path, how
):
    bundle = replace(bundle, preprocess=replace(bundle.preprocess, background=(9, 99, 199), **how))
    arch, model = bundle.space.smallest, tmp_path / "subnet.onnx"
    model.write_bytes(bundle.build_onnx(arch).SerializeToString())
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    side, largest = (bundle.space.resolution(a) for a in (arch, bundle.space.largest))
    for name, data in photos().items():
        photo = bundle.preprocess.decode(data, largest)  # as the server does
        images = bundle.preprocess.array(photo, side)[None]
        logits = np.asarray(session.run(None, {"images": images})[0])[0]
        (tmp_path / "photo").write_bytes(data)
        found = probabilities_by(model, tmp_path / "photo", tmp_path)
        assert [*found.values()] == pytest.approx(softmax(logits).tolist(), abs=1e-3), name


def test_a_torch_program_says_the_same(bundle_folder, bundle: Bundle, tmp_path, capsys):
    import torch

    out, arch = tmp_path / "subnet.pt2", bundle.space.smallest
    text = json.dumps(bundle.space.arch_to_json(arch))
    more = ["--format", "torch", "--out", str(out)]
    assert main([str(bundle_folder), "--arch", text, *more]) == 0
    inside = dict.fromkeys(MEMBERS, "")
    torch.export.load(out, extra_files=inside)
    assert inside == bundle.metadata(arch)


def test_the_features_of_the_documentation_are_there(monkeypatch):
    import torch

    monkeypatch.chdir(ROOT)
    found = {"images": torch.zeros(2, 3, 32, 32)}
    with torch.no_grad():
        exec(FEATURES, found)  # noqa: S102 - what the page shows
    assert len(found["logits"]) == 2
    assert [one.shape[-1] for one in found["maps"]] == [32, 16, 8, 4][-len(found["maps"]) :]


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


def test_a_repository_for_triton_is_what_its_protobuf_says(
    bundle_folder, bundle: Bundle, tmp_path, capsys
):
    """Names, shapes and labels agree with the models beside them."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    folder = tmp_path / "repository"
    budgets = [str(bundle.min_flops), str(bundle.max_flops), str(bundle.max_flops + 1)]
    asked = [str(bundle_folder), "--flops", *budgets, "--format", "triton", "--out", str(folder)]
    assert main([*asked, "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["models"]
    assert len(names) == 2
    for name in names:
        config = text_format.Parse((folder / name / "config.pbtxt").read_text(), ModelConfig())
        assert config.name == name
        session = onnxruntime.InferenceSession(folder / name / "1" / "model.onnx")
        (given,), (answered,) = session.get_inputs(), session.get_outputs()
        assert [config.input[0].name, *config.input[0].dims] == [given.name, *given.shape[1:]]
        assert [config.output[0].name, *config.output[0].dims] == [
            answered.name,
            len(bundle.labels),
        ]
        labels = (folder / name / config.output[0].label_filename).read_text().splitlines()
        assert labels == list(bundle.labels)
    quoted, archs = replace(bundle, name='so-called "net"'), [bundle.answer(bundle.min_flops)]
    (name,) = write_triton(quoted, archs, tmp_path / "quoted")
    text = (tmp_path / "quoted" / name / "config.pbtxt").read_text()
    assert text_format.Parse(text, ModelConfig()).name == name
    assert main(asked) == 2
    assert "is there already" in capsys.readouterr().err
    one = [*asked[:-3], "onnx", "--out", str(tmp_path / "one.onnx")]
    assert main(one) == 2
    assert "give one budget" in capsys.readouterr().err
